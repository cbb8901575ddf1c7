//! What `verify` is asked and what it answers.

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::damage::{Damage, DamageKind};
use super::frame::FORMAT;
use crate::page::EpochId;

/// How to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Whether to recompute audit digests. Without them no page's term is kept, but every page is
    /// still decoded.
    pub audits: bool,
    /// How many pieces of damage to list; the others are only counted.
    pub damage_max: usize,
    /// Only this branch, `main` for the chain that is none, with as much of other chains as it
    /// builds on. By default, the whole store.
    pub branch: Option<String>,
    /// Only what is needed to restore this epoch, of that branch or of `main`. Nothing else is
    /// read, so nothing is said of it.
    pub epoch: Option<EpochId>,
    /// Segments that are open at a time, at most, however many there are and whatever branches off;
    /// never more than a quarter of what the process may have open. At least 1; 64 by default.
    pub open_files: usize,
}

/// Segments that are open at a time where nobody says otherwise.
pub(super) const OPEN_FILES: usize = 64;

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { audits: true, damage_max: 1000, branch: None, epoch: None, open_files: OPEN_FILES }
    }
}

/// How far `verify` has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The first number of the segment in hand.
    pub segment: u32,
    /// Bytes that are done with.
    pub bytes: u64,
    /// Bytes in all; 0 where it is found out on the way what is needed.
    pub bytes_total: u64,
    /// The newest epoch whose commit frame was read.
    pub epoch: EpochId,
    /// How many epochs' commit frames were read.
    pub epochs: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Epochs that are whole and depend on nothing that is damaged: those before the first damage.
    /// An audit that does not match does not end this count, since the epoch is in the chain as it
    /// was written.
    pub epochs: u64,
    /// Epochs found whole behind the first damage. Nothing may be restored from them.
    pub epochs_behind_damage: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of the segment files; where only one epoch was asked for, bytes that were read.
    pub bytes: u64,
    /// Audit digests that were compared with what the chain gives.
    pub audits_checked: u64,
    /// Of these, how many differ. `damage` lists an audit only where the difference is not the one
    /// of the audit before: one page that was missed spoils every audit from there on.
    pub audits_failed: u64,
    /// Audit digests that could not be compared, because pages before them are damaged or because
    /// the options say so.
    pub audits_unchecked: u64,
    /// Indexes that were compared with all frames of their segment.
    pub indexes_checked: u64,
    /// Indexes that could not be compared, because their segment is damaged or torn, or was not
    /// read to its end.
    pub indexes_unchecked: u64,
    /// Segments without an index, where a writer has gone on to the next segment. Only speed is
    /// lost.
    pub indexes_missing: u64,
    /// The newest of the epochs counted in `epochs` that are in the chain that was asked for, which
    /// is `main` by default.
    pub newest: Option<EpochId>,
    /// What was found by chain: `main` first. The numbers above are sums of these.
    pub branches: Vec<BranchReport>,
    /// What was needed for the one epoch that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<EpochReport>,
    /// What is wrong, in the order of the chain.
    pub damage: Vec<Damage>,
    /// Damage beyond the number that the options allow to list.
    pub damage_omitted: u64,
    /// What stands behind the last whole epoch of that chain.
    pub torn_tail: Option<TornTail>,
    /// Files that nothing needs. They are no damage.
    pub leftovers: Vec<Leftover>,
}

impl VerifyReport {
    /// Whether no damage was found. A torn tail is none, nor are files that are left over.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.damage_omitted == 0
    }

    /// Whether all damage is in indexes: every epoch can be restored.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.damage_omitted == 0 && self.damage.iter().all(|damage| damage.kind == DamageKind::Index)
    }
}

/// What was found in one chain of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BranchReport {
    /// Its name.
    pub name: String,
    /// The branch that it begins in; `None` for `main`.
    pub of: Option<String>,
    /// The epoch that it begins at.
    pub begins_at: Option<EpochId>,
    /// As [`VerifyReport::epochs`].
    pub epochs: u64,
    /// As [`VerifyReport::epochs_behind_damage`].
    pub epochs_behind_damage: u64,
    /// The last of `epochs`.
    pub newest: Option<EpochId>,
    /// Segment files.
    pub segments: u64,
    /// Bytes of the segment files.
    pub bytes: u64,
    /// How many things are wrong in this chain itself, indexes and audits aside.
    pub damaged: u64,
    /// What stands behind its last whole epoch.
    pub torn_tail: Option<TornTail>,
    /// Where `newest` ends.
    #[serde(skip)]
    pub(in crate::store) newest_end: Option<End>,
    /// Its identifier.
    #[serde(skip)]
    pub(in crate::store) chain: [u8; 16],
    /// The path of its mark in the store's directory.
    #[serde(skip)]
    pub(in crate::store) mark: String,
    /// Its segments in order.
    #[serde(skip)]
    pub(in crate::store) files: Vec<SegmentFile>,
}

/// A segment's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct SegmentFile {
    /// Its path in the store's directory.
    pub(in crate::store) segment: String,
    /// Whether only a compaction can have made it.
    pub(in crate::store) compacted: bool,
    /// Bytes of the segment.
    pub(in crate::store) bytes: u64,
    /// The path of its index, if it has one.
    pub(in crate::store) index: Option<String>,
}

/// Where an epoch ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct End {
    /// The file's path in the store's directory.
    pub(in crate::store) file: String,
    /// Bytes from the beginning of the file.
    pub(in crate::store) offset: u64,
    /// The epoch's identity.
    pub(in crate::store) identity: u128,
}

/// What one epoch needs, and what comes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EpochReport {
    /// The epoch.
    pub epoch: EpochId,
    /// The chain that it is in.
    pub branch: String,
    /// Pages that are not zero.
    pub pages: u64,
    /// Pages frames that were decoded.
    pub blocks: u64,
    /// The digest of memory, in hexadecimal digits; none where damage leaves it unknown.
    pub memory: Option<String>,
    /// The hash of state, as `digest` prints it.
    pub state: Option<String>,
}

/// A file that nothing needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// Its path in the store's directory.
    pub file: String,
    /// What it is.
    pub kind: LeftoverKind,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why nothing needs a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeftoverKind {
    /// A segment that a compacted one stands for.
    Replaced,
    /// An index that is of no segment as it is there: the segment is gone, shorter, longer or
    /// another, or the index is damaged. A reader walks the segment instead.
    Index,
    /// A file that was never finished, or is being made.
    Draft,
    /// A branch that was never finished, or is being made.
    Branch,
}

/// What stands behind the last whole epoch and was never said to be durable. A writer that opens
/// the chain cuts it off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TornTail {
    /// The path, in the store's directory, of the file in which it begins.
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
    /// There is a symbolic link to nothing.
    #[error("{} is a symbolic link to {}, which does not exist", link.display(), to.display())]
    DanglingLink {
        /// What was asked for.
        link: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
    /// There is something else than a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// The directory holds no chain.
    #[error("{} is missing: the directory holds no chain", path.display())]
    NoDescription {
        /// The description file.
        path: PathBuf,
    },
    /// The description is not as it must be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Description {
        /// The description file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The chain is of another format version.
    #[error("{}: expected format {FORMAT}, found format {found}", path.display())]
    Version {
        /// The description file.
        path: PathBuf,
        /// The version that it names.
        found: String,
    },
    /// The description or a segment is a directory, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What it is called.
        path: PathBuf,
    },
    /// The directory holds a branch, which can't be read alone.
    #[error("{} is a branch of {branch:?}: it is verified in the store that it belongs to", path.display())]
    Branch {
        /// What was asked for.
        path: PathBuf,
        /// The branch that it begins in.
        branch: String,
    },
    /// There is no such branch.
    #[error("the store has no branch {name:?}")]
    NoBranch {
        /// What was asked for.
        name: String,
    },
    /// The chain does not hold the epoch.
    #[error("the store holds no epoch {epoch} in {branch:?}")]
    NoEpoch {
        /// What was asked for.
        epoch: EpochId,
        /// The chain that it was looked for in.
        branch: String,
    },
    /// A file went while the store was verified, which a compaction does.
    #[error("{} was replaced meanwhile: verify the store again", path.display())]
    Replaced {
        /// The file.
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
