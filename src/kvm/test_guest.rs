//! For tests: a VM whose guest writes one word into any page that it is told to.

use std::io::Write;

use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::ring::{EXIT_RING_FULL, RingSize, VmRings};
use super::{VmHandle, user_mode};
use crate::memory::GuestMemory;
use crate::page::{Gfn, PageRun};

/// Frames below this hold the guest's program and tables.
pub(crate) const FIRST_FREE: u64 = (4 << 20) / 4096;
/// Frames of memory.
pub(crate) const FRAMES: u64 = (64 << 20) / 4096;

const PROGRAM: u64 = user_mode::TABLES_END;
/// page: mov [rdi], rax; add rdi, rbx; dec rcx; jnz page; out 0x10, al; jmp $
const CODE: [u8; 15] = [0x48, 0x89, 0x07, 0x48, 0x01, 0xdf, 0x48, 0xff, 0xc9, 0x75, 0xf5, 0xe6, 0x10, 0xeb, 0xfe];

/// False, with a line that can't be overlooked, where there is no KVM; a panic where that must not
/// be.
pub(crate) fn kvm_or_skip(test: &str) -> bool {
    let here = std::path::Path::new(super::host::KVM_PATH).exists();
    assert!(here || std::env::var_os("SLACKWATER_REQUIRE_KVM").is_none(), "{test} needs /dev/kvm");
    if !here {
        let _ = writeln!(std::io::stderr(), "SKIP {test}: no /dev/kvm");
    }
    here
}

pub(crate) struct TestGuest {
    pub(crate) vm: VmFd,
    pub(crate) vcpu: VcpuFd,
    pub(crate) memory: GuestMemory,
    value: u64,
}

impl TestGuest {
    /// With a ring of so many entries, or without.
    pub(crate) fn new(ring: Option<u32>) -> (Self, Option<VmRings>) {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        let handle = || VmHandle::duplicate(&vm).unwrap();
        let mut rings = ring.map(|entries| VmRings::enable(handle(), RingSize::new(entries).unwrap()).unwrap());
        let memory = GuestMemory::anonymous(&[PageRun { first: Gfn(0), count: FRAMES }], 64).unwrap();
        memory.register(&handle(), true).unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        if let Some(rings) = &mut rings {
            rings.map(&vcpu).unwrap();
        }
        for (address, bytes) in user_mode::tables(FRAMES / 512) {
            memory.ram().write_slice(&bytes, GuestAddress(address)).unwrap();
        }
        memory.ram().write_slice(&CODE, GuestAddress(PROGRAM)).unwrap();
        vcpu.set_sregs(&user_mode::sregs(vcpu.get_sregs().unwrap())).unwrap();
        (Self { vm, vcpu, memory, value: 0 }, rings)
    }

    pub(crate) fn handle(&self) -> VmHandle {
        VmHandle::duplicate(&self.vm).unwrap()
    }

    /// Has the guest write to `run`, and returns how many pages it wrote before its ring was full.
    pub(crate) fn write(&mut self, run: PageRun) -> u64 {
        self.value += 1;
        let regs = kvm_regs {
            rip: PROGRAM,
            rdi: run.first.address().unwrap(),
            rbx: 4096,
            rcx: run.count,
            rax: self.value,
            rflags: user_mode::RFLAGS,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(0x10, _)) => {
                    // Complete the exit, so that the registers may be set again.
                    self.vcpu.set_kvm_immediate_exit(1);
                    assert_eq!(self.vcpu.run().map(drop).unwrap_err().errno(), libc::EINTR);
                    self.vcpu.set_kvm_immediate_exit(0);
                    return run.count;
                }
                Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => {
                    // The last page listed may not have been written yet: its store runs again.
                    return run.count - self.vcpu.get_regs().unwrap().rcx;
                }
                Err(error) if error.errno() == libc::EINTR => {}
                exit => panic!("{exit:?}"),
            }
        }
    }
}
