//! The floors: a machine that nothing tracks, whose pages are known beforehand and copied as plainly as can be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use memmap2::{Advice, MmapMut};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::kvm::park::Parked;
use crate::memory::GuestMemory;
use crate::page::{Gfn, PAGE_SIZE, PageSet};
use crate::track::{Collected, TrackError, Tracker};
use crate::vmm::touch;

/// Times of copies, in microseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies(Arc<Mutex<Vec<f64>>>);

impl Copies {
    /// Hands over the times since the last time.
    pub(super) fn take(&self) -> Vec<f64> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// In the place of a tracker: lists nothing, and at each cut copies the pages that the guest has just written, for the time that takes.
#[derive(Debug)]
pub(super) struct Floor {
    memory: GuestMemory,
    image: touch::Image,
    /// Passes from one cut to the next.
    passes: u64,
    /// Cuts, the base not counted.
    cuts: Option<u64>,
    /// Page-aligned and touched.
    staging: MmapMut,
    copies: Copies,
}

impl Floor {
    /// For the guest `image` with a cut every `passes` passes.
    ///
    /// # Errors
    /// The error of `mmap`.
    pub(super) fn new(memory: GuestMemory, image: touch::Image, passes: u64, copies: Copies) -> std::io::Result<Self> {
        let mut staging = MmapMut::map_anon(image.pass(0).len().max(1) * PAGE_SIZE)?;
        // Only a hint: kernels without transparent huge pages refuse it.
        let _ = staging.advise(Advice::HugePage);
        staging.fill(1);
        Ok(Self { memory, image, passes, cuts: None, staging, copies })
    }

    /// The time of copying the pages of the newest pass, in microseconds.
    fn copy(&mut self, newest: &[Gfn]) -> f64 {
        let page = |gfn: &Gfn| self.memory.ram().get_slice(GuestAddress(gfn.address()?), PAGE_SIZE).ok();
        let pages: Vec<_> = newest.iter().filter_map(page).collect();
        let start = Instant::now();
        for (from, to) in pages.iter().zip(self.staging.chunks_exact_mut(PAGE_SIZE)) {
            from.copy_to(to);
        }
        start.elapsed().as_secs_f64() * 1e6
    }
}

impl Tracker for Floor {
    fn name(&self) -> &'static str {
        "none"
    }

    fn bound(&self) -> Option<u64> {
        None
    }

    fn collect(&mut self, _parked: &Parked<'_>, _into: &mut PageSet) -> Result<Collected, TrackError> {
        let cuts = self.cuts.map_or(0, |cuts| cuts + 1);
        self.cuts = Some(cuts);
        if let Some(newest) = (cuts * self.passes).checked_sub(1) {
            let newest = self.image.pass(newest).to_vec();
            let us = self.copy(&newest);
            self.copies.0.lock().unwrap_or_else(PoisonError::into_inner).push(us);
        }
        Ok(Collected::default())
    }

    fn rearm(&mut self, _parked: &Parked<'_>) -> Result<(), TrackError> {
        Ok(())
    }
}
