//! The generation id of the virtual machine: 16 random bytes in guest memory that are others after
//! each restore, and the interrupt that says so.
//!
//! As in Microsoft's "Virtual Machine Generation ID", and as Linux's driver `vmgenid` looks for it:
//! a guest of which several go on from one checkpoint learns that its random numbers are no longer
//! its own. The DSDT says where the id is.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device as AmlDevice, Equal, If, Interrupt, Method, Name, Notify, Package, Path, ResourceTemplate, ZERO,
};
use vm_memory::{Bytes, GuestAddress};
use vm_superio::Trigger;

use super::addresses::{GENERATION_ID, GENERATION_IRQ};
use super::device::{Device, DeviceError};
use super::irq_line::Pulse;
use super::parts::{Entry, Parts};
use super::random;
use crate::memory::GuestMemory;

pub(super) const ENTRY: Entry =
    Entry { name: "generation_id", is_virtio: false, pages: 1, make: |parts, _| Box::new(GenerationId::new(parts)) };

const BYTES: usize = 16;
/// The device with the id, in the ACPI tables, beside that of the events.
const NAME: &str = "VGEN";
/// What it is notified of: there is another id.
const CHANGED: u8 = 0x80;

/// The id and its interrupt. It has no state but what is in guest memory.
#[derive(Debug)]
struct GenerationId {
    line: Pulse,
    memory: GuestMemory,
}

impl GenerationId {
    fn new(parts: &Parts<'_>) -> Self {
        Self { line: Pulse((parts.line)(GENERATION_IRQ)), memory: parts.memory.clone() }
    }

    /// Writes another id, as a write of the VMM that the next epoch has. The page is brought first,
    /// where pages come on demand.
    fn write_id(&self) -> Result<(), DeviceError> {
        let mut id = [0; BYTES];
        random::fill(&mut id).map_err(DeviceError::Random)?;
        self.memory.bring_range(GENERATION_ID, BYTES as u64)?;
        let written = self.memory.ram().write_slice(&id, GuestAddress(GENERATION_ID));
        written.map_err(|source| DeviceError::Write { what: "the generation id", address: GENERATION_ID, source })
    }
}

impl Device for GenerationId {
    /// Where the id is, and by which device an interrupt becomes a notification.
    fn describe(&self, aml: &mut Vec<u8>) {
        // The lower and the upper half of its address.
        let (low, high) = (GENERATION_ID & u64::from(u32::MAX), GENERATION_ID >> 32);
        AmlDevice::new(
            NAME.into(),
            vec![
                // Not this one but the next is Microsoft's. Linux takes either.
                &Name::new("_HID".into(), &"VMGENCTR"),
                &Name::new("_CID".into(), &"VM_Gen_Counter"),
                &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
            ],
        )
        .to_aml_bytes(aml);
        let interrupt = Interrupt::new(true, true, false, false, GENERATION_IRQ);
        let (device, which, number) = (Path::new(NAME), Arg(0), GENERATION_IRQ);
        let notify = Notify::new(&device, &CHANGED);
        let is_it = Equal::new(&which, &number);
        let told = If::new(&is_it, vec![&notify]);
        AmlDevice::new(
            "GED_".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
                &Method::new("_EVT".into(), 1, true, vec![&told]),
            ],
        )
        .to_aml_bytes(aml);
    }

    fn begin(&mut self) -> Result<(), DeviceError> {
        self.write_id()
    }

    /// Another id, and the interrupt that says so.
    fn resume(&mut self) -> Result<(), DeviceError> {
        self.write_id()?;
        self.line.trigger().map_err(DeviceError::Interrupt)
    }
}

#[cfg(test)]
mod native_tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write as _;
    use std::sync::Arc;

    use kvm_bindings::{KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
    use kvm_ioctls::Kvm;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::page::{Gfn, PageRun};
    use crate::parked::Parked;
    use crate::vmm::devices::irq_line::IrqLine;

    const TEST: &str = "vmm::devices::generation_id::native_tests::each_id_is_another_and_is_told";

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
            // Which lines were raised is the second byte of its state, behind the number of the
            // chip.
            chip.as_bytes()[8 + 1] & 1 << (GENERATION_IRQ - 8) != 0
        };
        let memory = GuestMemory::anonymous(&[PageRun { first: Gfn(0), count: 256 }], 1).unwrap();
        let line = Pulse(Arc::new(IrqLine { vm: vm.clone(), number: GENERATION_IRQ }));
        let mut generation = GenerationId { line, memory: memory.clone() };
        let id = || memory.ram().read_obj::<[u8; BYTES]>(GuestAddress(GENERATION_ID)).unwrap();
        let written = || {
            let mut written = Vec::new();
            memory.written().take(&Parked::vouch(&mut ()), |gfn| written.push(gfn));
            written
        };
        generation.begin().unwrap();
        let first = id();
        assert!(first != [0; BYTES] && !is_raised());
        assert_eq!(written(), [Gfn::containing(GENERATION_ID)]);
        generation.resume().unwrap();
        assert!(![[0; BYTES], first].contains(&id()) && is_raised());
        assert_eq!(written(), [Gfn::containing(GENERATION_ID)]);
    }
}
