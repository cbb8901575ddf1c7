//! Rounds: pages of an epoch that are taken beside the running guest.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::time::Duration;

use slackwater::epoch::{
    Cut, Durability, Early, Engine, EngineError, EngineOptions, FullRing, NextRound, OnStorageError, Place, Start,
};
use slackwater::format::Trigger;
use slackwater::page::{EpochId, PAGE_SIZE};

use super::harness::{Counter, Fault, Lies, Moment, PAGES, RING, RING_SOFT, SHARE, World, gfn, options, wait_until};

/// Several rings.
const LARGE: usize = 70;

fn early() -> EngineOptions {
    EngineOptions { budget_pages: LARGE, early: Early::Always, audit_every: NonZeroU64::new(1), ..options() }
}

/// An engine whose base was cut.
fn begun(world: &mut World, options: EngineOptions) -> Engine<Counter> {
    let mut engine = world.engine(Start::Fresh, options);
    world.take(&mut engine, Trigger::Request);
    engine
}

/// Rounds that nobody interrupts, until they have copied `pages`: the first may find no slot.
#[track_caller]
fn rounds(engine: &mut Engine<Counter>, pages: u64) {
    let mut copied = 0;
    wait_until("the rounds copy nothing", || {
        let round = engine.round(Place::Middle, &|| false).unwrap();
        assert!(matches!(round.next, NextRound::After(_)), "{round:?}");
        copied += round.pages;
        copied >= pages
    });
    assert_eq!(copied, pages);
}

#[test]
fn what_is_written_after_a_round_is_taken_again_and_counts() {
    let mut world = World::new();
    let mut engine = begun(&mut world, early());
    world.write_all([1, 2, 3]);
    rounds(&mut engine, 3);
    world.write_all([2, 5]);
    rounds(&mut engine, 2);
    world.write_all([1, 9]);
    let cut = world.cut(&mut engine, Trigger::Request).unwrap();
    assert_eq!(cut, Cut::Taken { epoch: EpochId(2), pages: 5 });
    // And the next epoch has only what is written behind it.
    world.write_all([5]);
    let cut = world.cut(&mut engine, Trigger::Request).unwrap();
    assert_eq!(cut, Cut::Taken { epoch: EpochId(3), pages: 1 });
    let report = world.finish(engine).report;
    assert_eq!((report.early_pages, report.early_rounds, report.repeated_pages), (5, 2, 2));
    assert_eq!(world.disk.stored()[1].mentions.len(), 7);
}

#[test]
fn a_cut_takes_over_what_a_round_has_not_copied() {
    let mut world = World::new();
    let mut engine = begun(&mut world, early());
    world.write_all(0..RING_SOFT - 1);
    let asked = Cell::new(0);
    let yields = || {
        asked.set(asked.get() + 1);
        asked.get() > 1
    };
    let mut copied = 0;
    wait_until("no slot is free", || {
        asked.set(0);
        copied = engine.round(Place::Middle, &yields).unwrap().pages;
        copied > 0
    });
    assert!(copied < RING_SOFT as u64 - 1, "{copied} copied");
    let cut = world.cut(&mut engine, Trigger::Request).unwrap();
    assert_eq!(cut, Cut::Taken { epoch: EpochId(2), pages: RING_SOFT as u64 - 1 });
    let report = world.finish(engine).report;
    assert_eq!((report.early_pages, report.repeated_pages), (copied, 0));
    let mut mentions = world.disk.stored()[1].mentions.clone();
    mentions.sort();
    mentions.dedup();
    assert_eq!(mentions.len(), RING_SOFT - 1, "no page twice");
}

/// The guest writes `pages` one after the other; the sizes of its epochs.
fn stream(world: &mut World, engine: &mut Engine<Counter>, pages: usize, rounds: bool) -> Vec<u64> {
    let mut epochs = Vec::new();
    for index in 0..pages {
        if world.write(gfn(index)) && engine.ring_full() == FullRing::Cut {
            match world.cut(engine, Trigger::RingFull).unwrap() {
                Cut::Taken { pages, .. } => epochs.push(pages),
                other => panic!("{other:?}"),
            }
        }
        if rounds && index % 5 == 4 {
            let _ = engine.round(Place::Middle, &|| false).unwrap();
        }
    }
    epochs
}

#[test]
fn epochs_are_larger_than_rings_and_never_than_the_budget() {
    for (budget, rounds) in [(LARGE, true), (LARGE, false), (RING + SHARE, true), (2 * RING + SHARE, true), (3 * RING, true)] {
        let mut world = World::new();
        let mut engine = begun(&mut world, EngineOptions { budget_pages: budget, ..early() });
        let epochs = stream(&mut world, &mut engine, 10 * PAGES, rounds);
        world.take(&mut engine, Trigger::Final);
        let report = world.finish(engine).report;
        assert_eq!((report.over_budget_epochs, report.tracking_lost), (0, 0), "{report:?}");
        // Two rings fit no more: what one lists, and what it may list then.
        let least = budget.saturating_sub(2 * RING + SHARE).max(RING_SOFT);
        assert!(epochs.iter().all(|pages| (least as u64..=budget as u64).contains(pages)), "budget {budget}: {epochs:?}");
        assert_eq!(report.early_pages > 0, rounds && budget > RING + SHARE, "{report:?}");
    }
}

#[test]
fn pages_that_are_written_again_and_again_are_mentioned_at_most_twice_the_budget() {
    let mut world = World::new();
    let mut engine = begun(&mut world, early());
    let mut mentions = 0;
    let next = loop {
        world.write_all(0..10);
        let round = engine.round(Place::Middle, &|| false).unwrap();
        mentions += round.pages;
        assert!(mentions <= 2 * LARGE as u64);
        if round.next == NextRound::Cut {
            break round.next;
        }
    };
    assert_eq!(next, NextRound::Cut);
    assert!(mentions > LARGE as u64, "{mentions} mentions of 10 pages");
    let cut = world.cut(&mut engine, Trigger::RingFull).unwrap();
    assert_eq!(cut, Cut::Taken { epoch: EpochId(2), pages: 10 });
    let report = world.finish(engine).report;
    assert_eq!(report.over_budget_epochs, 0);
}

#[test]
fn what_the_vmm_wrote_is_the_cuts() {
    let mut world = World::new();
    let mut engine = begun(&mut world, early());
    // It has said that it will write, and does so after the round.
    world.vmm_write(gfn(3));
    world.write_all([4]);
    rounds(&mut engine, 1);
    let page = world.fresh_page();
    world.memory.fill_page(gfn(3), &page).unwrap();
    world.plan(Moment::Park, gfn(4));
    let cut = world.cut(&mut engine, Trigger::Request).unwrap();
    assert_eq!(cut, Cut::Taken { epoch: EpochId(2), pages: 2 });
    world.finish(engine);
}

#[test]
fn a_round_that_finds_tracking_lost_asks_for_a_cut_that_compares_all() {
    for short in [true, false] {
        let mut world = World::new();
        let mut engine = begun(&mut world, early());
        world.write_all([7]);
        rounds(&mut engine, 1);
        if short {
            world.write_all(0..RING_SOFT - 1);
            world.simulated.cut_next_reset_short(5);
        } else {
            world.write_all(0..RING + 4);
        }
        wait_until("the round finds nothing", || engine.round(Place::Middle, &|| false).unwrap().next == NextRound::Cut);
        assert_eq!(engine.ring_full(), FullRing::Cut);
        // Not logged, where the reset was short.
        world.write_all(0..RING_SOFT - 1);
        let cut = world.cut(&mut engine, Trigger::RingFull).unwrap();
        assert_eq!(cut, Cut::Taken { epoch: EpochId(2), pages: PAGES as u64 });
        world.write_all([1, 2]);
        rounds(&mut engine, 2);
        world.take(&mut engine, Trigger::Final);
        let report = world.finish(engine).report;
        assert_eq!(report.tracking_lost, 1);
        assert!(world.disk.stored()[1].commit.recovery && !world.disk.stored()[2].commit.recovery);
    }
}

#[test]
fn an_epoch_that_fails_with_parts_in_the_sink_comes_again_whole() {
    // The append of the part, and the end of the epoch.
    for (operation, fault) in [0, 1]
        .into_iter()
        .flat_map(|at| [Fault::Reject, Fault::Latch { survivors: 0 }, Fault::LatchKept].map(|fault| (at, fault)))
    {
        let mut world = World::new();
        let on_storage_error = OnStorageError::Continue { retry_after: Duration::ZERO };
        let options = EngineOptions { on_storage_error, durability: Durability::Epoch, ..early() };
        let mut engine = begun(&mut world, options);
        world.disk.fail_in(operation, fault);
        world.write_all(0..8);
        rounds(&mut engine, 8);
        world.write_all([3, 20]);
        let _ = world.cut(&mut engine, Trigger::Request).unwrap();
        // Nothing new: all of it comes again.
        let _ = engine.round(Place::Middle, &|| false).unwrap();
        world.take(&mut engine, Trigger::Request);
        world.take(&mut engine, Trigger::Final);
        let report = world.finish(engine).report;
        assert!(report.failed_epochs <= 2, "{operation} {fault:?}: {report:?}");
    }
}

#[test]
fn a_round_waits_for_no_slot_and_leaves_one_for_the_cut() {
    let mut world = World::new();
    let mut engine = begun(&mut world, EngineOptions { slots: 2, ..early() });
    wait_until("the base is not in the chain", || engine.report().epochs == 1);
    world.disk.shut();
    let mut parts = 0;
    // The base may have its slot for a moment yet.
    wait_until("three slots are not free", || {
        world.write_all([parts]);
        parts += usize::from(engine.round(Place::Middle, &|| false).unwrap().pages > 0);
        parts == 3
    });
    world.write_all([7, 8, 9]);
    for _ in 0..10 {
        assert_eq!(
            engine.round(Place::Middle, &|| false).unwrap().pages,
            0,
            "three slots are in flight, and the fourth is the cut's"
        );
    }
    let cut = world.cut(&mut engine, Trigger::Interval).unwrap();
    assert_eq!(cut, Cut::Taken { epoch: EpochId(2), pages: 6 });
    world.disk.open();
    world.finish(engine);
}

#[test]
fn there_are_no_rounds_where_they_would_be_wrong() {
    let mut world = World::new();
    let off = EngineOptions { early: Early::Off, ..early() };
    let rollback = EngineOptions { rollback: true, ..early() };
    for options in [off, rollback] {
        let mut world = World::new();
        let mut engine = begun(&mut world, options);
        world.write_all([1]);
        assert_eq!(engine.round(Place::Middle, &|| false).unwrap().next, NextRound::Never);
        assert_eq!(engine.ring_full(), FullRing::Cut);
        world.finish(engine);
    }
    // Before the base, and while it is copied.
    let mut engine = world.engine(Start::InUse, early());
    world.write_all([1]);
    assert_eq!(engine.round(Place::Middle, &|| false).unwrap().pages, 0);
    assert_eq!(engine.ring_full(), FullRing::Cut);
    while engine.copy_base().unwrap() {
        world.write_all([2]);
        assert_eq!(engine.round(Place::Middle, &|| false).unwrap().pages, 0);
    }
    world.take(&mut engine, Trigger::Request);
    world.finish(engine);
}

#[test]
fn a_halted_engine_has_no_rounds() {
    let mut world = World::new();
    let mut engine = begun(&mut world, EngineOptions { durability: Durability::Epoch, ..early() });
    world.disk.fail_in(0, Fault::Reject);
    world.write_all([1]);
    assert!(matches!(world.cut(&mut engine, Trigger::Request), Err(EngineError::Storage { .. })));
    assert!(matches!(engine.round(Place::Middle, &|| false), Err(EngineError::Halted)));
    assert_eq!(engine.ring_full(), FullRing::Cut);
}

/// The guest writes beside a round that copies: what it writes is in no epoch if the pages were
/// copied before they were protected.
fn writes_beside(lies: Lies) -> Result<(), String> {
    let mut world = World::new();
    world.lies = lies;
    let mut engine = begun(&mut world, EngineOptions { audit_every: None, ..early() });
    world.write_all(0..RING_SOFT - 1);
    let (memory, simulated) = (world.memory.clone(), world.simulated.clone());
    let asked = Cell::new(0);
    wait_until("no slot is free", || {
        asked.set(0);
        let round = engine.round(Place::Middle, &|| {
            asked.set(asked.get() + 1);
            // Asked for the second time, some pages were copied.
            if asked.get() == 2 {
                memory.fill_page(gfn(2), &[99; PAGE_SIZE]).unwrap();
                let _ = simulated.write(gfn(2));
            }
            false
        });
        round.unwrap().pages > 0
    });
    world.take(&mut engine, Trigger::Final);
    drop(engine.finish());
    world.oracle()
}

#[test]
fn the_oracle_finds_a_round_that_copies_before_it_protects() {
    writes_beside(Lies::default()).unwrap();
    writes_beside(Lies { resets_late: true, ..Lies::default() }).unwrap_err();
}

/// One page, as KVM keeps it: a store through a translation that allowed it is done before a reset
/// returns, which flushes translations.
#[derive(Debug)]
struct Page {
    tables: loom::sync::Mutex<Tables>,
    content: loom::sync::atomic::AtomicU32,
}

#[derive(Debug)]
struct Tables {
    writable: bool,
    listed: bool,
}

impl Page {
    fn write(&self, value: u32) {
        let mut tables = self.tables.lock().unwrap();
        if !tables.writable {
            *tables = Tables { writable: true, listed: true };
        }
        self.content.store(value, loom::sync::atomic::Ordering::Relaxed);
    }

    /// Takes the page from the log: whether it was listed. It is protected again.
    fn reset(&self) -> bool {
        let mut tables = self.tables.lock().unwrap();
        let listed = tables.listed;
        if listed {
            *tables = Tables { writable: false, listed: false };
        }
        listed
    }

    fn copy(&self) -> u32 {
        self.content.load(loom::sync::atomic::Ordering::Relaxed)
    }
}

/// Every interleaving of a guest that writes a page with a round, and a cut behind them: what the
/// cut leaves as the page's newest copy is what the page holds.
fn round_beside_a_writer(round: fn(&Page) -> Option<u32>) {
    loom::model(move || {
        let tables = loom::sync::Mutex::new(Tables { writable: false, listed: false });
        let page = loom::sync::Arc::new(Page { tables, content: loom::sync::atomic::AtomicU32::new(0) });
        let guest = page.clone();
        let vcpu = loom::thread::spawn(move || (1..=3).for_each(|value| guest.write(value)));
        let mut newest = 0;
        for _ in 0..2 {
            newest = round(&page).unwrap_or(newest);
        }
        // Parked.
        vcpu.join().unwrap();
        if page.reset() {
            newest = page.copy();
        }
        assert_eq!(newest, page.copy(), "a write was missed");
    });
}

#[test]
fn loom_a_round_resets_and_then_copies() {
    round_beside_a_writer(|page| page.reset().then(|| page.copy()));
}

#[test]
#[should_panic = "a write was missed"]
fn loom_finds_a_round_that_copies_and_then_resets() {
    round_beside_a_writer(|page| {
        let copy = page.copy();
        page.reset().then_some(copy)
    });
}

#[test]
fn parts_begin_their_way_to_the_medium_before_the_epoch_ends() {
    for (durability, begins) in
        [(Durability::Epoch, true), (Durability::Group(Duration::from_secs(60)), true), (Durability::None, false)]
    {
        let mut world = World::new();
        let mut engine = begun(&mut world, EngineOptions { durability, ..early() });
        let before = world.disk.syncs_begun();
        world.write_all([1, 2, 3]);
        rounds(&mut engine, 3);
        if begins {
            wait_until("the sync does not begin", || world.disk.syncs_begun() > before);
        }
        world.take(&mut engine, Trigger::Request);
        world.finish(engine);
        assert_eq!(world.disk.syncs_begun() > 0, begins, "{durability:?}");
    }
}
