//! Putting a machine that has run back to state that was captured of it: the result is that of
//! [`apply_vcpu`](super::apply_vcpu) and [`apply_vm`](super::apply_vm), in a fraction of the time.
//!
//! Most pieces are written whatever the vCPU has: asking first would take as long. A piece whose
//! writing makes the kernel do more than store it (XCR0 computes CPUID anew, the local APIC sets
//! its timer) is read first, and written only where it differs or time goes on in it. Of the
//! model-specific registers those are written that differ, and those by which time goes on.

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_clock_data, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::{VcpuFd, VmFd};
use zerocopy::IntoBytes;

use super::capture::{capture_msrs, chip, chip_id, counter_far_from, given, refuse_nested};
use super::error::{StateError, failed};
use super::msrs::{all_msrs, msr_list};
use super::order::{APPLY_ORDER, VM_APPLY_ORDER, VcpuPiece, VmPiece};
use super::run_registers;
use super::spec::{ASYNC_PF_EN, CaptureSpec, TSC, TSC_DEADLINE, xsave_error};
use super::state::{VcpuState, VmState};
use crate::kvm::xsave;

/// What is found on a machine that is put back. Kept for its memory.
#[derive(Clone, Debug, Default)]
pub struct Rewinder {
    vcpu: VcpuState,
    vm: VmState,
    msrs: Vec<kvm_msr_entry>,
}

/// Registers of the local APIC, as offsets: the timer's entry in the vector table, which has the
/// timer's mode, and the count that it begins with.
const APIC_LVTT: usize = 0x320;
const APIC_TMICT: usize = 0x380;
/// The bit of the mode that says: by deadline.
const LVTT_DEADLINE: u32 = 1 << 18;

/// Whether the timer of a local APIC may run or have run out: it does not while it has no count,
/// unless it goes by deadline.
fn timer_may_run(lapic: &kvm_lapic_state) -> bool {
    let register = |offset: usize| {
        let bytes = lapic.regs.as_bytes().get(offset..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes))
    };
    register(APIC_TMICT) != 0 || register(APIC_LVTT) & LVTT_DEADLINE != 0
}

/// Whether a register is written back.
const fn rewind_msr(saved: &kvm_msr_entry, found: &kvm_msr_entry) -> bool {
    match saved.index {
        // It went on.
        TSC => true,
        // A deadline is a time of the counter, which goes back: the timer is set anew. Enabling
        // asynchronous page faults wakes whoever waits for one, as a restore does.
        TSC_DEADLINE | ASYNC_PF_EN => saved.data != 0 || found.data != 0,
        _ => saved.data != found.data,
    }
}

impl Rewinder {
    /// Puts `vcpu` back to `state`, which was captured of this very vCPU with this `spec`. Its
    /// memory was put back before.
    ///
    /// The vCPU does not run, and its last exit is complete. The kernel may write guest memory. The
    /// time stamp counter goes on from where it was, as at a restore.
    ///
    /// General and special registers and events may be left in `kvm_run`, for the next entry to
    /// take: until then the kernel's own calls tell those from before.
    /// [`capture_vcpu`](super::capture_vcpu) tells the new ones.
    ///
    /// # Errors
    /// [`StateError::Unsupported`] where the vCPU runs a guest of its own by now, found before
    /// anything is written; [`StateError::Size`] for state of another machine;
    /// [`StateError::Ioctl`] and [`StateError::Msr`] where the kernel refuses. After any, the vCPU
    /// must not run.
    pub fn vcpu(&mut self, vcpu: &mut VcpuFd, spec: &CaptureSpec, state: &VcpuState) -> Result<(), StateError> {
        let index = Some(state.index);
        run_registers::settle(vcpu, state.index)?;
        let found = &mut self.vcpu;
        found.index = state.index;
        // First, for it takes INIT and SIPI that came since: they would be taken at the next entry
        // otherwise.
        found.mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE", VcpuPiece::MpState.name(), index))?;
        // Since the last exit nothing can have turned nested virtualization on.
        let left = run_registers::left(vcpu, spec);
        found.sregs = match &left {
            Some(left) => left.sregs,
            None => vcpu.get_sregs().map_err(failed("KVM_GET_SREGS", VcpuPiece::Sregs.name(), index))?,
        };
        refuse_nested(vcpu, spec, found)?;
        let waits = left.is_some_and(|left| run_registers::can_wait(state, &left));
        for piece in APPLY_ORDER.iter().copied().filter(|piece| spec.has(*piece)) {
            let failed = |ioctl| failed(ioctl, piece.name(), index);
            match piece {
                // Fixed since the vCPU first ran.
                VcpuPiece::Cpuid | VcpuPiece::TscKhz => {}
                VcpuPiece::Sregs | VcpuPiece::Regs | VcpuPiece::Events if waits => {}
                // The kernel resets the MMU only if what that depends on differs.
                VcpuPiece::Sregs => vcpu.set_sregs(&state.sregs).map_err(failed("KVM_SET_SREGS"))?,
                VcpuPiece::Xcrs => {
                    let found = vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
                    let other = |xcrs: &&_| **xcrs != found;
                    given(&state.xcrs.as_ref().filter(other), |xcrs| vcpu.set_xcrs(xcrs)).map_err(failed("KVM_SET_XCRS"))?;
                }
                VcpuPiece::Fpu => given(&state.fpu, |fpu| vcpu.set_fpu(fpu)).map_err(failed("KVM_SET_FPU"))?,
                VcpuPiece::Xsave => {
                    given(&spec.xsave, |size| xsave::set(vcpu, *size, &state.xsave)).map_err(xsave_error(index))?;
                }
                VcpuPiece::Regs => vcpu.set_regs(&state.regs).map_err(failed("KVM_SET_REGS"))?,
                VcpuPiece::Lapic => {
                    let stands = match &state.lapic {
                        // Time goes on in it.
                        Some(lapic) if timer_may_run(lapic) => false,
                        lapic => *lapic == Some(vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?),
                    };
                    given(&state.lapic.as_ref().filter(|_| !stands), |lapic| vcpu.set_lapic(lapic))
                        .map_err(failed("KVM_SET_LAPIC"))?;
                }
                VcpuPiece::Msrs => self.msrs(vcpu, spec, state)?,
                VcpuPiece::DebugRegs => vcpu.set_debug_regs(&state.debugregs).map_err(failed("KVM_SET_DEBUGREGS"))?,
                VcpuPiece::Events => vcpu.set_vcpu_events(&state.events).map_err(failed("KVM_SET_VCPU_EVENTS"))?,
                // Special registers may have made the vCPU runnable.
                VcpuPiece::MpState
                    if state.mp_state == self.vcpu.mp_state && state.mp_state.mp_state == KVM_MP_STATE_RUNNABLE => {}
                VcpuPiece::MpState => vcpu.set_mp_state(state.mp_state).map_err(failed("KVM_SET_MP_STATE"))?,
            }
        }
        if waits {
            run_registers::give(vcpu, state)
        } else {
            run_registers::forget(vcpu, spec)
        }
        Ok(())
    }

    fn msrs(&mut self, vcpu: &VcpuFd, spec: &CaptureSpec, state: &VcpuState) -> Result<(), StateError> {
        capture_msrs(vcpu, spec, &mut self.vcpu)?;
        let Self { vcpu: found, msrs, .. } = self;
        let (Some(saved), Some(found)) = (&state.msrs, &found.msrs) else { return Ok(()) };
        let (saved, found) = (saved.as_slice(), found.as_slice());
        if !saved.iter().map(|msr| msr.index).eq(found.iter().map(|msr| msr.index)) {
            return Err(StateError::Size {
                piece: VcpuPiece::Msrs.name(),
                expected: size_of_val(found),
                found: size_of_val(saved),
            });
        }
        msrs.clear();
        for (saved, _) in saved.iter().zip(found).filter(|(saved, found)| rewind_msr(saved, found)) {
            msrs.extend(counter_far_from(saved, state.index));
            msrs.push(*saved);
        }
        if msrs.is_empty() {
            return Ok(());
        }
        let msrs = msr_list(msrs)?;
        let written = vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS", VcpuPiece::Msrs.name(), Some(state.index)))?;
        all_msrs(&msrs, written, state.index, "written")
    }

    /// Puts what all vCPUs share back to `state`, which was captured of this very VM, after its
    /// vCPUs.
    ///
    /// Timers that the guest did not set since then run on: what the kernel tells of a timer does
    /// not say where it is between two ticks.
    ///
    /// # Errors
    /// [`StateError::Ioctl`] where the kernel refuses: the VM must then not run.
    pub fn vm(&mut self, vm: &VmFd, spec: &CaptureSpec, state: &VmState) -> Result<(), StateError> {
        for piece in VM_APPLY_ORDER.iter().copied().filter(|piece| spec.vm_has(*piece)) {
            let failed = |ioctl| failed(ioctl, piece.name(), None);
            match piece {
                VmPiece::Pit2 => {
                    let found = vm.get_pit2().map_err(failed("KVM_GET_PIT2"))?;
                    given(&state.pit2.as_ref().filter(|pit| **pit != found), |pit| vm.set_pit2(pit))
                        .map_err(failed("KVM_SET_PIT2"))?;
                }
                VmPiece::Clock => {
                    let value = |clock: &kvm_clock_data| kvm_clock_data { clock: clock.clock, ..Default::default() };
                    given(&state.clock, |clock| vm.set_clock(&value(clock))).map_err(failed("KVM_SET_CLOCK"))?;
                }
                VmPiece::PicMaster | VmPiece::PicSlave | VmPiece::IoApic => {
                    let found = chip(&mut self.vm, piece).get_or_insert_default();
                    found.chip_id = chip_id(piece);
                    vm.get_irqchip(found).map_err(failed("KVM_GET_IRQCHIP"))?;
                    let saved = match piece {
                        VmPiece::PicSlave => &state.pic_slave,
                        VmPiece::IoApic => &state.ioapic,
                        _ => &state.pic_master,
                    };
                    let other = saved.as_ref().filter(|saved| saved.as_bytes() != found.as_bytes());
                    given(&other, |chip| vm.set_irqchip(chip)).map_err(failed("KVM_SET_IRQCHIP"))?;
                }
            }
        }
        Ok(())
    }
}
