//! The serial port: a 16550 on the console.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use acpi_tables::Aml;
use acpi_tables::aml::{Device as AmlDevice, EISAName, IO, Interrupt, Name, ResourceTemplate, ZERO};
use vm_superio::Serial;
use vm_superio::serial::{NoEvents, SerialState};

use super::addresses::{SERIAL_IRQ, SERIAL_PORT, SERIAL_PORTS};
use super::bus::BusRange;
use super::device::{Device, DeviceError};
use super::irq_line::Pulse;
use super::parts::{Entry, Output, Parts};
use super::record::{Fields, RecordName};
use crate::machine::StateError;
use crate::page::EpochId;
use crate::vmm::outputs::{ConsoleOut, Outlet};

pub(super) const ENTRY: Entry =
    Entry { name: "serial", is_virtio: false, pages: 0, make: |parts, _| Box::new(SerialPort::new(parts)) };

const RECORD: RecordName = RecordName::only("serial", 1);
/// Registers that are saved, a byte each, before what was received and not yet read.
const REGISTERS: usize = 9;

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

struct SerialPort {
    line: Pulse,
    port: Serial<Pulse, NoEvents, Lenient>,
    /// Where its output leaves, where it waits.
    outlet: Option<Arc<Outlet>>,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").field("state", &self.port.state()).finish_non_exhaustive()
    }
}

impl SerialPort {
    fn new(parts: &Parts<'_>) -> Self {
        let line = Pulse((parts.line)(SERIAL_IRQ));
        let outlet = parts.console.cloned();
        let output = outlet.clone().map_or_else(parts.output, |outlet| Box::new(ConsoleOut::new(outlet)));
        Self { line: line.clone(), port: Serial::new(line, Lenient { output, failed: false }), outlet }
    }
}

impl Device for SerialPort {
    fn ranges(&self) -> Vec<BusRange> {
        vec![BusRange::ports(SERIAL_PORT, SERIAL_PORTS)]
    }

    fn read(&mut self, _base: u64, offset: u64, data: &mut [u8]) {
        let register = u8::try_from(offset).unwrap_or_default();
        data.fill_with(|| self.port.read(register));
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let register = u8::try_from(offset).unwrap_or_default();
        data.iter().try_for_each(|byte| self.port.write(register, *byte).map_err(failed)).map_err(DeviceError::Interrupt)
    }

    fn describe(&self, aml: &mut Vec<u8>) {
        let name = EISAName::new("PNP0501");
        let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, SERIAL_PORTS);
        let interrupt = Interrupt::new(true, true, false, false, SERIAL_IRQ);
        AmlDevice::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &name),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_DDN".into(), &"COM1"),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
            ],
        )
        .to_aml_bytes(aml);
    }

    fn record(&self) -> Option<RecordName> {
        Some(RECORD)
    }

    fn save(&self) -> Vec<u8> {
        let state = self.port.state();
        let mut data = registers(&state).to_vec();
        data.extend_from_slice(&state.in_buffer);
        data
    }

    /// What it had to say to the interrupt controller it says again.
    fn restore(&mut self, mut saved: Fields<'_>) -> Result<(), StateError> {
        let [low, high, enable, identification, line, line_status, modem, modem_status, scratch] = saved.bytes::<REGISTERS>()?;
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
            in_buffer: saved.rest().to_vec(),
        };
        let trigger = self.line.clone();
        let nowhere = Lenient { output: Box::new(io::sink()), failed: false };
        let restored = Serial::from_state(&state, trigger, NoEvents, nowhere);
        let mut port = restored.map_err(|error| match error {
            vm_superio::serial::Error::FullFifo => saved.malformed_at(REGISTERS, "no more bytes than the port holds"),
            error => StateError::Ioctl { ioctl: "KVM_IRQ_LINE", piece: "device.serial", vcpu: None, source: failed(error) },
        })?;
        std::mem::swap(port.writer_mut(), self.port.writer_mut());
        self.port = port;
        self.outlet.iter().for_each(|outlet| outlet.roll_back());
        Ok(())
    }

    fn receive(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.port.fifo_capacity() == 0 { Ok(0) } else { self.port.enqueue_raw_bytes(bytes).map_err(failed) }
    }

    fn wants_epoch(&self) -> bool {
        self.outlet.as_ref().is_some_and(|outlet| outlet.wants_epoch())
    }

    fn note_capture(&mut self) {
        self.outlet.iter().for_each(|outlet| outlet.note_capture());
    }

    fn note_taken(&mut self, epoch: EpochId) {
        self.outlet.iter().for_each(|outlet| outlet.note_taken(epoch));
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::vmm::devices::testing::Machine;

    #[test]
    fn what_was_received_and_not_read_is_saved() {
        let mut machine = Machine::new(0);
        let port = machine.device("serial");
        assert_eq!(port.receive(b"abc").unwrap(), 3);
        let saved = RECORD.with(port.save());
        let mut other = Machine::new(0);
        let port = other.device("serial");
        port.restore(Fields::of(&saved, RECORD).unwrap()).unwrap();
        assert_eq!(port.save(), saved.data);
        let mut read = [0; 3];
        port.read(SERIAL_PORT.into(), 0, &mut read);
        assert_eq!(read, *b"abc");
    }

    #[test]
    fn more_than_the_port_holds_is_refused() {
        let mut machine = Machine::new(0);
        let port = machine.device("serial");
        let mut saved = RECORD.with(port.save());
        saved.data.resize(REGISTERS + 65, b'x');
        let error = port.restore(Fields::of(&saved, RECORD).unwrap()).unwrap_err();
        assert!(matches!(error, StateError::Malformed { offset: REGISTERS, .. }), "{error}");
    }
}
