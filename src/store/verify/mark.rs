//! What says that an epoch was durable and is not in a segment: the mark, and the first blocks of
//! indexes.

use std::io::ErrorKind;

use super::damage::{DamageKind, Fault};
use super::description::Description;
use super::frame::{FIRST_FRAME, HEADER_BYTES, Header, Kind, SegmentHeader, hex, le, u32_at, u64_at, u128_at};
use super::names::{Numbers, in_directory};
use super::place::Place;
use super::report::VerifyError;
use crate::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The name of the mark.
pub(super) const NAME: &str = "durable";

const BLOCK_BYTES: usize = 4096;
const MARK_BYTES: usize = 3 * BLOCK_BYTES;
const MARK_MAGIC: [u8; 4] = [0xD7, 0x53, 0x57, 0x44];
const MARK_VERSION: u32 = 1;
const INDEX_MAGIC: [u8; 4] = [0xD7, 0x53, 0x57, 0x49];
const INDEX_VERSION: u32 = 2;
const INDEX_CONTENT: usize = 4088;

/// That an epoch was durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) epoch: u64,
    pub(super) identity: u128,
    /// The path in the store's directory of the index that says so, if it is one.
    pub(super) index: Option<String>,
}

/// Reads the mark of the chain in a directory.
pub(super) fn read(place: &Place, description: &Description) -> Result<Result<Proof, Fault>, VerifyError> {
    let wrong = |offset: usize, expected: &str, found: &str| {
        let found = format!("{found}: what was durable is not known");
        Ok(Err(Fault::new(DamageKind::Mark, offset as u64, expected, found)))
    };
    let Some(bytes) = head(place, NAME, MARK_BYTES + 1)? else {
        return wrong(0, "a file that says which epoch was durable", "none");
    };
    if bytes.len() != MARK_BYTES {
        let more = if bytes.len() > MARK_BYTES { "more" } else { "fewer" };
        return wrong(bytes.len().min(MARK_BYTES), "12288 bytes of mark", more);
    }
    let slots = bytes.chunks(BLOCK_BYTES).filter_map(|slot| {
        let is_sound = le::<4>(slot, 0) == MARK_MAGIC
            && u32_at(slot, 4) == MARK_VERSION
            && le::<16>(slot, 8) == description.chain
            && u64_at(slot, 48) == xxh3_64(slot.get(..48).unwrap_or_default());
        is_sound.then(|| Proof { epoch: u64_at(slot, 24), identity: u128_at(slot, 32), index: None })
    });
    match slots.max_by_key(|proof| proof.epoch) {
        Some(proof) => Ok(Ok(proof)),
        None => wrong(0, &format!("a slot of the mark of chain {}", hex(&description.chain)), "none that is sound"),
    }
}

/// What the index proves of its segment that `name` leads to in the store's directory, with these
/// numbers in its name, in its own `place`.
pub(super) fn of_index(
    place: &Place,
    name: &str,
    numbers: Numbers,
    description: &Description,
) -> Result<Option<Proof>, VerifyError> {
    let Some(block) = head(place, in_directory(name), BLOCK_BYTES)?.filter(|block| block.len() == BLOCK_BYTES) else {
        return Ok(None);
    };
    let frame = block.get(FIRST_FRAME).unwrap_or_default();
    let Some((header, payload)) = frame.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let content = block.get(..INDEX_CONTENT).unwrap_or_default();
    let is_sound = le::<4>(&block, 0) == INDEX_MAGIC
        && u32_at(&block, 4) == INDEX_VERSION
        && u64_at(&block, INDEX_CONTENT) == xxh3_64_with_seed(content, xxh3_64(header));
    let Ok(parsed) = Header::parse(header, 0, &description.chain) else { return Ok(None) };
    let segment = SegmentHeader::parse(payload);
    let is_its = parsed.kind == Kind::Segment
        && usize::try_from(parsed.length).is_ok_and(|length| length == payload.len())
        && parsed.checksum == xxh3_64(payload)
        && segment.chain == description.chain
        && (segment.number, segment.more) == (numbers.first, numbers.last - numbers.first);
    let proof = Proof { epoch: u64_at(&block, 56), identity: u128_at(&block, 64), index: Some(name.to_owned()) };
    Ok((is_sound && is_its && proof.epoch > 0).then_some(proof))
}

/// Up to `most` bytes from the beginning of a regular file; `None` where there is none.
fn head(place: &Place, name: &str, most: usize) -> Result<Option<Vec<u8>>, VerifyError> {
    let io = |source| VerifyError::Io { path: place.path().join(name), offset: 0, source };
    match place.look(name) {
        Ok(found) if found.is_file => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    }
    match place.head(name, most) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
    }
}
