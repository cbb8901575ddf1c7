//! Places of a chain that are not what they must be.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::format::FormatError;
use crate::page::EpochId;

/// A place in a chain that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// The epoch that the place belongs to: the one that should stand there, if that cannot be
    /// read.
    pub epoch: EpochId,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Damage {
    /// What is wrong with the frame that begins at `offset` of `file`.
    pub(in crate::store) fn new(file: &Path, epoch: EpochId, offset: u64, error: &FormatError) -> Self {
        let offset = offset.saturating_add(error.offset());
        Self { file: file.to_owned(), offset, epoch, expected: error.expected(), found: error.found() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, epoch, expected, found } = self;
        write!(f, "{} at offset {offset}, epoch {epoch}: expected {expected}, found {found}", file.display())
    }
}

/// What stands behind the last whole epoch of a chain, and was never said to be durable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TornTail {
    /// The file in which it begins.
    pub file: PathBuf,
    /// Where in the file it begins, in bytes: a writer cuts it off here.
    pub offset: u64,
    /// How many bytes there are of it, in this file and those behind it.
    pub bytes: u64,
    /// The first place in it that is not what it must be, and why.
    pub reason: Damage,
}

impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, bytes, reason } = self;
        write!(f, "torn tail of {bytes} bytes from {} at offset {offset} on ({reason})", file.display())
    }
}
