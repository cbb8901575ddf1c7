//! When an epoch is durable, and who is told.

use std::time::Duration;

use slackwater::epoch::{Durability, EngineOptions, Start};
use slackwater::format::Trigger;
use slackwater::page::EpochId;

use super::harness::{BUDGET, Event, FOR_EVER, World, gfn, options};

#[test]
fn with_durability_epoch_the_guest_resumes_behind_the_sync() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, EngineOptions { durability: Durability::Epoch, ..options() });
    (0..BUDGET + 1).for_each(|index| world.vmm_write(gfn(index)));
    for round in 0..5 {
        world.write_all([round]);
        let epoch = world.take(&mut engine, Trigger::RingFull);
        world.events.push(Event::Returned);
        assert_eq!((engine.reached().appended, engine.reached().durable), (EpochId(epoch), EpochId(epoch)));
        assert!(engine.flush());
    }
    world.finish(engine);
    let order: Vec<_> = world.events.all().into_iter().filter(|event| !matches!(event, Event::Released(_))).collect();
    let mut expected = Vec::new();
    for epoch in 1..=5 {
        expected.extend([Event::Park, Event::Capture]);
        expected.extend((epoch == 1).then_some(Event::Append(1)));
        expected.extend([Event::Appended(epoch), Event::Synced(epoch), Event::Resume, Event::Returned]);
    }
    assert_eq!(order[..expected.len()], expected);
    assert_eq!(world.events.released(), [1, 2, 3, 4, 5]);
}

#[test]
fn groups_are_released_in_order_and_behind_their_sync() {
    for window in [Duration::ZERO, Duration::from_millis(1), FOR_EVER, Duration::MAX] {
        let mut world = World::new();
        let durability = Durability::Group(window);
        let mut engine = world.engine(Start::Fresh, EngineOptions { durability, ..options() });
        for round in 0..20 {
            world.write_all([round, 90]);
            world.take(&mut engine, Trigger::Request);
            if window < Duration::from_secs(1) {
                assert!(engine.flush());
                assert_eq!(engine.reached().durable, EpochId(round as u64 + 1));
            }
        }
        world.finish(engine);
        let mut synced = 0;
        for event in world.events.all() {
            match event {
                Event::Synced(epoch) => synced = epoch,
                Event::Released(epoch) => assert!(epoch <= synced, "{epoch} was released, {synced} was durable"),
                _ => {}
            }
        }
        assert_eq!(world.events.released().last(), Some(&20));
        if window >= FOR_EVER {
            assert_eq!(world.events.released(), [20], "one sync, at the end");
        }
    }
}

#[test]
fn without_durability_nothing_is_synced() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, EngineOptions { durability: Durability::None, ..options() });
    for round in 0..10 {
        world.write_all([round]);
        world.take(&mut engine, Trigger::Request);
    }
    assert!(engine.flush());
    assert_eq!((engine.reached().appended, engine.reached().durable), (EpochId(10), EpochId::NONE));
    let report = world.finish(engine).report;
    assert_eq!((report.epochs, report.durable_epochs), (10, 0));
    assert_eq!(world.events.count(|event| matches!(event, Event::Synced(_))), 0);
    assert_eq!(world.events.released(), (1..=10).collect::<Vec<_>>());
    for epoch in 1..=10 {
        assert!(world.events.at(Event::Appended(epoch)) < world.events.at(Event::Released(epoch)));
    }
}

#[test]
fn an_engine_without_epochs_releases_nothing() {
    for durability in [Durability::Epoch, Durability::Group(Duration::ZERO), Durability::None] {
        let world = World::new();
        let engine = world.engine(Start::Fresh, EngineOptions { durability, ..options() });
        assert!(engine.flush(), "there is nothing to wait for");
        let report = world.finish(engine).report;
        assert_eq!((report.epochs, report.durable_epochs, report.failed_epochs), (0, 0, 0));
        assert_eq!(world.events.released(), [0; 0]);
    }
}
