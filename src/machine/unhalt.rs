//! Kicks of paravirtual spinlocks, which KVM keeps where they can't be read.

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_cpuid_entry2, kvm_msi};
use kvm_ioctls::VmFd;
use zerocopy::IntoBytes;

use super::error::{StateError, failed};
use super::order::VcpuPiece;
use super::spec::CaptureSpec;
use super::state::VcpuState;

/// `KVMKVMKVM`, in EBX, ECX and EDX of the leaf before that of the features.
const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
/// `KVM_FEATURE_PV_UNHALT`, in EAX.
const PV_UNHALT: u32 = 1 << 7;
/// The local APIC's identifier, in the highest byte of this register.
const APIC_ID: usize = 0x20;
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// The delivery mode that KVM takes for a kick ("remote read", which no processor has any more).
const MSI_KICK: u32 = 3 << 8;

/// Ends the halt of vCPUs, or their next one, once, as a kick by another vCPU would
/// (`KVM_HC_KICK_CPU`). Comes last: after [`apply_vm`](super::apply_vm), or after a
/// [`Rewinder`](super::Rewinder) put everything back.
///
/// A guest with paravirtual spinlocks that waits for one halts, with interrupts disabled, until
/// whoever gives it back kicks it. A kick that comes before the `HLT` is kept by KVM in
/// `pv_unhalted`, and is not told: a vCPU that was captured in between would halt for ever. Such
/// guests expect to be woken without a cause (`arch/x86/kernel/kvm.c`, `kvm_wait`;
/// `kernel/locking/qspinlock_paravirt.h`). So each vCPU that runs or halts and was offered the
/// feature is kicked; others are left alone.
///
/// Does nothing where the interrupt chips are not the kernel's. `spec` is the VM's.
///
/// # Errors
/// [`StateError::Ioctl`] where the kernel refuses.
pub fn unhalt_vcpus(vm: &VmFd, spec: &CaptureSpec, vcpus: &[VcpuState]) -> Result<(), StateError> {
    if !spec.irqchip || !spec.lapic {
        return Ok(());
    }
    for vcpu in vcpus.iter().filter(|vcpu| may_wait(vcpu)) {
        let Some(id) = apic_id(vcpu) else { continue };
        let kick = kvm_msi { address_lo: MSI_ADDRESS | u32::from(id) << 12, data: MSI_KICK, ..Default::default() };
        match vm.signal_msi(kick) {
            Ok(_) => {}
            // Nobody there by that identifier: its local APIC is off, and with it all kicks.
            Err(error) if error.errno() == libc::EPERM => {}
            Err(error) => return Err(failed("KVM_SIGNAL_MSI", VcpuPiece::MpState.name(), Some(vcpu.index))(error)),
        }
    }
    Ok(())
}

/// Whether the vCPU may wait for a kick. One that was not started yet would not know what to do
/// with it.
fn may_wait(vcpu: &VcpuState) -> bool {
    let entries = vcpu.cpuid.as_ref().map(|cpuid| cpuid.as_slice()).unwrap_or_default();
    matches!(vcpu.mp_state.mp_state, KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED) && offers_kicks(entries)
}

fn offers_kicks(entries: &[kvm_cpuid_entry2]) -> bool {
    let signatures = entries.iter().filter(|entry| [entry.ebx, entry.ecx, entry.edx] == SIGNATURE);
    let mut features =
        signatures.flat_map(|entry| entries.iter().filter(move |other| entry.function.checked_add(1) == Some(other.function)));
    features.any(|entry| entry.eax & PV_UNHALT != 0)
}

/// As messages name the vCPU: KVM keeps the identifier in this place in both of the APIC's modes,
/// unless told otherwise (`KVM_CAP_X2APIC_API`).
fn apic_id(vcpu: &VcpuState) -> Option<u8> {
    vcpu.lapic.as_ref()?.regs.as_bytes().get(APIC_ID + 3).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn the_feature_is_found_where_kvm_has_its_leaves() {
        let [b, c, d] = SIGNATURE;
        assert_eq!(b"KVMKVMKVM\0\0\0", [b, c, d].map(u32::to_le_bytes).as_flattened());
        for base in [0x4000_0000, 0x4000_0100] {
            let signature = entry(base, [0, b, c, d]);
            assert!(offers_kicks(&[signature, entry(base + 1, [PV_UNHALT, 0, 0, 0])]));
            assert!(!offers_kicks(&[signature, entry(base + 1, [!PV_UNHALT, 0, 0, 0])]));
            assert!(!offers_kicks(&[signature]));
            assert!(!offers_kicks(&[entry(base, [0, b, c, d + 1]), entry(base + 1, [PV_UNHALT, 0, 0, 0])]));
        }
        assert!(!offers_kicks(&[entry(u32::MAX, [0, b, c, d]), entry(0, [PV_UNHALT, 0, 0, 0])]));
    }
}
