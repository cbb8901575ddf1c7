//! What a machine is.

use serde::{Deserialize, Serialize};

use super::devices::{DiskBase, device_regions};
use super::error::VmmError;
use super::guests::GuestSpec;
use crate::page::{Gfn, PAGE_SIZE_U64, PageRun};

/// Where memory below 4 GiB ends, if there is more: behind it are the interrupt controllers and
/// KVM's own slots.
const LOW_MEMORY_END: u64 = 3 << 30;
const HIGH_MEMORY_BEGIN: u64 = 4 << 30;

/// What a machine is: enough to build it again for a restore. Stored in a chain's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Bytes of memory, in whole pages.
    pub memory_bytes: u64,
    /// vCPUs, at least 1.
    pub vcpus: u32,
    /// What runs on it.
    pub guest: GuestSpec,
}

impl MachineSpec {
    /// Whether the guest fits the machine. No KVM is asked.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), VmmError> {
        self.guest.fits(self.memory_bytes, self.vcpus)
    }

    /// The disks of a Linux guest.
    #[must_use]
    pub fn disks(&self) -> &[DiskBase] {
        self.guest.disks()
    }

    /// All frames that a chain of the machine is about: the guest's memory, and behind it that of
    /// its devices.
    #[must_use]
    pub fn regions(&self) -> Vec<PageRun> {
        let mut regions = memory_regions(self.memory_bytes);
        regions.extend(self.device_regions());
        regions
    }

    /// The last of them, which are memory of devices.
    #[must_use]
    pub fn device_regions(&self) -> Vec<PageRun> {
        device_regions(&memory_regions(self.memory_bytes), self.disks())
    }
}

/// Where a machine with so much memory has it: from 0 on, with a hole from 3 to 4 GiB.
#[must_use]
pub fn memory_regions(memory_bytes: u64) -> Vec<PageRun> {
    let run = |first, bytes| PageRun { first: Gfn::containing(first), count: bytes / PAGE_SIZE_U64 };
    let low = memory_bytes.min(LOW_MEMORY_END);
    let mut regions = vec![run(0, low)];
    if memory_bytes > low {
        regions.push(run(HIGH_MEMORY_BEGIN, memory_bytes - low));
    }
    regions
}
