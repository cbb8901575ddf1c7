//! The network device: packets to and from a link.

use std::io::{Read, Write};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_OK,
    VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use super::transport::Transport;
use super::virtio_device::{Handled, Input, QueueUse, Request, VirtioDevice};
use crate::machine::StateError;
use crate::memory::MemoryError;
use crate::page::EpochId;
use crate::vmm::devices::device::Device;
use crate::vmm::devices::parts::Parts;
use crate::vmm::devices::record::{Fields, RecordName};
use crate::vmm::links::{HEADER_BYTES, Mac, Neighbours};
use crate::vmm::nic::Nic;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Where in the header before each frame the number of buffers is.
const HEADER_BUFFERS: std::ops::Range<usize> = 10..12;
/// Addresses and a type.
const FRAME_BYTES_MIN: usize = 14;
/// A segment of the largest size, with what is around it.
const PACKET_BYTES_MAX: u64 = HEADER_BYTES as u64 + 65_550;
/// MAC address, status, pairs of queues, MTU.
const CONFIG_BYTES: usize = 12;
const MAC_BYTES: usize = 6;

/// What a driver that has agreed on them may be given, and what it may send, where the link does
/// the rest.
const OFFLOADS: [u32; 8] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
];

#[derive(Debug)]
pub(in crate::vmm::devices) struct Net {
    nic: Arc<Nic>,
    /// The driver may have set another one.
    mac: [u8; MAC_BYTES],
    /// What is known of the guest's own addresses: it is announced by them where it goes on.
    neighbours: Neighbours,
    /// The guest is to announce itself.
    announces: bool,
    config: [u8; CONFIG_BYTES],
    config_changed: bool,
    /// The packet that the guest gets next.
    input: Option<Vec<u8>>,
}

impl Net {
    /// The device of `nic`, which is the `index`th. There are `virtio` virtio devices before it.
    pub(in crate::vmm::devices) fn make(parts: &Parts<'_>, virtio: u32, nic: Arc<Nic>, index: u32) -> Box<dyn Device> {
        let record = RecordName { name: "net", index, version: 1 };
        Box::new(Transport::new(Box::new(Self::new(nic)), record, parts, virtio))
    }

    pub(super) fn new(nic: Arc<Nic>) -> Self {
        let mac = nic.mac.bytes();
        let mut net = Self {
            nic,
            mac,
            neighbours: Neighbours::default(),
            announces: false,
            config: [0; CONFIG_BYTES],
            config_changed: false,
            input: None,
        };
        net.set_config();
        net
    }

    /// Brings the device's registers up to date. Returns whether they were not.
    fn set_config(&mut self) -> bool {
        let up = if self.nic.inlet.is_up() { VIRTIO_NET_S_LINK_UP } else { 0 };
        let status = up | if self.announces { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let mut config = [0; CONFIG_BYTES];
        let fields = [&self.mac[..], &low(status), &[0; 2], &self.nic.mtu.unwrap_or_default().to_le_bytes()].concat();
        config.iter_mut().zip(fields).for_each(|(place, byte)| *place = byte);
        std::mem::replace(&mut self.config, config) != config
    }

    fn transmit(&mut self, mut request: Request<'_>) {
        let mut packet = self.nic.buffers.take();
        let bytes = request.readable.available_bytes();
        packet.resize(bytes, 0);
        if bytes < HEADER_BYTES + FRAME_BYTES_MIN || request.readable.read_exact(&mut packet).is_err() {
            return self.nic.buffers.put(packet);
        }
        if let (Ok(mac), Some(frame)) = (Mac::new(self.mac), packet.get(HEADER_BYTES..)) {
            self.neighbours.learn(mac, frame);
        }
        self.nic.outlet.push(packet);
    }

    /// Carries out a command, and says how that went.
    fn control(&mut self, request: &mut Request<'_>) -> u32 {
        let mut command = [0; 2];
        if request.readable.read_exact(&mut command).is_err() {
            return VIRTIO_NET_ERR;
        }
        match command.map(u32::from) {
            [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET] => {
                let mut mac = [0; MAC_BYTES];
                if request.readable.available_bytes() != MAC_BYTES || request.readable.read_exact(&mut mac).is_err() {
                    return VIRTIO_NET_ERR;
                }
                self.mac = mac;
                // The driver knows.
                self.set_config();
                VIRTIO_NET_OK
            }
            [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK] => {
                self.announces = false;
                self.set_config();
                VIRTIO_NET_OK
            }
            _ => VIRTIO_NET_ERR,
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queues(&self) -> &'static [QueueUse] {
        &[QueueUse::Input, QueueUse::Requests, QueueUse::Requests]
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ];
        let offloads = OFFLOADS.iter().filter(|_| self.nic.has_offloads);
        let mtu = self.nic.mtu.map(|_| &VIRTIO_NET_F_MTU);
        always.iter().chain(offloads).chain(mtu).fold(0, |features, bit| features | 1 << bit)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn request_bytes_max(&self) -> u64 {
        PACKET_BYTES_MAX
    }

    fn pages_written(&self, _readable_bytes: u64) -> u64 {
        0
    }

    fn takes(&self, queue: usize) -> bool {
        queue != TRANSMIT || self.nic.outlet.has_room()
    }

    fn handle(&mut self, queue: usize, mut request: Request<'_>, _features: u64) -> Result<Handled, MemoryError> {
        if queue == TRANSMIT {
            self.transmit(request);
            return Ok(Handled::Answered(0));
        }
        let outcome = self.control(&mut request);
        let answered = request.writable.write_all(&[u8::try_from(outcome).unwrap_or_default()]);
        Ok(Handled::Answered(u32::from(answered.is_ok())))
    }

    fn next_input(&mut self, queue: usize, features: u64, _room: usize) -> Option<Input> {
        if queue != RECEIVE {
            return None;
        }
        if self.input.is_none() {
            self.input = self.nic.inlet.pop();
        }
        let bytes = self.input.as_ref()?.len();
        Some(Input { bytes, is_mergeable: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0 })
    }

    fn input(&mut self, _queue: usize, buffers: u16) -> &[u8] {
        let Some(packet) = &mut self.input else { return &[] };
        if let Some(place) = packet.get_mut(HEADER_BUFFERS) {
            place.copy_from_slice(&buffers.to_le_bytes());
        }
        packet
    }

    fn input_is_done(&mut self, _queue: usize, given: bool) {
        if let Some(packet) = self.input.take() {
            self.nic.buffers.put(packet);
        }
        self.nic.count_received(given);
    }

    fn begin(&mut self, features: u64) {
        self.nic.agree(features);
    }

    fn take_config_change(&mut self) -> bool {
        let changed = self.set_config();
        std::mem::take(&mut self.config_changed) || changed
    }

    fn reset(&mut self) {
        (self.mac, self.neighbours) = (self.nic.mac.bytes(), Neighbours::default());
        (self.announces, self.input) = (false, None);
        self.nic.inlet.clear();
        self.set_config();
    }

    fn wants_epoch(&self) -> bool {
        self.nic.outlet.wants_epoch()
    }

    fn note_capture(&mut self) {
        self.nic.outlet.note_capture();
    }

    fn note_taken(&mut self, epoch: EpochId) {
        self.nic.outlet.note_taken(epoch);
    }

    /// What came in and what waits to leave are not part of it: a network loses packets.
    fn save(&self) -> Vec<u8> {
        let mut data = self.mac.to_vec();
        data.push(self.announces.into());
        data.extend(self.neighbours.encode());
        data
    }

    fn restore(&mut self, mut saved: Fields<'_>) -> Result<(), StateError> {
        let mac = saved.bytes()?;
        let announces = saved.flag()?;
        let at = saved.at();
        let neighbours = Neighbours::decode(saved.rest()).map_err(|it| saved.malformed_at(at + it.offset, it.expected))?;
        (self.mac, self.neighbours, self.announces, self.input) = (mac, neighbours, announces, None);
        self.nic.outlet.roll_back();
        self.set_config();
        Ok(())
    }

    /// The network learns where the guest is now, by the host at once, and by the guest itself
    /// where its driver can.
    fn resume(&mut self, features: u64) {
        for frame in Mac::new(self.mac).iter().flat_map(|mac| self.neighbours.announcements(*mac)) {
            self.nic.outlet.push_own([&[0; HEADER_BYTES][..], &frame].concat());
        }
        if features & 1 << VIRTIO_NET_F_GUEST_ANNOUNCE != 0 {
            self.announces = true;
            self.set_config();
            self.config_changed = true;
        }
    }
}

/// The lower half of a register.
fn low(value: u32) -> [u8; 2] {
    let [first, second, ..] = value.to_le_bytes();
    [first, second]
}
