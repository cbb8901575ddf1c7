//! The plan of a restore: which blocks of a chain have the pages of an epoch, and its state.

use super::error::RestoreError;
use crate::format::{StateRecord, decode_state, hash_bytes, unpack_state};
use crate::page::{EpochId, Gfn, PageRun};
use crate::store::Chain;
use crate::store::read::newest::{self, Counts, Pages};
use crate::store::read::view::View;

/// Where the newest version of each page is, at one epoch of a chain, and the state of that epoch.
///
/// A plan asks the indexes of the chain's segments and reads no blocks; [`fill`](Self::fill) reads
/// those that are needed.
#[derive(Debug)]
pub struct Plan<'a> {
    pub(super) chain: &'a Chain,
    view: View,
    /// In the order of the chain.
    pub(super) blocks: Vec<Needed>,
    /// What is needed of the blocks.
    pub(super) pages_of: Vec<Pages>,
    pages: u64,
    /// The pages whose newest version is a change, rising.
    pub(super) changed: Vec<Gfn>,
    state: Vec<StateRecord>,
    pub(super) state_hash: u128,
}

/// A block of which some pages count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needed {
    pub(super) segment: usize,
    pub(super) frame: u32,
    /// Its share of [`Plan::pages_of`].
    pub(super) begin: usize,
    pub(super) end: usize,
    /// The first and the last of its pages that have a version that is a change, where there are
    /// any.
    pub(super) changed: Option<(Gfn, Gfn)>,
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
}
