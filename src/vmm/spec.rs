//! What a machine is.

use serde::{Deserialize, Serialize};

use super::devices::{DiskBase, check_virtio, device_regions, share_pages_min, share_pages_of_nets};
use super::error::VmmError;
use super::guests::GuestSpec;
use super::links::{NetSpec, check_nets};
use super::vsock::VsockSpec;
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
    /// Its network devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetSpec>,
    /// Its socket device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSpec>,
}

impl MachineSpec {
    /// Whether the guest fits the machine. No KVM is asked.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), VmmError> {
        self.guest.fits(self.memory_bytes, self.vcpus)?;
        self.check_nets()
    }

    /// Connects its network devices with other links, and its socket device with another socket.
    ///
    /// # Errors
    /// [`VmmError::Nets`], [`VmmError::NoVsock`]: it has not so many.
    pub(super) fn connect(&mut self, nets: &[NetSpec], vsock: Option<&VsockSpec>) -> Result<(), VmmError> {
        match (&mut self.vsock, vsock) {
            (Some(own), Some(other)) => *own = other.clone(),
            (None, Some(_)) => return Err(VmmError::NoVsock { guest: self.guest.to_string() }),
            (_, None) => {}
        }
        if nets.len() > self.nets.len() {
            return Err(VmmError::Nets { found: nets.len(), most: self.nets.len() });
        }
        for (own, other) in self.nets.iter_mut().zip(nets) {
            own.backend = other.backend.clone();
            own.mac = own.mac.or(other.mac);
        }
        Ok(())
    }

    /// Whether it can have its network devices.
    ///
    /// # Errors
    /// [`VmmError::Net`], [`VmmError::NoDriver`], [`VmmError::NeedsNet`], [`VmmError::NoVsock`],
    /// [`VmmError::Linux`] where there are too many devices.
    pub(super) fn check_nets(&self) -> Result<(), VmmError> {
        check_nets(&self.nets)?;
        if self.vsock.is_some() && !matches!(self.guest, GuestSpec::Linux(_)) {
            return Err(VmmError::NoVsock { guest: self.guest.to_string() });
        }
        let (found, (least, most)) = (self.nets.len(), self.guest.nets());
        match &self.guest {
            GuestSpec::Linux(_) => Ok(check_virtio(self.disks().len(), found + usize::from(self.vsock.is_some()))?),
            guest if found < least => Err(VmmError::NeedsNet { guest: guest.to_string() }),
            guest if found > most => Err(VmmError::NoDriver { guest: guest.to_string(), found }),
            _ => Ok(()),
        }
    }

    /// Pages that the machine's devices have to be able to write between two cuts.
    pub(super) fn share_pages_min(&self) -> u64 {
        match (&self.guest, self.nets.len()) {
            (GuestSpec::Linux(_), nets) => share_pages_min(self.disks().len(), nets + usize::from(self.vsock.is_some())),
            // It has no devices.
            (_, 0) => 0,
            (_, nets) => share_pages_of_nets(nets),
        }
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
