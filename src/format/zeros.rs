//! Runs of pages that hold only zeros.

use super::fields::Fields;
use super::frame::ZEROS_BYTES_MAX;
use super::{FRAME_HEADER_BYTES, FormatError};
use crate::page::{Gfn, PageRun};

/// The most runs in one frame.
pub const ZERO_RUNS_MAX: usize = 65_536;

/// Bytes of one run.
pub(super) const RUN_BYTES: usize = 16;
const _: () = assert!(RUN_BYTES * ZERO_RUNS_MAX == ZEROS_BYTES_MAX as usize);

/// Reads the payload of a zeros frame. The runs are not empty, rise, and have no page in common.
///
/// # Errors
/// The first entry that breaks a rule.
pub fn decode_zeros(payload: &[u8]) -> Result<Vec<PageRun>, FormatError> {
    if payload.is_empty() || !payload.len().is_multiple_of(RUN_BYTES) || payload.len() / RUN_BYTES > ZERO_RUNS_MAX {
        let expected = format!("1 to {ZERO_RUNS_MAX} entries of {RUN_BYTES}");
        return Err(FormatError::field("bytes of zeros", FRAME_HEADER_BYTES, expected, payload.len()));
    }
    let mut fields = Fields::new(payload, FRAME_HEADER_BYTES);
    let mut runs = Vec::with_capacity(payload.len() / RUN_BYTES);
    let mut least = Gfn(0);
    while !fields.rest().is_empty() {
        let at = fields.offset();
        let run = PageRun { first: Gfn(fields.u64("first page of a run")?), count: fields.u64("pages of a run")? };
        if run.first < least {
            return Err(FormatError::field("first page of a run", at, format!("at least {least}"), run.first));
        }
        least = match run.end() {
            Some(end) if run.count > 0 => end,
            _ => return Err(FormatError::field("pages of a run", at + 8, "at least 1, below 2^64 in all", run.count)),
        };
        runs.push(run);
    }
    Ok(runs)
}
