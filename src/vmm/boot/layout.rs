//! Where things are in the guest's physical memory below 1 MiB, and where KVM has its interrupt
//! controllers.
//!
//! | guest physical address | what |
//! | --- | --- |
//! | `0x500` | segment descriptors |
//! | `0x7000` | boot parameters, the "zero page" |
//! | `0x8ff0` down | the kernel's first stack |
//! | `0x9000` to `0xbfff` | page tables: an identity map of the first GiB |
//! | `0x20000` | the command line |
//! | `0x9fc00` to `0xfffff` | not for the guest to use |
//! | `0xdf010` | the generation id, a device's |
//! | `0xe0000` | the ACPI tables |
//! | `0x100000` | the kernel, where its header or its ELF segments do not say otherwise |

use crate::vmm::devices::GENERATION_ID;

/// Segment descriptors.
pub(super) const GDT: u64 = 0x500;
/// Boot parameters.
pub(super) const BOOT_PARAMS: u64 = 0x7000;
/// The first stack's end.
pub(super) const STACK: u64 = 0x8ff0;
/// The three page tables.
pub(super) const PML4: u64 = 0x9000;
pub(super) const PDPT: u64 = 0xa000;
pub(super) const PAGE_DIRECTORY: u64 = 0xb000;
/// The command line.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of a command line, its terminating zero included, that there is room for.
pub(super) const COMMAND_LINE_ROOM: usize = 0x1_0000;
/// Where memory that the guest may use ends, below 1 MiB.
pub(super) const LOW_END: u64 = 0x9_fc00;
/// The ACPI tables. A kernel that the boot parameters do not tell where they are looks here.
pub(super) const ACPI: u64 = 0xe_0000;
/// Behind the ACPI tables.
pub(super) const ACPI_END: u64 = HIGH_BEGIN;
/// Where memory begins that the guest may use without gaps.
pub(super) const HIGH_BEGIN: u64 = 0x10_0000;

/// The local and the I/O interrupt controller: KVM's own addresses.
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;
pub(super) const IO_APIC: u32 = 0xfec0_0000;

const _: () = assert!(GENERATION_ID >= LOW_END && GENERATION_ID < ACPI, "it lies in memory that the guest does not use");
