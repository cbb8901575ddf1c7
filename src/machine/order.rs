//! Which pieces of state there are, in which order they are read and written, and why.

/// A piece of a vCPU's state: what one pair of ioctls reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum VcpuPiece {
    /// `KVM_GET_MP_STATE`: running, halted, waiting for INIT or SIPI.
    MpState,
    /// `KVM_GET_VCPU_EVENTS`: pending and injected exceptions, interrupts, NMIs and SMIs.
    Events,
    /// `KVM_GET_REGS`: general registers, instruction pointer, flags.
    Regs,
    /// `KVM_GET_SREGS`: segments, descriptor tables, control registers, EFER, the local APIC's
    /// base.
    Sregs,
    /// `KVM_GET_FPU`, on hosts without XSAVE only: elsewhere [`Xsave`](Self::Xsave) contains it.
    Fpu,
    /// `KVM_GET_XSAVE2`, or `KVM_GET_XSAVE` on kernels before 5.17: x87, SSE, AVX and so on.
    Xsave,
    /// `KVM_GET_XCRS`: XCR0.
    Xcrs,
    /// `KVM_GET_DEBUGREGS`: DR0 to DR3, DR6, DR7.
    DebugRegs,
    /// `KVM_GET_MSRS`: the model-specific registers that the kernel lists, and the memory type
    /// ranges, which it does not list.
    Msrs,
    /// `KVM_GET_LAPIC`, where the local APIC is the kernel's.
    Lapic,
    /// `KVM_GET_TSC_KHZ`. Fixed before the vCPU first runs, so read once.
    TscKhz,
    /// `KVM_GET_CPUID2`. Fixed before the vCPU first runs (but for bits that KVM derives from other
    /// state), so read once.
    Cpuid,
}

impl VcpuPiece {
    /// Every piece.
    pub const ALL: &[Self] = &[
        Self::MpState,
        Self::Events,
        Self::Regs,
        Self::Sregs,
        Self::Fpu,
        Self::Xsave,
        Self::Xcrs,
        Self::DebugRegs,
        Self::Msrs,
        Self::Lapic,
        Self::TscKhz,
        Self::Cpuid,
    ];

    /// The name of the piece's records and in errors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MpState => "vcpu.mp_state",
            Self::Events => "vcpu.events",
            Self::Regs => "vcpu.regs",
            Self::Sregs => "vcpu.sregs",
            Self::Fpu => "vcpu.fpu",
            Self::Xsave => "vcpu.xsave",
            Self::Xcrs => "vcpu.xcrs",
            Self::DebugRegs => "vcpu.debugregs",
            Self::Msrs => "vcpu.msrs",
            Self::Lapic => "vcpu.lapic",
            Self::TscKhz => "vcpu.tsc_khz",
            Self::Cpuid => "vcpu.cpuid",
        }
    }

    /// The piece whose records have this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|piece| piece.name() == name)
    }
}

/// A piece of the VM's state: what one pair of ioctls reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum VmPiece {
    /// `KVM_GET_PIT2`: the interval timer, where it is the kernel's.
    Pit2,
    /// `KVM_GET_IRQCHIP`, chip 0: the first interrupt controller, where it is the kernel's.
    PicMaster,
    /// `KVM_GET_IRQCHIP`, chip 1.
    PicSlave,
    /// `KVM_GET_IRQCHIP`, chip 2.
    IoApic,
    /// `KVM_GET_CLOCK`: what kvmclock shows to the guest.
    Clock,
}

impl VmPiece {
    /// Every piece.
    pub const ALL: &[Self] = &[Self::Pit2, Self::PicMaster, Self::PicSlave, Self::IoApic, Self::Clock];

    /// The name of the piece's records and in errors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pit2 => "vm.pit2",
            Self::PicMaster => "vm.pic_master",
            Self::PicSlave => "vm.pic_slave",
            Self::IoApic => "vm.ioapic",
            Self::Clock => "vm.clock",
        }
    }

    /// The piece whose records have this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|piece| piece.name() == name)
    }
}

/// That one piece must come before another, and why.
#[derive(Clone, Copy, Debug)]
pub struct Constraint<P: 'static> {
    /// What comes first.
    pub before: P,
    /// What comes later.
    pub after: P,
    /// What goes wrong otherwise.
    pub reason: &'static str,
    /// Where that is to be read: a file and function of the kernel.
    pub source: &'static str,
}

/// The order in which a vCPU's state is read.
pub const CAPTURE_ORDER: &[VcpuPiece] = &[
    VcpuPiece::MpState,
    VcpuPiece::Events,
    VcpuPiece::Fpu,
    VcpuPiece::Xsave,
    VcpuPiece::Xcrs,
    VcpuPiece::DebugRegs,
    VcpuPiece::Msrs,
    VcpuPiece::Lapic,
    VcpuPiece::Regs,
    VcpuPiece::Sregs,
    VcpuPiece::TscKhz,
    VcpuPiece::Cpuid,
];

const ACCEPTS: &str = "reading the MP state accepts pending INIT and SIPI, which reset the vCPU";
const ACCEPTS_SOURCE: &str = "arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_get_mpstate; arch/x86/kvm/lapic.c, kvm_apic_accept_events";
const PAYLOAD: &str =
    "reading events delivers a pending exception's payload (to CR2 or DR6) where the VM did not ask for payloads";
const PAYLOAD_SOURCE: &str = "arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_vcpu_events";

const STAND: &str =
    "the local APIC tells whether registers that the last exit left are the vCPU's still: one that took INIT has it disabled";
const STAND_SOURCE: &str = "arch/x86/kvm/x86.c, store_regs; arch/x86/kvm/lapic.c, kvm_lapic_reset";

/// What [`CAPTURE_ORDER`] keeps to.
pub const CAPTURE_CONSTRAINTS: &[Constraint<VcpuPiece>] = &[
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::Events, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::Regs, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::Sregs, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::Fpu, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::Xsave, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::Xcrs, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::DebugRegs, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::Msrs, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::MpState, after: VcpuPiece::Lapic, reason: ACCEPTS, source: ACCEPTS_SOURCE },
    Constraint { before: VcpuPiece::Events, after: VcpuPiece::Sregs, reason: PAYLOAD, source: PAYLOAD_SOURCE },
    Constraint { before: VcpuPiece::Events, after: VcpuPiece::DebugRegs, reason: PAYLOAD, source: PAYLOAD_SOURCE },
    Constraint { before: VcpuPiece::Lapic, after: VcpuPiece::Regs, reason: STAND, source: STAND_SOURCE },
    Constraint { before: VcpuPiece::Lapic, after: VcpuPiece::Sregs, reason: STAND, source: STAND_SOURCE },
    Constraint {
        before: VcpuPiece::Msrs,
        after: VcpuPiece::Lapic,
        reason: "a deadline timer whose interrupt is requested in between is then seen twice; the other way round it is in neither piece and lost",
        source: "arch/x86/kvm/lapic.c, kvm_apic_inject_pending_timer_irqs: the deadline is cleared as the interrupt is requested, at the latest at the next KVM_RUN",
    },
];

/// The order in which a vCPU's state is written.
pub const APPLY_ORDER: &[VcpuPiece] = &[
    VcpuPiece::Cpuid,
    VcpuPiece::TscKhz,
    VcpuPiece::Sregs,
    VcpuPiece::Xcrs,
    VcpuPiece::Fpu,
    VcpuPiece::Xsave,
    VcpuPiece::Regs,
    VcpuPiece::Lapic,
    VcpuPiece::Msrs,
    VcpuPiece::DebugRegs,
    VcpuPiece::Events,
    VcpuPiece::MpState,
];

/// What [`APPLY_ORDER`] keeps to.
pub const APPLY_CONSTRAINTS: &[Constraint<VcpuPiece>] = &[
    Constraint {
        before: VcpuPiece::Cpuid,
        after: VcpuPiece::Sregs,
        reason: "CPUID says which bits of CR4, EFER and the APIC base are allowed",
        source: "arch/x86/kvm/x86.c, kvm_is_valid_sregs",
    },
    Constraint {
        before: VcpuPiece::Cpuid,
        after: VcpuPiece::Xcrs,
        reason: "CPUID says which bits of XCR0 are allowed",
        source: "arch/x86/kvm/x86.c, __kvm_set_xcr",
    },
    Constraint {
        before: VcpuPiece::Cpuid,
        after: VcpuPiece::Xsave,
        reason: "CPUID enlarges the vCPU's buffer for features that are enabled on demand (AMX)",
        source: "arch/x86/kvm/cpuid.c, kvm_check_cpuid",
    },
    Constraint {
        before: VcpuPiece::Cpuid,
        after: VcpuPiece::Msrs,
        reason: "CPUID says which registers and which of their bits exist",
        source: "Documentation/virt/kvm/api.rst, KVM_SET_MSRS; arch/x86/kvm/x86.c, kvm_set_msr_common",
    },
    Constraint {
        before: VcpuPiece::Cpuid,
        after: VcpuPiece::Lapic,
        reason: "CPUID says which features the local APIC has",
        source: "arch/x86/kvm/lapic.c, kvm_apic_set_version",
    },
    Constraint {
        before: VcpuPiece::TscKhz,
        after: VcpuPiece::Msrs,
        reason: "a write of the time stamp counter is matched with other vCPUs' by its frequency",
        source: "arch/x86/kvm/x86.c, kvm_synchronize_tsc",
    },
    Constraint {
        before: VcpuPiece::Sregs,
        after: VcpuPiece::Lapic,
        reason: "the APIC base says whether the registers are in x2APIC's layout, and CR8 would overwrite the task priority",
        source: "arch/x86/kvm/lapic.c, kvm_apic_state_fixup; arch/x86/kvm/x86.c, __set_sregs_common",
    },
    Constraint {
        before: VcpuPiece::Lapic,
        after: VcpuPiece::Msrs,
        reason: "the deadline is ignored unless the local APIC's timer is in deadline mode",
        source: "arch/x86/kvm/lapic.c, kvm_set_lapic_tscdeadline_msr",
    },
    Constraint {
        before: VcpuPiece::Sregs,
        after: VcpuPiece::Events,
        reason: "special registers carry a pending interrupt and queue it; events say what it really is",
        source: "arch/x86/kvm/x86.c, __set_sregs",
    },
    Constraint {
        before: VcpuPiece::Regs,
        after: VcpuPiece::Events,
        reason: "writing general registers drops a pending exception",
        source: "arch/x86/kvm/x86.c, __set_regs",
    },
    Constraint {
        before: VcpuPiece::Sregs,
        after: VcpuPiece::MpState,
        reason: "special registers that look like those at reset make the first vCPU runnable",
        source: "arch/x86/kvm/x86.c, __set_sregs_common",
    },
    Constraint {
        before: VcpuPiece::Events,
        after: VcpuPiece::MpState,
        reason: "events say whether the vCPU is in system management mode, which the MP state is checked against",
        source: "arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_mpstate",
    },
];

/// The order in which the VM's state is read.
pub const VM_CAPTURE_ORDER: &[VmPiece] = &[VmPiece::Pit2, VmPiece::PicMaster, VmPiece::PicSlave, VmPiece::IoApic, VmPiece::Clock];

const TICK: &str = "the interval timer runs on while vCPUs are parked: a tick in between is then seen twice rather than lost";
const TICK_SOURCE: &str = "arch/x86/kvm/i8254.c, pit_timer_fn";

/// What [`VM_CAPTURE_ORDER`] keeps to.
pub const VM_CAPTURE_CONSTRAINTS: &[Constraint<VmPiece>] = &[
    Constraint { before: VmPiece::Pit2, after: VmPiece::PicMaster, reason: TICK, source: TICK_SOURCE },
    Constraint { before: VmPiece::Pit2, after: VmPiece::IoApic, reason: TICK, source: TICK_SOURCE },
];

/// The order in which the VM's state is written.
pub const VM_APPLY_ORDER: &[VmPiece] = &[VmPiece::PicMaster, VmPiece::PicSlave, VmPiece::IoApic, VmPiece::Pit2, VmPiece::Clock];

const ARMED: &str = "writing the interval timer arms it: a tick at once would be overwritten by the chip's state";
const ARMED_SOURCE: &str = "arch/x86/kvm/i8254.c, kvm_pit_load_count";

/// What [`VM_APPLY_ORDER`] keeps to.
pub const VM_APPLY_CONSTRAINTS: &[Constraint<VmPiece>] = &[
    Constraint { before: VmPiece::PicMaster, after: VmPiece::Pit2, reason: ARMED, source: ARMED_SOURCE },
    Constraint { before: VmPiece::IoApic, after: VmPiece::Pit2, reason: ARMED, source: ARMED_SOURCE },
];

/// State that KVM has and that is not captured, each with the reason and what happens instead.
///
/// Capture is refused, with an error that names the entry, where its use can be seen: the first
/// three.
pub const NOT_CAPTURED: &[(&str, &str)] = &[
    (
        "nested virtualization",
        "a guest that runs guests: capture is refused while VMX is on, and while SVM is in guest mode or has its interrupt flag clear",
    ),
    (
        "system management mode",
        "its memory is a second address space, which is not captured: capture is refused while a vCPU is in it",
    ),
    (
        "shadow stack pointer",
        "kernels from 6.18 on have it as a register of its own: capture is refused while the guest has shadow stacks enabled",
    ),
    ("machine check banks", "they read as at reset unless the VMM injects machine checks"),
    ("page directory pointers of PAE paging", "read again from guest memory when special registers are applied"),
    ("asynchronous page faults in flight", "writing the MSR at restore wakes all of the guest's waiters"),
    (
        "kicks of paravirtual spinlocks that came before their HLT",
        "after a restore every vCPU that may wait for one is kicked once: unhalt_vcpus",
    ),
    ("Hyper-V's synthetic interrupt controller, timers and pages", "only those of its MSRs that the kernel lists are captured"),
    ("Xen's shared information, event channels and runstate", "needs KVM_XEN_VM_GET_ATTR and its like"),
    (
        "TSC offsets and other vCPU device attributes",
        "the time stamp counter is captured as a value: it stands still while the VM does",
    ),
    (
        "ticks of the PIT and of a periodic local timer that were due and not yet delivered when the vCPUs were parked",
        "KVM counts them where it can't be read; they are lost at restore",
    ),
    (
        "PIT reinjection policy, boot processor, TSS and identity map addresses, enabled capabilities",
        "set by the VMM when it builds the VM, not readable: it must do the same at restore",
    ),
    ("interrupt routing, irqfds, ioeventfds and coalesced regions", "set by the VMM when it builds the VM, not readable"),
    ("PMU event filter, MSR filter and guest debugging", "set by the VMM, not readable"),
    ("performance counters' host events", "counters are captured as values and go on counting from there"),
    ("SGX enclaves", "enclave memory can't be read"),
    ("SEV, SEV-ES, SEV-SNP and TDX guests", "memory is encrypted and the kernel refuses to read registers"),
    ("guest_memfd and memory attributes", "private memory can't be read"),
    ("VFIO devices", "not KVM's: the VMM captures its devices itself"),
];

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    fn check<P: Copy + PartialEq + Debug>(order: &[P], all: &[P], constraints: &[Constraint<P>]) {
        let place = |piece: P| order.iter().position(|other| *other == piece);
        for piece in all {
            assert_eq!(order.iter().filter(|other| *other == piece).count(), 1, "{piece:?} comes once");
        }
        assert_eq!(order.len(), all.len());
        for Constraint { before, after, reason, source } in constraints {
            assert!(place(*before) < place(*after), "{before:?} before {after:?}: {reason}");
            assert!(!reason.is_empty() && source.contains('/'), "{before:?} before {after:?} has a source");
        }
    }

    #[test]
    fn orders_are_complete_and_keep_to_their_constraints() {
        check(CAPTURE_ORDER, VcpuPiece::ALL, CAPTURE_CONSTRAINTS);
        check(APPLY_ORDER, VcpuPiece::ALL, APPLY_CONSTRAINTS);
        check(VM_CAPTURE_ORDER, VmPiece::ALL, VM_CAPTURE_CONSTRAINTS);
        check(VM_APPLY_ORDER, VmPiece::ALL, VM_APPLY_CONSTRAINTS);
    }

    #[test]
    fn names_are_distinct_and_found_again() {
        for piece in VcpuPiece::ALL {
            assert_eq!(VcpuPiece::from_name(piece.name()), Some(*piece));
            assert!(piece.name().starts_with("vcpu."));
        }
        for piece in VmPiece::ALL {
            assert_eq!(VmPiece::from_name(piece.name()), Some(*piece));
            assert!(piece.name().starts_with("vm."));
        }
        assert_eq!(VcpuPiece::from_name("vcpu."), None);
    }

    #[test]
    fn kernel_docs_name_every_piece_and_everything_not_captured() {
        let docs = include_str!("../../docs/kernel.md");
        for name in VcpuPiece::ALL.iter().map(|piece| piece.name()).chain(VmPiece::ALL.iter().map(|piece| piece.name())) {
            assert!(docs.contains(&format!("`{name}`")), "docs/kernel.md lists {name}");
        }
        for (name, _) in NOT_CAPTURED {
            assert!(docs.contains(name), "docs/kernel.md lists {name}");
        }
    }
}
