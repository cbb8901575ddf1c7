//! How many entries of a ring this KVM keeps free, found out by a guest that fills one.

use std::path::Path;

use kvm_bindings::kvm_regs;

use super::guest::{LIMIT, Left, Memory, PROGRAM, TSS_ADDRESS, Vcpu, failed, io_failed};
use super::refused::Refused;
use crate::kvm::ring::{RingSize, VmRings};
use crate::kvm::{VmHandle, host, user_mode};
use crate::page::PAGE_SIZE_U64;
use crate::parked::Parked;

/// More than any kernel keeps free: 64, and as many more as a processor that logs pages itself has
/// in its log, 512.
const RING_ENTRIES: u32 = 1024;
/// The guest's pages: the first 2 MiB are its program's, and the others are more than the ring has
/// entries.
const FRAMES: u64 = 2048;
const FIRST: u64 = 512;
const _: () = assert!(FRAMES - FIRST > RING_ENTRIES as u64);

/// Entries that every KVM keeps free in a ring (`KVM_DIRTY_RING_RSVD_ENTRIES`). With more, the
/// processor has a log of its own.
pub const RESERVE_LEAST: u32 = 64;

/// Writes to page after page.
const CODE: [u8; 15] = [
    0x48, 0x89, 0x07, // page: mov [rdi], rax
    0x48, 0x01, 0xdf, // add rdi, rbx
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xf5, // jnz page
    0xe6, 0x10, // out 0x10, al
    0xeb, 0xfe, // jmp $
];

/// How many entries below its size a ring counts as full on the KVM whose device is at `kvm_path`:
/// 64, and 512 more where the processor logs pages itself (page modification logging). A ring needs
/// more entries than that.
///
/// Makes a VM with 8 MiB of memory, whose vCPU writes to pages until its ring is full, and drops it
/// again: some 20 ms, most of it for faults.
///
/// # Errors
/// [`Refused`].
pub fn ring_reserve(kvm_path: &Path) -> Result<u32, Refused> {
    let kvm = host::open(kvm_path)?;
    let memory = Memory::with_frames(FRAMES)?;
    memory.put(PROGRAM, &CODE)?;
    // Dropped before the memory.
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    let handle = || VmHandle::duplicate(&vm).map_err(io_failed("duplicating the VM's descriptor"));
    let mut rings = VmRings::enable(handle()?, RingSize::new(RING_ENTRIES)?)?;
    memory.give_to(&handle()?, true)?;
    let fd = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
    rings.map(&fd)?;
    let sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    fd.set_sregs(&user_mode::sregs(sregs)).map_err(failed("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: PROGRAM,
        rdi: FIRST * PAGE_SIZE_U64,
        rbx: PAGE_SIZE_U64,
        rcx: FRAMES - FIRST,
        rax: 1,
        rflags: user_mode::RFLAGS,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    match Vcpu::new(fd)?.bounded(LIMIT, |vcpu| vcpu.leave())? {
        Left::RingFull => {
            let listed = rings.harvest().while_parked(&Parked::vouch(&mut ())).len();
            Ok(RING_ENTRIES.saturating_sub(u32::try_from(listed).unwrap_or(u32::MAX)))
        }
        Left::Done => Err(Refused::NeverFull { entries: RING_ENTRIES }),
    }
}

#[cfg(test)]
mod native_tests {
    use super::*;
    use crate::kvm::host::KVM_PATH;
    use crate::kvm::test_guest::kvm_or_skip;

    #[test]
    fn a_ring_is_full_where_the_kernel_says() {
        if !kvm_or_skip("kvm::probe::reserve::native_tests::a_ring_is_full_where_the_kernel_says") {
            return;
        }
        let reserve = ring_reserve(Path::new(KVM_PATH)).unwrap();
        println!("{reserve} entries are kept free");
        assert!(reserve == 64 || reserve == 64 + 512, "{reserve}");
        // The kernel takes a ring only where it has more.
        let kvm = host::open(Path::new(KVM_PATH)).unwrap();
        for entries in [256, 512, 1024] {
            let vm = VmHandle::duplicate(&kvm.create_vm().unwrap()).unwrap();
            let enabled = VmRings::enable(vm, RingSize::new(entries).unwrap());
            assert_eq!(enabled.is_ok(), entries > reserve, "{entries}");
        }
    }
}
