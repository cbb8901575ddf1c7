//! The devices of a Linux guest: who answers which port, and their state together.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::power::{self, GuestEnd, Power};
use super::serial::{self, Output, SerialPort};
use super::state;
use crate::machine::{DeviceState, StateError};
use crate::vmm::shared::lock;

/// What a port, or an address, reads as behind which there is nothing.
const NOTHING: u8 = 0xff;

/// A device of a machine, as a chain's identity has it: a restore needs to have all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeviceName {
    /// A 16550 serial port on the console.
    Serial,
    /// ACPI's registers for switching off and resetting, and the keyboard controller's reset line.
    Power,
}

impl DeviceName {
    /// All that this program has.
    pub const ALL: [Self; 2] = [Self::Serial, Self::Power];
}

/// The devices of a machine. vCPU threads, the console and the leader of a cut use them.
#[derive(Debug)]
pub struct Devices {
    all: Mutex<All>,
    /// The serial port may have room for input again.
    room: Condvar,
}

#[derive(Debug)]
struct All {
    serial: SerialPort,
    power: Power,
}

/// Devices that stand still: no input comes in, and no interrupt is raised.
#[derive(Debug)]
pub(in crate::vmm) struct Quiet<'d>(MutexGuard<'d, All>);

impl Quiet<'_> {
    /// The state of every device.
    pub(in crate::vmm) fn save(&self) -> Vec<DeviceState> {
        vec![self.0.serial.save(), self.0.power.save()]
    }
}

impl Devices {
    pub(in crate::vmm) fn new(vm: Arc<VmFd>, output: Output) -> Self {
        Self { all: Mutex::new(All { serial: SerialPort::new(vm, output), power: Power::new() }), room: Condvar::new() }
    }

    /// Answers a read of `data.len()` bytes.
    pub(in crate::vmm) fn read(&self, port: u16, data: &mut [u8]) {
        let mut all = lock(&self.all);
        for (byte, port) in data.iter_mut().zip(port..) {
            let All { serial, power } = &mut *all;
            *byte = serial.read(port).or_else(|| power.read(port)).unwrap_or(NOTHING);
        }
        drop(all);
        self.room.notify_one();
    }

    /// Takes a write, and returns how the guest ended its run, if it did.
    ///
    /// # Errors
    /// Of the interrupt line.
    pub(in crate::vmm) fn write(&self, port: u16, data: &[u8]) -> io::Result<Option<GuestEnd>> {
        let mut all = lock(&self.all);
        for (byte, port) in data.iter().zip(port..) {
            if !all.serial.write(port, *byte)? {
                all.power.write(port, *byte);
            }
        }
        Ok(all.power.end())
    }

    /// Answers a read of memory that is not there.
    pub(in crate::vmm) fn read_memory(data: &mut [u8]) {
        data.fill(NOTHING);
    }

    /// How the guest ended its run, if it did.
    #[must_use]
    pub fn end(&self) -> Option<GuestEnd> {
        lock(&self.all).power.end()
    }

    /// Keeps the devices still.
    pub(in crate::vmm) fn quiet(&self) -> Quiet<'_> {
        Quiet(lock(&self.all))
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

    /// Puts the devices back to saved state. Each state is used, and none is missing. Comes after that of the VM and the vCPUs: a device may raise its interrupt.
    pub(in crate::vmm) fn restore(&self, saved: &[DeviceState]) -> Result<(), StateError> {
        let mut all = lock(&self.all);
        if let Some(other) = saved.iter().find(|state| ![serial::NAME, power::NAME].contains(&&*state.name)) {
            return Err(state::unknown(other));
        }
        let one = |name, piece| {
            let mut found = saved.iter().filter(move |state| state.name == name);
            match (found.next(), found.next()) {
                (Some(state), None) => Ok(state),
                (None, _) => Err(StateError::Missing { piece, vcpu: None }),
                (_, Some(second)) => Err(state::unknown(second)),
            }
        };
        all.power.restore(one(power::NAME, "device.power")?)?;
        all.serial.restore(one(serial::NAME, "device.serial")?)
    }
}
