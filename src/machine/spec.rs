//! What there is to capture on a VM.

use kvm_bindings::{Msrs, kvm_irqchip, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::error::StateError;
use super::order::{VcpuPiece, VmPiece};
use crate::kvm::xsave::{XsaveError, XsaveSize};

/// The most model-specific registers in a record and in one call (`KVM_MAX_MSR_ENTRIES`).
pub(super) const MSRS_MAX: usize = kvm_bindings::KVM_MAX_MSR_ENTRIES;

/// The memory type range registers. Guests set them, KVM keeps them, and `KVM_GET_MSR_INDEX_LIST`
/// does not list them.
pub(super) const MTRRS: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f, 0x250, 0x258,
    0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
];

/// Whether a write to the register is an action and not only a change of value, even where the
/// value stays: the time stamp counter and its deadline, and the paravirtual ones (KVM's and
/// Hyper-V's), many of which make KVM write guest memory. Where they hold something but zero, which
/// turns them off, they are taken to be writable because somebody wrote them, and are not written
/// when the host is probed.
const fn is_action(index: u32) -> bool {
    matches!(index, TSC | TSC_DEADLINE | 0x11 | 0x12 | 0x4b56_4d00..=0x4b56_4d07 | 0x4000_0000..=0x4000_01ff)
}

pub(super) const ASYNC_PF_EN: u32 = 0x4b56_4d02;
pub(super) const TSC: u32 = 0x10;
pub(super) const TSC_DEADLINE: u32 = 0x6e0;

/// The place of a register among those written back: the deadline is compared with the time stamp
/// counter, and enabling asynchronous page faults uses the vector that another register holds.
const fn rank(index: u32) -> u8 {
    match index {
        ASYNC_PF_EN => 1,
        TSC_DEADLINE => 2,
        _ => 0,
    }
}

/// What `KVM_CAP_SYNC_REGS` answers where it has both sets of registers that
/// [`super::leave_registers`] asks for. Both bits are small.
#[expect(clippy::cast_possible_wrap, reason = "two low bits")]
const REGISTERS_AT_EXIT: i32 =
    (kvm_bindings::KVM_SYNC_X86_REGS | kvm_bindings::KVM_SYNC_X86_SREGS | kvm_bindings::KVM_SYNC_X86_EVENTS) as i32;

/// What there is to capture on a VM and its vCPUs, found out once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSpec {
    pub(super) xsave: Option<XsaveSize>,
    pub(super) xcrs: bool,
    pub(super) msrs: Vec<u32>,
    pub(super) msrs_unreadable: Vec<u32>,
    pub(super) msrs_unwritable: Vec<u32>,
    pub(super) lapic: bool,
    pub(super) irqchip: bool,
    pub(super) pit: bool,
    pub(super) clock: bool,
    pub(super) tsc_khz: bool,
    /// The counter can be scaled to another frequency in hardware.
    pub(super) tsc_scaling: bool,
    pub(super) nested: bool,
    /// The kernel can leave general and special registers in `kvm_run` at each exit, and take them
    /// and events from there at each entry.
    pub(super) registers_at_exit: bool,
}

impl CaptureSpec {
    /// Finds out. `vcpu` is any vCPU of `vm`; it has its CPUID (from 6.13 on, what can be read
    /// depends on it) and does not run.
    ///
    /// Model-specific registers are read and written back with what was read, except those where a
    /// write is an action.
    ///
    /// # Errors
    /// [`StateError::Ioctl`] where the kernel can't list registers, and [`StateError::Size`] where
    /// extended state has an impossible size.
    pub fn probe(kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> Result<Self, StateError> {
        let xsave =
            if kvm.check_extension(Cap::Xsave) { Some(XsaveSize::probe(vm, vcpu).map_err(xsave_error(None))?) } else { None };
        let list = kvm.get_msr_index_list().map_err(|error| StateError::Ioctl {
            ioctl: "KVM_GET_MSR_INDEX_LIST",
            piece: VcpuPiece::Msrs.name(),
            vcpu: None,
            source: error.into(),
        })?;
        let mut wanted: Vec<u32> = list.as_slice().iter().copied().chain(MTRRS).collect();
        wanted.sort_by_key(|index| (rank(*index), *index));
        wanted.dedup();
        let (mut msrs, mut msrs_unreadable, mut msrs_unwritable) = (Vec::new(), Vec::new(), Vec::new());
        for index in wanted {
            match probe_msr(vcpu, index) {
                Access::Full if msrs.len() < MSRS_MAX => msrs.push(index),
                Access::Full | Access::ReadOnly => msrs_unwritable.push(index),
                Access::None => msrs_unreadable.push(index),
            }
        }
        Ok(Self {
            xsave,
            xcrs: kvm.check_extension(Cap::Xcrs),
            msrs,
            msrs_unreadable,
            msrs_unwritable,
            lapic: vcpu.get_lapic().is_ok(),
            irqchip: vm.get_irqchip(&mut kvm_irqchip::default()).is_ok(),
            pit: vm.get_pit2().is_ok(),
            clock: vm.check_extension(Cap::AdjustClock),
            tsc_khz: vcpu.get_tsc_khz().is_ok(),
            tsc_scaling: vm.check_extension(Cap::TscControl),
            nested: vm.check_extension(Cap::NestedState),
            registers_at_exit: vm.check_extension_int(Cap::SyncRegs) & REGISTERS_AT_EXIT == REGISTERS_AT_EXIT,
        })
    }

    /// Bytes of a vCPU's extended state; `None` on hosts without XSAVE.
    #[must_use]
    pub fn xsave_bytes(&self) -> Option<usize> {
        self.xsave.map(XsaveSize::bytes)
    }

    /// The model-specific registers that are captured, in the order in which they are written back.
    #[must_use]
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// Registers that the kernel lists but can't read on this vCPU. They are not captured.
    #[must_use]
    pub fn msrs_unreadable(&self) -> &[u32] {
        &self.msrs_unreadable
    }

    /// Registers that can be read but not written back. They are not captured.
    #[must_use]
    pub fn msrs_unwritable(&self) -> &[u32] {
        &self.msrs_unwritable
    }

    /// Whether a vCPU has this piece.
    #[must_use]
    pub const fn has(&self, piece: VcpuPiece) -> bool {
        match piece {
            VcpuPiece::Fpu => self.xsave.is_none(),
            VcpuPiece::Xsave => self.xsave.is_some(),
            VcpuPiece::Xcrs => self.xcrs,
            VcpuPiece::Lapic => self.lapic,
            VcpuPiece::TscKhz => self.tsc_khz,
            VcpuPiece::MpState
            | VcpuPiece::Events
            | VcpuPiece::Regs
            | VcpuPiece::Sregs
            | VcpuPiece::DebugRegs
            | VcpuPiece::Msrs
            | VcpuPiece::Cpuid => true,
        }
    }

    /// Whether the VM has this piece.
    #[must_use]
    pub const fn vm_has(&self, piece: VmPiece) -> bool {
        match piece {
            VmPiece::Pit2 => self.pit,
            VmPiece::PicMaster | VmPiece::PicSlave | VmPiece::IoApic => self.irqchip,
            VmPiece::Clock => self.clock,
        }
    }
}

enum Access {
    None,
    ReadOnly,
    Full,
}

fn probe_msr(vcpu: &VcpuFd, index: u32) -> Access {
    let Ok(mut one) = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]) else { return Access::None };
    if !matches!(vcpu.get_msrs(&mut one), Ok(1)) {
        return Access::None;
    }
    let set = one.as_slice().iter().any(|msr| msr.data != 0);
    if is_action(index) && (set || index == TSC) || matches!(vcpu.set_msrs(&one), Ok(1)) {
        Access::Full
    } else {
        Access::ReadOnly
    }
}

/// An error of the extended state's layer as one of state.
pub(super) fn xsave_error(vcpu: Option<u32>) -> impl Fn(XsaveError) -> StateError {
    let piece = VcpuPiece::Xsave.name();
    move |error| match error {
        XsaveError::Ioctl { ioctl, source } => StateError::Ioctl { ioctl, piece, vcpu, source },
        XsaveError::Size { expected, found } => StateError::Size { piece, expected, found },
        XsaveError::Kernel { found } => StateError::Size {
            piece,
            expected: crate::kvm::xsave::XSAVE_BYTES_MIN,
            found: usize::try_from(found).unwrap_or_default(),
        },
    }
}
