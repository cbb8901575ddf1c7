//! One test body for all trackers: what a guest wrote is listed, once, and again when it is written
//! again.

use std::collections::BTreeSet;

use super::*;
use crate::epoch::Tracker;
use crate::kvm::host::KVM_PATH;
use crate::kvm::probe::pages_stay_writable;
use crate::kvm::ring::Lost;
use crate::kvm::test_guest::{FIRST_FREE, FRAMES, TestGuest, kvm_or_skip};
use crate::page::PageRun;
use crate::parked::Parked;

/// A guest and its tracker.
trait Harness {
    /// The guest writes to a frame.
    fn write(&mut self, gfn: Gfn);
    fn tracker(&mut self) -> &mut dyn Tracker;
    /// Frames that only the test writes to.
    fn free(&self) -> std::ops::Range<u64>;
}

struct Simulated {
    memory: SimulatedMemory,
    tracker: SimulatedTracker,
}

impl Harness for Simulated {
    fn write(&mut self, gfn: Gfn) {
        let _full = self.memory.write(gfn);
    }

    fn tracker(&mut self) -> &mut dyn Tracker {
        &mut self.tracker
    }

    fn free(&self) -> std::ops::Range<u64> {
        0..512
    }
}

struct Native {
    guest: TestGuest,
    tracker: Box<dyn Tracker>,
}

impl Harness for Native {
    fn write(&mut self, gfn: Gfn) {
        assert_eq!(self.guest.write(PageRun { first: gfn, count: 1 }), 1);
    }

    fn tracker(&mut self) -> &mut dyn Tracker {
        &mut *self.tracker
    }

    fn free(&self) -> std::ops::Range<u64> {
        FIRST_FREE..FRAMES
    }
}

fn collect(harness: &mut dyn Harness) -> BTreeSet<u64> {
    let free = harness.free();
    let mut set = PageSet::new(FRAMES, 64);
    let mut scope = ();
    let collected = harness.tracker().collect(&Parked::vouch(&mut scope), &mut set).unwrap();
    assert!(collected.lost.is_none(), "{:?}", collected.lost);
    assert!(collected.entries >= set.len());
    set.iter().map(|gfn| gfn.0).filter(|gfn| free.contains(gfn)).collect()
}

/// A small generator of numbers (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *seed;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn conformance(harness: &mut dyn Harness) {
    let mut seed = 7;
    println!("seed {seed}");
    let free = harness.free();
    collect(harness);
    assert_eq!(collect(harness), BTreeSet::new(), "nothing was written");
    let mut rewritten = Vec::new();
    for round in 0..20 {
        let count = random(&mut seed) % 150;
        let mut model: BTreeSet<u64> = (0..count).map(|_| free.start + random(&mut seed) % (free.end - free.start)).collect();
        // Pages of the round before are protected again, so writing to them is listed again.
        model.extend(rewritten.iter().copied().take(20));
        for gfn in model.iter().chain(model.iter().take(5)) {
            harness.write(Gfn(*gfn));
        }
        assert_eq!(collect(harness), model, "round {round}");
        rewritten = model.into_iter().collect();
    }
    assert_eq!(collect(harness), BTreeSet::new(), "the last round was taken");
    // What is in the log when tracking begins anew is dropped, and everything is tracked
    // afterwards.
    for gfn in free.clone().take(40) {
        harness.write(Gfn(gfn));
    }
    let mut scope = ();
    harness.tracker().rearm(&Parked::vouch(&mut scope)).unwrap();
    for gfn in free.clone().take(30) {
        harness.write(Gfn(gfn));
    }
    assert_eq!(collect(harness), free.clone().take(30).collect());
}

#[test]
fn simulated() {
    let memory = SimulatedMemory::new(512, 256, 16);
    conformance(&mut Simulated { tracker: SimulatedTracker::new(memory.clone()), memory });
}

fn said(lost: Option<crate::epoch::TrackerError>) -> Option<Lost> {
    lost.and_then(|lost| lost.downcast_ref::<Lost>().copied())
}

#[test]
fn simulated_faults_are_told() {
    let memory = SimulatedMemory::new(512, 64, 16);
    let mut tracker = SimulatedTracker::new(memory.clone());
    let mut set = PageSet::new(512, 512);
    let mut scope = ();
    let parked = Parked::vouch(&mut scope);
    let fulls: Vec<_> = (0..64).map(|gfn| memory.write(Gfn(gfn))).collect();
    assert_eq!(fulls.iter().position(|full| *full), Some(47), "the ring is full at its soft limit");
    let lost = tracker.collect(&parked, &mut set).unwrap().lost;
    assert_eq!(said(lost), Some(Lost::Overflow { vcpu: 0, entries: 64 }));
    memory.cut_next_reset_short(3);
    for gfn in 0..10 {
        let _full = memory.write(Gfn(gfn));
    }
    let lost = tracker.collect(&parked, &mut set).unwrap().lost;
    assert_eq!(said(lost), Some(Lost::Reset { harvested: 10, reset: 7 }));
    set.clear();
    for gfn in 0..10 {
        let _full = memory.write(Gfn(gfn));
    }
    tracker.collect(&parked, &mut set).unwrap();
    assert_eq!(set.len(), 7, "three pages go unlogged");
}

#[test]
fn native_ring() {
    if !kvm_or_skip("native_ring") {
        return;
    }
    let (guest, rings) = TestGuest::new(Some(1024));
    let tracker = Box::new(RingTracker::new(guest.handle(), guest.memory.clone(), rings.unwrap()));
    conformance(&mut Native { guest, tracker });
}

/// A guest, and a tracker with a hot set of at most `most` pages, where there can be one.
fn with_hot_set(test: &str, most: usize) -> Option<(TestGuest, RingTracker)> {
    if !kvm_or_skip(test) {
        return None;
    }
    let (guest, rings) = TestGuest::new(Some(4096));
    match pages_stay_writable(KVM_PATH.as_ref()) {
        Ok(writable) => {
            let tracker = RingTracker::new(guest.handle(), guest.memory.clone(), rings.unwrap()).with_hot_set(most, writable);
            Some((guest, tracker))
        }
        Err(reason) => {
            println!("no hot set on this kernel: {reason}");
            None
        }
    }
}

/// Pages that are written in every round are no longer listed, nothing that is written is missed,
/// and pages that rest are listed again when they are written.
#[test]
fn native_ring_with_a_hot_set() {
    let Some((mut guest, mut tracker)) = with_hot_set("native_ring_with_a_hot_set", 600) else { return };
    let mut seed = 5;
    println!("seed {seed}");
    let (mut silent, mut left) = (0, 0);
    let mut round = |hot: std::ops::Range<u64>, tracker: &mut RingTracker| {
        let cold: Vec<u64> = (0..20).map(|_| FIRST_FREE + 2048 + random(&mut seed) % 8192).collect();
        guest.write(PageRun { first: Gfn(FIRST_FREE + hot.start), count: hot.end - hot.start });
        cold.iter().for_each(|gfn| assert_eq!(guest.write(PageRun { first: Gfn(*gfn), count: 1 }), 1));
        let mut set = PageSet::new(FRAMES, 1024);
        let mut scope = ();
        let collected = tracker.collect(&Parked::vouch(&mut scope), &mut set).unwrap();
        assert!(collected.lost.is_none(), "{:?}", collected.lost);
        let written = hot.map(|gfn| gfn + FIRST_FREE).chain(cold);
        written.for_each(|gfn| assert!(set.contains(Gfn(gfn)), "{gfn} was written and is not taken"));
        (collected.entries, set.len())
    };
    for number in 0..40 {
        let (entries, taken) = round(0..500, &mut tracker);
        assert!(taken >= 500);
        silent += u64::from(number > 5 && entries < 60);
    }
    assert!(silent > 30, "hot pages are listed all the same: {silent} of 34 rounds without");
    for _ in 0..300 {
        let (_, taken) = round(400..500, &mut tracker);
        left = taken;
    }
    assert!(left < 300, "pages that rest are still taken: {left}");
    let (entries, _) = round(0..500, &mut tracker);
    assert!(entries > 300, "{entries}");
}

/// Members that wait to leave are written in the very epoch in which others take their places.
#[test]
fn native_members_that_others_replace_are_taken_once_more() {
    const TEST: &str = "native_members_that_others_replace_are_taken_once_more";
    const MOST: u64 = 64;
    let Some((mut guest, mut tracker)) = with_hot_set(TEST, MOST.try_into().unwrap()) else { return };
    let mut round = |pages: std::ops::Range<u64>| {
        guest.write(PageRun { first: Gfn(FIRST_FREE + pages.start), count: pages.end - pages.start });
        let mut set = PageSet::new(FRAMES, 1024);
        let mut scope = ();
        let collected = tracker.collect(&Parked::vouch(&mut scope), &mut set).unwrap();
        pages.for_each(|page| assert!(set.contains(Gfn(FIRST_FREE + page)), "page {page} was written and is not taken"));
        collected.hot
    };
    (0..40).for_each(|_| _ = round(0..MOST));
    assert_eq!(round(0..MOST), MOST);
    // A few rest, and wait: nothing is listed, so there is no entry to leave by.
    (0..100).for_each(|_| _ = round(0..MOST - 10));
    assert_eq!(round(0..MOST - 10), MOST);
    for _ in 0..200 {
        assert!(round(0..3 * MOST) <= MOST);
    }
}

#[test]
fn native_bitmap() {
    for manual_protect in [false, true] {
        if !kvm_or_skip("native_bitmap") {
            return;
        }
        let (guest, _) = TestGuest::new(None);
        let tracker = Box::new(BitmapTracker::new(guest.handle(), guest.memory.clone(), manual_protect).unwrap());
        conformance(&mut Native { guest, tracker });
    }
}
