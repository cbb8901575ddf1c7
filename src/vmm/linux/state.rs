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

/// The fields of a device's saved state, one behind the other, the lowest byte first.
pub(super) struct Fields<'s> {
    saved: &'s DeviceState,
    at: usize,
}

impl<'s> Fields<'s> {
    /// The fields of `saved`, whose version must be this one.
    pub(super) fn of_version(saved: &'s DeviceState, version: u16) -> Result<Self, StateError> {
        if saved.version == version { Ok(Self { saved, at: 0 }) } else { Err(unknown(saved)) }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let field = self.saved.data.get(self.at..).and_then(|left| left.first_chunk()).copied();
        let field = field.ok_or_else(|| self.malformed("more bytes"))?;
        self.at += N;
        Ok(field)
    }

    pub(super) fn u16(&mut self) -> Result<u16, StateError> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, StateError> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, StateError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// What is read next, or was read last, can't be.
    pub(super) fn malformed(&self, expected: &'static str) -> StateError {
        malformed(self.saved, self.at, expected)
    }

    /// That nothing is left.
    pub(super) fn end(self) -> Result<(), StateError> {
        if self.at == self.saved.data.len() { Ok(()) } else { Err(self.malformed("the end")) }
    }
}
