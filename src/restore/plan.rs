//! Plan and eager fill.

use std::error::Error;
use std::io;
use std::num::NonZero;

use crate::format::StateRecord;
use crate::format::{MemoryDigest, decode_state, hash_bytes, is_zero, unpack_state};
#[cfg(feature = "kvm")]
use crate::memory::MemoryError;
use crate::page::{EpochId, Gfn, PageBytes, PageRun};
use crate::store::read::assembly::{Assembly, Want};
use crate::store::read::blocks::{self, Block, BlockPlace};
use crate::store::read::newest::{self, Counts, Pages};
use crate::store::read::view::View;
use crate::store::{Chain, Segment, StoreError};

/// Why a target did not take a page.
pub type TargetError = Box<dyn Error + Send + Sync>;

/// Where the pages of a restored machine go. It begins as zeros.
pub trait PageTarget {
    /// Most or all pages of `run` come next: a hint.
    fn expect(&mut self, run: PageRun) {
        let _ = run;
    }

    /// Takes the content of one page. Each gfn comes at most once, and lies within the memory of
    /// the chain's identity.
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
    #[cfg(feature = "kvm")]
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
            #[cfg(feature = "kvm")]
            Self::OnDemand(MemoryError::Userfault(error)) => Some(error.hint()),
            _ => None,
        }
    }

    /// The error of a target whose errors are `E`, as such, and not as one of a page.
    pub(crate) fn of_target<E: Error + From<Self> + 'static>(self) -> E {
        match self {
            Self::Target { epoch, gfn, source } => match source.downcast() {
                Ok(error) => *error,
                Err(source) => Self::Target { epoch, gfn, source }.into(),
            },
            error => error.into(),
        }
    }

    /// Whether a compaction took a file away that was being read: with the chain opened again, it
    /// may do.
    #[must_use]
    pub const fn is_replaced(&self) -> bool {
        matches!(self, Self::Store(error) | Self::Page { source: error, .. } if error.is_replaced())
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
    /// Blocks read and decoded. One that has versions that others build on may count more than
    /// once, in large chains.
    pub blocks: u64,
    /// Bytes of them in the chain.
    pub bytes_read: u64,
}

/// Where the newest version of each page is, at one epoch of a chain, and the state of that epoch.
///
/// A plan asks the indexes of the chain's segments and reads no blocks; [`fill`](Self::fill) reads
/// those that are needed.
#[derive(Debug)]
pub struct Plan<'a> {
    chain: &'a Chain,
    view: View,
    /// In the order of the chain.
    blocks: Vec<Needed>,
    /// What is needed of the blocks.
    pages_of: Vec<Pages>,
    pages: u64,
    /// The pages whose newest version is a change, rising.
    changed: Vec<Gfn>,
    state: Vec<StateRecord>,
    state_hash: u128,
}

/// A block of which some pages count.
#[derive(Clone, Copy, Debug)]
struct Needed {
    segment: usize,
    frame: u32,
    /// Its share of [`Plan::pages_of`].
    begin: usize,
    end: usize,
    /// The first and the last of its pages that have a version that is a change, where there are
    /// any.
    changed: Option<(Gfn, Gfn)>,
}

impl<'a> Plan<'a> {
    /// Plans the restore of `epoch`.
    ///
    /// # Errors
    /// An epoch that the chain does not hold or that damage hides; damage of the epoch's state or
    /// of a list of pages that is needed.
    pub fn new(chain: &'a Chain, epoch: EpochId) -> Result<Self, RestoreError> {
        let (state_hash, state) = chain.state_payload(epoch, |payload| {
            let plain = unpack_state(payload)?;
            Ok((hash_bytes(&plain), decode_state(&plain)?))
        })?;
        let view = View::new(chain, epoch)?;
        let (mut needed, changed) = newest::of_all(chain, &view)?;
        needed.sort_unstable();
        let mut blocks: Vec<Needed> = Vec::new();
        for (at, pages) in needed.iter().enumerate() {
            let of_changed = pages.version != Counts::Newest;
            let last = Gfn(pages.first.0 + (pages.count - 1));
            match blocks.last_mut() {
                Some(block) if (block.segment, block.frame) == (pages.segment, pages.frame) => {
                    block.end = at + 1;
                    if of_changed {
                        block.changed = Some((block.changed.map_or(pages.first, |(first, _)| first), last));
                    }
                }
                _ => {
                    let changed = of_changed.then_some((pages.first, last));
                    blocks.push(Needed { segment: pages.segment, frame: pages.frame, begin: at, end: at + 1, changed });
                }
            }
        }
        let newest = needed.iter().filter(|pages| pages.version != Counts::Older);
        let pages = newest.fold(0, |sum: u64, pages| sum.saturating_add(pages.count));
        Ok(Self { chain, view, blocks, pages_of: needed, pages, changed, state, state_hash })
    }

    /// The epoch.
    #[must_use]
    pub const fn epoch(&self) -> EpochId {
        self.view.epoch()
    }

    /// How many pages [`fill`](Self::fill) goes through.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The pages that [`fill`](Self::fill) goes through, in its order.
    pub(super) fn into_runs(self) -> Vec<PageRun> {
        self.pages_of.iter().filter(|pages| pages.version != Counts::Older).map(Pages::run).collect()
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

    /// Writes every page that is not zero to `target`, reading each block once, in file order: with
    /// blocks of changes, some more often where more than 16,384 pages have changes as their newest
    /// version. Blocks are read and decompressed on as many threads as there are processors, but at
    /// most 8. `progress` is called after each block with the number of pages done and in all.
    ///
    /// # Errors
    /// Damage, and whatever keeps the target from taking a page. `target` then holds a part of the
    /// machine: it must not be run.
    pub fn fill(&self, target: &mut impl PageTarget, progress: &mut dyn FnMut(u64, u64)) -> Result<Filled, RestoreError> {
        let mut fill = Fill { plan: self, assembly: Assembly::new(self.chain), filled: Filled::default(), done: 0 };
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let place = |needed: &&Needed| {
            let found = self.chain.segment(needed.segment)?.look(|index| Segment::place(index, needed.frame.into()))?;
            Ok((needed.segment, found))
        };
        // What is held of a pass's pages until they are whole is bounded by how many they are.
        let passes =
            self.changed.chunks(self.chain.bounds().changed_pages).map(|pages| pages.first().copied().zip(pages.last().copied()));
        // The first pass takes what is whole as well, also where nothing is changed.
        let passes = passes.chain(self.changed.is_empty().then_some(None));
        for (number, pass) in passes.enumerate() {
            let first_pass = number == 0;
            let blocks: Vec<_> = self.blocks.iter().filter(|needed| first_pass || within(needed.changed, pass)).collect();
            blocks::in_order(self.chain, &blocks, threads, place, |needed, place, block| {
                fill.block(needed, (place, block), pass, first_pass, target)?;
                progress(fill.done, self.pages);
                Ok::<_, RestoreError>(())
            })?;
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

/// A fill under way.
struct Fill<'a, 'p> {
    plan: &'p Plan<'a>,
    assembly: Assembly<'a>,
    filled: Filled,
    /// Pages done, zero or not.
    done: u64,
}

impl Fill<'_, '_> {
    /// Takes what is needed of a block. Of the pages whose newest version is a change, only those
    /// of this pass; of the others all in the first pass, and none later.
    fn block(
        &mut self,
        needed: &Needed,
        (place, block): (&BlockPlace, &mut Block),
        pass: Option<(Gfn, Gfn)>,
        first_pass: bool,
        target: &mut impl PageTarget,
    ) -> Result<(), RestoreError> {
        let Self { plan, assembly, filled, done } = self;
        let wanted = plan.pages_of.get(needed.begin..needed.end).unwrap_or_default();
        let want = |gfn: Gfn| {
            let version = wanted.iter().find(|pages| pages.run().contains(gfn))?.version;
            let due = if version == Counts::Newest { first_pass } else { within(Some((gfn, gfn)), pass) };
            Some(match version {
                _ if !due => Want::Leave,
                Counts::Older => Want::Hold,
                Counts::Newest | Counts::NewestChange => Want::Give,
            })
        };
        let expected = wanted.iter().fold(0, |sum: u64, pages| sum.saturating_add(pages.count));
        wanted.iter().filter(|pages| pages.version == Counts::Newest && first_pass).for_each(|pages| target.expect(pages.run()));
        filled.bytes_read += block.bytes;
        assembly.take(place, block, expected, want, &mut |gfn, page| {
            *done += 1;
            if !is_zero(page) {
                let taken = target.write_page(gfn, page);
                taken.map_err(|source| RestoreError::Target { epoch: plan.epoch(), gfn, source })?;
                filled.pages += 1;
            }
            Ok::<_, RestoreError>(())
        })?;
        filled.blocks += 1;
        Ok(())
    }
}

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
