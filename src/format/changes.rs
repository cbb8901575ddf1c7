//! Blocks of changes: pages as what differs from their version before.

use super::block::{BlockEncoding, BlockList, encode_list};
use super::fields::Fields;
use super::{FRAME_HEADER_BYTES, FormatError};
use crate::page::{Gfn, PAGE_SIZE, PageBytes};
use crate::xxh3::xxh3_64;

/// The most words of 8 bytes that a change of a page may have.
pub const CHANGED_WORDS_MAX: u32 = 256;

/// The most blocks of changes that a reader may need for a page, besides one that has it whole.
pub const CHANGES_DEPTH_MAX: u8 = 15;

const WORD_BYTES: usize = 8;
const WORDS: usize = PAGE_SIZE / WORD_BYTES;
const BITS_BYTES: usize = WORDS / 8;

/// Which words of a page differ from those of another version of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedWords {
    /// Bit *k* of word *n* stands for word 64 *n* + *k* of the page.
    bits: [u64; WORDS / 64],
}

impl ChangedWords {
    /// Compares two versions of a page.
    #[must_use]
    pub fn between(before: &PageBytes, now: &PageBytes) -> Self {
        let (before, _) = before.as_chunks::<512>();
        let (now, _) = now.as_chunks::<512>();
        let mut bits = [0; WORDS / 64];
        for ((bits, before), now) in bits.iter_mut().zip(before).zip(now) {
            let (before, _) = before.as_chunks::<WORD_BYTES>();
            let (now, _) = now.as_chunks::<WORD_BYTES>();
            *bits =
                (0..).zip(before.iter().zip(now)).fold(0, |bits, (word, (before, now))| bits | u64::from(before != now) << word);
        }
        Self { bits }
    }

    /// How many words differ.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.bits.iter().map(|bits| bits.count_ones()).sum()
    }

    /// The numbers of the words that differ, rising.
    fn words(&self) -> impl Iterator<Item = usize> {
        (0..).step_by(64).zip(self.bits).flat_map(|(first, mut rest)| {
            std::iter::from_fn(move || {
                let bit = usize::try_from(rest.trailing_zeros()).ok().filter(|_| rest != 0)?;
                rest &= rest - 1;
                Some(first + bit)
            })
        })
    }

    /// Makes of the version before the version that it was compared with.
    pub fn patch(&self, before: &mut PageBytes, now: &PageBytes) {
        let (before, _) = before.as_chunks_mut::<WORD_BYTES>();
        let (now, _) = now.as_chunks::<WORD_BYTES>();
        for word in self.words() {
            if let (Some(before), Some(now)) = (before.get_mut(word), now.get(word)) {
                *before = *now;
            }
        }
    }

    fn bits(&self) -> [u8; BITS_BYTES] {
        let mut bytes = [0; BITS_BYTES];
        for (place, bits) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.bits) {
            *place = bits.to_le_bytes();
        }
        bytes
    }
}

/// Appends the payload of a pages frame with changes to `out`: for each page its gfn, what it is
/// now, and which words of it changed. Writes nothing where it fails.
pub(super) fn encode_changes(out: &mut Vec<u8>, block: &[(Gfn, &PageBytes, ChangedWords)]) -> Result<(), FormatError> {
    let begin = out.len();
    encode_list(out, BlockEncoding::Changes, block.iter().map(|(gfn, ..)| *gfn))?;
    for (gfn, now, changed) in block {
        let count = changed.count();
        if !(1..=CHANGED_WORDS_MAX).contains(&count) {
            out.truncate(begin);
            return Err(FormatError::input("changed words", format!("1 to {CHANGED_WORDS_MAX}"), format!("{count} in {gfn}")));
        }
        out.extend_from_slice(&xxh3_64(*now).to_le_bytes());
        out.extend_from_slice(&changed.bits());
        let (words, _) = now.as_chunks::<WORD_BYTES>();
        for word in changed.words().filter_map(|word| words.get(word)) {
            out.extend_from_slice(word);
        }
    }
    Ok(())
}

/// What changed of one page.
#[derive(Clone, Copy, Debug)]
pub struct PageChange<'a> {
    page_hash: u64,
    changed: ChangedWords,
    words: &'a [[u8; WORD_BYTES]],
    /// Where its checksum stands, from the frame's beginning.
    offset: usize,
}

impl PageChange<'_> {
    /// Makes of the page's version before the version that the block has.
    ///
    /// # Errors
    /// The page that comes of it is not what was captured: `page` was not the version before.
    pub fn apply(&self, page: &mut PageBytes) -> Result<(), FormatError> {
        let (place, _) = page.as_chunks_mut::<WORD_BYTES>();
        for (word, bytes) in self.changed.words().zip(self.words) {
            if let Some(place) = place.get_mut(word) {
                *place = *bytes;
            }
        }
        let found = xxh3_64(page);
        if found != self.page_hash {
            let (offset, expected) = (self.offset as u64, self.page_hash);
            return Err(FormatError::Checksum { field: "page checksum", offset, expected, found });
        }
        Ok(())
    }
}

/// Takes the payload of a block of changes apart: its list, and for each page of it what changed.
///
/// # Errors
/// As [`BlockList::parse`]; a block of whole pages; no word or too many words that changed; bytes
/// behind the last page's.
pub fn decode_changes(payload: &[u8]) -> Result<(BlockList, Vec<PageChange<'_>>), FormatError> {
    let list = BlockList::parse(payload)?;
    if !list.is_changes() {
        return Err(FormatError::field("encoding", FRAME_HEADER_BYTES, "2", "whole pages"));
    }
    let mut fields = Fields::new(payload.get(list.bytes()..).unwrap_or_default(), FRAME_HEADER_BYTES + list.bytes());
    let mut changes = Vec::with_capacity(list.gfns().len());
    for _ in list.gfns() {
        let offset = fields.offset();
        let page_hash = fields.u64("page checksum")?;
        let at = fields.offset();
        let mut changed = ChangedWords { bits: [0; WORDS / 64] };
        for bits in &mut changed.bits {
            *bits = fields.u64("bits of changed words")?;
        }
        let count = changed.count();
        if !(1..=CHANGED_WORDS_MAX).contains(&count) {
            return Err(FormatError::field("bits of changed words", at, format!("1 to {CHANGED_WORDS_MAX} set"), count));
        }
        let bytes = usize::try_from(count).unwrap_or(WORDS) * WORD_BYTES;
        let (words, _) = fields.bytes("changed words", bytes)?.as_chunks();
        changes.push(PageChange { page_hash, changed, words, offset });
    }
    fields.end("changes")?;
    Ok((list, changes))
}
