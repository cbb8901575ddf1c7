//! Several sinks: the same bytes, one that fails and comes back, and when epochs are released.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use slackwater::epoch::{
    AttachError, Durability, Early, Engine, EngineError, EngineOptions, JoinError, Marks, Need, NextRound, OnStorageError, Place,
    Release, Sink, SinkError, SinkStanding, SinkStart, Start,
};
use slackwater::format::{Complete, Compression, Head, Trigger};
use slackwater::page::EpochId;

use super::harness::{BUDGET, Counter, Disk, FOR_EVER, Fault, PAGES, RING, World, gfn, options, wait_until};
use super::model::Random;
use crate::support::{Random as Seeds, rounds};

const AT_ONCE: OnStorageError = OnStorageError::Continue { retry_after: Duration::ZERO };

/// A world whose engine has two sinks.
fn two(world: &World, options: EngineOptions) -> (Engine<Counter>, Disk) {
    let other = world.other_disk();
    let mut engine = world.engine(Start::Fresh, options);
    assert_eq!(engine.attach(other.sink()).unwrap(), 1);
    (engine, other)
}

fn follows(engine: &Engine<Counter>, sink: usize) -> bool {
    matches!(engine.sinks()[sink].standing, SinkStanding::Follows)
}

fn has_left(engine: &Engine<Counter>, sink: usize) -> bool {
    matches!(engine.sinks()[sink].standing, SinkStanding::Left(_))
}

/// Has a sink join, with writes and epochs meanwhile. Returns whether it came to that.
fn join(world: &mut World, engine: &mut Engine<Counter>, sink: usize) -> bool {
    engine.join(sink).unwrap();
    let mut round = 0;
    while engine.copy_base().unwrap() {
        round += 1;
        if round % 2 == 0 {
            world.write_all([round % PAGES, (round * 31) % PAGES]);
            world.take(engine, Trigger::Request);
        }
        std::thread::yield_now();
    }
    world.write_all([3]);
    world.take(engine, Trigger::Request);
    wait_until("the sink neither follows nor has left", || follows(engine, sink) || has_left(engine, sink));
    follows(engine, sink)
}

/// Every epoch of either is what the guest was, and one that both have is the same: by its
/// identity, and by its bytes where neither has it as its own base.
fn agree(world: &World, other: &Disk) {
    world.oracle().unwrap();
    world.oracle_of(other).unwrap();
    let others: BTreeMap<_, _> = other.stored().into_iter().map(|stored| (stored.commit.epoch, stored)).collect();
    for stored in world.disk.stored() {
        let Some(twin) = others.get(&stored.commit.epoch) else { continue };
        assert_eq!(stored.end.identity, twin.end.identity, "epoch {}", stored.commit.epoch);
        if stored.commit.rewritten.is_none() && twin.commit.rewritten.is_none() {
            assert!(stored.frames == twin.frames && stored.end.frame == twin.end.frame, "epoch {}", stored.commit.epoch);
        }
    }
}

#[test]
fn two_sinks_that_are_given_one_runs_epochs_hold_the_same_bytes() {
    for durability in
        [Durability::Epoch, Durability::Group(Duration::from_micros(100)), Durability::Group(FOR_EVER), Durability::None]
    {
        let mut world = World::new();
        let (mut engine, other) = two(&world, EngineOptions { durability, version_pages: 20, ..options() });
        (0..PAGES).for_each(|index| world.vmm_write(gfn(index)));
        for round in 0..40 {
            world.take(&mut engine, Trigger::Request);
            world.write_all((0..round % 7).map(|page| (page * 13 + round) % PAGES));
        }
        world.take(&mut engine, Trigger::Final);
        // With a window that never ends nothing is durable before the end.
        assert!(durability == Durability::Group(FOR_EVER) || engine.flush());
        assert!(follows(&engine, 0) && follows(&engine, 1));
        world.finish(engine);
        agree(&world, &other);
        let (one, two) = (world.disk.stored(), other.stored());
        assert_eq!((one.len(), two.len()), (41, 41));
        assert!(one.iter().zip(&two).all(|(one, two)| (&one.frames, &one.end) == (&two.frames, &two.end)));
        assert!(other.is_closed());
    }
}

/// A sink that begins in another way than its disk: with nothing that is durable, or never saying
/// what is.
struct Begins {
    sink: Box<dyn Sink>,
    durable: Option<EpochId>,
    syncs: Arc<AtomicU64>,
}

impl Sink for Begins {
    fn start(&mut self, marks: Marks) -> SinkStart {
        let marks = if self.durable.is_some() { marks } else { Marks::nowhere() };
        SinkStart { durable: self.durable, ..self.sink.start(marks) }
    }

    fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError> {
        self.sink.append(epoch, frames)
    }

    fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        self.sink.complete(frames, epoch)
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        self.sink.abort()
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.sink.sync()
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        self.sink.reopen()
    }

    fn close(&mut self, sync: bool) -> Result<(), SinkError> {
        self.sink.close(sync)
    }
}

/// A standby in memory is nothing that anybody waits for as for a disk.
#[test]
fn nobody_waits_for_what_a_sink_never_tells() {
    for durability in [Durability::Epoch, Durability::Group(Duration::from_micros(100)), Durability::None] {
        let mut world = World::new();
        let other = world.other_disk();
        let mut engine = world.engine(Start::Fresh, EngineOptions { durability, ..options() });
        let begins = Begins { sink: other.sink(), durable: None, syncs: Arc::default() };
        assert_eq!(engine.attach(Box::new(begins)).unwrap(), 1);
        for round in 0..40 {
            world.write_all((0..7).map(|page| (page * 13 + round) % PAGES));
            world.take(&mut engine, if round % 3 == 0 { Trigger::Request } else { Trigger::Interval });
        }
        assert!(engine.flush(), "{durability:?}");
        world.take(&mut engine, Trigger::Final);
        assert!(follows(&engine, 1), "{durability:?}");
        world.finish(engine);
        agree(&world, &other);
    }
}

/// What a standby has taken over with is synced before anything of it counts.
#[test]
fn what_a_sink_begins_with_is_synced_first() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, options());
    world.write_all([1, 2, 3]);
    let newest = world.take(&mut engine, Trigger::Final);
    assert!(engine.finish().error.is_none());
    let syncs = Arc::<AtomicU64>::default();
    let begins = Begins { sink: world.disk.sink(), durable: Some(EpochId::NONE), syncs: syncs.clone() };
    let engine = world.engine_with(Box::new(begins), Start::Restored(EpochId(newest)), options());
    wait_until("it is not synced", || syncs.load(Ordering::SeqCst) == 1 && engine.reached().durable == EpochId(newest));
    assert_eq!(engine.report().durable_epochs, 0, "none of them is its own");
    assert!(engine.finish().error.is_none());
}

/// A busy guest has a round in every epoch: none begins with a cut.
#[test]
fn a_base_is_whole_although_every_epoch_begins_with_a_round() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, EngineOptions { budget_pages: 70, early: Early::Always, ..options() });
    let other = world.other_disk();
    world.write_all([1, 2, 3]);
    world.take(&mut engine, Trigger::Request);
    assert_eq!(engine.attach(other.sink()).unwrap(), 1);
    engine.join(1).unwrap();
    let mut epochs = 0;
    while !follows(&engine, 1) {
        let is_copying = engine.copy_base().unwrap();
        world.write_all((0..5).map(|page| (page * 7 + epochs) % PAGES));
        wait_until("no round takes anything", || engine.round(Place::Middle, &|| false).unwrap().pages > 0);
        world.take(&mut engine, Trigger::Request);
        epochs += usize::from(!is_copying);
        assert!(epochs < 10, "it never joins");
        std::thread::sleep(Duration::from_millis(u64::from(!is_copying)));
    }
    world.write_all([4, 5]);
    world.take(&mut engine, Trigger::Final);
    world.finish(engine);
    agree(&world, &other);
}

/// Whichever fails, at whatever it does: the epochs go on to the other, and it comes back.
#[test]
fn one_that_fails_leaves_and_comes_back_by_a_base_of_its_own() {
    let faults = [Fault::Reject, Fault::Latch { survivors: 0 }, Fault::Latch { survivors: 1 }, Fault::LatchKept];
    for (sink, fault) in [0, 1].into_iter().flat_map(|sink| faults.map(|fault| (sink, fault))) {
        for operation in 0..12 {
            let case = format!("sink {sink}, {fault:?} at {operation}");
            let mut world = World::new();
            let durability = Durability::Group(Duration::ZERO);
            let (mut engine, other) = two(&world, EngineOptions { durability, version_pages: 20, ..options() });
            let disks = [world.disk.clone(), other.clone()];
            disks[sink].fail_at(operation, fault);
            (0..40).for_each(|index| world.vmm_write(gfn(index)));
            world.take(&mut engine, Trigger::Request);
            while !has_left(&engine, sink) {
                world.write_all([5, 50]);
                world.take(&mut engine, Trigger::Request);
            }
            assert!(matches!(engine.join(1 - sink), Err(JoinError::Follows(_))));
            let lacks = world.take(&mut engine, Trigger::Request);
            // A page that it knows as something else becomes zeros.
            world.write_page(gfn(7), &[0; 4096]);
            let before = world.take(&mut engine, Trigger::Request);
            assert!(join(&mut world, &mut engine, sink), "{case}");
            for round in 0..5 {
                world.write_all([round, 60 + round]);
                world.take(&mut engine, Trigger::Request);
            }
            assert!(engine.flush(), "{case}");
            let captures = world.guest.snapshots.len();
            let finished = engine.finish();
            assert!(finished.error.is_none(), "{case}: {finished:?}");
            agree(&world, &other);
            let (left, stayed) = (disks[sink].stored(), disks[1 - sink].stored());
            assert_eq!(stayed.len(), captures, "{case}: the other has every epoch");
            assert!(left.iter().all(|stored| stored.commit.epoch.0 != lacks), "{case}");
            let base = left.iter().position(|stored| stored.commit.rewritten.is_some()).expect("a base of its own");
            let number = left[base].commit.epoch;
            assert!(number.0.is_multiple_of(1_000_000) && number.0 > before, "{case}: {number}");
            assert_eq!(left.len() - base, stayed.iter().filter(|stored| stored.commit.epoch >= number).count(), "{case}");
            assert!(left.last().unwrap().end == stayed.last().unwrap().end, "{case}");
            assert_eq!(disks[sink].durable(), disks[1 - sink].durable(), "{case}");
        }
    }
}

#[test]
fn one_that_fails_while_it_joins_can_join_again() {
    for (operation, fault) in (0..20).flat_map(|operation| [Fault::Reject, Fault::LatchKept].map(|fault| (operation, fault))) {
        let mut world = World::new();
        let (mut engine, other) = two(&world, EngineOptions { durability: Durability::Group(Duration::ZERO), ..options() });
        other.fail_at(0, Fault::Reject);
        (0..PAGES).for_each(|index| world.vmm_write(gfn(index)));
        world.take(&mut engine, Trigger::Request);
        wait_until("it does not leave", || has_left(&engine, 1));
        other.fail_reopens(operation as u32 % 2);
        other.fail_in(operation, fault);
        let mut joins = 0;
        while !follows(&engine, 1) || other.operations() <= operation {
            joins += 1;
            assert!(joins < 20, "it never joins");
            if follows(&engine, 1) {
                world.write_all([9]);
                world.take(&mut engine, Trigger::Request);
                std::thread::yield_now();
                joins -= 1;
            } else {
                join(&mut world, &mut engine, 1);
            }
        }
        assert!(engine.finish().error.is_none());
        agree(&world, &other);
    }
}

#[test]
fn what_is_released_has_come_where_the_rule_says() {
    let disk = Need::Durable(0);
    let standby = Need::Acknowledged(1);
    let mut world = World::new();
    let release = Some(Release::All(vec![disk, standby]));
    let (mut engine, other) = two(&world, EngineOptions { durability: Durability::Group(Duration::ZERO), release, ..options() });
    for round in 1..=6 {
        world.write_all([round]);
        world.take(&mut engine, Trigger::Request);
        assert!(engine.flush());
        assert!(world.events.released().iter().all(|epoch| *epoch < round as u64), "nobody has acknowledged {round}");
        other.acknowledge(EpochId(round as u64));
        assert_eq!(world.events.released().last(), Some(&(round as u64)));
    }
    // An older acknowledgement says nothing.
    other.acknowledge(EpochId(2));
    assert_eq!(engine.sinks()[1].reached.acknowledged, EpochId(6));
    world.finish(engine);
    assert_eq!(world.events.released(), [1, 2, 3, 4, 5, 6]);

    // Either is enough.
    let mut world = World::new();
    let release = Some(Release::Any(vec![disk, standby]));
    let (mut engine, other) = two(&world, EngineOptions { durability: Durability::Group(FOR_EVER), release, ..options() });
    for round in 1..=3 {
        world.write_all([round]);
        world.take(&mut engine, Trigger::Request);
    }
    other.acknowledge(EpochId(2));
    assert_eq!(world.events.released(), [2]);
    world.finish(engine);
    assert_eq!(world.events.released(), [2, 3]);
}

#[test]
fn a_sink_may_tell_later_that_it_is_durable_or_that_it_failed() {
    let mut world = World::new();
    world.disk.sync_later();
    let options = EngineOptions { durability: Durability::Group(Duration::ZERO), on_storage_error: AT_ONCE, ..options() };
    let mut engine = world.engine(Start::Fresh, options);
    (0..30).for_each(|index| world.vmm_write(gfn(index)));
    world.take(&mut engine, Trigger::Request);
    wait_until("no sync is asked for", || world.disk.operations() > 2);
    assert_eq!((engine.reached().durable, world.events.released()), (EpochId::NONE, Vec::new()));
    world.disk.sync_now();
    assert!(engine.flush());
    assert_eq!((engine.reached().durable, world.events.released()), (EpochId(1), vec![1]));
    // Epoch 2 is lost with the sync that was to make it durable; its pages are in the next.
    world.write_all([4, 40]);
    world.take(&mut engine, Trigger::Request);
    wait_until("epoch 2 is not appended", || engine.reached().appended == EpochId(2));
    world.disk.fail_sync(0);
    assert!(!engine.flush(), "nobody says that the sync failed");
    world.write_all([5]);
    let last = world.take(&mut engine, Trigger::Request);
    wait_until("the last epoch is not appended", || engine.reached().appended == EpochId(last));
    world.disk.sync_now();
    assert!(engine.flush());
    world.take(&mut engine, Trigger::Final);
    let finished = engine.finish();
    assert!(finished.error.is_none(), "{finished:?}");
    world.oracle().unwrap();
}

#[test]
fn a_sink_of_another_chain_or_that_comes_late_follows_only_when_it_has_joined() {
    let mut world = World::new();
    let durability = Durability::Group(Duration::ZERO);
    let mut engine = world.engine(Start::Fresh, EngineOptions { durability, ..options() });
    assert!(matches!(engine.join(1), Err(JoinError::NoSink(1))));
    let refused = engine.attach(Box::new(slackwater::epoch::Discard::default()));
    assert!(matches!(refused, Err(AttachError::OtherChain { .. })), "{refused:?}");
    world.write_all([1, 2]);
    world.take(&mut engine, Trigger::Request);
    let other = world.other_disk();
    assert_eq!(engine.attach(other.sink()).unwrap(), 1);
    assert!(has_left(&engine, 1));
    world.take(&mut engine, Trigger::Request);
    engine.join(1).unwrap();
    assert!(matches!(engine.join(1), Err(JoinError::Busy)));
    while engine.copy_base().unwrap() {}
    world.write_all([8]);
    world.take(&mut engine, Trigger::Request);
    world.take(&mut engine, Trigger::Request);
    assert!(engine.flush());
    world.finish(engine);
    agree(&world, &other);
    assert_eq!(other.stored().len(), 2);
}

/// Where nobody follows any more, the epochs go on with the last one that did.
#[test]
fn when_both_fail_nothing_is_lost_but_what_is_said_to_be() {
    for (first, second) in (0..8).flat_map(|first| (0..8).map(move |second| (first, second))) {
        let mut world = World::new();
        let options = EngineOptions { durability: Durability::Group(Duration::ZERO), on_storage_error: AT_ONCE, ..options() };
        let (mut engine, other) = two(&world, options);
        world.disk.fail_at(first, Fault::Latch { survivors: 0 });
        other.fail_at(second, Fault::Latch { survivors: 0 });
        (0..40).for_each(|index| world.vmm_write(gfn(index)));
        for round in 0..10 {
            world.write_all([round, 33]);
            world.take(&mut engine, Trigger::Request);
            std::thread::yield_now();
        }
        let last = world.take(&mut engine, Trigger::Request);
        while !engine.flush() {
            world.take(&mut engine, Trigger::Request);
        }
        assert_eq!([0, 1].iter().filter(|sink| follows(&engine, **sink)).count(), 1, "{first} {second}");
        let finished = engine.finish();
        assert!(finished.error.is_none(), "{finished:?}");
        agree(&world, &other);
        assert!(world.disk.tip().max(other.tip()).0 >= last, "{first} {second}");
    }
}

/// The sink that joined is the only one left, and loses its base with the sync that was to make it
/// durable: what it has then is as old as what it had before it joined.
#[test]
fn a_base_that_is_lost_before_it_is_durable_comes_again() {
    let mut world = World::new();
    let options = EngineOptions { durability: Durability::Group(FOR_EVER), on_storage_error: AT_ONCE, ..options() };
    let (mut engine, other) = two(&world, options);
    (0..40).for_each(|index| world.vmm_write(gfn(index)));
    world.take(&mut engine, Trigger::Request);
    wait_until("the base is not in both", || engine.reached().appended == EpochId(1));
    other.sync_now();
    other.fail_in(0, Fault::Reject);
    world.write_all([7, 8, 9]);
    world.take(&mut engine, Trigger::Request);
    wait_until("it does not leave", || has_left(&engine, 1));
    assert!(join(&mut world, &mut engine, 1));
    world.disk.fail_in(0, Fault::Reject);
    world.write_all([50]);
    world.take(&mut engine, Trigger::Request);
    wait_until("the first does not leave", || has_left(&engine, 0));
    other.fail_sync(0);
    assert!(!engine.flush(), "its only chain lost what it had");
    world.write_all([51]);
    let last = world.take(&mut engine, Trigger::Request);
    wait_until("the last epoch is not appended", || other.tip() == EpochId(last));
    other.sync_now();
    assert!(engine.flush());
    let finished = engine.finish();
    assert!(finished.error.is_none(), "{finished:?}");
    agree(&world, &other);
    assert_eq!(other.stored().len(), 2, "what it had, and the last");
}

/// Steps of a guest, of its storage and of whoever mends that, at random.
fn lives(seed: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut world = World::new();
    world.lies.cannot_tell = random.one_in(2);
    let durability = random.of(&[
        Durability::Group(Duration::ZERO),
        Durability::Group(Duration::from_micros(300)),
        Durability::None,
        Durability::Epoch,
    ]);
    let options = EngineOptions {
        durability,
        on_storage_error: AT_ONCE,
        rollback: random.one_in(2),
        version_pages: random.of(&[0, 3, 20]),
        compression: random.of(&[Compression::None, Compression::default()]),
        slots: 2 + random.below(3),
        early: random.of(&[Early::Off, Early::Always]),
        budget_pages: random.of(&[BUDGET, 60]),
        ..options()
    };
    let rollback = options.rollback;
    let (mut engine, other) = two(&world, options);
    let disks = [world.disk.clone(), other.clone()];
    let failed = |result: Result<_, EngineError>| match result {
        Ok(cut) => Some(cut),
        Err(error) => panic!("{error:?}"),
    };
    (0..random.below(PAGES)).for_each(|index| world.vmm_write(gfn(index)));
    failed(world.cut(&mut engine, Trigger::Request));
    for _ in 0..60 {
        match random.below(17) {
            0..=3 => {
                let pages: Vec<_> = (0..random.below(RING - 4)).map(|_| random.below(PAGES)).collect();
                world.write_all(pages);
            }
            4 | 5 => drop(failed(world.cut(&mut engine, Trigger::Request))),
            6 => drop(failed(world.cut(&mut engine, Trigger::RingFull))),
            7 => {
                let (more, fault) = (random.below(6) as u64, random.fault());
                disks[random.below(2)].fail_in(more, fault);
            }
            8 => disks[random.below(2)].fail_reopens(random.below(3) as u32),
            9 | 10 => {
                let sink = random.below(2);
                let refused = engine.join(sink);
                assert!(matches!(refused, Ok(()) | Err(JoinError::Busy | JoinError::Follows(_))), "{refused:?}");
            }
            11 | 12 => {
                engine.copy_base().unwrap();
            }
            13..=15 => {
                // The guest writes beside it.
                let (memory, simulated) = (world.memory.clone(), world.simulated.clone());
                let (page, asked) = (world.fresh_page(), Cell::new(0));
                let written = gfn(random.below(PAGES));
                let yields_after = random.below(4);
                let round = engine.round(Place::Middle, &|| {
                    if asked.get() == 1 {
                        memory.fill_page(written, &page).unwrap();
                        let _ = simulated.write(written);
                    }
                    asked.set(asked.get() + 1);
                    asked.get() > yields_after
                });
                if round.unwrap().next == NextRound::Cut {
                    failed(world.cut(&mut engine, Trigger::RingFull));
                }
            }
            _ if rollback => {
                world.rollback(&mut engine).unwrap();
            }
            _ => {
                let gfn = gfn(random.below(PAGES));
                world.write_page(gfn, &[0; 4096]);
            }
        }
    }
    // Nothing fails any more, and whoever has left comes back.
    disks.iter().for_each(Disk::mend);
    let mut tries = 0;
    while !engine.flush() || !follows(&engine, 0) || !follows(&engine, 1) {
        tries += 1;
        assert!(tries < 20, "{:?}", engine.sinks());
        while engine.copy_base().unwrap() {
            std::thread::yield_now();
        }
        // The first may be of an epoch that a round had begun.
        failed(world.cut(&mut engine, Trigger::Request));
        failed(world.cut(&mut engine, Trigger::Request));
        for sink in [0, 1] {
            wait_until("a sink is told neither", || follows(&engine, sink) || has_left(&engine, sink));
            if has_left(&engine, sink) {
                // Busy with the other.
                let _ = engine.join(sink);
            }
        }
    }
    world.write_all([1]);
    let last = world.take(&mut engine, Trigger::Final);
    assert!(engine.flush());
    let finished = engine.finish();
    assert!(finished.error.is_none(), "{finished:?}");
    agree(&world, &other);
    assert_eq!((world.disk.tip().0, other.tip().0), (last, last));
}

#[test]
fn random_lives_of_two_sinks_leave_what_the_guest_was_in_both() {
    let mut seeds = Seeds::seeded("engine::sinks", 1);
    for _ in 0..rounds(100, 300, 5000) {
        lives(seeds.below(1 << 40));
    }
}
