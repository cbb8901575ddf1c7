//! Capture and apply: the orders of [`order`](super::order), walked.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_GIF_SET, KVM_STATE_NESTED_GUEST_MODE, Msrs,
    kvm_clock_data, kvm_irqchip, kvm_msr_entry, nested::KvmNestedStateBuffer,
};
use kvm_ioctls::{VcpuFd, VmFd};
use zerocopy::IntoBytes;

use super::error::{StateError, failed};
use super::fit::is_same_frequency;
use super::msrs::{all_msrs, msr_list};
use super::order::{APPLY_ORDER, CAPTURE_ORDER, VM_APPLY_ORDER, VM_CAPTURE_ORDER, VcpuPiece, VmPiece};
use super::run_registers;
use super::spec::{CaptureSpec, TSC, xsave_error};
use super::state::{VcpuState, VmState};
use crate::kvm::xsave;

const EFER_SVME: u64 = 1 << 12;
const CR4_VMXE: u64 = 1 << 13;
const CR4_CET: u64 = 1 << 23;
const MSR_U_CET: u32 = 0x6a0;
const MSR_S_CET: u32 = 0x6a2;
/// `SH_STK_EN` in both of them.
const SHADOW_STACK: u64 = 1;
/// What `vmxon_pa` says while VMX is off.
const VMX_OFF: u64 = u64::MAX;

/// Reads the state of `vcpu` into `state`, whose `index` says which it is.
///
/// The vCPU does not run, and its last exit is complete: after an exit for port or memory-mapped
/// I/O `KVM_RUN` was entered again with `immediate_exit` set. Best called on the vCPU's own thread:
/// elsewhere the kernel moves the vCPU to the other processor first.
///
/// Nothing is allocated after the first call with this `state`. What can't change once the vCPU has
/// run (CPUID, the frequency of the time stamp counter) is read by the first call only. Registers
/// that the last exit left in `kvm_run` ([`leave_registers`](super::leave_registers)) are taken
/// from there where they are known to be the vCPU's still.
///
/// # Errors
/// [`StateError::Ioctl`] and [`StateError::Msr`] where the kernel refuses;
/// [`StateError::Unsupported`] where the guest is in a state that is not captured. `state` is then
/// a mixture of old and new.
pub fn capture_vcpu(vcpu: &mut VcpuFd, spec: &CaptureSpec, state: &mut VcpuState) -> Result<(), StateError> {
    let index = state.index;
    run_registers::settle(vcpu, index)?;
    let left = run_registers::left(vcpu, spec);
    for piece in CAPTURE_ORDER.iter().copied().filter(|piece| spec.has(*piece)) {
        let failed = |ioctl| failed(ioctl, piece.name(), Some(index));
        match piece {
            VcpuPiece::MpState => state.mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?,
            VcpuPiece::Events => state.events = vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
            VcpuPiece::Regs => {
                state.regs = match left.filter(|_| run_registers::stand(state)) {
                    Some(left) => left.regs,
                    None => vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?,
                }
            }
            VcpuPiece::Sregs => {
                state.sregs = match left.filter(|_| run_registers::stand(state)) {
                    Some(left) => left.sregs,
                    None => vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
                }
            }
            VcpuPiece::Fpu => state.fpu = Some(vcpu.get_fpu().map_err(failed("KVM_GET_FPU"))?),
            VcpuPiece::Xsave => {
                if let Some(size) = spec.xsave {
                    state.xsave.resize(size.bytes(), 0);
                    xsave::get(vcpu, size, &mut state.xsave).map_err(xsave_error(Some(index)))?;
                }
            }
            VcpuPiece::Xcrs => state.xcrs = Some(vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?),
            VcpuPiece::DebugRegs => state.debugregs = vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            VcpuPiece::Msrs => capture_msrs(vcpu, spec, state)?,
            VcpuPiece::Lapic => state.lapic = Some(vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?),
            VcpuPiece::TscKhz => {
                if state.tsc_khz.is_none() {
                    state.tsc_khz = Some(vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?);
                }
            }
            VcpuPiece::Cpuid => {
                if state.cpuid.is_none() {
                    let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_CPUID2"))?;
                    state.cpuid = Some(without_room(cpuid));
                }
            }
        }
    }
    refuse_smm(state).or_else(|| refuse_shadow_stack(state)).map_or(Ok(()), Err)?;
    refuse_nested(vcpu, spec, state)
}

pub(super) fn capture_msrs(vcpu: &VcpuFd, spec: &CaptureSpec, state: &mut VcpuState) -> Result<(), StateError> {
    let fits = |msrs: &&mut Msrs| msrs.as_slice().iter().map(|msr| msr.index).eq(spec.msrs.iter().copied());
    let msrs = match state.msrs.as_mut().filter(fits) {
        Some(_) => state.msrs.as_mut(),
        None => {
            let entries: Vec<_> = spec.msrs.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
            Some(state.msrs.insert(msr_list(&entries)?))
        }
    };
    let Some(msrs) = msrs else { return Ok(()) };
    let read = vcpu.get_msrs(msrs).map_err(failed("KVM_GET_MSRS", VcpuPiece::Msrs.name(), Some(state.index)))?;
    all_msrs(msrs, read, state.index, "read")
}

fn refuse_smm(state: &VcpuState) -> Option<StateError> {
    (state.events.smi.smm != 0).then_some(StateError::Unsupported {
        piece: "system management mode",
        vcpu: Some(state.index),
        reason: "the vCPU is in it, and its memory is not captured",
    })
}

fn refuse_shadow_stack(state: &VcpuState) -> Option<StateError> {
    if state.sregs.cr4 & CR4_CET == 0 {
        return None;
    }
    let enabled = |msr: &kvm_msr_entry| matches!(msr.index, MSR_U_CET | MSR_S_CET) && msr.data & SHADOW_STACK != 0;
    state.msrs.iter().flat_map(|msrs| msrs.as_slice()).any(enabled).then_some(StateError::Unsupported {
        piece: "shadow stack pointer",
        vcpu: Some(state.index),
        reason: "the guest has shadow stacks enabled, and their pointer is not captured",
    })
}

pub(super) fn refuse_nested(vcpu: &VcpuFd, spec: &CaptureSpec, state: &VcpuState) -> Result<(), StateError> {
    // Only a guest that has enabled one of these can have nested state that matters; the call is
    // saved for all others.
    if !spec.nested || (state.sregs.efer & EFER_SVME == 0 && state.sregs.cr4 & CR4_VMXE == 0) {
        return Ok(());
    }
    let mut nested = KvmNestedStateBuffer::empty();
    vcpu.nested_state(&mut nested).map_err(failed("KVM_GET_NESTED_STATE", "nested virtualization", Some(state.index)))?;
    let reason = nested_in_use(&nested);
    reason
        .map_or(Ok(()), |reason| Err(StateError::Unsupported { piece: "nested virtualization", vcpu: Some(state.index), reason }))
}

/// What of the nested state is in no other piece.
fn nested_in_use(nested: &KvmNestedStateBuffer) -> Option<&'static str> {
    let flags = u32::from(nested.flags);
    if flags & KVM_STATE_NESTED_GUEST_MODE != 0 {
        return Some("the vCPU runs a guest of the guest");
    }
    if u32::from(nested.format) == KVM_STATE_NESTED_FORMAT_VMX {
        // The header begins with the address given to VMXON.
        let vmxon = nested.hdr.as_bytes().first_chunk().map_or(VMX_OFF, |bytes| u64::from_le_bytes(*bytes));
        return (vmxon != VMX_OFF).then_some("the guest has turned VMX on");
    }
    (flags & KVM_STATE_NESTED_GIF_SET == 0).then_some("the guest has cleared SVM's global interrupt flag")
}

/// Writes `state` to `vcpu`, a vCPU of a fresh VM that was built like the one captured and whose
/// memory is restored.
///
/// `spec` is the fresh VM's. Writing can make the kernel write guest memory (see [the
/// module](super)).
///
/// # Errors
/// [`StateError::Missing`], [`StateError::Unsupported`] and [`StateError::Size`] where the state
/// and this VM do not fit, found before anything is written, but for the counter's frequency;
/// [`StateError::Ioctl`] and [`StateError::Msr`] where the kernel refuses: the vCPU must then not
/// run. [`compare`](super::fit::compare) tells before there is a VM.
pub fn apply_vcpu(vcpu: &VcpuFd, spec: &CaptureSpec, state: &VcpuState) -> Result<(), StateError> {
    for piece in VcpuPiece::ALL {
        let there = match piece {
            VcpuPiece::Fpu => state.fpu.is_some(),
            VcpuPiece::Xsave => !state.xsave.is_empty(),
            VcpuPiece::Xcrs => state.xcrs.is_some(),
            VcpuPiece::Lapic => state.lapic.is_some(),
            VcpuPiece::Cpuid => state.cpuid.is_some(),
            VcpuPiece::Msrs => state.msrs.is_some(),
            // A kernel that doesn't know its frequency leaves the guest's as it is.
            VcpuPiece::TscKhz => spec.tsc_khz && state.tsc_khz.is_some(),
            VcpuPiece::MpState | VcpuPiece::Events | VcpuPiece::Regs | VcpuPiece::Sregs | VcpuPiece::DebugRegs => true,
        };
        fits(piece.name(), Some(state.index), there, spec.has(*piece) && (*piece != VcpuPiece::TscKhz || there))?;
    }
    if let Some(expected) = spec.xsave_bytes().filter(|bytes| *bytes != state.xsave.len()) {
        return Err(StateError::Size { piece: VcpuPiece::Xsave.name(), expected, found: state.xsave.len() });
    }
    for piece in APPLY_ORDER {
        let failed = |ioctl| failed(ioctl, piece.name(), Some(state.index));
        match piece {
            VcpuPiece::MpState => vcpu.set_mp_state(state.mp_state).map_err(failed("KVM_SET_MP_STATE"))?,
            VcpuPiece::Events => vcpu.set_vcpu_events(&state.events).map_err(failed("KVM_SET_VCPU_EVENTS"))?,
            VcpuPiece::Regs => vcpu.set_regs(&state.regs).map_err(failed("KVM_SET_REGS"))?,
            VcpuPiece::Sregs => vcpu.set_sregs(&state.sregs).map_err(failed("KVM_SET_SREGS"))?,
            VcpuPiece::Fpu => given(&state.fpu, |fpu| vcpu.set_fpu(fpu)).map_err(failed("KVM_SET_FPU"))?,
            VcpuPiece::Xsave => {
                given(&spec.xsave, |size| xsave::set(vcpu, *size, &state.xsave)).map_err(xsave_error(Some(state.index)))?
            }
            VcpuPiece::Xcrs => given(&state.xcrs, |xcrs| vcpu.set_xcrs(xcrs)).map_err(failed("KVM_SET_XCRS"))?,
            VcpuPiece::DebugRegs => vcpu.set_debug_regs(&state.debugregs).map_err(failed("KVM_SET_DEBUGREGS"))?,
            VcpuPiece::Msrs => {
                if let Some(msrs) = &state.msrs {
                    detach_counter(vcpu, state.index, msrs)?;
                    let written = vcpu.set_msrs(msrs).map_err(failed("KVM_SET_MSRS"))?;
                    all_msrs(msrs, written, state.index, "written")?;
                }
            }
            VcpuPiece::Lapic => given(&state.lapic, |lapic| vcpu.set_lapic(lapic)).map_err(failed("KVM_SET_LAPIC"))?,
            VcpuPiece::TscKhz => {
                if let Some(khz) = state.tsc_khz.filter(|_| spec.tsc_khz) {
                    set_frequency(vcpu, spec, state.index, khz)?;
                }
            }
            VcpuPiece::Cpuid => {
                // A vCPU that was never told has no entries. Telling it none would be something
                // else: the kernel then refuses special registers with features that no entry
                // announces.
                let told = state.cpuid.as_ref().filter(|cpuid| !cpuid.as_slice().is_empty());
                given(&told, |cpuid| vcpu.set_cpuid2(cpuid)).map_err(failed("KVM_SET_CPUID2"))?;
            }
        }
    }
    Ok(())
}

/// Reads what all vCPUs share. None of them runs.
///
/// # Errors
/// [`StateError::Ioctl`] where the kernel refuses. `state` is then a mixture of old and new.
pub fn capture_vm(vm: &VmFd, spec: &CaptureSpec, state: &mut VmState) -> Result<(), StateError> {
    for piece in VM_CAPTURE_ORDER.iter().copied().filter(|piece| spec.vm_has(*piece)) {
        let failed = |ioctl| failed(ioctl, piece.name(), None);
        match piece {
            VmPiece::Pit2 => state.pit2 = Some(vm.get_pit2().map_err(failed("KVM_GET_PIT2"))?),
            VmPiece::Clock => state.clock = Some(vm.get_clock().map_err(failed("KVM_GET_CLOCK"))?),
            VmPiece::PicMaster | VmPiece::PicSlave | VmPiece::IoApic => {
                let place = chip(state, piece);
                let chip = place.get_or_insert_default();
                chip.chip_id = chip_id(piece);
                vm.get_irqchip(chip).map_err(failed("KVM_GET_IRQCHIP"))?;
            }
        }
    }
    Ok(())
}

/// Writes what all vCPUs share to a fresh VM, after its vCPUs were applied. `spec` is the fresh
/// VM's.
///
/// The clock goes on from where it was, as the time stamp counters do: to the guest no time has
/// passed.
///
/// # Errors
/// [`StateError::Missing`] and [`StateError::Unsupported`] where the state and this VM do not fit,
/// found before anything is written; [`StateError::Ioctl`] where the kernel refuses: the VM must
/// then not run.
pub fn apply_vm(vm: &VmFd, spec: &CaptureSpec, state: &VmState) -> Result<(), StateError> {
    for piece in VmPiece::ALL {
        let there = match piece {
            VmPiece::Pit2 => state.pit2.is_some(),
            VmPiece::PicMaster => state.pic_master.is_some(),
            VmPiece::PicSlave => state.pic_slave.is_some(),
            VmPiece::IoApic => state.ioapic.is_some(),
            VmPiece::Clock => state.clock.is_some(),
        };
        fits(piece.name(), None, there, spec.vm_has(*piece))?;
    }
    for piece in VM_APPLY_ORDER {
        let failed = |ioctl| failed(ioctl, piece.name(), None);
        let chip = match piece {
            VmPiece::PicMaster => &state.pic_master,
            VmPiece::PicSlave => &state.pic_slave,
            VmPiece::IoApic => &state.ioapic,
            VmPiece::Pit2 => {
                given(&state.pit2, |pit| vm.set_pit2(pit)).map_err(failed("KVM_SET_PIT2"))?;
                continue;
            }
            VmPiece::Clock => {
                // Without flags the kernel takes the value as it is; with KVM_CLOCK_REALTIME it
                // would add the time since then.
                let value = |clock: &kvm_clock_data| kvm_clock_data { clock: clock.clock, ..Default::default() };
                given(&state.clock, |clock| vm.set_clock(&value(clock))).map_err(failed("KVM_SET_CLOCK"))?;
                continue;
            }
        };
        given(chip, |chip| vm.set_irqchip(chip)).map_err(failed("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}

/// Tells the guest that it was paused, so that its watchdog does not mistake the pause for a
/// lock-up. Returns whether the guest can be told: only one that uses kvmclock can.
///
/// # Errors
/// [`StateError::Ioctl`] where the kernel refuses for another reason.
pub fn notify_paused(vcpu: &VcpuFd) -> Result<bool, StateError> {
    match vcpu.kvmclock_ctrl() {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.errno(), libc::EINVAL | libc::ENOTTY) => Ok(false),
        Err(error) => Err(failed("KVM_KVMCLOCK_CTRL", VmPiece::Clock.name(), None)(error)),
    }
}

/// Which chip `KVM_GET_IRQCHIP` is asked for; 0 for pieces that are none.
pub(super) const fn chip_id(piece: VmPiece) -> u32 {
    match piece {
        VmPiece::PicSlave => kvm_bindings::KVM_IRQCHIP_PIC_SLAVE,
        VmPiece::IoApic => kvm_bindings::KVM_IRQCHIP_IOAPIC,
        VmPiece::PicMaster | VmPiece::Pit2 | VmPiece::Clock => kvm_bindings::KVM_IRQCHIP_PIC_MASTER,
    }
}

/// The place of one of the three chips.
pub(super) const fn chip(state: &mut VmState, piece: VmPiece) -> &mut Option<kvm_irqchip> {
    match piece {
        VmPiece::PicSlave => &mut state.pic_slave,
        VmPiece::IoApic => &mut state.ioapic,
        VmPiece::PicMaster | VmPiece::Pit2 | VmPiece::Clock => &mut state.pic_master,
    }
}

/// Before 6.5 (commit ab322c43cce9), `KVM_GET_CPUID2` leaves the number of entries as it was asked
/// for, and the rest are zeros.
fn without_room(cpuid: CpuId) -> CpuId {
    let entries = cpuid.as_slice();
    let told = entries.iter().rposition(|entry| entry.as_bytes().iter().any(|byte| *byte != 0)).map_or(0, |last| last + 1);
    entries.get(..told).and_then(|told| CpuId::from_entries(told).ok()).unwrap_or(cpuid)
}

/// Has the counter go on at `khz`, unless it does, or nearly so. Without scaling in hardware KVM
/// takes a higher frequency all the same, and puts the counter forward at each exit
/// (`arch/x86/kvm/x86.c`, `set_tsc_khz`): that is no counter to go on with.
fn set_frequency(vcpu: &VcpuFd, spec: &CaptureSpec, index: u32, khz: u32) -> Result<(), StateError> {
    let piece = VcpuPiece::TscKhz.name();
    let same = vcpu.get_tsc_khz().is_ok_and(|own| is_same_frequency(khz, own));
    match (same, spec.tsc_scaling) {
        (true, _) => Ok(()),
        (false, true) => vcpu.set_tsc_khz(khz).map_err(failed("KVM_SET_TSC_KHZ", piece, Some(index))),
        (false, false) => {
            let reason = "the time stamp counter had another frequency, and can't be scaled to it";
            Err(StateError::Unsupported { piece, vcpu: Some(index), reason })
        }
    }
}

/// See [`counter_far_from`].
fn detach_counter(vcpu: &VcpuFd, index: u32, msrs: &Msrs) -> Result<(), StateError> {
    let Some(far) = msrs.as_slice().iter().find_map(|msr| counter_far_from(msr, index)) else { return Ok(()) };
    let failed = failed("KVM_SET_MSRS", VcpuPiece::Msrs.name(), Some(index));
    let one =
        Msrs::from_entries(&[far]).map_err(|_| StateError::Size { piece: VcpuPiece::Msrs.name(), expected: 1, found: 0 })?;
    let written = vcpu.set_msrs(&one).map_err(failed)?;
    all_msrs(&one, written, index, "written")
}

/// KVM may drop a time stamp counter that is within a second of what the counter written last would
/// be by now, and go on from that one: before 6.7 always, from then on once user space has written
/// one (docs/kernel.md, "Time"). So before the first vCPU's is written, this is: far away from it.
/// Those of the others are meant to be within a second of it.
pub(super) fn counter_far_from(msr: &kvm_msr_entry, vcpu: u32) -> Option<kvm_msr_entry> {
    /// Minutes, at any frequency.
    const FAR: u64 = 1 << 42;
    // A zero means "agree with the one written last" and is left alone.
    (vcpu == 0 && msr.index == TSC && msr.data != 0).then(|| kvm_msr_entry { data: msr.data.wrapping_add(FAR), ..*msr })
}

pub(super) fn given<T, E>(value: &Option<T>, write: impl FnOnce(&T) -> Result<(), E>) -> Result<(), E> {
    value.as_ref().map_or(Ok(()), write)
}

fn fits(piece: &'static str, vcpu: Option<u32>, there: bool, wanted: bool) -> Result<(), StateError> {
    match (there, wanted) {
        (true, true) | (false, false) => Ok(()),
        (false, true) => Err(StateError::Missing { piece, vcpu }),
        (true, false) => {
            Err(StateError::Unsupported { piece, vcpu, reason: "the state has it and this virtual machine does not" })
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use zerocopy::FromBytes;

    use super::*;
    use crate::machine::NOT_CAPTURED;

    fn named(error: Option<StateError>) -> Option<&'static str> {
        error.map(|error| match error {
            StateError::Unsupported { piece, vcpu: Some(4), .. } => {
                assert!(NOT_CAPTURED.iter().any(|(name, _)| *name == piece), "{piece} is listed");
                piece
            }
            other => panic!("{other}"),
        })
    }

    #[test]
    fn system_management_mode_is_refused() {
        let mut state = VcpuState::new(4);
        assert_eq!(named(refuse_smm(&state)), None);
        state.events.smi.pending = 1;
        assert_eq!(named(refuse_smm(&state)), None);
        state.events.smi.smm = 1;
        assert_eq!(named(refuse_smm(&state)), Some("system management mode"));
    }

    #[test]
    fn shadow_stacks_are_refused_once_enabled() {
        let mut state = VcpuState::new(4);
        for (index, data, cr4, refused) in [
            (MSR_U_CET, 1, CR4_CET, true),
            (MSR_S_CET, 0x1d, CR4_CET, true),
            (MSR_U_CET, 1, 0, false),
            (MSR_S_CET, 4, CR4_CET, false), // Indirect branch tracking alone.
            (0x6a4, 1, CR4_CET, false),
        ] {
            state.sregs.cr4 = cr4;
            state.msrs =
                Some(msr_list(&[kvm_msr_entry::default(), kvm_msr_entry { index, data, ..Default::default() }]).unwrap());
            assert_eq!(
                named(refuse_shadow_stack(&state)),
                refused.then_some("shadow stack pointer"),
                "{index:#x} {data} {cr4:#x}"
            );
        }
    }

    #[test]
    fn nested_state_is_refused_where_it_matters() {
        let nested = |flags: u16, format: u16, vmxon: u64| {
            let mut bytes = vec![0; size_of::<KvmNestedStateBuffer>()];
            bytes[..2].copy_from_slice(&flags.to_le_bytes());
            bytes[2..4].copy_from_slice(&format.to_le_bytes());
            bytes[8..16].copy_from_slice(&vmxon.to_le_bytes());
            nested_in_use(&KvmNestedStateBuffer::read_from_bytes(&bytes).unwrap()).is_some()
        };
        let (vmx, svm, guest_mode, gif) = (0, 1, 1, 0x100);
        assert!(!nested(0, vmx, VMX_OFF));
        assert!(nested(0, vmx, 0x1000));
        assert!(nested(guest_mode, vmx, 0x1000));
        assert!(!nested(gif, svm, 0));
        assert!(nested(0, svm, 0));
        assert!(nested(gif | guest_mode, svm, 0));
    }
}
