//! The state of a machine, typed.

use kvm_bindings::{
    CpuId, Msrs, kvm_clock_data, kvm_debugregs, kvm_fpu, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_state2, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use zerocopy::IntoBytes;

/// The state of one vCPU. Made empty, filled by [`capture_vcpu`](super::capture_vcpu) again and
/// again, without allocating after the first time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VcpuState {
    /// The number of the vCPU, from 0.
    pub index: u32,
    /// Running, halted, waiting for INIT or SIPI.
    pub mp_state: kvm_mp_state,
    /// Pending and injected exceptions, interrupts, NMIs and SMIs.
    pub events: kvm_vcpu_events,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, descriptor tables, control registers.
    pub sregs: kvm_sregs,
    /// x87 and SSE state on hosts without XSAVE; `None` elsewhere, because `xsave` contains it.
    pub fpu: Option<kvm_fpu>,
    /// Extended state in the layout of the XSAVE instruction (not compacted), 4 KiB or more; empty
    /// on hosts without XSAVE.
    pub xsave: Vec<u8>,
    /// XCR0, on hosts that have it.
    pub xcrs: Option<kvm_xcrs>,
    /// Debug registers.
    pub debugregs: kvm_debugregs,
    /// Model-specific registers, in the order in which they are written back; `None` before the
    /// first capture.
    pub msrs: Option<Msrs>,
    /// The local APIC, where it is the kernel's.
    pub lapic: Option<kvm_lapic_state>,
    /// The frequency of the time stamp counter in kHz, where the kernel gives it. Read on the first
    /// capture only.
    pub tsc_khz: Option<u32>,
    /// What the guest finds by CPUID; `None` before the first capture. Read on the first capture
    /// only: the VMM sets it before the vCPU first runs, and the few bits that follow other state
    /// (OSXSAVE, the APIC's, the size of the XSAVE area) are derived again by KVM when that state
    /// is applied.
    pub cpuid: Option<CpuId>,
}

impl VcpuState {
    /// Empty state for vCPU number `index`.
    #[must_use]
    pub fn new(index: u32) -> Self {
        Self { index, ..Self::default() }
    }
}

/// The state of what all vCPUs share in the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmState {
    /// The interval timer, where it is the kernel's.
    pub pit2: Option<kvm_pit_state2>,
    /// The first interrupt controller, where it is the kernel's.
    pub pic_master: Option<kvm_irqchip>,
    /// The second interrupt controller, there where the first is.
    pub pic_slave: Option<kvm_irqchip>,
    /// The I/O APIC, there where the interrupt controllers are.
    pub ioapic: Option<kvm_irqchip>,
    /// What kvmclock shows, in nanoseconds, and what the host's clocks said at that moment.
    pub clock: Option<kvm_clock_data>,
}

impl PartialEq for VmState {
    fn eq(&self, other: &Self) -> bool {
        let chips = |state: &Self| [state.pic_master, state.pic_slave, state.ioapic];
        let same = |(one, two): (&Option<kvm_irqchip>, &Option<kvm_irqchip>)| match (one, two) {
            (Some(one), Some(two)) => one.as_bytes() == two.as_bytes(),
            (None, None) => true,
            _ => false,
        };
        self.pit2 == other.pit2 && self.clock == other.clock && chips(self).iter().zip(&chips(other)).all(same)
    }
}

/// The state of one device of the VMM, as bytes that only the device understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// The kind of device: 1 to 57 bytes of `a-z 0-9 . - _`.
    pub name: String,
    /// Which of its kind, from 0.
    pub index: u32,
    /// The version of the layout, at least 1.
    pub version: u16,
    /// The bytes, at most 16 MiB.
    pub data: Vec<u8>,
}

/// Everything about a machine that is not its memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MachineState {
    /// What all vCPUs share.
    pub vm: VmState,
    /// The vCPUs; each one's place is its index.
    pub vcpus: Vec<VcpuState>,
    /// The VMM's devices.
    pub devices: Vec<DeviceState>,
}

impl MachineState {
    /// Empty state for a machine with `vcpus` vCPUs, to capture into.
    #[must_use]
    pub fn new(vcpus: u32) -> Self {
        Self { vcpus: (0..vcpus).map(VcpuState::new).collect(), ..Self::default() }
    }
}
