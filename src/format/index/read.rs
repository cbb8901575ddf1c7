//! Looking things up in an index, in place.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    BLOCK_BYTES, CONTENT_BYTES, EPOCHS, FIRST_FRAME_AT, FRAMES, INDEX_MENTIONS_MAX, IndexedEpoch, IndexedFrame, IndexedRun,
    MAGIC, MENTIONS, Mention, RUNS, Table, VERSION,
};
use crate::format::fields::Fields;
use crate::format::{BLOCK_PAGES, FRAME_HEADER_BYTES, FormatError, SEGMENT_HEADER_FRAME_BYTES};
use crate::page::{EpochId, Gfn, PageRun};
use crate::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The bytes of an index, which may be those of a file that is mapped.
pub trait IndexBytes: AsRef<[u8]> + Send + Sync + fmt::Debug {
    /// Makes sure that bytes can be read: asked before they are looked at for the first time.
    ///
    /// # Errors
    /// What the operating system says where they cannot be had.
    fn ready(&self, offset: usize, len: usize) -> io::Result<()>;
}

impl IndexBytes for Vec<u8> {
    fn ready(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }
}

/// Why an index does not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Its bytes are not what `docs/format.md` says. Offsets are from the beginning of the index.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Its bytes could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An index. Blocks are checked when they are used for the first time.
#[derive(Debug)]
pub struct Index {
    bytes: Box<dyn IndexBytes>,
    key: u64,
    /// One bit for each block that was checked.
    checked: Vec<AtomicU64>,
    tables: [At; 4],
    previous: EpochId,
    last: EpochId,
    identity: u128,
    base: Option<u64>,
}

/// Where a table is.
#[derive(Clone, Copy, Debug)]
struct At {
    table: Table,
    first_block: u64,
    entries: u64,
}

/// Blocks whose bytes are asked for together: 64 KiB.
const READY_BLOCKS: usize = 16;

impl Index {
    /// Looks at the first block. `header` is the header of the segment's first frame.
    ///
    /// # Errors
    /// An index of another segment, or of one of another length; another version; tables that do
    /// not fit the file.
    pub fn open(bytes: Box<dyn IndexBytes>, header: &[u8; FRAME_HEADER_BYTES], segment_bytes: u64) -> Result<Self, IndexError> {
        let len = bytes.as_ref().as_ref().len();
        let blocks = len / BLOCK_BYTES;
        let mut index = Self {
            bytes,
            key: xxh3_64(header),
            checked: std::iter::repeat_with(AtomicU64::default).take(blocks.div_ceil(64)).collect(),
            tables: [EPOCHS, FRAMES, RUNS, MENTIONS].map(|table| At { table, first_block: 0, entries: 0 }),
            previous: EpochId::NONE,
            last: EpochId::NONE,
            identity: 0,
            base: None,
        };
        if blocks == 0 || !len.is_multiple_of(BLOCK_BYTES) {
            return Err(FormatError::field("bytes of the index", 0, "whole blocks of 4096", len).into());
        }
        let mut fields = Fields::new(index.block(0)?, 0);
        let magic = fields.bytes("magic", 4)?;
        if magic != MAGIC {
            return Err(FormatError::field("magic", 0, "D7 53 57 49", format!("{magic:02X?}")).into());
        }
        let version = fields.u32("version of the index")?;
        if version != VERSION {
            return Err(FormatError::field("version of the index", 4, VERSION, version).into());
        }
        let bytes_found = fields.u64("bytes of the segment")?;
        if bytes_found != segment_bytes {
            return Err(FormatError::field("bytes of the segment", 8, segment_bytes, bytes_found).into());
        }
        let mut counts = [0; 4];
        for count in &mut counts {
            *count = fields.u64("entries of a table")?;
        }
        let previous = EpochId(fields.u64("epoch before the first")?);
        let last = EpochId(fields.u64("last epoch")?);
        let identity = fields.u128("identity of the last epoch")?;
        let base = fields.u64("last base")?;
        if !fields.bytes("first frame of the segment", SEGMENT_HEADER_FRAME_BYTES)?.starts_with(header) {
            return Err(FormatError::field("first frame of the segment", FIRST_FRAME_AT, "the segment's", "another").into());
        }
        fields.zeros("reserved", CONTENT_BYTES - FIRST_FRAME_AT - SEGMENT_HEADER_FRAME_BYTES)?;
        let [epochs, frames, runs, mentions] = counts;
        let most = u64::from(u32::MAX);
        for (at, found, most) in
            [(16, epochs, most), (24, frames, most), (32, runs, mentions), (40, mentions, INDEX_MENTIONS_MAX)]
        {
            if found > most {
                return Err(FormatError::field("entries of a table", at, format!("up to {most}"), found).into());
            }
        }
        let mut block = 1;
        for (at, entries) in index.tables.iter_mut().zip(counts) {
            (at.first_block, at.entries) = (block, entries);
            block += at.table.blocks(entries);
        }
        if block != blocks as u64 {
            return Err(FormatError::field("blocks of the index", 0, block, blocks).into());
        }
        if base > epochs {
            return Err(FormatError::field("last base", 80, format!("up to {epochs}"), base).into());
        }
        (index.previous, index.last, index.identity, index.base) = (previous, last, identity, base.checked_sub(1));
        Ok(index)
    }

    /// The epoch before the first.
    #[must_use]
    pub const fn previous(&self) -> EpochId {
        self.previous
    }

    /// The last epoch, or none.
    #[must_use]
    pub const fn last(&self) -> EpochId {
        self.last
    }

    /// The identity of the last epoch; 0 for none.
    #[must_use]
    pub const fn identity(&self) -> u128 {
        self.identity
    }

    /// The number of the newest epoch up to `number` that mentions every page that is not zero.
    ///
    /// # Errors
    /// A block that is not sound.
    pub fn base_up_to(&self, number: u64) -> Result<Option<u64>, IndexError> {
        match self.base {
            None => Ok(None),
            Some(base) if base <= number => Ok(Some(base)),
            Some(_) => {
                for number in (0..=number).rev() {
                    if self.epoch(number)?.base {
                        return Ok(Some(number));
                    }
                }
                Ok(None)
            }
        }
    }

    /// How many epochs there are.
    #[must_use]
    pub const fn epochs(&self) -> u64 {
        let [epochs, ..] = &self.tables;
        epochs.entries
    }

    /// How many frames mention pages.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        let [_, frames, ..] = &self.tables;
        frames.entries
    }

    /// How many runs of pages there are.
    #[must_use]
    pub const fn runs(&self) -> u64 {
        let [_, _, runs, _] = &self.tables;
        runs.entries
    }

    /// How many mentions there are: each is of all pages of a run.
    #[must_use]
    pub const fn mentions(&self) -> u64 {
        let [.., mentions] = &self.tables;
        mentions.entries
    }

    /// How many bytes the index has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.as_ref().as_ref().len()
    }

    /// The epoch with this number, from 0.
    ///
    /// # Errors
    /// A number that there is not; a block that is not sound.
    pub fn epoch(&self, number: u64) -> Result<IndexedEpoch, IndexError> {
        let [epochs, ..] = self.tables;
        let mut fields = self.entry(epochs, number)?;
        let epoch = EpochId(fields.u64("epoch")?);
        let (offset, state_offset) = (fields.u64("offset of the epoch")?, fields.u64("offset of the state")?);
        let commit_offset = fields.u64("offset of the commit")?;
        let at = fields.offset();
        let first_frame = fields.u32("first frame of the epoch")?;
        if u64::from(first_frame) > self.frames() {
            return Err(
                FormatError::field("first frame of the epoch", at, format!("up to {}", self.frames()), first_frame).into()
            );
        }
        let at = fields.offset();
        let base = match fields.u32("flags")? {
            0 => false,
            1 => true,
            flags => return Err(FormatError::field("flags", at, "no more than 1", flags).into()),
        };
        Ok(IndexedEpoch { epoch, offset, state_offset, commit_offset, first_frame, base })
    }

    /// The number of the first frame behind the epoch with this number: the next epoch's first, or
    /// how many there are.
    ///
    /// # Errors
    /// A block that is not sound.
    pub fn frames_end(&self, number: u64) -> Result<u32, IndexError> {
        match number + 1 < self.epochs() {
            true => Ok(self.epoch(number + 1)?.first_frame),
            false => Ok(u32::try_from(self.frames()).unwrap_or(u32::MAX)),
        }
    }

    /// How many epochs are below `epoch` or, where there is one of this number, which that is.
    ///
    /// # Errors
    /// A block that is not sound.
    pub fn find_epoch(&self, epoch: EpochId) -> Result<Result<u64, u64>, IndexError> {
        let after = self.partition(self.epochs(), |number| Ok(self.epoch(number)?.epoch <= epoch))?;
        match after.checked_sub(1) {
            Some(number) if self.epoch(number)?.epoch == epoch => Ok(Ok(number)),
            _ => Ok(Err(after)),
        }
    }

    /// The frame with this number, from 0.
    ///
    /// # Errors
    /// A number that there is not; a block that is not sound.
    pub fn frame(&self, number: u64) -> Result<IndexedFrame, IndexError> {
        let [_, frames, ..] = self.tables;
        let mut fields = self.entry(frames, number)?;
        let offset = fields.u64("offset of the frame")?;
        let at = fields.offset();
        let epoch = fields.u32("epoch of the frame")?;
        if u64::from(epoch) >= self.epochs() {
            return Err(FormatError::field("epoch of the frame", at, format!("below {}", self.epochs()), epoch).into());
        }
        let at = fields.offset();
        let mention = match (fields.u8("kind")?, fields.u8("changes")?) {
            (2, 0) => Mention::Whole,
            (2, 1) => Mention::Changes,
            (3, 0) => Mention::Zeros,
            (kind, changes) => return Err(FormatError::field("kind", at, "2 or 3", format!("{kind}, {changes}")).into()),
        };
        fields.zeros("reserved", 2)?;
        Ok(IndexedFrame { offset, epoch, mention })
    }

    /// The frame with this number, of which a run's mention says that it mentions all of `run`.
    /// What is counted page by page is bounded so.
    ///
    /// # Errors
    /// As [`frame`](Self::frame); a block, and more pages than a block has.
    pub fn frame_of(&self, number: u64, run: PageRun) -> Result<IndexedFrame, IndexError> {
        let frame = self.frame(number)?;
        if frame.mention != Mention::Zeros && run.count > BLOCK_PAGES as u64 {
            let expected = format!("up to {BLOCK_PAGES}, which a block mentions");
            return Err(FormatError::field("pages of a run", 0, expected, run.count).into());
        }
        Ok(frame)
    }

    /// The run with this number, from 0.
    ///
    /// # Errors
    /// A number that there is not; a block that is not sound; mentions that there are not.
    pub fn run(&self, number: u64) -> Result<IndexedRun, IndexError> {
        let [_, _, runs, _] = self.tables;
        let mut fields = self.entry(runs, number)?;
        let at = fields.offset();
        let run = PageRun { first: Gfn(fields.u64("first page of a run")?), count: fields.u64("pages of a run")? };
        if run.count == 0 || run.end().is_none() {
            return Err(FormatError::field("pages of a run", at + 8, "at least 1, below 2^64 in all", run.count).into());
        }
        let at = fields.offset();
        let first = fields.u64("first mention of a run")?;
        let end = match number + 1 == self.runs() {
            true => self.mentions(),
            false => {
                let mut next = self.entry(runs, number + 1)?;
                next.bytes("pages of a run", 16)?;
                next.u64("first mention of a run")?
            }
        };
        if first >= end || end > self.mentions() {
            return Err(FormatError::field("first mention of a run", at, format!("below {end}"), first).into());
        }
        Ok(IndexedRun { run, mentions: first..end })
    }

    /// The number of the first run that ends behind `gfn`: the one that holds it, if any does.
    ///
    /// # Errors
    /// A block that is not sound.
    pub fn run_from(&self, gfn: Gfn) -> Result<u64, IndexError> {
        self.partition(self.runs(), |number| Ok(self.run(number)?.run.end().is_some_and(|end| end <= gfn)))
    }

    /// The run that holds `gfn`.
    ///
    /// # Errors
    /// A block that is not sound.
    pub fn find_run(&self, gfn: Gfn) -> Result<Option<IndexedRun>, IndexError> {
        let number = self.run_from(gfn)?;
        if number == self.runs() {
            return Ok(None);
        }
        Ok(Some(self.run(number)?).filter(|found| found.run.contains(gfn)))
    }

    /// The number of the frame that a mention is in.
    ///
    /// # Errors
    /// A number that there is not; a block that is not sound.
    pub fn mention(&self, number: u64) -> Result<u32, IndexError> {
        let [.., mentions] = self.tables;
        let mut fields = self.entry(mentions, number)?;
        let at = fields.offset();
        let frame = fields.u32("frame of a mention")?;
        if u64::from(frame) >= self.frames() {
            return Err(FormatError::field("frame of a mention", at, format!("below {}", self.frames()), frame).into());
        }
        Ok(frame)
    }

    /// How many of a run's mentions are in frames below `frame`.
    ///
    /// # Errors
    /// A block that is not sound.
    pub fn mentions_below(&self, run: &IndexedRun, frame: u32) -> Result<u64, IndexError> {
        let first = run.mentions.start;
        self.partition(run.mentions.end - first, |number| Ok(self.mention(first + number)? < frame))
    }

    /// The number of leading entries for which `holds`, where they all come before those for which
    /// it does not.
    fn partition(&self, count: u64, holds: impl Fn(u64) -> Result<bool, IndexError>) -> Result<u64, IndexError> {
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            if holds(middle)? {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn entry(&self, at: At, number: u64) -> Result<Fields<'_>, IndexError> {
        if number >= at.entries {
            return Err(FormatError::field(at.table.name, 0, format!("below {}", at.entries), number).into());
        }
        let (in_block, bytes) = (at.table.entries_in_block() as u64, at.table.entry_bytes);
        let block = usize::try_from(at.first_block + number / in_block).unwrap_or(usize::MAX);
        let offset = usize::try_from(number % in_block).unwrap_or_default() * bytes;
        let entry = self.block(block)?.get(offset..offset + bytes).unwrap_or_default();
        Ok(Fields::new(entry, block.saturating_mul(BLOCK_BYTES).saturating_add(offset)))
    }

    /// The content of a block, checked.
    fn block(&self, number: usize) -> Result<&[u8], IndexError> {
        let all = self.bytes.as_ref().as_ref();
        let begin = number.saturating_mul(BLOCK_BYTES);
        let outside = || FormatError::field("block of the index", 0, format!("below {}", all.len() / BLOCK_BYTES), number);
        let checked = self.checked.get(number / 64).ok_or_else(outside)?;
        let bit = 1 << (number % 64);
        if checked.load(Ordering::Relaxed) & bit == 0 {
            if self.is_first_of_its_step(number) {
                let first = number / READY_BLOCKS * READY_BLOCKS * BLOCK_BYTES;
                self.bytes.ready(first, (READY_BLOCKS * BLOCK_BYTES).min(all.len().saturating_sub(first)))?;
            }
            let block = all.get(begin..begin.saturating_add(BLOCK_BYTES)).ok_or_else(outside)?;
            let (content, sum) = block.split_at(CONTENT_BYTES);
            let stored = sum.try_into().map(u64::from_le_bytes).unwrap_or_default();
            let found = xxh3_64_with_seed(content, self.key.wrapping_add(number as u64));
            if stored != found {
                let offset = (begin + CONTENT_BYTES) as u64;
                let error = FormatError::Checksum { field: "checksum of a block of the index", offset, expected: stored, found };
                return Err(error.into());
            }
            checked.fetch_or(bit, Ordering::Relaxed);
        }
        all.get(begin..begin.saturating_add(CONTENT_BYTES)).ok_or_else(|| outside().into())
    }

    /// Whether no other block was checked of those that are made ready with this one.
    fn is_first_of_its_step(&self, number: usize) -> bool {
        let mask = 0xFFFF << (number % 64 / READY_BLOCKS * READY_BLOCKS);
        self.checked.get(number / 64).is_none_or(|word| word.load(Ordering::Relaxed) & mask == 0)
    }
}
