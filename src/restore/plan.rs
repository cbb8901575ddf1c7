//! Plan and eager fill.

use std::error::Error;

use super::found::Found;
use crate::format::{
    BLOCK_LIST_BYTES_MAX, BLOCK_PAGES, BlockDecoder, BlockList, BlockPages, FormatError, FrameKind, MemoryDigest, decode_state,
    decode_zeros, hash_bytes, is_zero,
};
use crate::machine::StateRecord;
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes, PageRun};
use crate::store::{Chain, Epoch, FrameAt, SegmentReader, StoreError};

/// Why a target did not take a page.
pub type TargetError = Box<dyn Error + Send + Sync>;

/// Where the pages of a restored machine go. It begins as zeros.
pub trait PageTarget {
    /// Takes the content of one page. Each gfn comes at most once, and lies within the memory of the chain's identity.
    ///
    /// # Errors
    /// Whatever kept the page from being taken; the fill ends then.
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError>;
}

/// Why a checkpoint could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The chain does not give what is needed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target did not take a page.
    #[error("page {gfn} of epoch {epoch} could not be put into memory")]
    Target {
        /// The epoch that is restored.
        epoch: EpochId,
        /// The page.
        gfn: Gfn,
        /// The target's reason.
        source: TargetError,
    },
}

impl RestoreError {
    /// Whether something that should be sound is damaged.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_damage())
    }
}

/// What a fill did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Filled {
    /// Pages written: those that are not zero.
    pub pages: u64,
    /// Blocks read and decoded.
    pub blocks: u64,
    /// Bytes of them in the chain.
    pub bytes_read: u64,
}

/// Where the newest version of each page is, at one epoch of a chain, and the state of that epoch.
///
/// A plan reads the lists of blocks and not their data; [`fill`](Self::fill) reads those that are needed.
#[derive(Debug)]
pub struct Plan<'a> {
    chain: &'a Chain,
    epoch: EpochId,
    /// In file order.
    blocks: Vec<Needed>,
    pages: u64,
    state: Vec<StateRecord>,
    state_hash: u128,
}

/// A block of which some pages count.
#[derive(Clone, Copy, Debug)]
struct Needed {
    /// The index of its epoch in the chain.
    epoch: usize,
    frame: FrameAt,
    /// The pages that count: bit 0 is the first of the block's list.
    pages: u16,
}

impl<'a> Plan<'a> {
    /// Plans the restore of `epoch`.
    ///
    /// # Errors
    /// An epoch that the chain does not hold or that damage hides; damage of the epoch's state or of a list that is needed.
    pub fn new(chain: &'a Chain, epoch: EpochId) -> Result<Self, RestoreError> {
        let index = chain.index(epoch)?;
        let mut reader = SegmentReader::new(chain);
        let mut buffer = Vec::new();
        let mut plan = Self { chain, epoch, blocks: Vec::new(), pages: 0, state: Vec::new(), state_hash: 0 };
        let record = chain.epoch(epoch)?;
        let payload = reader.state_payload(record, &mut buffer)?;
        plan.state_hash = hash_bytes(payload);
        plan.state = decode_state(payload).map_err(|error| reader.damaged(epoch, record.segment, record.state_offset, &error))?;

        let mut found = Found::default();
        let mut frames = Vec::new();
        for (index, epoch) in chain.epochs().iter().enumerate().take(index + 1).rev() {
            reader.frames(epoch, &mut frames)?;
            // Within an epoch too, the newest mention counts.
            for frame in frames.iter().rev() {
                plan.mention(&mut reader, &mut found, &mut buffer, index, epoch, frame)?;
            }
            if epoch.commit.base || found.frames() >= chain.identity().frames() {
                break;
            }
        }
        plan.blocks.reverse();
        Ok(plan)
    }

    fn mention(
        &mut self,
        reader: &mut SegmentReader<'_>,
        found: &mut Found,
        buffer: &mut Vec<u8>,
        index: usize,
        epoch: &Epoch,
        frame: &FrameAt,
    ) -> Result<(), StoreError> {
        let identity = self.chain.identity();
        match frame.header.kind {
            FrameKind::Pages => {
                let mut list = [0; BLOCK_LIST_BYTES_MAX];
                let list = BlockList::parse(reader.payload_prefix(epoch, frame, &mut list)?);
                let list = list.map_err(|error| reader.damaged(epoch.commit.epoch, epoch.segment, frame.offset, &error))?;
                let mut pages = 0u16;
                for (bit, gfn) in list.gfns().iter().enumerate() {
                    if !identity.contains(*gfn) {
                        let error = FormatError::field("gfn", BLOCK_LIST_AT, "a page of guest memory", gfn);
                        return Err(reader.damaged(epoch.commit.epoch, epoch.segment, frame.offset, &error));
                    }
                    found.add(PageRun { first: *gfn, count: 1 }, |_| pages |= 1 << bit);
                }
                if pages != 0 {
                    self.pages += u64::from(pages.count_ones());
                    self.blocks.push(Needed { epoch: index, frame: *frame, pages });
                }
            }
            FrameKind::Zeros => {
                let runs = decode_zeros(reader.payload(epoch, frame, buffer)?);
                let runs = runs.map_err(|error| reader.damaged(epoch.commit.epoch, epoch.segment, frame.offset, &error))?;
                for run in runs {
                    if !identity.contains_run(run) {
                        let found = format!("{} pages from {}", run.count, run.first);
                        let error = FormatError::field("run", BLOCK_LIST_AT, "pages of guest memory", found);
                        return Err(reader.damaged(epoch.commit.epoch, epoch.segment, frame.offset, &error));
                    }
                    found.add(run, |_| {});
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The epoch.
    #[must_use]
    pub const fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// How many pages [`fill`](Self::fill) goes through.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// How many blocks it reads.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The state records of the epoch, in the order of the chain. A restore must use every one.
    #[must_use]
    pub fn state(&self) -> &[StateRecord] {
        &self.state
    }

    /// Writes every page that is not zero to `target`, reading each block once, in file order. `progress` is called after each block
    /// with the number of pages done and in all.
    ///
    /// # Errors
    /// Damage, and whatever keeps the target from taking a page. `target` then holds a part of the machine: it must not be run.
    pub fn fill(&self, target: &mut impl PageTarget, progress: &mut dyn FnMut(u64, u64)) -> Result<Filled, RestoreError> {
        let mut reader = SegmentReader::new(self.chain);
        let mut decoder = BlockDecoder::new();
        let mut pages: Box<BlockPages> = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
        let mut buffer = Vec::new();
        let mut filled = Filled::default();
        let mut done = 0;
        for Needed { epoch, frame, pages: wanted } in &self.blocks {
            let Some(epoch) = self.chain.epochs().get(*epoch) else { continue };
            let payload = reader.payload(epoch, frame, &mut buffer)?;
            let list = decoder.decode(payload, &mut pages);
            let list = list.map_err(|error| reader.damaged(epoch.commit.epoch, epoch.segment, frame.offset, &error))?;
            for (bit, (gfn, page)) in list.gfns().iter().zip(pages.iter()).enumerate() {
                if wanted & (1 << bit) != 0 && !is_zero(page) {
                    let taken = target.write_page(*gfn, page);
                    taken.map_err(|source| RestoreError::Target { epoch: self.epoch, gfn: *gfn, source })?;
                    filled.pages += 1;
                }
            }
            filled.blocks += 1;
            filled.bytes_read += frame.header.frame_bytes();
            done += u64::from(wanted.count_ones());
            progress(done, self.pages);
        }
        Ok(filled)
    }

    /// The digest of what this plan restores.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn digest(&self) -> Result<Digest, RestoreError> {
        let mut memory = MemoryDigest::default();
        self.fill(&mut memory, &mut |_, _| {})?;
        Ok(Digest { memory, state: self.state_hash })
    }
}

/// Where the lists of pages and zeros frames begin in their frames.
const BLOCK_LIST_AT: usize = crate::format::FRAME_HEADER_BYTES;

impl PageTarget for MemoryDigest {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        self.add_page(gfn, page);
        Ok(())
    }
}

/// A digest of all memory and all state of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Of memory: what an audit of the epoch holds.
    pub memory: MemoryDigest,
    /// Of state: xxh3-128 of the state frame's payload.
    pub state: u128,
}

/// Computes the digest of an epoch from the chain.
///
/// # Errors
/// As [`Plan::new`] and [`Plan::fill`].
pub fn digest(chain: &Chain, epoch: EpochId) -> Result<Digest, RestoreError> {
    Plan::new(chain, epoch)?.digest()
}
