//! The bytes of frames and of the payloads with a fixed layout. Pure.

use super::damage::{DamageKind, Fault};
use crate::xxh3::{Xxh3, xxh3_64};

/// Bytes of a frame's header.
pub(super) const HEADER_BYTES: usize = 48;
/// [`HEADER_BYTES`] as a file offset.
pub(super) const HEADER_BYTES_U64: u64 = 48;
/// The most bytes that a payload may have.
pub(super) const PAYLOAD_MAX: u32 = 64 << 20;
/// Bytes of the payload of a segment header.
pub(super) const SEGMENT_BYTES: u32 = 80;
/// Where an index has the first frame of its segment.
pub(super) const FIRST_FRAME: std::ops::Range<usize> = 88..88 + HEADER_BYTES + SEGMENT_BYTES as usize;
/// Bytes of the payload of a commit frame.
pub(super) const COMMIT_BYTES: u32 = 208;
/// Bytes of the payload of a rewritten epoch's commit frame.
pub(super) const REWRITTEN_BYTES: u32 = 224;
/// The version of the format.
pub(super) const FORMAT: u32 = 1;
/// Bytes of the payload of a durable or close frame.
pub(super) const SYNCED_BYTES: u32 = 24;

const MAGIC: [u8; 4] = [0xD7, 0x53, 0x57, 0x1A];

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Segment,
    Pages,
    Zeros,
    State,
    Commit,
    Close,
    Durable,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Segment,
            2 => Self::Pages,
            3 => Self::Zeros,
            4 => Self::State,
            5 => Self::Commit,
            6 => Self::Close,
            7 => Self::Durable,
            _ => return None,
        })
    }

    /// Whether it stands between epochs and is in none.
    pub(super) fn is_between_epochs(self) -> bool {
        match self {
            Self::Segment | Self::Close | Self::Durable => true,
            Self::Pages | Self::Zeros | Self::State | Self::Commit => false,
        }
    }

    /// The lengths that a payload may have, where the kind has only some.
    pub(super) fn lengths(self) -> Option<&'static [u32]> {
        match self {
            Self::Segment => Some(&[SEGMENT_BYTES]),
            Self::Commit => Some(&[COMMIT_BYTES, REWRITTEN_BYTES]),
            Self::Close | Self::Durable => Some(&[SYNCED_BYTES]),
            _ => None,
        }
    }
}

/// A header that is intact: its magic, checksum, chain, kind, epoch and length are as they must be,
/// and its sequence where the kind has only one.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) epoch: u64,
    pub(super) sequence: u32,
    /// Bytes of payload.
    pub(super) length: u32,
    /// What the payload must hash to.
    pub(super) checksum: u64,
    /// The header's bytes.
    pub(super) raw: [u8; HEADER_BYTES],
}

impl Header {
    /// Reads the header at `offset` of a file of the chain that begins with `chain`.
    pub(super) fn parse(raw: &[u8; HEADER_BYTES], offset: u64, chain: &[u8; 16]) -> Result<Self, Fault> {
        let (magic, expected) = (le::<4>(raw, 0), hex(&MAGIC));
        if magic != MAGIC {
            return Err(Fault::new(DamageKind::Magic, offset, expected, hex(&magic)));
        }
        let (checksum, expected) = (u64_at(raw, 40), xxh3_64(raw.get(..40).unwrap_or_default()));
        if checksum != expected {
            return Err(Fault::new(DamageKind::HeaderChecksum, offset, format!("{expected:016x}"), format!("{checksum:016x}")));
        }
        let (found, expected) = (le::<8>(raw, 24), le::<8>(chain, 0));
        if found != expected {
            return Err(Fault::new(DamageKind::Chain, offset + 24, hex(&expected), hex(&found)));
        }
        let reserved = le::<3>(raw, 5);
        if reserved != [0; 3] {
            return Err(Fault::new(DamageKind::Reserved, offset + 5, "000000", hex(&reserved)));
        }
        let [byte] = le::<1>(raw, 4);
        let Some(kind) = Kind::from_byte(byte) else {
            return Err(Fault::new(DamageKind::Kind, offset + 4, "a kind from 1 to 7", byte.to_string()));
        };
        let length = u32_at(raw, 20);
        if length > PAYLOAD_MAX {
            let expected = format!("at most {PAYLOAD_MAX} bytes of payload");
            return Err(Fault::new(DamageKind::Length, offset + 20, expected, length.to_string()));
        }
        let (epoch, sequence) = (u64_at(raw, 8), u32_at(raw, 16));
        if (kind == Kind::Segment) != (epoch == 0) {
            let expected = if kind == Kind::Segment { "epoch 0" } else { "an epoch, at least 1" };
            return Err(Fault::new(DamageKind::Epoch, offset + 8, expected, epoch.to_string()));
        }
        if kind.is_between_epochs() && sequence != 0 {
            return Err(Fault::new(DamageKind::Sequence, offset + 16, "0", sequence.to_string()));
        }
        Ok(Self { kind, epoch, sequence, length, checksum: u64_at(raw, 32), raw: *raw })
    }

    /// Bytes of payload and padding.
    pub(super) fn padded(&self) -> u32 {
        self.length.next_multiple_of(8)
    }

    /// Bytes of the whole frame.
    pub(super) fn bytes(&self) -> u64 {
        HEADER_BYTES_U64 + u64::from(self.padded())
    }
}

/// The payload of a segment header.
#[derive(Clone, Debug)]
pub(super) struct SegmentHeader {
    pub(super) version: u32,
    pub(super) number: u32,
    pub(super) chain: [u8; 16],
    pub(super) hash: u128,
    pub(super) epoch: u64,
    pub(super) generation: u64,
    pub(super) page_size: u32,
    /// How many more numbers it stands for.
    pub(super) more: u32,
    pub(super) incarnation: u128,
}

impl SegmentHeader {
    /// Reads [`SEGMENT_BYTES`] bytes.
    pub(super) fn parse(payload: &[u8]) -> Self {
        Self {
            version: u32_at(payload, 0),
            number: u32_at(payload, 4),
            chain: le(payload, 8),
            hash: u128_at(payload, 24),
            epoch: u64_at(payload, 40),
            generation: u64_at(payload, 48),
            page_size: u32_at(payload, 56),
            more: u32_at(payload, 60),
            incarnation: u128_at(payload, 64),
        }
    }
}

/// The payload of a commit frame, without the times.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    pub(super) parent: u64,
    pub(super) parent_hash: u128,
    pub(super) frames: u32,
    pub(super) blocks: u32,
    pub(super) bytes: u64,
    pub(super) frames_hash: u128,
    pub(super) pages: u64,
    pub(super) zero: u64,
    pub(super) unchanged: u64,
    pub(super) stored: u64,
    pub(super) bytes_written: u64,
    pub(super) generation: u64,
    pub(super) trigger: u8,
    pub(super) flags: u8,
    pub(super) audit: u128,
    pub(super) incarnation: u128,
    /// The epoch's identity, where the frame has the field.
    pub(super) identity: Option<u128>,
}

impl Commit {
    pub(super) const BASE: u8 = 1;
    pub(super) const RECOVERY: u8 = 2;
    pub(super) const AUDITED: u8 = 4;
    pub(super) const REWRITTEN: u8 = 8;

    /// Reads [`COMMIT_BYTES`] or [`REWRITTEN_BYTES`] bytes.
    pub(super) fn parse(payload: &[u8]) -> Self {
        let [trigger, flags] = le(payload, 168);
        Self {
            parent: u64_at(payload, 0),
            parent_hash: u128_at(payload, 8),
            frames: u32_at(payload, 24),
            blocks: u32_at(payload, 28),
            bytes: u64_at(payload, 32),
            frames_hash: u128_at(payload, 40),
            pages: u64_at(payload, 120),
            zero: u64_at(payload, 128),
            unchanged: u64_at(payload, 136),
            stored: u64_at(payload, 144),
            bytes_written: u64_at(payload, 152),
            generation: u64_at(payload, 160),
            trigger,
            flags,
            audit: u128_at(payload, 176),
            incarnation: u128_at(payload, 192),
            identity: (payload.len() > 208).then(|| u128_at(payload, 208)),
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of the frame.
    pub(super) fn frame_bytes(&self) -> u64 {
        HEADER_BYTES_U64 + u64::from(if self.identity.is_some() { REWRITTEN_BYTES } else { COMMIT_BYTES })
    }

    /// The identity of the epoch whose commit frame has `header` and `payload`, which this was read
    /// from.
    pub(super) fn identity(&self, header: &Header, payload: &[u8]) -> u128 {
        self.identity.unwrap_or_else(|| {
            let mut hash = Xxh3::new();
            hash.update(&header.raw);
            hash.update(payload);
            hash.digest128()
        })
    }
}

/// The payload of a durable or close frame.
#[derive(Clone, Debug)]
pub(super) struct Synced {
    pub(super) epoch: u64,
    pub(super) hash: u128,
}

impl Synced {
    /// Reads [`SYNCED_BYTES`] bytes.
    pub(super) fn parse(payload: &[u8]) -> Self {
        Self { epoch: u64_at(payload, 0), hash: u128_at(payload, 8) }
    }
}

/// `N` bytes from `at` on. What lies behind the end reads as zero: callers have checked the length.
pub(super) fn le<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let end = at.saturating_add(N);
    bytes.get(at..end).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(le(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(le(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(le(bytes, at))
}

pub(super) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(le(bytes, at))
}

/// Bytes as hexadecimal digits, in their order.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
