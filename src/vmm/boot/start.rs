//! A kernel in a machine: whether it fits, and its first instruction.

use kvm_ioctls::VcpuFd;

use super::acpi::vcpus_checked;
use super::error::LinuxError;
use super::image::Boot;
use super::load::{extent, load};
use super::registers;
use crate::memory::GuestMemory;
use crate::page::PageRun;
use crate::vmm::devices::check_disks;
use crate::vmm::error::{VmmError, kvm};

impl Boot {
    /// Checks, as far as the files tell, that the guest fits a machine with memory in `regions` and
    /// so many vCPUs.
    ///
    /// # Errors
    /// [`LinuxError::Vcpus`], [`LinuxError::Disk`], [`LinuxError::TooLittleMemory`],
    /// [`LinuxError::InitrdTooLarge`].
    pub fn check(&self, regions: &[PageRun], vcpus: u32) -> Result<(), LinuxError> {
        vcpus_checked(vcpus)?;
        check_disks(&self.disks)?;
        let (low_end, memory_bytes) = extent(regions);
        self.check_fit(low_end, memory_bytes)
    }

    /// Puts the guest into zeroed `memory`, and the vCPUs to where firmware leaves them: the first
    /// at the kernel's entry, the others waiting for it. `devices` is how ACPI's tables describe
    /// them.
    pub(in crate::vmm) fn start(
        &self,
        memory: &GuestMemory,
        regions: &[PageRun],
        vcpus: &[VcpuFd],
        devices: &[u8],
    ) -> Result<(), VmmError> {
        let count = vcpus_checked(u32::try_from(vcpus.len()).unwrap_or(u32::MAX))?;
        let entry = load(self, memory.ram(), regions, count, devices)?;
        for vcpu in vcpus {
            registers::set_boot_msrs(vcpu)?;
            let lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
            vcpu.set_lapic(&registers::initial_lapic(lapic)).map_err(kvm("KVM_SET_LAPIC"))?;
        }
        let Some(first) = vcpus.first() else { return Ok(()) };
        let sregs = first.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
        first.set_sregs(&registers::boot_sregs(sregs)).map_err(kvm("KVM_SET_SREGS"))?;
        first.set_regs(&registers::boot_regs(entry)).map_err(kvm("KVM_SET_REGS"))
    }
}
