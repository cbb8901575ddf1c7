//! Where devices are: their ports, their registers in memory, their interrupts.

/// The generation id, 16 bytes in a page of its own. It lies in memory that is not for the guest to
/// use. Not at the page's start, where PCs have option ROMs: the kernel looks for their first two
/// bytes.
pub(in crate::vmm) const GENERATION_ID: u64 = 0xd_f010;

/// The serial port: eight ports.
pub(super) const SERIAL_PORT: u16 = 0x3f8;
pub(super) const SERIAL_PORTS: u8 = 8;
pub(super) const SERIAL_IRQ: u32 = 4;
/// The keyboard controller's first port. Of all it has, only the line that resets the processor is
/// there.
pub(super) const I8042_PORT: u16 = 0x60;
pub(super) const I8042_PORTS: u16 = 5;
/// The real-time clock: which register, and its value.
pub(super) const RTC_PORT: u16 = 0x70;
pub(super) const RTC_PORTS: u8 = 2;
/// The clock's register with the century, where PCs have it. ACPI's FADT says so.
pub(in crate::vmm) const RTC_CENTURY: u8 = 0x32;
/// ACPI's fixed hardware: status, enable (two bytes each).
pub(in crate::vmm) const PM1_EVENT_PORT: u16 = 0x600;
pub(in crate::vmm) const PM1_EVENT_PORTS: u16 = 4;
/// Control (two bytes).
pub(in crate::vmm) const PM1_CONTROL_PORT: u16 = 0x604;
pub(in crate::vmm) const PM1_CONTROL_PORTS: u16 = 2;
/// The reset register (a byte).
pub(in crate::vmm) const RESET_PORT: u16 = 0x608;
/// What resets when it is written there.
pub(in crate::vmm) const RESET_VALUE: u8 = 0x06;
/// ACPI's interrupt. Nothing raises it.
pub(in crate::vmm) const SCI_IRQ: u8 = 9;
/// The generation id's interrupt, of ACPI's generic event device. Edge-triggered.
pub(super) const GENERATION_IRQ: u32 = 15;
/// What a guest writes to the control register's sleep type to be switched off.
pub(in crate::vmm) const SLEEP_TYPE_S5: u8 = 5;

/// The registers of virtio devices: those of the list, and then each disk's.
pub(in crate::vmm) const VIRTIO: u64 = 0xd000_0000;
/// From one device's to the next one's.
pub(super) const VIRTIO_STRIDE: u64 = 0x1000;
/// The first virtio device's interrupt, above those of the ISA. Each has its own.
pub(super) const VIRTIO_IRQ: u32 = 16;
/// The I/O interrupt controller has 24 inputs.
pub(super) const VIRTIO_MAX: usize = 8;
