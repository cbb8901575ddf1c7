//! vCPUs as firmware leaves them to a kernel's 64-bit entry.

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::layout::{BOOT_PARAMS, GDT, PAGE_DIRECTORY, PDPT, PML4, STACK};
use crate::vmm::error::{VmmError, kvm};

/// Descriptors at the selectors that the boot protocol asks for: flat code at 0x10, flat data at
/// 0x18, a task state segment at 0x20.
const DESCRIPTORS: [u64; 6] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 0x80;
const LARGE_PAGE_BYTES: u64 = 2 << 20;

const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Enabled, and all memory is write-back unless a range says otherwise.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

/// The local vector table's two pins, by their offset in the local APIC's registers.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTERNAL: u8 = 7;
const DELIVER_NMI: u8 = 4;

/// Descriptors and an identity map of the first GiB, as (guest physical address, bytes).
pub(super) fn tables() -> [(u64, Vec<u8>); 4] {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let pages: Vec<_> = (0..512).map(|page| (page * LARGE_PAGE_BYTES) | PRESENT_WRITABLE | LARGE).collect();
    [
        (GDT, words(&DESCRIPTORS)),
        (PML4, words(&[PDPT | PRESENT_WRITABLE])),
        (PDPT, words(&[PAGE_DIRECTORY | PRESENT_WRITABLE])),
        (PAGE_DIRECTORY, words(&pages)),
    ]
}

/// The first vCPU's registers at the kernel's 64-bit entry. The others wait for it to start them.
pub(super) fn boot_regs(entry: u64) -> kvm_regs {
    kvm_regs { rip: entry, rsi: BOOT_PARAMS, rsp: STACK, rbp: STACK, rflags: 2, ..Default::default() }
}

/// The first vCPU's special registers, from those that a new vCPU has.
pub(super) fn boot_sregs(mut sregs: kvm_sregs) -> kvm_sregs {
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 11,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, l: 0, ..code };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment { limit: 0x67, selector: TSS_SELECTOR, s: 0, l: 0, g: 0, ..code };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 47;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20; // PAE
    sregs.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    sregs.efer = 0x500; // LMA, LME
    sregs
}
const _: () = assert!(size_of::<[u64; 6]>() == 48);

/// The local APIC of each vCPU, made of the one at reset: the interrupt controllers' line and the
/// NMI reach it, as firmware leaves it.
pub(super) fn initial_lapic(mut lapic: kvm_lapic_state) -> kvm_lapic_state {
    for (at, mode) in [(LVT_LINT0, DELIVER_EXTERNAL), (LVT_LINT1, DELIVER_NMI)] {
        // The delivery mode is in the bits 8 to 10, the mask is bit 16.
        if let Some(bytes) = lapic.regs.get_mut(at..at + 4) {
            let mut entry = [0; 4];
            for (byte, old) in entry.iter_mut().zip(bytes.iter()) {
                *byte = old.to_le_bytes().first().copied().unwrap_or_default();
            }
            let entry = u32::from_le_bytes(entry) & !(0x1_0700) | u32::from(mode) << 8;
            for (place, byte) in bytes.iter_mut().zip(entry.to_le_bytes()) {
                *place = std::ffi::c_char::from_le_bytes([byte]);
            }
        }
    }
    lapic
}

/// Memory types and string operations, which firmware sets up.
pub(super) fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), VmmError> {
    for (index, data) in [(MSR_MTRR_DEFAULT_TYPE, MTRR_WRITE_BACK), (MSR_MISC_ENABLE, FAST_STRINGS)] {
        let one = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
        // A processor without the second has nothing to set up.
        if let Ok(one) = one {
            vcpu.set_msrs(&one).map_err(kvm("KVM_SET_MSRS"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_interrupt_pins_are_as_firmware_leaves_them() {
        let lapic = initial_lapic(kvm_lapic_state::default());
        let byte = |at: usize| lapic.regs.get(at).copied();
        assert_eq!((byte(0x351), byte(0x361)), (Some(7), Some(4)));
    }
}
