//! The generation id of the virtual machine: 16 random bytes in guest memory that are others after each restore, and the interrupt that says so.
//!
//! As in Microsoft's "Virtual Machine Generation ID", and as Linux's driver `vmgenid` looks for it: a guest of which several go on from one checkpoint learns that its
//! random numbers are no longer its own. The DSDT says where the id is.

use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress};
use vm_superio::Trigger;

use super::error::LinuxError;
use super::layout::{GENERATION_ID, GENERATION_IRQ};
use super::line::IrqLine;
use super::random;
use crate::memory::GuestMemory;
use crate::vmm::error::{VmmError, system};

const BYTES: usize = 16;

/// The id and its interrupt. It has no state but what is in guest memory.
#[derive(Debug)]
pub(super) struct GenerationId {
    line: IrqLine,
    memory: GuestMemory,
}

impl GenerationId {
    pub(super) fn new(vm: Arc<VmFd>, memory: GuestMemory) -> Self {
        Self { line: IrqLine { vm, number: GENERATION_IRQ }, memory }
    }

    /// Writes another id, as a write of the VMM that the next epoch has. The page is brought first, where pages come on demand.
    pub(super) fn write(&self) -> Result<(), VmmError> {
        let mut id = [0; BYTES];
        random::fill(&mut id).map_err(system("getrandom"))?;
        self.memory.bring_range(GENERATION_ID, BYTES as u64)?;
        self.memory.ram().write_slice(&id, GuestAddress(GENERATION_ID)).map_err(|source| {
            let source = Box::new(source);
            LinuxError::Write { what: "the generation id", address: GENERATION_ID, source }.into()
        })
    }

    /// Writes another id and raises the interrupt. Comes when memory, the VM and the vCPUs are back.
    pub(super) fn renew(&self) -> Result<(), VmmError> {
        self.write()?;
        self.line.trigger().map_err(system("KVM_IRQ_LINE"))
    }
}

#[cfg(test)]
mod native_tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write as _;

    use kvm_bindings::{KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
    use kvm_ioctls::Kvm;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::kvm::park::Parked;
    use crate::page::{Gfn, PageRun};

    const TEST: &str = "vmm::linux::generation::native_tests::each_id_is_another_and_is_told";

    #[test]
    fn each_id_is_another_and_is_told() {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                assert!(std::env::var_os("SLACKWATER_REQUIRE_KVM").is_none(), "{TEST} needs /dev/kvm: {error}");
                let _ = writeln!(std::io::stderr(), "SKIP {TEST}: no /dev/kvm ({error})");
                return;
            }
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        // The second chip keeps an edge until somebody takes it. The line is its last.
        let is_raised = || {
            let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_SLAVE, ..Default::default() };
            vm.get_irqchip(&mut chip).unwrap();
            // Which lines were raised is the second byte of its state, behind the number of the chip.
            chip.as_bytes()[8 + 1] & 1 << (GENERATION_IRQ - 8) != 0
        };
        let memory = GuestMemory::anonymous(&[PageRun { first: Gfn(0), count: 256 }], 1).unwrap();
        let generation = GenerationId::new(vm.clone(), memory.clone());
        let id = || memory.ram().read_obj::<[u8; BYTES]>(GuestAddress(GENERATION_ID)).unwrap();
        let written = || {
            let mut written = Vec::new();
            memory.written().take(&Parked::vouch(&mut ()), |gfn| written.push(gfn));
            written
        };
        generation.write().unwrap();
        let first = id();
        assert!(first != [0; BYTES] && !is_raised());
        assert_eq!(written(), [Gfn::containing(GENERATION_ID)]);
        generation.renew().unwrap();
        assert!(![[0; BYTES], first].contains(&id()) && is_raised());
        assert_eq!(written(), [Gfn::containing(GENERATION_ID)]);
    }
}
