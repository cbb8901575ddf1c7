//! What ends an epoch, and what is in it.

use slackwater::epoch::{Cut, EngineError, Start};
use slackwater::format::Trigger;
use slackwater::page::PAGE_SIZE;

use super::harness::{BUDGET, PAGES, RING_SOFT, World, gfn, options};

#[test]
fn each_trigger_is_counted_and_stored() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, options());
    world.take(&mut engine, Trigger::Request);
    let mut full = false;
    for index in 0..RING_SOFT {
        full = world.write(gfn(index));
        assert_eq!(full, index + 1 == RING_SOFT);
    }
    assert!(full);
    assert!(matches!(world.cut(&mut engine, Trigger::RingFull).unwrap(), Cut::Taken { pages: 12, .. }));
    world.write_all([70]);
    assert!(matches!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Taken { pages: 1, .. }));
    assert!(matches!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Taken { pages: 0, .. }), "an idle guest");
    world.write_all([70, 71]);
    world.take(&mut engine, Trigger::Request);
    world.write_all([72]);
    world.take(&mut engine, Trigger::Final);
    let report = world.finish(engine).report;
    let triggers = report.triggers;
    assert_eq!((triggers.ring_full, triggers.interval, triggers.request, triggers.r#final), (1, 2, 2, 1));
    assert_eq!((report.epochs, report.durable_epochs, report.failed_epochs), (6, 6, 0));
    assert_eq!((report.pages, report.max_epoch_pages, report.budget_pages), (16, 12, BUDGET as u64));
    assert_eq!((report.tracking_lost, report.drains, report.over_budget_epochs), (0, 0, 0));
    let stored: Vec<_> = world.disk.stored().iter().map(|stored| stored.commit.trigger).collect();
    assert_eq!(
        stored,
        [Trigger::Request, Trigger::RingFull, Trigger::Interval, Trigger::Interval, Trigger::Request, Trigger::Final]
    );
}

#[test]
fn what_the_vmm_writes_is_in_the_epoch() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, options());
    world.vmm_write(gfn(90));
    world.take(&mut engine, Trigger::Request);
    world.vmm_write(gfn(3));
    world.vmm_write(gfn(95));
    world.write_all([3, 4]);
    assert!(matches!(world.cut(&mut engine, Trigger::Interval).unwrap(), Cut::Taken { pages: 3, .. }), "page 3 once");
    // More than the list of the VMM's writes holds, and with full rings more than the budget.
    (0..BUDGET).for_each(|index| world.vmm_write(gfn(40 + index)));
    world.write_all(0..RING_SOFT);
    world.take(&mut engine, Trigger::RingFull);
    world.take(&mut engine, Trigger::Final);
    let report = world.finish(engine).report;
    assert_eq!(report.over_budget_epochs, 1, "the VMM went beyond its share, and that is said");
    assert_eq!(report.max_epoch_pages, (BUDGET + RING_SOFT) as u64);
    assert!(world.disk.part_pages().iter().all(|pages| *pages <= BUDGET), "even then no part is above the budget");
}

#[test]
fn zero_pages_are_listed_and_unchanged_ones_dropped() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, options());
    world.write_all(0..4);
    world.take(&mut engine, Trigger::Request);
    let (mut old, mut new) = ([0; PAGE_SIZE], world.fresh_page());
    world.memory.read_page(gfn(0), &mut old).unwrap();

    // Another content and back within the epoch; the same content; a zero page that stays zero.
    let _ = world.write_page(gfn(0), &new);
    let _ = world.write_page(gfn(0), &old);
    let mut same = [0; PAGE_SIZE];
    world.memory.read_page(gfn(1), &mut same).unwrap();
    let _ = world.write_page(gfn(1), &same);
    let _ = world.write_page(gfn(50), &[0; PAGE_SIZE]);
    world.take(&mut engine, Trigger::Request);

    // To zero, and in the next epoch back to the very content of before.
    let _ = world.write_page(gfn(0), &[0; PAGE_SIZE]);
    let _ = world.write_page(gfn(2), &[0; PAGE_SIZE]);
    new[17] ^= 1;
    let _ = world.write_page(gfn(3), &new);
    world.take(&mut engine, Trigger::Request);
    let _ = world.write_page(gfn(0), &old);
    world.take(&mut engine, Trigger::Final);

    let report = world.finish(engine).report;
    let stored = world.disk.stored();
    assert_eq!(stored[1].mentions, [], "nothing changed");
    assert_eq!(stored[1].commit.unchanged_pages, 3);
    assert_eq!((stored[2].commit.totals.stored_pages, stored[2].commit.zero_pages), (1, 2));
    assert_eq!(stored[3].mentions, [gfn(0)], "what it was before the zeros is not what the chain has now");
    assert_eq!((report.unchanged_pages, report.zero_pages), (3, 2));
}

#[test]
fn an_audit_is_the_digest_of_the_guest() {
    let mut world = World::new();
    let audit_every = std::num::NonZeroU64::new(2);
    let mut engine = world.engine(Start::Fresh, slackwater::epoch::EngineOptions { audit_every, ..options() });
    for index in 0..5 {
        world.write_all([index, 80 + index]);
        world.take(&mut engine, Trigger::Request);
    }
    assert_eq!(world.finish(engine).report.audits, 3);
    for (index, stored) in world.disk.stored().iter().enumerate() {
        let mut digest = slackwater::format::MemoryDigest::default();
        for page in 0..PAGES {
            let bytes = &stored.image[page * PAGE_SIZE..(page + 1) * PAGE_SIZE];
            digest.add_page(gfn(page), bytes.try_into().unwrap());
        }
        assert_eq!(stored.commit.audit, index.is_multiple_of(2).then_some(digest));
    }
}

#[test]
fn a_capture_or_park_that_fails_once_loses_nothing() {
    let mut world = World::new();
    let mut engine = world.engine(Start::Fresh, options());
    world.vmm_write(gfn(1));
    world.take(&mut engine, Trigger::Request);
    for trigger in [Trigger::RingFull, Trigger::Interval, Trigger::Request] {
        world.write_all([5, 6, 7]);
        world.vmm_write(gfn(60));
        world.guest.fail_next_capture = true;
        let failed = world.cut(&mut engine, trigger);
        assert!(matches!(failed, Err(EngineError::Guest { action: "capture the state", .. })), "{failed:?}");
        world.guest.fail_next_park = true;
        let failed = world.cut(&mut engine, trigger);
        assert!(matches!(failed, Err(EngineError::Guest { action: "park the vCPUs", .. })), "{failed:?}");
        world.write_all([8]);
        assert!(matches!(world.cut(&mut engine, trigger).unwrap(), Cut::Taken { pages: 5, .. }));
    }
    let report = world.finish(engine).report;
    assert_eq!((report.epochs, report.failed_epochs), (4, 0));
    let numbers: Vec<_> = world.disk.stored().iter().map(|stored| stored.commit.epoch.0).collect();
    assert_eq!(numbers, [1, 2, 3, 4], "no number is used up");
}

#[test]
fn what_reading_the_state_writes_is_in_the_epoch() {
    for cannot_tell in [false, true] {
        let mut world = World::new();
        world.lies.cannot_tell = cannot_tell;
        let mut engine = world.engine(Start::Fresh, options());
        world.vmm_write(gfn(1));
        world.take(&mut engine, Trigger::Request);
        for trigger in [Trigger::RingFull, Trigger::Interval, Trigger::Request] {
            world.write_all([5, 6]);
            // A page that was written before as well, and one that was not.
            for page in [6, 9] {
                let content = world.fresh_page();
                world.guest.capture_writes.push((gfn(page), content));
            }
            assert!(matches!(world.cut(&mut engine, trigger).unwrap(), Cut::Taken { pages: 3, .. }));
        }
        let report = world.finish(engine).report;
        assert_eq!((report.epochs, report.pages), (4, 1 + 3 * 3));
    }
}

#[test]
fn options_out_of_range_are_no_panic() {
    for (budget_pages, slots) in [(0, 0), (1, 1), (1, 2), (usize::MAX, 2)] {
        let mut world = World::new();
        let mut options = options();
        (options.budget_pages, options.slots) = (budget_pages, slots);
        let mut engine = world.engine(Start::Fresh, options);
        world.write_all(0..5);
        world.vmm_write(gfn(70));
        world.take(&mut engine, Trigger::Request);
        world.write_all([5]);
        world.take(&mut engine, Trigger::Final);
        let finished = engine.finish();
        assert!(finished.error.is_none());
        world.oracle().unwrap();
        assert_eq!(world.disk.stored().len(), 2);
    }
}
