//! A stock Linux kernel as the guest: what of it is in a chain's description.

use serde::{Deserialize, Serialize};

use crate::vmm::boot::{Boot, CpuLevel, FileId, LinuxError, vcpus_checked};
use crate::vmm::devices::{DeviceName, DiskBase, check_disks};

/// A Linux guest, as a chain's description has it: what a machine needs that goes on with it, and
/// what it was started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The devices.
    pub devices: Vec<DeviceName>,
    /// The kernel's file.
    pub kernel: FileId,
    /// The initrd's file, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<FileId>,
    /// The kernel's command line.
    pub command_line: String,
    /// What it was told of the processor.
    #[serde(default, skip_serializing_if = "CpuLevel::is_host")]
    pub cpu: CpuLevel,
    /// The disks, as `vda`, `vdb` and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskBase>,
}

impl Options {
    /// The guest that `boot` starts.
    #[must_use]
    pub fn of(boot: &Boot) -> Self {
        Self {
            devices: DeviceName::all().collect(),
            kernel: boot.kernel.id(),
            initrd: boot.initrd.as_ref().map(|initrd| initrd.id()),
            command_line: boot.command_line.clone(),
            cpu: boot.cpu,
            disks: boot.disks.clone(),
        }
    }

    /// Whether a machine of this program can be the one.
    pub(super) fn check(&self, vcpus: u32) -> Result<(), LinuxError> {
        vcpus_checked(vcpus)?;
        check_disks(&self.disks)?;
        match DeviceName::all().find(|device| !self.devices.contains(device)) {
            Some(device) => Err(LinuxError::NoDevice { device }),
            None => Ok(()),
        }
    }
}
