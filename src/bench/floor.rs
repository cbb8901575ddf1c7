//! What stands in a tracker's place where floors are measured: nothing, or a copy as plain as can
//! be.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use memmap2::{Advice, MmapMut};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::epoch::{Collected, Tracker, TrackerError};
use crate::lock::lock;
use crate::memory::GuestMemory;
use crate::page::{Gfn, PAGE_SIZE, PageSet};
use crate::parked::Parked;

/// Times of copies, in microseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies(Arc<Mutex<Vec<f64>>>);

impl Copies {
    /// Hands over the times since the last time.
    pub(super) fn take(&self) -> Vec<f64> {
        std::mem::take(&mut lock(&self.0))
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

    fn collect(&mut self, _parked: &Parked<'_>, _into: &mut PageSet) -> Result<Collected, TrackerError> {
        Ok(Collected::default())
    }

    fn rearm(&mut self, _parked: &Parked<'_>) -> Result<(), TrackerError> {
        Ok(())
    }
}

/// Copies, for the time that takes, what the tracker inside lists, and leaves it to the engine as
/// well: the floor of a pause, in the very place where the engine's own copy has it.
#[derive(Debug)]
pub(super) struct PlainCopy {
    inner: Box<dyn Tracker>,
    memory: GuestMemory,
    /// Page-aligned and touched.
    staging: MmapMut,
    copies: Copies,
}

impl PlainCopy {
    /// For epochs of up to `pages` pages.
    ///
    /// # Errors
    /// The error of `mmap`.
    pub(super) fn new(inner: Box<dyn Tracker>, memory: GuestMemory, pages: usize, copies: Copies) -> std::io::Result<Self> {
        let mut staging = MmapMut::map_anon(pages.max(1) * PAGE_SIZE)?;
        // Only a hint: kernels without transparent huge pages refuse it.
        let _ = staging.advise(Advice::HugePage);
        staging.fill(1);
        Ok(Self { inner, memory, staging, copies })
    }

    /// The time of copying `listed`, in microseconds.
    fn copy(&mut self, listed: &PageSet) -> f64 {
        let page = |gfn: Gfn| self.memory.ram().get_slice(GuestAddress(gfn.address()?), PAGE_SIZE).ok();
        let pages: Vec<_> = listed.iter().filter_map(page).collect();
        let start = Instant::now();
        for (from, to) in pages.iter().zip(self.staging.chunks_exact_mut(PAGE_SIZE)) {
            from.copy_to(to);
        }
        start.elapsed().as_secs_f64() * 1e6
    }
}

impl Tracker for PlainCopy {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn bound(&self) -> Option<u64> {
        self.inner.bound()
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        let collected = self.inner.collect(parked, into)?;
        let us = self.copy(into);
        lock(&self.copies.0).push(us);
        Ok(collected)
    }

    fn rolled_back(&mut self, parked: &Parked<'_>) {
        self.inner.rolled_back(parked);
    }

    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackerError> {
        self.inner.rearm(parked)
    }
}
