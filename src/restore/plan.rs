//! Plan and eager fill.

use std::collections::HashMap;
use std::error::Error;
use std::io;

use super::found::Found;
use crate::format::{
    BLOCK_LIST_BYTES_MAX, BLOCK_PAGES, BlockDecoder, BlockList, BlockPages, CHANGES_DEPTH_MAX, FORMAT_WITH_CHANGES, FormatError,
    FrameKind, MemoryDigest, decode_changes, decode_state, decode_zeros, hash_bytes, is_zero, unpack_state,
};
use crate::machine::StateRecord;
use crate::memory::MemoryError;
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
    /// A page that is wanted on demand can't be read.
    #[error("page {gfn} of epoch {epoch} can't be read")]
    Page {
        /// The epoch that is restored.
        epoch: EpochId,
        /// The page.
        gfn: Gfn,
        /// Why.
        source: StoreError,
    },
    /// Pages can't be brought as they are touched.
    #[error("memory can't be filled on demand")]
    OnDemand(#[source] MemoryError),
    /// A thread that brings pages could not be started, or ended.
    #[error("{step}")]
    Thread {
        /// What was being done.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
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
    /// What to do about it where the host lacks something, in a sentence without a final stop.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::OnDemand(MemoryError::Userfault(error)) => Some(error.hint()),
            _ => None,
        }
    }

    /// Whether something that should be sound is damaged.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Store(error) | Self::Page { source: error, .. } if error.is_damage())
    }
}

/// What a fill did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Filled {
    /// Pages written: those that are not zero.
    pub pages: u64,
    /// Blocks read and decoded. One that has versions that others build on may count more than once, in large chains.
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
    /// The pages whose newest version is a change, rising.
    changed: Vec<Gfn>,
    state: Vec<StateRecord>,
    state_hash: u128,
}

/// A block of which some pages count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needed {
    /// The index of its epoch in the chain.
    pub(super) epoch: usize,
    pub(super) frame: FrameAt,
    /// The pages whose newest version it has: bit 0 is the first of the block's list.
    newest: u16,
    /// The pages of which it has an older version, that newer ones are changes of.
    older: u16,
    /// Whether it holds changes.
    pub(super) changes: bool,
    /// The first and the last of its pages that have a version that is a change, where there are any.
    changed: Option<(Gfn, Gfn)>,
}

/// Pages whose newest version is a change, and which a pass of a fill puts together: what is held of them until they are whole is bounded by this (64 MiB).
const PASS_PAGES: usize = if cfg!(test) { 5 } else { 16_384 };

impl<'a> Plan<'a> {
    /// Plans the restore of `epoch`.
    ///
    /// # Errors
    /// An epoch that the chain does not hold or that damage hides; damage of the epoch's state or of a list that is needed.
    pub fn new(chain: &'a Chain, epoch: EpochId) -> Result<Self, RestoreError> {
        Self::search(chain, epoch, None)
    }

    /// As [`new`](Self::new). Lists the versions of every page that count, newest first, in `versions`: each with its block's place in [`into_parts`](Self::into_parts).
    pub(super) fn with_versions(chain: &'a Chain, epoch: EpochId, versions: &mut Vec<(Gfn, u32)>) -> Result<Self, RestoreError> {
        let plan = Self::search(chain, epoch, Some(versions))?;
        let last = plan.blocks.len().saturating_sub(1);
        for (_, block) in versions {
            *block = u32::try_from(last).unwrap_or(u32::MAX).saturating_sub(*block);
        }
        Ok(plan)
    }

    /// The blocks, in file order, and the state.
    pub(super) fn into_parts(self) -> (Vec<Needed>, Vec<StateRecord>) {
        (self.blocks, self.state)
    }

    fn search(chain: &'a Chain, epoch: EpochId, versions: Option<&mut Vec<(Gfn, u32)>>) -> Result<Self, RestoreError> {
        let index = chain.index(epoch)?;
        let mut reader = SegmentReader::new(chain);
        let mut buffer = Vec::new();
        let mut plan = Self { chain, epoch, blocks: Vec::new(), pages: 0, changed: Vec::new(), state: Vec::new(), state_hash: 0 };
        let record = chain.epoch(epoch)?;
        let payload = reader.state_payload(record, &mut buffer)?;
        let plain = unpack_state(payload).and_then(|plain| Ok((hash_bytes(&plain), decode_state(&plain)?)));
        let plain = plain.map_err(|error| reader.damaged(epoch, record.segment, record.state_offset, &error))?;
        (plan.state_hash, plan.state) = plain;

        let mut search = Search { versions, ..Search::default() };
        let mut frames = Vec::new();
        for (index, epoch) in chain.epochs().iter().enumerate().take(index + 1).rev() {
            reader.frames(epoch, &mut frames)?;
            // Within an epoch too, the newest mention counts.
            for frame in frames.iter().rev() {
                plan.mention(&mut reader, &mut search, &mut buffer, index, epoch, frame)?;
            }
            if epoch.commit.base || search.found.frames() >= chain.identity().frames() {
                break;
            }
        }
        plan.blocks.reverse();
        plan.changed = search.depths.into_keys().collect();
        plan.changed.sort_unstable();
        Ok(plan)
    }

    fn mention(
        &mut self,
        reader: &mut SegmentReader<'_>,
        search: &mut Search<'_>,
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
                let damaged = |error| reader.damaged(epoch.commit.epoch, epoch.segment, frame.offset, &error);
                if list.is_changes() && identity.format < FORMAT_WITH_CHANGES {
                    let error = FormatError::field("encoding", BLOCK_LIST_AT, "0 or 1 in a chain of format 1", 2);
                    return Err(damaged(error));
                }
                let mut needed =
                    Needed { epoch: index, frame: *frame, newest: 0, older: 0, changes: list.is_changes(), changed: None };
                for (bit, gfn) in list.gfns().iter().enumerate() {
                    if !identity.contains(*gfn) {
                        return Err(damaged(FormatError::field("gfn", BLOCK_LIST_AT, "a page of guest memory", gfn)));
                    }
                    match search.version(*gfn, list.is_changes()) {
                        Version::Superseded => continue,
                        Version::Newest => needed.newest |= 1 << bit,
                        Version::Older => needed.older |= 1 << bit,
                        Version::TooDeep => {
                            let expected = format!("at most {CHANGES_DEPTH_MAX} changes of a page behind each other");
                            return Err(damaged(FormatError::field("gfn", BLOCK_LIST_AT, expected, format!("more of {gfn}"))));
                        }
                    }
                    if let Some(versions) = &mut search.versions {
                        versions.push((*gfn, u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)));
                    }
                    if search.depths.contains_key(gfn) {
                        needed.changed = Some((needed.changed.map_or(*gfn, |(first, _)| first), *gfn));
                    }
                }
                if needed.newest | needed.older != 0 {
                    self.pages += u64::from(needed.newest.count_ones());
                    self.blocks.push(needed);
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
                    search.found.add(run, |_| {});
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

    /// Writes every page that is not zero to `target`, reading each block once, in file order: with blocks of changes, some more
    /// often where more than 16,384 pages have changes as their newest version. `progress` is called after each block
    /// with the number of pages done and in all.
    ///
    /// # Errors
    /// Damage, and whatever keeps the target from taking a page. `target` then holds a part of the machine: it must not be run.
    pub fn fill(&self, target: &mut impl PageTarget, progress: &mut dyn FnMut(u64, u64)) -> Result<Filled, RestoreError> {
        let mut fill = Fill {
            plan: self,
            reader: SegmentReader::new(self.chain),
            decoder: BlockDecoder::new(),
            pages: Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]),
            buffer: Vec::new(),
            held: HashMap::new(),
            filled: Filled::default(),
            done: 0,
        };
        let mut passes = self.changed.chunks(PASS_PAGES).map(|pages| Some((*pages.first()?, *pages.last()?)));
        let mut pass = passes.next().flatten();
        for needed in &self.blocks {
            fill.block(needed, pass, true, target)?;
            progress(fill.done, self.pages);
        }
        for next in passes {
            pass = next;
            for needed in self.blocks.iter().filter(|needed| within(needed.changed, pass)) {
                fill.block(needed, pass, false, target)?;
                progress(fill.done, self.pages);
            }
        }
        Ok(fill.filled)
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

/// Whether two ranges of pages have any page in common.
fn within(one: Option<(Gfn, Gfn)>, other: Option<(Gfn, Gfn)>) -> bool {
    one.zip(other).is_some_and(|((first, last), (from, to))| first <= to && from <= last)
}

/// What was found while walking back from the epoch.
#[derive(Debug, Default)]
struct Search<'v> {
    /// Pages whose newest version that is no change was met.
    found: Found,
    /// For each page whose newest version is a change, how many changes of it were met.
    depths: HashMap<Gfn, u8>,
    /// Every version that counts, and the place of its block among those met, where that is wanted.
    versions: Option<&'v mut Vec<(Gfn, u32)>>,
}

/// What a version of a page is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// Nothing: a newer one is whole.
    Superseded,
    /// It is the newest.
    Newest,
    /// The one after it is a change of it.
    Older,
    /// There are more changes on top of it than the format allows.
    TooDeep,
}

impl Search<'_> {
    /// Meets a version of a page, older than all met before.
    fn version(&mut self, gfn: Gfn, change: bool) -> Version {
        let is_newest = !self.depths.contains_key(&gfn);
        if change {
            if self.found.contains(gfn) {
                return Version::Superseded;
            }
            let depth = self.depths.entry(gfn).or_default();
            *depth += 1;
            if *depth > CHANGES_DEPTH_MAX {
                return Version::TooDeep;
            }
        } else {
            let mut fresh = false;
            self.found.add(PageRun { first: gfn, count: 1 }, |_| fresh = true);
            if !fresh {
                return Version::Superseded;
            }
        }
        if is_newest { Version::Newest } else { Version::Older }
    }
}

/// A fill under way.
struct Fill<'a, 'p> {
    plan: &'p Plan<'a>,
    reader: SegmentReader<'a>,
    decoder: BlockDecoder,
    pages: Box<BlockPages>,
    buffer: Vec<u8>,
    /// Pages that are not their newest version yet.
    held: HashMap<Gfn, Box<PageBytes>>,
    filled: Filled,
    /// Pages done, zero or not.
    done: u64,
}

impl Fill<'_, '_> {
    /// Takes what is needed of a block. Of the pages whose newest version is a change, only those of this pass; of the others all in the first pass, and
    /// none later.
    fn block(
        &mut self,
        needed: &Needed,
        pass: Option<(Gfn, Gfn)>,
        first_pass: bool,
        target: &mut impl PageTarget,
    ) -> Result<(), RestoreError> {
        let Some(epoch) = self.plan.chain.epochs().get(needed.epoch) else { return Ok(()) };
        let payload = self.reader.payload(epoch, &needed.frame, &mut self.buffer)?;
        let (number, segment, offset) = (epoch.commit.epoch, epoch.segment, needed.frame.offset);
        let in_pass = |gfn: Gfn| within(Some((gfn, gfn)), pass);
        let decoded = if needed.changes {
            decode_changes(payload).and_then(|(list, changes)| {
                for (bit, ((gfn, change), page)) in list.gfns().iter().zip(changes).zip(self.pages.iter_mut()).enumerate() {
                    if (needed.newest | needed.older) & (1 << bit) != 0 && in_pass(*gfn) {
                        // What nothing was found of is zeros.
                        *page = self.held.remove(gfn).map_or([0; PAGE_SIZE], |held| *held);
                        change.apply(page)?;
                    }
                }
                Ok(list)
            })
        } else {
            self.decoder.decode(payload, &mut self.pages)
        };
        let list = decoded.map_err(|error| self.reader.damaged(number, segment, offset, &error))?;
        for (bit, (gfn, page)) in list.gfns().iter().zip(self.pages.iter()).enumerate() {
            let (newest, older) = (needed.newest & (1 << bit) != 0, needed.older & (1 << bit) != 0);
            let due = if needed.changes || older { in_pass(*gfn) } else { first_pass };
            if older && due {
                self.held.insert(*gfn, Box::new(*page));
            }
            if newest && due {
                self.done += 1;
                if !is_zero(page) {
                    let taken = target.write_page(*gfn, page);
                    taken.map_err(|source| RestoreError::Target { epoch: self.plan.epoch, gfn: *gfn, source })?;
                    self.filled.pages += 1;
                }
            }
        }
        self.filled.blocks += 1;
        self.filled.bytes_read += needed.frame.header.frame_bytes();
        Ok(())
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
    /// Of state: xxh3-128 of the state frame's payload, unpacked.
    pub state: u128,
}

/// Computes the digest of an epoch from the chain.
///
/// # Errors
/// As [`Plan::new`] and [`Plan::fill`].
pub fn digest(chain: &Chain, epoch: EpochId) -> Result<Digest, RestoreError> {
    Plan::new(chain, epoch)?.digest()
}
