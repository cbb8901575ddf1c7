//! How much of the processor a guest is told of: all of the host's, or a level of the x86-64 psABI
//! that many hosts have.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

/// What the guest finds by CPUID. Kept in a chain's description; a restore gives back what was
/// captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CpuLevel {
    /// All that this host's KVM supports. Such a guest moves to hosts that have all of it, too.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// The level x86-64-v2 (SSE4.2, POPCNT, CMPXCHG16B), and what a virtual machine needs.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// The level x86-64-v3 (AVX2, BMI, FMA, MOVBE besides), and what a virtual machine needs.
    #[serde(rename = "x86-64-v3")]
    V3,
}

impl CpuLevel {
    /// Whether it is all of the host's.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        matches!(self, Self::Host)
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
        })
    }
}

/// Bits of a feature word.
const fn of(bits: &[u32]) -> u32 {
    let mut word = 0;
    let mut rest = bits;
    while let [bit, others @ ..] = rest {
        word |= 1 << *bit;
        rest = others;
    }
    word
}

/// Features by register and bit: what a level has, what of it is the level's own and must be there,
/// and names of those for an error.
struct Features {
    function: u32,
    register: fn(&mut kvm_cpuid_entry2) -> &mut u32,
    /// What the guest may be told of at both levels: the baseline, and what a virtual machine
    /// needs.
    base: u32,
    /// The level's own.
    v2: &'static [(u32, &'static str)],
    v3: &'static [(u32, &'static str)],
}

impl Features {
    /// What a level that is not the host's has of its own.
    fn of_level(&self, level: CpuLevel) -> impl Iterator<Item = &(u32, &'static str)> {
        self.v2.iter().chain(if level == CpuLevel::V3 { self.v3 } else { &[] })
    }
}

fn eax(entry: &mut kvm_cpuid_entry2) -> &mut u32 {
    &mut entry.eax
}
fn ebx(entry: &mut kvm_cpuid_entry2) -> &mut u32 {
    &mut entry.ebx
}
fn ecx(entry: &mut kvm_cpuid_entry2) -> &mut u32 {
    &mut entry.ecx
}
fn edx(entry: &mut kvm_cpuid_entry2) -> &mut u32 {
    &mut entry.edx
}

/// From the floating point unit to SSE2; not: dtes, ACPI's clock control, self snoop and the like,
/// which no virtual machine has.
const BASE_1_EDX: u32 = of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 28]);
/// x2APIC, deadline timer, hypervisor.
const BASE_1_ECX: u32 = of(&[21, 24, 31]);
/// The bits that AMD's processors repeat here, `SYSCALL`, no-execute, long mode.
const BASE_EXTENDED_EDX: u32 = of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 23, 24, 29]);
/// All of KVM's own that kernels from 5.11 on have, the oldest with a ring.
const BASE_KVM: u32 = of(&[0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 24]);

#[rustfmt::skip]
const FEATURES: &[Features] = &[
    Features {
        function: 1, register: ecx, base: BASE_1_ECX,
        v2: &[(0, "sse3"), (9, "ssse3"), (13, "cx16"), (19, "sse4_1"), (20, "sse4_2"), (23, "popcnt")],
        v3: &[(12, "fma"), (22, "movbe"), (26, "xsave"), (28, "avx"), (29, "f16c")],
    },
    Features { function: 1, register: edx, base: BASE_1_EDX, v2: &[(15, "cmov"), (8, "cx8"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2")], v3: &[] },
    // The timer of the local APIC runs on in all sleep states.
    Features { function: 6, register: eax, base: of(&[2]), v2: &[], v3: &[] },
    Features { function: 6, register: ebx, base: 0, v2: &[], v3: &[] },
    Features { function: 6, register: ecx, base: 0, v2: &[], v3: &[] },
    Features { function: 7, register: ebx, base: 0, v2: &[], v3: &[(3, "bmi1"), (5, "avx2"), (8, "bmi2")] },
    Features { function: 7, register: ecx, base: 0, v2: &[], v3: &[] },
    Features { function: 7, register: edx, base: 0, v2: &[], v3: &[] },
    Features { function: 0x8000_0001, register: ecx, base: of(&[1]), v2: &[(0, "lahf_lm")], v3: &[(5, "abm")] },
    Features { function: 0x8000_0001, register: edx, base: BASE_EXTENDED_EDX, v2: &[(11, "syscall"), (20, "nx"), (29, "lm")], v3: &[] },
    // Without the invariant counter: hosts that can't scale theirs differ in its frequency.
    Features { function: 0x8000_0007, register: edx, base: 0, v2: &[], v3: &[] },
    Features { function: 0x8000_0008, register: ebx, base: 0, v2: &[], v3: &[] },
    Features { function: 0x4000_0001, register: eax, base: BASE_KVM, v2: &[], v3: &[] },
];

/// x87, SSE, AVX.
const XSAVE_COMPONENTS: u32 = 7;
/// AVX behind the legacy area and the header.
const XSAVE_BYTES: u32 = 512 + 64 + 256;
/// The last leaves: of the basic ones that of XSAVE, of the extended ones that of addresses.
const BASIC_MAX: u32 = 0xd;
const EXTENDED_MAX: u32 = 0x8000_0008;
/// Bits of physical addresses: every processor with a level has so many, and the guest's memory
/// ends below unless it is larger than most.
const ADDRESS_BITS: u32 = 40;
const LINEAR_BITS: u32 = 48;

impl CpuLevel {
    /// What of the level the host lacks, by name.
    pub(super) fn lacking(self, supported: &[kvm_cpuid_entry2]) -> Vec<&'static str> {
        let mut lacking = Vec::new();
        for features in FEATURES.iter().filter(|_| !self.is_host()) {
            let entry = supported.iter().find(|entry| entry.function == features.function && entry.index == 0);
            let found = *(features.register)(&mut entry.copied().unwrap_or_default());
            lacking.extend(features.of_level(self).filter(|(bit, _)| found >> bit & 1 == 0).map(|(_, name)| *name));
        }
        lacking
    }

    /// Leaves of what the host supports what the level has, for a machine whose memory ends at
    /// `memory_end`.
    pub(super) fn mask(self, supported: &[kvm_cpuid_entry2], memory_end: u64) -> Vec<kvm_cpuid_entry2> {
        if self.is_host() {
            return supported.to_vec();
        }
        let kept = supported.iter().copied().filter(|entry| is_kept(entry.function));
        kept.filter_map(|entry| self.masked(entry, memory_end)).collect()
    }

    fn masked(self, mut entry: kvm_cpuid_entry2, memory_end: u64) -> Option<kvm_cpuid_entry2> {
        let (function, index) = (entry.function, entry.index);
        for features in FEATURES.iter().filter(|features| (features.function, 0) == (function, index)) {
            let level = features.of_level(self).fold(0, |word, (bit, _)| word | 1 << bit);
            *(features.register)(&mut entry) &= features.base | level;
        }
        match (function, index) {
            (0, _) => entry.eax = entry.eax.min(BASIC_MAX),
            // Nothing of the processor's sleep states.
            (5 | 6, _) => (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0),
            (7, 0) => entry.eax = 0,
            (7, _) => return None,
            // Performance counters, whose number and events are a model's.
            (0xa, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            (0xd, _) if self == Self::V2 => return None,
            (0xd, 0) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (XSAVE_COMPONENTS, XSAVE_BYTES, XSAVE_BYTES, 0),
            // No way of saving but the plain one, and no components of the kernel's.
            (0xd, 1) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            (0xd, component) if component > 2 => return None,
            (0x8000_0000, _) => entry.eax = entry.eax.min(EXTENDED_MAX),
            (0x8000_0007, _) => (entry.eax, entry.ebx, entry.ecx) = (0, 0, 0),
            (0x8000_0008, _) => {
                let physical = ADDRESS_BITS.max(u64::BITS - memory_end.leading_zeros()).min(entry.eax & 0xff);
                entry.eax = (entry.eax >> 8 & 0xff).min(LINEAR_BITS) << 8 | physical;
                entry.edx = 0;
            }
            // Hints about the host.
            (0x4000_0001, _) => entry.edx = 0,
            _ => {}
        }
        Some(entry)
    }
}

/// Whether a masked guest is told of the leaf at all.
const fn is_kept(function: u32) -> bool {
    match function {
        0..=7 | 0xa | 0xb | 0xd => true,
        0x4000_0000 | 0x4000_0001 => true,
        _ => function >= 0x8000_0000 && function <= EXTENDED_MAX,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// A host that has every bit of every leaf, as no processor has.
    fn everything() -> Vec<kvm_cpuid_entry2> {
        let leaves = (0..0x25)
            .flat_map(|function| (0..if function == 7 || function == 0xd { 20 } else { 1 }).map(move |index| (function, index)));
        let extended = (0x8000_0000..0x8000_0026).chain([0x4000_0000, 0x4000_0001]).map(|function| (function, 0));
        let entry =
            |(function, index)| kvm_cpuid_entry2 { function, index, eax: !0, ebx: !0, ecx: !0, edx: !0, ..Default::default() };
        leaves.chain(extended).map(entry).collect()
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        entries.iter().find(|entry| (entry.function, entry.index) == (function, index)).copied().unwrap_or_default()
    }

    #[test]
    fn a_level_is_what_the_psabi_says_and_no_more() {
        let host = everything();
        assert_eq!(CpuLevel::Host.mask(&host, 1 << 30), host);
        let v2 = CpuLevel::V2.mask(&host, 1 << 30);
        let has = |entries: &[kvm_cpuid_entry2], bit: u32| leaf(entries, 1, 0).ecx >> bit & 1 == 1;
        for bit in [0, 9, 13, 19, 20, 23, 21, 24, 31] {
            assert!(has(&v2, bit), "bit {bit}");
        }
        // VMX, FMA, PCID, MOVBE, AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND.
        for bit in [5, 12, 17, 22, 25, 26, 27, 28, 29, 30] {
            assert!(!has(&v2, bit), "bit {bit}");
        }
        let seven = leaf(&v2, 7, 0);
        assert_eq!((seven.eax, seven.ebx, seven.ecx, seven.edx), (0, 0, 0, 0));
        assert!(!v2.iter().any(|entry| entry.function == 0xd), "extended state without XSAVE");
        let v3 = CpuLevel::V3.mask(&host, 1 << 30);
        assert!([0, 9, 12, 13, 19, 20, 22, 23, 26, 28, 29].into_iter().all(|bit| has(&v3, bit)));
        assert_eq!(leaf(&v3, 7, 0).ebx, 1 << 3 | 1 << 5 | 1 << 8);
        assert_eq!(leaf(&v3, 0x8000_0001, 0).ecx, 1 | 1 << 1 | 1 << 5);
    }

    #[test]
    fn extended_state_has_the_components_of_the_level() {
        let v3 = CpuLevel::V3.mask(&everything(), 1 << 30);
        let top = leaf(&v3, 0xd, 0);
        assert_eq!((top.eax, top.ecx, top.edx), (7, 832, 0));
        assert_eq!(leaf(&v3, 0xd, 1).eax, 0);
        let kept: Vec<_> = v3.iter().filter(|entry| entry.function == 0xd).map(|entry| entry.index).collect();
        assert_eq!(kept, [0, 1, 2]);
    }

    #[test]
    fn what_differs_between_hosts_is_hidden() {
        for level in [CpuLevel::V2, CpuLevel::V3] {
            let masked = level.mask(&everything(), 1 << 30);
            assert_eq!(leaf(&masked, 0x8000_0007, 0).edx, 0, "the invariant counter");
            assert_eq!(leaf(&masked, 0x8000_0008, 0).ebx, 0);
            assert_eq!(leaf(&masked, 0x8000_0008, 0).eax, 48 << 8 | 40);
            assert_eq!(leaf(&level.mask(&everything(), 1 << 41), 0x8000_0008, 0).eax & 0xff, 42, "memory that needs more");
            assert_eq!(leaf(&masked, 0, 0).eax, 0xd);
            assert_eq!(leaf(&masked, 0x8000_0000, 0).eax, 0x8000_0008);
            assert_eq!(leaf(&masked, 0xa, 0), kvm_cpuid_entry2 { function: 0xa, ..Default::default() });
            assert!(
                masked.iter().all(|entry| !matches!(entry.function, 0xe..=0x3fff_ffff | 0x8000_0009..)),
                "leaves behind the last"
            );
            let kvm = leaf(&masked, 0x4000_0001, 0);
            assert_eq!((kvm.eax, kvm.edx), (BASE_KVM, 0));
            assert_eq!(kvm.eax & 1 << 15, 0);
        }
    }

    #[test]
    fn a_host_without_the_level_is_told_what_it_lacks() {
        let host = everything();
        assert!(CpuLevel::V3.lacking(&host).is_empty());
        for (function, register, bit, name) in
            [(1, ecx as fn(&mut kvm_cpuid_entry2) -> &mut u32, 20, "sse4_2"), (7, ebx, 5, "avx2"), (0x8000_0001, ecx, 5, "abm")]
        {
            let mut less = host.clone();
            *register(less.iter_mut().find(|entry| (entry.function, entry.index) == (function, 0)).unwrap()) &= !(1 << bit);
            assert_eq!(CpuLevel::V3.lacking(&less), [name]);
            assert_eq!(CpuLevel::V2.lacking(&less).is_empty(), name != "sse4_2");
            assert!(CpuLevel::Host.lacking(&less).is_empty());
        }
        assert!(CpuLevel::V2.lacking(&[]).contains(&"sse2"));
    }

    #[test]
    fn names_are_those_of_the_option() {
        for (level, name) in [(CpuLevel::Host, "host"), (CpuLevel::V2, "x86-64-v2"), (CpuLevel::V3, "x86-64-v3")] {
            assert_eq!(level.to_string(), name);
            assert_eq!(serde_json::to_string(&level).unwrap(), format!("\"{name}\""));
        }
    }
}
