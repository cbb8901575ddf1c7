//! The memory-mapped registers of a virtio device, its queues and its interrupt (Virtual I/O Device
//! 1.2, "Virtio Over MMIO").

use std::io;
use std::sync::Arc;

use acpi_tables::Aml;
use acpi_tables::aml::{Device as AmlDevice, Interrupt, Memory32Fixed, Name, ONE, ResourceTemplate};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG,
    VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::virtio_device::{Handled, Input, QUEUE_SIZE, QueueUse, REQUEST_PAGES_MAX, Request, VirtioDevice};
use super::virtqueue::{Chain, USED_PAGES, Virtqueue};
use crate::machine::StateError;
use crate::memory::{GuestMemory, GuestRam, MemoryError};
use crate::page::{EpochId, PAGE_SIZE_U64};
use crate::vmm::devices::addresses::{VIRTIO, VIRTIO_IRQ, VIRTIO_STRIDE};
use crate::vmm::devices::bus::BusRange;
use crate::vmm::devices::device::{Device, DeviceError, Progress, When};
use crate::vmm::devices::irq_line::Line;
use crate::vmm::devices::parts::Parts;
use crate::vmm::devices::record::{Fields, RecordName};
use crate::vmm::outputs::Held;

/// Addresses of a device's registers and of what is behind them.
const REGISTERS_BYTES: u64 = 0x200;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const REGISTERS_VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"SLKW");
const NOTHING: u32 = u32::MAX;
const NO_BYTE: u8 = 0xff;
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
    /// The generation of the device's own registers.
    config_generation: u32,
    queues: Vec<Virtqueue>,
    /// Answers of the first queue that wait until something is durable.
    held: Held<Answer>,
    /// The driver may have added requests since the queues were last found empty.
    notified: bool,
}

/// An answer that is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    /// The request's first descriptor.
    head: u16,
    /// The guest physical address of the byte that says how it went.
    status: u64,
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
    writable_bytes: u64,
    /// Of both, those included that nobody looks at.
    bytes: u64,
    answer_pages: u64,
    /// Where the last byte of the answer goes.
    last: Option<u64>,
}

impl Sizes {
    /// Looks over a request and brings its pages. Of one of more than `bytes_max` only so many are
    /// looked at: no device reads or writes more.
    fn of(chain: &Chain<'_>, memory: &GuestMemory, bytes_max: u64) -> Result<Self, Fault> {
        let mut sizes = Self { readable_bytes: 0, writable_bytes: 0, bytes: 0, answer_pages: 0, last: None };
        for (descriptor, count) in chain.clone().zip(1..) {
            // A table of descriptors that the driver made, which no device offers to read, may have
            // more.
            if count > QUEUE_SIZE {
                return Err(QueueError::InvalidChain.into());
            }
            let (address, bytes) = (descriptor.addr().0, u64::from(descriptor.len()));
            let is_last = sizes.bytes + bytes > bytes_max;
            let left = bytes_max.saturating_sub(sizes.bytes);
            sizes.bytes += bytes;
            let bytes = bytes.min(left);
            let Some(last) = address.checked_add(bytes.saturating_sub(1)) else { return Err(QueueError::AddressOverflow.into()) };
            memory.bring_range(address, bytes)?;
            if descriptor.is_write_only() {
                sizes.writable_bytes += bytes;
                if bytes > 0 {
                    sizes.answer_pages += last / PAGE_SIZE_U64 - address / PAGE_SIZE_U64 + 1;
                    sizes.last = Some(last);
                }
            } else {
                sizes.readable_bytes += bytes;
            }
            if is_last {
                break;
            }
        }
        Ok(sizes)
    }
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
        let queues = device.queues().iter().map(|purpose| Virtqueue::new(*purpose)).collect();
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
            config_generation: 0,
            queues,
            held: Held::default(),
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

    fn selected(&self) -> Option<&Virtqueue> {
        usize::try_from(self.queue_select).ok().and_then(|select| self.queues.get(select))
    }

    fn register(&self, offset: u64) -> u32 {
        let half = |value: u64, select| match select {
            0 => low(value),
            1 => low(value >> 32),
            _ => 0,
        };
        let selected = self.selected();
        match u32::try_from(offset).unwrap_or(NOTHING) {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => REGISTERS_VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.kind(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX if selected.is_some() => QUEUE_SIZE.into(),
            VIRTIO_MMIO_QUEUE_READY => u32::from(selected.is_some_and(|selected| selected.queue.ready())),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt,
            VIRTIO_MMIO_STATUS => self.status,
            // No shared memory.
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => NOTHING,
            VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    fn set_status(&mut self, value: u32) -> Result<(), DeviceError> {
        if value == 0 {
            self.status = 0;
            self.driver_features = 0;
            self.queues.iter_mut().for_each(|queue| queue.queue.reset());
            self.held.clear();
            self.device.reset();
            self.notified = false;
            return self.set_interrupt(0);
        }
        let known = self.driver_features & !self.features() == 0 && self.driver_features >> VIRTIO_F_VERSION_1 & 1 == 1;
        let refused = if known { 0 } else { VIRTIO_CONFIG_S_FEATURES_OK };
        let was_live = self.is_live();
        self.status = value & 0xff & !refused | self.status & VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.is_live() && !was_live {
            self.device.begin(self.driver_features);
        }
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

    /// Works on all queues, until there is nothing more to do on any. Returns whether the driver is
    /// to be told of answers, and how far it came. Begins with the last: what a driver sends may
    /// have an answer that goes into its first queue.
    fn work_on_queues(&mut self, when: &When<'_>) -> (bool, Result<Progress, Fault>) {
        let (mut tell, mut worst) = (false, Progress::Idle);
        for index in (0..self.queues.len()).rev() {
            let used = |queues: &[Virtqueue]| queues.get(index).map(|queue| queue.queue.next_used());
            let before = used(&self.queues);
            let worked = self.work_on_queue(index, when);
            let answered = used(&self.queues) != before;
            tell |= answered && self.queues.get(index).is_some_and(|queue| queue.wants_interrupts(self.memory.ram()));
            match worked {
                Ok(Progress::Idle) => {}
                Ok(progress) => worst = progress,
                Err(fault) => return (tell, Err(fault)),
            }
        }
        (tell, Ok(worst))
    }

    fn work_on_queue(&mut self, index: usize, when: &When<'_>) -> Result<Progress, Fault> {
        let is_live = self.is_live();
        let Some(queue) = self.queues.get(index).filter(|queue| is_live && queue.queue.ready()) else {
            return Ok(Progress::Idle);
        };
        queue.bring(&self.memory)?;
        if !queue.queue.is_valid(self.memory.ram()) {
            return Err(QueueError::QueueNotReady.into());
        }
        match queue.purpose {
            QueueUse::Requests => self.work_on_requests(index, when),
            QueueUse::Input => self.work_on_input(index, when),
        }
    }

    fn work_on_requests(&mut self, index: usize, when: &When<'_>) -> Result<Progress, Fault> {
        let Self { memory, device, queues, driver_features, held, .. } = self;
        let Some(queue) = queues.get_mut(index) else { return Ok(Progress::Idle) };
        let ram = memory.ram();
        loop {
            if (when.leave_off)() {
                return Ok(Progress::LeftOff);
            }
            // Who makes it take more says so.
            if !device.takes(index) {
                return Ok(Progress::Idle);
            }
            let Some(chain) = queue.take(ram)? else { return Ok(Progress::Idle) };
            let head = chain.head_index();
            let sizes = Sizes::of(&chain, memory, device.request_bytes_max())?;
            let written = device.pages_written(sizes.readable_bytes) + sizes.answer_pages + USED_PAGES;
            // A queue's own descriptors never come to so many.
            if written > REQUEST_PAGES_MAX && sizes.bytes <= device.request_bytes_max() {
                return Err(QueueError::InvalidChain.into());
            }
            if written.min(REQUEST_PAGES_MAX) > (when.room_pages)() {
                queue.put_back(1);
                return Ok(Progress::NoRoom);
            }
            if sizes.bytes > device.request_bytes_max() {
                queue.publish(ram, &[(head, 0)])?;
                continue;
            }
            let request = Request { readable: chain.clone().reader(ram)?, writable: chain.writer(ram)? };
            let bytes = match (device.handle(index, request, *driver_features)?, sizes.last) {
                (Handled::Answered(bytes), _) => bytes,
                (Handled::WhenDurable, Some(status)) if when.hold && index == 0 => {
                    held.push(Answer { head, status });
                    continue;
                }
                (Handled::WhenDurable, Some(status)) => {
                    write_status(ram, status)?;
                    1
                }
                (Handled::WhenDurable, None) => 0,
            };
            queue.publish(ram, &[(head, bytes)])?;
        }
    }

    /// Fills buffers with what there is for the guest. What there are no buffers for waits: the
    /// driver says when there are.
    fn work_on_input(&mut self, index: usize, when: &When<'_>) -> Result<Progress, Fault> {
        let Self { memory, device, queues, driver_features, .. } = self;
        let Some(queue) = queues.get_mut(index) else { return Ok(Progress::Idle) };
        let ram = memory.ram();
        device.note_offered(index, queue.offered(ram)?);
        loop {
            if (when.leave_off)() {
                return Ok(Progress::LeftOff);
            }
            let mut buffers: Vec<(Chain<'_>, usize)> = Vec::new();
            let (mut room, mut pages) = (0, USED_PAGES);
            let mut input = None;
            while input.is_none_or(|input: Input| room < input.bytes && input.is_mergeable) {
                let Some(chain) = queue.take(ram)? else { break };
                let sizes = Sizes::of(&chain, memory, device.request_bytes_max())?;
                let bytes = usize::try_from(sizes.writable_bytes).unwrap_or(usize::MAX);
                (room, pages) = (room.saturating_add(bytes), pages + sizes.answer_pages);
                buffers.push((chain, bytes));
                if input.is_none() {
                    input = device.next_input(index, *driver_features, room);
                    if input.is_none() {
                        break;
                    }
                }
            }
            let Some(input) = input.filter(|input| room >= input.bytes || !input.is_mergeable) else {
                queue.put_back(buffers.len());
                return Ok(Progress::Idle);
            };
            if room < input.bytes {
                // A buffer that it does not fit in never grows.
                queue.put_back(buffers.len());
                device.input_is_done(index, false);
                continue;
            }
            // As above: all that there are hold two packets, and each has two pages that it shares.
            if pages > REQUEST_PAGES_MAX {
                return Err(QueueError::InvalidChain.into());
            }
            if pages > (when.room_pages)() {
                queue.put_back(buffers.len());
                return Ok(Progress::NoRoom);
            }
            let mut bytes = device.input(index, u16::try_from(buffers.len()).unwrap_or(u16::MAX));
            let mut used = Vec::with_capacity(buffers.len());
            for (chain, room) in buffers {
                let (here, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
                let head = chain.head_index();
                // What is writable of it has so much room: it fails at nothing.
                let written = std::io::Write::write(&mut chain.writer(ram)?, here).unwrap_or_default();
                used.push((head, u32::try_from(written).unwrap_or_default()));
                bytes = rest;
            }
            queue.publish(ram, &used)?;
            device.input_is_done(index, true);
        }
    }

    /// Gives an answer that says that all is well.
    fn answer(&mut self, answer: Answer) -> Result<(), Fault> {
        let ram = self.memory.ram();
        write_status(ram, answer.status)?;
        Ok(self.queues.first_mut().map_or(Ok(()), |queue| queue.publish(ram, &[(answer.head, 1)]))?)
    }
}

/// Writes that all went well.
fn write_status(ram: &GuestRam, status: u64) -> Result<(), QueueError> {
    ram.write_obj(0_u8, GuestAddress(status)).map_err(|_| QueueError::FindMemoryRegion)
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
        let selected = usize::try_from(self.queue_select).ok().and_then(|select| self.queues.get_mut(select));
        let selected = selected.map(|selected| &mut selected.queue).filter(|_| is_agreed);
        let register = u32::try_from(offset).unwrap_or(NOTHING);
        match (register, selected) {
            (VIRTIO_MMIO_DEVICE_FEATURES_SEL, _) => self.device_features_select = value,
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, _) => self.driver_features_select = value,
            (VIRTIO_MMIO_DRIVER_FEATURES, _) if !is_agreed => match self.driver_features_select {
                0 => self.driver_features = self.driver_features >> 32 << 32 | u64::from(value),
                1 => self.driver_features = u64::from(low(self.driver_features)) | u64::from(value) << 32,
                _ => {}
            },
            (VIRTIO_MMIO_QUEUE_SEL, _) => self.queue_select = value,
            (VIRTIO_MMIO_QUEUE_READY, Some(queue)) => queue.set_ready(value == 1),
            (VIRTIO_MMIO_QUEUE_NOTIFY, _) => self.notified = true,
            (VIRTIO_MMIO_INTERRUPT_ACK, _) => self.set_interrupt(self.interrupt & !value)?,
            (VIRTIO_MMIO_STATUS, _) => self.set_status(value)?,
            // A queue in use stays as it is until a reset.
            (_, Some(queue)) if !queue.ready() => match register {
                VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or_default()),
                VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
                VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
                VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
                VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
                VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
                _ => {}
            },
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
        let mut data = Vec::new();
        for field in [self.status, self.device_features_select, self.driver_features_select, self.queue_select, self.interrupt] {
            data.extend(field.to_le_bytes());
        }
        data.extend(self.driver_features.to_le_bytes());
        self.queues.iter().for_each(|queue| queue.save(&mut data));
        data.extend(u16::try_from(self.held.len()).unwrap_or(u16::MAX).to_le_bytes());
        for answer in self.held.iter() {
            data.extend(answer.head.to_le_bytes());
            data.extend(answer.status.to_le_bytes());
        }
        data.extend(self.device.save());
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
        let purposes = self.device.queues().iter();
        let queues = purposes.map(|purpose| Virtqueue::restored(*purpose, &mut fields)).collect::<Result<Vec<_>, _>>()?;
        let count = fields.u16()?;
        if count > queues.first().map_or(0, |queue| queue.queue.size()) {
            return Err(fields.malformed("no more answers than the queue has places"));
        }
        let mut held = Vec::new();
        for _ in 0..count {
            held.push(Answer { head: fields.u16()?, status: fields.u64()? });
        }
        self.device.restore(fields)?;
        self.status = status;
        self.device_features_select = device_features_select;
        self.driver_features_select = driver_features_select;
        self.driver_features = driver_features;
        self.queue_select = queue_select;
        self.interrupt = interrupt;
        self.queues = queues;
        self.held = Held::restored(held);
        self.notified = true;
        if self.is_live() {
            self.device.begin(driver_features);
        }
        // The controllers' saved state does not say which lines are high.
        self.set_line().map_err(|source| StateError::Ioctl { ioctl: "KVM_IRQ_LINE", piece: "device.virtio", vcpu: None, source })
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        if self.is_live() {
            self.device.resume(self.driver_features);
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        self.notified
    }

    /// Handles requests. A driver that breaks the rules stops its own device.
    fn work(&mut self, when: &When<'_>) -> Result<Progress, DeviceError> {
        let (tell, worked) = self.work_on_queues(when);
        let mut interrupt = self.interrupt;
        if tell {
            interrupt |= VIRTIO_MMIO_INT_VRING;
        }
        if self.device.take_config_change() {
            self.config_generation = self.config_generation.wrapping_add(1);
            if self.is_live() {
                interrupt |= VIRTIO_MMIO_INT_CONFIG;
            }
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
        self.held.want_epoch() || self.device.wants_epoch()
    }

    fn note_capture(&mut self) {
        self.held.note_capture();
        self.device.note_capture();
    }

    fn note_taken(&mut self, epoch: EpochId) {
        self.held.note_taken(epoch);
        self.device.note_taken(epoch);
    }

    fn give_answers(&mut self, durable: EpochId) -> Result<(), DeviceError> {
        self.held.release(durable);
        let answers: Vec<_> = std::iter::from_fn(|| self.held.pop_released()).collect();
        let Some(queue) = self.queues.first().filter(|_| !answers.is_empty() && self.is_live()) else { return Ok(()) };
        queue.bring(&self.memory)?;
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
