//! ACPI tables: which processors and interrupt controllers there are, the serial port, the real-time clock, where the generation id is, and how the machine is switched off
//! and reset.
//!
//! Distributions' cloud kernels have no code for the older MP tables.

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, Package, Path, ResourceTemplate,
    Scope, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use zerocopy::IntoBytes;

use super::layout::{
    GENERATION_ID, GENERATION_IRQ, IO_APIC, LOCAL_APIC, PM1_CONTROL_PORT, PM1_CONTROL_PORTS, PM1_EVENT_PORT, PM1_EVENT_PORTS,
    RESET_PORT, RESET_VALUE, RTC_PORT, RTC_PORTS, SCI_IRQ, SERIAL_IRQ, SERIAL_PORT, SLEEP_TYPE_S5, VIRTIO, VIRTIO_IRQ,
    VIRTIO_MAX, VIRTIO_STRIDE,
};
use super::rtc;
use super::virtio::REGISTERS_BYTES;

const OEM: [u8; 6] = *b"SLACKW";
const TABLE: [u8; 8] = *b"SLACKWTR";
const REVISION: u32 = 1;
/// The firmware's control structure has to lie at a multiple of this.
const ALIGNMENT: usize = 64;

/// Bytes that the root pointer has at the start of the tables.
const ROOT_BYTES: usize = 64;

// The FADT's boot architecture flags.
const NO_VGA: u16 = 1 << 2;
/// The MADT's flag for a machine that has two 8259 as well.
const HAS_8259: u32 = 1;
/// The device with the generation id, beside that of the events.
const GENERATION: &str = "VGEN";
/// What it is notified of: there is another id.
const CHANGED: u8 = 0x80;
/// An interrupt source override's flags: active high, level-triggered.
const LEVEL_HIGH: u16 = 0xd;

/// All tables, to be put at the guest physical address `base`, a multiple of 64 below 4 GiB. The root pointer is the first.
pub(super) fn tables(base: u32, vcpus: u8, virtio_devices: usize) -> Vec<u8> {
    let mut tables = Tables { base, bytes: vec![0; ROOT_BYTES] };
    let facs = tables.add(&FACS::new());
    let dsdt = tables.add(&dsdt(virtio_devices));
    let fadt = tables.add(&fadt(facs, dsdt));
    let madt = tables.add(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt.into());
    xsdt.add_entry(madt.into());
    let xsdt = tables.add(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt.into()).to_aml_bytes(&mut root);
    for (place, byte) in tables.bytes.iter_mut().zip(root) {
        *place = byte;
    }
    tables.bytes
}

struct Tables {
    base: u32,
    bytes: Vec<u8>,
}

impl Tables {
    /// Returns its guest physical address.
    fn add(&mut self, table: &dyn Aml) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = self.base + u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn dsdt(virtio_devices: usize) -> Sdt {
    let mut aml = Vec::new();
    let serial_name = EISAName::new("PNP0501");
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_IRQ);
    let serial = Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &serial_name),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .to_bytes();
    let mut devices = [serial, clock(), generation_id(), events()].concat();
    for index in (0..).take(virtio_devices.min(VIRTIO_MAX)) {
        devices.extend(virtio(index));
    }
    aml.extend(Scope::raw("_SB_".into(), devices));
    // What is written to the two control registers to be switched off; there is one.
    let off = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// A virtio device with memory-mapped registers. The identifier is the one that Linux knows them by (drivers/virtio/virtio_mmio.c).
fn virtio(index: u32) -> Vec<u8> {
    let low = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let registers = Memory32Fixed::new(true, low(VIRTIO + u64::from(index) * VIRTIO_STRIDE), low(REGISTERS_BYTES));
    let interrupt = Interrupt::new(true, false, false, false, VIRTIO_IRQ + index);
    Device::new(
        format!("VIO{index}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    )
    .to_bytes()
}

/// The real-time clock. It has no interrupt, and so no alarm.
fn clock() -> Vec<u8> {
    let ports = IO::new(RTC_PORT, RTC_PORT, 1, RTC_PORTS);
    Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_bytes()
}

/// Where the generation id is: the lower and the upper half of its address.
fn generation_id() -> Vec<u8> {
    let (low, high) = (GENERATION_ID & u64::from(u32::MAX), GENERATION_ID >> 32);
    Device::new(
        GENERATION.into(),
        vec![
            // Not this one but the next is Microsoft's. Linux takes either.
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_bytes()
}

/// The device by which an interrupt becomes a notification.
fn events() -> Vec<u8> {
    let interrupt = Interrupt::new(true, true, false, false, GENERATION_IRQ);
    let (device, which, number) = (Path::new(GENERATION), Arg(0), GENERATION_IRQ);
    let notify = Notify::new(&device, &CHANGED);
    let is_it = Equal::new(&which, &number);
    let told = If::new(&is_it, vec![&notify]);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &Method::new("_EVT".into(), 1, true, vec![&told]),
        ],
    )
    .to_bytes()
}

fn fadt(facs: u32, dsdt: u32) -> acpi_tables::fadt::FADT {
    let ports = |port: u16, bits, access| GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .firmware_ctrl_32(facs)
        .dsdt_32(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        // The real-time clock wakes nobody.
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = ports(PM1_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = ports(PM1_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.reset_reg = ports(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    // Latencies above these say that the processor has no such sleep states.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.century = rtc::CENTURY;
    fadt.finalize()
}

const _: () = assert!(PM1_EVENT_PORTS == 4 && PM1_CONTROL_PORTS == 2);

fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 44, 4, OEM, TABLE, REVISION);
    madt.write_u32(36, LOCAL_APIC);
    madt.write_u32(40, HAS_8259);
    for vcpu in 0..vcpus {
        madt.append_slice(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled).as_bytes());
    }
    madt.append_slice(IoApic::new(0, IO_APIC, 0).as_bytes());
    // KVM connects each of the ISA's interrupts to the input of the same number, so none but ACPI's own is another.
    let mut sci = vec![2, 10, 0, SCI_IRQ];
    sci.extend(u32::from(SCI_IRQ).to_le_bytes());
    sci.extend(LEVEL_HIGH.to_le_bytes());
    madt.append_slice(&sci);
    madt
}

/// What [`Aml`] writes, as bytes.
trait ToBytes: Aml {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}

impl ToBytes for aml::Device<'_> {}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const BASE: u32 = 0xe_0000;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The table at a guest physical address, whose sum is checked unless it has none.
    fn table(bytes: &[u8], address: u64, signature: &[u8; 4]) -> Vec<u8> {
        let at = usize::try_from(address - u64::from(BASE)).unwrap();
        let length = usize::try_from(u32_at(bytes, at + 4)).unwrap();
        let table = bytes[at..at + length].to_vec();
        assert_eq!(&table[..4], signature);
        if signature != b"FACS" {
            assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{signature:?}");
        }
        table
    }

    #[test]
    fn a_guest_finds_every_table_from_the_root() {
        let bytes = tables(BASE, 3, 2);
        assert!(bytes.len() < 0x2_0000);
        assert!(bytes.starts_with(b"RSD PTR "));
        assert_eq!(bytes[..36].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(&bytes, u64::from_le_bytes(bytes[24..32].try_into().unwrap()), b"XSDT");
        let entries: Vec<_> = xsdt[36..].chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap())).collect();
        let [fadt, madt] = entries[..] else { panic!("{entries:x?}") };
        let fadt = table(&bytes, fadt, b"FACP");
        assert_eq!(u32_at(&fadt, 36) % 64, 0);
        table(&bytes, u32_at(&fadt, 36).into(), b"FACS");
        let dsdt = table(&bytes, u32_at(&fadt, 40).into(), b"DSDT");
        for (name, is_there) in [
            (&b"_SB_"[..], true),
            (b"COM1", true),
            (b"RTC_", true),
            (b"VGEN", true),
            (b"GED_", true),
            (b"_EVT", true),
            (b"_S5_", true),
            (b"VIO1", true),
            (b"VIO2", false),
        ] {
            assert_eq!(dsdt.windows(4).any(|window| window == name), is_there);
        }
        // The century's register; and not that there is no such clock.
        assert_eq!((fadt[108], fadt[109] & 1 << 5), (0x32, 0));
        let madt = table(&bytes, madt, b"APIC");
        // Each vCPU with its local APIC, the I/O APIC, ACPI's interrupt.
        assert_eq!(madt.len(), 44 + 3 * 8 + 12 + 10);
        assert_eq!((&madt[44..48], &madt[60..64]), (&[0, 8, 0, 0][..], &[0, 8, 2, 2][..]));
    }
}
