//! The socket device: packets of connections between the guest and programs of the host.

use std::io::Read;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::transport::Transport;
use super::virtio_device::{Handled, Input, QueueUse, Request, VirtioDevice};
use crate::lock::lock;
use crate::machine::StateError;
use crate::memory::MemoryError;
use crate::page::EpochId;
use crate::vmm::devices::device::Device;
use crate::vmm::devices::parts::Parts;
use crate::vmm::devices::record::{Fields, RecordName};
use crate::vmm::vsock::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use crate::vmm::vsock_side::VsockSide;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// The event that says that all connections are gone: `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

#[derive(Debug)]
pub(in crate::vmm::devices) struct Vsock {
    side: Arc<VsockSide>,
    /// The guest's address.
    config: [u8; 8],
    /// What the guest gets next.
    input: Option<Vec<u8>>,
    reset_event: ResetEvent,
    /// Buffers for events that the driver has given.
    offered_events: u16,
}

/// How far the driver is told that its connections are gone. It ends all that it has when it takes
/// the event, so it gets no packet before: that of a new connection would make one for it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResetEvent {
    /// It knows.
    Taken,
    /// The event waits for a buffer.
    Waits,
    /// It is in a buffer, and the driver had given so many by then. With the next one that it gives
    /// it has taken this one: both are done by the same hand, in that order.
    Told(u16),
}

impl Vsock {
    /// The device. There are `virtio` virtio devices before it.
    pub(in crate::vmm::devices) fn make(parts: &Parts<'_>, virtio: u32, side: Arc<VsockSide>) -> Box<dyn Device> {
        Box::new(Transport::new(Box::new(Self::new(side)), RecordName::only("vsock", 1), parts, virtio))
    }

    pub(super) fn new(side: Arc<VsockSide>) -> Self {
        let config = u64::from(side.spec.cid()).to_le_bytes();
        Self { side, config, input: None, reset_event: ResetEvent::Taken, offered_events: 0 }
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queues(&self) -> &'static [QueueUse] {
        &[QueueUse::Input, QueueUse::Requests, QueueUse::Input]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn request_bytes_max(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(PAYLOAD_BYTES_MAX)
    }

    fn pages_written(&self, _readable_bytes: u64) -> u64 {
        0
    }

    fn takes(&self, queue: usize) -> bool {
        queue != TRANSMIT || self.side.outlet.has_room() && lock(&self.side.connections).takes_packets()
    }

    fn handle(&mut self, _queue: usize, mut request: Request<'_>, _features: u64) -> Result<Handled, MemoryError> {
        let mut bytes = vec![0; request.readable.available_bytes()];
        if request.readable.read_exact(&mut bytes).is_err() {
            return Ok(Handled::Answered(0));
        }
        // What is no packet has no sender that could be told.
        if let (Ok(header), Some(payload)) = (Header::decode(&bytes), bytes.get(HEADER_BYTES..)) {
            let output = lock(&self.side.connections).from_guest(&header, payload);
            output.into_iter().for_each(|output| self.side.outlet.push(output));
        }
        Ok(Handled::Answered(0))
    }

    fn note_offered(&mut self, queue: usize, buffers: u16) {
        if queue != EVENT {
            return;
        }
        if let ResetEvent::Told(before) = self.reset_event
            && before != buffers
        {
            self.reset_event = ResetEvent::Taken;
        }
        self.offered_events = buffers;
    }

    fn next_input(&mut self, queue: usize, _features: u64, room: usize) -> Option<Input> {
        let bytes = match queue {
            RECEIVE if self.reset_event == ResetEvent::Taken => {
                if self.input.is_none() {
                    let next = lock(&self.side.connections).next_for_guest(room.saturating_sub(HEADER_BYTES));
                    self.input = next.map(|(header, payload)| [&header.encode()[..], &payload].concat());
                }
                self.input.as_ref()?.len()
            }
            EVENT if self.reset_event == ResetEvent::Waits => TRANSPORT_RESET.len(),
            _ => return None,
        };
        Some(Input { bytes, is_mergeable: false })
    }

    fn input(&mut self, queue: usize, _buffers: u16) -> &[u8] {
        match queue {
            RECEIVE => self.input.as_deref().unwrap_or_default(),
            _ => &TRANSPORT_RESET,
        }
    }

    fn input_is_done(&mut self, queue: usize, _given: bool) {
        if queue == RECEIVE {
            self.input = None;
            self.side.note_room();
        } else {
            // One that no buffer has room for counts too: such a driver can't be told.
            self.reset_event = ResetEvent::Told(self.offered_events);
        }
    }

    fn reset(&mut self) {
        (self.input, self.reset_event) = (None, ResetEvent::Taken);
        self.side.reset();
    }

    fn wants_epoch(&self) -> bool {
        self.side.outlet.wants_epoch()
    }

    fn note_capture(&mut self) {
        self.side.outlet.note_capture();
    }

    fn note_taken(&mut self, epoch: EpochId) {
        self.side.outlet.note_taken(epoch);
    }

    /// Connections are not part of it: the programs at their other ends go on.
    fn save(&self) -> Vec<u8> {
        vec![(self.reset_event == ResetEvent::Waits).into()]
    }

    fn restore(&mut self, mut saved: Fields<'_>) -> Result<(), StateError> {
        let tells_reset = saved.flag()?;
        saved.end()?;
        self.input = None;
        self.reset_event = if tells_reset { ResetEvent::Waits } else { ResetEvent::Taken };
        self.side.reset();
        Ok(())
    }

    fn resume(&mut self, _features: u64) {
        self.reset_event = ResetEvent::Waits;
    }
}
