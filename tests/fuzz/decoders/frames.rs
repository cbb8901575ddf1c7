//! Segments as frames that can be changed and sealed again. Written from `docs/format.md`, and
//! total: whatever is no frame is kept as it is.

use slackwater::format::{BlockList, ChainId, hash_bytes};
use twox_hash::XxHash3_64;

pub(super) const HEADER: usize = 48;
pub(super) const MAGIC: [u8; 4] = [0xD7, 0x53, 0x57, 0x1A];

pub(super) const SEGMENT_HEADER: u8 = 1;
pub(super) const PAGES: u8 = 2;
pub(super) const ZEROS: u8 = 3;
pub(super) const STATE: u8 = 4;
pub(super) const COMMIT: u8 = 5;
pub(super) const CLOSE: u8 = 6;
pub(super) const DURABLE: u8 = 7;

/// Bytes of the payload of a segment header, of a commit, and of one of an epoch that was written
/// anew.
pub(super) const SEGMENT_BYTES: usize = 80;
pub(super) const COMMIT_BYTES: usize = 208;
pub(super) const REWRITTEN_BYTES: usize = 224;

/// Header and payload. The header's length and checksums are as good as the last
/// [`seal`](Self::seal).
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) header: [u8; HEADER],
    pub(super) payload: Vec<u8>,
}

impl Frame {
    pub(super) fn new(kind: u8, epoch: u64, payload: Vec<u8>) -> Self {
        let mut frame = Self { header: [0; HEADER], payload };
        frame.header[..4].copy_from_slice(&MAGIC);
        frame.header[4] = kind;
        frame.set_epoch(epoch);
        frame
    }

    pub(super) const fn kind(&self) -> u8 {
        self.header[4]
    }

    pub(super) fn epoch(&self) -> u64 {
        u64_at(&self.header, 8)
    }

    pub(super) fn set_epoch(&mut self, epoch: u64) {
        put(&mut self.header, 8, &epoch.to_le_bytes());
    }

    pub(super) fn set_sequence(&mut self, sequence: u32) {
        put(&mut self.header, 16, &sequence.to_le_bytes());
    }

    /// Header, payload and padding.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [&self.header[..], &self.payload].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// Of a commit's frame.
    pub(super) fn identity(&self) -> u128 {
        match self.payload.get(COMMIT_BYTES..REWRITTEN_BYTES) {
            Some(identity) if is_rewritten(&self.payload) => u128::from_le_bytes(identity.try_into().expect("16 bytes")),
            _ => hash_bytes(&[&self.header[..], &self.payload].concat()),
        }
    }

    /// Makes lengths and checksums right: those of the header, and that of a block's list.
    pub(super) fn seal(&mut self, chain: ChainId) {
        if self.kind() == PAGES && self.payload.len() > 8 {
            let end = (16 + 4 * usize::from(self.payload[1])).min(self.payload.len());
            let hash = XxHash3_64::oneshot(&self.payload[8..end]).to_le_bytes();
            self.payload[4..8].copy_from_slice(&hash[..4]);
        }
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        put(&mut self.header, 20, &length.to_le_bytes());
        put(&mut self.header, 24, &chain.tag().to_le_bytes());
        put(&mut self.header, 32, &XxHash3_64::oneshot(&self.payload).to_le_bytes());
        let hash = XxHash3_64::oneshot(&self.header[..40]);
        put(&mut self.header, 40, &hash.to_le_bytes());
    }
}

/// Whether a commit's payload says that a compaction wrote the epoch anew.
pub(super) fn is_rewritten(commit: &[u8]) -> bool {
    commit.get(169).is_some_and(|flags| flags & 8 != 0)
}

/// A frame, or bytes that are none.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Frame(Frame),
    Other(Vec<u8>),
}

impl Piece {
    pub(super) fn frame(&mut self) -> Option<&mut Frame> {
        match self {
            Self::Frame(frame) => Some(frame),
            Self::Other(_) => None,
        }
    }
}

/// Cuts a segment into frames by their magic and length alone, sound or not.
pub(super) fn cut(mut bytes: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let length = bytes.get(20..24).map_or(usize::MAX, |length| u32_at(length, 0) as usize);
        let whole = HEADER + length.min(bytes.len()).next_multiple_of(8);
        let is_frame = bytes.starts_with(&MAGIC) && length <= bytes.len() && whole <= bytes.len();
        let (piece, rest) = bytes.split_at(if is_frame { whole } else { bytes.len().min(8) });
        match pieces.last_mut() {
            _ if is_frame => pieces.push(Piece::Frame(Frame {
                header: piece[..HEADER].try_into().expect("a header's length"),
                payload: piece[HEADER..HEADER + length].to_vec(),
            })),
            Some(Piece::Other(other)) => other.extend(piece),
            _ => pieces.push(Piece::Other(piece.to_vec())),
        }
        bytes = rest;
    }
    pieces
}

pub(super) fn join(pieces: &[Piece]) -> Vec<u8> {
    let bytes = |piece: &Piece| match piece {
        Piece::Frame(frame) => frame.bytes(),
        Piece::Other(bytes) => bytes.clone(),
    };
    pieces.iter().flat_map(bytes).collect()
}

/// The payload of a block: its list, and data behind it. `seal` makes the list's checksum right.
pub(super) fn block(encoding: u8, gfns: &[u64], data: &[u8]) -> Vec<u8> {
    let first = gfns.first().copied().unwrap_or_default();
    let mut payload = vec![encoding, gfns.len().to_le_bytes()[0], 0, 0, 0, 0, 0, 0];
    payload.extend(first.to_le_bytes());
    payload.extend(gfns.iter().flat_map(|gfn| gfn.wrapping_sub(first).to_le_bytes()[..4].to_vec()));
    payload.extend(data);
    payload
}

/// The list of a block whose checksum is right, and where its data begins.
pub(super) fn list(payload: &[u8]) -> Option<(BlockList, usize)> {
    let list = BlockList::parse(payload).ok()?;
    Some((list, list.bytes()))
}

/// Writes where there is room.
pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Zeros behind the end.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
}
