//! A stock Linux kernel as the guest: its files and what of them is in a chain's identity, how it is put into memory and started, and the devices that it needs to get to
//! a shell on the serial console.

mod acpi;
mod console;
mod cpu;
mod devices;
mod disk;
mod disk_image;
mod error;
mod generation;
mod image;
mod layout;
mod level;
mod line;
mod load;
mod power;
mod random;
mod rtc;
mod serial;
mod state;
mod virtio;

use std::ops::Range;

use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

pub use console::Console;
pub(super) use cpu::Processors;
pub use devices::{DeviceName, Devices};
pub(super) use devices::{Parts, Quiet, Wish};
pub use disk::DiskBase;
pub(super) use disk::device_regions;
pub use disk_image::{DiskImageError, write_disk_image};
pub use error::LinuxError;
pub use image::{Boot, FileId};
pub use level::CpuLevel;
pub use power::GuestEnd;
pub use virtio::VirtioError;

use super::error::{VmmError, kvm};
use crate::memory::GuestMemory;
use crate::page::{PAGE_SIZE_U64, PageRun};

/// Local APICs have numbers of a byte in the tables, and the last is everybody's.
const VCPUS_MAX: u8 = 254;

/// A Linux guest, as a chain's identity has it: what a machine needs that goes on with it, and what it was started from.
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
    /// Whether a machine of this program can be the one.
    pub(super) fn check(&self, vcpus: u32) -> Result<(), LinuxError> {
        vcpus_checked(vcpus).map(drop)?;
        check_disks(&self.disks)?;
        match DeviceName::ALL.iter().find(|device| !self.devices.contains(device)) {
            Some(device) => Err(LinuxError::NoDevice { device: *device }),
            None => Ok(()),
        }
    }
}

/// The guest physical addresses of a run.
const fn span(run: &PageRun) -> Range<u64> {
    let first = run.first.0 * PAGE_SIZE_U64;
    first..first + run.count * PAGE_SIZE_U64
}

/// Where the first region ends, which begins at 0, and the bytes of all.
fn extent(regions: &[PageRun]) -> (u64, u64) {
    (regions.first().map_or(0, |run| span(run).end), regions.iter().map(|run| run.count * PAGE_SIZE_U64).sum())
}

fn check_disks(disks: &[DiskBase]) -> Result<(), LinuxError> {
    // The first virtio device is no disk.
    let most = layout::VIRTIO_MAX - 1;
    if disks.len() > most {
        return Err(LinuxError::Disks { found: disks.len(), most });
    }
    disks.iter().try_for_each(DiskBase::check)
}

fn vcpus_checked(vcpus: u32) -> Result<u8, LinuxError> {
    let refused = LinuxError::Vcpus { found: vcpus, most: VCPUS_MAX.into() };
    u8::try_from(vcpus).ok().filter(|vcpus| (1..=VCPUS_MAX).contains(vcpus)).ok_or(refused)
}

impl Boot {
    /// The guest, for a machine's description.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            devices: DeviceName::ALL.to_vec(),
            kernel: self.kernel.id(),
            initrd: self.initrd.as_ref().map(image::Loaded::id),
            command_line: self.command_line.clone(),
            cpu: self.cpu,
            disks: self.disks.clone(),
        }
    }

    /// Checks, as far as the files tell, that the guest fits a machine with memory in `regions` and so many vCPUs.
    ///
    /// # Errors
    /// [`LinuxError::Vcpus`], [`LinuxError::TooLittleMemory`], [`LinuxError::InitrdTooLarge`].
    pub fn check(&self, regions: &[PageRun], vcpus: u32) -> Result<(), LinuxError> {
        vcpus_checked(vcpus)?;
        check_disks(&self.disks)?;
        let (low_end, memory_bytes) = extent(regions);
        self.check_fit(low_end, memory_bytes)
    }

    /// Puts the guest into zeroed `memory`, and the vCPUs to where firmware leaves them: the first at the kernel's entry, the others waiting for it.
    pub(super) fn start(&self, memory: &GuestMemory, regions: &[PageRun], vcpus: &[VcpuFd]) -> Result<(), VmmError> {
        let count = vcpus_checked(u32::try_from(vcpus.len()).unwrap_or(u32::MAX))?;
        let entry = self.load(memory.ram(), regions, count)?;
        for vcpu in vcpus {
            cpu::set_boot_msrs(vcpu)?;
            let lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
            vcpu.set_lapic(&cpu::initial_lapic(lapic)).map_err(kvm("KVM_SET_LAPIC"))?;
        }
        let Some(first) = vcpus.first() else { return Ok(()) };
        let sregs = first.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
        first.set_sregs(&cpu::boot_sregs(sregs)).map_err(kvm("KVM_SET_SREGS"))?;
        first.set_regs(&cpu::boot_regs(entry)).map_err(kvm("KVM_SET_REGS"))
    }
}
