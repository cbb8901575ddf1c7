//! Registers that lie in `kvm_run`: what the last exit left there, and what the next entry takes
//! from there. Each saves calls, which take 5 us each where the kernel loads and unloads the vCPU
//! for each at that price (`docs/kernel.md`).

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_lapic_state, kvm_sync_regs};
use kvm_ioctls::{SyncReg, VcpuFd};
use zerocopy::IntoBytes;

use super::error::{StateError, failed};
use super::order::VcpuPiece;
use super::spec::CaptureSpec;
use super::state::VcpuState;

/// RFLAGS bit 1 is always set: registers without it were never left there.
const RFLAGS_ALWAYS: u64 = 1 << 1;
const CR0_PE: u64 = 1;
/// The local APIC's task priority register, and the bits of it that CR8 does not have.
const APIC_TASKPRI: usize = 0x80;
const PRIORITY_LOW: u32 = 0xf;
/// The local APIC's spurious interrupt vector register, and its bit that says that software has
/// enabled the APIC.
const APIC_SPIV: usize = 0xf0;
const APIC_ENABLED: u32 = 1 << 8;

/// What is given to the next entry, always together: the kernel takes them in this order
/// (`arch/x86/kvm/x86.c`, `sync_regs`), which is also that of
/// [`APPLY_CONSTRAINTS`](super::APPLY_CONSTRAINTS), for events come last.
const GIVEN: [SyncReg; 3] = [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents];

/// Has the kernel leave the general and special registers of `vcpu` in its `kvm_run` at each exit,
/// where [`capture_vcpu`](super::capture_vcpu) then reads them without asking: two calls less while
/// the guest stands still. Does nothing where the kernel can't (`KVM_CAP_SYNC_REGS`).
///
/// Call it after the vCPU's state was set, and again if registers are ever set later other than by
/// the vCPU itself or a [`Rewinder`](super::Rewinder): what an earlier exit left is forgotten then,
/// and captures ask the kernel until the next exit.
pub fn leave_registers(vcpu: &mut VcpuFd, spec: &CaptureSpec) {
    if spec.registers_at_exit {
        GIVEN.into_iter().for_each(|given| vcpu.clear_sync_dirty_reg(given));
        vcpu.sync_regs_mut().regs.rflags = 0;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
    }
}

/// The registers that the last exit left, if it did and nobody set others since.
pub(super) fn left(vcpu: &VcpuFd, spec: &CaptureSpec) -> Option<kvm_sync_regs> {
    spec.registers_at_exit.then(|| vcpu.sync_regs()).filter(|left| left.regs.rflags & RFLAGS_ALWAYS != 0)
}

/// What the last exit left is not what the vCPU has any more.
pub(super) fn forget(vcpu: &mut VcpuFd, spec: &CaptureSpec) {
    if spec.registers_at_exit {
        vcpu.sync_regs_mut().regs.rflags = 0;
    }
}

/// Whether the registers of the last exit are the vCPU's still. Two things change registers of a
/// vCPU that is not in `KVM_RUN`:
/// - reading the MP state accepts INIT and SIPI. Both need the kernel's local APIC, and a vCPU that
///   took INIT and has not run since has it disabled by software;
/// - reading events delivers the payload of a pending exception, to CR2 or DR6.
pub(super) fn stand(state: &VcpuState) -> bool {
    let exception = &state.events.exception;
    let took_init = |lapic| register(lapic, APIC_SPIV) & APIC_ENABLED == 0;
    exception.injected == 0 && exception.pending == 0 && !state.lapic.as_ref().is_some_and(took_init)
}

fn register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = lapic.regs.as_bytes().get(offset..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Whether `saved` may be given to the next entry, in place of three calls now. The entry comes
/// after all the rest was written, and so out of [`APPLY_ORDER`](super::APPLY_ORDER): this holds
/// where that makes no difference. `left` is what the last exit left. An INIT that came since then
/// turns paging off, and changes nothing else that the rest depends on.
pub(super) fn can_wait(saved: &VcpuState, left: &kvm_sync_regs) -> bool {
    let (sregs, Some(lapic)) = (&saved.sregs, &saved.lapic) else { return false };
    let priority = register(lapic, APIC_TASKPRI);
    // A vCPU that was never started takes nothing.
    saved.mp_state.mp_state == KVM_MP_STATE_RUNNABLE
        // Special registers as at reset would make the vCPU runnable.
        && sregs.cr0 & CR0_PE != 0
        // The layout of the local APIC, and which model-specific registers there are, stay.
        && sregs.apic_base == left.sregs.apic_base
        && sregs.efer == left.sregs.efer
        // CR8 writes the task priority, all of it.
        && priority & PRIORITY_LOW == 0
        && u64::from(priority >> 4) == sregs.cr8
}

/// Gives the general and special registers and the events of `saved` to the next entry.
pub(super) fn give(vcpu: &mut VcpuFd, saved: &VcpuState) {
    let VcpuState { regs, sregs, events, .. } = saved;
    *vcpu.sync_regs_mut() = kvm_sync_regs { regs: *regs, sregs: *sregs, events: *events };
    GIVEN.into_iter().for_each(|given| vcpu.set_sync_dirty_reg(given));
}

/// Writes what was given to the next entry now: somebody is to read it, or to write other state,
/// and there was no entry yet.
///
/// # Errors
/// [`StateError::Ioctl`] where the kernel refuses. It is given to the next entry still.
pub(super) fn settle(vcpu: &mut VcpuFd, index: u32) -> Result<(), StateError> {
    if vcpu.get_kvm_run().kvm_dirty_regs == 0 {
        return Ok(());
    }
    let given = vcpu.sync_regs();
    let failed = |ioctl, piece: VcpuPiece| failed(ioctl, piece.name(), Some(index));
    vcpu.set_sregs(&given.sregs).map_err(failed("KVM_SET_SREGS", VcpuPiece::Sregs))?;
    vcpu.set_regs(&given.regs).map_err(failed("KVM_SET_REGS", VcpuPiece::Regs))?;
    vcpu.set_vcpu_events(&given.events).map_err(failed("KVM_SET_VCPU_EVENTS", VcpuPiece::Events))?;
    GIVEN.into_iter().for_each(|given| vcpu.clear_sync_dirty_reg(given));
    Ok(())
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED};

    use super::*;

    fn set(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
        lapic.regs.as_mut_bytes()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn registers_wait_only_where_the_order_makes_no_difference() {
        let mut lapic = kvm_lapic_state::default();
        set(&mut lapic, APIC_TASKPRI, 0x30);
        let mut saved = VcpuState { lapic: Some(lapic), ..VcpuState::default() };
        saved.mp_state.mp_state = KVM_MP_STATE_RUNNABLE;
        (saved.sregs.cr0, saved.sregs.efer, saved.sregs.apic_base, saved.sregs.cr8) = (0x8005_0033, 0xd01, 0xfee0_0900, 3);
        let left = kvm_sync_regs { sregs: saved.sregs, ..Default::default() };
        assert!(can_wait(&saved, &left));
        let without = |edit: &dyn Fn(&mut VcpuState, &mut kvm_sync_regs)| {
            let (mut saved, mut left) = (saved.clone(), left);
            edit(&mut saved, &mut left);
            assert!(!can_wait(&saved, &left));
        };
        without(&|saved, _| saved.lapic = None);
        without(&|saved, _| saved.mp_state.mp_state = KVM_MP_STATE_HALTED);
        without(&|saved, _| saved.mp_state.mp_state = KVM_MP_STATE_UNINITIALIZED);
        without(&|saved, _| saved.sregs.cr0 = 0x10);
        without(&|_, left| left.sregs.apic_base = 0xfee0_0d00);
        without(&|_, left| left.sregs.efer = 0);
        without(&|saved, _| saved.sregs.cr8 = 2);
        without(&|saved, _| saved.lapic.iter_mut().for_each(|lapic| set(lapic, APIC_TASKPRI, 0x31)));
    }
}
