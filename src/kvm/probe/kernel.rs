//! Whether a KVM runs kernels: code at CPL 0, at a speed at which it gets anywhere, that goes to
//! CPL 3.

use std::path::Path;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuFd, VmFd};

use super::guest::{Bounded, Memory, PROGRAM, TSS_ADDRESS, Vcpu, failed, io_failed};
use super::refused::Refused;
use crate::kvm::{VmHandle, host, user_mode};

/// For what takes a second where each instruction is interpreted: only a guest that hangs needs so
/// long.
const LIMIT: Duration = Duration::from_secs(60);
/// Timed runs of the loop at each level, in turns.
const ROUNDS: u32 = 5;
/// Passes of the loop in a run, two instructions each: so many that an interpreter takes a hundred
/// times as long for them as an exit does, and so few that it takes some ten milliseconds.
const PASSES: u32 = 20_000;
/// By so much the loop may be slower at CPL 0. It is as fast there as at CPL 3 on a processor, and
/// on one that is emulated; an interpreter takes a hundred times as long and more, exits included.
const SLOWER_MOST: u32 = 10;

/// What runs at either level: the loop, and an exit behind it. Counts down in ebx, and goes to
/// [`PROCESS`] by `iretq` at its end.
const CODE: [u8; 19] = [
    0xb9, 0x20, 0x4e, 0x00, 0x00, // start: mov ecx, 20000
    0xff, 0xc9, // again: dec ecx
    0x75, 0xfc, // jnz again
    0xff, 0xcb, // dec ebx
    0x74, 0x04, // jz leave
    0xe6, 0x10, // out 0x10, al
    0xeb, 0xef, // jmp start
    0x48, 0xcf, // leave: iretq
];
const _: () = assert!(u32::from_le_bytes([CODE[1], CODE[2], CODE[3], CODE[4]]) == PASSES);
/// What it returns to, at CPL 3.
const PROCESS: u64 = PROGRAM + 0x20;
const PROCESS_CODE: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfc]; // start: out 0x10, al; jmp start
/// The frame that it returns by.
const FRAME: u64 = PROGRAM + 0x800;
const PROCESS_STACK: u64 = PROGRAM + 0x1000;
/// In KVM's hidden part of the register: nothing reads a descriptor for it.
const KERNEL_SELECTOR: u16 = 0x8;

/// Checks on the KVM device at `kvm_path` that code at CPL 0 runs and is not interpreted, thousands
/// of times slower, as by a KVM without virtualization in hardware (PVM), where a kernel never
/// finishes booting; and that it can start a process at CPL 3 by `iretq`.
///
/// One loop runs at CPL 0 and at CPL 3 in turns, and the least time of each is compared: neither
/// the machine's speed nor what else it does changes what is found.
///
/// Makes a VM with 2 MiB of memory, whose two vCPUs run on the calling thread, and drops it again:
/// 1 ms on a processor, a quarter of a second where KVM interprets (measured). A guest that hangs
/// is ended after a minute, as by [`pages_stay_writable`](super::pages_stay_writable).
///
/// # Errors
/// [`Refused::Interpreted`] or [`Refused::Exit`] where it can't, other kinds where it could not be
/// tried.
pub fn runs_kernels(kvm_path: &Path) -> Result<(), Refused> {
    let kvm = host::open(kvm_path)?;
    let memory = Memory::new()?;
    memory.put(PROGRAM, &CODE)?;
    memory.put(PROCESS, &PROCESS_CODE)?;
    let (code, data) = user_mode::SELECTORS;
    let frame = [PROCESS, code.into(), user_mode::RFLAGS, PROCESS_STACK, data.into()];
    memory.put(FRAME, &frame.map(u64::to_le_bytes).concat())?;
    // Dropped before the memory.
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    memory.give_to(&VmHandle::duplicate(&vm).map_err(io_failed("duplicating the VM's descriptor"))?, false)?;
    let mut kernel = Vcpu::new(vcpu(&vm, 0, |sregs| {
        (sregs.cs.dpl, sregs.cs.selector) = (0, KERNEL_SELECTOR);
        (sregs.ss.dpl, sregs.ss.selector) = (0, 0);
    })?)?;
    let mut process = Vcpu::new(vcpu(&vm, 1, |_| {})?)?;
    kernel.bounded(LIMIT, |kernel| {
        process.bounded(LIMIT, |process| {
            let (mut at_cpl0, mut at_cpl3) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                at_cpl0.push(timed(kernel)?);
                at_cpl3.push(timed(process)?);
            }
            judge(&at_cpl0, &at_cpl3)?;
            // The last time around, to CPL 3.
            kernel.run()
        })
    })
}

/// A vCPU at the beginning of the program, at CPL 3 unless `change` has it otherwise. Only one at
/// CPL 0 can come to the end of it.
fn vcpu(vm: &VmFd, id: u64, change: impl FnOnce(&mut kvm_sregs)) -> Result<VcpuFd, Refused> {
    let fd = vm.create_vcpu(id).map_err(failed("KVM_CREATE_VCPU"))?;
    let mut sregs = user_mode::sregs(fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?);
    change(&mut sregs);
    let is_kernel = sregs.cs.dpl == 0;
    fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let (rflags, rbx) = if is_kernel { (2, u64::from(ROUNDS) + 1) } else { (user_mode::RFLAGS, 0) };
    let regs = kvm_regs { rip: PROGRAM, rsp: FRAME, rflags, rbx, ..kvm_regs::default() };
    fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    Ok(fd)
}

fn timed(vcpu: &mut Bounded<'_>) -> Result<Duration, Refused> {
    let start = Instant::now();
    vcpu.run()?;
    Ok(start.elapsed())
}

/// Whether code at CPL 0 is interpreted, from the times of the same work at both levels. What else
/// the machine does only adds to some of them.
fn judge(at_cpl0: &[Duration], at_cpl3: &[Duration]) -> Result<(), Refused> {
    let least = |times: &[Duration]| times.iter().min().copied().unwrap_or_default();
    let (at_cpl0, at_cpl3) = (least(at_cpl0), least(at_cpl3));
    if at_cpl0 > at_cpl3.saturating_mul(SLOWER_MOST) { Err(Refused::Interpreted { at_cpl0, at_cpl3 }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_interpreted(at_cpl0_us: &[u64], at_cpl3_us: &[u64]) -> bool {
        let times = |us: &[u64]| us.iter().copied().map(Duration::from_micros).collect::<Vec<_>>();
        judge(&times(at_cpl0_us), &times(at_cpl3_us)).is_err()
    }

    #[test]
    fn an_interpreter_is_told_by_its_ratio() {
        // Six million instructions: two machines with PVM, a processor, and one that QEMU emulates.
        assert!(is_interpreted(&[1_600_000], &[2_000]) && is_interpreted(&[7_000_000], &[2_000]));
        assert!(!is_interpreted(&[2_000], &[2_000]) && !is_interpreted(&[30_000], &[30_000]));
        // A run of the loop, with an exit of 60 us in it, and of 19.
        assert!(is_interpreted(&[11_000], &[70]) && is_interpreted(&[44_000], &[30]));
        assert!(!is_interpreted(&[70], &[70]));
    }

    #[test]
    fn what_else_the_machine_does_changes_nothing() {
        // All but one run of either level are disturbed.
        assert!(!is_interpreted(&[8_000, 12_000, 75, 4_000, 8_000], &[66, 70, 66, 70, 66]));
        assert!(is_interpreted(&[11_000; 5], &[12_000, 8_000, 4_000, 12_000, 66]));
        // A machine that is slower by any factor, and one whose clock shows nothing of a run.
        assert!(!is_interpreted(&[9_000_000], &[7_000_000]) && is_interpreted(&[900_000_000], &[700_000]));
        assert!(!is_interpreted(&[0], &[0]));
    }
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
        let is_pvm = Host::probe(Path::new(KVM_PATH)).is_ok_and(|host| host.flavour == Flavour::Pvm);
        let outcome = runs_kernels(Path::new(KVM_PATH));
        println!("{outcome:?}");
        match outcome {
            Ok(()) => assert!(!is_pvm),
            Err(Refused::Interpreted { .. }) => assert!(is_pvm),
            Err(error) => panic!("{error}"),
        }
    }
}
