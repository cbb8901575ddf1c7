//! Storage that fails: what was in flight comes again, what was appended stays, and the guest is
//! stopped or not as it was asked.

use std::time::Duration;

use slackwater::epoch::{Cut, Durability, Engine, EngineError, EngineOptions, OnStorageError, Start};
use slackwater::format::Trigger;
use slackwater::page::EpochId;

use super::harness::{BUDGET, Counter, Event, FOR_EVER, Fault, PAGES, RING, World, chain_of, gfn, options, wait_until};

const AT_ONCE: OnStorageError = OnStorageError::Continue { retry_after: Duration::ZERO };

const FAULTS: [Fault; 4] = [Fault::Reject, Fault::Latch { survivors: 0 }, Fault::Latch { survivors: 1 }, Fault::LatchKept];

const MODES: [Durability; 4] =
    [Durability::Epoch, Durability::Group(Duration::ZERO), Durability::Group(FOR_EVER), Durability::None];

/// A run of a base in parts and some epochs, one of which is a recovery in parts. Ends at the first
/// error.
fn run(world: &mut World, engine: &mut Engine<Counter>) -> Result<(), EngineError> {
    (0..BUDGET + 5).for_each(|index| world.vmm_write(gfn(index)));
    world.cut(engine, Trigger::Request)?;
    for round in 0..8 {
        world.write_all([round, 2 * round, 90 - round]);
        world.vmm_write(gfn(40 + round));
        if round == 4 {
            world.write_all(30..31 + RING);
        }
        world.cut(engine, if round % 2 == 0 { Trigger::RingFull } else { Trigger::Interval })?;
    }
    Ok(())
}

#[test]
fn wherever_storage_fails_later_epochs_have_everything() {
    for durability in MODES {
        for fault in FAULTS {
            for operation in 0.. {
                let mut world = World::new();
                world.disk.fail_at(operation, fault);
                let mut engine = world.engine(Start::Fresh, EngineOptions { durability, on_storage_error: AT_ONCE, ..options() });
                run(&mut world, &mut engine).unwrap();
                // What fails behind the last epoch of the run does so now, so that the final epoch
                // can bring it again.
                world.settle(&engine, 0);
                let _ = engine.flush_unless_waiting(durability);
                let before = world.disk.operations();
                world.take(&mut engine, Trigger::Final);
                let finished = engine.finish();
                let case = format!("{durability:?} {fault:?} at operation {operation}");
                println!("{case}");
                world.check(&finished, 0);
                let missing = world.disk.stored().last().map(|last| last.counter) != Some(world.guest.snapshots.len() as u64);
                assert!(!missing || finished.error.is_some(), "{case}: the last epoch is missing and nothing is said");
                assert!(finished.error.is_none() || operation >= before, "{case}: {:?}", finished.error);
                if world.disk.operations() <= operation {
                    assert!(operation > 9 && finished.report.failed_epochs == 0, "{case}");
                    break;
                }
            }
        }
    }
}

/// Waits for what was taken, where that does not take for ever.
trait Flush {
    fn flush_unless_waiting(&self, durability: Durability) -> bool;
}

impl Flush for Engine<Counter> {
    fn flush_unless_waiting(&self, durability: Durability) -> bool {
        durability != Durability::Group(FOR_EVER) && self.flush()
    }
}

#[test]
fn wherever_storage_fails_the_guest_is_stopped_if_asked() {
    for durability in MODES {
        for fault in FAULTS {
            for operation in 0.. {
                let mut world = World::new();
                world.disk.fail_at(operation, fault);
                let mut engine = world.engine(Start::Fresh, EngineOptions { durability, ..options() });
                let mut outcome = run(&mut world, &mut engine);
                world.settle(&engine, 0);
                let _ = engine.flush_unless_waiting(durability);
                if outcome.is_ok() && engine.report().failed_epochs > 0 {
                    outcome = world.cut(&mut engine, Trigger::Final).map(drop);
                }
                let durable = world.disk.durable();
                let case = format!("{durability:?} {fault:?} at operation {operation}");
                println!("{case}");
                if let Err(error) = &outcome {
                    let EngineError::Storage { newest, .. } = error else { panic!("{case}: {error:?}") };
                    assert!(world.guest.halted);
                    assert!(*newest <= durable || durability == Durability::None, "{case}: {newest} of {durable}");
                    assert!(chain_of(error).contains("by the test"), "{case}: {}", chain_of(error));
                    // The engine gave up: whatever the VMM does now, the guest does not run again
                    // and nothing is stored.
                    let stored = world.disk.stored().len();
                    for trigger in [Trigger::RingFull, Trigger::Interval, Trigger::Request, Trigger::Final] {
                        let again = world.cut(&mut engine, trigger);
                        assert!(matches!(again, Err(EngineError::Halted)), "{case}: {again:?}");
                    }
                    assert_eq!(world.events.all().last(), Some(&Event::Halt));
                    assert_eq!(world.disk.stored().len(), stored);
                    assert!(!engine.flush(), "{case}: something is missing");
                }
                let finished = engine.finish();
                world.check(&finished, 0);
                let reached = world.disk.operations();
                assert!(outcome.is_err() || finished.error.is_some() || reached <= operation, "{case}");
                if let Err(EngineError::Storage { newest, .. }) = outcome {
                    // Whoever comes next finds at least what the error says, and goes on.
                    let newest = if durability == Durability::None { EpochId::NONE } else { newest };
                    let captures = world.guest.snapshots.len();
                    let mut world = world.restored();
                    assert!(world.disk.tip() >= newest, "{case}: {} of {newest}", world.disk.tip());
                    let start = Start::Restored(world.disk.tip());
                    let mut engine = world.engine(start, options());
                    world.write_all([5]);
                    world.take(&mut engine, Trigger::Final);
                    let finished = engine.finish();
                    world.check(&finished, captures);
                }
                if reached <= operation {
                    break;
                }
            }
        }
    }
}

#[test]
fn epochs_in_flight_behind_a_failed_one_come_again() {
    for fault in FAULTS {
        for operation in 0..6 {
            let mut world = World::new();
            world.disk.shut_at(operation);
            world.disk.fail_at(operation, fault);
            let mut engine = world.engine(Start::Fresh, EngineOptions { on_storage_error: AT_ONCE, ..options() });
            let mut cuts = 0;
            let mut cut = |world: &mut World, engine: &mut Engine<Counter>| {
                cuts += 1;
                world.write_all([cuts, 20 + cuts, 95]);
                world.take(engine, Trigger::Request);
            };
            (0..=operation).for_each(|_| cut(&mut world, &mut engine));
            world.disk.wait_blocked();
            cut(&mut world, &mut engine);
            cut(&mut world, &mut engine);
            world.disk.open();
            world.disk.wait_operations(operation + 1);
            cut(&mut world, &mut engine);
            cut(&mut world, &mut engine);
            world.settle(&engine, 0);
            cut(&mut world, &mut engine);
            let finished = engine.finish();
            println!("{fault:?} at operation {operation}");
            world.check(&finished, 0);
            assert!(finished.error.is_none(), "{:?}", finished.error);
            assert_eq!(world.disk.last().counter, operation + 6);
            assert!(finished.report.failed_epochs >= 1, "{:?}", finished.report);
        }
    }
}

#[test]
fn parts_that_were_appended_before_a_sync_come_again_with_the_rest() {
    // An epoch waits for its sync, and a large one is appended in parts: the sync comes between the
    // parts, and then a part fails.
    for fault in FAULTS {
        let mut world = World::new();
        let on_storage_error = AT_ONCE;
        let durability = Durability::Group(Duration::ZERO);
        let mut engine = world.engine(Start::Fresh, EngineOptions { durability, on_storage_error, ..options() });
        world.take(&mut engine, Trigger::Request);
        assert!(engine.flush());
        let before = world.disk.operations();
        world.write_all([60]);
        world.take(&mut engine, Trigger::Request); // commit, sync
        assert!(engine.flush());
        assert_eq!(world.disk.operations(), before + 2);

        // The commit of the next epoch waits at the gate until a part lies behind it, and its sync
        // comes behind that part.
        world.write_all([61]);
        world.disk.shut_at(before + 2);
        world.take(&mut engine, Trigger::Request);
        world.disk.wait_blocked();
        (0..BUDGET + 9).for_each(|index| world.vmm_write(gfn(index)));
        // commit, sync; part, part with commit: which fails.
        world.disk.fail_at(before + 5, fault);
        let disk = world.disk.clone();
        let opener = std::thread::spawn(move || disk.open());
        world.take(&mut engine, Trigger::Request);
        opener.join().unwrap();
        assert!(!engine.flush(), "the large epoch failed");
        world.take(&mut engine, Trigger::Final);
        world.finish(engine);
    }
}

#[test]
fn a_failed_recovery_between_two_syncs_is_not_forgotten() {
    // The window is over while the first part of an epoch is appended: its sync covers the epoch
    // before, and not that part.
    let mut world = World::new();
    // Long enough for the second cut to come before it is over: it would wait for what is shut.
    let window = Duration::from_secs(1);
    let durability = Durability::Group(window);
    let mut engine = world.engine(Start::Fresh, EngineOptions { durability, on_storage_error: AT_ONCE, slots: 8, ..options() });
    world.write_all([70]);
    world.disk.shut_at(1);
    world.take(&mut engine, Trigger::Request); // operation 0
    (0..3 * BUDGET).for_each(|index| world.vmm_write(gfn(index)));
    // Operation 1 is the sync of the base or, if that has time until then, a part: either waits
    // until the window is over.
    world.take(&mut engine, Trigger::Request);
    world.disk.wait_blocked();
    let start = std::time::Instant::now();
    while start.elapsed() < window {
        std::thread::yield_now();
    }
    // A sync, three parts: the last fails.
    world.disk.fail_at(4, Fault::Reject);
    world.disk.open();
    world.disk.wait_operations(5);
    let _ = engine.flush();
    world.write_all([71]);
    world.take(&mut engine, Trigger::Final);
    let finished = engine.finish();
    world.check(&finished, 0);
    assert_eq!(world.disk.last().counter, 3);
}

#[test]
fn a_sync_that_fails_later_fails_what_was_cut_meanwhile() {
    // Epoch 2 is rejected; epoch 3 brings its pages again and is in flight when the sync that epoch
    // 1 waits for fails.
    for survivors in [0, 1] {
        let mut world = World::new();
        let durability = Durability::Group(Duration::from_secs(3600));
        let on_storage_error = AT_ONCE;
        let mut engine = world.engine(Start::Fresh, EngineOptions { durability, on_storage_error, ..options() });
        world.write_all([1, 2, 3]);
        world.take(&mut engine, Trigger::Request); // operation 0
        world.disk.fail_at(1, Fault::Reject);
        world.write_all([4]);
        world.take(&mut engine, Trigger::Request);
        assert!(!engine.flush(), "it is rejected, and the engine knows by then");
        world.disk.fail_at(2, Fault::Latch { survivors });
        world.write_all([5]);
        world.take(&mut engine, Trigger::Request); // operation 2: latches, and the first epoch is lost or not
        world.disk.wait_operations(3);
        world.write_all([6]);
        world.take(&mut engine, Trigger::Request);
        world.write_all([7]);
        world.take(&mut engine, Trigger::Final);
        let finished = engine.finish();
        world.check(&finished, 0);
        if finished.error.is_none() {
            assert_eq!(world.disk.last().counter, 5);
        }
    }
}

#[test]
fn until_it_can_be_reopened_the_guest_runs_on() {
    for durability in MODES {
        let mut world = World::new();
        let retry_after = Duration::ZERO;
        let on_storage_error = OnStorageError::Continue { retry_after };
        let mut engine = world.engine(Start::Fresh, EngineOptions { durability, on_storage_error, ..options() });
        world.take(&mut engine, Trigger::Request);
        world.disk.fail_in(0, Fault::Latch { survivors: 0 });
        world.disk.fail_reopens(3);
        for round in 0..12 {
            world.write_all([round, round + 30]);
            world.take(&mut engine, Trigger::Request);
            world.settle(&engine, 0);
            let _ = engine.flush_unless_waiting(durability);
        }
        assert_eq!(world.events.count(|event| matches!(event, Event::Reopen(_))), 1);
        world.take(&mut engine, Trigger::Final);
        let finished = world.finish(engine);
        assert!(finished.report.failed_epochs >= 4, "{:?}", finished.report);
    }
}

#[test]
fn full_storage_takes_everything_once_there_is_space() {
    for durability in MODES {
        let mut world = World::new();
        let mut engine = world.engine(Start::Fresh, EngineOptions { durability, on_storage_error: AT_ONCE, ..options() });
        world.take(&mut engine, Trigger::Request);
        // The base fits, and a few epochs; then not even part of one does.
        world.disk.set_space(Some(70_000));
        for round in 0..10 {
            world.write_all((0..9).map(|page| page * 7 + round));
            world.take(&mut engine, Trigger::Request);
            let _ = engine.flush_unless_waiting(durability);
        }
        let appended = engine.reached().appended;
        world.oracle().unwrap();
        world.disk.set_space(None);
        let cut = world.take(&mut engine, Trigger::Request);
        world.take(&mut engine, Trigger::Final);
        assert!(cut > appended.0);
        let report = world.finish(engine).report;
        assert!(report.failed_epochs > 0, "{report:?}");
        assert!(world.disk.is_closed());
    }
}

#[test]
fn while_storage_rests_only_lists_are_taken() {
    let mut world = World::new();
    let on_storage_error = OnStorageError::Continue { retry_after: FOR_EVER };
    let durability = Durability::Group(FOR_EVER);
    let mut engine = world.engine(Start::Fresh, EngineOptions { durability, on_storage_error, ..options() });
    world.take(&mut engine, Trigger::Request);
    world.disk.wait_operations(1);
    world.disk.fail_at(1, Fault::Reject);
    world.write_all([1]);
    world.take(&mut engine, Trigger::Request);
    world.disk.wait_operations(2);
    wait_until("no epoch fails", || engine.report().failed_epochs > 0);
    for round in 0..5 {
        world.write_all(10 * round..10 * round + 10);
        assert_eq!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Skipped);
        let cut = world.cut(&mut engine, Trigger::RingFull).unwrap();
        assert!(matches!(cut, Cut::Lengthened { .. }), "{cut:?}");
    }
    assert!(!engine.flush(), "nothing waits for an epoch that was never cut");
    // A request does not wait for the rest to be over, and ends it.
    world.take(&mut engine, Trigger::Request);
    world.write_all([3]);
    assert!(matches!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Taken { pages: 1, .. }), "the rest is over");
    for round in 0..4 {
        world.write_all(10 * round..10 * round + 10);
        world.take(&mut engine, Trigger::RingFull);
    }
    let report = world.finish(engine).report;
    assert_eq!((report.drains, report.failed_epochs, report.over_budget_epochs), (5, 1, 0));
    assert!(report.max_epoch_pages <= BUDGET as u64);
}

#[test]
fn state_that_no_chain_takes_fails_its_epoch_and_no_other() {
    for pages in [3, BUDGET + 3] {
        let mut world = World::new();
        let mut engine = world.engine(Start::Fresh, EngineOptions { on_storage_error: AT_ONCE, ..options() });
        world.take(&mut engine, Trigger::Request);
        (0..pages).for_each(|index| world.vmm_write(gfn(index)));
        world.guest.unsound_state = true;
        world.take(&mut engine, Trigger::Request);
        world.guest.unsound_state = false;
        wait_until("no epoch fails", || engine.report().failed_epochs > 0);
        world.write_all([50]);
        world.take(&mut engine, Trigger::Request);
        world.take(&mut engine, Trigger::Final);
        let report = world.finish(engine).report;
        assert_eq!((report.epochs, report.failed_epochs), (3, 1), "with {pages} pages");
    }
}

#[test]
fn what_fails_at_the_end_is_said() {
    for durability in MODES {
        for fault in FAULTS {
            let mut world = World::new();
            let mut engine = world.engine(Start::Fresh, EngineOptions { durability, on_storage_error: AT_ONCE, ..options() });
            let base = world.take(&mut engine, Trigger::Request);
            let _ = engine.flush_unless_waiting(durability);
            world.disk.wait_operations(1);
            world.write_all([1]);
            world.disk.fail_in(0, fault);
            let last = world.take(&mut engine, Trigger::Final);
            let finished = engine.finish();
            let error = finished.error.as_ref().unwrap_or_else(|| panic!("{durability:?} {fault:?}: {:?}", finished.report));
            assert!(chain_of(error).contains("by the test"), "{}", chain_of(error));
            world.check(&finished, 0);
            assert_ne!(world.disk.tip(), EpochId(last));
            assert!(world.disk.tip() <= EpochId(base));
        }
    }
}

#[test]
fn a_base_that_fails_beside_the_guest_comes_again() {
    for fault in [Fault::Reject, Fault::Latch { survivors: 0 }] {
        for operation in 0..5 {
            let mut world = World::new();
            world.fill(0..PAGES);
            world.disk.fail_at(operation, fault);
            let mut engine = world.engine(Start::InUse, EngineOptions { on_storage_error: AT_ONCE, ..options() });
            let mut calls = 0;
            // No cut in between: it ends all the same.
            while engine.copy_base().unwrap() {
                world.write_all([calls]);
                calls += 1;
                assert!(calls < 100, "without end");
            }
            world.take(&mut engine, Trigger::Request);
            world.settle(&engine, 0);
            world.write_all([9]);
            world.take(&mut engine, Trigger::Request);
            world.settle(&engine, 0);
            world.take(&mut engine, Trigger::Request);
            let finished = engine.finish();
            world.check(&finished, 0);
            assert!(finished.error.is_none(), "{:?}", finished.error);
            assert_eq!(world.disk.last().counter, 3, "{fault:?} at {operation}");
        }
    }
}

#[test]
fn a_base_that_fails_beside_the_guest_stops_it_if_asked() {
    let mut world = World::new();
    world.fill(0..PAGES);
    world.disk.fail_at(0, Fault::Reject);
    let mut engine = world.engine(Start::InUse, options());
    let error = loop {
        match engine.copy_base() {
            Ok(true) => {}
            Ok(false) => match world.cut(&mut engine, Trigger::Request) {
                Ok(_) => world.settle(&engine, 0),
                Err(error) => break error,
            },
            Err(error) => break error,
        }
    };
    assert!(matches!(error, EngineError::Storage { newest: EpochId::NONE, .. }), "{error:?}");
    assert!(matches!(world.cut(&mut engine, Trigger::Request), Err(EngineError::Halted)));
    assert!(engine.copy_base().is_err());
    drop(engine);
    assert!(world.disk.stored().is_empty());
}
