//! Bytes on disk and on the wire: frames, page blocks, state records, commit frames and the
//! description of a chain. No I/O.
//!
//! `docs/format.md` says what every byte means; this module follows it. Everything that parses
//! checks all lengths before it allocates, and answers bad input with a [`FormatError`] that says
//! where, what was expected and what was found.

mod block;
mod chain;
mod changes;
mod commit;
mod description;
mod digest;
mod error;
mod fields;
mod frame;
mod head;
mod index;
mod mark;
mod own_time;
mod record;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod version;
mod writer;
mod zeros;

pub use block::{
    BLOCK_LIST_BYTES_MAX, BLOCK_PAGES, BLOCK_PAYLOAD_BYTES_MAX, BlockDecoder, BlockEncoder, BlockList, BlockPages, Compression,
};
pub use chain::ChainId;
pub use changes::{CHANGED_WORDS_MAX, CHANGES_DEPTH_MAX, ChangedWords, PageChange, decode_changes};
pub use commit::{COMMIT_FRAME_BYTES, Commit, EpochTotals, OWN_TIME_UNIT_NS, Phases, REWRITTEN_COMMIT_FRAME_BYTES, Trigger};
pub use description::{BRANCH_NAMES, BranchPoint, DESCRIPTION_BYTES_MAX, Description, MAIN_BRANCH, is_branch_name};
pub use digest::{MemoryDigest, is_zero};
pub use error::FormatError;
pub use frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FRAME_PAYLOAD_BYTES_MAX, FrameHeader, FrameKind, hash_bytes};
pub use head::{Complete, Head, Line};
pub use index::{
    INDEX_MENTIONS_MAX, Index, IndexBuilder, IndexBytes, IndexError, IndexProof, IndexedEpoch, IndexedFrame, IndexedRun, Mention,
};
pub use mark::{MARK_BLOCK_BYTES, MARK_BYTES, MARK_SLOTS, Mark};
#[cfg(test)]
pub(crate) use own_time::OwnTime;
pub use own_time::{ClockJump, CutTime};
pub use record::StateRecord;
pub use segment::{SEGMENT_HEADER_FRAME_BYTES, SEGMENTS_MAX, SYNCED_FRAME_BYTES, SegmentHeader, Synced};
pub use state::{STATE_DATA_BYTES_MAX, STATE_NAME_BYTES_MAX, STATE_RECORDS_MAX, decode_state, unpack_state};
pub use version::FORMAT_VERSION;
pub use writer::EpochWriter;
pub use zeros::{ZERO_RUNS_MAX, decode_zeros};
