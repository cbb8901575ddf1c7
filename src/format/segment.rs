//! The frames that stand between epochs.

use super::fields::Fields;
use super::version::is_known;
use super::{ChainId, FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind};
use crate::page::{EpochId, PAGE_SIZE_U64};

/// Bytes of a segment header's frame.
pub const SEGMENT_HEADER_FRAME_BYTES: usize = FRAME_HEADER_BYTES + 80;

/// Bytes of a durable or close frame.
pub const SYNCED_FRAME_BYTES: usize = FRAME_HEADER_BYTES + 24;

/// The generation of a machine that has no standby. There is no other yet.
pub(super) const GENERATION_NEUTRAL: u64 = 0;

/// The incarnation of a machine that has no standby. There is no other yet.
pub(super) const INCARNATION_NEUTRAL: u128 = 0;

/// The highest number of a segment.
pub const SEGMENTS_MAX: u32 = 99_999_999;

/// The first frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The version of the format, as the description has it.
    pub format: u32,
    /// The segment's number, from 1; the first of those that a compacted segment stands for.
    pub number: u32,
    /// How many more numbers it stands for: 0 but in a compacted segment.
    pub more: u32,
    /// The chain.
    pub chain: ChainId,
    /// The identity of the newest epoch of the segments before; 0 in the first of a chain that is
    /// no branch.
    pub previous_hash: u128,
    /// That epoch, or none.
    pub previous: EpochId,
}

impl SegmentHeader {
    /// The whole frame.
    #[must_use]
    pub fn encode_frame(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(80);
        payload.extend(self.format.to_le_bytes());
        payload.extend(self.number.to_le_bytes());
        payload.extend(self.chain.0);
        payload.extend(self.previous_hash.to_le_bytes());
        payload.extend(self.previous.0.to_le_bytes());
        payload.extend(GENERATION_NEUTRAL.to_le_bytes());
        payload.extend([0, 16, 0, 0]);
        payload.extend(self.more.to_le_bytes());
        payload.extend(INCARNATION_NEUTRAL.to_le_bytes());
        frame(FrameKind::SegmentHeader, EpochId::NONE, self.chain, &payload)
    }

    /// Reads a payload whose checksum was checked.
    ///
    /// # Errors
    /// Another version (looked at first), another page size, a number out of range, a generation or
    /// incarnation that is not neutral.
    pub fn decode(payload: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(payload, FRAME_HEADER_BYTES);
        let format = fields.u32("format version")?;
        if !is_known(format) {
            return Err(FormatError::Version { offset: FRAME_HEADER_BYTES as u64, found: format.into() });
        }
        let at = fields.offset();
        let number = fields.u32("segment number")?;
        if !(1..=SEGMENTS_MAX).contains(&number) {
            return Err(FormatError::field("segment number", at, format!("1 to {SEGMENTS_MAX}"), number));
        }
        let mut chain = ChainId::default();
        chain.0.copy_from_slice(fields.bytes("chain", 16)?);
        let previous_hash = fields.u128("hash of the newest commit")?;
        let previous = EpochId(fields.u64("epoch of the newest commit")?);
        fields.zeros("generation", 8)?;
        let at = fields.offset();
        let page_size = fields.u32("page size")?;
        if u64::from(page_size) != PAGE_SIZE_U64 {
            return Err(FormatError::field("page size", at, PAGE_SIZE_U64, page_size));
        }
        let at = fields.offset();
        let more = fields.u32("further numbers")?;
        let most = SEGMENTS_MAX - number;
        if more > most {
            return Err(FormatError::field("further numbers", at, format!("up to {most}"), more));
        }
        fields.zeros("incarnation", 16)?;
        fields.end("segment header")?;
        Ok(Self { format, number, more, chain, previous_hash, previous })
    }
}

/// What a durable and a close frame say: `epoch` and all before it are durable. The frames belong
/// to no epoch: each writer has its own times of sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The newest epoch that is durable.
    pub epoch: EpochId,
    /// Its identity.
    pub identity: u128,
}

impl Synced {
    /// The whole frame of a chain that goes on.
    #[must_use]
    pub fn durable_frame(&self, chain: ChainId) -> Vec<u8> {
        self.frame(FrameKind::Durable, chain)
    }

    /// The whole frame of a writer that ends in order.
    #[must_use]
    pub fn close_frame(&self, chain: ChainId) -> Vec<u8> {
        self.frame(FrameKind::Close, chain)
    }

    fn frame(&self, kind: FrameKind, chain: ChainId) -> Vec<u8> {
        let payload = [&self.epoch.0.to_le_bytes()[..], &self.identity.to_le_bytes()].concat();
        frame(kind, self.epoch, chain, &payload)
    }

    /// Reads the payload of either, whose checksum was checked.
    ///
    /// # Errors
    /// An epoch that is not the header's.
    pub fn decode(header: &FrameHeader, payload: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(payload, FRAME_HEADER_BYTES);
        let epoch = EpochId(fields.u64("newest epoch")?);
        if epoch != header.epoch {
            return Err(FormatError::field("newest epoch", FRAME_HEADER_BYTES, header.epoch, epoch));
        }
        let identity = fields.u128("identity of the newest epoch")?;
        fields.end(header.kind.as_str())?;
        Ok(Self { epoch, identity })
    }
}

/// A whole frame whose payload has the size that its kind fixes, a multiple of 8.
pub(super) fn frame_in_epoch(kind: FrameKind, epoch: EpochId, sequence: u32, chain: ChainId, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let header = FrameHeader { kind, epoch, sequence, length, payload_hash: crate::xxh3::xxh3_64(payload) };
    let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    bytes.extend(header.encode(chain));
    bytes.extend(payload);
    bytes
}

fn frame(kind: FrameKind, epoch: EpochId, chain: ChainId, payload: &[u8]) -> Vec<u8> {
    frame_in_epoch(kind, epoch, 0, chain, payload)
}
