//! The devices of a machine together: accesses of the guest, work, answers that wait, cuts.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::bus::{Bus, Space};
use super::device::{Device, DeviceError, GuestEnd, NOTHING, Progress, When, Wish};
use super::record::{Fields, duplicate, unknown};
use super::virtio::ANSWERS_PAGES;
use crate::epoch::OnRelease;
use crate::lock::lock;
use crate::machine::{DeviceState, StateError};
use crate::memory::GuestMemory;
use crate::page::EpochId;
use crate::vmm::outputs::{CutDue, Outputs};

type List = Vec<Box<dyn Device>>;

/// The devices of a machine. vCPU threads, the console and the leader of a cut use them.
#[derive(Debug)]
pub struct Devices {
    list: Mutex<List>,
    bus: Bus,
    /// The serial port may have room for input again.
    room: Condvar,
    memory: GuestMemory,
    /// There is something to [attend](Self::attend) to.
    is_busy: AtomicBool,
    /// Answers that promise durability are held.
    holds: AtomicBool,
    /// The newest epoch that is known to be released.
    released: AtomicU64,
    outputs: Outputs,
    /// When an output wants the epoch in hand to end.
    cut_due: CutDue,
}

/// Devices that stand still: no input comes in, no interrupt is raised, nothing is written.
#[derive(Debug)]
pub(in crate::vmm) struct Quiet<'d> {
    devices: &'d Devices,
    list: MutexGuard<'d, List>,
}

impl Quiet<'_> {
    /// The state of every device, for a cut.
    pub(in crate::vmm) fn capture(&mut self) -> Vec<DeviceState> {
        let mut states = Vec::with_capacity(self.list.len());
        for device in self.list.iter_mut() {
            if let Some(record) = device.record() {
                states.push(record.with(device.save()));
            }
            device.note_capture();
        }
        self.devices.cut_due.captured();
        states
    }

    /// As [`Devices::restore`].
    pub(in crate::vmm) fn restore(&mut self, saved: &[DeviceState]) -> Result<(), StateError> {
        self.devices.is_busy.store(true, Ordering::Release);
        self.devices.cut_due.captured();
        restore(&mut self.list, saved)
    }

    /// As [`Devices::resume`].
    pub(in crate::vmm) fn resume(&mut self) -> Result<(), DeviceError> {
        self.list.iter_mut().try_for_each(|device| device.resume())
    }
}

/// Gives each device its record. None is missing, none is left over.
fn restore(list: &mut List, saved: &[DeviceState]) -> Result<(), StateError> {
    let is_known = |state: &DeviceState| list.iter().filter_map(|device| device.record()).any(|record| record.is_of(state));
    if let Some(other) = saved.iter().find(|state| !is_known(state)) {
        return Err(unknown(other));
    }
    for device in list.iter_mut() {
        let Some(record) = device.record() else { continue };
        let mut found = saved.iter().filter(|state| record.is_of(state));
        match (found.next(), found.next()) {
            (Some(state), None) => device.restore(Fields::of(state, record)?)?,
            (None, _) => return Err(record.missing()),
            (_, Some(second)) => return Err(duplicate(second)),
        }
    }
    Ok(())
}

impl Devices {
    pub(in crate::vmm) fn new(list: List, memory: GuestMemory, outputs: Outputs) -> Self {
        Self {
            bus: Bus::new(list.iter().map(|device| device.ranges())),
            list: Mutex::new(list),
            room: Condvar::new(),
            memory,
            is_busy: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            released: AtomicU64::new(EpochId::NONE.0),
            outputs,
            cut_due: CutDue::default(),
        }
    }

    /// Answers a read of `data.len()` bytes, of one port after the other.
    pub(in crate::vmm) fn read_port(&self, port: u16, data: &mut [u8]) {
        let mut list = lock(&self.list);
        for (place, port) in data.chunks_mut(1).zip(port..) {
            read(&mut list, &self.bus, Space::Ports, port.into(), place);
        }
        drop(list);
        self.room.notify_one();
    }

    /// Takes a write, to one port after the other.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine can't go on.
    pub(in crate::vmm) fn write_port(&self, port: u16, data: &[u8]) -> Result<(), DeviceError> {
        let mut list = lock(&self.list);
        data.chunks(1).zip(port..).try_for_each(|(byte, port)| self.write(&mut list, Space::Ports, port.into(), byte))
    }

    /// Answers a read of an address that is no memory.
    pub(in crate::vmm) fn read_memory(&self, address: u64, data: &mut [u8]) {
        read(&mut lock(&self.list), &self.bus, Space::Memory, address, data);
    }

    /// Takes a write to an address that is no memory.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine can't go on.
    pub(in crate::vmm) fn write_memory(&self, address: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.write(&mut lock(&self.list), Space::Memory, address, data)
    }

    fn write(&self, list: &mut List, space: Space, address: u64, data: &[u8]) -> Result<(), DeviceError> {
        let Some(target) = self.bus.find(space, address) else { return Ok(()) };
        let Some(device) = list.get_mut(target.device) else { return Ok(()) };
        device.write(target.base, target.offset, data)?;
        // One whose output waits is attended to for the cut that it wants.
        if device.is_busy() || self.cut_due.at().is_none() && device.wants_epoch() {
            self.is_busy.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// How ACPI's tables describe the devices.
    pub(in crate::vmm) fn describe(&self) -> Vec<u8> {
        let mut aml = Vec::new();
        lock(&self.list).iter().for_each(|device| device.describe(&mut aml));
        aml
    }

    /// Whether somebody has to [attend](Self::attend) to the devices before the guest runs on.
    pub(in crate::vmm) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Acquire)
    }

    /// Lets the devices do what the guest asked for. At most `share_pages` pages are written
    /// between two cuts, if there is a bound; as soon as `leave_off` says so, the rest is left for
    /// later.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine can't go on.
    pub(in crate::vmm) fn attend(&self, share_pages: Option<u64>, leave_off: &dyn Fn() -> bool) -> Result<Wish, DeviceError> {
        let mut list = lock(&self.list);
        self.is_busy.store(false, Ordering::Release);
        let released = EpochId(self.released.load(Ordering::Acquire));
        list.iter_mut().try_for_each(|device| device.give_answers(released))?;
        let mut held: usize = list.iter().map(|device| device.held()).sum();
        let hold = self.holds.load(Ordering::Acquire);
        let mut wish = Wish::Nothing;
        for device in list.iter_mut() {
            let others = held - device.held();
            // Each answer that waits is a page or two more.
            let reserved = others as u64 + ANSWERS_PAGES;
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
        if wants_epoch(&list) && self.cut_due.ask() {
            wish = Wish::Epoch;
        }
        if end(&list).is_some() {
            // For every vCPU: none runs on.
            self.is_busy.store(true, Ordering::Release);
            wish = Wish::End;
        }
        Ok(wish)
    }

    /// From now on outputs are held until what is returned is called with an epoch that has them;
    /// with `holds_answers` also answers that promise durability. Each asks for an epoch that ends
    /// within `delay`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn hold_until_released(self: &Arc<Self>, holds_answers: bool, delay: Duration) -> io::Result<OnRelease> {
        // Whoever leads a cut may wait for the storage with the devices held still: so it is not
        // the storage's thread that waits for the devices.
        let (tell, told) = channel();
        let devices: Weak<Self> = Arc::downgrade(self);
        Builder::new().name("slackwater-answers".to_owned()).spawn(move || {
            while let Ok(epoch) = told.recv() {
                let Some(devices) = devices.upgrade() else { return };
                devices.note_released(epoch);
            }
        })?;
        self.holds.store(holds_answers, Ordering::Release);
        self.cut_due.set_delay(delay);
        let outputs = self.outputs.clone();
        Ok(Box::new(move |epoch| {
            outputs.release(epoch);
            if holds_answers {
                // It fails once the machine is gone.
                let _ = tell.send(epoch);
            }
        }))
    }

    /// When the epoch in hand is to end because an output waits for that.
    pub(in crate::vmm) fn cut_due(&self) -> Option<Instant> {
        self.cut_due.at()
    }

    /// There is something to [attend](Self::attend) to.
    pub(in crate::vmm) fn call(&self) {
        self.is_busy.store(true, Ordering::Release);
    }

    fn note_released(&self, epoch: EpochId) {
        self.released.fetch_max(epoch.0, Ordering::AcqRel);
        self.give_answers(&mut lock(&self.list));
    }

    /// What the last cut captured is `epoch`.
    pub(in crate::vmm) fn note_taken(&self, epoch: EpochId) {
        let mut list = lock(&self.list);
        list.iter_mut().for_each(|device| device.note_taken(epoch));
        // What came since it was captured.
        if wants_epoch(&list) {
            self.cut_due.ask();
        }
        self.give_answers(&mut list);
    }

    fn give_answers(&self, list: &mut List) {
        let released = EpochId(self.released.load(Ordering::Acquire));
        for device in list.iter_mut() {
            if let Err(error) = device.give_answers(released) {
                tracing::warn!(error = &error as &dyn std::error::Error, "an answer can't be given to the guest");
            }
        }
    }

    /// How the guest ended its run, if it did.
    #[must_use]
    pub fn end(&self) -> Option<GuestEnd> {
        end(&lock(&self.list))
    }

    /// Keeps the devices still.
    pub(in crate::vmm) fn quiet(&self) -> Quiet<'_> {
        Quiet { devices: self, list: lock(&self.list) }
    }

    /// Gives input to the serial port, as much as there is room for, or waits a moment for room.
    /// Returns how many bytes it took.
    pub(super) fn receive(&self, bytes: &[u8]) -> io::Result<usize> {
        const MOMENT: Duration = Duration::from_millis(50);
        let mut list = lock(&self.list);
        for device in list.iter_mut() {
            let taken = device.receive(bytes)?;
            if taken > 0 {
                return Ok(taken);
            }
        }
        drop(self.room.wait_timeout(list, MOMENT).unwrap_or_else(PoisonError::into_inner));
        Ok(0)
    }

    /// So many nanoseconds passed that the guest is to see.
    pub(in crate::vmm) fn advance_clock(&self, ns: u64) {
        lock(&self.list).iter_mut().for_each(|device| device.advance_clock(ns));
    }

    /// Comes before the guest runs for the first time.
    pub(in crate::vmm) fn begin(&self) -> Result<(), DeviceError> {
        lock(&self.list).iter_mut().try_for_each(|device| device.begin())
    }

    /// Comes when memory and all state are back, before the guest goes on.
    pub(in crate::vmm) fn resume(&self) -> Result<(), DeviceError> {
        self.quiet().resume()
    }

    /// Puts the devices back to saved state, which is that of a chain's epoch. Each state is used,
    /// and none is missing. Comes after that of the VM and the vCPUs: a device may raise its
    /// interrupt.
    pub(in crate::vmm) fn restore(&self, saved: &[DeviceState]) -> Result<(), StateError> {
        self.quiet().restore(saved)?;
        // What is restored from a chain is as durable as it will ever be.
        self.note_taken(EpochId::NONE);
        Ok(())
    }
}

/// Whether an output waits for an epoch to be taken.
fn wants_epoch(list: &List) -> bool {
    list.iter().any(|device| device.wants_epoch())
}

/// How the guest ended its run, if it did.
fn end(list: &List) -> Option<GuestEnd> {
    list.iter().find_map(|device| device.end())
}

/// Answers a read of one access of a bus.
fn read(list: &mut List, bus: &Bus, space: Space, address: u64, data: &mut [u8]) {
    match bus.find(space, address).and_then(|target| Some((list.get_mut(target.device)?, target))) {
        Some((device, target)) => device.read(target.base, target.offset, data),
        None => data.fill(NOTHING),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::vmm::devices::testing::{Machine, RECORDS};

    fn devices(disks: usize) -> Devices {
        let Machine { devices, memory, .. } = Machine::new(disks);
        Devices::new(devices, memory, Outputs::default())
    }

    fn port(devices: &Devices, port: u16) -> u8 {
        let mut byte = [0];
        devices.read_port(port, &mut byte);
        byte[0]
    }

    #[test]
    fn accesses_reach_the_devices_and_nothing_reads_as_ones() {
        let devices = devices(2);
        let mut two = [0; 2];
        // The control register, and behind it nobody.
        devices.read_port(0x605, &mut two);
        assert_eq!(two, [0, NOTHING]);
        assert_eq!((port(&devices, 0x604), port(&devices, 0x80)), (1, NOTHING));
        devices.write_port(0x70, &[0xd]).unwrap();
        assert_eq!(port(&devices, 0x71), 1 << 7, "the clock's time is valid");
        assert_eq!(port(&devices, 0x3fd) & 0x60, 0x60, "the serial port takes output");
        let mut four = [0; 4];
        for (address, expected) in [
            (0xd000_0000, *b"virt"),
            (0xd000_2000, *b"virt"),
            (0xd000_0200, [NOTHING; 4]),
            (0xd000_3000, [NOTHING; 4]),
            (0, [NOTHING; 4]),
        ] {
            devices.read_memory(address, &mut four);
            assert_eq!(four, expected, "{address:#x}");
        }
        // Reset by the keyboard controller ends the run.
        assert!(!devices.is_busy() && devices.end().is_none());
        devices.write_port(0x64, &[0xfe]).unwrap();
        assert!(devices.is_busy());
        for _ in 0..2 {
            assert_eq!(devices.attend(None, &|| false).unwrap(), Wish::End);
            assert!(devices.is_busy(), "the next vCPU asks, too");
        }
        assert_eq!(devices.end(), Some(GuestEnd::Reset));
    }

    #[test]
    fn every_device_takes_its_record_and_no_record_is_left() {
        let devices = devices(2);
        let saved = devices.quiet().capture();
        let names: Vec<_> = saved.iter().map(|state| (&*state.name, state.index)).collect();
        let expected: Vec<_> = RECORDS.iter().map(|name| (*name, 0)).chain([("disk", 0), ("disk", 1)]).collect();
        assert_eq!(names, expected);
        devices.restore(&saved).unwrap();
        for at in 0..saved.len() {
            let mut less = saved.clone();
            let gone = less.remove(at);
            let error = devices.restore(&less).unwrap_err();
            assert_eq!(error.to_string(), format!("state record device.{} {} is missing", gone.name, gone.index));
            let mut more = saved.clone();
            more.push(gone.clone());
            let error = devices.restore(&more).unwrap_err();
            assert_eq!(error.to_string(), format!("state record device.{} {} is there twice", gone.name, gone.index));
            let mut newer = saved.clone();
            newer[at].version += 1;
            let error = devices.restore(&newer).unwrap_err();
            assert!(matches!(error, StateError::UnknownRecord { .. }), "{error}");
        }
        for (name, index) in [("sound", 0), ("serial", 1), ("disk", 2)] {
            let mut other = saved.clone();
            other.push(DeviceState { name: name.to_owned(), index, version: 1, data: Vec::new() });
            let error = devices.restore(&other).unwrap_err();
            assert_eq!(error.to_string(), format!("unknown state record device.{name} {index} of version 1"));
        }
    }

    #[test]
    fn what_was_switched_off_is_so_after_a_restore_and_not_after_a_rollback() {
        let devices = devices(0);
        let running = devices.quiet().capture();
        devices.write_port(0x608, &[6]).unwrap();
        let over = devices.quiet().capture();
        devices.quiet().restore(&running).unwrap();
        assert_eq!(devices.end(), None);
        devices.restore(&over).unwrap();
        assert_eq!(devices.end(), Some(GuestEnd::Reset));
    }

    #[test]
    fn every_device_that_a_guest_can_find_is_described() {
        let aml = devices(1).describe();
        for (name, is_there) in [
            (&b"COM1"[..], true),
            (b"RTC_", true),
            (b"VGEN", true),
            (b"GED_", true),
            (b"_EVT", true),
            (b"VIO0", true),
            (b"VIO1", true),
            (b"VIO2", false),
        ] {
            assert_eq!(aml.windows(4).any(|window| window == name), is_there, "{}", String::from_utf8_lossy(name));
        }
    }
}
