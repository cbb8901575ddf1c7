//! The tracker on the older bitmap interface.

use std::time::{Duration, Instant};

use super::{TrackError, insert};
use crate::epoch::{Collected, Tracker, TrackerError};
use crate::kvm::VmHandle;
use crate::kvm::bitmap::{SlotBitmap, enable_manual_protect};
use crate::memory::GuestMemory;
use crate::page::{PageSet, set_bits};
use crate::parked::Parked;

/// Tracks by `KVM_GET_DIRTY_LOG`, with or without `KVM_CLEAR_DIRTY_LOG`. Nothing leaves the guest
/// when many pages are dirty, so only an interval bounds an epoch.
#[derive(Debug)]
pub struct BitmapTracker {
    vm: VmHandle,
    memory: GuestMemory,
    slots: Vec<SlotBitmap>,
    manual_protect: bool,
}

impl BitmapTracker {
    /// For a VM whose memory is or will be registered with logging on. `manual_protect` reads and
    /// protects in two steps.
    ///
    /// # Errors
    /// [`TrackError::Prepare`] where the kernel has no manual protect.
    pub fn new(vm: VmHandle, memory: GuestMemory, manual_protect: bool) -> Result<Self, TrackError> {
        if manual_protect {
            enable_manual_protect(&vm).map_err(TrackError::Prepare)?;
        }
        let slots = memory.slots().iter().copied().map(SlotBitmap::new).collect();
        Ok(Self { vm, memory, slots, manual_protect })
    }
}

impl Tracker for BitmapTracker {
    fn name(&self) -> &'static str {
        "bitmap"
    }

    fn bound(&self) -> Option<u64> {
        None
    }

    fn collect(&mut self, _parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        let mut collected = Collected::default();
        for bitmap in &mut self.slots {
            let start = Instant::now();
            let slot = *bitmap.slot();
            for page in set_bits(bitmap.get(&self.vm)?) {
                insert(into, slot.frame(page.0), slot.id.into(), page.0)?;
                collected.entries += 1;
            }
            collected.harvest += start.elapsed();
            let mut reset = Duration::ZERO;
            if self.manual_protect {
                let start = Instant::now();
                bitmap.clear(&self.vm)?;
                reset = start.elapsed();
            }
            collected.reset += reset;
        }
        Ok(collected)
    }

    fn rearm(&mut self, _parked: &Parked<'_>) -> Result<(), TrackerError> {
        self.memory.register(&self.vm, false)?;
        self.memory.register(&self.vm, true)?;
        Ok(())
    }
}
