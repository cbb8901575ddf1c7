//! ACPI tables: which processors and interrupt controllers there are, how the machine is switched
//! off and reset, and the devices.
//!
//! Distributions' cloud kernels have no code for the older MP tables.

use acpi_tables::Aml;
use acpi_tables::aml::{Name, Package, Scope, ZERO};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use zerocopy::IntoBytes;

use super::error::LinuxError;
use super::layout::{IO_APIC, LOCAL_APIC};
use crate::vmm::devices::{
    PM1_CONTROL_PORT, PM1_CONTROL_PORTS, PM1_EVENT_PORT, PM1_EVENT_PORTS, RESET_PORT, RESET_VALUE, RTC_CENTURY, SCI_IRQ,
    SLEEP_TYPE_S5,
};

/// Local APICs have numbers of a byte in the tables, and the last is everybody's.
const VCPUS_MAX: u8 = 254;
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
/// An interrupt source override's flags: active high, level-triggered.
const LEVEL_HIGH: u16 = 0xd;

/// A number of vCPUs that the tables can describe.
///
/// # Errors
/// [`LinuxError::Vcpus`].
pub(in crate::vmm) fn vcpus_checked(vcpus: u32) -> Result<u8, LinuxError> {
    let refused = LinuxError::Vcpus { found: vcpus, most: VCPUS_MAX.into() };
    u8::try_from(vcpus).ok().filter(|vcpus| (1..=VCPUS_MAX).contains(vcpus)).ok_or(refused)
}

/// All tables, to be put at the guest physical address `base`, a multiple of 64 below 4 GiB. The
/// root pointer is the first. `devices` is how the devices describe themselves.
pub(super) fn tables(base: u32, vcpus: u8, devices: &[u8]) -> Vec<u8> {
    let mut tables = Tables { base, bytes: vec![0; ROOT_BYTES] };
    let facs = tables.add(&FACS::new());
    let dsdt = tables.add(&dsdt(devices));
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

fn dsdt(devices: &[u8]) -> Sdt {
    let mut aml = Scope::raw("_SB_".into(), devices.to_vec());
    // What is written to the two control registers to be switched off; there is one.
    let off = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml);
    dsdt
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
    fadt.century = RTC_CENTURY;
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
    // KVM connects each of the ISA's interrupts to the input of the same number, so none but ACPI's
    // own is another.
    let mut sci = vec![2, 10, 0, SCI_IRQ];
    sci.extend(u32::from(SCI_IRQ).to_le_bytes());
    sci.extend(LEVEL_HIGH.to_le_bytes());
    madt.append_slice(&sci);
    madt
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::vmm::devices::machine_devices;

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
        let mut devices = Vec::new();
        machine_devices(7).iter().for_each(|device| device.describe(&mut devices));
        let bytes = tables(BASE, 3, &devices);
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
            (b"VIO7", true),
            (b"VIO8", false),
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
