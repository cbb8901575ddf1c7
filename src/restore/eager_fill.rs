//! Filling memory, or another place, with all pages of an epoch before anything runs.

use std::num::NonZero;

use super::error::{RestoreError, TargetError};
use super::plan::{Needed, Plan};
use crate::format::is_zero;
#[cfg(feature = "kvm")]
use crate::memory::GuestMemory;
use crate::page::{Gfn, PageBytes, PageRun};
use crate::store::Segment;
use crate::store::read::assembly::{Assembly, Want};
use crate::store::read::blocks::{self, Block, BlockPlace};
use crate::store::read::newest::Counts;

/// Where the pages of a restored machine go. It begins as zeros.
pub trait PageTarget {
    /// Most or all pages of `run` come next: a hint.
    fn expect(&mut self, run: PageRun) {
        let _ = run;
    }

    /// Takes the content of one page. Each gfn comes at most once, and lies within the memory of
    /// the chain's description.
    ///
    /// # Errors
    /// Whatever kept the page from being taken; the fill ends then.
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError>;
}

/// Pages are put in place without being recorded as writes of the VMM: the chain has them.
#[cfg(feature = "kvm")]
impl PageTarget for GuestMemory {
    fn expect(&mut self, run: PageRun) {
        if run.count > 1 {
            self.provide(run);
        }
    }

    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        Ok(self.fill_page(gfn, page)?)
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

impl Plan<'_> {
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
                progress(fill.done, self.pages());
                Ok::<_, RestoreError>(())
            })?;
        }
        Ok(fill.filled)
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
