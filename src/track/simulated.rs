//! A tracker without KVM, for tests: memory whose pages are protected and logged as a dirty ring
//! does it, faults included.

use std::sync::{Arc, Mutex, MutexGuard};

use super::insert;
use crate::epoch::{Collected, Tracker, TrackerError};
use crate::kvm::ring::Lost;
use crate::lock::lock;
use crate::page::{Gfn, PageSet};
use crate::parked::Parked;

/// What the simulated kernel knows.
#[derive(Debug)]
struct Kernel {
    /// Whether a write to the page goes unlogged, because it was logged already.
    writable: Vec<bool>,
    ring: Vec<Gfn>,
    entries: usize,
    reserve: usize,
    /// The next reset is cut short: it forgets to protect up to so many pages.
    short_reset: usize,
    /// The ring ran over its end since the last reset.
    overflowed: bool,
}

/// The guest's side of a [`SimulatedTracker`]: what a test writes through.
#[derive(Clone, Debug)]
pub struct SimulatedMemory(Arc<Mutex<Kernel>>);

impl SimulatedMemory {
    /// Memory of `frames` pages with one ring of `entries`, whose last `reserve` are behind the
    /// soft limit.
    #[must_use]
    pub fn new(frames: usize, entries: usize, reserve: usize) -> Self {
        Self(Arc::new(Mutex::new(Kernel {
            writable: vec![false; frames],
            ring: Vec::with_capacity(entries),
            entries,
            reserve,
            short_reset: 0,
            overflowed: false,
        })))
    }

    /// A guest write to `gfn`. Returns whether the ring is full now, so that the vCPU leaves the
    /// guest. Frames beyond the memory are ignored.
    #[must_use = "a guest leaves when its ring is full"]
    pub fn write(&self, gfn: Gfn) -> bool {
        let mut kernel = self.kernel();
        let Some(writable) = usize::try_from(gfn.0).ok().and_then(|index| kernel.writable.get_mut(index)) else { return false };
        if !std::mem::replace(writable, true) {
            if kernel.ring.len() == kernel.entries {
                // The kernel does not stop at the end; it goes round and overwrites.
                kernel.ring.remove(0);
                kernel.overflowed = true;
            }
            kernel.ring.push(gfn);
        }
        kernel.ring.len() + kernel.reserve >= kernel.entries
    }

    /// Cuts the next reset short, as a signal does: the last `pages` of its batch are never
    /// protected again.
    pub fn cut_next_reset_short(&self, pages: usize) {
        self.kernel().short_reset = pages;
    }

    /// Which pages are written unlogged, because they were logged already.
    #[must_use]
    pub fn writable(&self) -> Vec<bool> {
        self.kernel().writable.clone()
    }

    /// Makes those pages writable and no others.
    pub fn set_writable(&self, writable: Vec<bool>) {
        self.kernel().writable = writable;
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        lock(&self.0)
    }
}

/// Tracks a [`SimulatedMemory`].
#[derive(Debug)]
pub struct SimulatedTracker(SimulatedMemory);

impl SimulatedTracker {
    /// Tracks `memory`.
    #[must_use]
    pub const fn new(memory: SimulatedMemory) -> Self {
        Self(memory)
    }
}

impl Tracker for SimulatedTracker {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn bound(&self) -> Option<u64> {
        Some(self.0.kernel().entries as u64)
    }

    fn collect(&mut self, _parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        self.0.kernel().take(usize::MAX, into)
    }

    fn listed(&self) -> Option<u64> {
        Some(self.0.kernel().ring.len() as u64)
    }

    fn round(&mut self, most: usize, into: &mut PageSet) -> Result<Option<Collected>, TrackerError> {
        self.0.kernel().take(most, into).map(Some)
    }

    fn wrote_more(&self, _parked: &Parked<'_>) -> Option<bool> {
        Some(!self.0.kernel().ring.is_empty())
    }

    fn rearm(&mut self, _parked: &Parked<'_>) -> Result<(), TrackerError> {
        let mut kernel = self.0.kernel();
        kernel.ring.clear();
        kernel.writable.fill(false);
        Ok(())
    }
}

impl Kernel {
    /// A harvest of up to `most` entries, and its reset.
    fn take(&mut self, most: usize, into: &mut PageSet) -> Result<Collected, TrackerError> {
        let kernel = self;
        let full = kernel.ring.len() == kernel.entries;
        let rest = kernel.ring.split_off(most.min(kernel.ring.len()));
        let ring = std::mem::replace(&mut kernel.ring, rest);
        let entries = ring.len() as u64;
        let overflowed = std::mem::take(&mut kernel.overflowed);
        let mut lost =
            (overflowed || full).then(|| Lost::Overflow { vcpu: 0, entries: u32::try_from(kernel.entries).unwrap_or(u32::MAX) });
        let forgotten = std::mem::take(&mut kernel.short_reset).min(ring.len());
        if forgotten > 0 {
            lost = Some(Lost::Reset { harvested: entries, reset: entries - forgotten as u64 });
        }
        let protect = ring.len() - forgotten;
        for (place, gfn) in ring.iter().enumerate() {
            insert(into, Some(*gfn), 0, gfn.0)?;
            let index = usize::try_from(gfn.0).ok().filter(|_| place < protect);
            if let Some(writable) = index.and_then(|index| kernel.writable.get_mut(index)) {
                *writable = false;
            }
        }
        Ok(Collected { entries, lost: lost.map(Into::into), ..Collected::default() })
    }
}
