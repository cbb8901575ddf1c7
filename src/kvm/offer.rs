//! What this host can give to a guest, as far as a machine's state depends on it.

use std::path::Path;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

use super::host::{self, HostError};
use super::xsave::XSAVE_BYTES_MIN;

/// The deadline timer of the local APIC, in ECX of CPUID's leaf 1.
const TSC_DEADLINE: u32 = 1 << 24;

/// What CPUID says for a leaf and subleaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// The leaf.
    pub function: u32,
    /// The subleaf, 0 for leaves without.
    pub index: u32,
    /// The registers.
    pub eax: u32,
    /// See [`eax`](Self::eax).
    pub ebx: u32,
    /// See [`eax`](Self::eax).
    pub ecx: u32,
    /// See [`eax`](Self::eax).
    pub edx: u32,
}

impl From<&kvm_cpuid_entry2> for CpuidLeaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, .. } = *entry;
        Self { function, index, eax, ebx, ecx, edx }
    }
}

/// What this host can give to a guest: what `machine::fit` compares a captured machine with. As
/// JSON it can be kept, and compared with elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Offer {
    /// What the kernel's KVM can show to a guest (`KVM_GET_SUPPORTED_CPUID`), with the deadline
    /// timer where KVM has it, which is a capability of its own.
    pub cpuid: Vec<CpuidLeaf>,
    /// The model-specific registers that the kernel lists as state.
    pub msrs: Vec<u32>,
    /// Bytes of a vCPU's extended state; `None` on hosts without XSAVE.
    pub xsave_bytes: Option<usize>,
    /// Whether XCR0 is there.
    pub xcrs: bool,
    /// The frequency of a new vCPU's time stamp counter, in kHz.
    pub tsc_khz: Option<u32>,
    /// Whether it can be set to another one, in hardware (`KVM_CAP_TSC_CONTROL`).
    pub tsc_scaling: bool,
    /// Interrupt controllers in the kernel.
    pub irqchip: bool,
    /// An interval timer in the kernel.
    pub pit2: bool,
    /// kvmclock can be read and set.
    pub clock: bool,
    /// A guest can be told that it was paused.
    pub kvmclock_ctrl: bool,
    /// A dirty ring.
    pub ring: bool,
    /// vCPUs of a VM, at most.
    pub vcpus_max: u32,
}

impl Offer {
    /// Asks the device at `kvm_path`. Makes a VM with one vCPU and no memory, and drops it again:
    /// frequency and size of extended state are a vCPU's.
    ///
    /// # Errors
    /// As [`Host::probe`](host::Host::probe).
    pub fn read(kvm_path: &Path) -> Result<Self, HostError> {
        let kvm = host::open(kvm_path)?;
        let ioctl = |ioctl| move |error: kvm_ioctls::Error| HostError::Ioctl { ioctl, source: error.into() };
        let vm = kvm.create_vm().map_err(|error| HostError::CreateVm { path: kvm_path.to_owned(), source: error.into() })?;
        let vcpu = vm.create_vcpu(0).map_err(ioctl("KVM_CREATE_VCPU"))?;
        let xsave2 = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            cpuid: supported_cpuid(&kvm).map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?,
            msrs: kvm.get_msr_index_list().map_err(ioctl("KVM_GET_MSR_INDEX_LIST"))?.as_slice().to_vec(),
            xsave_bytes: kvm.check_extension(Cap::Xsave).then(|| xsave2.max(XSAVE_BYTES_MIN)),
            xcrs: kvm.check_extension(Cap::Xcrs),
            tsc_khz: vcpu.get_tsc_khz().ok(),
            tsc_scaling: vm.check_extension(Cap::TscControl),
            irqchip: vm.check_extension(Cap::Irqchip),
            pit2: vm.check_extension(Cap::Pit2),
            clock: vm.check_extension(Cap::AdjustClock),
            kvmclock_ctrl: vm.check_extension(Cap::KvmclockCtrl),
            ring: host::has_ring(&vm),
            vcpus_max: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
        })
    }
}

/// What `KVM_GET_SUPPORTED_CPUID` says, and the deadline timer where there is one.
fn supported_cpuid(kvm: &Kvm) -> Result<Vec<CpuidLeaf>, kvm_ioctls::Error> {
    let deadline = if kvm.check_extension(Cap::TscDeadlineTimer) { TSC_DEADLINE } else { 0 };
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let mut leaves: Vec<_> = supported.as_slice().iter().map(CpuidLeaf::from).collect();
    leaves.iter_mut().filter(|leaf| leaf.function == 1).for_each(|leaf| leaf.ecx |= deadline);
    Ok(leaves)
}
