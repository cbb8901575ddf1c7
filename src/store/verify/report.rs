//! What `verify` is asked and what it answers.

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use crate::page::EpochId;

/// How to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Whether to recompute audit digests. Without them no page's term is kept, but every page is still decoded.
    pub audits: bool,
    /// How many pieces of damage to list; the others are only counted.
    pub damage_max: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { audits: true, damage_max: 1000 }
    }
}

/// How far `verify` has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The number of the segment in hand.
    pub segment: u32,
    /// Bytes of all segments that are done with.
    pub bytes: u64,
    /// Bytes of all segments.
    pub bytes_total: u64,
    /// The newest epoch whose commit frame was read.
    pub epoch: EpochId,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Epochs that are whole and depend on nothing that is damaged: those before the first damage. An audit that does not match does
    /// not end this count, since the epoch is in the chain as it was written.
    pub epochs: u64,
    /// Epochs found whole behind the first damage. Nothing may be restored from them.
    pub epochs_behind_damage: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of the segment files.
    pub bytes: u64,
    /// Audit digests that were compared with what the chain gives.
    pub audits_checked: u64,
    /// Of these, how many differ. `damage` lists an audit only where the difference is not the one of the audit before: one page
    /// that was missed spoils every audit from there on.
    pub audits_failed: u64,
    /// Audit digests that could not be compared, because pages before them are damaged or because the options say so.
    pub audits_unchecked: u64,
    /// The last of `epochs`.
    pub newest: Option<EpochId>,
    /// What is wrong, in the order of the chain.
    pub damage: Vec<Damage>,
    /// Damage beyond the number that the options allow to list.
    pub damage_omitted: u64,
    /// What was appended and never committed.
    pub torn_tail: Option<TornTail>,
}

impl VerifyReport {
    /// Whether no damage was found. A torn tail is none.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.damage_omitted == 0
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file's name in the chain's directory.
    pub file: String,
    /// Where in the file, in bytes: the field that is wrong, or the frame where it is the frame as a whole.
    pub offset: u64,
    /// The epoch that it belongs to, or the one that should stand there; `None` where no epoch is concerned.
    pub epoch: Option<u64>,
    /// What kind of thing is wrong.
    pub kind: DamageKind,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// The promise of `docs/format.md` that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DamageKind {
    /// Not the first bytes of a frame.
    Magic,
    /// A frame's header does not match its checksum.
    HeaderChecksum,
    /// A frame of another chain.
    Chain,
    /// A reserved field is not 0.
    Reserved,
    /// A kind of frame that is unknown or may not stand there.
    Kind,
    /// A length that its kind of frame cannot have.
    Length,
    /// The file ends too early.
    Truncated,
    /// A payload does not match its checksum.
    PayloadChecksum,
    /// Padding that is not zero.
    Padding,
    /// A frame's position in its epoch.
    Sequence,
    /// An epoch's number.
    Epoch,
    /// The epoch before is not the one that the commit frame names, or not the same.
    Parent,
    /// The hash of an epoch's headers.
    FramesHash,
    /// A commit frame's counts of frames, blocks, bytes or pages.
    Counts,
    /// A commit frame's trigger or flags.
    Flags,
    /// A commit frame calls an epoch durable that was not there.
    Durable,
    /// A segment's header.
    SegmentHeader,
    /// A segment is not there.
    MissingSegment,
    /// A close frame names another epoch than the one before it.
    Close,
    /// A block's list of pages does not match its checksum.
    ListChecksum,
    /// A block of pages is not laid out as it must be.
    Block,
    /// Compressed pages that do not decompress to what they must.
    Zstd,
    /// Changes of pages that are not laid out as they must be, or that do not give the page that they were made of.
    Changes,
    /// A list of zero pages is not laid out as it must be.
    Zeros,
    /// A page outside the memory of the chain's machine.
    GfnOutOfMemory,
    /// A list of state records is not laid out as it must be.
    StateRecords,
    /// The memory that the chain gives is not the memory that the machine had.
    AuditMismatch,
}

/// What stands behind the last whole epoch and was never committed. A writer that opens the chain cuts it off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TornTail {
    /// The name of the file in which it begins.
    pub file: String,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Bytes from there to the chain's end, segments that follow included.
    pub bytes: u64,
    /// The epoch that it is a part of.
    pub epoch: u64,
}

/// Why there is nothing to verify.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// There is no such directory.
    #[error("{} does not exist", path.display())]
    NoDirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// There is something else than a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// The directory holds no chain.
    #[error("{} is missing: the directory holds no chain", path.display())]
    NoIdentity {
        /// The identity file.
        path: PathBuf,
    },
    /// The identity is not as it must be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Identity {
        /// The identity file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The chain is of another format version.
    #[error("{}: expected format 1 or 2, found format {found}", path.display())]
    Version {
        /// The identity file.
        path: PathBuf,
        /// The version that it names.
        found: String,
    },
    /// The identity or a segment is a directory, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What it is called.
        path: PathBuf,
    },
    /// The medium gave an error.
    #[error("{} could not be read at offset {offset}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Where in it, in bytes; 0 for a directory and for opening.
        offset: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Something that is not as `docs/format.md` says, before it is known whether it is damage or a torn tail.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: DamageKind,
    pub(super) offset: u64,
    pub(super) expected: String,
    pub(super) found: String,
}

impl Fault {
    pub(super) fn new(kind: DamageKind, offset: u64, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { kind, offset, expected: expected.into(), found: found.into() }
    }
}
