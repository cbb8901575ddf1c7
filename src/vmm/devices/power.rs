//! Switching off and resetting: ACPI's fixed registers, its reset register, and the keyboard
//! controller's reset line.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::{I8042Device, Trigger};

use super::addresses::{
    I8042_PORT, I8042_PORTS, PM1_CONTROL_PORT, PM1_CONTROL_PORTS, PM1_EVENT_PORT, PM1_EVENT_PORTS, RESET_PORT, RESET_VALUE,
    SLEEP_TYPE_S5,
};
use super::bus::BusRange;
use super::device::{Device, DeviceError, GuestEnd, NOTHING};
use super::parts::Entry;
use super::record::{Fields, RecordName};
use crate::machine::StateError;

pub(super) const ENTRY: Entry = Entry { name: "power", is_virtio: false, pages: 0, make: |_, _| Box::new(Power::new()) };

const RECORD: RecordName = RecordName::only("power", 1);

// Where its ranges begin. Widening; `From` is not const.
const KEYBOARD: u64 = I8042_PORT as u64;
const EVENT: u64 = PM1_EVENT_PORT as u64;
const CONTROL: u64 = PM1_CONTROL_PORT as u64;
const RESET: u64 = RESET_PORT as u64;

/// In the control register: ACPI has the hardware. It is never otherwise here.
const SCI_ENABLE: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7;

/// The line that resets the processor.
#[derive(Clone, Debug, Default)]
struct ResetLine(Arc<AtomicBool>);

impl Trigger for ResetLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug)]
struct Power {
    pm1_enable: [u8; 2],
    pm1_control: [u8; 2],
    keyboard: I8042Device<ResetLine>,
    reset: ResetLine,
    end: Option<GuestEnd>,
}

impl Power {
    fn new() -> Self {
        let reset = ResetLine::default();
        let keyboard = I8042Device::new(reset.clone());
        Self { pm1_enable: [0; 2], pm1_control: SCI_ENABLE.to_le_bytes(), keyboard, reset, end: None }
    }

    fn read_register(&mut self, base: u64, at: u8) -> u8 {
        match base {
            KEYBOARD => self.keyboard.read(at),
            // No event ever happened: the status, in front, is zero.
            EVENT => usize::from(at).checked_sub(2).and_then(|at| self.pm1_enable.get(at).copied()).unwrap_or_default(),
            CONTROL => {
                // That the machine is to sleep is an order and not kept.
                let kept = u16::from_le_bytes(self.pm1_control) & !SLEEP_ENABLE;
                kept.to_le_bytes().get(usize::from(at)).copied().unwrap_or(NOTHING)
            }
            _ => NOTHING,
        }
    }

    fn write_register(&mut self, base: u64, at: u8, value: u8) {
        match base {
            KEYBOARD => {
                // The line above can't fail.
                let _ = self.keyboard.write(at, value);
                if self.reset.0.swap(false, Ordering::Relaxed) {
                    self.end.get_or_insert(GuestEnd::Reset);
                }
            }
            EVENT => {
                if let Some(place) = usize::from(at).checked_sub(2).and_then(|at| self.pm1_enable.get_mut(at)) {
                    *place = value;
                }
            }
            CONTROL => {
                if let Some(place) = self.pm1_control.get_mut(usize::from(at)) {
                    *place = value;
                }
                let control = u16::from_le_bytes(self.pm1_control) | SCI_ENABLE;
                self.pm1_control = control.to_le_bytes();
                let sleep_type = control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                if control & SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_S5) {
                    self.end.get_or_insert(GuestEnd::Poweroff);
                }
            }
            RESET if value == RESET_VALUE => {
                self.end.get_or_insert(GuestEnd::Reset);
            }
            _ => {}
        }
    }
}

impl Device for Power {
    fn ranges(&self) -> Vec<BusRange> {
        vec![
            BusRange::ports(I8042_PORT, I8042_PORTS),
            BusRange::ports(PM1_EVENT_PORT, PM1_EVENT_PORTS),
            BusRange::ports(PM1_CONTROL_PORT, PM1_CONTROL_PORTS),
            BusRange::ports(RESET_PORT, 1_u8),
        ]
    }

    fn read(&mut self, base: u64, offset: u64, data: &mut [u8]) {
        let at = u8::try_from(offset).unwrap_or(u8::MAX);
        data.fill_with(|| self.read_register(base, at));
    }

    fn write(&mut self, base: u64, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let at = u8::try_from(offset).unwrap_or(u8::MAX);
        data.iter().for_each(|byte| self.write_register(base, at, *byte));
        Ok(())
    }

    fn record(&self) -> Option<RecordName> {
        Some(RECORD)
    }

    /// How the run ended, ACPI's enable register, its control register.
    fn save(&self) -> Vec<u8> {
        let end = match self.end {
            None => 0,
            Some(GuestEnd::Poweroff) => 1,
            Some(GuestEnd::Reset) => 2,
        };
        [&[end], &self.pm1_enable[..], &self.pm1_control].concat()
    }

    fn restore(&mut self, mut saved: Fields<'_>) -> Result<(), StateError> {
        let (end, pm1_enable, pm1_control) = (saved.u8()?, saved.bytes()?, saved.bytes()?);
        saved.end()?;
        self.end = match end {
            0 => None,
            1 => Some(GuestEnd::Poweroff),
            2 => Some(GuestEnd::Reset),
            _ => return Err(saved.malformed_at(0, "0, 1 or 2")),
        };
        self.pm1_enable = pm1_enable;
        self.pm1_control = pm1_control;
        Ok(())
    }

    fn end(&self) -> Option<GuestEnd> {
        self.end
    }

    fn is_busy(&self) -> bool {
        self.end.is_some()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn write_16(power: &mut Power, base: u64, offset: u8, value: u16) {
        for (at, byte) in (offset..).zip(value.to_le_bytes()) {
            power.write(base, at.into(), &[byte]).unwrap();
        }
    }

    #[test]
    fn only_the_type_that_is_off_switches_off() {
        let mut power = Power::new();
        assert_eq!(power.read_register(CONTROL, 0), 1);
        // A guest writes the type first, and then the type with the order.
        write_16(&mut power, CONTROL, 0, 5 << 10);
        assert_eq!(power.end(), None);
        write_16(&mut power, CONTROL, 0, 1 << 13 | 3 << 10);
        assert_eq!((power.end(), power.read_register(CONTROL, 1)), (None, 3 << 2));
        write_16(&mut power, CONTROL, 0, 1 << 13 | 5 << 10);
        assert_eq!((power.end(), power.is_busy()), (Some(GuestEnd::Poweroff), true));
    }

    #[test]
    fn three_ways_to_reset() {
        let resets = |base, offset, value| {
            let mut power = Power::new();
            power.write(base, offset, &[value]).unwrap();
            power.end()
        };
        assert_eq!(resets(RESET, 0, RESET_VALUE), Some(GuestEnd::Reset));
        assert_eq!(resets(RESET, 0, 0), None);
        assert_eq!(resets(KEYBOARD, 4, 0xfe), Some(GuestEnd::Reset));
        assert_eq!((resets(KEYBOARD, 4, 0xd1), resets(KEYBOARD, 0, 0xfe)), (None, None));
        assert_eq!(Power::new().read_register(RESET, 0), NOTHING);
    }

    #[test]
    fn what_is_saved_comes_back_and_nothing_else_does() {
        let mut power = Power::new();
        write_16(&mut power, EVENT, 2, 0x120);
        write_16(&mut power, CONTROL, 0, 1 << 13 | 5 << 10);
        let saved = power.save();
        let restore = |data: &[u8]| {
            let mut other = Power::new();
            let record = RECORD.with(data.to_vec());
            other.restore(Fields::of(&record, RECORD).unwrap()).map(|()| (other.save(), other.end()))
        };
        assert_eq!(restore(&saved).unwrap(), (saved, Some(GuestEnd::Poweroff)));
        for data in [&[0; 4][..], &[0; 6], &[3, 0, 0, 0, 0]] {
            restore(data).unwrap_err();
        }
    }
}
