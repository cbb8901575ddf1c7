//! What an index proves of its segment, also where that is gone.

use super::{BLOCK_BYTES, CONTENT_BYTES, FIRST_FRAME_AT, MAGIC, VERSION};
use crate::format::fields::Fields;
use crate::format::{
    ChainId, FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind, SEGMENT_HEADER_FRAME_BYTES, SegmentHeader,
};
use crate::page::EpochId;
use crate::xxh3::{xxh3_64, xxh3_64_with_seed};

/// That a segment was there, and that its last epoch was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexProof {
    /// The chain of the segment.
    pub chain: ChainId,
    /// The first of its numbers.
    pub first: u32,
    /// The last of them.
    pub last: u32,
    /// Its last epoch, or none.
    pub epoch: EpochId,
    /// That epoch's identity; 0 for none.
    pub identity: u128,
}

impl IndexProof {
    /// Bytes of an index that say it: its first block.
    pub const BYTES: usize = BLOCK_BYTES;

    /// Reads the first block of an index. Needs nothing of the segment.
    ///
    /// # Errors
    /// Fewer bytes; another version; a block that is not sound, or has no sound header of a
    /// segment.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(bytes, 0);
        let content = fields.bytes("first block of the index", CONTENT_BYTES)?;
        let stored = fields.u64("checksum of a block of the index")?;
        let mut fields = Fields::new(content, 0);
        let magic = fields.bytes("magic", 4)?;
        if magic != MAGIC {
            return Err(FormatError::field("magic", 0, "D7 53 57 49", format!("{magic:02X?}")));
        }
        let version = fields.u32("version of the index")?;
        if version != VERSION {
            return Err(FormatError::field("version of the index", 4, VERSION, version));
        }
        fields.bytes("lengths", 48)?;
        let epoch = EpochId(fields.u64("last epoch")?);
        let identity = fields.u128("identity of the last epoch")?;
        fields.u64("last base")?;
        let frame = fields.bytes("first frame of the segment", SEGMENT_HEADER_FRAME_BYTES)?;
        let (header, body) = frame.split_at(FRAME_HEADER_BYTES);
        let found = xxh3_64_with_seed(content, xxh3_64(header));
        if found != stored {
            let field = "checksum of a block of the index";
            return Err(FormatError::Checksum { field, offset: CONTENT_BYTES as u64, expected: stored, found });
        }
        let segment = SegmentHeader::decode(body)?;
        let header = FrameHeader::parse(header, segment.chain)?;
        header.check_body(body)?;
        if header.kind != FrameKind::SegmentHeader {
            return Err(FormatError::field("kind", FIRST_FRAME_AT + 4, "a segment header", header.kind.as_str()));
        }
        Ok(Self { chain: segment.chain, first: segment.number, last: segment.number + segment.more, epoch, identity })
    }
}
