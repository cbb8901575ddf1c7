//! Tracking that was lost, and tracking that lies.

use std::num::NonZeroU64;

use slackwater::epoch::{EngineError, EngineOptions, Start};
use slackwater::format::Trigger;
use slackwater::restore::Plan;
use slackwater::store::verify::{DamageKind, VerifyOptions, verify};
use slackwater::store::{Chain, NewChain, Writer, WriterOptions};

use super::harness::{
    BUDGET, Counter, Event, Fault, Lies, PAGES, REGIONS, RING, World, chain_of, gfn, options, snapshot, wait_until,
};

/// A run in which tracking is lost `how`; ends in order.
fn run(lies: Lies, how: impl Fn(&mut World)) -> (World, slackwater::epoch::Finished) {
    let mut world = World::new();
    world.lies = lies;
    let mut engine = world.engine(Start::Fresh, options());
    (0..30).for_each(|index| world.vmm_write(gfn(index)));
    world.take(&mut engine, Trigger::Request);
    how(&mut world);
    world.take(&mut engine, Trigger::RingFull);
    // Pages that a short reset left writable are written again, and nothing lists them.
    world.write_all(3..9);
    world.take(&mut engine, Trigger::RingFull);
    world.write_all([60, 4]);
    world.take(&mut engine, Trigger::Final);
    let finished = engine.finish();
    assert!(finished.error.is_none());
    (world, finished)
}

fn overflow(world: &mut World) {
    world.write_all(0..2 * RING + 3);
}

fn short_reset(world: &mut World) {
    world.write_all(0..9);
    world.simulated.cut_next_reset_short(5);
}

#[test]
fn lost_tracking_is_made_good_and_said() {
    let hows: [fn(&mut World); 2] = [overflow, short_reset];
    for (how, late) in hows.into_iter().flat_map(|how| [(how, false), (how, true)]) {
        let (world, finished) = run(Lies { late, ..Lies::default() }, how);
        world.check(&finished, 0);
        let report = finished.report;
        assert_eq!((report.tracking_lost, report.over_budget_epochs), (1, 0));
        assert!(report.max_epoch_pages <= 9, "a recovery is not counted");
        assert_eq!(report.pages, 30 + PAGES as u64 + 6 + 2);
        let stored = world.disk.stored();
        let flags: Vec<_> = stored.iter().map(|stored| stored.commit.recovery).collect();
        assert_eq!(flags, [false, true, false, false]);
        assert_eq!(stored[1].commit.captured_pages, PAGES as u64, "all memory was compared");
        assert!(stored[1].mentions.len() < PAGES, "and only what changed was stored");
        assert!(world.disk.part_pages().iter().all(|pages| *pages <= BUDGET));
    }
}

#[test]
fn without_the_comparison_the_oracle_would_fail() {
    for how in [overflow, short_reset] {
        let (world, _) = run(Lies { hides_lost: true, ..Lies::default() }, how);
        let wrong = world.oracle().unwrap_err();
        assert!(wrong.contains("differ"), "{wrong}");
    }
}

#[test]
fn a_recovery_that_could_not_be_stored_is_a_recovery_all_the_same() {
    for operation in 1..7 {
        let mut world = World::new();
        let retry_after = std::time::Duration::ZERO;
        let on_storage_error = slackwater::epoch::OnStorageError::Continue { retry_after };
        let mut engine = world.engine(Start::Fresh, EngineOptions { on_storage_error, slots: 8, ..options() });
        world.take(&mut engine, Trigger::Request);
        world.disk.fail_at(operation, Fault::Reject);
        overflow(&mut world);
        world.take(&mut engine, Trigger::RingFull);
        // The base, and four parts at the most; what failed ends the epoch early.
        world.disk.wait_operations((operation + 1).min(5));
        wait_until("no epoch fails", || operation >= 5 || engine.report().failed_epochs > 0);
        world.write_all([4]);
        world.take(&mut engine, Trigger::RingFull);
        let finished = engine.finish();
        world.check(&finished, 0);
        if operation < 5 {
            assert!(finished.error.is_none());
            assert_eq!(world.disk.stored().len(), 2);
            assert!(world.disk.last().commit.recovery, "it is the one that compares memory now");
            assert_eq!(finished.report.failed_epochs, 1, "one epoch failed, in however many parts");
        }
    }
}

#[test]
fn tracking_that_cannot_begin_anew_stops_the_guest() {
    let mut world = World::new();
    world.lies.cannot_rearm = true;
    let mut engine = world.engine(Start::Fresh, options());
    world.take(&mut engine, Trigger::Request);
    overflow(&mut world);
    let error = world.cut(&mut engine, Trigger::RingFull).unwrap_err();
    let EngineError::Tracking { lost, .. } = &error else { panic!("{error:?}") };
    assert!(lost.contains("completely full"), "{lost}");
    assert!(chain_of(&error).contains("gone for good"), "{}", chain_of(&error));
    assert!(matches!(world.cut(&mut engine, Trigger::Request), Err(EngineError::Halted)));
    assert_eq!(world.events.all().last(), Some(&Event::Halt));
    let finished = engine.finish();
    world.oracle().unwrap();
    assert_eq!(finished.report.epochs, 1, "what was appended stays");
}

/// A run with audits into a chain on disk; `verify` is the judge.
fn audited(lies: Lies) -> (tempfile::TempDir, Vec<slackwater::page::EpochId>, World) {
    let mut world = World::new();
    world.lies = lies;
    let dir = tempfile::tempdir().unwrap();
    let new = NewChain { memory: REGIONS.to_vec(), device_runs: 0, vcpus: 1, machine: serde_json::Value::Null };
    let writer = Writer::create(dir.path(), &new, WriterOptions::default()).unwrap();
    let audit_every = NonZeroU64::new(1);
    let options = EngineOptions { audit_every, ..options() };
    let mut engine =
        slackwater::epoch::Engine::<Counter>::new(world.memory.clone(), world.tracker(), Box::new(writer), Start::Fresh, options)
            .unwrap();
    let mut epochs = Vec::new();
    (0..BUDGET + 5).for_each(|index| world.vmm_write(gfn(index)));
    for round in 0..10 {
        epochs.push(slackwater::page::EpochId(world.take(&mut engine, Trigger::Request)));
        world.write_all([round, round * 9, 77]);
        if round == 5 {
            overflow(&mut world);
        }
    }
    assert!(engine.finish().error.is_none());
    (dir, epochs, world)
}

#[test]
fn a_chain_on_disk_restores_every_epoch_and_its_audits_agree() {
    let (dir, epochs, world) = audited(Lies::default());
    let report = verify(dir.path(), &VerifyOptions::default(), &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.damage);
    assert_eq!((report.epochs, report.audits_checked, report.audits_failed), (10, 10, 0));
    let chain = Chain::open(dir.path()).unwrap();
    for (epoch, expected) in epochs.iter().zip(world.guest.snapshots.values()) {
        let mut memory = slackwater::memory::GuestMemory::anonymous(&REGIONS, 0).unwrap();
        Plan::new(&chain, *epoch).unwrap().fill(&mut memory, &mut |_, _| {}).unwrap();
        assert!(snapshot(&memory) == *expected, "epoch {epoch} restores to something else");
    }
}

#[test]
fn an_audit_finds_one_page_that_was_never_listed() {
    let (dir, _, world) = audited(Lies { drops: Some(gfn(77)), ..Lies::default() });
    let report = verify(dir.path(), &VerifyOptions::default(), &mut |_| {}).unwrap();
    assert!(report.audits_failed > 0 && !report.is_sound(), "{report:?}");
    assert!(report.damage.iter().all(|damage| damage.kind == DamageKind::AuditMismatch), "{:?}", report.damage);
    assert_eq!(report.damage[0].epoch, Some(2), "the first that lacks it");
    assert_eq!(world.guest.snapshots.len(), 10);
}
