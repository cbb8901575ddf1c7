//! Units and sets: guest frame numbers, epoch numbers, runs and bounded sets of pages. No I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a page. KVM on x86-64 logs dirty memory in 4 KiB pages whatever the mapping's size.
pub const PAGE_SIZE: usize = 4096;

/// [`PAGE_SIZE`] as the type of guest addresses and file offsets.
pub const PAGE_SIZE_U64: u64 = 4096;

/// The number of base-2 digits of an offset within a page.
pub const PAGE_SHIFT: u32 = 12;

/// The content of one page.
pub type PageBytes = [u8; PAGE_SIZE];

/// A guest frame number: a guest physical address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The frame that holds guest physical address `address` (bytes).
    #[must_use]
    pub const fn containing(address: u64) -> Self {
        Self(address >> PAGE_SHIFT)
    }

    /// The guest physical address (bytes) of the first byte of this frame, or `None` above 2^64.
    #[must_use]
    pub const fn address(self) -> Option<u64> {
        self.0.checked_mul(PAGE_SIZE_U64)
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x}", self.0)
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number of an epoch. The first is 1; 0 stands for "none". Numbers only rise, and a gap is an
/// epoch that was cut but never appended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EpochId(pub u64);

impl EpochId {
    /// No epoch: the parent of a chain's first.
    pub const NONE: Self = Self(0);

    /// The number after this one. Saturates at `u64::MAX`, which no chain reaches.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `count` frames that follow each other, from `first` on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PageRun {
    /// The first frame.
    pub first: Gfn,
    /// How many frames; at least one.
    pub count: u64,
}

impl PageRun {
    /// The frame after the last, or `None` where that number would not fit.
    #[must_use]
    pub const fn end(self) -> Option<Gfn> {
        match self.first.0.checked_add(self.count) {
            Some(end) => Some(Gfn(end)),
            None => None,
        }
    }

    /// The run's frames, rising. A run beyond the last frame number is cut.
    pub fn gfns(self) -> impl DoubleEndedIterator<Item = Gfn> {
        (self.first.0..self.first.0.saturating_add(self.count)).map(Gfn)
    }

    /// Whether `gfn` is one of the run's frames.
    #[must_use]
    pub const fn contains(self, gfn: Gfn) -> bool {
        gfn.0 >= self.first.0 && gfn.0 - self.first.0 < self.count
    }
}

/// Joins frames in ascending order into runs. Frames out of order start a new run.
pub fn runs(gfns: impl IntoIterator<Item = Gfn>) -> impl Iterator<Item = PageRun> {
    let mut gfns = gfns.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = gfns.next()?;
        let mut count = 1;
        while first.0.checked_add(count).is_some_and(|next| gfns.next_if_eq(&Gfn(next)).is_some()) {
            count += 1;
        }
        Some(PageRun { first, count })
    })
}

/// A set of frames below a fixed bound, made for small sets in a large memory.
///
/// Membership is one bit a frame. The members are also listed in the order in which they came, as
/// long as there are no more than the set was made to list: iterating and clearing then cost as
/// much as there are members. As long as they come in ascending order, the list alone is kept: a
/// bit of a large memory is a miss of the caches, and those of a harvest come so. A larger set is
/// *dense*, and both walk the bits. All memory is taken when the set is made: an eighth of a byte a
/// frame, and eight bytes a listed member.
#[derive(Clone)]
pub struct PageSet {
    words: Box<[u64]>,
    list: Vec<Gfn>,
    list_max: usize,
    frames: u64,
    len: u64,
    /// Some members were taken by walking the bits, so the list no longer tells.
    unlisted: bool,
    /// The list ascends and has all members, and no bit is set.
    unmarked: bool,
}

impl PageSet {
    /// An empty set for the frames below `frames`, which lists up to `list_max` members.
    ///
    /// # Panics
    /// When `frames / 64` does not fit in `usize`, which on 64-bit hosts is never.
    #[must_use]
    pub fn new(frames: u64, list_max: usize) -> Self {
        let words = usize::try_from(frames.div_ceil(64)).expect("a set of frames fits in the address space");
        Self {
            words: vec![0; words].into_boxed_slice(),
            list: Vec::with_capacity(list_max),
            list_max,
            frames,
            len: 0,
            unlisted: false,
            unmarked: true,
        }
    }

    /// Sets the bits of the members.
    fn mark(&mut self) {
        for gfn in &self.list {
            let (word, bit) = Self::place(*gfn);
            if let Some(word) = self.words.get_mut(word) {
                *word |= bit;
            }
        }
        self.unmarked = false;
    }

    /// Adds `gfn`. Returns whether it was new, or `None` where it lies at or above the bound.
    pub fn insert(&mut self, gfn: Gfn) -> Option<bool> {
        if gfn.0 >= self.frames {
            return None;
        }
        if self.unmarked {
            match self.list.last() {
                Some(last) if *last == gfn => return Some(false),
                last if last.is_none_or(|last| *last < gfn) && self.list.len() < self.list_max => {
                    self.list.push(gfn);
                    self.len += 1;
                    return Some(true);
                }
                _ => self.mark(),
            }
        }
        let (word, bit) = Self::place(gfn);
        let word = self.words.get_mut(word)?;
        if *word & bit != 0 {
            return Some(false);
        }
        *word |= bit;
        self.len += 1;
        if self.list.len() < self.list_max && !self.unlisted {
            self.list.push(gfn);
        }
        Some(true)
    }

    /// Whether `gfn` is a member.
    #[must_use]
    pub fn contains(&self, gfn: Gfn) -> bool {
        if self.unmarked {
            return self.list.binary_search(&gfn).is_ok();
        }
        let (word, bit) = Self::place(gfn);
        gfn.0 < self.frames && self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// How many members there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no member.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there are more members than the set lists.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.unlisted || self.len > self.list.len() as u64
    }

    /// The bound: every member is below it.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// The members: in the order in which they came, or ascending where the set is dense.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        let (listed, words) = if self.is_dense() { (&[][..], &self.words[..]) } else { (&self.list[..], &[][..]) };
        listed.iter().copied().chain(set_bits(words))
    }

    /// Removes every member.
    pub fn clear(&mut self) {
        if self.is_dense() {
            self.words.fill(0);
        } else if !self.unmarked {
            for gfn in &self.list {
                let (word, _) = Self::place(*gfn);
                if let Some(word) = self.words.get_mut(word) {
                    *word = 0;
                }
            }
        }
        self.list.clear();
        self.len = 0;
        self.unlisted = false;
        self.unmarked = true;
    }

    /// Adds every frame of `run` that lies below the bound.
    pub fn insert_run(&mut self, run: PageRun) {
        for gfn in run.first.0..run.first.0.saturating_add(run.count).min(self.frames) {
            self.insert(Gfn(gfn));
        }
    }

    /// Moves up to `count` members into `out`: in the order in which they came, or the lowest where
    /// the set is dense.
    pub fn take(&mut self, count: usize, out: &mut Vec<Gfn>) {
        if count as u64 >= self.len {
            out.extend(self.iter());
            self.clear();
            return;
        }
        let dense = self.is_dense();
        let begin = out.len();
        out.extend(self.iter().take(count));
        for gfn in out.iter().skip(begin).filter(|_| !self.unmarked) {
            let (word, bit) = Self::place(*gfn);
            if let Some(word) = self.words.get_mut(word) {
                *word &= !bit;
            }
        }
        self.len -= count as u64;
        if dense {
            self.unlisted = true;
            self.list.clear();
        } else {
            self.list.drain(..count);
        }
    }

    fn place(gfn: Gfn) -> (usize, u64) {
        (usize::try_from(gfn.0 / 64).unwrap_or(usize::MAX), 1 << (gfn.0 % 64))
    }
}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageSet").field("len", &self.len).field("frames", &self.frames).field("dense", &self.is_dense()).finish()
    }
}

/// The numbers of the bits that are set, in ascending order: bit 0 of the first word is frame 0.
pub fn set_bits(words: &[u64]) -> impl Iterator<Item = Gfn> + '_ {
    words.iter().zip(0u64..).filter(|(word, _)| **word != 0).flat_map(|(word, index)| {
        let mut rest = *word;
        std::iter::from_fn(move || {
            let bit = rest.trailing_zeros();
            (rest != 0).then(|| {
                rest &= rest - 1;
                Gfn(index * 64 + u64::from(bit))
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_join_neighbours_only() {
        let frames = [1, 2, 3, 7, 9, 10, u64::MAX].map(Gfn);
        let found: Vec<_> = runs(frames).map(|run| (run.first.0, run.count)).collect();
        assert_eq!(found, [(1, 3), (7, 1), (9, 2), (u64::MAX, 1)]);
    }

    #[test]
    fn a_frame_at_the_bound_is_refused() {
        let mut set = PageSet::new(100, 4);
        assert_eq!(set.insert(Gfn(99)), Some(true));
        assert_eq!(set.insert(Gfn(100)), None);
        assert_eq!(set.insert(Gfn(u64::MAX)), None);
        assert!(!set.contains(Gfn(100)));
        assert_eq!(set.len(), 1);
    }

    proptest! {
        #[test]
        fn page_set_is_a_set(rounds in prop::collection::vec(prop::collection::vec(0u64..300, 0..80), 1..5), list_max in 0usize..64) {
            let mut set = PageSet::new(300, list_max);
            for mut round in rounds {
                // Ascending, as harvests are, and then perhaps not any more.
                let ascending = round.first().map_or(0, |frame| usize::try_from(*frame).unwrap()).min(round.len());
                round[..ascending].sort_unstable();
                let mut model = BTreeSet::new();
                for frame in round {
                    prop_assert_eq!(set.insert(Gfn(frame)), Some(model.insert(Gfn(frame))));
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                prop_assert_eq!(set.is_dense(), model.len() > list_max);
                prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), model.clone());
                prop_assert_eq!(set.iter().count(), model.len());
                prop_assert!((0..300).all(|frame| set.contains(Gfn(frame)) == model.contains(&Gfn(frame))));
                let mut taken = Vec::new();
                while taken.len() < model.len() / 2 {
                    set.take(7, &mut taken);
                    prop_assert_eq!(set.len() + taken.len() as u64, model.len() as u64);
                    for extra in 290..293 {
                        let new = !set.contains(Gfn(extra)) && model.contains(&Gfn(extra)) && taken.contains(&Gfn(extra));
                        if new {
                            set.insert(Gfn(extra));
                            taken.retain(|gfn| *gfn != Gfn(extra));
                        }
                    }
                    let left: BTreeSet<_> = set.iter().collect();
                    prop_assert_eq!(left.len() as u64, set.len());
                    prop_assert!(taken.iter().all(|gfn| !left.contains(gfn)));
                }
                prop_assert_eq!(taken.iter().copied().chain(set.iter()).collect::<BTreeSet<_>>(), model);
                set.clear();
                prop_assert!(set.is_empty() && set.iter().next().is_none());
                prop_assert!((0..300).all(|frame| !set.contains(Gfn(frame))));
            }
        }
    }
}
