//! The frame: header, payload, padding.

use super::fields::Fields;
use super::{ChainId, FormatError};
use crate::page::EpochId;
use crate::xxh3::{xxh3_64, xxh3_128};

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 48;

/// The first bytes of every frame.
pub const FRAME_MAGIC: [u8; 4] = [0xD7, 0x53, 0x57, 0x1A];

/// The largest payload, in bytes.
pub const FRAME_PAYLOAD_BYTES_MAX: u32 = 64 << 20;

/// Bytes of the header that its checksum covers: all before it.
const CHECKED_BYTES: usize = 40;

/// The largest payload of a pages frame: 16 raw pages with their list. A block has the same limit.
pub(super) const PAGES_BYTES_MAX: u32 = 16 + 4 * 16 + 16 * 4096;
/// The largest payload of a zeros frame: 65,536 runs. A list of runs has the same limit.
pub(super) const ZEROS_BYTES_MAX: u32 = 16 * 65_536;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameKind {
    /// The first frame of a segment: [`SegmentHeader`](super::SegmentHeader).
    SegmentHeader,
    /// One block of up to 16 pages.
    Pages,
    /// Runs of pages that hold only zeros.
    Zeros,
    /// Records of CPU, VM and device state.
    State,
    /// The end of an epoch: [`Commit`](super::Commit).
    Commit,
    /// The end of a chain that ended in order: [`Synced`](super::Synced).
    Close,
    /// How far the chain was durable: [`Synced`](super::Synced).
    Durable,
}

impl FrameKind {
    /// The number in the header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::SegmentHeader => 1,
            Self::Pages => 2,
            Self::Zeros => 3,
            Self::State => 4,
            Self::Commit => 5,
            Self::Close => 6,
            Self::Durable => 7,
        }
    }

    /// The kind with this number, where there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::SegmentHeader,
            2 => Self::Pages,
            3 => Self::Zeros,
            4 => Self::State,
            5 => Self::Commit,
            6 => Self::Close,
            7 => Self::Durable,
            _ => return None,
        })
    }

    /// The name, as `docs/format.md` has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SegmentHeader => "segment header",
            Self::Pages => "pages",
            Self::Zeros => "zeros",
            Self::State => "state",
            Self::Commit => "commit",
            Self::Close => "close",
            Self::Durable => "durable",
        }
    }

    /// Whether it stands between epochs and is in none: its sequence is 0.
    #[must_use]
    pub const fn is_between_epochs(self) -> bool {
        match self {
            Self::SegmentHeader | Self::Close | Self::Durable => true,
            Self::Pages | Self::Zeros | Self::State | Self::Commit => false,
        }
    }

    /// The payload's smallest and largest size in bytes.
    const fn payload_bytes(self) -> (u32, u32) {
        match self {
            Self::SegmentHeader => (80, 80),
            Self::Pages => (20, PAGES_BYTES_MAX),
            Self::Zeros => (16, ZEROS_BYTES_MAX),
            Self::State => (8, FRAME_PAYLOAD_BYTES_MAX),
            Self::Commit => (208, 224),
            Self::Close | Self::Durable => (24, 24),
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// The epoch that the frame belongs to; none in a segment header; in a durable or close frame
    /// the one that it names.
    pub epoch: EpochId,
    /// The position in the epoch, from 0.
    pub sequence: u32,
    /// Bytes of payload, without padding.
    pub length: u32,
    /// xxh3-64 of the payload.
    pub payload_hash: u64,
}

impl FrameHeader {
    /// The header of a frame that holds `payload`, whose size the caller has checked against the
    /// kind's limits.
    pub(crate) fn of(kind: FrameKind, epoch: EpochId, sequence: u32, payload: &[u8]) -> Result<Self, FormatError> {
        let (least, most) = kind.payload_bytes();
        let length = u32::try_from(payload.len()).ok().filter(|length| (least..=most).contains(length));
        let length = length.ok_or_else(|| FormatError::input("payload bytes", format!("{least} to {most}"), payload.len()))?;
        Ok(Self { kind, epoch, sequence, length, payload_hash: xxh3_64(payload) })
    }

    /// The header as bytes, for a chain.
    #[must_use]
    pub fn encode(&self, chain: ChainId) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let (checked, checksum) = bytes.split_at_mut(CHECKED_BYTES);
        let fields: [&[u8]; 7] = [
            &FRAME_MAGIC,
            &[self.kind.number(), 0, 0, 0],
            &self.epoch.0.to_le_bytes(),
            &self.sequence.to_le_bytes(),
            &self.length.to_le_bytes(),
            &chain.tag().to_le_bytes(),
            &self.payload_hash.to_le_bytes(),
        ];
        let mut at = 0;
        for field in fields {
            if let Some(place) = checked.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
            at += field.len();
        }
        checksum.copy_from_slice(&xxh3_64(checked).to_le_bytes());
        bytes
    }

    /// Reads and checks the header at the beginning of `bytes`.
    ///
    /// # Errors
    /// Everything that makes it no header of a frame of `chain`: a wrong magic or checksum, a kind
    /// that there is not, reserved bytes in use, a length that the kind does not allow, an epoch
    /// that the kind cannot have, another chain.
    pub fn parse(bytes: &[u8], chain: ChainId) -> Result<Self, FormatError> {
        let mut fields = Fields::new(bytes, 0);
        let header = fields.bytes("frame header", FRAME_HEADER_BYTES)?;
        let mut fields = Fields::new(header, 0);
        let magic = fields.bytes("magic", FRAME_MAGIC.len())?;
        if magic != FRAME_MAGIC {
            return Err(FormatError::field("magic", 0, format!("{FRAME_MAGIC:02x?}"), format!("{magic:02x?}")));
        }
        let (checked, checksum) = header.split_at(CHECKED_BYTES);
        let expected = Fields::new(checksum, CHECKED_BYTES).u64("header checksum")?;
        let found = xxh3_64(checked);
        if found != expected {
            return Err(FormatError::Checksum { field: "header checksum", offset: CHECKED_BYTES as u64, expected, found });
        }

        let number = fields.u8("kind")?;
        let kind = FrameKind::from_number(number).ok_or_else(|| FormatError::field("kind", 4, "1 to 7", number))?;
        fields.zeros("reserved", 3)?;
        let epoch = EpochId(fields.u64("epoch")?);
        match (kind, epoch) {
            (FrameKind::SegmentHeader, epoch) if epoch != EpochId::NONE => return Err(FormatError::field("epoch", 8, 0, epoch)),
            (FrameKind::SegmentHeader, _) => {}
            (_, EpochId::NONE) => return Err(FormatError::field("epoch", 8, "at least 1", 0)),
            _ => {}
        }
        let sequence = fields.u32("sequence")?;
        if kind.is_between_epochs() && sequence != 0 {
            return Err(FormatError::field("sequence", 16, 0, sequence));
        }
        let length = fields.u32("length")?;
        let (least, most) = kind.payload_bytes();
        if !(least..=most).contains(&length) {
            return Err(FormatError::field("length", 20, format!("{least} to {most}"), length));
        }
        let tag = fields.u64("chain")?;
        if tag != chain.tag() {
            return Err(FormatError::field("chain", 24, format!("{:016x}", chain.tag()), format!("{tag:016x}")));
        }
        let payload_hash = fields.u64("payload checksum")?;
        Ok(Self { kind, epoch, sequence, length, payload_hash })
    }

    /// Bytes of payload and padding.
    #[must_use]
    pub const fn padded_bytes(&self) -> u64 {
        (self.length as u64).next_multiple_of(8)
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub const fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + self.padded_bytes()
    }

    /// Checks `body`, the payload and its padding, and returns the payload.
    ///
    /// # Errors
    /// The checksum of the payload, padding that is not zero, a body of another size.
    pub fn check_body<'a>(&self, body: &'a [u8]) -> Result<&'a [u8], FormatError> {
        let mut fields = Fields::new(body, FRAME_HEADER_BYTES);
        let payload = fields.bytes("payload", usize::try_from(self.length).unwrap_or(usize::MAX))?;
        let found = xxh3_64(payload);
        if found != self.payload_hash {
            return Err(FormatError::Checksum { field: "payload checksum", offset: 32, expected: self.payload_hash, found });
        }
        fields.zeros("padding", payload.len().next_multiple_of(8) - payload.len())?;
        fields.end("padding")?;
        Ok(payload)
    }
}

/// The 128-bit hash that ties frames together: xxh3-128.
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}
