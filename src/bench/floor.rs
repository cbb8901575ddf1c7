//! What takes a tracker's place in the machines without one: nothing, or a copy as plain as can be of pages that are known beforehand.

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

/// Lists nothing.
#[derive(Debug)]
pub(super) struct Untracked;

impl Tracker for Untracked {
    fn name(&self) -> &'static str {
        "none"
    }

    fn bound(&self) -> Option<u64> {
        None
    }

    fn collect(&mut self, _parked: &Parked<'_>, _into: &mut PageSet) -> Result<Collected, TrackError> {
        Ok(Collected::default())
    }

    fn rearm(&mut self, _parked: &Parked<'_>) -> Result<(), TrackError> {
        Ok(())
    }
}

/// Lists nothing, and at each cut copies the pages that the guest has just written, for the time that takes: the floor of a pause.
#[derive(Debug)]
pub(super) struct PlainCopy {
    memory: GuestMemory,
    image: touch::Image,
    /// Passes that the guest has made; none before the base.
    passes: Option<u64>,
    /// Page-aligned and touched.
    staging: MmapMut,
    copies: Copies,
}

impl PlainCopy {
    /// For the guest `image` with a cut after every pass.
    ///
    /// # Errors
    /// The error of `mmap`.
    pub(super) fn new(memory: GuestMemory, image: touch::Image, copies: Copies) -> std::io::Result<Self> {
        let mut staging = MmapMut::map_anon(image.pass(0).len().max(1) * PAGE_SIZE)?;
        // Only a hint: kernels without transparent huge pages refuse it.
        let _ = staging.advise(Advice::HugePage);
        staging.fill(1);
        Ok(Self { memory, image, passes: None, staging, copies })
    }

    /// The time of copying the pages of the newest pass, in microseconds.
    fn copy(&mut self, newest: &[Gfn]) -> f64 {
        let page = |gfn: &Gfn| self.memory.ram().get_slice(GuestAddress(gfn.address()?), PAGE_SIZE).ok();
        let pages: Vec<_> = newest.iter().filter_map(page).collect();
        // A write fault looks each page up in the host's tables shortly before its copy. Here there are none: the first words are read instead.
        for from in &pages {
            from.copy_to(&mut [0u8; 8]);
        }
        let start = Instant::now();
        for (from, to) in pages.iter().zip(self.staging.chunks_exact_mut(PAGE_SIZE)) {
            from.copy_to(to);
        }
        start.elapsed().as_secs_f64() * 1e6
    }
}

impl Tracker for PlainCopy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn bound(&self) -> Option<u64> {
        None
    }

    fn collect(&mut self, _parked: &Parked<'_>, _into: &mut PageSet) -> Result<Collected, TrackError> {
        let passes = self.passes.map_or(0, |passes| passes + 1);
        self.passes = Some(passes);
        if let Some(newest) = passes.checked_sub(1) {
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
