//! A device's record: its name, and its bytes as fields.

use crate::machine::{DeviceState, StateError};

/// Which record a device saves, and takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vmm) struct RecordName {
    /// The kind of device.
    pub(super) name: &'static str,
    /// Which of its kind.
    pub(super) index: u32,
    /// The version of the layout. No other is taken.
    pub(super) version: u16,
}

impl RecordName {
    /// The only device of its kind.
    pub(super) const fn only(name: &'static str, version: u16) -> Self {
        Self { name, index: 0, version }
    }

    /// Whether `saved` is a record of this device, of whatever version.
    pub(super) fn is_of(&self, saved: &DeviceState) -> bool {
        (self.name, self.index) == (&*saved.name, saved.index)
    }

    /// The record with these bytes.
    pub(super) fn with(&self, data: Vec<u8>) -> DeviceState {
        DeviceState { name: self.name.to_owned(), index: self.index, version: self.version, data }
    }

    /// The name as a chain has it.
    fn in_chain(name: &str) -> String {
        format!("device.{name}")
    }

    /// It is not there.
    pub(super) fn missing(&self) -> StateError {
        StateError::MissingRecord { name: Self::in_chain(self.name), index: self.index }
    }
}

/// Nobody takes it.
pub(in crate::vmm) fn unknown(saved: &DeviceState) -> StateError {
    StateError::UnknownRecord { name: RecordName::in_chain(&saved.name), index: saved.index, version: saved.version }
}

/// It is there twice.
pub(super) fn duplicate(saved: &DeviceState) -> StateError {
    StateError::Duplicate { name: RecordName::in_chain(&saved.name), index: saved.index }
}

/// The fields of a record, one behind the other, the lowest byte first.
#[derive(Debug)]
pub(in crate::vmm) struct Fields<'s> {
    saved: &'s DeviceState,
    at: usize,
}

impl<'s> Fields<'s> {
    /// The fields of `saved`, which must be a record `name`.
    ///
    /// # Errors
    /// [`StateError::UnknownRecord`].
    pub(super) fn of(saved: &'s DeviceState, name: RecordName) -> Result<Self, StateError> {
        let is_known = name.is_of(saved) && saved.version == name.version;
        if is_known { Ok(Self { saved, at: 0 }) } else { Err(unknown(saved)) }
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`StateError::Malformed`] where there are fewer.
    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let field = self.saved.data.get(self.at..).and_then(|left| left.first_chunk()).copied();
        let field = field.ok_or_else(|| self.malformed("more bytes"))?;
        self.at += N;
        Ok(field)
    }

    pub(super) fn u8(&mut self) -> Result<u8, StateError> {
        self.bytes().map(u8::from_le_bytes)
    }

    /// A byte that says yes or no.
    pub(super) fn flag(&mut self) -> Result<bool, StateError> {
        let byte = self.u8()?;
        self.is_set(byte.into())
    }

    /// As [`flag`](Self::flag), in two bytes.
    pub(super) fn wide_flag(&mut self) -> Result<bool, StateError> {
        let word = self.u16()?;
        self.is_set(word)
    }

    fn is_set(&self, field: u16) -> Result<bool, StateError> {
        match field {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("0 or 1")),
        }
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

    pub(super) fn i64(&mut self) -> Result<i64, StateError> {
        self.bytes().map(i64::from_le_bytes)
    }

    /// Where the next field begins.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    /// All bytes that are left.
    pub(super) fn rest(&mut self) -> &'s [u8] {
        let rest = self.saved.data.get(self.at..).unwrap_or_default();
        self.at = self.saved.data.len();
        rest
    }

    /// What is read next, or was read last, can't be.
    pub(super) fn malformed(&self, expected: &'static str) -> StateError {
        self.malformed_at(self.at, expected)
    }

    /// What is there can't be.
    pub(super) fn malformed_at(&self, offset: usize, expected: &'static str) -> StateError {
        StateError::Malformed { name: RecordName::in_chain(&self.saved.name), index: self.saved.index, offset, expected }
    }

    /// That nothing is left.
    ///
    /// # Errors
    /// [`StateError::Malformed`].
    pub(super) fn end(&self) -> Result<(), StateError> {
        if self.at == self.saved.data.len() { Ok(()) } else { Err(self.malformed("the end")) }
    }
}
