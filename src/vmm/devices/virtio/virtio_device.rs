//! What a kind of virtio device is to the transport.

use std::fmt;

use virtio_queue::{Reader, Writer};
use vm_memory::bitmap::BS;

use crate::machine::StateError;
use crate::memory::{MemoryError, WriteLog};
use crate::page::EpochId;
use crate::vmm::devices::record::Fields;

/// Requests that a driver may have under way in a queue.
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
    /// now is durable. Only of the first queue.
    WhenDurable,
}

/// What a queue of a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueUse {
    /// The driver asks, the device answers.
    Requests,
    /// The driver gives room, the device fills it when there is something.
    Input,
}

/// A kind of virtio device. Whatever it does not have, the defaults say.
pub(super) trait VirtioDevice: fmt::Debug + Send {
    /// The number of its kind.
    fn kind(&self) -> u32;

    /// Its queues, in their order.
    fn queues(&self) -> &'static [QueueUse] {
        &[QueueUse::Requests]
    }

    /// What it offers, besides what the transport does.
    fn features(&self) -> u64;

    /// The device's own registers, which the driver only reads.
    fn config(&self) -> &[u8];

    /// The most bytes of a request, of both directions together. A larger one gets an empty answer.
    fn request_bytes_max(&self) -> u64;

    /// The most pages that a request with so many bytes for the device makes it write, besides
    /// those of the answer.
    fn pages_written(&self, readable_bytes: u64) -> u64;

    /// Whether a request of this queue can be handled now.
    fn takes(&self, _queue: usize) -> bool {
        true
    }

    /// Handles a request of a queue of [`QueueUse::Requests`], of a driver that has accepted
    /// `features`.
    ///
    /// # Errors
    /// Memory that did not come: the machine can't go on. What is wrong with the request is
    /// answered to the driver.
    fn handle(&mut self, queue: usize, request: Request<'_>, features: u64) -> Result<Handled, MemoryError>;

    /// So many buffers, modulo 2^16, the driver has given to a queue of [`QueueUse::Input`] until
    /// now. Comes before that queue is worked on.
    fn note_offered(&mut self, _queue: usize, _buffers: u16) {}

    /// The next input of a queue of [`QueueUse::Input`], where there is one. The next buffer has
    /// room for so many bytes.
    fn next_input(&mut self, _queue: usize, _features: u64, _room: usize) -> Option<Input> {
        None
    }

    /// The bytes of that input, which goes into so many buffers.
    fn input(&mut self, _queue: usize, _buffers: u16) -> &[u8] {
        &[]
    }

    /// That input was given to the driver, or it is not to be.
    fn input_is_done(&mut self, _queue: usize, _given: bool) {}

    /// The driver has agreed on `features`, or a restored one had.
    fn begin(&mut self, _features: u64) {}

    /// Whether the device's own registers have changed since this was asked last.
    fn take_config_change(&mut self) -> bool {
        false
    }

    /// The driver has reset the device.
    fn reset(&mut self) {}

    /// Whether something that it gave out waits for an epoch to be taken.
    fn wants_epoch(&self) -> bool {
        false
    }

    /// A cut captures the machine.
    fn note_capture(&mut self) {}

    /// What was captured last is `epoch`.
    fn note_taken(&mut self, _epoch: EpochId) {}

    /// The bytes of its own in the record, behind the transport's.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Puts them back. All make sense, or nothing changes.
    ///
    /// # Errors
    /// [`StateError::Malformed`].
    fn restore(&mut self, saved: Fields<'_>) -> Result<(), StateError> {
        saved.end()
    }

    /// The guest is about to go on from an epoch, its driver having agreed on `features`.
    fn resume(&mut self, _features: u64) {}
}

/// What an input needs of the buffers that it goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Input {
    /// Its bytes.
    pub(super) bytes: usize,
    /// It may go into several.
    pub(super) is_mergeable: bool,
}
