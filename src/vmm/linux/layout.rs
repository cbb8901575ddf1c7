//! Where things are: in the guest's physical memory below 1 MiB, and on its ports.
//!
//! | guest physical address | what |
//! | --- | --- |
//! | `0x500` | segment descriptors |
//! | `0x7000` | boot parameters, the "zero page" |
//! | `0x8ff0` down | the kernel's first stack |
//! | `0x9000` to `0xbfff` | page tables: an identity map of the first GiB |
//! | `0x20000` | the command line |
//! | `0x9fc00` to `0xfffff` | not for the guest to use |
//! | `0xdf010` | the generation id |
//! | `0xe0000` | the ACPI tables |
//! | `0x100000` | the kernel, where its header or its ELF segments do not say otherwise |

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
/// The generation id, 16 bytes in a page of its own. Not at the page's start, where PCs have option ROMs: the kernel looks for their first two bytes.
pub(super) const GENERATION_ID: u64 = 0xd_f010;
/// The ACPI tables. A kernel that the boot parameters do not tell where they are looks here.
pub(super) const ACPI: u64 = 0xe_0000;
/// Behind the ACPI tables.
pub(super) const ACPI_END: u64 = HIGH_BEGIN;
/// Where memory begins that the guest may use without gaps.
pub(super) const HIGH_BEGIN: u64 = 0x10_0000;

/// The serial port: eight ports.
pub(super) const SERIAL_PORT: u16 = 0x3f8;
pub(super) const SERIAL_IRQ: u32 = 4;
/// The keyboard controller's first port. Of all it has, only the line that resets the processor is there.
pub(super) const I8042_PORT: u16 = 0x60;
pub(super) const I8042_PORTS: u16 = 5;
/// The real-time clock: which register, and its value.
pub(super) const RTC_PORT: u16 = 0x70;
pub(super) const RTC_PORTS: u8 = 2;
/// ACPI's fixed hardware: status, enable (two bytes each).
pub(super) const PM1_EVENT_PORT: u16 = 0x600;
pub(super) const PM1_EVENT_PORTS: u16 = 4;
/// Control (two bytes).
pub(super) const PM1_CONTROL_PORT: u16 = 0x604;
pub(super) const PM1_CONTROL_PORTS: u16 = 2;
/// The reset register (a byte).
pub(super) const RESET_PORT: u16 = 0x608;
/// What resets when it is written there.
pub(super) const RESET_VALUE: u8 = 0x06;
/// ACPI's interrupt. Nothing raises it.
pub(super) const SCI_IRQ: u8 = 9;
/// The generation id's interrupt, of ACPI's generic event device. Edge-triggered.
pub(super) const GENERATION_IRQ: u32 = 15;
/// What a guest writes to the control register's sleep type to be switched off.
pub(super) const SLEEP_TYPE_S5: u8 = 5;

/// The registers of virtio devices: the entropy device's, and then each disk's.
pub(super) const VIRTIO: u64 = 0xd000_0000;
/// From one device's to the next one's.
pub(super) const VIRTIO_STRIDE: u64 = 0x1000;
/// The first virtio device's interrupt, above those of the ISA. Each has its own.
pub(super) const VIRTIO_IRQ: u32 = 16;
/// The I/O interrupt controller has 24 inputs.
pub(super) const VIRTIO_MAX: usize = 8;

/// The local and the I/O interrupt controller: KVM's own addresses.
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;
pub(super) const IO_APIC: u32 = 0xfec0_0000;
