//! The devices of a machine with a Linux guest.
//!
//! Each is a file that implements `Device`: what it answers on the bus, what it does for the
//! guest, its saved state, and how the guest's firmware tables describe it. A machine holds a list
//! of them, and knows none by name. To add a device, write its file with an `Entry`, and put that
//! into the list in `list.rs`.

mod addresses;
mod bus;
mod console;
mod device;
mod disk;
mod disk_image;
mod generation_id;
mod irq_line;
mod list;
mod parts;
mod power;
mod random;
mod record;
mod rtc;
mod serial;
mod set;
#[cfg(test)]
mod testing;
mod virtio;

pub(in crate::vmm) use addresses::{
    GENERATION_ID, PM1_CONTROL_PORT, PM1_CONTROL_PORTS, PM1_EVENT_PORT, PM1_EVENT_PORTS, RESET_PORT, RESET_VALUE, RTC_CENTURY,
    SCI_IRQ, SLEEP_TYPE_S5, VIRTIO,
};
pub use console::Console;
pub(in crate::vmm) use device::Wish;
pub use device::{DeviceError, GuestEnd};
pub(in crate::vmm) use disk::device_regions;
pub use disk::{DiskBase, DiskBaseError};
pub use disk_image::{DiskImageError, write_disk_image};
pub(in crate::vmm) use irq_line::IrqLine;
pub use list::DeviceName;
pub(in crate::vmm) use list::{check_disks, check_virtio, make, make_nets, share_pages_min, share_pages_of_nets};
pub(in crate::vmm) use parts::Parts;
pub(in crate::vmm) use record::unknown;
pub use set::Devices;
pub(in crate::vmm) use set::Quiet;
#[cfg(test)]
pub(in crate::vmm) use testing::{RECORDS, machine_devices};
#[doc(hidden)]
pub use virtio::{Left, LoneDevice, Worked};
