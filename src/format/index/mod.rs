//! Where in a segment which version of which page is: a table that is used in place. See
//! `docs/format.md`, "Index".

mod build;
mod proof;
mod read;
#[cfg(test)]
mod tests;

pub use build::IndexBuilder;
pub use proof::IndexProof;
pub use read::{Index, IndexBytes, IndexError};

use crate::page::{EpochId, PageRun};

/// The first bytes of an index.
const MAGIC: [u8; 4] = [0xD7, b'S', b'W', b'I'];

const VERSION: u32 = 2;

/// Bytes of a block of an index, its checksum included.
const BLOCK_BYTES: usize = 4096;

/// Where in the first block the segment's first frame is.
const FIRST_FRAME_AT: usize = 88;

/// Bytes of a block before its checksum.
const CONTENT_BYTES: usize = BLOCK_BYTES - 8;

/// The most mentions in an index.
pub const INDEX_MENTIONS_MAX: u64 = 1 << 26;

/// One of the tables of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    /// Its name in errors.
    name: &'static str,
    entry_bytes: usize,
}

const EPOCHS: Table = Table { name: "epochs of the index", entry_bytes: 40 };
const FRAMES: Table = Table { name: "frames of the index", entry_bytes: 16 };
const RUNS: Table = Table { name: "runs of the index", entry_bytes: 24 };
const MENTIONS: Table = Table { name: "mentions of the index", entry_bytes: 4 };

impl Table {
    const fn entries_in_block(self) -> usize {
        CONTENT_BYTES / self.entry_bytes
    }

    const fn blocks(self, entries: u64) -> u64 {
        entries.div_ceil(self.entries_in_block() as u64)
    }
}

/// Where an epoch is in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexedEpoch {
    /// The epoch.
    pub epoch: EpochId,
    /// Where its first frame begins, in bytes from the segment's beginning.
    pub offset: u64,
    /// Where its state frame begins.
    pub state_offset: u64,
    /// Where its commit frame begins.
    pub commit_offset: u64,
    /// The number of its first frame that mentions pages, or of the next epoch's.
    pub first_frame: u32,
    /// Whether it mentions every page that is not zero.
    pub base: bool,
}

/// What a frame says of the pages that it mentions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mention {
    /// Their content.
    Whole,
    /// What changed in them.
    Changes,
    /// That they hold only zeros.
    Zeros,
}

/// A frame that mentions pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexedFrame {
    /// Where it begins, in bytes from the segment's beginning.
    pub offset: u64,
    /// The number of its epoch in the index.
    pub epoch: u32,
    /// What it says.
    pub mention: Mention,
}

/// Pages that the same frames mention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedRun {
    /// The pages.
    pub run: PageRun,
    /// The numbers of their mentions.
    pub mentions: std::ops::Range<u64>,
}
