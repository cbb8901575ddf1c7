//! The VMM's own writes to guest memory. KVM's log never shows them.
//!
//! [`WriteLog`] is `vm-memory`'s `Bitmap` of a region: every write through `vm-memory` marks it, so that no device author can forget to. All regions feed
//! one [`WrittenPages`], which lists the first pages up to the VMM's share of the budget and has a bit for each page besides: small sets are
//! taken from the list, large ones (a loader's) by walking the bits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use crate::kvm::park::Parked;
use crate::page::{Gfn, PAGE_SIZE};

/// The pages that the VMM wrote since they were last taken.
#[derive(Debug)]
pub struct WrittenPages {
    bits: Box<[AtomicU64]>,
    /// Frame numbers plus one; 0 is a place whose writer has not come to store it.
    list: Box<[AtomicU64]>,
    /// Pages newly written since the last take; may be above the list's length.
    count: AtomicUsize,
}

impl WrittenPages {
    /// For frames below `frames`, listing up to `share` pages.
    pub(super) fn new(frames: u64, share: usize) -> Arc<Self> {
        let words = usize::try_from(frames.div_ceil(64)).unwrap_or(usize::MAX);
        Arc::new(Self {
            bits: (0..words).map(|_| AtomicU64::new(0)).collect(),
            list: (0..share).map(|_| AtomicU64::new(0)).collect(),
            count: AtomicUsize::new(0),
        })
    }

    /// Pages written since they were last taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records a write to `gfn`. Frames beyond the memory are ignored: there is nothing to save.
    pub fn mark(&self, gfn: Gfn) {
        let Some(word) = usize::try_from(gfn.0 / 64).ok().and_then(|word| self.bits.get(word)) else { return };
        let bit = 1 << (gfn.0 % 64);
        if word.load(Ordering::Relaxed) & bit != 0 || word.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return;
        }
        let place = self.count.fetch_add(1, Ordering::AcqRel);
        if let Some(entry) = self.list.get(place) {
            entry.store(gfn.0 + 1, Ordering::Release);
        }
    }

    /// Whether a write to `gfn` is recorded.
    #[must_use]
    pub fn contains(&self, gfn: Gfn) -> bool {
        usize::try_from(gfn.0 / 64)
            .ok()
            .and_then(|word| self.bits.get(word))
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (gfn.0 % 64) & 1 != 0)
    }

    /// Takes all recorded pages and forgets them. Devices are quiesced as the vCPUs are parked: nobody writes meanwhile.
    pub fn take(&self, parked: &Parked<'_>, mut each: impl FnMut(Gfn)) {
        let _ = parked;
        let count = self.count.swap(0, Ordering::AcqRel);
        if count == 0 {
            return;
        }
        let listed = self.list.get(..count).is_some_and(|list| list.iter().all(|entry| entry.load(Ordering::Acquire) != 0));
        if listed {
            for entry in self.list.iter().take(count) {
                let gfn = Gfn(entry.swap(0, Ordering::AcqRel) - 1);
                if let Some(word) = usize::try_from(gfn.0 / 64).ok().and_then(|word| self.bits.get(word)) {
                    word.fetch_and(!(1 << (gfn.0 % 64)), Ordering::AcqRel);
                }
                each(gfn);
            }
        } else {
            for entry in &self.list {
                entry.store(0, Ordering::Release);
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
            self.pages.mark(Gfn(gfn));
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

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn takes_what_was_written_once(rounds in prop::collection::vec(prop::collection::vec((0usize..200 * PAGE_SIZE, 0usize..3 * PAGE_SIZE), 0..12), 1..5), share in 0usize..20) {
            let pages = WrittenPages::new(256, share);
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
}
