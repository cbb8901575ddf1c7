//! Storage that is slower than the guest.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use slackwater::epoch::{Cut, Durability, Engine, EngineOptions, OnStorageError, Start, WhenBehind};
use slackwater::format::Trigger;

use super::harness::{BUDGET, Counter, Event, Fault, PAGES, RING, SHARE, World, gfn, options};

/// Shuts the sink and cuts until every slot is in flight.
fn fill_slots(world: &mut World, engine: &mut Engine<Counter>, slots: usize) {
    world.disk.shut();
    for slot in 0..slots {
        world.write_all([slot, 95 - slot]);
        // A request waits for the slot of an epoch before this, which is as good as free.
        world.take(engine, Trigger::Request);
    }
    world.disk.wait_blocked();
}

/// Cuts on a thread while the sink is shut; opens it once it is certain that the cut waits.
fn cut_waits(world: &mut World, engine: &mut Engine<Counter>, trigger: Trigger) -> Cut {
    let disk = world.disk.clone();
    let events = world.events.clone();
    let (returned, returns) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It never returns before the sink is open: a cut that does not wait would have the
            // time to.
            assert_eq!(returns.recv_timeout(Duration::from_millis(20)), Err(RecvTimeoutError::Timeout), "the cut did not wait");
            disk.open();
        });
        let cut = world.cut(engine, trigger).unwrap();
        events.push(Event::Returned);
        let _ = returned.send(());
        cut
    })
}

#[test]
fn with_wait_the_guest_waits_and_no_epoch_is_longer() {
    for slots in [2, 4] {
        for trigger in [Trigger::RingFull, Trigger::Interval, Trigger::Request, Trigger::Final] {
            let mut world = World::new();
            let options = EngineOptions { slots, when_behind: WhenBehind::Wait, ..options() };
            let mut engine = world.engine(Start::Fresh, options);
            fill_slots(&mut world, &mut engine, slots);
            world.write_all([1, 2, 3]);
            let cut = cut_waits(&mut world, &mut engine, trigger);
            assert!(matches!(cut, Cut::Taken { pages: 3, .. }), "{cut:?}");
            assert!(world.events.at(Event::Opened) < world.events.at(Event::Returned));
            let report = world.finish(engine).report;
            assert_eq!(report.drains, 0);
            assert!(report.stall_us.max > 0.0);
        }
    }
}

#[test]
fn with_lengthen_epochs_grow_while_the_budget_surely_holds_then_the_guest_waits() {
    const HOLDS: usize = 60;
    let budget_pages = HOLDS + RING + SHARE;
    let mut world = World::new();
    let options = EngineOptions { budget_pages, slots: 2, when_behind: WhenBehind::Lengthen, ..options() };
    let mut engine = world.engine(Start::Fresh, options);
    world.take(&mut engine, Trigger::Request);
    assert!(engine.reached().appended.0 <= 1);
    world.disk.wait_operations(1);
    fill_slots(&mut world, &mut engine, 2);
    let mut pages = 0;
    for round in 0.. {
        assert_eq!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Skipped, "an interval leaves the guest alone");
        world.write_all(round * 10..round * 10 + 10);
        pages += 10;
        if pages > HOLDS {
            break;
        }
        assert_eq!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Lengthened { pages: pages as u64 });
    }
    // The budget might not hold what comes next: now it waits.
    let cut = cut_waits(&mut world, &mut engine, Trigger::RingFull);
    assert!(matches!(cut, Cut::Taken { pages: 70, .. }), "{cut:?}");
    let report = world.finish(engine).report;
    assert_eq!((report.drains, report.max_epoch_pages, report.over_budget_epochs), (6, 70, 0));
    assert_eq!(report.budget_pages, budget_pages as u64);
}

#[test]
fn a_request_waits_however_long_epochs_may_be() {
    let mut world = World::new();
    let options = EngineOptions { budget_pages: PAGES, slots: 2, ..options() };
    let mut engine = world.engine(Start::Fresh, options);
    fill_slots(&mut world, &mut engine, 2);
    world.write_all([1]);
    assert!(matches!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Lengthened { pages: 1 }));
    world.write_all([2]);
    let cut = cut_waits(&mut world, &mut engine, Trigger::Request);
    assert!(matches!(cut, Cut::Taken { pages: 2, .. }), "{cut:?}");
    world.finish(engine);
}

#[test]
fn a_late_sync_counts_as_behind() {
    let mut world = World::new();
    let durability = Durability::Group(Duration::ZERO);
    let options = EngineOptions { budget_pages: PAGES, slots: 4, durability, ..options() };
    let mut engine = world.engine(Start::Fresh, options);
    world.disk.shut();
    world.take(&mut engine, Trigger::Request);
    world.disk.wait_blocked();
    world.write_all([1]);
    let cut = world.cut(&mut engine, Trigger::RingFull).unwrap();
    assert!(matches!(cut, Cut::Lengthened { .. }), "slots are free, but the window is over: {cut:?}");
    world.disk.open();
    assert!(engine.flush());
    assert!(matches!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Taken { .. }));
    world.finish(engine);
}

#[test]
fn a_capture_that_fails_behind_a_wait_loses_nothing() {
    let mut world = World::new();
    let options = EngineOptions { slots: 2, ..options() };
    let mut engine = world.engine(Start::Fresh, options);
    fill_slots(&mut world, &mut engine, 2);
    world.write_all(0..10);
    world.guest.fail_next_capture = true;
    let disk = world.disk.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || disk.open());
        world.cut(&mut engine, Trigger::RingFull).unwrap_err();
    });
    world.write_all([33]);
    assert!(matches!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Taken { pages: 11, .. }));
    world.finish(engine);
}

#[test]
fn an_engine_can_be_dropped_in_any_state() {
    // Idle; a base in progress; epochs in flight; a failure that nobody saw; after a failure;
    // halted.
    let retry_after = Duration::ZERO;
    for durability in [Durability::Epoch, Durability::Group(Duration::from_secs(60)), Durability::None] {
        for on_storage_error in [OnStorageError::Stop, OnStorageError::Continue { retry_after }] {
            for state in 0..7 {
                let mut world = World::new();
                world.fill(0..PAGES);
                let options = EngineOptions { durability, on_storage_error, ..options() };
                let start = if state == 1 { Start::InUse } else { Start::Fresh };
                world.disk.fail_at(2, Fault::Latch { survivors: 0 });
                let mut engine = world.engine(start, options);
                for round in 0..state {
                    if state == 1 {
                        engine.copy_base().unwrap();
                        continue;
                    }
                    world.vmm_write(gfn(round));
                    let _ = engine.cut(&mut world.guest, Trigger::RingFull);
                    if world.guest.halted {
                        break;
                    }
                }
                drop(engine);
                let disk = world.disk.clone();
                assert!(disk.part_pages().len() <= 8 && disk.part_pages().iter().all(|pages| *pages <= BUDGET));
            }
        }
    }
}

#[test]
fn dropped_with_storage_stuck_it_ends_when_storage_goes_on() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, options());
    fill_slots(&mut world, &mut engine, 3);
    let disk = world.disk.clone();
    let dropping = std::thread::spawn(move || drop(engine));
    disk.open();
    dropping.join().unwrap();
    assert_eq!(world.disk.stored().len(), 3, "what was taken is stored");
    assert!(world.disk.is_closed());
    world.oracle().unwrap();
}
