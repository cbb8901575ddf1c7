//! A virtio device without a machine: its registers, a little guest memory, and what the host does
//! at its other side. For whoever tests it from outside, fuzzers and the tests that replay what
//! they found.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::net::Net;
use super::transport::Transport;
use super::virtio_device::{QUEUE_SIZE, REQUEST_PAGES_MAX, VirtioDevice};
use super::vsock::Vsock;
use crate::lock::lock;
use crate::machine::StateError;
use crate::memory::{GuestMemory, MemoryError};
use crate::page::{EpochId, Gfn, PageRun};
use crate::parked::Parked;
use crate::vmm::devices::device::{Device, DeviceError, Progress, When};
use crate::vmm::devices::irq_line::Line;
use crate::vmm::devices::record::{Fields, RecordName};
use crate::vmm::links::Mac;
use crate::vmm::nic::Nic;
use crate::vmm::outputs::Outputs;
use crate::vmm::vsock::{Connections, Output, VsockSpec};
use crate::vmm::vsock_side::VsockSide;

/// More pages than a request may have a device write.
const GUEST: PageRun = PageRun { first: Gfn(0), count: 512 };
const NET: RecordName = RecordName::only("net", 1);
const VSOCK: RecordName = RecordName::only("vsock", 1);
const MTU: u16 = 1500;
/// The host's ports of connections begin here.
const RANDOM: u32 = 0;

/// An interrupt line that nothing is behind.
#[derive(Debug, Default)]
struct Level(AtomicBool);

impl Line for Level {
    fn set(&self, high: bool) -> io::Result<()> {
        self.0.store(high, Ordering::SeqCst);
        Ok(())
    }
}

/// The host's side.
#[derive(Debug)]
enum Host {
    Net(Arc<Nic>),
    Vsock(Arc<VsockSide>),
}

/// The device. One thread uses it, and nothing waits.
#[derive(Debug)]
pub struct LoneDevice {
    transport: Transport,
    record: RecordName,
    memory: GuestMemory,
    line: Arc<Level>,
    host: Host,
    outputs: Outputs,
    epoch: EpochId,
}

/// What a device did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worked {
    /// There is nothing more to do.
    pub is_idle: bool,
    /// What it would do next needs more pages than are left.
    pub needs_room: bool,
    /// Pages of guest memory that it wrote.
    pub pages: u64,
}

/// What left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// A packet.
    Packet(Vec<u8>),
    /// Something of a connection.
    Socket(Output),
}

impl LoneDevice {
    /// Bytes of guest memory, from address 0 on.
    pub const MEMORY_BYTES: u64 = GUEST.count * crate::page::PAGE_SIZE_U64;
    /// Entries of a queue at the most.
    pub const QUEUE_SIZE: u16 = QUEUE_SIZE;
    /// The most pages that one request has a device write.
    pub const REQUEST_PAGES_MAX: u64 = REQUEST_PAGES_MAX;

    fn new(device: Box<dyn VirtioDevice>, record: RecordName, host: Host, outputs: Outputs) -> Result<Self, MemoryError> {
        let memory = GuestMemory::anonymous(&[GUEST], 64)?;
        let line = Arc::new(Level::default());
        let transport = Transport::with_line(device, record, memory.clone(), line.clone(), 0);
        Ok(Self { transport, record, memory, line, host, outputs, epoch: EpochId::NONE })
    }

    /// A network device at a link that is up. `holds`: what leaves waits for its epoch.
    ///
    /// # Errors
    /// There is no memory.
    pub fn net(mac: Mac, has_offloads: bool, holds: bool) -> Result<Self, MemoryError> {
        let nic = Arc::new(Nic::new(mac, Some(MTU), has_offloads, holds));
        nic.inlet.set_up(true);
        let outputs = Outputs::default().with(nic.outlet.clone());
        Self::new(Box::new(Net::new(nic.clone())), NET, Host::Net(nic), outputs)
    }

    /// A socket device, whose host has no sockets but what is done in [`connections`].
    ///
    /// # Errors
    /// There is no memory.
    ///
    /// [`connections`]: Self::connections
    pub fn vsock(spec: VsockSpec, holds: bool) -> Result<Self, MemoryError> {
        let side = Arc::new(VsockSide::new(spec, RANDOM, holds));
        let outputs = Outputs::default().with(side.outlet.clone());
        Self::new(Box::new(Vsock::new(side.clone())), VSOCK, Host::Vsock(side), outputs)
    }

    /// The driver reads a register.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.read(0, offset, data);
    }

    /// The driver writes one.
    ///
    /// # Errors
    /// The machine can't go on.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.transport.write(0, offset, data)
    }

    /// Whether the interrupt line is high.
    #[must_use]
    pub fn is_interrupting(&self) -> bool {
        self.line.0.load(Ordering::SeqCst)
    }

    /// The guest writes to its memory, as far as there is memory.
    pub fn write_memory(&self, address: u64, bytes: &[u8]) {
        // It is none where it fails.
        let _ = self.memory.ram().write_slice(bytes, GuestAddress(address));
    }

    /// The guest reads its memory. What is no memory is zero.
    #[must_use]
    pub fn read_memory<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        // It is none where it fails.
        let _ = self.memory.ram().read_slice(&mut bytes, GuestAddress(address));
        bytes
    }

    /// The device works, where it may write so many pages, and is asked to leave off when it has
    /// asked so often whether it should.
    ///
    /// # Errors
    /// The machine can't go on.
    pub fn work(&mut self, room_pages: u64, leave_off_after: u32) -> Result<Worked, DeviceError> {
        let Self { transport, memory, .. } = self;
        let written = memory.written();
        written.take(&Parked::vouch(&mut ()), |_| {});
        let asked = Cell::new(0_u32);
        let leave_off = || asked.replace(asked.get().saturating_add(1)) >= leave_off_after;
        let room_pages = || room_pages.saturating_sub(written.len() as u64);
        let progress = transport.work(&When { room_pages: &room_pages, leave_off: &leave_off, hold: true })?;
        let pages = written.len() as u64;
        Ok(Worked { is_idle: progress == Progress::Idle, needs_room: progress == Progress::NoRoom, pages })
    }

    /// The record of its state.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        self.transport.save()
    }

    /// Puts the state of a record back.
    ///
    /// # Errors
    /// It is none of such a device.
    pub fn restore(&mut self, record: Vec<u8>) -> Result<(), StateError> {
        let saved = self.record.with(record);
        self.transport.restore(Fields::of(&saved, self.record)?)
    }

    /// The guest goes on from what was restored.
    ///
    /// # Errors
    /// The machine can't go on.
    pub fn resume(&mut self) -> Result<(), DeviceError> {
        self.transport.resume()
    }

    /// A cut captures the machine, and is the next epoch.
    pub fn cut(&mut self) {
        self.transport.note_capture();
        self.epoch.0 += 1;
        self.transport.note_taken(self.epoch);
    }

    /// The newest epoch is released.
    pub fn release(&self) {
        self.outputs.release(self.epoch);
    }

    /// What leaves next, if something may.
    #[must_use]
    pub fn leave(&self) -> Option<Left> {
        match &self.host {
            Host::Net(nic) => nic.outlet.next_now().map(|released| Left::Packet(released.output)),
            Host::Vsock(side) => side.outlet.next_now().map(|released| Left::Socket(released.output)),
        }
    }

    /// How much waits to leave: outputs, and their bytes.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        match &self.host {
            Host::Net(nic) => nic.outlet.waiting(),
            Host::Vsock(side) => side.outlet.waiting(),
        }
    }

    /// A packet comes in by the link. It is lost where as many wait as may.
    pub fn come(&self, packet: Vec<u8>) {
        if let Host::Net(nic) = &self.host
            && nic.inlet.has_room()
        {
            nic.inlet.push(packet);
        }
    }

    /// The link goes, or is there.
    pub fn set_link(&self, is_up: bool) {
        if let Host::Net(nic) = &self.host {
            nic.inlet.set_up(is_up);
        }
    }

    /// The host does something with connections, where it is a socket device.
    pub fn connections<R>(&self, act: impl FnOnce(&mut Connections) -> R) -> Option<R> {
        match &self.host {
            Host::Net(_) => None,
            Host::Vsock(side) => Some(act(&mut lock(&side.connections))),
        }
    }
}
