//! Records of CPU, VM and device state.

use std::collections::HashSet;

use super::fields::Fields;
use super::{FRAME_HEADER_BYTES, FormatError};
use crate::machine::StateRecord;

/// The most records in an epoch.
pub const STATE_RECORDS_MAX: usize = 65_536;

/// The longest name of a record, in bytes.
pub const STATE_NAME_BYTES_MAX: usize = 64;

/// The most data in one record, in bytes.
pub const STATE_DATA_BYTES_MAX: usize = 16 << 20;

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

/// Reads the payload of a state frame.
///
/// # Errors
/// The first record that breaks a rule or a limit. Nothing larger than the payload is allocated.
pub fn decode_state(payload: &[u8]) -> Result<Vec<StateRecord>, FormatError> {
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
