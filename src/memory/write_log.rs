//! The VMM's own writes to guest memory. KVM's log never shows them.
//!
//! [`WriteLog`] is `vm-memory`'s `Bitmap` of a region: every write through `vm-memory` marks it, so
//! that no device author can forget to. All regions feed one [`WrittenPages`], which lists the
//! first pages up to the VMM's share of the budget and has a bit for each page besides: small sets
//! are taken from the list, large ones (a loader's) by walking the bits.
//!
//! # Why no mark is lost
//! A mark may come from any thread at any moment, while the log is taken too. It sets the page's
//! bit, and if that was clear, counts itself and stores the page at the place that the count gave.
//! A taker first takes the count, and with it the *round*: marks that count themselves from then on
//! belong to the next one.
//! - The bits say which pages were written; the list is only the short way to them. It is used
//!   where each of its places holds an entry of the round that was taken and each entry cleared a
//!   bit. Whatever else it holds (a place not stored yet, or stored by a mark of the next round),
//!   all bits are walked.
//! - A mark that finds its bit set adds nothing, and need not: whoever clears the bit comes later,
//!   and copies the page later still. The bit is always set by a read-modify-write, also where it
//!   is set already, so that the write before it is seen by then.
//! - A mark that counts itself in the next round, and whose bit the taker cleared all the same, is
//!   one entry too many there, and no page too few.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use crate::page::{Gfn, PAGE_SIZE, PageRun};
use crate::parked::Parked;

/// Bits of a frame's number, and of a count of frames. The round has those above.
const FRAME_BITS: u32 = 40;
const FRAME_MASK: u64 = (1 << FRAME_BITS) - 1;

/// The pages that the VMM wrote since they were last taken.
#[derive(Debug)]
pub struct WrittenPages {
    bits: Box<[AtomicU64]>,
    /// Each a round and a frame.
    list: Box<[AtomicU64]>,
    /// The round, and how many pages were newly written in it; may be above the list's length.
    count: AtomicU64,
    /// The memory. What lies between is nobody's.
    runs: Box<[PageRun]>,
}

impl WrittenPages {
    /// For the frames of `runs`, which are below `frames`; lists up to `share` pages.
    pub(super) fn new(runs: Box<[PageRun]>, frames: u64, share: usize) -> Arc<Self> {
        let words = usize::try_from(frames.div_ceil(64)).unwrap_or(usize::MAX);
        Arc::new(Self {
            bits: (0..words).map(|_| AtomicU64::new(0)).collect(),
            list: (0..share).map(|_| AtomicU64::new(0)).collect(),
            // Not the round of a place that nobody has stored to.
            count: AtomicU64::new(1 << FRAME_BITS),
            runs,
        })
    }

    /// Pages written since they were last taken. A page may count twice that was written while they
    /// were taken.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.count.load(Ordering::Relaxed) & FRAME_MASK).unwrap_or(usize::MAX)
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records a write to `gfn`, which must have been made: a page may be copied as soon as it is
    /// recorded, and is not copied again for this record. Frames that are no memory are ignored:
    /// there is nothing to save.
    pub fn mark(&self, gfn: Gfn) {
        if self.runs.iter().any(|run| run.contains(gfn)) {
            self.record(gfn);
        }
    }

    /// As [`mark`](Self::mark), of a frame that is memory.
    fn record(&self, gfn: Gfn) {
        let Some((word, bit)) = self.bit(gfn) else { return };
        if word.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return;
        }
        let count = self.count.fetch_add(1, Ordering::AcqRel);
        let (round, place) = (count & !FRAME_MASK, count & FRAME_MASK);
        if let Some(entry) = usize::try_from(place).ok().and_then(|place| self.list.get(place)) {
            entry.store(round | gfn.0, Ordering::Release);
        }
    }

    fn bit(&self, gfn: Gfn) -> Option<(&AtomicU64, u64)> {
        Some((self.bits.get(usize::try_from(gfn.0 / 64).ok()?)?, 1 << (gfn.0 % 64)))
    }

    /// Whether a write to `gfn` is recorded.
    #[must_use]
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.bit(gfn).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Takes all recorded pages and forgets them. What is recorded meanwhile, by a device that is
    /// not quiesced, is taken now or the next time.
    pub fn take(&self, parked: &Parked<'_>, mut each: impl FnMut(Gfn)) {
        let _ = parked;
        // Round 0 is that of empty places.
        let next_round = |count: u64| (count & !FRAME_MASK).wrapping_add(1 << FRAME_BITS).max(1 << FRAME_BITS);
        let next = |count: u64| (count & FRAME_MASK != 0).then(|| next_round(count));
        let Ok(taken) = self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) else { return };
        let (round, count) = (taken & !FRAME_MASK, taken & FRAME_MASK);
        let list = usize::try_from(count).ok().and_then(|count| self.list.get(..count));
        let listed = list.is_some_and(|list| {
            list.iter().fold(true, |listed, entry| {
                let entry = entry.swap(0, Ordering::AcqRel);
                let gfn = Gfn(entry & FRAME_MASK);
                let cleared = entry & !FRAME_MASK == round
                    && self.bit(gfn).is_some_and(|(word, bit)| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0);
                if cleared {
                    each(gfn);
                }
                listed && cleared
            })
        });
        if listed {
            return;
        }
        for (word, index) in self.bits.iter().zip(0u64..) {
            let mut bits = if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) };
            while bits != 0 {
                each(Gfn(index * 64 + u64::from(bits.trailing_zeros())));
                bits &= bits - 1;
            }
        }
    }
}

/// The part of [`WrittenPages`] that belongs to one region of `vm-memory`.
#[derive(Clone, Debug)]
pub struct WriteLog {
    pages: Arc<WrittenPages>,
    first: Gfn,
}

impl WriteLog {
    /// For a region that begins at guest frame `first`.
    pub(super) const fn new(pages: Arc<WrittenPages>, first: Gfn) -> Self {
        Self { pages, first }
    }

    fn frame(&self, offset: usize) -> Gfn {
        Gfn(self.first.0 + (offset / PAGE_SIZE) as u64)
    }
}

impl<'a> WithBitmapSlice<'a> for WriteLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WriteLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        for gfn in self.frame(offset).0..=self.frame(offset.saturating_add(len - 1)).0 {
            self.pages.record(Gfn(gfn));
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.contains(self.frame(offset))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn takes_what_was_written_once(rounds in prop::collection::vec(prop::collection::vec((0usize..200 * PAGE_SIZE, 0usize..3 * PAGE_SIZE), 0..12), 1..5), share in 0usize..20) {
            let pages = WrittenPages::new([PageRun { first: Gfn(0), count: 256 }].into(), 256, share);
            let log = WriteLog::new(pages.clone(), Gfn(16));
            for round in rounds {
                let mut model = BTreeSet::new();
                for (offset, len) in round {
                    log.slice_at(offset).mark_dirty(0, len);
                    if len > 0 {
                        let frames = (offset / PAGE_SIZE) as u64..=((offset + len - 1) / PAGE_SIZE) as u64;
                        model.extend(frames.map(|frame| Gfn(frame + 16)));
                    }
                }
                let mut taken = Vec::new();
                prop_assert_eq!(pages.len(), model.len());
                pages.take(&Parked::vouch(&mut ()), |gfn| taken.push(gfn));
                prop_assert_eq!(taken.len(), model.len());
                prop_assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), model);
                prop_assert!(pages.is_empty());
                pages.take(&Parked::vouch(&mut ()), |_| panic!("taken twice"));
            }
        }
    }

    fn taken(pages: &WrittenPages) -> Vec<u64> {
        let mut taken = Vec::new();
        pages.take(&Parked::vouch(&mut ()), |gfn| taken.push(gfn.0));
        taken.sort_unstable();
        taken
    }

    #[test]
    fn what_is_no_memory_is_not_recorded() {
        let run = |first, count| PageRun { first: Gfn(first), count };
        let pages = WrittenPages::new([run(0, 4), run(70, 2)].into(), 72, 8);
        [0, 3, 4, 69, 70, 71, 72, 128, u64::MAX].into_iter().for_each(|gfn| pages.mark(Gfn(gfn)));
        assert_eq!(taken(&pages), [0, 3, 70, 71]);
    }

    #[test]
    fn rounds_that_come_again_lose_nothing() {
        let pages = WrittenPages::new([PageRun { first: Gfn(0), count: 64 }].into(), 64, 4);
        // The last round but one, and on beyond the last.
        pages.count.store(!FRAME_MASK - (1 << FRAME_BITS), Ordering::Relaxed);
        for round in 0..5 {
            [0, round, 7].into_iter().for_each(|gfn| pages.mark(Gfn(gfn)));
            assert_eq!(taken(&pages), if round == 0 { vec![0, 7] } else { vec![0, round, 7] });
        }
        assert_eq!(pages.count.load(Ordering::Relaxed) >> FRAME_BITS, 4);
    }

    proptest! {
        /// Marks that come between two pages that are taken: what was marked before is taken now,
        /// and what is marked meanwhile now or the next time.
        #[test]
        fn marks_between_two_pages_disturb_none(share in 0usize..12, before in prop::collection::btree_set(0u64..100, 0..10), meanwhile in prop::collection::vec((0u64..100, 0usize..4), 0..12)) {
            let pages = WrittenPages::new([PageRun { first: Gfn(0), count: 100 }].into(), 100, share);
            before.iter().for_each(|gfn| pages.mark(Gfn(*gfn)));
            let (mut now, mut marked, mut waiting) = (BTreeSet::new(), BTreeSet::new(), meanwhile.into_iter());
            pages.take(&Parked::vouch(&mut ()), |gfn| {
                now.insert(gfn.0);
                // Some marks; those of pages that were taken already must come again.
                let count = waiting.len().min(3);
                for (page, _) in waiting.by_ref().take(count) {
                    pages.mark(Gfn(page));
                    marked.insert(page);
                    now.remove(&page);
                }
                if marked.contains(&gfn.0) && !pages.contains(gfn) {
                    now.insert(gfn.0);
                }
            });
            prop_assert!(before.iter().all(|gfn| now.contains(gfn) || marked.contains(gfn)), "{before:?} {marked:?}: {now:?}");
            let next: BTreeSet<_> = taken(&pages).into_iter().collect();
            prop_assert!(marked.iter().all(|gfn| now.contains(gfn) || next.contains(gfn)), "{marked:?}: {now:?}, {next:?}");
            prop_assert!(pages.is_empty() && (0..100).all(|gfn| !pages.contains(Gfn(gfn))));
        }
    }

    /// Writers that nobody stops, and a taker that copies what it is told of: in the end the copy
    /// is the memory. Each page is one writer's, but a word of bits is not.
    #[test]
    fn what_is_marked_while_the_log_is_taken_comes_with_the_next() {
        const FRAMES: usize = 160;
        const WRITERS: usize = 3;
        for share in [0, 3, 64] {
            let pages = WrittenPages::new([PageRun { first: Gfn(0), count: FRAMES as u64 }].into(), FRAMES as u64, share);
            let memory: Vec<AtomicU64> = (0..FRAMES).map(|_| AtomicU64::new(0)).collect();
            let mut copy = vec![0; FRAMES];
            let over = AtomicBool::new(false);
            let mut copy_taken = |memory: &[AtomicU64]| {
                pages.take(&Parked::vouch(&mut ()), |gfn| {
                    let index = usize::try_from(gfn.0).unwrap();
                    copy[index] = memory[index].load(Ordering::Relaxed);
                });
                copy.clone()
            };
            std::thread::scope(|scope| {
                for writer in 0..WRITERS {
                    let (memory, pages, over) = (&memory, &pages, &over);
                    scope.spawn(move || {
                        let mut at = writer as u64;
                        for number in 1..200_000 {
                            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                            let index = usize::try_from(at >> 33).unwrap() % (FRAMES / WRITERS) * WRITERS + writer;
                            memory[index].store(number, Ordering::Relaxed);
                            pages.mark(Gfn(index as u64));
                        }
                        over.store(true, Ordering::Release);
                    });
                }
                while !over.load(Ordering::Acquire) {
                    copy_taken(&memory);
                }
            });
            let copy = copy_taken(&memory);
            let memory: Vec<_> = memory.iter().map(|page| page.load(Ordering::Relaxed)).collect();
            assert_eq!(copy, memory, "a list of {share}");
            assert!(pages.is_empty() && (0..FRAMES).all(|gfn| !pages.contains(Gfn(gfn as u64))));
        }
    }
}
