//! Reading little-endian fields one after the other.

use super::FormatError;

/// The fields of a frame's payload, or of its header, in order. Knows where it is, so that an error
/// can say so.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Fields<'a> {
    /// `offset`: where `bytes` begin in their frame.
    pub(crate) const fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { rest: bytes, offset }
    }

    /// Where the next field begins, from the frame's beginning.
    pub(crate) const fn offset(&self) -> usize {
        self.offset
    }

    /// What was not read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], FormatError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(FormatError::Short {
            field,
            offset: self.offset as u64,
            needed: len as u64,
            found: self.rest.len() as u64,
        })?;
        self.rest = rest;
        self.offset += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(field, N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, FormatError> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, FormatError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, FormatError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, FormatError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, field: &'static str) -> Result<u128, FormatError> {
        self.array(field).map(u128::from_le_bytes)
    }

    /// Bytes that must be 0.
    pub(crate) fn zeros(&mut self, field: &'static str, len: usize) -> Result<(), FormatError> {
        let at = self.offset;
        let bytes = self.bytes(field, len)?;
        match bytes.iter().position(|byte| *byte != 0) {
            None => Ok(()),
            Some(index) => Err(FormatError::field(field, at + index, 0, bytes.get(index).copied().unwrap_or_default())),
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(self, field: &'static str) -> Result<(), FormatError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FormatError::field(field, self.offset, "no more bytes", self.rest.len())) }
    }
}
