//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use super::damage::Damage;
use super::shortage;
use crate::format::FormatError;
use crate::page::EpochId;

/// Why a store could not be made, opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is nothing at the path.
    #[error("there is no store at {}", dir.display())]
    Missing {
        /// The path.
        dir: PathBuf,
    },
    /// The path is a symbolic link to nothing.
    #[error("{} is a symbolic link to {}, which does not exist", link.display(), to.display())]
    DanglingLink {
        /// The path.
        link: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
    /// The path is not a directory.
    #[error("a store is a directory, and {} is not one", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The directory holds nothing.
    #[error("the directory {} is empty: it holds no store", dir.display())]
    Empty {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds other things than a chain.
    #[error("the directory {} holds no store: it has no description.json", dir.display())]
    NotAStore {
        /// The directory.
        dir: PathBuf,
    },
    /// A chain was to be made where one is.
    #[error("the directory {} already holds a store", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// A chain was to be made in a directory that holds something else.
    #[error("the directory {} is not empty: it holds {name:?}", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the names in it.
        name: String,
    },
    /// Another writer has the chain.
    #[error("the store {} is in use by another writer: {holder}", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// What that writer says of itself: its process, host and when it began.
        holder: String,
    },
    /// The store is of a version that this program does not read.
    #[error("{}: format version {found} is not supported (this program reads version {})", file.display(), crate::format::FORMAT_VERSION)]
    Version {
        /// The file that says so.
        file: PathBuf,
        /// The version.
        found: u64,
    },
    /// `description.json` is not sound.
    #[error("{} at offset {}: {source}", file.display(), source.offset())]
    Description {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// What is to be written breaks a limit of the format.
    #[error("the format does not take it")]
    Input(#[source] FormatError),
    /// Something that was durable is not what it was.
    #[error("damaged: {0}")]
    Damaged(Damage),
    /// The chain holds no epoch at all, and its newest was asked for.
    #[error("the store {} holds no epoch yet", dir.display())]
    NoEpochs {
        /// The directory of the chain.
        dir: PathBuf,
    },
    /// The chain does not hold the epoch.
    #[error("the store holds no epoch {epoch}{}", newest_text(*newest))]
    NoEpoch {
        /// The epoch that was asked for.
        epoch: EpochId,
        /// The newest epoch of the chain, or none.
        newest: EpochId,
    },
    /// There is no branch of that name.
    #[error("the store {} has no branch {name}", dir.display())]
    NoBranch {
        /// The directory.
        dir: PathBuf,
        /// The name.
        name: String,
    },
    /// No branch can be called so.
    #[error("{name:?} is no name for a branch: a name is {}", crate::format::BRANCH_NAMES)]
    BranchName {
        /// The name.
        name: String,
    },
    /// A branch would be behind too many others.
    #[error("branch {name} would be the {}th behind each other, and {most} is the most", most + 1)]
    BranchDepth {
        /// Its name.
        name: String,
        /// The most there may be.
        most: u32,
    },
    /// A file was taken away or replaced while the chain was read, as a compaction does. Opening
    /// the chain again finds what is there now.
    #[error("{} was taken away while the chain was read; opening the chain again finds what has its place", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// There is not the room that dropping what is not kept takes. A writer of a chain of which
    /// epochs are dropped appends nothing then: what it took would be missing for good.
    #[error("compacting {} needs {} free, and {} are", dir.display(), bytes_text(*needed), bytes_text(*free))]
    Room {
        /// The directory of the chain.
        dir: PathBuf,
        /// Bytes that have to be free.
        needed: u64,
        /// Bytes that are.
        free: u64,
    },
    /// Epochs do not come in order.
    #[error("epoch {epoch} cannot follow epoch {before}")]
    Order {
        /// The epoch that was offered.
        epoch: EpochId,
        /// The epoch in hand, or the newest.
        before: EpochId,
    },
    /// The commit does not fit the frames that were appended.
    #[error("the commit of epoch {epoch} counts {expected} bytes of frames, but {found} were appended")]
    Frames {
        /// The epoch.
        epoch: EpochId,
        /// Bytes by the commit's totals.
        expected: u64,
        /// Bytes that were appended.
        found: u64,
    },
    /// An epoch does not follow the chain's newest.
    #[error(
        "epoch {epoch} follows epoch {} of identity {:032x}, and the chain ends at epoch {} of identity {:032x}",
        found.0, found.1, expected.0, expected.1
    )]
    Parent {
        /// The epoch that was offered.
        epoch: EpochId,
        /// The chain's newest epoch, and its identity.
        expected: (EpochId, u128),
        /// What the epoch names as its parent.
        found: (EpochId, u128),
    },
    /// The chain has as many segments as the format numbers.
    #[error("the store has {found} segments, and the format has numbers for no more")]
    Segments {
        /// How many there are.
        found: u32,
    },
    /// The directory, its lock or the segment that is written is not what it was when it was
    /// opened: somebody moved, removed, replaced or changed it.
    #[error("{} is not what was opened: expected {expected}, found {found}", path.display())]
    Displaced {
        /// Where it was opened.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An earlier fault left the medium in an unknown state.
    #[error("the store takes nothing more until it is opened again, because of an earlier fault: {cause}")]
    Latched {
        /// The earlier fault.
        cause: String,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.as_ref().to_owned();
            if FileReplaced::is_cause(&source) { Self::Replaced { path } } else { Self::Io { action, path, source } }
        }
    }

    /// Whether something that should be sound is damaged.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Description { .. })
    }

    /// Whether a compaction took a file away that was being read: opening the chain again may do.
    #[must_use]
    pub const fn is_replaced(&self) -> bool {
        matches!(self, Self::Replaced { .. })
    }

    /// Whether the process, or the system, may open no more files.
    pub(super) fn lacks_descriptors(&self) -> bool {
        matches!(self, Self::Io { source, .. } if shortage::lacks_descriptors(source))
    }

    /// Whether the disk, a quota or a limit on a file's size left no room.
    pub(super) fn lacks_room(&self) -> bool {
        match self {
            Self::Io { source, .. } => shortage::lacks_room(source),
            Self::Room { .. } => true,
            _ => false,
        }
    }

    /// Whether another writer has the chain.
    #[must_use]
    pub const fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

/// Another file is where one was that is read, or none.
#[derive(Debug, thiserror::Error)]
#[error("it was removed, or another file has its name")]
pub(super) struct FileReplaced;

impl FileReplaced {
    /// Whether an error of a file says so.
    pub(super) fn is_cause(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// Bytes for people: needs are rounded up.
fn bytes_text(bytes: u64) -> String {
    if bytes < 10 << 20 { format!("{} KiB", bytes.div_ceil(1 << 10)) } else { format!("{} MiB", bytes.div_ceil(1 << 20)) }
}

fn newest_text(newest: EpochId) -> String {
    if newest == EpochId::NONE { ": it holds none".to_owned() } else { format!(": the newest is {newest}") }
}

/// An error and what it came from, in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
