//! Virtio devices behind memory-mapped registers: the transport with its one queue, and the devices.
//!
//! Requests are handled on the thread of a vCPU, so that none is under way while a checkpoint is taken, but for those that wait to be durable. All that a device writes goes
//! through [`GuestMemory::ram`] or [`GuestMemory::device_ram`], which record it; requests are bounded, so that it is known beforehand how many pages one may write.

mod block;
mod entropy;
mod held;
mod transport;

use std::fmt;

pub(super) use block::Block;
pub(super) use entropy::Entropy;
pub use transport::VirtioError;
pub(super) use transport::{Progress, REGISTERS_BYTES, Transport, When};
use virtio_queue::{Reader, Writer};
use vm_memory::bitmap::BS;

use crate::memory::{MemoryError, WriteLog};

/// Requests that a driver may have under way.
pub(super) const QUEUE_SIZE: u16 = 64;
/// The most pages that a request makes a device write, those of its queue included.
pub(super) const REQUEST_PAGES_MAX: u64 = 256;

/// What the driver gives, and room for the answer. All of it is in guest memory and at hand, and not more than the device takes.
pub(super) struct Request<'m> {
    readable: Reader<'m, BS<'m, WriteLog>>,
    writable: Writer<'m, BS<'m, WriteLog>>,
}

/// How a request was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handled {
    /// So many bytes of the answer were written.
    Answered(u32),
    /// The answer, a byte of zero where the room for it ends, is to be given once everything up to now is durable.
    WhenDurable,
}

/// A kind of virtio device.
pub(super) trait VirtioDevice: fmt::Debug + Send {
    /// The number of its kind.
    fn kind(&self) -> u32;

    /// What it offers, besides what the transport does.
    fn features(&self) -> u64;

    /// The device's own registers, which the driver only reads.
    fn config(&self) -> &[u8];

    /// The most bytes of a request, of both directions together. A larger one gets an empty answer.
    fn request_bytes_max(&self) -> u64;

    /// The most pages that a request with so many bytes for the device makes it write, besides those of the answer.
    fn pages_written(&self, readable_bytes: u64) -> u64;

    /// Handles a request of a driver that has accepted `features`.
    ///
    /// # Errors
    /// Memory that did not come: the machine can't go on. What is wrong with the request is answered to the driver.
    fn handle(&mut self, request: Request<'_>, features: u64) -> Result<Handled, MemoryError>;
}

#[cfg(test)]
mod tests;
