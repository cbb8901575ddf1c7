//! How a chain begins: from a loader's writes, beside a running guest, or where another left off.

use slackwater::epoch::{Cut, EngineError, Start};
use slackwater::format::Trigger;
use slackwater::page::EpochId;

use super::harness::{BUDGET, Event, PAGES, RING_SOFT, SHARE, World, gfn, options};

#[test]
fn the_base_is_what_the_loader_wrote() {
    for pages in [0, 1, SHARE, SHARE + 1, BUDGET, BUDGET + 1, 3 * BUDGET, PAGES] {
        let mut world = World::new();
        (0..pages).for_each(|index| world.vmm_write(gfn(index * 5)));
        let mut engine = world.engine(Start::Fresh, options());
        let cut = world.cut(&mut engine, Trigger::Request).unwrap();
        assert_eq!(cut, Cut::Taken { epoch: EpochId(1), pages: pages as u64 });
        world.write_all([1, 2]);
        world.take(&mut engine, Trigger::Final);
        let report = world.finish(engine).report;
        assert_eq!((report.max_epoch_pages, report.over_budget_epochs), (2, 0), "a base is not counted");
        let parts = world.disk.part_pages();
        let of_base = pages.div_ceil(BUDGET).max(1);
        assert_eq!(parts.len(), of_base + 1, "{pages} pages are streamed in parts: {parts:?}");
        assert!(parts.iter().all(|pages| *pages <= BUDGET), "{parts:?}");
        let stored = world.disk.stored();
        assert!(stored[0].commit.base && !stored[1].commit.base);
    }
}

#[test]
fn a_chain_that_is_elsewhere_is_refused() {
    let mut world = World::new();
    let refused = world.try_engine(Start::Restored(EpochId(1)), options());
    assert!(matches!(refused, Err(EngineError::OtherEpoch { expected: EpochId(1), found: EpochId(0) })), "{refused:?}");
    let mut engine = world.engine(Start::Fresh, options());
    world.take(&mut engine, Trigger::Request);
    world.take(&mut engine, Trigger::Request);
    drop(engine);
    for (start, expected) in
        [(Start::Fresh, 0), (Start::InUse, 0), (Start::Restored(EpochId(1)), 1), (Start::Restored(EpochId(3)), 3)]
    {
        let refused = world.try_engine(start, options());
        let Err(EngineError::OtherEpoch { expected: guest, found }) = refused else { panic!("{refused:?}") };
        assert_eq!((guest.0, found.0), (expected, 2));
    }
    world.engine(Start::Restored(EpochId(2)), options());
    assert_eq!(world.disk.stored().len(), 2, "an engine that takes no epoch adds none");
}

#[test]
fn a_restored_guest_goes_on_in_the_chain_with_what_changed() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, options());
    (0..60).for_each(|index| world.vmm_write(gfn(index)));
    world.take(&mut engine, Trigger::Request);
    world.write_all(0..5);
    let last = world.take(&mut engine, Trigger::Request);
    drop(engine);
    world.oracle().unwrap();

    let mut world = world.restored();
    let mut engine = world.engine(Start::Restored(EpochId(last)), options());
    assert_eq!((engine.reached().appended, engine.reached().durable), (EpochId(last), EpochId(last)));
    world.write_all([7, 90]);
    world.vmm_write(gfn(33));
    // Its memory may still be on its way: this one waits for it.
    assert!(matches!(world.cut(&mut engine, Trigger::Request).unwrap(), Cut::Taken { pages: 3, .. }));
    world.take(&mut engine, Trigger::Final);
    let finished = engine.finish();
    world.check(&finished, 2);
    let stored = world.disk.stored();
    let mut mentions = stored[2].mentions.clone();
    mentions.sort();
    assert_eq!(mentions, [gfn(7), gfn(33), gfn(90)]);
    assert!(!stored[2].commit.base);
    assert_eq!((finished.report.epochs, finished.report.max_epoch_pages), (2, 3));
}

#[test]
fn a_guest_in_use_is_copied_while_it_runs() {
    let mut world = World::new();
    world.fill(0..PAGES);
    let mut engine = world.engine(Start::InUse, options());
    let mut round = 0;
    while engine.copy_base().unwrap() {
        // Pages that were copied, pages that were not, and one that is zero by then.
        let full = (0..4).any(|more| world.write(gfn(round * 7 + more * 23)));
        let _ = world.write_page(gfn(round), &[0; 4096]);
        world.vmm_write(gfn(round * 11));
        assert_eq!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Skipped);
        if full {
            let cut = world.cut(&mut engine, Trigger::RingFull).unwrap();
            assert!(matches!(cut, Cut::Lengthened { .. }), "{cut:?}");
        }
        assert!(world.disk.stored().is_empty(), "nothing can be restored before the base is whole");
        round += 1;
        assert!(round < 100);
    }
    assert!(round > 2);
    world.write_all([0, 95]);
    world.take(&mut engine, Trigger::Request);
    world.write_all([4]);
    world.take(&mut engine, Trigger::Final);
    let report = world.finish(engine).report;
    let stored = world.disk.stored();
    assert!(stored[0].commit.base);
    assert_eq!(stored[1].mentions, [gfn(4)]);
    assert_eq!((report.max_epoch_pages, report.over_budget_epochs), (1, 0));
    assert!(report.pages as usize > PAGES, "what was copied beside the guest counts too: {}", report.pages);
    assert!(world.disk.part_pages().iter().all(|pages| *pages <= BUDGET));
}

#[test]
fn a_request_completes_a_base_in_progress() {
    for calls in 0..6 {
        let mut world = World::new();
        world.fill(0..PAGES);
        let mut engine = world.engine(Start::InUse, options());
        for call in 0..calls {
            engine.copy_base().unwrap();
            world.write_all([call, 3 * call]);
        }
        world.take(&mut engine, Trigger::Request);
        assert!(!engine.copy_base().unwrap(), "the base is done");
        world.write_all([50]);
        world.take(&mut engine, Trigger::Request);
        world.finish(engine);
        assert_eq!(world.disk.stored()[1].mentions, [gfn(50)]);
    }
}

#[test]
fn copying_the_base_ends_however_fast_the_guest_writes() {
    let mut world = World::new();
    world.fill(0..PAGES);
    let mut engine = world.engine(Start::InUse, options());
    let mut rounds = 0;
    while engine.copy_base().unwrap() {
        // As many pages as one call copies, and those that it would copy next.
        for half in 0..3 {
            world.write_all(half * RING_SOFT..(half + 1) * RING_SOFT);
            assert!(matches!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Lengthened { .. }));
        }
        rounds += 1;
        assert!(rounds <= PAGES.div_ceil(BUDGET), "the copy never ends");
    }
    world.take(&mut engine, Trigger::Request);
    world.finish(engine);
    let parked: Vec<_> = world.events.all().into_iter().skip_while(|event| *event != Event::Capture).collect();
    assert!(!parked.contains(&Event::Halt));
}
