//! Whether a KVM runs kernels: code at CPL 0, at a speed at which it gets anywhere, that goes to CPL 3.

use std::path::Path;
use std::time::Duration;

use kvm_bindings::kvm_regs;

use super::Refused;
use super::guest::{Memory, PROGRAM, TSS_ADDRESS, Vcpu, failed, io_failed};
use crate::kvm::{VmHandle, host, user_mode};

/// For 6 million instructions: 2 ms on a processor, about 30 ms where QEMU emulates one, 7 s where KVM interprets each of them (measured). A machine with much else to do is
/// slower by some factor, and not taken for one that interprets.
const LIMIT: Duration = Duration::from_secs(2);

/// What runs at CPL 0.
const KERNEL: [u8; 11] = [
    0xb9, 0xc0, 0xc6, 0x2d, 0x00, // mov ecx, 3000000
    0xff, 0xc9, // again: dec ecx
    0x75, 0xfc, // jnz again
    0x48, 0xcf, // iretq
];
/// What it returns to, at CPL 3.
const PROCESS: u64 = PROGRAM + 0x10;
const PROCESS_CODE: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfc]; // start: out 0x10, al; jmp start
/// The frame that it returns by.
const FRAME: u64 = PROGRAM + 0x800;
const PROCESS_STACK: u64 = PROGRAM + 0x1000;
/// In KVM's hidden part of the register: nothing reads a descriptor for it.
const KERNEL_SELECTOR: u16 = 0x8;

/// Checks on the KVM device at `kvm_path` that code at CPL 0 runs and is not interpreted, thousands of times slower, as by a KVM without virtualization in hardware (PVM), where a kernel
/// never finishes booting; and that it can start a process at CPL 3 by `iretq`.
///
/// Makes a VM with 2 MiB of memory, whose vCPU runs on the calling thread, and drops it again. It ends after 2 s of guest time whatever KVM does, as
/// [`pages_stay_writable`](super::pages_stay_writable) does.
///
/// # Errors
/// [`Refused::Exit`] or [`Refused::Time`] where it can't, other kinds where it could not be tried.
pub fn runs_kernels(kvm_path: &Path) -> Result<(), Refused> {
    let kvm = host::open(kvm_path)?;
    let memory = Memory::new()?;
    memory.put(PROGRAM, &KERNEL)?;
    memory.put(PROCESS, &PROCESS_CODE)?;
    let (code, data) = user_mode::SELECTORS;
    let frame = [PROCESS, code.into(), user_mode::RFLAGS, PROCESS_STACK, data.into()];
    memory.put(FRAME, &frame.map(u64::to_le_bytes).concat())?;
    // Dropped before the memory.
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    memory.give_to(&VmHandle::duplicate(&vm).map_err(io_failed("duplicating the VM's descriptor"))?, false)?;
    let fd = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
    let mut sregs = user_mode::sregs(fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?);
    (sregs.cs.dpl, sregs.cs.selector) = (0, KERNEL_SELECTOR);
    (sregs.ss.dpl, sregs.ss.selector) = (0, 0);
    fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: PROGRAM, rsp: FRAME, rflags: 2, ..kvm_regs::default() };
    fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    Vcpu::new(fd)?.bounded(LIMIT, |vcpu| vcpu.run())
}

#[cfg(test)]
mod native_tests {
    use super::*;
    use crate::kvm::host::{Flavour, Host, KVM_PATH};
    use crate::kvm::test_guest::kvm_or_skip;

    #[test]
    fn only_a_kvm_with_hardware_runs_kernels() {
        if !kvm_or_skip("kvm::probe::kernel::native_tests::only_a_kvm_with_hardware_runs_kernels") {
            return;
        }
        let outcome = runs_kernels(Path::new(KVM_PATH));
        let is_pvm = Host::probe(Path::new(KVM_PATH)).is_ok_and(|host| host.flavour == Flavour::Pvm);
        assert_eq!(outcome.is_err(), is_pvm, "{outcome:?}");
    }
}
