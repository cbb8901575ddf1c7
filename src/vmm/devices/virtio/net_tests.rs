//! A driver of a network device.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF};

use super::net::Net;
use super::queue_driver::{QueueDriver, parts};
use super::virtio_device::QUEUE_SIZE;
use crate::page::EpochId;
use crate::vmm::devices::device::{Device, Progress};
use crate::vmm::devices::record::{Fields, RecordName};
use crate::vmm::links::Mac;
use crate::vmm::nic::Nic;
use crate::vmm::outputs::Outputs;

const RECORD: RecordName = RecordName::only("net", 1);
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
const PLAIN: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MAC;
const ALL: u64 = PLAIN | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;

struct Driver {
    queues: QueueDriver,
    nic: Arc<Nic>,
    outputs: Outputs,
}

impl Deref for Driver {
    type Target = QueueDriver;

    fn deref(&self) -> &QueueDriver {
        &self.queues
    }
}

impl DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut QueueDriver {
        &mut self.queues
    }
}

/// A packet with a frame of so many bytes.
fn packet(bytes: usize, content: u8) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet.resize(12 + bytes, content);
    packet
}

impl Driver {
    fn new(features: u64, holds: bool) -> Self {
        let nic = Arc::new(Nic::new(Mac::new(MAC).unwrap(), Some(1500), false, holds));
        nic.inlet.set_up(true);
        let outputs = Outputs::default().with(nic.outlet.clone());
        Self { queues: QueueDriver::new(Box::new(Net::new(nic.clone())), RECORD, features), nic, outputs }
    }

    /// Sends a frame of so many bytes.
    fn send(&mut self, bytes: usize, content: u8) {
        let slot = self.added[TX] % QUEUE_SIZE;
        let address = 0x40000 + u64::from(slot) * 2048;
        let packet = packet(bytes, content);
        self.write(address, &packet);
        self.add(TX, slot, &[(address, u32::try_from(packet.len()).unwrap(), false)]);
    }

    /// A command, and how it went.
    fn command(&mut self, command: &[u8]) -> u8 {
        self.write(0x30000, command);
        self.write(0x31000, &[0xff]);
        self.add(CONTROL, 0, &[(0x30000, u32::try_from(command.len()).unwrap(), false), (0x31000, 1, true)]);
        assert_eq!(self.work(), Progress::Idle);
        assert_eq!(self.used(CONTROL), Some((0, 1)));
        self.read(0x31000, 1)[0]
    }

    fn mac(&mut self) -> Vec<u8> {
        let mut mac = vec![0; 8];
        self.device.read(0, VIRTIO_MMIO_CONFIG.into(), &mut mac[..4]);
        self.device.read(0, u64::from(VIRTIO_MMIO_CONFIG) + 4, &mut mac[4..]);
        mac
    }
}

#[test]
fn a_packet_leaves_when_its_epoch_is_released() {
    let mut driver = Driver::new(PLAIN, true);
    driver.send(60, 1);
    driver.work();
    assert!(driver.used(TX).is_some(), "its buffer is the guest's again");
    assert!(driver.device.wants_epoch());
    driver.device.note_capture();
    driver.send(60, 2);
    driver.work();
    driver.device.note_taken(EpochId(4));
    assert!(driver.device.wants_epoch(), "the second is in the next");
    driver.outputs.release(EpochId(4));
    driver.nic.outlet.end();
    assert_eq!(driver.nic.outlet.next().unwrap().output, packet(60, 1));
    assert!(driver.nic.outlet.next().is_none());
}

#[test]
fn what_is_put_back_has_sent_nothing() {
    let mut driver = Driver::new(PLAIN, true);
    let saved = RECORD.with(driver.device.save());
    driver.device.note_capture();
    driver.device.note_taken(EpochId(1));
    driver.send(60, 1);
    driver.work();
    driver.device.restore(Fields::of(&saved, RECORD).unwrap()).unwrap();
    driver.device.note_taken(EpochId(1));
    driver.device.note_capture();
    driver.device.note_taken(EpochId(2));
    driver.outputs.release(EpochId(2));
    driver.nic.outlet.end();
    assert!(driver.nic.outlet.next().is_none());
}

#[test]
fn a_full_outlet_leaves_requests_in_the_queue() {
    let mut driver = Driver::new(PLAIN, true);
    let mut sent = 0;
    while driver.nic.outlet.has_room() {
        driver.send(1500, 0);
        driver.work();
        assert!(driver.used(TX).is_some());
        sent += 1;
    }
    driver.send(60, 9);
    assert_eq!(driver.work(), Progress::Idle);
    assert_eq!(driver.used(TX), None, "after {sent}");
    driver.device.note_capture();
    driver.device.note_taken(EpochId(1));
    driver.outputs.release(EpochId(1));
    assert!(driver.nic.outlet.next().unwrap().was_full);
    driver.work();
    assert!(driver.used(TX).is_some());
}

#[test]
fn packets_come_in_and_wait_for_buffers_and_room() {
    for features in [PLAIN, ALL] {
        let mut driver = Driver::new(features, true);
        driver.nic.inlet.push(packet(60, 7));
        assert_eq!(driver.work(), Progress::Idle);
        assert_eq!(driver.used(RX), None);
        driver.add(RX, 0, &[(0x20000, 2048, true)]);
        assert_eq!(driver.work_with(2, true), Progress::NoRoom);
        assert_eq!(driver.work(), Progress::Idle);
        assert_eq!(driver.used(RX), Some((0, 72)));
        let mut expected = packet(60, 7);
        expected[10] = 1;
        assert_eq!(driver.read(0x20000, 72), expected);
        assert!(driver.line.0.load(Ordering::SeqCst));
        assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        driver.put(VIRTIO_MMIO_INTERRUPT_ACK, 1);
        // A driver that looks by itself.
        driver.write(parts(RX)[1], &1_u16.to_le_bytes());
        driver.nic.inlet.push(packet(60, 8));
        driver.add(RX, 1, &[(0x21000, 2048, true)]);
        driver.work();
        assert_eq!(driver.used(RX), Some((1, 72)));
        assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    }
}

#[test]
fn a_large_packet_goes_into_several_buffers_at_once_where_the_driver_can() {
    let mut driver = Driver::new(ALL, true);
    driver.nic.inlet.push(packet(3000, 7));
    driver.add(RX, 0, &[(0x20000, 1024, true)]);
    driver.add(RX, 1, &[(0x22000, 1024, true)]);
    driver.work();
    assert_eq!(driver.used(RX), None, "not before all of it fits");
    driver.add(RX, 2, &[(0x24000, 1024, true)]);
    driver.work();
    assert_eq!([driver.used(RX), driver.used(RX), driver.used(RX)], [Some((0, 1024)), Some((1, 1024)), Some((2, 964))]);
    assert_eq!(driver.read(0x20000 + 10, 2), [3, 0]);
    // A driver that can't: it is dropped, and the buffer waits for another.
    let mut driver = Driver::new(PLAIN, true);
    driver.nic.inlet.push(packet(3000, 7));
    driver.nic.inlet.push(packet(60, 8));
    driver.add(RX, 0, &[(0x20000, 1024, true)]);
    driver.work();
    assert_eq!(driver.used(RX), Some((0, 72)));
}

#[test]
fn a_driver_sets_its_address_and_answers_announcements() {
    let mut driver = Driver::new(ALL, true);
    assert_eq!(driver.mac()[..7], [&MAC[..], &[1]].concat(), "and the link is up");
    assert_eq!(driver.command(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(driver.mac()[..6], [2, 0, 0, 0, 0, 9]);
    for wrong in [&[][..], &[1], &[1, 1], &[1, 1, 2, 0, 0, 0, 0], &[1, 1, 2, 0, 0, 0, 0, 9, 9], &[4, 0, 1, 0], &[3, 1]] {
        assert_eq!(driver.command(wrong), 1, "{wrong:?}");
    }
    let generation = driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    let saved = RECORD.with(driver.device.save());
    driver.device.restore(Fields::of(&saved, RECORD).unwrap()).unwrap();
    driver.device.resume().unwrap();
    driver.work();
    assert_eq!(driver.mac()[..7], [2, 0, 0, 0, 0, 9, 3], "it is to announce itself");
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
    assert_ne!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(driver.command(&[3, 0]), 0);
    assert_eq!(driver.mac()[6], 1);
    // The link goes.
    driver.put(VIRTIO_MMIO_INTERRUPT_ACK, 3);
    driver.nic.inlet.set_up(false);
    driver.work();
    assert_eq!((driver.mac()[6], driver.get(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 2));
}

#[test]
fn frames_that_are_none_are_not_sent() {
    let mut driver = Driver::new(PLAIN, false);
    for bytes in [0, 5, 12, 25] {
        driver.write(0x40000, &[0; 64]);
        driver.add(TX, 0, &[(0x40000, bytes, false)]);
        driver.work();
        assert_eq!(driver.used(TX), Some((0, 0)));
    }
    driver.add(TX, 0, &[(0x40000, 70_000, false)]);
    driver.work();
    assert_eq!(driver.used(TX), Some((0, 0)), "one that is too large");
    // Nothing of it, and a buffer that the device may only write.
    driver.add(TX, 0, &[(0x40000, 64, true)]);
    driver.work();
    assert_eq!(driver.used(TX), Some((0, 0)));
    driver.nic.outlet.end();
    assert!(driver.nic.outlet.next().is_none());
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

#[test]
fn no_buffer_has_more_pages_written_than_were_counted() {
    let mut driver = Driver::new(ALL, true);
    // One that is larger than any packet: 17 pages of it may be written, and two of the used ring.
    driver.nic.inlet.push(packet(20_000, 7));
    driver.add(RX, 0, &[(0x20000, 70_000, true)]);
    assert_eq!(driver.work_with(18, true), Progress::NoRoom);
    assert_eq!(driver.work_with(19, true), Progress::Idle);
    assert_eq!(driver.used(RX), Some((0, 20_012)));
    // A table of more descriptors than the queue has, which is no table that was offered.
    for index in 0..=QUEUE_SIZE {
        let descriptor =
            [&0x60000_u64.to_le_bytes()[..], &1_u32.to_le_bytes(), &3_u16.to_le_bytes(), &(index + 1).to_le_bytes()].concat();
        driver.write(0x50000 + u64::from(index) * 16, &descriptor);
    }
    driver.nic.inlet.push(packet(60, 7));
    driver.add(RX, 1, &[(0x50000, 16 * 65, true)]);
    driver.describe(RX, 1, 0x50000, 16 * 65, 4, 0);
    driver.work();
    assert_eq!(driver.used(RX), None);
    assert_ne!(driver.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}
