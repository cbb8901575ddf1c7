//! The mark: which epoch of a chain was durable, apart from the segments. See `docs/format.md`,
//! "The mark".

use super::fields::Fields;
use super::{ChainId, FormatError};
use crate::page::EpochId;
use crate::xxh3::xxh3_64;

/// Bytes between the beginnings of two slots: what a torn write of one may take with it.
pub const MARK_BLOCK_BYTES: usize = 4096;

/// How many slots there are. The first is written after every sync; the others in turn, and synced.
pub const MARK_SLOTS: usize = 3;

/// Bytes of a mark.
pub const MARK_BYTES: usize = MARK_SLOTS * MARK_BLOCK_BYTES;

/// Bytes of a slot.
const SLOT_BYTES: usize = 56;

/// The first bytes of a slot.
const MAGIC: [u8; 4] = [0xD7, b'S', b'W', b'D'];

const VERSION: u32 = 1;

/// An epoch that was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The epoch; of a branch at least the one that it begins at.
    pub epoch: EpochId,
    /// Its identity; 0 for none.
    pub identity: u128,
}

impl Mark {
    /// The bytes of a slot that says so.
    #[must_use]
    pub fn encode(&self, chain: ChainId) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &chain.0].concat();
        bytes.extend(self.epoch.0.to_le_bytes());
        bytes.extend(self.identity.to_le_bytes());
        let sum = xxh3_64(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    /// The bytes of a whole mark that says so in all of its slots.
    #[must_use]
    pub fn encode_whole(&self, chain: ChainId) -> Vec<u8> {
        let mut block = self.encode(chain);
        block.resize(MARK_BLOCK_BYTES, 0);
        block.repeat(MARK_SLOTS)
    }

    /// What each slot of a mark says, if it is sound.
    ///
    /// # Errors
    /// Another length; no slot that is sound, with what is wrong with the first.
    pub fn parse(bytes: &[u8], chain: ChainId) -> Result<[Option<Self>; MARK_SLOTS], FormatError> {
        if bytes.len() != MARK_BYTES {
            return Err(FormatError::field("bytes of the mark", 0, MARK_BYTES, bytes.len()));
        }
        let mut slots = [None; MARK_SLOTS];
        let mut wrong = None;
        for (number, (slot, block)) in slots.iter_mut().zip(bytes.chunks(MARK_BLOCK_BYTES)).enumerate() {
            match Self::parse_slot(block, number * MARK_BLOCK_BYTES, chain) {
                Ok(mark) => *slot = Some(mark),
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        match wrong {
            Some(error) if slots.iter().all(Option::is_none) => Err(error),
            _ => Ok(slots),
        }
    }

    fn parse_slot(block: &[u8], at: usize, chain: ChainId) -> Result<Self, FormatError> {
        let mut fields = Fields::new(block.get(..SLOT_BYTES).unwrap_or_default(), at);
        let magic = fields.bytes("magic", 4)?;
        if magic != MAGIC {
            return Err(FormatError::field("magic of the mark", at, "D7 53 57 44", format!("{magic:02X?}")));
        }
        let version = fields.u32("version of the mark")?;
        if version != VERSION {
            return Err(FormatError::field("version of the mark", at + 4, VERSION, version));
        }
        let found = fields.bytes("chain", 16)?;
        let mark = Self { epoch: EpochId(fields.u64("durable epoch")?), identity: fields.u128("identity of the epoch")? };
        let stored = fields.u64("checksum of the mark")?;
        let sum = xxh3_64(block.get(..SLOT_BYTES - 8).unwrap_or_default());
        if stored != sum {
            let offset = (at + SLOT_BYTES - 8) as u64;
            return Err(FormatError::Checksum { field: "checksum of the mark", offset, expected: stored, found: sum });
        }
        if found != chain.0 {
            let found = ChainId(found.try_into().unwrap_or_default());
            return Err(FormatError::field("chain", at + 8, chain, found));
        }
        Ok(mark)
    }
}
