//! The serial port: a 16550 on the console.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_superio::Serial;
use vm_superio::serial::{NoEvents, SerialState};

use super::layout::{SERIAL_IRQ, SERIAL_PORT};
use super::line::IrqLine;
use super::state;
use crate::machine::{DeviceState, StateError};

/// The device, as records name it.
pub(super) const NAME: &str = "serial";
const VERSION: u16 = 1;
/// Registers that are saved, a byte each, before what was received and not yet read.
const REGISTERS: usize = 9;

/// Where the guest's output goes.
pub(in crate::vmm) type Output = Box<dyn Write + Send>;

/// A console that is gone stops no guest.
struct Lenient {
    output: Output,
    failed: bool,
}

impl Lenient {
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(%error, "the guest's console output can't be written, and is dropped");
        }
    }
}

impl Write for Lenient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write_all(bytes);
        self.note(written);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.output.flush();
        self.note(flushed);
        Ok(())
    }
}

pub(super) struct SerialPort {
    line: IrqLine,
    device: Serial<IrqLine, NoEvents, Lenient>,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").field("state", &self.device.state()).finish_non_exhaustive()
    }
}

impl SerialPort {
    pub(super) fn new(vm: Arc<VmFd>, output: Output) -> Self {
        let line = IrqLine { vm, number: SERIAL_IRQ };
        Self { line: line.clone(), device: Serial::new(line, Lenient { output, failed: false }) }
    }

    /// The register behind a port, where it is one of this device's.
    fn register(port: u16) -> Option<u8> {
        u8::try_from(port.checked_sub(SERIAL_PORT)?).ok().filter(|register| *register < 8)
    }

    /// Answers a read; `None` for ports of others.
    pub(super) fn read(&mut self, port: u16) -> Option<u8> {
        Some(self.device.read(Self::register(port)?))
    }

    /// Whether the port is this device's.
    pub(super) fn write(&mut self, port: u16, value: u8) -> io::Result<bool> {
        let Some(register) = Self::register(port) else { return Ok(false) };
        self.device.write(register, value).map_err(failed)?;
        Ok(true)
    }

    /// Receives as much of `bytes` as there is room for, and returns how many.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.device.fifo_capacity() == 0 { Ok(0) } else { self.device.enqueue_raw_bytes(bytes).map_err(failed) }
    }

    pub(super) fn save(&self) -> DeviceState {
        let state = self.device.state();
        let mut data = registers(&state).to_vec();
        data.extend_from_slice(&state.in_buffer);
        DeviceState { name: NAME.to_owned(), index: 0, version: VERSION, data }
    }

    /// Puts saved state back; what it had to say to the interrupt controller it says again.
    pub(super) fn restore(&mut self, saved: &DeviceState) -> Result<(), StateError> {
        state::of_version(saved, VERSION)?;
        let Some((registers, received)) = saved.data.split_first_chunk::<REGISTERS>() else {
            return Err(StateError::Size { piece: "device.serial", expected: REGISTERS, found: saved.data.len() });
        };
        let [low, high, enable, identification, line, line_status, modem, modem_status, scratch] = *registers;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status,
            modem_control: modem,
            modem_status,
            scratch,
            in_buffer: received.to_vec(),
        };
        let trigger = self.line.clone();
        let output = std::mem::replace(self.device.writer_mut(), Lenient { output: Box::new(io::sink()), failed: false });
        self.device = Serial::from_state(&state, trigger, NoEvents, output).map_err(|error| match error {
            vm_superio::serial::Error::FullFifo => state::malformed(saved, REGISTERS, "no more bytes than the port holds"),
            error => StateError::Ioctl { ioctl: "KVM_IRQ_LINE", piece: "device.serial", vcpu: None, source: failed(error) },
        })?;
        Ok(())
    }
}

/// In the order in which they are saved.
const fn registers(state: &SerialState) -> [u8; REGISTERS] {
    [
        state.baud_divisor_low,
        state.baud_divisor_high,
        state.interrupt_enable,
        state.interrupt_identification,
        state.line_control,
        state.line_status,
        state.modem_control,
        state.modem_status,
        state.scratch,
    ]
}

fn failed(error: vm_superio::serial::Error<io::Error>) -> io::Error {
    match error {
        vm_superio::serial::Error::Trigger(error) | vm_superio::serial::Error::IOError(error) => error,
        vm_superio::serial::Error::FullFifo => io::ErrorKind::StorageFull.into(),
    }
}
