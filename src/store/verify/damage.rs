//! What is wrong with a store, and where.

use serde::Serialize;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file's path in the store's directory.
    pub file: String,
    /// Where in the file, in bytes: the field that is wrong, or the frame where it is the frame as
    /// a whole.
    pub offset: u64,
    /// The epoch that it belongs to, or the one that should stand there; `None` where no epoch is
    /// concerned.
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
    /// A segment's header.
    SegmentHeader,
    /// The mark is not there or not whole: what was durable is not known.
    Mark,
    /// Epochs that were durable are not there, and nothing says where they were.
    LostEpochs,
    /// Another epoch stands in the place of one that was durable.
    ReplacedEpoch,
    /// A segment is not there.
    MissingSegment,
    /// A segment's name has numbers that it may not have.
    SegmentNumbers,
    /// An index all of whose checksums are right does not say what its segment does. A reader that
    /// sees it walks the segment instead, so epochs are not concerned.
    Index,
    /// A branch's description. In JSON `identity`.
    #[serde(rename = "identity")]
    Description,
    /// A branch does not begin where it says.
    Branch,
    /// A durable or close frame names another epoch than the one before it.
    Close,
    /// A block's list of pages does not match its checksum.
    ListChecksum,
    /// A block of pages is not laid out as it must be.
    Block,
    /// Compressed pages that do not decompress to what they must.
    Zstd,
    /// Changes of pages that are not laid out as they must be, or that do not give the page that
    /// they were made of.
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

/// Something that is not as `docs/format.md` says, before it is known whether it is damage or a
/// torn tail.
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

    /// It is damage, in `file`.
    pub(super) fn at(self, file: String, epoch: Option<u64>) -> Damage {
        let Self { kind, offset, expected, found } = self;
        Damage { file, offset, epoch, kind, expected, found }
    }
}
