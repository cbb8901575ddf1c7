//! CPUID's feature words: which bits there are, what they are called, and which of them are not the
//! processor's.

use super::Register::{Eax, Ebx, Ecx, Edx};
use super::{Piece, Register};

/// A register of a leaf whose bits are features.
pub(super) struct Word {
    pub(super) leaf: u32,
    pub(super) subleaf: u32,
    pub(super) register: Register,
    /// Bits that follow other state, that the VMM sets as it builds the machine, or that say
    /// nothing of what can be done: no difference.
    pub(super) not_compared: u32,
    /// The bits' names, as `/proc/cpuinfo` and the kernel's `cpufeatures.h` have them.
    names: &'static [(u8, &'static str)],
}

impl Word {
    pub(super) fn name(&self, bit: u8) -> Option<&'static str> {
        self.names.iter().find(|(other, _)| *other == bit).map(|(_, name)| *name)
    }

    pub(super) const fn piece(&self, bit: u8) -> Piece {
        Piece::CpuidBit { leaf: self.leaf, subleaf: self.subleaf, register: self.register, bit }
    }
}

/// MONITOR (follows a model-specific register), x2APIC (KVM's own, with every chip in the kernel),
/// OSXSAVE (follows CR4), hypervisor.
const OWN_1_ECX: u32 = 1 << 3 | 1 << 21 | 1 << 27 | 1 << 31;
/// The local APIC (follows its base), hyperthreading (the topology).
const OWN_1_EDX: u32 = 1 << 9 | 1 << 28;
/// What FCS, FDS and FDP have: two bits that say that a processor does less.
const OWN_7_EBX: u32 = 1 << 6 | 1 << 13;
/// OSPKE (follows CR4), and the width of an address, a number.
const OWN_7_ECX: u32 = 1 << 4 | 0x1f << 17;
/// Cores without hyperthreads: the topology.
const OWN_EXTENDED_ECX: u32 = 1 << 1;
/// The local APIC again.
const OWN_EXTENDED_EDX: u32 = 1 << 9;
/// Message addresses with more bits: the VMM's to offer, and not listed as supported.
const OWN_KVM: u32 = 1 << 15;

/// Where KVM's own leaves are in what KVM supports.
pub(super) const KVM_LEAF: u32 = 0x4000_0000;

/// KVM's own features, which the guest may have at another base.
pub(super) const KVM_FEATURES: Word = Word {
    leaf: KVM_LEAF + 1,
    subleaf: 0,
    register: Eax,
    not_compared: OWN_KVM,
    names: &[
        (0, "kvmclock_old"),
        (1, "kvm_nop_io_delay"),
        (2, "kvm_mmu_op"),
        (3, "kvmclock"),
        (4, "kvm_async_pf"),
        (5, "kvm_steal_time"),
        (6, "kvm_pv_eoi"),
        (7, "kvm_pv_unhalt"),
        (9, "kvm_pv_tlb_flush"),
        (10, "kvm_async_pf_vmexit"),
        (11, "kvm_pv_send_ipi"),
        (12, "kvm_poll_control"),
        (13, "kvm_pv_sched_yield"),
        (14, "kvm_async_pf_int"),
        (16, "kvm_hc_map_gpa_range"),
        (17, "kvm_migration_control"),
        (24, "kvmclock_stable"),
    ],
};

#[rustfmt::skip]
pub(super) const WORDS: &[Word] = &[
    Word { leaf: 1, subleaf: 0, register: Ecx, not_compared: OWN_1_ECX, names: &[
        (0, "sse3"), (1, "pclmulqdq"), (2, "dtes64"), (4, "ds_cpl"), (5, "vmx"), (6, "smx"), (7, "est"), (8, "tm2"), (9, "ssse3"), (10, "cid"), (11, "sdbg"),
        (12, "fma"), (13, "cx16"), (14, "xtpr"), (15, "pdcm"), (17, "pcid"), (18, "dca"), (19, "sse4_1"), (20, "sse4_2"), (22, "movbe"), (23, "popcnt"),
        (24, "tsc_deadline_timer"), (25, "aes"), (26, "xsave"), (28, "avx"), (29, "f16c"), (30, "rdrand"),
    ] },
    Word { leaf: 1, subleaf: 0, register: Edx, not_compared: OWN_1_EDX, names: &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"), (11, "sep"), (12, "mtrr"), (13, "pge"),
        (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"), (18, "pn"), (19, "clflush"), (21, "dts"), (22, "acpi"), (23, "mmx"), (24, "fxsr"), (25, "sse"),
        (26, "sse2"), (27, "ss"), (29, "tm"), (31, "pbe"),
    ] },
    Word { leaf: 6, subleaf: 0, register: Eax, not_compared: 0, names: &[(0, "dtherm"), (1, "ida"), (2, "arat"), (7, "hwp")] },
    Word { leaf: 6, subleaf: 0, register: Ecx, not_compared: 0, names: &[(0, "aperfmperf"), (3, "epb")] },
    Word { leaf: 7, subleaf: 0, register: Ebx, not_compared: OWN_7_EBX, names: &[
        (0, "fsgsbase"), (1, "tsc_adjust"), (2, "sgx"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (7, "smep"), (8, "bmi2"), (9, "erms"), (10, "invpcid"), (11, "rtm"),
        (12, "cqm"), (14, "mpx"), (15, "rdt_a"), (16, "avx512f"), (17, "avx512dq"), (18, "rdseed"), (19, "adx"), (20, "smap"), (21, "avx512ifma"),
        (23, "clflushopt"), (24, "clwb"), (25, "intel_pt"), (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"), (29, "sha_ni"), (30, "avx512bw"),
        (31, "avx512vl"),
    ] },
    Word { leaf: 7, subleaf: 0, register: Ecx, not_compared: OWN_7_ECX, names: &[
        (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (5, "waitpkg"), (6, "avx512_vbmi2"), (7, "shstk"), (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"),
        (11, "avx512_vnni"), (12, "avx512_bitalg"), (13, "tme"), (14, "avx512_vpopcntdq"), (16, "la57"), (22, "rdpid"), (24, "bus_lock_detect"),
        (25, "cldemote"), (27, "movdiri"), (28, "movdir64b"), (29, "enqcmd"), (30, "sgx_lc"),
    ] },
    Word { leaf: 7, subleaf: 0, register: Edx, not_compared: 0, names: &[
        (2, "avx512_4vnniw"), (3, "avx512_4fmaps"), (4, "fsrm"), (8, "avx512_vp2intersect"), (9, "srbds_ctrl"), (10, "md_clear"), (11, "rtm_always_abort"),
        (14, "serialize"), (15, "hybrid_cpu"), (16, "tsxldtrk"), (18, "pconfig"), (19, "arch_lbr"), (20, "ibt"), (22, "amx_bf16"), (23, "avx512_fp16"),
        (24, "amx_tile"), (25, "amx_int8"), (26, "spec_ctrl"), (27, "intel_stibp"), (28, "flush_l1d"), (29, "arch_capabilities"), (30, "core_capabilities"),
        (31, "spec_ctrl_ssbd"),
    ] },
    Word { leaf: 7, subleaf: 1, register: Eax, not_compared: 0, names: &[
        (0, "sha512"), (1, "sm3"), (2, "sm4"), (4, "avx_vnni"), (5, "avx512_bf16"), (6, "lass"), (7, "cmpccxadd"), (10, "fzrm"), (11, "fsrs"), (12, "fsrc"),
        (17, "fred"), (18, "lkgs"), (19, "wrmsrns"), (21, "amx_fp16"), (23, "avx_ifma"), (26, "lam"),
    ] },
    Word { leaf: 7, subleaf: 1, register: Ebx, not_compared: 0, names: &[] },
    Word { leaf: 7, subleaf: 1, register: Ecx, not_compared: 0, names: &[] },
    Word { leaf: 7, subleaf: 1, register: Edx, not_compared: 0, names: &[
        (4, "avx_vnni_int8"), (5, "avx_ne_convert"), (8, "amx_complex"), (10, "avx_vnni_int16"), (14, "prefetchiti"), (19, "avx10"),
    ] },
    Word { leaf: 7, subleaf: 2, register: Edx, not_compared: 0, names: &[
        (0, "intel_psfd"), (1, "ipred_ctrl"), (2, "rrsba_ctrl"), (3, "ddpd_u"), (4, "bhi_ctrl"), (5, "mcdt_no"),
    ] },
    Word { leaf: 0xd, subleaf: 1, register: Eax, not_compared: 0, names: &[
        (0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd"),
    ] },
    Word { leaf: 0x8000_0001, subleaf: 0, register: Ecx, not_compared: OWN_EXTENDED_ECX, names: &[
        (0, "lahf_lm"), (2, "svm"), (3, "extapic"), (4, "cr8_legacy"), (5, "abm"), (6, "sse4a"), (7, "misalignsse"), (8, "3dnowprefetch"), (9, "osvw"), (10, "ibs"),
        (11, "xop"), (12, "skinit"), (13, "wdt"), (15, "lwp"), (16, "fma4"), (17, "tce"), (19, "nodeid_msr"), (21, "tbm"), (22, "topoext"), (23, "perfctr_core"),
        (24, "perfctr_nb"), (26, "bpext"), (27, "ptsc"), (28, "perfctr_llc"), (29, "mwaitx"),
    ] },
    Word { leaf: 0x8000_0001, subleaf: 0, register: Edx, not_compared: OWN_EXTENDED_EDX, names: &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"), (11, "syscall"), (12, "mtrr"), (13, "pge"),
        (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"), (20, "nx"), (22, "mmxext"), (23, "mmx"), (24, "fxsr"), (25, "fxsr_opt"), (26, "pdpe1gb"),
        (27, "rdtscp"), (29, "lm"), (30, "3dnowext"), (31, "3dnow"),
    ] },
    Word { leaf: 0x8000_0007, subleaf: 0, register: Ebx, not_compared: 0, names: &[(0, "overflow_recov"), (1, "succor"), (3, "smca")] },
    Word { leaf: 0x8000_0007, subleaf: 0, register: Edx, not_compared: 0, names: &[(8, "constant_tsc")] },
    Word { leaf: 0x8000_0008, subleaf: 0, register: Ebx, not_compared: 0, names: &[
        (0, "clzero"), (1, "irperf"), (2, "xsaveerptr"), (4, "rdpru"), (9, "wbnoinvd"), (12, "ibpb"), (14, "ibrs"), (15, "stibp"), (16, "ibrs_always"),
        (17, "stibp_always"), (19, "ibrs_same_mode"), (23, "ppin"), (24, "ssbd"), (25, "virt_ssbd"), (26, "ssb_no"), (27, "cppc"), (28, "psfd"), (29, "btc_no"),
        (30, "ibpb_ret"),
    ] },
    Word { leaf: 0x8000_000a, subleaf: 0, register: Edx, not_compared: 0, names: &[(0, "npt"), (1, "lbrv"), (3, "nrip_save"), (4, "tsc_scale"), (10, "pausefilter")] },
    Word { leaf: 0x8000_001f, subleaf: 0, register: Eax, not_compared: 0, names: &[(0, "sme"), (1, "sev"), (3, "sev_es"), (4, "sev_snp")] },
    Word { leaf: 0x8000_0021, subleaf: 0, register: Eax, not_compared: 0, names: &[
        (0, "no_nested_data_bp"), (2, "lfence_rdtsc"), (5, "verw_clear"), (6, "null_sel_clr_base"), (8, "autoibrs"), (9, "no_smm_ctl_msr"), (10, "fsrs"),
        (11, "fsrc"), (17, "user_cpuid_faulting"), (20, "prefetchi"), (27, "sbpb"), (28, "ibpb_brtype"), (29, "srso_no"), (30, "srso_user_kernel_no"),
    ] },
    Word { leaf: 0x8000_0022, subleaf: 0, register: Eax, not_compared: 0, names: &[(0, "perfmon_v2"), (1, "amd_lbr_v2")] },
];

/// Components of extended state, by their bits in XCR0 and IA32_XSS.
pub(super) const fn component(bit: u8) -> &'static str {
    match bit {
        0 => "x87",
        1 => "sse",
        2 => "avx",
        3 => "bndregs",
        4 => "bndcsr",
        5 => "avx512_opmask",
        6 => "avx512_zmm_hi256",
        7 => "avx512_hi16_zmm",
        8 => "pt",
        9 => "pkru",
        10 => "pasid",
        11 => "cet_user",
        12 => "cet_supervisor",
        14 => "uintr",
        15 => "lbr",
        17 => "amx_tile_config",
        18 => "amx_tile_data",
        _ => "unknown",
    }
}

/// Names of model-specific registers that KVM may list.
pub(super) const fn msr(index: u32) -> Option<&'static str> {
    Some(match index {
        0x10 => "IA32_TSC",
        0x11 => "MSR_KVM_WALL_CLOCK",
        0x12 => "MSR_KVM_SYSTEM_TIME",
        0x34 => "MSR_SMI_COUNT",
        0x3a => "IA32_FEATURE_CONTROL",
        0x3b => "IA32_TSC_ADJUST",
        0x48 => "IA32_SPEC_CTRL",
        0x49 => "IA32_PRED_CMD",
        0x8b => "IA32_UCODE_REV",
        0xc1..=0xc8 => "IA32_PMC",
        0xce => "MSR_PLATFORM_INFO",
        0xe1 => "IA32_UMWAIT_CONTROL",
        0x10a => "IA32_ARCH_CAPABILITIES",
        0x10b => "IA32_FLUSH_CMD",
        0x122 => "IA32_TSX_CTRL",
        0x140 => "MSR_MISC_FEATURES_ENABLES",
        0x174 => "IA32_SYSENTER_CS",
        0x175 => "IA32_SYSENTER_ESP",
        0x176 => "IA32_SYSENTER_EIP",
        0x179..=0x17b => "IA32_MCG",
        0x186..=0x18d => "IA32_PERFEVTSEL",
        0x1a0 => "IA32_MISC_ENABLE",
        0x1c4 => "IA32_XFD",
        0x1c5 => "IA32_XFD_ERR",
        0x1d9 => "IA32_DEBUGCTL",
        0x1db | 0x1dc => "LAST_BRANCH",
        0x1dd | 0x1de => "LAST_INTERRUPT",
        0x1fc => "MSR_POWER_CTL",
        0x200..=0x26f | 0x2ff => "IA32_MTRR",
        0x277 => "IA32_PAT",
        0x309..=0x30c => "IA32_FIXED_CTR",
        0x345 => "IA32_PERF_CAPABILITIES",
        0x38d => "IA32_FIXED_CTR_CTRL",
        0x38e..=0x390 => "IA32_PERF_GLOBAL",
        0x3f1 => "IA32_PEBS_ENABLE",
        0x480..=0x493 => "IA32_VMX",
        0x4c1..=0x4c8 => "IA32_A_PMC",
        0x570..=0x58f => "IA32_RTIT",
        0x600 => "IA32_DS_AREA",
        0x6a0 => "IA32_U_CET",
        0x6a2 => "IA32_S_CET",
        0x6a4..=0x6a8 => "IA32_PL_SSP",
        0x6e0 => "IA32_TSC_DEADLINE",
        0xd90 => "IA32_BNDCFGS",
        0xda0 => "IA32_XSS",
        0x4000_0000..=0x4000_01ff => "HV_X64",
        0x4b56_4d00 => "MSR_KVM_WALL_CLOCK_NEW",
        0x4b56_4d01 => "MSR_KVM_SYSTEM_TIME_NEW",
        0x4b56_4d02 => "MSR_KVM_ASYNC_PF_EN",
        0x4b56_4d03 => "MSR_KVM_STEAL_TIME",
        0x4b56_4d04 => "MSR_KVM_PV_EOI_EN",
        0x4b56_4d05 => "MSR_KVM_POLL_CONTROL",
        0x4b56_4d06 => "MSR_KVM_ASYNC_PF_INT",
        0x4b56_4d07 => "MSR_KVM_ASYNC_PF_ACK",
        0x4b56_4d08 => "MSR_KVM_MIGRATION_CONTROL",
        0xc000_0080 => "EFER",
        0xc000_0081 => "STAR",
        0xc000_0082 => "LSTAR",
        0xc000_0083 => "CSTAR",
        0xc000_0084 => "SYSCALL_MASK",
        0xc000_0100 => "FS_BASE",
        0xc000_0101 => "GS_BASE",
        0xc000_0102 => "KERNEL_GS_BASE",
        0xc000_0103 => "TSC_AUX",
        0xc000_0104 => "AMD64_TSC_RATIO",
        0xc000_0300..=0xc000_0303 => "AMD64_PERF_CNTR_GLOBAL",
        0xc001_0000..=0xc001_0007 => "K7_PERF",
        0xc001_0010 => "AMD64_SYSCFG",
        0xc001_0015 => "K7_HWCR",
        0xc001_0117 => "VM_HSAVE_PA",
        0xc001_011f => "AMD64_VIRT_SPEC_CTRL",
        0xc001_0140 => "AMD64_OSVW_ID_LENGTH",
        0xc001_0141 => "AMD64_OSVW_STATUS",
        0xc001_0200..=0xc001_020b => "F15H_PERF",
        0xc001_1029 => "AMD64_DE_CFG",
        _ => return None,
    })
}
