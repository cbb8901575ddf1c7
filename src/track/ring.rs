//! The tracker on dirty rings.

use std::time::Instant;

use super::{Collected, TrackError, Tracker, insert};
use crate::kvm::VmHandle;
use crate::kvm::park::Parked;
use crate::kvm::ring::VmRings;
use crate::memory::GuestMemory;
use crate::page::PageSet;

/// Tracks by the dirty rings of all vCPUs.
#[derive(Debug)]
pub struct RingTracker {
    vm: VmHandle,
    memory: GuestMemory,
    rings: VmRings,
}

impl RingTracker {
    /// For a VM whose vCPUs are all mapped in `rings` and whose memory was registered with logging on.
    #[must_use]
    pub const fn new(vm: VmHandle, memory: GuestMemory, rings: VmRings) -> Self {
        Self { vm, memory, rings }
    }
}

impl Tracker for RingTracker {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn bound(&self) -> Option<u64> {
        Some(self.rings.bound())
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackError> {
        let start = Instant::now();
        let slots = self.memory.slots();
        let harvest = self.rings.harvest();
        let pages = harvest.while_parked(parked);
        let entries = pages.len() as u64;
        let inserted = pages.iter().try_for_each(|page| {
            // Slot ids are the indices of `slots`, in address space 0; anything else is not ours.
            let slot = usize::try_from(page.slot).ok().and_then(|slot| slots.get(slot));
            insert(into, slot.and_then(|slot| slot.frame(page.offset)), page.slot, page.offset)
        });
        let harvested = Instant::now();
        let lost = harvest.reset()?.lost;
        inserted?;
        Ok(Collected { entries, lost, harvest: harvested - start, reset: harvested.elapsed() })
    }

    fn rearm(&mut self, _parked: &Parked<'_>) -> Result<(), TrackError> {
        // The rings are emptied first: after a change of memslots their entries might mean other pages. What this reset may lose, the
        // protection of everything below makes good.
        let _ = self.rings.harvest().reset()?;
        self.memory.register(&self.vm, false)?;
        self.memory.register(&self.vm, true)?;
        Ok(())
    }
}
