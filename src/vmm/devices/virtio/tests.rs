//! A driver as simple as there can be, at devices that need no KVM.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VERSION,
};
use vm_memory::{Bytes, GuestAddress};

use super::block::Block;
use super::entropy::Entropy;
use super::queue_driver::{GUEST, QueueDriver, parts};
use super::transport::Transport;
use super::virtio_device::{QUEUE_SIZE, REQUEST_PAGES_MAX};
use crate::machine::{DeviceState, StateError};
use crate::memory::GuestMemory;
use crate::page::{EpochId, PAGE_SIZE_U64};
use crate::parked::Parked;
use crate::vmm::devices::device::{Device, Progress};
use crate::vmm::devices::disk::{Disk, DiskBase, device_regions};
use crate::vmm::devices::record::{Fields, RecordName};

const DESCRIPTORS: u64 = parts(0)[0];
const AVAILABLE: u64 = parts(0)[1];
const USED: u64 = parts(0)[2];
const BUFFERS: u64 = 0x10000;
const GUEST_BYTES: u64 = GUEST.count * PAGE_SIZE_U64;
const BOTH: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_BLK_F_FLUSH;

const RECORD: RecordName = RecordName::only("disk", 1);

fn record_of(device: &Transport) -> DeviceState {
    RECORD.with(device.save())
}

fn restore(device: &mut Transport, saved: &DeviceState) -> Result<(), StateError> {
    device.restore(Fields::of(saved, RECORD)?)
}

/// A driver of a device with one queue.
struct Driver {
    _dir: Option<tempfile::TempDir>,
    queues: QueueDriver,
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

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect()
}

impl Driver {
    fn entropy() -> Self {
        let memory = GuestMemory::anonymous(&[GUEST], 64).unwrap();
        Self { _dir: None, queues: QueueDriver::of(Box::new(Entropy), RECORD, memory) }
    }

    /// A disk of 1 MiB.
    fn disk() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base");
        fs::write(&path, content(1 << 20)).unwrap();
        let base = DiskBase::read(&path).unwrap();
        let regions = device_regions(&[GUEST], std::slice::from_ref(&base));
        let memory = GuestMemory::with_devices(&[GUEST], &regions, 64).unwrap();
        let disk = Disk::open(&base, None, memory.clone(), regions[0]).unwrap();
        Self { _dir: Some(dir), queues: QueueDriver::of(Box::new(Block::new(disk, 0)), RECORD, memory) }
    }

    fn add(&mut self, first: u16, buffers: &[(u64, u32, bool)]) {
        self.queues.add(0, first, buffers);
    }

    fn used(&mut self) -> Option<(u32, u32)> {
        self.queues.used(0)
    }

    /// The device was reset: its queue is empty again.
    fn start_again(&mut self) {
        (self.added[0], self.seen[0]) = (0, 0);
        for ring in [AVAILABLE, USED] {
            self.memory.ram().write_obj(0_u16, GuestAddress(ring + 2)).unwrap();
        }
    }

    /// A disk's request with data at [`BUFFERS`], and its status, which lies behind the data.
    fn request(&mut self, kind: u32, sector: u64, bytes: u32) -> u64 {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.ram().write_slice(&header, GuestAddress(BUFFERS - 16)).unwrap();
        let status = BUFFERS + u64::from(bytes);
        self.memory.ram().write_obj(0xff_u8, GuestAddress(status)).unwrap();
        let mut buffers = vec![(BUFFERS - 16, 16, false)];
        let (mut at, mut left) = (BUFFERS, bytes);
        while left > 0 {
            buffers.push((at, left.min(4096), kind != VIRTIO_BLK_T_OUT));
            at += u64::from(left.min(4096));
            left -= left.min(4096);
        }
        buffers.push((status, 1, true));
        self.add(0, &buffers);
        status
    }

    fn byte(&self, address: u64) -> u32 {
        self.memory.ram().read_obj::<u8>(GuestAddress(address)).unwrap().into()
    }

    fn data(&self, bytes: usize) -> Vec<u8> {
        self.read(BUFFERS, bytes)
    }
}

#[test]
fn a_driver_finds_the_device() {
    let mut driver = Driver::disk();
    assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!((driver.get(VIRTIO_MMIO_VERSION), driver.get(VIRTIO_MMIO_DEVICE_ID)), (2, 2));
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), u32::from(QUEUE_SIZE));
    assert_eq!(driver.get(VIRTIO_MMIO_CONFIG), 2048, "sectors");
    // Features that were not offered, or those of old devices, are not accepted.
    for features in [BOTH | 1 << 40, 1 << VIRTIO_BLK_F_FLUSH] {
        driver.set_up(features);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS) & 8, 0);
        driver.put(VIRTIO_MMIO_STATUS, 0);
    }
    driver.set_up(BOTH);
    assert_eq!((driver.get(VIRTIO_MMIO_STATUS), driver.get(VIRTIO_MMIO_QUEUE_READY)), (15, 1));
    // Nothing is written at widths that there are not, nor in a queue in use.
    driver.device.write(0, VIRTIO_MMIO_STATUS.into(), &[0]).unwrap();
    driver.put(VIRTIO_MMIO_QUEUE_NUM, 8);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 15);
    let mut wide = [0; 8];
    driver.device.read(0, VIRTIO_MMIO_CONFIG.into(), &mut wide);
    assert_eq!(u64::from_le_bytes(wide), 2048);
}

#[test]
fn a_disk_reads_writes_and_refuses() {
    let mut driver = Driver::disk();
    driver.set_up(BOTH);
    let status = driver.request(VIRTIO_BLK_T_IN, 8, 8192);
    assert_eq!(driver.work(), Progress::Idle);
    assert_eq!((driver.used(), driver.byte(status)), (Some((0, 8193)), VIRTIO_BLK_S_OK));
    assert!(driver.data(8192) == content(1 << 20)[4096..4096 + 8192]);
    assert!(driver.line.0.load(Ordering::SeqCst) && driver.get(VIRTIO_MMIO_INTERRUPT_STATUS) == 1);
    driver.put(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert!(!driver.line.0.load(Ordering::SeqCst));

    driver.memory.ram().write_slice(&[0x5a; 1024], GuestAddress(BUFFERS)).unwrap();
    let status = driver.request(VIRTIO_BLK_T_OUT, 9, 1024);
    driver.work();
    assert_eq!((driver.used(), driver.byte(status)), (Some((0, 1)), VIRTIO_BLK_S_OK));
    driver.request(VIRTIO_BLK_T_IN, 8, 2048);
    driver.work();
    driver.used();
    let sectors = content(1 << 20);
    assert!(driver.data(2048) == [&sectors[4096..4608], &[0x5a; 1024], &sectors[5632..6144]].concat());

    let status = driver.request(VIRTIO_BLK_T_GET_ID, 0, 20);
    driver.work();
    assert_eq!((driver.used(), driver.byte(status)), (Some((0, 21)), VIRTIO_BLK_S_OK));
    assert!(driver.data(20).starts_with(b"slackwater-0\0"));
    for (kind, sector, bytes, answer) in [
        (VIRTIO_BLK_T_IN, 2047, 1024, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_OUT, 2048, 512, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX, 512, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX / 512, 512, VIRTIO_BLK_S_IOERR),
        (VIRTIO_BLK_T_IN, 0, 100, VIRTIO_BLK_S_IOERR),
        (77, 0, 512, VIRTIO_BLK_S_UNSUPP),
    ] {
        let status = driver.request(kind, sector, bytes);
        assert_eq!(driver.work(), Progress::Idle);
        assert!(driver.used().is_some());
        assert_eq!(driver.byte(status), answer, "{kind} {sector} {bytes}");
    }
}

#[test]
fn an_answer_that_promises_durability_waits_for_it() {
    let mut driver = Driver::disk();
    driver.set_up(BOTH);
    let status = driver.request(VIRTIO_BLK_T_FLUSH, 0, 0);
    assert_eq!(driver.work(), Progress::Idle);
    assert!(driver.device.wants_epoch() && driver.used().is_none() && driver.byte(status) == 0xff);
    driver.device.note_capture();
    assert!(!driver.device.wants_epoch());
    driver.device.give_answers(EpochId(9)).unwrap();
    assert!(driver.used().is_none(), "the epoch has no number yet");
    // Whoever goes on from that very epoch has it still to answer.
    let saved = record_of(&driver.device);
    driver.device.note_taken(EpochId(10));
    driver.device.give_answers(EpochId(9)).unwrap();
    assert!(driver.used().is_none());
    driver.device.give_answers(EpochId(10)).unwrap();
    assert_eq!((driver.used(), driver.byte(status)), (Some((0, 1)), 0));

    driver.memory.ram().write_obj(0xff_u8, GuestAddress(status)).unwrap();
    restore(&mut driver.device, &saved).unwrap();
    driver.seen[0] = 0;
    driver.memory.ram().write_obj(0_u16, GuestAddress(USED + 2)).unwrap();
    assert!(!driver.device.wants_epoch());
    driver.device.note_taken(EpochId::NONE);
    driver.device.give_answers(EpochId::NONE).unwrap();
    assert_eq!((driver.used(), driver.byte(status)), (Some((0, 1)), 0));

    // Where nothing is promised, nothing is waited for.
    let status = driver.request(VIRTIO_BLK_T_FLUSH, 0, 0);
    driver.work_with(u64::MAX, false);
    assert_eq!((driver.used(), driver.byte(status)), (Some((0, 1)), 0));
    // A driver that knows no flush gets it with each write.
    driver.put(VIRTIO_MMIO_STATUS, 0);
    driver.start_again();
    driver.set_up(1 << VIRTIO_F_VERSION_1);
    let status = driver.request(VIRTIO_BLK_T_FLUSH, 0, 0);
    driver.work();
    assert!(driver.used().is_some() && driver.byte(status) == VIRTIO_BLK_S_UNSUPP);
    driver.request(VIRTIO_BLK_T_OUT, 0, 512);
    driver.work();
    assert!(driver.used().is_none() && driver.device.wants_epoch());
}

#[test]
fn a_request_waits_for_room_and_writes_no_more_than_was_said() {
    let mut driver = Driver::disk();
    driver.set_up(BOTH);
    let written = |driver: &Driver| {
        let mut pages = 0;
        driver.memory.written().take(&Parked::vouch(&mut ()), |_| pages += 1);
        pages
    };
    for (kind, bytes) in
        [(VIRTIO_BLK_T_IN, 62 * 4096), (VIRTIO_BLK_T_OUT, 62 * 4096), (VIRTIO_BLK_T_OUT, 512), (VIRTIO_BLK_T_FLUSH, 0)]
    {
        driver.request(kind, 1, bytes);
        written(&driver);
        let mut needed = 0;
        while driver.work_with(needed, false) == Progress::NoRoom {
            assert!(driver.used().is_none() && driver.device.is_busy());
            assert_eq!(written(&driver), 0);
            needed += 1;
        }
        assert!(driver.used().is_some());
        let pages = written(&driver);
        assert!(pages <= needed && needed <= REQUEST_PAGES_MAX && (bytes == 0 || pages > 0), "{kind}: {pages} of {needed}");
    }
}

#[test]
fn a_driver_that_breaks_the_rules_stops_its_device_only() {
    type Break = fn(&mut Driver);
    let breaks: [(&str, Break, bool); 7] = [
        (
            "more requests than places",
            |driver| driver.memory.ram().write_obj(1000_u16, GuestAddress(AVAILABLE + 2)).unwrap(),
            true,
        ),
        ("a buffer outside of memory", |driver| driver.add(0, &[(GUEST_BYTES - 8, 16, false), (BUFFERS, 1, true)]), true),
        ("a buffer in the memory of devices", |driver| driver.add(0, &[(4 << 30, 16, false), (BUFFERS, 1, true)]), true),
        ("a buffer at the end of all addresses", |driver| driver.add(0, &[(u64::MAX - 8, 16, false), (BUFFERS, 1, true)]), true),
        (
            "a loop",
            |driver| {
                driver.add(0, &[(BUFFERS, 16, false)]);
                driver.describe(0, 0, BUFFERS, 16, 1, 0);
            },
            false,
        ),
        ("too large", |driver| driver.add(0, &[(0, u32::MAX, false), (BUFFERS, 1, true)]), false),
        ("no room for an answer", |driver| driver.add(0, &[(BUFFERS, 16, false)]), false),
    ];
    for (what, breaks, stops) in breaks {
        let mut driver = Driver::disk();
        driver.set_up(BOTH);
        driver.put(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        breaks(&mut driver);
        assert_eq!(driver.work(), Progress::Idle, "{what}");
        let needs_reset = driver.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0;
        assert_eq!((needs_reset, driver.get(VIRTIO_MMIO_INTERRUPT_STATUS) & 2 != 0), (stops, stops), "{what}");
        assert_eq!(driver.used().is_some(), !stops, "{what}");
        // A reset mends it.
        driver.put(VIRTIO_MMIO_STATUS, 0);
        driver.start_again();
        driver.set_up(BOTH);
        let status = driver.request(VIRTIO_BLK_T_IN, 0, 512);
        driver.work();
        assert_eq!((driver.used(), driver.byte(status)), (Some((0, 513)), VIRTIO_BLK_S_OK), "{what}");
    }
}

#[test]
fn random_bytes_are_random() {
    let mut driver = Driver::entropy();
    driver.set_up(1 << VIRTIO_F_VERSION_1);
    let mut taken = || {
        driver.add(0, &[(BUFFERS, 64, true)]);
        driver.work();
        assert_eq!(driver.used(), Some((0, 64)));
        driver.data(64)
    };
    let (first, second) = (taken(), taken());
    assert!(first != second && first != [0; 64]);
}

#[test]
fn saved_state_is_used_whole_or_refused() {
    let mut driver = Driver::disk();
    driver.set_up(BOTH);
    driver.request(VIRTIO_BLK_T_FLUSH, 0, 0);
    driver.work();
    let saved = record_of(&driver.device);
    let mut other = Driver::disk();
    restore(&mut other.device, &saved).unwrap();
    assert_eq!(record_of(&other.device), saved);
    assert!(other.device.is_busy());
    for bytes in 0..saved.data.len() {
        let mut short = saved.clone();
        short.data.truncate(bytes);
        assert!(restore(&mut other.device, &short).is_err(), "{bytes} bytes");
    }
    let mut longer = saved.clone();
    longer.data.push(0);
    restore(&mut other.device, &longer).unwrap_err();
    let mut newer = saved.clone();
    newer.version = 2;
    restore(&mut other.device, &newer).unwrap_err();
    // Features that are not offered, a size that there can't be, more answers than places.
    for (at, byte) in [(27, 1), (28, 3), (34, 2), (61, 1)] {
        let mut wrong = saved.clone();
        wrong.data[at] = byte;
        restore(&mut other.device, &wrong).unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the guest writes to registers and rings, the device takes it.
    #[test]
    fn no_guest_brings_the_vmm_down(
        writes in prop::collection::vec((0_u32..0x50, any::<u32>(), any::<bool>()), 0..20),
        memory in prop::collection::vec((prop::sample::select(vec![DESCRIPTORS, AVAILABLE, USED, BUFFERS - 16]), 0_u64..128, any::<u64>()), 0..40),
        rounds in 1_usize..4,
        is_disk in any::<bool>(),
    ) {
        let mut driver = if is_disk { Driver::disk() } else { Driver::entropy() };
        driver.set_up(if is_disk { BOTH } else { 1 << VIRTIO_F_VERSION_1 });
        for (from, at, value) in memory {
            // Addresses in memory, and lengths, flags and numbers that there can be, make chains
            // that go somewhere.
            let sound = if at % 2 == 0 { 0xf_ffff } else { 0x3f_0003_0000_ffff };
            let value = if value % 5 == 0 { value } else { value & sound };
            driver.memory.ram().write_obj(value, GuestAddress(from + at * 8)).unwrap();
        }
        for _ in 0..rounds {
            for (register, value, is_small) in &writes {
                let value = if *is_small { value % 80 } else { *value };
                driver.device.write(0, u64::from(*register) * 4, &value.to_le_bytes()).unwrap();
            }
            driver.device.write(0, VIRTIO_MMIO_QUEUE_NOTIFY.into(), &[0; 4]).unwrap();
            let mut left = 200;
            while driver.work() != Progress::Idle && left > 0 {
                left -= 1;
            }
            driver.device.note_capture();
            driver.device.note_taken(EpochId(1));
            driver.device.give_answers(EpochId(1)).unwrap();
            let saved = record_of(&driver.device);
            restore(&mut driver.device, &saved).unwrap();
        }
    }
}
