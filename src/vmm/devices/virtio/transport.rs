//! The memory-mapped registers of a virtio device, its queue and its interrupt (Virtual I/O Device
//! 1.2, "Virtio Over MMIO").

use std::io;
use std::sync::Arc;

use acpi_tables::Aml;
use acpi_tables::aml::{Device as AmlDevice, Interrupt, Memory32Fixed, Name, ONE, ResourceTemplate};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID,
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::held_answers::{Answer, HeldAnswers};
use super::virtio_device::{Handled, QUEUE_SIZE, REQUEST_PAGES_MAX, Request, VirtioDevice};
use crate::machine::StateError;
use crate::memory::{GuestMemory, MemoryError};
use crate::page::{EpochId, PAGE_SIZE_U64};
use crate::vmm::devices::addresses::{VIRTIO, VIRTIO_IRQ, VIRTIO_STRIDE};
use crate::vmm::devices::bus::BusRange;
use crate::vmm::devices::device::{Device, DeviceError, Progress, When};
use crate::vmm::devices::irq_line::Line;
use crate::vmm::devices::parts::Parts;
use crate::vmm::devices::record::{Fields, RecordName};

/// Addresses of a device's registers and of what is behind them.
const REGISTERS_BYTES: u64 = 0x200;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const REGISTERS_VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"SLKW");
const NOTHING: u32 = u32::MAX;
const NO_BYTE: u8 = 0xff;
/// Bytes of a descriptor; of the available ring besides its entries, and of an entry; of the used
/// ring.
const DESCRIPTOR_BYTES: u64 = 16;
const AVAILABLE_BYTES: (u64, u64) = (6, 2);
const USED_BYTES: (u64, u64) = (6, 8);
/// A used ring of this size lies in at most so many pages.
const USED_PAGES: u64 = 2;

#[derive(Debug)]
pub(super) struct Transport {
    device: Box<dyn VirtioDevice>,
    record: RecordName,
    memory: GuestMemory,
    /// Virtio devices before it: that says where its registers are and which interrupt it has.
    index: u32,
    line: Arc<dyn Line>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    /// The interrupt line is high while one of these is set.
    interrupt: u32,
    queue: Queue,
    held: HeldAnswers,
    /// The driver may have added requests since the queue was last found empty.
    notified: bool,
}

/// What a driver does to its queue that no device can make sense of.
#[derive(Debug)]
enum Fault {
    Driver(QueueError),
    Device(DeviceError),
}

impl From<QueueError> for Fault {
    fn from(error: QueueError) -> Self {
        Self::Driver(error)
    }
}

impl From<DeviceError> for Fault {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl From<MemoryError> for Fault {
    fn from(error: MemoryError) -> Self {
        Self::Device(error.into())
    }
}

/// The sizes of a request, and what there is to know of it before it is handled.
struct Sizes {
    readable_bytes: u64,
    bytes: u64,
    answer_pages: u64,
    /// Where the last byte of the answer goes.
    last: Option<u64>,
}

impl Transport {
    /// A device whose record is `record`. There are `index` virtio devices before it.
    pub(super) fn new(device: Box<dyn VirtioDevice>, record: RecordName, parts: &Parts<'_>, index: u32) -> Self {
        Self::with_line(device, record, parts.memory.clone(), (parts.line)(VIRTIO_IRQ + index), index)
    }

    pub(super) fn with_line(
        device: Box<dyn VirtioDevice>,
        record: RecordName,
        memory: GuestMemory,
        line: Arc<dyn Line>,
        index: u32,
    ) -> Self {
        Self {
            device,
            record,
            memory,
            index,
            line,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            interrupt: 0,
            queue: Queue::new(QUEUE_SIZE).expect("a power of two up to 32768"),
            held: HeldAnswers::default(),
            notified: false,
        }
    }

    /// Where its registers begin.
    fn base(&self) -> u64 {
        VIRTIO + u64::from(self.index) * VIRTIO_STRIDE
    }

    fn features(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    fn register(&self, offset: u64) -> u32 {
        let half = |value: u64, select| match select {
            0 => low(value),
            1 => low(value >> 32),
            _ => 0,
        };
        let has_queue = self.queue_select == 0;
        match u32::try_from(offset).unwrap_or(NOTHING) {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => REGISTERS_VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.kind(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX if has_queue => QUEUE_SIZE.into(),
            VIRTIO_MMIO_QUEUE_READY => u32::from(has_queue && self.queue.ready()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt,
            VIRTIO_MMIO_STATUS => self.status,
            // No shared memory.
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => NOTHING,
            // Among the others is the generation of the device's own registers, which never change.
            _ => 0,
        }
    }

    fn set_status(&mut self, value: u32) -> Result<(), DeviceError> {
        if value == 0 {
            self.status = 0;
            self.driver_features = 0;
            self.queue.reset();
            self.held.clear();
            self.notified = false;
            return self.set_interrupt(0);
        }
        let known = self.driver_features & !self.features() == 0 && self.driver_features >> VIRTIO_F_VERSION_1 & 1 == 1;
        let refused = if known { 0 } else { VIRTIO_CONFIG_S_FEATURES_OK };
        self.status = value & 0xff & !refused | self.status & VIRTIO_CONFIG_S_NEEDS_RESET;
        self.notified |= self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        Ok(())
    }

    fn set_interrupt(&mut self, interrupt: u32) -> Result<(), DeviceError> {
        let was_high = std::mem::replace(&mut self.interrupt, interrupt) != 0;
        if was_high == (interrupt != 0) {
            return Ok(());
        }
        self.set_line().map_err(DeviceError::Interrupt)
    }

    fn set_line(&self) -> io::Result<()> {
        self.line.set(self.interrupt != 0)
    }

    const fn is_live(&self) -> bool {
        self.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET) == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// Brings the pages of the queue.
    fn bring_queue(&self) -> Result<(), MemoryError> {
        let entries = u64::from(self.queue.size());
        let of = |(fixed, each)| fixed + entries * each;
        self.memory.bring_range(self.queue.desc_table(), entries * DESCRIPTOR_BYTES)?;
        self.memory.bring_range(self.queue.avail_ring(), of(AVAILABLE_BYTES))?;
        self.memory.bring_range(self.queue.used_ring(), of(USED_BYTES))
    }

    fn work_on_queue(&mut self, when: &When<'_>) -> Result<Progress, Fault> {
        if !self.is_live() || !self.queue.ready() {
            return Ok(Progress::Idle);
        }
        self.bring_queue()?;
        if !self.queue.is_valid(self.memory.ram()) {
            return Err(QueueError::QueueNotReady.into());
        }
        let memory = self.memory.clone();
        let ram = memory.ram();
        loop {
            if (when.leave_off)() {
                return Ok(Progress::LeftOff);
            }
            let Some(chain) = self.queue.iter(ram)?.next() else { return Ok(Progress::Idle) };
            let head = chain.head_index();
            let sizes = self.sizes(chain.clone())?;
            let written = self.device.pages_written(sizes.readable_bytes) + sizes.answer_pages + USED_PAGES;
            debug_assert!(sizes.bytes > self.device.request_bytes_max() || written <= REQUEST_PAGES_MAX, "{written}");
            if written.min(REQUEST_PAGES_MAX) > (when.room_pages)() {
                self.queue.go_to_previous_position();
                return Ok(Progress::NoRoom);
            }
            if sizes.bytes > self.device.request_bytes_max() {
                self.queue.add_used(ram, head, 0)?;
                continue;
            }
            let request = Request { readable: chain.clone().reader(ram)?, writable: chain.writer(ram)? };
            match (self.device.handle(request, self.driver_features)?, sizes.last) {
                (Handled::Answered(bytes), _) => self.queue.add_used(ram, head, bytes)?,
                (Handled::WhenDurable, Some(status)) if when.hold => self.held.push(Answer { head, status }),
                (Handled::WhenDurable, Some(status)) => self.answer(Answer { head, status })?,
                (Handled::WhenDurable, None) => self.queue.add_used(ram, head, 0)?,
            }
        }
    }

    /// Looks over a request and brings its pages. Of one that is too large not all is looked at.
    fn sizes(&self, chain: virtio_queue::DescriptorChain<&crate::memory::GuestRam>) -> Result<Sizes, Fault> {
        let mut sizes = Sizes { readable_bytes: 0, bytes: 0, answer_pages: 0, last: None };
        for descriptor in chain {
            let (address, bytes) = (descriptor.addr().0, u64::from(descriptor.len()));
            sizes.bytes += bytes;
            if sizes.bytes > self.device.request_bytes_max() {
                break;
            }
            let Some(last) = address.checked_add(bytes.saturating_sub(1)) else { return Err(QueueError::AddressOverflow.into()) };
            self.memory.bring_range(address, bytes)?;
            if descriptor.is_write_only() {
                if bytes > 0 {
                    sizes.answer_pages += last / PAGE_SIZE_U64 - address / PAGE_SIZE_U64 + 1;
                    sizes.last = Some(last);
                }
            } else {
                sizes.readable_bytes += bytes;
            }
        }
        Ok(sizes)
    }

    /// Gives an answer that says that all is well.
    fn answer(&mut self, answer: Answer) -> Result<(), Fault> {
        let ram = self.memory.ram();
        ram.write_obj(0_u8, GuestAddress(answer.status)).map_err(|_| QueueError::FindMemoryRegion)?;
        Ok(self.queue.add_used(ram, answer.head, 1)?)
    }
}

impl Device for Transport {
    fn ranges(&self) -> Vec<BusRange> {
        vec![BusRange::memory(self.base(), REGISTERS_BYTES)]
    }

    fn read(&mut self, _base: u64, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            let config = usize::try_from(at).ok().and_then(|at| self.device.config().get(at..)).unwrap_or_default();
            let config = config.iter().copied().chain(std::iter::repeat(0));
            data.iter_mut().zip(config).for_each(|(place, byte)| *place = byte);
            return;
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(place) => *place = self.register(offset).to_le_bytes(),
            Err(_) => data.fill(NO_BYTE),
        }
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let Ok(data) = <[u8; 4]>::try_from(data) else { return Ok(()) };
        let value = u32::from_le_bytes(data);
        let is_agreed = self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        // A queue in use stays as it is until a reset.
        let sets_up = is_agreed && self.queue_select == 0 && !self.queue.ready();
        match u32::try_from(offset).unwrap_or(NOTHING) {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES if !is_agreed => match self.driver_features_select {
                0 => self.driver_features = self.driver_features >> 32 << 32 | u64::from(value),
                1 => self.driver_features = u64::from(low(self.driver_features)) | u64::from(value) << 32,
                _ => {}
            },
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NUM if sets_up => self.queue.set_size(u16::try_from(value).unwrap_or_default()),
            VIRTIO_MMIO_QUEUE_DESC_LOW if sets_up => self.queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH if sets_up => self.queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW if sets_up => self.queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH if sets_up => self.queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW if sets_up => self.queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH if sets_up => self.queue.set_used_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_READY if self.queue_select == 0 && is_agreed => self.queue.set_ready(value == 1),
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notified = true,
            VIRTIO_MMIO_INTERRUPT_ACK => self.set_interrupt(self.interrupt & !value)?,
            VIRTIO_MMIO_STATUS => self.set_status(value)?,
            _ => {}
        }
        Ok(())
    }

    /// The identifier is the one that Linux knows such devices by (drivers/virtio/virtio_mmio.c).
    fn describe(&self, aml: &mut Vec<u8>) {
        let low = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let registers = Memory32Fixed::new(true, low(self.base()), low(REGISTERS_BYTES));
        let interrupt = Interrupt::new(true, false, false, false, VIRTIO_IRQ + self.index);
        AmlDevice::new(
            format!("VIO{}", self.index).as_str().into(),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &self.index),
                &Name::new("_CCA".into(), &ONE),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt])),
            ],
        )
        .to_aml_bytes(aml);
    }

    fn record(&self) -> Option<RecordName> {
        Some(self.record)
    }

    fn save(&self) -> Vec<u8> {
        let QueueState { next_avail, next_used, size, ready, desc_table, avail_ring, used_ring, .. } = self.queue.state();
        let mut data = Vec::new();
        for field in [self.status, self.device_features_select, self.driver_features_select, self.queue_select, self.interrupt] {
            data.extend(field.to_le_bytes());
        }
        data.extend(self.driver_features.to_le_bytes());
        for field in [size, next_avail, next_used, u16::from(ready)] {
            data.extend(field.to_le_bytes());
        }
        for field in [desc_table, avail_ring, used_ring] {
            data.extend(field.to_le_bytes());
        }
        data.extend(u16::try_from(self.held.len()).unwrap_or(u16::MAX).to_le_bytes());
        for answer in self.held.iter() {
            data.extend(answer.head.to_le_bytes());
            data.extend(answer.status.to_le_bytes());
        }
        data
    }

    /// What the guest asked for since is looked for anew.
    fn restore(&mut self, mut fields: Fields<'_>) -> Result<(), StateError> {
        let [status, device_features_select, driver_features_select, queue_select, interrupt] =
            [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
        let driver_features = fields.u64()?;
        // Until both agree a driver may write any.
        if status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && driver_features & !self.features() != 0 {
            return Err(fields.malformed("features that the device offers"));
        }
        let [size, next_avail, next_used] = [fields.u16()?, fields.u16()?, fields.u16()?];
        let ready = match fields.u16()? {
            0 => false,
            1 => true,
            _ => return Err(fields.malformed("0 or 1")),
        };
        let [desc_table, avail_ring, used_ring] = [fields.u64()?, fields.u64()?, fields.u64()?];
        let state = QueueState {
            max_size: QUEUE_SIZE,
            next_avail,
            next_used,
            event_idx_enabled: false,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        };
        let queue = Queue::try_from(state).map_err(|_| fields.malformed("a queue that there can be"))?;
        let count = fields.u16()?;
        if count > size {
            return Err(fields.malformed("no more answers than the queue has places"));
        }
        let mut held = Vec::new();
        for _ in 0..count {
            held.push(Answer { head: fields.u16()?, status: fields.u64()? });
        }
        fields.end()?;
        self.status = status;
        self.device_features_select = device_features_select;
        self.driver_features_select = driver_features_select;
        self.driver_features = driver_features;
        self.queue_select = queue_select;
        self.interrupt = interrupt;
        self.queue = queue;
        self.held = HeldAnswers::restored(held);
        self.notified = true;
        // The controllers' saved state does not say which lines are high.
        self.set_line().map_err(|source| StateError::Ioctl { ioctl: "KVM_IRQ_LINE", piece: "device.virtio", vcpu: None, source })
    }

    fn is_busy(&self) -> bool {
        self.notified
    }

    /// Handles requests. A driver that breaks the rules stops its own device.
    fn work(&mut self, when: &When<'_>) -> Result<Progress, DeviceError> {
        let next_used = self.queue.next_used();
        let worked = self.work_on_queue(when);
        let mut interrupt = self.interrupt;
        if self.queue.next_used() != next_used {
            interrupt |= VIRTIO_MMIO_INT_VRING;
        }
        let progress = match worked {
            Ok(progress) => progress,
            Err(Fault::Device(error)) => return Err(error),
            Err(Fault::Driver(error)) => {
                tracing::warn!(%error, device = ?self.device, "the guest's driver broke the rules: its device stops");
                self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                interrupt |= VIRTIO_MMIO_INT_CONFIG;
                Progress::Idle
            }
        };
        self.set_interrupt(interrupt)?;
        if progress == Progress::Idle {
            self.notified = false;
        }
        Ok(progress)
    }

    fn held(&self) -> usize {
        self.held.len()
    }

    fn wants_epoch(&self) -> bool {
        self.held.want_epoch()
    }

    fn note_capture(&mut self) {
        self.held.note_capture();
    }

    fn note_taken(&mut self, epoch: EpochId) {
        self.held.note_taken(epoch);
    }

    fn give_answers(&mut self, durable: EpochId) -> Result<(), DeviceError> {
        let answers = self.held.take_durable(durable);
        if answers.is_empty() || !self.is_live() {
            return Ok(());
        }
        self.bring_queue()?;
        for answer in answers {
            self.memory.bring_range(answer.status, 1)?;
            match self.answer(answer) {
                Ok(()) => {}
                Err(Fault::Device(error)) => return Err(error),
                Err(Fault::Driver(error)) => tracing::warn!(%error, "an answer can't be given to the guest's driver"),
            }
        }
        self.set_interrupt(self.interrupt | VIRTIO_MMIO_INT_VRING)
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}
