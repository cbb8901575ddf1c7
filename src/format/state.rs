//! Records of CPU, VM and device state.

use std::borrow::Cow;
use std::collections::HashSet;

use super::StateRecord;
use super::fields::Fields;
use super::{FRAME_HEADER_BYTES, FormatError};

/// The most records in an epoch.
pub const STATE_RECORDS_MAX: usize = 65_536;

/// The longest name of a record, in bytes.
pub const STATE_NAME_BYTES_MAX: usize = 64;

/// The most data in one record, in bytes.
pub const STATE_DATA_BYTES_MAX: usize = 16 << 20;

/// Bytes before the records.
const HEAD_BYTES: usize = 8;

const WORD_BYTES: usize = 8;

/// The most bytes of packed records: what fits into a frame's payload when they are not packed.
const PACKED_BYTES_MAX: usize = (64 << 20) - HEAD_BYTES;

/// Bytes of a record before its name.
const RECORD_BYTES: usize = 16;

/// Appends the payload of a state frame to `out`.
pub(super) fn encode_state(out: &mut Vec<u8>, records: &[StateRecord]) -> Result<(), FormatError> {
    let count = u32::try_from(records.len()).ok().filter(|_| records.len() <= STATE_RECORDS_MAX);
    let count = count.ok_or_else(|| FormatError::input("state records", format!("up to {STATE_RECORDS_MAX}"), records.len()))?;
    out.extend(count.to_le_bytes());
    out.extend([0; 4]);
    let begin = out.len();
    let mut seen = HashSet::with_capacity(records.len());
    for record in records {
        let StateRecord { name, index, version, data } = record;
        let name_bytes = u16::try_from(name.len()).ok().filter(|_| is_name(name.as_bytes()));
        let name_bytes =
            name_bytes.ok_or_else(|| FormatError::input("name of a state record", NAME_RULE, format!("{name:.80?}")))?;
        if *version == 0 {
            return Err(FormatError::input("version of a state record", "at least 1", format!("0 in {name}")));
        }
        let data_bytes = u32::try_from(data.len()).ok().filter(|_| data.len() <= STATE_DATA_BYTES_MAX);
        let data_bytes = data_bytes.ok_or_else(|| {
            FormatError::input(
                "bytes of a state record",
                format!("up to {STATE_DATA_BYTES_MAX}"),
                format!("{} in {name}", data.len()),
            )
        })?;
        if !seen.insert((name.as_str(), *index)) {
            return Err(FormatError::input("state records", "each name and index once", format!("{name} {index} again")));
        }
        out.extend(name_bytes.to_le_bytes());
        out.extend(version.to_le_bytes());
        out.extend(index.to_le_bytes());
        out.extend(data_bytes.to_le_bytes());
        out.extend([0; 4]);
        out.extend(name.as_bytes());
        out.extend(data);
        let used = out.len() - begin;
        out.resize(begin + used.next_multiple_of(8), 0);
    }
    Ok(())
}

/// Packs the payload of a state frame that stands at the end of `out` from `begin` on, if that
/// makes it smaller. More records than may be unpacked again stay as they are: no frame is so
/// large.
pub(super) fn pack_state(out: &mut Vec<u8>, begin: usize) {
    let end = out.len();
    let records = begin + HEAD_BYTES;
    let Some((bytes, length)) = end.checked_sub(records).and_then(|bytes| Some((bytes, u32::try_from(bytes).ok()?))) else {
        return;
    };
    if bytes > PACKED_BYTES_MAX {
        return;
    }
    let bits = bytes.div_ceil(64 * WORD_BYTES) * WORD_BYTES;
    out.resize(end + bits, 0);
    for word in 0..bytes / WORD_BYTES {
        let at = records + word * WORD_BYTES;
        let Some(value) = out.get(at..at + WORD_BYTES).and_then(|word| <[u8; WORD_BYTES]>::try_from(word).ok()) else { return };
        if value != [0; WORD_BYTES] {
            out.extend_from_slice(&value);
            if let Some(bits) = out.get_mut(end + word / 8) {
                *bits |= 1 << (word % 8);
            }
        }
    }
    if out.len() - end < bytes {
        out.drain(records..end);
        if let Some(place) = out.get_mut(begin + 4..records) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    } else {
        out.truncate(end);
    }
}

/// Whether the records of a state frame's payload are packed.
fn is_packed(payload: &[u8]) -> bool {
    payload.get(4..HEAD_BYTES).is_some_and(|length| length != [0; 4])
}

/// The payload of a state frame with its records unpacked: what [`hash_bytes`](super::hash_bytes)
/// gives the state's hash of.
///
/// # Errors
/// A length that packed records cannot have; bits behind the last word; more or fewer words than
/// bits. At most 64 times the payload is allocated.
pub fn unpack_state(payload: &[u8]) -> Result<Cow<'_, [u8]>, FormatError> {
    if !is_packed(payload) {
        return Ok(Cow::Borrowed(payload));
    }
    let mut fields = Fields::new(payload, FRAME_HEADER_BYTES);
    let count = fields.bytes("number of records", 4)?;
    let at = fields.offset();
    let length = fields.u32("bytes of packed records")?;
    let bytes = usize::try_from(length).ok().filter(|bytes| bytes.is_multiple_of(WORD_BYTES) && *bytes <= PACKED_BYTES_MAX);
    let bytes = bytes.ok_or_else(|| {
        FormatError::field("bytes of packed records", at, format!("a multiple of 8, at most {PACKED_BYTES_MAX}"), length)
    })?;
    let at = fields.offset();
    let bits = fields.bytes("bits of words", bytes.div_ceil(64 * WORD_BYTES) * WORD_BYTES)?;
    let mut plain = Vec::with_capacity(HEAD_BYTES + bytes);
    plain.extend_from_slice(count);
    plain.extend_from_slice(&[0; 4]);
    for word in 0..bits.len() * 8 {
        let set = bits.get(word / 8).is_some_and(|byte| byte & 1 << (word % 8) != 0);
        if word < bytes / WORD_BYTES {
            plain.extend_from_slice(if set { fields.bytes("words", WORD_BYTES)? } else { &[0; WORD_BYTES] });
        } else if set {
            return Err(FormatError::field("bits of words", at + word / 8, "none behind the last word", word));
        }
    }
    fields.end("state")?;
    Ok(Cow::Owned(plain))
}

/// Reads the payload of a state frame, packed or not.
///
/// # Errors
/// As [`unpack_state`]; the first record that breaks a rule or a limit. Nothing larger than the
/// unpacked payload is allocated.
pub fn decode_state(payload: &[u8]) -> Result<Vec<StateRecord>, FormatError> {
    decode_plain_state(&unpack_state(payload)?)
}

fn decode_plain_state(payload: &[u8]) -> Result<Vec<StateRecord>, FormatError> {
    let mut fields = Fields::new(payload, FRAME_HEADER_BYTES);
    let count = fields.u32("number of records")?;
    fields.zeros("reserved", 4)?;
    // A record takes 24 bytes or more: the payload's own size bounds what is allocated.
    let fit = fields.rest().len() / (RECORD_BYTES + 8);
    let count = usize::try_from(count).ok().filter(|count| *count <= STATE_RECORDS_MAX && *count <= fit).ok_or_else(|| {
        FormatError::field("number of records", FRAME_HEADER_BYTES, format!("up to {}", fit.min(STATE_RECORDS_MAX)), count)
    })?;
    let mut records = Vec::with_capacity(count);
    let mut seen = HashSet::with_capacity(count);
    for _ in 0..count {
        let at = fields.offset();
        let name_bytes = usize::from(fields.u16("bytes of name")?);
        let version = fields.u16("version of a record")?;
        let index = fields.u32("index of a record")?;
        let data_bytes = fields.u32("bytes of data")?;
        fields.zeros("reserved", 4)?;
        if !(1..=STATE_NAME_BYTES_MAX).contains(&name_bytes) {
            return Err(FormatError::field("bytes of name", at, format!("1 to {STATE_NAME_BYTES_MAX}"), name_bytes));
        }
        if version == 0 {
            return Err(FormatError::field("version of a record", at + 2, "at least 1", version));
        }
        let data_bytes = usize::try_from(data_bytes)
            .ok()
            .filter(|bytes| *bytes <= STATE_DATA_BYTES_MAX)
            .ok_or_else(|| FormatError::field("bytes of data", at + 8, format!("up to {STATE_DATA_BYTES_MAX}"), data_bytes))?;
        let name = fields.bytes("name of a record", name_bytes)?;
        let name = std::str::from_utf8(name).ok().filter(|name| is_name(name.as_bytes()));
        let name = name.ok_or_else(|| FormatError::field("name of a record", at + RECORD_BYTES, NAME_RULE, "other bytes"))?;
        let data = fields.bytes("data of a record", data_bytes)?;
        let used = name_bytes + data_bytes;
        fields.zeros("padding of a record", used.next_multiple_of(8) - used)?;
        if !seen.insert((name, index)) {
            return Err(FormatError::field("name of a record", at, "each name and index once", format!("{name} {index} again")));
        }
        records.push(StateRecord { name: name.to_owned(), index, version, data: data.to_vec() });
    }
    fields.end("state")?;
    Ok(records)
}

const NAME_RULE: &str = "1 to 64 of a-z 0-9 . - _";

fn is_name(name: &[u8]) -> bool {
    (1..=STATE_NAME_BYTES_MAX).contains(&name.len())
        && name.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}
