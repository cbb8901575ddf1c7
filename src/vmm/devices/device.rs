//! What a device is: what it answers on the bus, what it does for the guest, and its state.

use std::fmt;
use std::io;

use serde::Serialize;
use vm_memory::GuestMemoryError;

use super::bus::BusRange;
use super::record::{Fields, RecordName};
use crate::machine::StateError;
use crate::memory::MemoryError;
use crate::page::EpochId;

/// What a port, or an address, reads as behind which there is nothing.
pub(super) const NOTHING: u8 = 0xff;

/// A device of a machine. It is used by one thread at a time, and does nothing by itself: so it
/// stands still while a cut is taken. Whatever it does not have, the defaults say.
pub(in crate::vmm) trait Device: fmt::Debug + Send {
    /// The ports and addresses that it answers.
    fn ranges(&self) -> Vec<BusRange> {
        Vec::new()
    }

    /// Answers a read, `offset` behind `base`, where one of its ranges begins. A read of ports is
    /// of one byte.
    fn read(&mut self, _base: u64, _offset: u64, data: &mut [u8]) {
        data.fill(NOTHING);
    }

    /// Takes a write. A write to ports is of one byte.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine can't go on.
    fn write(&mut self, _base: u64, _offset: u64, _data: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Adds to `aml` how ACPI's tables describe it. A guest finds nothing else.
    fn describe(&self, _aml: &mut Vec<u8>) {}

    /// The name of its record; none where it has no state but what is in guest memory.
    fn record(&self) -> Option<RecordName> {
        None
    }

    /// The bytes of its record.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Puts the state of its record back. All bytes are used and make sense, or nothing changes. It
    /// raises its interrupt again where its state says so.
    ///
    /// # Errors
    /// [`StateError`].
    fn restore(&mut self, saved: Fields<'_>) -> Result<(), StateError> {
        saved.end()
    }

    /// The guest is about to be started for the first time.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine can't be started.
    fn begin(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The guest is about to go on from an epoch: memory, the VM, the vCPUs and all devices are
    /// back.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine can't go on.
    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// So many nanoseconds passed that the guest is to see.
    fn advance_clock(&mut self, _ns: u64) {}

    /// Takes input of the console, as much as there is room for. Returns how many bytes.
    ///
    /// # Errors
    /// Of the interrupt line.
    fn receive(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Ok(0)
    }

    /// How the guest ended its run, if it did so by this device.
    fn end(&self) -> Option<GuestEnd> {
        None
    }

    /// Whether it has something to do before the guest runs on.
    fn is_busy(&self) -> bool {
        false
    }

    /// Does what the guest asked for.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine can't go on.
    fn work(&mut self, _when: &When<'_>) -> Result<Progress, DeviceError> {
        Ok(Progress::Idle)
    }

    /// How many of its answers wait until something is durable.
    fn held(&self) -> usize {
        0
    }

    /// Whether an answer waits for an epoch to be taken.
    fn wants_epoch(&self) -> bool {
        false
    }

    /// A cut captures the machine: its state has just been saved.
    fn note_capture(&mut self) {}

    /// What was captured last is `epoch`.
    fn note_taken(&mut self, _epoch: EpochId) {}

    /// Gives the answers that waited for epochs up to `durable`.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine can't go on.
    fn give_answers(&mut self, _durable: EpochId) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// When a device works, and what it may write.
pub(in crate::vmm) struct When<'w> {
    /// Pages that may yet be written in this epoch.
    pub(super) room_pages: &'w dyn Fn() -> u64,
    /// Whether to leave off.
    pub(super) leave_off: &'w dyn Fn() -> bool,
    /// Whether answers are held that promise that something is durable. Otherwise nothing is
    /// promised, and they are given.
    pub(super) hold: bool,
}

/// How far a device came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vmm) enum Progress {
    /// There is nothing more to do.
    Idle,
    /// It was asked to leave off.
    LeftOff,
    /// What it would write next does not fit in this epoch any more.
    NoRoom,
}

/// What devices want of the thread that looked after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vmm) enum Wish {
    /// Nothing.
    Nothing,
    /// That the epoch ends, for what they would write next does not fit.
    Room,
    /// That an epoch is taken in a moment ([`Devices::cut_due`](super::Devices::cut_due)), for
    /// something waits for it that leaves the machine.
    Epoch,
    /// The end of the run.
    End,
}

/// How a guest ended its own run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestEnd {
    /// It switched the machine off.
    Poweroff,
    /// It reset the machine. It is not started again.
    Reset,
}

/// Why a device, and with it the machine, can't go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Memory did not come.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The interrupt line.
    #[error("KVM_IRQ_LINE for a device")]
    Interrupt(#[source] io::Error),
    /// The host gave no random bytes.
    #[error("getrandom")]
    Random(#[source] io::Error),
    /// Something did not go into guest memory.
    #[error("writing {what} to guest memory at {address:#x}")]
    Write {
        /// What.
        what: &'static str,
        /// Guest physical address.
        address: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}
