//! Switching off and resetting: ACPI's fixed registers, its reset register, and the keyboard controller's reset line.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use vm_superio::{I8042Device, Trigger};

use super::layout::{
    I8042_PORT, I8042_PORTS, PM1_CONTROL_PORT, PM1_CONTROL_PORTS, PM1_EVENT_PORT, PM1_EVENT_PORTS, RESET_PORT, RESET_VALUE,
    SLEEP_TYPE_S5,
};
use super::state;
use crate::machine::{DeviceState, StateError};

/// The device, as records name it.
pub(super) const NAME: &str = "power";
const VERSION: u16 = 1;
/// How the run ended, ACPI's enable register, its control register.
const BYTES: usize = 5;

/// In the control register: ACPI has the hardware. It is never otherwise here.
const SCI_ENABLE: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7;

/// How a guest ended its own run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestEnd {
    /// It switched the machine off.
    Poweroff,
    /// It reset the machine. It is not started again.
    Reset,
}

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
pub(super) struct Power {
    pm1_enable: [u8; 2],
    pm1_control: [u8; 2],
    keyboard: I8042Device<ResetLine>,
    reset: ResetLine,
    end: Option<GuestEnd>,
}

impl Power {
    pub(super) fn new() -> Self {
        let reset = ResetLine::default();
        let keyboard = I8042Device::new(reset.clone());
        Self { pm1_enable: [0; 2], pm1_control: SCI_ENABLE.to_le_bytes(), keyboard, reset, end: None }
    }

    /// How the guest ended its run, if it did.
    pub(super) const fn end(&self) -> Option<GuestEnd> {
        self.end
    }

    /// Answers a read of one byte; `None` for ports of others.
    pub(super) fn read(&mut self, port: u16) -> Option<u8> {
        if let Some(register) = offset(port, I8042_PORT, I8042_PORTS) {
            return Some(self.keyboard.read(register));
        }
        if let Some(at) = offset(port, PM1_EVENT_PORT, PM1_EVENT_PORTS) {
            // No event ever happened: the status, in front, is zero.
            return Some(usize::from(at).checked_sub(2).and_then(|at| self.pm1_enable.get(at).copied()).unwrap_or_default());
        }
        let at = offset(port, PM1_CONTROL_PORT, PM1_CONTROL_PORTS)?;
        // That the machine is to sleep is an order and not kept.
        let kept = u16::from_le_bytes(self.pm1_control) & !SLEEP_ENABLE;
        kept.to_le_bytes().get(usize::from(at)).copied()
    }

    /// Whether the port is one of these.
    pub(super) fn write(&mut self, port: u16, value: u8) -> bool {
        if let Some(register) = offset(port, I8042_PORT, I8042_PORTS) {
            // The line above can't fail.
            let _ = self.keyboard.write(register, value);
            if self.reset.0.swap(false, Ordering::Relaxed) {
                self.end.get_or_insert(GuestEnd::Reset);
            }
        } else if let Some(at) = offset(port, PM1_EVENT_PORT, PM1_EVENT_PORTS) {
            if let Some(place) = usize::from(at).checked_sub(2).and_then(|at| self.pm1_enable.get_mut(at)) {
                *place = value;
            }
        } else if let Some(at) = offset(port, PM1_CONTROL_PORT, PM1_CONTROL_PORTS) {
            if let Some(place) = self.pm1_control.get_mut(usize::from(at)) {
                *place = value;
            }
            let control = u16::from_le_bytes(self.pm1_control) | SCI_ENABLE;
            self.pm1_control = control.to_le_bytes();
            let sleep_type = control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
            if control & SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_S5) {
                self.end.get_or_insert(GuestEnd::Poweroff);
            }
        } else if port == RESET_PORT {
            if value == RESET_VALUE {
                self.end.get_or_insert(GuestEnd::Reset);
            }
        } else {
            return false;
        }
        true
    }

    pub(super) fn save(&self) -> DeviceState {
        let end = match self.end {
            None => 0,
            Some(GuestEnd::Poweroff) => 1,
            Some(GuestEnd::Reset) => 2,
        };
        let [enable_low, enable_high] = self.pm1_enable;
        let [control_low, control_high] = self.pm1_control;
        let data = vec![end, enable_low, enable_high, control_low, control_high];
        DeviceState { name: NAME.to_owned(), index: 0, version: VERSION, data }
    }

    pub(super) fn restore(&mut self, saved: &DeviceState) -> Result<(), StateError> {
        state::of_version(saved, VERSION)?;
        let Ok([end, enable_low, enable_high, control_low, control_high]) = <[u8; BYTES]>::try_from(&*saved.data) else {
            return Err(StateError::Size { piece: "device.power", expected: BYTES, found: saved.data.len() });
        };
        self.end = match end {
            0 => None,
            1 => Some(GuestEnd::Poweroff),
            2 => Some(GuestEnd::Reset),
            _ => return Err(state::malformed(saved, 0, "0, 1 or 2")),
        };
        self.pm1_enable = [enable_low, enable_high];
        self.pm1_control = [control_low, control_high];
        Ok(())
    }
}

/// The place of `port` among `count` ports from `first` on.
fn offset(port: u16, first: u16, count: u16) -> Option<u8> {
    let at = port.checked_sub(first).filter(|at| *at < count)?;
    u8::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn write_16(power: &mut Power, port: u16, value: u16) {
        for (port, byte) in (port..).zip(value.to_le_bytes()) {
            assert!(power.write(port, byte));
        }
    }

    #[test]
    fn only_the_type_that_is_off_switches_off() {
        let mut power = Power::new();
        assert_eq!(power.read(PM1_CONTROL_PORT), Some(1));
        // A guest writes the type first, and then the type with the order.
        write_16(&mut power, PM1_CONTROL_PORT, 5 << 10);
        assert_eq!(power.end(), None);
        write_16(&mut power, PM1_CONTROL_PORT, 1 << 13 | 3 << 10);
        assert_eq!((power.end(), power.read(PM1_CONTROL_PORT + 1)), (None, Some(3 << 2)));
        write_16(&mut power, PM1_CONTROL_PORT, 1 << 13 | 5 << 10);
        assert_eq!(power.end(), Some(GuestEnd::Poweroff));
    }

    #[test]
    fn three_ways_to_reset() {
        let resets = |port, value| {
            let mut power = Power::new();
            assert!(power.write(port, value));
            power.end()
        };
        assert_eq!(resets(RESET_PORT, RESET_VALUE), Some(GuestEnd::Reset));
        assert_eq!(resets(RESET_PORT, 0), None);
        assert_eq!(resets(0x64, 0xfe), Some(GuestEnd::Reset));
        assert_eq!((resets(0x64, 0xd1), resets(0x60, 0xfe)), (None, None));
        assert!(!Power::new().write(0x3f8, 0));
        assert_eq!(Power::new().read(0x606), None);
    }

    #[test]
    fn what_is_saved_comes_back_and_nothing_else_does() {
        let mut power = Power::new();
        write_16(&mut power, PM1_EVENT_PORT + 2, 0x120);
        write_16(&mut power, PM1_CONTROL_PORT, 1 << 13 | 5 << 10);
        let saved = power.save();
        let mut other = Power::new();
        other.restore(&saved).unwrap();
        assert_eq!((other.save(), other.end()), (saved.clone(), Some(GuestEnd::Poweroff)));
        for (index, version, data) in [
            (1, 1, saved.data.clone()),
            (0, 2, saved.data.clone()),
            (0, 1, vec![0; 4]),
            (0, 1, vec![0; 6]),
            (0, 1, vec![3, 0, 0, 0, 0]),
        ] {
            let name = NAME.to_owned();
            Power::new().restore(&DeviceState { name, index, version, data }).unwrap_err();
        }
    }
}
