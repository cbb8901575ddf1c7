//! What devices are made of, and what the list of devices says of each.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::device::Device;
use super::disk::DiskBase;
use super::irq_line::Line;
use crate::memory::GuestMemory;
use crate::page::PageRun;
use crate::vmm::nic::Nic;
use crate::vmm::outputs::Outlet;
use crate::vmm::vsock_side::VsockSide;

/// Where the guest's output goes.
pub(in crate::vmm) type Output = Box<dyn Write + Send>;

/// What a machine's devices are made of.
pub(in crate::vmm) struct Parts<'p> {
    /// The guest's memory and that of devices.
    pub(in crate::vmm) memory: &'p GuestMemory,
    /// An interrupt line, by its number.
    pub(in crate::vmm) line: &'p dyn Fn(u32) -> Arc<dyn Line>,
    /// Where the console's output goes that does not wait.
    pub(in crate::vmm) output: &'p dyn Fn() -> Output,
    /// Where it leaves, where it waits.
    pub(in crate::vmm) console: Option<&'p Arc<Outlet>>,
    /// The runs of the guest's memory.
    pub(in crate::vmm) guest: &'p [PageRun],
    /// The disks.
    pub(in crate::vmm) disks: &'p [DiskBase],
    /// Where their base images are, in the same order, as far as they are not where they were.
    pub(in crate::vmm) images: &'p [PathBuf],
    /// The network interfaces.
    pub(in crate::vmm) nics: &'p [Arc<Nic>],
    /// What is behind the socket device.
    pub(in crate::vmm) vsock: Option<&'p Arc<VsockSide>>,
}

/// A line of the list of devices.
pub(super) struct Entry {
    /// The device, as a chain's description has it.
    pub(super) name: &'static str,
    /// Whether it is a virtio device: each has registers and an interrupt of its own.
    pub(super) is_virtio: bool,
    /// Pages that it has to be able to write within an epoch, besides those of a request.
    pub(super) pages: u64,
    /// Makes it. The number is that of virtio devices before it.
    pub(super) make: fn(&Parts<'_>, u32) -> Box<dyn Device>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).finish_non_exhaustive()
    }
}
