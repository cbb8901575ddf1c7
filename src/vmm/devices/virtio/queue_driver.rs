//! A driver of a device's queues, as simple as there can be.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};

use super::transport::Transport;
use super::virtio_device::{QUEUE_SIZE, VirtioDevice};
use crate::memory::GuestMemory;
use crate::page::{Gfn, PageRun};
use crate::vmm::devices::device::{Device, Progress, When};
use crate::vmm::devices::record::RecordName;
use crate::vmm::devices::testing::FakeLine;

/// The guest's memory.
pub(super) const GUEST: PageRun = PageRun { first: Gfn(0), count: 256 };

pub(super) struct QueueDriver {
    pub(super) device: Transport,
    pub(super) line: FakeLine,
    pub(super) memory: GuestMemory,
    /// Of each queue, since it was set up: requests, and answers that were looked at.
    pub(super) added: Vec<u16>,
    pub(super) seen: Vec<u16>,
}

/// Where the parts of a queue are: descriptors, available and used ring.
pub(super) const fn parts(queue: usize) -> [u64; 3] {
    let at = 0x1000 + queue as u64 * 0x3000;
    [at, at + 0x1000, at + 0x2000]
}

impl QueueDriver {
    /// The driver of `device`, that has agreed on `features`.
    pub(super) fn new(device: Box<dyn VirtioDevice>, record: RecordName, features: u64) -> Self {
        let mut driver = Self::of(device, record, GuestMemory::anonymous(&[GUEST], 64).unwrap());
        driver.set_up(features);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 15);
        driver
    }

    /// The driver of `device` in such memory, before it is [set up](Self::set_up).
    pub(super) fn of(device: Box<dyn VirtioDevice>, record: RecordName, memory: GuestMemory) -> Self {
        let queues = device.queues().len();
        let line = FakeLine::default();
        let device = Transport::with_line(device, record, memory.clone(), Arc::new(line.clone()), 0);
        Self { device, line, memory, added: vec![0; queues], seen: vec![0; queues] }
    }

    /// Asks for `features`, and says where the queues are.
    pub(super) fn set_up(&mut self, features: u64) {
        for status in [1, 3] {
            self.put(VIRTIO_MMIO_STATUS, status);
        }
        for select in [0, 1] {
            self.put(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.put(VIRTIO_MMIO_DRIVER_FEATURES, features >> (32 * select) & 0xffff_ffff);
        }
        self.put(VIRTIO_MMIO_STATUS, 11);
        for queue in 0..self.added.len() {
            let [descriptors, available, used] = parts(queue);
            for (register, value) in [
                (VIRTIO_MMIO_QUEUE_SEL, queue as u64),
                (VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into()),
                (VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
                (VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
                (VIRTIO_MMIO_QUEUE_USED_LOW, used),
                (VIRTIO_MMIO_QUEUE_READY, 1),
            ] {
                self.put(register, value);
            }
        }
        self.put(VIRTIO_MMIO_STATUS, 15);
    }

    pub(super) fn get(&mut self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.device.read(0, register.into(), &mut value);
        u32::from_le_bytes(value)
    }

    pub(super) fn put(&mut self, register: u32, value: u64) {
        self.device.write(0, register.into(), &u32::try_from(value).unwrap().to_le_bytes()).unwrap();
    }

    /// Writes a descriptor.
    pub(super) fn describe(&self, queue: usize, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        let [descriptors, ..] = parts(queue);
        let descriptor = [&address.to_le_bytes()[..], &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.write(descriptors + u64::from(index) * 16, &descriptor);
    }

    /// Adds a request of (address, bytes, device writes it), its descriptors from `first` on.
    pub(super) fn add(&mut self, queue: usize, first: u16, buffers: &[(u64, u32, bool)]) {
        for ((address, bytes, is_write), index) in buffers.iter().zip(first..) {
            let is_last = usize::from(index - first) + 1 == buffers.len();
            let flags = u16::from(!is_last) | u16::from(*is_write) << 1;
            self.describe(queue, index, *address, *bytes, flags, index + 1);
        }
        let [_, available, _] = parts(queue);
        let ram = self.memory.ram();
        let added = &mut self.added[queue];
        ram.write_obj(first, GuestAddress(available + 4 + u64::from(*added % QUEUE_SIZE) * 2)).unwrap();
        *added = added.wrapping_add(1);
        ram.write_obj(*added, GuestAddress(available + 2)).unwrap();
        self.put(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u64);
    }

    pub(super) fn work(&mut self) -> Progress {
        self.work_with(u64::MAX, true)
    }

    pub(super) fn work_with(&mut self, room: u64, hold: bool) -> Progress {
        self.device.work(&When { room_pages: &|| room, leave_off: &|| false, hold }).unwrap()
    }

    /// The next request that was answered, and how many bytes the answer has.
    pub(super) fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let [.., used] = parts(queue);
        let (ram, seen) = (self.memory.ram(), &mut self.seen[queue]);
        if ram.read_obj::<u16>(GuestAddress(used + 2)).unwrap() == *seen {
            return None;
        }
        let at = used + 4 + u64::from(*seen % QUEUE_SIZE) * 8;
        *seen = seen.wrapping_add(1);
        Some((ram.read_obj(GuestAddress(at)).unwrap(), ram.read_obj(GuestAddress(at + 4)).unwrap()))
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.ram().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(super) fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.ram().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}
