//! What the VMM writes to guest memory itself, at each moment of a cut: it is in this epoch, or
//! surely in the next.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use slackwater::epoch::{Cut, Durability, Engine, EngineOptions, OnStorageError, Start, WhenBehind};
use slackwater::format::Trigger;
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PAGE_SIZE_U64};
use slackwater::store::verify::{VerifyOptions, verify};
use slackwater::store::{NewChain, Writer, WriterOptions};
use vm_memory::{Bytes, GuestAddress};

use super::harness::{
    Counter, Fault, Lies, Moment, PAGES, REGIONS, RING, World, digest_of, gfn, options, page_of, snapshot, wait_until,
};

/// The page that is written within cuts, by nobody else.
const OWN: usize = 77;

fn audited() -> EngineOptions {
    EngineOptions { audit_every: NonZeroU64::new(1), ..options() }
}

/// By ring with one vCPU, a collection begins before state is captured; else behind it. And
/// tracking may be lost, which shows at once or late.
fn all_lies() -> impl Iterator<Item = Lies> {
    [false, true].into_iter().flat_map(|cannot_tell| [false, true].map(|late| Lies { cannot_tell, late, ..Lies::default() }))
}

/// Runs a world in which cuts of every kind are asked for, with `plan` called before each of them.
fn every_kind_of_cut(lies: Lies, durability: Durability, mut plan: impl FnMut(&mut World)) -> (World, Engine<Counter>) {
    let mut world = World::new();
    world.lies = lies;
    let mut engine = world.engine(Start::Fresh, EngineOptions { durability, ..audited() });
    let mut cut = |world: &mut World, trigger| {
        plan(world);
        let epoch = world.take(&mut engine, trigger);
        // `on_release` may be called behind the cut.
        wait_until("the epoch is not in the chain", || {
            let reached = engine.reached();
            // Nor is storage ever behind, however slow the machine is.
            let newest = if durability == Durability::None { reached.appended } else { reached.durable };
            newest == EpochId(epoch) && world.guest.writes.are_done()
        });
    };
    // A base, small epochs, one of the guest's that has the page as well, a recovery, and a last
    // one.
    world.vmm_write(gfn(1));
    cut(&mut world, Trigger::Request);
    cut(&mut world, Trigger::Interval);
    world.write_all([3, 50]);
    cut(&mut world, Trigger::RingFull);
    world.write_all([4, OWN]);
    cut(&mut world, Trigger::Interval);
    world.write_all(0..2 * RING + 3);
    cut(&mut world, Trigger::RingFull);
    world.write_all([5]);
    world.vmm_write(gfn(6));
    cut(&mut world, Trigger::Request);
    cut(&mut world, Trigger::Final);
    (world, engine)
}

#[test]
fn what_is_written_until_state_is_captured_is_in_the_epoch() {
    for (lies, moment) in all_lies().flat_map(|lies| [Moment::Park, Moment::Capture].map(|moment| (lies, moment))) {
        for durability in [Durability::Group(Duration::from_micros(500)), Durability::Epoch, Durability::None] {
            let (world, engine) = every_kind_of_cut(lies, durability, |world| world.plan(moment, gfn(OWN)));
            // Each snapshot is of the end of the capture, and has the page with another content.
            let report = world.finish(engine).report;
            assert_eq!((report.epochs, report.audits, report.late_writes), (7, 7, 0), "{moment:?} {lies:?}");
            assert_eq!(report.tracking_lost, 1);
        }
    }
}

#[test]
fn what_is_written_behind_the_copy_is_in_the_next_epoch() {
    for (lies, moment) in
        all_lies().flat_map(|lies| [Moment::OnRelease, Moment::Resume, Moment::Records].map(|moment| (lies, moment)))
    {
        // The leader waits for the writer's thread, with everything parked.
        let (world, engine) = every_kind_of_cut(lies, Durability::Epoch, |world| world.plan(moment, gfn(OWN)));
        let report = world.finish(engine).report;
        assert_eq!((report.epochs, report.audits, report.late_writes), (7, 7, 0), "{moment:?} {lies:?}");
        let stored = world.disk.stored();
        for pair in stored.windows(2) {
            assert!(pair[1].mentions.contains(&gfn(OWN)), "{moment:?} {lies:?}: epoch {} lacks it", pair[1].commit.epoch);
        }
    }
}

/// Somebody who was not quiesced writes between capture and copy, or between copy and resume. That
/// is against the rules: it is said, an audit that could be wrong is left out, and what was written
/// is not lost.
#[test]
fn what_is_written_in_between_is_in_this_epoch_or_the_next() {
    for (cannot_tell, moment) in
        [(false, Moment::WroteMore), (true, Moment::Begin), (false, Moment::Settle), (true, Moment::Settle)]
    {
        let mut world = World::new();
        world.lies = Lies { cannot_tell, ..Lies::default() };
        let mut engine = world.engine(Start::Fresh, EngineOptions { audit_every: NonZeroU64::new(3), ..options() });
        world.vmm_write(gfn(1));
        for round in 0..9 {
            world.write_all([round, 20 + round]);
            if round < 8 {
                world.plan(moment, gfn(OWN + round));
            }
            world.take(&mut engine, Trigger::Interval);
        }
        world.take(&mut engine, Trigger::Final);
        let finished = engine.finish();
        assert!(finished.error.is_none());
        let (stored, now) = (world.disk.stored(), snapshot(&world.memory));
        let is_late = moment != Moment::WroteMore;
        for index in 0..8 {
            let has = |epoch: usize| page_of(&stored[epoch].image, gfn(OWN + index)) == page_of(&now, gfn(OWN + index));
            assert_eq!((has(index), has(index + 1)), (!is_late, true), "{moment:?} in cut {index}");
        }
        assert_eq!(finished.report.late_writes, if is_late { 8 } else { 0 }, "{moment:?}");
        // Audits were due with the first, fourth, seventh and tenth.
        let audits: Vec<_> = (0..10).filter(|index| stored[*index].commit.audit.is_some()).collect();
        assert_eq!(audits, if is_late { vec![9] } else { vec![0, 3, 6, 9] }, "{moment:?}");
        assert!(stored.iter().all(|stored| stored.commit.audit.is_none_or(|audit| audit == digest_of(&stored.image))));
        assert!(stored[9].image == now);
    }
}

#[test]
fn a_cut_that_only_takes_the_list_has_it() {
    for lies in all_lies() {
        let mut world = World::new();
        world.lies = lies;
        let slots = EngineOptions { slots: 2, budget_pages: 3 * RING + 20, when_behind: WhenBehind::Lengthen, ..audited() };
        let mut engine = world.engine(Start::Fresh, slots);
        world.take(&mut engine, Trigger::Request);
        world.disk.wait_operations(1);
        world.disk.shut();
        let mut lengthened = 0;
        for round in 0..6 {
            world.write_all([round]);
            world.plan(Moment::Park, gfn(OWN));
            world.plan(Moment::Resume, gfn(OWN + 1 + round));
            match world.cut(&mut engine, Trigger::RingFull).unwrap() {
                Cut::Lengthened { .. } => lengthened += 1,
                Cut::Taken { .. } => assert_eq!(lengthened, 0, "storage is behind"),
                Cut::Skipped => panic!("a full ring is never skipped"),
            }
            assert!(world.guest.writes.are_done());
        }
        assert!(lengthened > 2);
        world.disk.open();
        world.plan(Moment::Capture, gfn(90));
        world.take(&mut engine, Trigger::Final);
        assert_eq!(world.finish(engine).report.late_writes, 0);
    }
}

#[test]
fn a_capture_that_wrote_and_failed_loses_nothing() {
    for lies in all_lies() {
        let mut world = World::new();
        world.lies = lies;
        let mut engine = world.engine(Start::Fresh, audited());
        world.take(&mut engine, Trigger::Request);
        for round in 0..4 {
            world.write_all([round]);
            world.plan(Moment::Capture, gfn(OWN));
            world.guest.fail_next_capture = true;
            assert!(world.cut(&mut engine, Trigger::Request).is_err());
            assert!(world.guest.writes.are_done());
            assert!(matches!(world.cut(&mut engine, Trigger::Request).unwrap(), Cut::Taken { pages: 2, .. }));
        }
        world.finish(engine);
    }
}

#[test]
fn a_base_of_a_guest_in_use_has_it() {
    for lies in all_lies() {
        let mut world = World::new();
        world.lies = lies;
        world.fill(0..PAGES);
        let mut engine = world.engine(Start::InUse, audited());
        let mut round = 0;
        while engine.copy_base().unwrap() {
            // Copied or not by now.
            world.vmm_write(gfn(round));
            world.vmm_write(gfn(PAGES - 1 - round));
            world.plan(Moment::Park, gfn(OWN));
            world.plan(Moment::Resume, gfn(OWN + 1));
            world.cut(&mut engine, Trigger::RingFull).unwrap();
            round += 1;
        }
        assert!(round > 1);
        world.plan(Moment::Park, gfn(OWN));
        world.plan(Moment::Capture, gfn(2));
        world.plan(Moment::Resume, gfn(3));
        world.take(&mut engine, Trigger::Request);
        world.take(&mut engine, Trigger::Final);
        world.finish(engine);
    }
}

/// What is written as state is put back is of the new epoch: the next cut has it, and the next way
/// back undoes it.
#[test]
fn what_is_written_in_a_rollback_is_of_the_new_epoch() {
    for lies in all_lies() {
        let mut world = World::new();
        world.lies = lies;
        let mut engine = world.engine(Start::Fresh, EngineOptions { rollback: true, ..audited() });
        world.plan(Moment::Capture, gfn(OWN));
        world.take(&mut engine, Trigger::Request);
        for round in 0..3 {
            world.write_all([round, OWN]);
            for (moment, page) in [(Moment::Park, OWN), (Moment::Restore, OWN + 1), (Moment::Resume, OWN + 2)] {
                world.plan(moment, gfn(page));
            }
            // Memory is looked at as state is put back: what was captured last is there.
            world.rollback(&mut engine).unwrap();
            assert!(world.guest.writes.are_done());
        }
        assert!(matches!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Taken { pages: 2, .. }));
        world.plan(Moment::Restore, gfn(OWN + 1));
        world.rollback(&mut engine).unwrap();
        world.take(&mut engine, Trigger::Final);
        world.finish(engine);
    }
}

#[test]
fn an_epoch_that_failed_gives_it_to_the_next() {
    for lies in all_lies() {
        let on_storage_error = OnStorageError::Continue { retry_after: Duration::ZERO };
        let mut world = World::new();
        world.lies = lies;
        let mut engine = world.engine(Start::Fresh, EngineOptions { on_storage_error, ..audited() });
        world.take(&mut engine, Trigger::Request);
        world.disk.wait_operations(1);
        world.disk.fail_in(0, Fault::Reject);
        world.plan(Moment::Capture, gfn(OWN));
        world.take(&mut engine, Trigger::Request);
        world.settle(&engine, 0);
        world.take(&mut engine, Trigger::Request);
        assert!(world.disk.stored().len() == 1 || world.disk.last().mentions.contains(&gfn(OWN)));
        world.take(&mut engine, Trigger::Final);
        world.finish(engine);
    }
}

#[test]
fn what_is_no_memory_is_nobodys() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, audited());
    // In the hole between the regions, and behind both.
    [64, 79, 112, 1 << 40, u64::MAX].into_iter().for_each(|frame| world.memory.written().mark(Gfn(frame)));
    assert!(matches!(world.cut(&mut engine, Trigger::Request).unwrap(), Cut::Taken { pages: 0, .. }));
    world.finish(engine);
}

/// Ends the device, also where a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A device that nobody stops writes for as long as cuts are taken. What it wrote last is in the
/// last epoch.
#[test]
fn a_device_that_runs_through_cuts_loses_nothing() {
    for cannot_tell in [false, true] {
        let mut world = World::new();
        world.lies = Lies { cannot_tell, ..Lies::default() };
        let dir = tempfile::tempdir().unwrap();
        let new = NewChain { memory: REGIONS.to_vec(), device_runs: 0, vcpus: 1, machine: serde_json::Value::Null };
        let writer = Writer::create(dir.path(), &new, WriterOptions::default()).unwrap();
        let (memory, tracker) = (world.memory.clone(), world.tracker());
        let mut engine = Engine::<Counter>::new(memory, tracker, Box::new(writer), Start::Fresh, audited()).unwrap();
        let (over, memory) = (AtomicBool::new(false), world.memory.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1_u64.. {
                    let page = gfn((number % PAGES as u64) as usize);
                    let words = [number.to_le_bytes(); PAGE_SIZE / 8].concat();
                    memory.ram().write_slice(&words, GuestAddress(page.0 * PAGE_SIZE_U64)).unwrap();
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let _over = Over(&over);
            for round in 0..300 {
                let _ = world.simulated.write(gfn(round));
                world.take(&mut engine, Trigger::Request);
            }
        });
        // Two, so that what came within the first of them is there.
        let last = world.take(&mut engine, Trigger::Final);
        let finished = engine.finish();
        assert!(finished.error.is_none());
        println!("{} of {} cuts had late writes", finished.report.late_writes, finished.report.epochs);
        let chain = slackwater::store::Chain::open(dir.path()).unwrap();
        let mut restored = slackwater::memory::GuestMemory::anonymous(&REGIONS, 0).unwrap();
        slackwater::restore::Plan::new(&chain, EpochId(last)).unwrap().fill(&mut restored, &mut |_, _| {}).unwrap();
        assert!(snapshot(&restored) == snapshot(&world.memory));
        // The last epoch's audit is of a memory that nobody wrote.
        let report =
            verify(dir.path(), &VerifyOptions { epoch: Some(EpochId(last)), ..VerifyOptions::default() }, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{:?}", report.damage);
    }
}
