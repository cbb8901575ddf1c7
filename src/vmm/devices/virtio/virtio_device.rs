//! What a kind of virtio device is to the transport.

use std::fmt;

use virtio_queue::{Reader, Writer};
use vm_memory::bitmap::BS;

use crate::memory::{MemoryError, WriteLog};

/// Requests that a driver may have under way.
pub(super) const QUEUE_SIZE: u16 = 64;
/// The most pages that a request makes a device write, those of its queue included.
pub(in crate::vmm::devices) const REQUEST_PAGES_MAX: u64 = 256;
/// Pages of a queue's answers that wait: a page each, and two for the used ring. Widening; `From`
/// is not const.
pub(in crate::vmm::devices) const ANSWERS_PAGES: u64 = QUEUE_SIZE as u64 + 2;

/// What the driver gives, and room for the answer. All of it is in guest memory and at hand, and
/// not more than the device takes.
pub(super) struct Request<'m> {
    pub(super) readable: Reader<'m, BS<'m, WriteLog>>,
    pub(super) writable: Writer<'m, BS<'m, WriteLog>>,
}

/// How a request was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handled {
    /// So many bytes of the answer were written.
    Answered(u32),
    /// The answer, a byte of zero where the room for it ends, is to be given once everything up to
    /// now is durable.
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

    /// The most pages that a request with so many bytes for the device makes it write, besides
    /// those of the answer.
    fn pages_written(&self, readable_bytes: u64) -> u64;

    /// Handles a request of a driver that has accepted `features`.
    ///
    /// # Errors
    /// Memory that did not come: the machine can't go on. What is wrong with the request is
    /// answered to the driver.
    fn handle(&mut self, request: Request<'_>, features: u64) -> Result<Handled, MemoryError>;
}
