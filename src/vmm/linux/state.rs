//! What the devices' saved states have in common.

use crate::machine::{DeviceState, StateError};

/// That `saved` has this version, and is the only one of its kind.
pub(super) fn of_version(saved: &DeviceState, version: u16) -> Result<(), StateError> {
    if (saved.index, saved.version) == (0, version) { Ok(()) } else { Err(unknown(saved)) }
}

/// Nobody takes it.
pub(super) fn unknown(saved: &DeviceState) -> StateError {
    StateError::UnknownRecord { name: record_name(saved), index: saved.index, version: saved.version }
}

/// Its bytes can't be.
pub(super) fn malformed(saved: &DeviceState, offset: usize, expected: &'static str) -> StateError {
    StateError::Malformed { name: record_name(saved), index: saved.index, offset, expected }
}

fn record_name(saved: &DeviceState) -> String {
    format!("device.{}", saved.name)
}
