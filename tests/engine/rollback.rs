//! Back to the last cut, in memory. That memory is what it was then is looked at by the guest,
//! whenever its state is put back.

use slackwater::epoch::{Cut, Discard, Durability, Engine, EngineError, EngineOptions, OnStorageError, RolledBack, Start};
use slackwater::format::Trigger;
use slackwater::page::EpochId;

use super::harness::{BUDGET, Counter, Event, Fault, Lies, PAGES, RING, World, chain_of, gfn, options};

fn planned() -> EngineOptions {
    EngineOptions { rollback: true, ..options() }
}

/// A world whose base has ten pages.
fn with_base(options: EngineOptions) -> (World, Engine<Counter>) {
    with_base_and(Lies::default(), options)
}

fn with_base_and(lies: Lies, options: EngineOptions) -> (World, Engine<Counter>) {
    let mut world = World::new();
    world.lies = lies;
    let mut engine = world.engine(Start::Fresh, options);
    (0..10).for_each(|index| world.vmm_write(gfn(index)));
    world.take(&mut engine, Trigger::Request);
    (world, engine)
}

fn rolled_back(epoch: u64, pages: u64) -> RolledBack {
    RolledBack { epoch: EpochId(epoch), pages, compared: false }
}

#[test]
fn only_what_was_written_is_put_back_and_it_is_not_captured_again() {
    let (mut world, mut engine) = with_base(planned());
    for _ in 0..3 {
        world.write_all([3, 50, 90]);
        world.vmm_write(gfn(4));
        world.vmm_write(gfn(70));
        assert_eq!(world.rollback(&mut engine).unwrap(), rolled_back(1, 5));
    }
    assert_eq!(world.rollback(&mut engine).unwrap(), rolled_back(1, 0));
    assert_eq!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Taken { epoch: EpochId(2), pages: 0 });
    // What was put back is tracked as before.
    world.write_all([3, 51]);
    assert_eq!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Taken { epoch: EpochId(3), pages: 2 });
    world.write_all([3, 52]);
    assert_eq!(world.rollback(&mut engine).unwrap(), rolled_back(3, 2));
    world.take(&mut engine, Trigger::Final);
    let report = world.finish(engine).report.rollback;
    assert_eq!((report.count, report.pages, report.compared), (5, 17, 0));
}

#[test]
fn pages_of_a_longer_epoch_are_put_back_too() {
    let (mut world, mut engine) = with_base(EngineOptions { slots: 2, budget_pages: BUDGET + 2 * RING, ..planned() });
    world.disk.shut();
    // Storage is behind: rings are drained.
    let mut lengthened = 0;
    for round in 0..12 {
        world.write_all([round, 40 + round]);
        match world.cut(&mut engine, Trigger::RingFull).unwrap() {
            Cut::Lengthened { pages } => {
                lengthened += 1;
                if lengthened == 3 {
                    assert_eq!(world.rollback(&mut engine).unwrap().pages, pages);
                    break;
                }
            }
            Cut::Taken { .. } => {}
            Cut::Skipped => panic!("a full ring is never skipped"),
        }
    }
    assert_eq!(lengthened, 3);
    world.disk.open();
    assert!(matches!(world.cut(&mut engine, Trigger::Final), Ok(Cut::Taken { pages: 0, .. })));
    world.finish(engine);
}

#[test]
fn lost_tracking_has_all_memory_compared_and_the_next_epoch_is_as_any() {
    for (case, late) in [(0, false), (0, true), (1, false), (1, true)] {
        let (mut world, mut engine) = with_base_and(Lies { late, ..Lies::default() }, planned());
        if case == 0 {
            world.write_all(0..2 * RING + 3);
        } else {
            world.write_all(0..9);
            world.simulated.cut_next_reset_short(5);
        }
        let back = world.rollback(&mut engine).unwrap();
        assert_eq!(back, RolledBack { epoch: EpochId(1), pages: [2 * RING as u64 + 3, 9][case], compared: true });
        // Pages that a short reset left writable.
        world.write_all(3..9);
        assert_eq!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Taken { epoch: EpochId(2), pages: 6 });
        world.write_all(3..9);
        assert_eq!(world.rollback(&mut engine).unwrap(), rolled_back(2, 6));
        world.take(&mut engine, Trigger::Final);
        let report = world.finish(engine).report;
        assert_eq!((report.tracking_lost, report.rollback.compared), (1, 1));
        assert!(world.disk.stored().iter().all(|stored| !stored.commit.recovery));
    }
}

/// What the point has of a cut is right as well where the loss shows only after pages were copied.
#[test]
fn a_cut_that_compared_all_memory_is_gone_back_to() {
    for late in [false, true] {
        let (mut world, mut engine) = with_base_and(Lies { late, ..Lies::default() }, planned());
        world.write_all(0..2 * RING + 3);
        let pages = PAGES as u64;
        assert_eq!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Taken { epoch: EpochId(2), pages }, "late: {late}");
        world.write_all([1, 2 * RING, PAGES - 1]);
        assert_eq!(world.rollback(&mut engine).unwrap(), rolled_back(2, 3));
        world.take(&mut engine, Trigger::Final);
        assert_eq!(world.finish(engine).report.tracking_lost, 1);
    }
}

/// The guest is back at an epoch that storage refused: its pages must come again, although nothing
/// writes them any more.
#[test]
fn pages_that_the_chain_lacks_stay_owed() {
    let on_storage_error = OnStorageError::Continue { retry_after: std::time::Duration::ZERO };
    let (mut world, mut engine) = with_base(EngineOptions { on_storage_error, ..planned() });
    assert!(engine.report().failed_epochs == 0);
    world.write_all(20..25);
    world.disk.wait_operations(1);
    world.disk.fail_in(0, Fault::Reject);
    world.take(&mut engine, Trigger::Interval);
    world.settle(&engine, 0);
    assert_eq!(engine.report().failed_epochs, 1);
    world.write_all([22, 60]);
    assert_eq!(world.rollback(&mut engine).unwrap().pages, 6);
    assert!(matches!(world.cut(&mut engine, Trigger::Request), Ok(Cut::Taken { pages: 5, .. })));
    world.take(&mut engine, Trigger::Final);
    world.finish(engine);
}

#[test]
fn what_was_restored_or_in_use_is_gone_back_to_as_well() {
    let (mut world, engine) = with_base(options());
    drop(engine);
    world = world.restored();
    let tip = world.disk.tip();
    let mut engine = world.engine(Start::Restored(tip), planned());
    assert!(matches!(world.rollback(&mut engine), Err(EngineError::NoCut)));
    world.write_all([3]);
    world.take(&mut engine, Trigger::Interval);
    world.write_all([2, 3, 80]);
    assert_eq!(world.rollback(&mut engine).unwrap(), rolled_back(2, 3));
    drop(engine);

    let mut world = World::new();
    world.fill(0..PAGES);
    let mut engine = world.engine(Start::InUse, planned());
    while engine.copy_base().unwrap() {
        world.write_all([7, 70]);
        assert!(matches!(world.rollback(&mut engine), Err(EngineError::NoCut)));
    }
    world.take(&mut engine, Trigger::Request);
    world.write_all([2, 7, 80]);
    assert_eq!(world.rollback(&mut engine).unwrap(), rolled_back(1, 3));
    world.take(&mut engine, Trigger::Final);
    world.finish(engine);
}

#[test]
fn what_was_not_planned_is_refused_and_the_guest_runs_on() {
    let (mut world, mut engine) = with_base(options());
    world.write_all([3]);
    let parks = world.events.count(|event| *event == Event::Park);
    let error = world.rollback(&mut engine).unwrap_err();
    assert!(matches!(error, EngineError::NoRollback));
    assert_eq!(error.to_string(), "going back to the last cut was not planned when the engine was started");
    assert_eq!(world.events.count(|event| *event == Event::Park), parks, "nobody was stopped for it");
    world.take(&mut engine, Trigger::Final);
    world.finish(engine);
}

#[test]
fn a_guest_that_is_half_put_back_does_not_run() {
    let (mut world, mut engine) = with_base(planned());
    world.write_all([3]);
    world.guest.fail_next_park = true;
    assert!(matches!(world.rollback(&mut engine), Err(EngineError::Guest { .. })));
    assert_eq!(world.rollback(&mut engine).unwrap(), rolled_back(1, 1), "a failed park changes nothing");
    world.guest.fail_next_restore = true;
    let error = world.rollback(&mut engine).unwrap_err();
    assert_eq!(chain_of(&error), "the VMM could not put back the state of epoch 1: no restore");
    assert!(world.guest.halted);
    assert!(matches!(engine.rollback(&mut world.guest), Err(EngineError::Halted)));
    assert!(matches!(engine.cut(&mut world.guest, Trigger::Final), Err(EngineError::Halted)));
}

#[test]
fn no_chain_is_needed() {
    let mut world = World::new();
    let options = EngineOptions { durability: Durability::None, ..planned() };
    let tracker = world.tracker();
    let mut engine = Engine::new(world.memory.clone(), tracker, Box::new(Discard::default()), Start::Fresh, options).unwrap();
    (0..60).for_each(|index| world.vmm_write(gfn(index)));
    world.take(&mut engine, Trigger::Request);
    for round in 0..50 {
        world.write_all([round, 2 * round, 80]);
        world.vmm_write(gfn(3));
        world.rollback(&mut engine).unwrap();
        if round % 10 == 9 {
            world.write_all([round]);
            world.take(&mut engine, Trigger::Request);
        }
    }
    assert!(engine.flush());
    assert_eq!((engine.reached().appended, engine.report().bytes_written), (EpochId(6), 0));
    let finished = engine.finish();
    assert!(finished.error.is_none());
    assert_eq!((finished.report.epochs, finished.report.rollback.count), (6, 50));
}
