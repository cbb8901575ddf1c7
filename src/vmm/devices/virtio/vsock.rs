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
    /// The driver is to be told that its connections are gone.
    tells_reset: bool,
}

impl Vsock {
    /// The device. There are `virtio` virtio devices before it.
    pub(in crate::vmm::devices) fn make(parts: &Parts<'_>, virtio: u32, side: Arc<VsockSide>) -> Box<dyn Device> {
        Box::new(Transport::new(Box::new(Self::new(side)), RecordName::only("vsock", 1), parts, virtio))
    }

    pub(super) fn new(side: Arc<VsockSide>) -> Self {
        let config = u64::from(side.spec.cid()).to_le_bytes();
        Self { side, config, input: None, tells_reset: false }
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

    fn next_input(&mut self, queue: usize, _features: u64, room: usize) -> Option<Input> {
        let bytes = match queue {
            RECEIVE => {
                if self.input.is_none() {
                    let next = lock(&self.side.connections).next_for_guest(room.saturating_sub(HEADER_BYTES));
                    self.input = next.map(|(header, payload)| [&header.encode()[..], &payload].concat());
                }
                self.input.as_ref()?.len()
            }
            EVENT if self.tells_reset => TRANSPORT_RESET.len(),
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
            self.tells_reset = false;
        }
    }

    fn reset(&mut self) {
        (self.input, self.tells_reset) = (None, false);
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
        vec![self.tells_reset.into()]
    }

    fn restore(&mut self, mut saved: Fields<'_>) -> Result<(), StateError> {
        let tells_reset = saved.flag()?;
        saved.end()?;
        (self.input, self.tells_reset) = (None, tells_reset);
        self.side.reset();
        Ok(())
    }

    fn resume(&mut self, _features: u64) {
        self.tells_reset = true;
    }
}
