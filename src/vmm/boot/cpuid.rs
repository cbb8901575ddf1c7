//! What CPUID tells a kernel of its vCPUs.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::cpu_level::CpuLevel;
use super::error::LinuxError;
use crate::vmm::error::{VmmError, kvm};

/// What CPUID tells on every vCPU: what this KVM supports, without what a checkpoint can't hold,
/// and with each vCPU's place among `vcpus`.
#[derive(Debug)]
pub(in crate::vmm) struct Processors {
    /// What the guest may be told of, of what this KVM supports.
    offered: Vec<kvm_cpuid_entry2>,
    has_deadline: bool,
    vcpus: u32,
}

impl Processors {
    /// For a guest that is started at a level: one that goes on is told what it was told.
    pub(in crate::vmm) fn new(hypervisor: &Kvm, vcpus: u32, cpu: CpuLevel, memory_end: u64) -> Result<Self, VmmError> {
        let supported = hypervisor.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let lacking = cpu.lacking(supported.as_slice());
        if !lacking.is_empty() {
            return Err(LinuxError::CpuLevel { level: cpu, lacking }.into());
        }
        let offered = cpu.mask(supported.as_slice(), memory_end);
        Ok(Self { offered, has_deadline: hypervisor.check_extension(Cap::TscDeadlineTimer), vcpus })
    }

    /// Tells `vcpu`, the one with this index.
    pub(in crate::vmm) fn tell(&self, vcpu: &VcpuFd, index: u32) -> Result<(), VmmError> {
        let entries = self.entries(index);
        let cpuid = CpuId::from_entries(&entries).map_err(|_| kvm("KVM_SET_CPUID2")(kvm_ioctls::Error::new(libc::E2BIG)))?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))
    }

    fn entries(&self, index: u32) -> Vec<kvm_cpuid_entry2> {
        let topology = Topology { index, vcpus: self.vcpus, has_deadline: self.has_deadline };
        let offered = &self.offered;
        let mut entries: Vec<_> =
            offered.iter().filter(|entry| !is_extended_topology(entry.function)).map(|entry| topology.adapt(*entry)).collect();
        if offered.iter().any(|entry| entry.function == 0 && entry.eax >= 0xb) {
            entries.extend(topology.extended());
        }
        entries
    }
}

const fn is_extended_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

/// One socket, a core for each vCPU, no hyperthreads. The vCPU's index is its APIC ID.
struct Topology {
    index: u32,
    vcpus: u32,
    has_deadline: bool,
}

impl Topology {
    /// Bits of an APIC ID.
    const fn bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    fn adapt(&self, mut entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
        const VMX: u32 = 1 << 5;
        const TSC_DEADLINE: u32 = 1 << 24;
        const HYPERVISOR: u32 = 1 << 31;
        const HYPERTHREADING: u32 = 1 << 28;
        const SHADOW_STACK: u32 = 1 << 7;
        const CORES_ONLY: u32 = 1 << 1;
        const SVM: u32 = 1 << 2;
        let several = self.vcpus > 1;
        let ids = self.vcpus.next_power_of_two();
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = entry.ebx & 0xffff | ids.min(0xff) << 16 | self.index << 24;
                // A guest with guests of its own can't be captured.
                entry.ecx = entry.ecx & !(VMX | TSC_DEADLINE) | HYPERVISOR | if self.has_deadline { TSC_DEADLINE } else { 0 };
                entry.edx = entry.edx & !HYPERTHREADING | if several { HYPERTHREADING } else { 0 };
            }
            (4, _) if entry.eax & 0x1f != 0 => {
                // The last cache is the socket's, the others are each core's own.
                let shared = if entry.eax >> 5 & 7 >= 3 { ids - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared.min(0xfff) << 14 | (ids - 1).min(0x3f) << 26;
            }
            // Its pointer is not captured.
            (7, 0) => entry.ecx &= !SHADOW_STACK,
            (0x8000_0001, _) => {
                entry.ecx = entry.ecx & !(SVM | CORES_ONLY) | if several && entry.ecx & SVM != 0 { CORES_ONLY } else { 0 };
            }
            (0x8000_0008, _) => entry.ecx = entry.ecx & !0xf0ff | self.bits() << 12 | (self.vcpus - 1).min(0xff),
            (0x8000_000a, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 >= 3 { ids - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared.min(0xfff) << 14;
            }
            (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (self.index, self.index & 0xff, 0),
            _ => {}
        }
        entry
    }

    /// The leaf with APIC IDs of 32 bits: threads of a core, cores of a socket, and the end.
    fn extended(&self) -> [kvm_cpuid_entry2; 3] {
        [(0, 1, 1 << 8), (self.bits(), self.vcpus, 2 << 8), (0, 0, 0)].map(|(eax, ebx, level)| {
            let index = level >> 8;
            // The levels are numbered from the subleaf 0 on, the last one behind the two.
            let index = if index == 0 { 2 } else { index - 1 };
            kvm_cpuid_entry2 {
                function: 0xb,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx: level | index,
                edx: self.index,
                ..Default::default()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(function: u32, index: u32, value: u32) -> kvm_cpuid_entry2 {
        let entry = kvm_cpuid_entry2 { function, eax: value, ebx: value, ecx: value, edx: value, ..Default::default() };
        Topology { index, vcpus: 3, has_deadline: true }.adapt(entry)
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        for index in 0..3 {
            assert_eq!(adapted(1, index, u32::MAX).ebx, 0xffff | 4 << 16 | index << 24);
            assert_eq!(adapted(0x8000_001e, index, 0).eax, index);
            let topology = Topology { index, vcpus: 3, has_deadline: false };
            let [threads, cores, end] = topology.extended();
            assert_eq!((threads.index, threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 0, 1, 0x100, index));
            assert_eq!((cores.index, cores.eax, cores.ebx, cores.ecx, cores.edx), (1, 2, 3, 0x201, index));
            assert_eq!((end.index, end.ebx, end.ecx), (2, 0, 2));
        }
    }

    #[test]
    fn what_no_checkpoint_holds_is_not_offered() {
        let leaf = adapted(1, 0, u32::MAX);
        assert_eq!((leaf.ecx >> 5 & 1, leaf.ecx >> 24 & 1, leaf.ecx >> 31), (0, 1, 1));
        assert_eq!(adapted(7, 0, u32::MAX).ecx, !(1 << 7));
        assert_eq!(adapted(0x8000_0001, 0, u32::MAX).ecx & 4, 0);
        assert_eq!(adapted(0x8000_000a, 0, u32::MAX).edx, 0);
        assert_eq!(adapted(0x4000_0001, 0, 5).eax, 5, "KVM's own leaves stay");
    }
}
