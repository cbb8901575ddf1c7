//! The devices of a Linux guest: who answers which port and which address, what they have to do, and their state together.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::Duration;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::disk::{Disk, DiskBase, device_regions};
use super::error::LinuxError;
use super::generation::GenerationId;
use super::layout::{VIRTIO, VIRTIO_IRQ, VIRTIO_STRIDE};
use super::line::IrqLine;
use super::power::{self, GuestEnd, Power};
use super::rtc::{self, Rtc};
use super::serial::{self, Output, SerialPort};
use super::state;
use super::virtio::{
    Block, Entropy, Progress, QUEUE_SIZE, REGISTERS_BYTES, REQUEST_PAGES_MAX, Transport, VirtioDevice, VirtioError, When,
};
use crate::epoch::OnRelease;
use crate::machine::{DeviceState, StateError};
use crate::memory::GuestMemory;
use crate::page::{EpochId, PageRun};
use crate::vmm::error::VmmError;
use crate::vmm::shared::lock;

/// What a port, or an address, reads as behind which there is nothing.
const NOTHING: u8 = 0xff;
const ENTROPY: &str = "entropy";
const DISK: &str = "disk";

/// A device of a machine, as a chain's identity has it: a restore needs to have all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeviceName {
    /// A 16550 serial port on the console.
    Serial,
    /// ACPI's registers for switching off and resetting, and the keyboard controller's reset line.
    Power,
    /// A real-time clock.
    Rtc,
    /// A generation id, and its interrupt.
    GenerationId,
    /// Random bytes from the host, by virtio.
    Entropy,
}

impl DeviceName {
    /// All that this program has, besides disks.
    pub const ALL: [Self; 5] = [Self::Serial, Self::Power, Self::Rtc, Self::GenerationId, Self::Entropy];
}

/// What a machine's devices are made of.
pub(in crate::vmm) struct Parts<'p> {
    pub(in crate::vmm) vm: Arc<VmFd>,
    pub(in crate::vmm) memory: GuestMemory,
    pub(in crate::vmm) output: Output,
    /// The guest's memory, and its disks, whose base images may be elsewhere than they were: in the same order, as far as there are any.
    pub(in crate::vmm) guest: &'p [PageRun],
    pub(in crate::vmm) disks: &'p [DiskBase],
    pub(in crate::vmm) images: &'p [PathBuf],
}

/// The devices of a machine. vCPU threads, the console and the leader of a cut use them.
#[derive(Debug)]
pub struct Devices {
    all: Mutex<All>,
    /// The serial port may have room for input again.
    room: Condvar,
    memory: GuestMemory,
    /// There is something to [attend](Self::attend) to.
    is_busy: AtomicBool,
    /// Answers that promise durability are held.
    holds: AtomicBool,
    /// The newest epoch that is known to be durable.
    durable: AtomicU64,
}

#[derive(Debug)]
struct All {
    serial: SerialPort,
    power: Power,
    rtc: Rtc,
    generation: GenerationId,
    /// The entropy device, and behind it the disks.
    virtio: Vec<Transport>,
}

/// What devices want of the thread that looked after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vmm) enum Wish {
    /// Nothing.
    Nothing,
    /// That the epoch ends, for what they would write next does not fit.
    Room,
    /// That an epoch is taken, for an answer waits until it is durable.
    Epoch,
    /// The end of the run.
    End,
}

/// Devices that stand still: no input comes in, no interrupt is raised, nothing is written.
#[derive(Debug)]
pub(in crate::vmm) struct Quiet<'d> {
    devices: &'d Devices,
    all: MutexGuard<'d, All>,
}

impl Quiet<'_> {
    /// The state of every device, for a cut.
    pub(in crate::vmm) fn capture(&mut self) -> Vec<DeviceState> {
        let All { serial, power, rtc, virtio, .. } = &mut *self.all;
        let mut states = vec![serial.save(), power.save(), rtc.save()];
        for (device, (name, index)) in virtio.iter_mut().zip(virtio_names()) {
            states.push(device.save(name, index));
            device.note_capture();
        }
        states
    }

    /// As [`Devices::restore`].
    pub(in crate::vmm) fn restore(&mut self, saved: &[DeviceState]) -> Result<(), StateError> {
        self.devices.is_busy.store(true, Ordering::Release);
        let All { serial, power, rtc, virtio, .. } = &mut *self.all;
        let known = |state: &DeviceState| match &*state.name {
            serial::NAME | power::NAME | rtc::NAME => true,
            name => virtio_names().take(virtio.len()).any(|known| known == (name, state.index)),
        };
        if let Some(other) = saved.iter().find(|state| !known(state)) {
            return Err(state::unknown(other));
        }
        let one = |name, index: Option<u32>, piece| {
            let mut found =
                saved.iter().filter(move |state| state.name == name && index.is_none_or(|index| index == state.index));
            match (found.next(), found.next()) {
                (Some(state), None) => Ok(state),
                (None, _) => Err(StateError::Missing { piece, vcpu: None }),
                (_, Some(second)) => Err(state::unknown(second)),
            }
        };
        power.restore(one(power::NAME, None, "device.power")?)?;
        rtc.restore(one(rtc::NAME, None, "device.rtc")?)?;
        for (device, (name, index)) in virtio.iter_mut().zip(virtio_names()) {
            device.restore(one(name, Some(index), if name == DISK { "device.disk" } else { "device.entropy" })?)?;
        }
        serial.restore(one(serial::NAME, None, "device.serial")?)
    }

    /// As [`Devices::renew_generation_id`].
    pub(in crate::vmm) fn renew_generation_id(&self) -> Result<(), VmmError> {
        self.all.generation.renew()
    }
}

/// The names of virtio devices' records, in order.
fn virtio_names() -> impl Iterator<Item = (&'static str, u32)> {
    std::iter::once((ENTROPY, 0)).chain((0..).map(|index| (DISK, index)))
}

impl Devices {
    pub(in crate::vmm) fn new(parts: Parts<'_>) -> Result<Self, LinuxError> {
        let Parts { vm, memory, output, guest, disks, images } = parts;
        let mut virtio = Vec::new();
        let mut add = |device| {
            let number = VIRTIO_IRQ + u32::try_from(virtio.len()).unwrap_or_default();
            virtio.push(Transport::new(device, memory.clone(), Box::new(IrqLine { vm: vm.clone(), number })));
        };
        add(Box::new(Entropy) as Box<dyn VirtioDevice>);
        for ((base, run), index) in disks.iter().zip(device_regions(guest, disks)).zip(0_u32..) {
            let image = usize::try_from(index).ok().and_then(|index| images.get(index)).map(PathBuf::as_path);
            add(Box::new(Block::new(Disk::open(base, image, memory.clone(), run)?, index)));
        }
        let generation = GenerationId::new(vm.clone(), memory.clone());
        let all = All { serial: SerialPort::new(vm, output), power: Power::new(), rtc: Rtc::new(), generation, virtio };
        Ok(Self {
            all: Mutex::new(all),
            room: Condvar::new(),
            memory,
            is_busy: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            durable: AtomicU64::new(EpochId::NONE.0),
        })
    }

    /// Pages that the VMM has to be able to write within an epoch of a machine with so many disks: a request's, the answers that wait, and the generation id.
    pub(in crate::vmm) const fn share_pages_min(disks: usize) -> u64 {
        REQUEST_PAGES_MAX + (1 + disks as u64) * (QUEUE_SIZE as u64 + 2) + 1
    }

    /// Answers a read of `data.len()` bytes.
    pub(in crate::vmm) fn read(&self, port: u16, data: &mut [u8]) {
        let mut all = lock(&self.all);
        for (byte, port) in data.iter_mut().zip(port..) {
            let All { serial, power, rtc, .. } = &mut *all;
            *byte = serial.read(port).or_else(|| power.read(port)).or_else(|| rtc.read(port)).unwrap_or(NOTHING);
        }
        drop(all);
        self.room.notify_one();
    }

    /// Takes a write.
    ///
    /// # Errors
    /// Of the interrupt line.
    pub(in crate::vmm) fn write(&self, port: u16, data: &[u8]) -> io::Result<()> {
        let mut all = lock(&self.all);
        for (byte, port) in data.iter().zip(port..) {
            if !all.serial.write(port, *byte)? && !all.power.write(port, *byte) {
                all.rtc.write(port, *byte);
            }
        }
        if all.power.end().is_some() {
            self.is_busy.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Answers a read of an address that is no memory.
    pub(in crate::vmm) fn read_memory(&self, address: u64, data: &mut [u8]) {
        data.fill(NOTHING);
        let Some((index, offset)) = virtio_register(address) else { return };
        if let Some(device) = lock(&self.all).virtio.get(index) {
            device.read(offset, data);
        }
    }

    /// Takes a write to an address that is no memory.
    ///
    /// # Errors
    /// Of the interrupt line.
    pub(in crate::vmm) fn write_memory(&self, address: u64, data: &[u8]) -> Result<(), VirtioError> {
        let mut all = lock(&self.all);
        let Some((index, offset)) = virtio_register(address) else { return Ok(()) };
        let Some(device) = all.virtio.get_mut(index) else { return Ok(()) };
        device.write(offset, data)?;
        if device.is_notified() {
            self.is_busy.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether somebody has to [attend](Self::attend) to the devices before the guest runs on.
    pub(in crate::vmm) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Acquire)
    }

    /// Lets the devices do what the guest asked for. At most `share_pages` pages are written between two cuts, if there is a bound; as soon as `leave_off` says so, the rest is
    /// left for later.
    ///
    /// # Errors
    /// [`VirtioError`]: the machine can't go on.
    pub(in crate::vmm) fn attend(&self, share_pages: Option<u64>, leave_off: &dyn Fn() -> bool) -> Result<Wish, VirtioError> {
        let mut all = lock(&self.all);
        self.is_busy.store(false, Ordering::Release);
        let All { power, virtio, .. } = &mut *all;
        let durable = EpochId(self.durable.load(Ordering::Acquire));
        virtio.iter_mut().try_for_each(|device| device.give_answers(durable))?;
        let mut held: usize = virtio.iter().map(|device| device.held()).sum();
        let hold = self.holds.load(Ordering::Acquire);
        let mut wish = Wish::Nothing;
        for device in virtio.iter_mut() {
            let others = held - device.held();
            // Each answer that waits is a page or two more.
            let reserved = others as u64 + u64::from(QUEUE_SIZE) + 2;
            let room_pages =
                || share_pages.map_or(u64::MAX, |share| share.saturating_sub(self.memory.written().len() as u64 + reserved));
            let progress = device.work(&When { room_pages: &room_pages, leave_off, hold })?;
            held = others + device.held();
            if progress != Progress::Idle {
                self.is_busy.store(true, Ordering::Release);
            }
            if progress == Progress::NoRoom {
                wish = Wish::Room;
            }
        }
        if virtio.iter().any(|device| device.wants_epoch()) {
            // Until one is taken.
            self.is_busy.store(true, Ordering::Release);
            wish = Wish::Epoch;
        }
        Ok(if power.end().is_some() { Wish::End } else { wish })
    }

    /// From now on answers that promise durability are held until what is returned is called with an epoch that has what they are about.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn hold_until_durable(self: &Arc<Self>) -> io::Result<OnRelease> {
        // Whoever leads a cut may wait for the storage with the devices held still: so it is not the storage's thread that waits for the devices.
        let (tell, told) = channel();
        let devices: Weak<Self> = Arc::downgrade(self);
        Builder::new().name("slackwater-answers".to_owned()).spawn(move || {
            while let Ok(epoch) = told.recv() {
                let Some(devices) = devices.upgrade() else { return };
                devices.note_durable(epoch);
            }
        })?;
        self.holds.store(true, Ordering::Release);
        Ok(Box::new(move |epoch| {
            // It fails once the machine is gone.
            let _ = tell.send(epoch);
        }))
    }

    fn note_durable(&self, epoch: EpochId) {
        self.durable.fetch_max(epoch.0, Ordering::AcqRel);
        self.give_answers(&mut lock(&self.all));
    }

    /// What the last cut captured is `epoch`.
    pub(in crate::vmm) fn note_taken(&self, epoch: EpochId) {
        let mut all = lock(&self.all);
        for device in &mut all.virtio {
            device.note_taken(epoch);
        }
        self.give_answers(&mut all);
    }

    fn give_answers(&self, all: &mut All) {
        let durable = EpochId(self.durable.load(Ordering::Acquire));
        for device in &mut all.virtio {
            if let Err(error) = device.give_answers(durable) {
                tracing::warn!(error = &error as &dyn std::error::Error, "an answer can't be given to the guest");
            }
        }
    }

    /// How the guest ended its run, if it did.
    #[must_use]
    pub fn end(&self) -> Option<GuestEnd> {
        lock(&self.all).power.end()
    }

    /// Keeps the devices still.
    pub(in crate::vmm) fn quiet(&self) -> Quiet<'_> {
        Quiet { devices: self, all: lock(&self.all) }
    }

    /// Gives input to the serial port, as much as there is room for, or waits a moment for room. Returns how many bytes it took.
    pub(super) fn receive(&self, bytes: &[u8]) -> io::Result<usize> {
        const MOMENT: Duration = Duration::from_millis(50);
        let mut all = lock(&self.all);
        let taken = all.serial.receive(bytes)?;
        if taken == 0 {
            drop(self.room.wait_timeout(all, MOMENT).unwrap_or_else(PoisonError::into_inner));
        }
        Ok(taken)
    }

    /// Puts the real-time clock forward by `ns`.
    pub(in crate::vmm) fn advance_clock(&self, ns: u64) {
        lock(&self.all).rtc.advance(ns);
    }

    /// Writes the first generation id, before the guest runs.
    pub(in crate::vmm) fn write_generation_id(&self) -> Result<(), VmmError> {
        lock(&self.all).generation.write()
    }

    /// Writes another generation id, and tells the guest. Comes when memory and all state are back.
    pub(in crate::vmm) fn renew_generation_id(&self) -> Result<(), VmmError> {
        self.quiet().renew_generation_id()
    }

    /// Puts the devices back to saved state, which is that of a chain's epoch. Each state is used, and none is missing. Comes after that of the VM and the vCPUs: a device may raise its interrupt.
    pub(in crate::vmm) fn restore(&self, saved: &[DeviceState]) -> Result<(), StateError> {
        self.quiet().restore(saved)?;
        // What is restored from a chain is as durable as it will ever be.
        self.note_taken(EpochId::NONE);
        Ok(())
    }
}

/// The index of the virtio device that has a register at `address`, and the register's offset.
fn virtio_register(address: u64) -> Option<(usize, u64)> {
    let at = address.checked_sub(VIRTIO)?;
    let (device, offset) = (at / VIRTIO_STRIDE, at % VIRTIO_STRIDE);
    (offset < REGISTERS_BYTES).then_some((usize::try_from(device).ok()?, offset))
}
