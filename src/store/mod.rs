//! A chain of checkpoints in a directory: append, commit, recover, read.
//!
//! [`Writer`] is the one writer of a chain and the place that an engine commits to; [`Chain`] reads one, also while a writer
//! appends. `docs/format.md` says what the files hold and argues what a crash can leave.

mod error;
mod medium;
mod read;
mod scan;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod writer;

pub mod repair;
pub mod verify;

pub use error::StoreError;
pub(crate) use error::causes;
pub use read::Chain;
pub(crate) use read::{FrameAt, SegmentReader};
pub use scan::{Damage, Epoch, TornTail};
pub use writer::{NewChain, Recovered, Writer, WriterOptions};

/// The file that says what a chain is.
const IDENTITY: &str = "identity.json";

/// What becomes [`IDENTITY`] once it is whole and synced.
const IDENTITY_DRAFT: &str = "identity.tmp";

/// The file that the one writer holds a lock on.
const LOCK: &str = "lock";

/// The name of a segment's file.
pub(crate) fn segment_name(number: u32) -> String {
    format!("segment-{number:08}")
}

/// The number of the segment that a file's name stands for, where it stands for one.
fn segment_number(name: &str) -> Option<u32> {
    let digits =
        name.strip_prefix("segment-").filter(|digits| digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|number| *number > 0)
}
