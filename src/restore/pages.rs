//! Reading the pages of one epoch in any order.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use super::RestoreError;
use super::plan::Plan;
use crate::format::StateRecord;
use crate::lock::lock;
use crate::page::{EpochId, Gfn, PageBytes, PageRun};
use crate::store::read::view::View;
use crate::store::{Chain, FoundPages, PageReader, causes};

/// Gives pages of one epoch, in any order.
pub trait PageSource {
    /// Gives the content of `gfn`, or `None` where it is zeros, and at no further cost other pages
    /// whose newest content it has come by. The order is any; a page may come more than once.
    ///
    /// # Errors
    /// [`RestoreError`], in which case `gfn` did not come.
    fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, Option<&PageBytes>)) -> Result<(), RestoreError>;

    /// The page at `place` in the order in which reading all of them is cheapest, and moves `place`
    /// on; begin with 0. Every page that is not zeros comes, others may.
    ///
    /// # Errors
    /// [`RestoreError`].
    fn next(&mut self, place: &mut u64) -> Result<Option<Gfn>, RestoreError>;
}

/// Opens sources of the same pages, one for each thread that reads.
pub trait PageSources: Send + Sync + std::fmt::Debug {
    /// A source.
    fn open(&self) -> Box<dyn PageSource + '_>;

    /// The epoch that the pages are of.
    fn epoch(&self) -> EpochId;

    /// Pages that the guest is going to touch, in the order in which it did so the last time. None
    /// where that is not known.
    fn touched_before(&self) -> Vec<Gfn> {
        Vec::new()
    }

    /// All pages have come, and none will be asked for again.
    fn filled(&self) {}

    /// Keeps the order in which pages were touched for the next time, where that is possible.
    fn keep_touched(&self, order: &[Gfn]) {
        let _ = order;
    }
}

/// So many zero pages around one that is wanted are given with it, at most: an aligned group.
const ZERO_GROUP: u64 = 64;

/// The pages of one epoch, and its state. Nothing is planned: where a page is, the indexes of the
/// chain's segments say when it is wanted.
///
/// A guest that runs cannot begin again. So the segments that hold its pages stay open until all
/// have come, where the chain's bound on open files
/// ([`ReadOptions::open_files`](crate::store::ReadOptions)) has room for them: then nothing that a
/// compaction removes is missed. Where it has not, the chain's own writer must not compact
/// meanwhile ([`until_filled`](Self::until_filled)), and a compaction by somebody else is
/// [`StoreError::Replaced`](crate::store::StoreError::Replaced) when a page is wanted that was in
/// what it removed.
pub struct PageMap {
    chain: Arc<Chain>,
    epoch: EpochId,
    state: Vec<StateRecord>,
    /// All pages that are not listed as zeros, in file order: looked up when the first of them is
    /// asked for.
    file_order: OnceLock<Vec<PageRun>>,
    is_held: bool,
    until_filled: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

impl fmt::Debug for PageMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, is_held, .. } = self;
        f.debug_struct("PageMap").field("epoch", epoch).field("is_held", is_held).finish_non_exhaustive()
    }
}

impl PageMap {
    /// The pages of `epoch`. Reads its state.
    ///
    /// # Errors
    /// An epoch that the chain does not hold or that damage hides; damage of its state.
    pub fn new(chain: Arc<Chain>, epoch: EpochId) -> Result<Self, RestoreError> {
        let state = chain.state(epoch)?;
        let view = View::new(&chain, epoch)?;
        let is_held = match chain.hold(view.parts().iter().map(|part| part.segment)) {
            Err(error) if !error.is_replaced() => {
                tracing::debug!(error = causes(&error), "the segments of the epoch do not stay open");
                false
            }
            held => held?,
        };
        Ok(Self { chain, epoch, state, file_order: OnceLock::new(), is_held, until_filled: Mutex::default() })
    }

    /// Whether all segments that hold the epoch's pages are open, and stay so until all pages have
    /// come.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.is_held
    }

    /// Drops `kept` when all pages have come. With what
    /// [`Writer::keep_segments`](crate::store::Writer::keep_segments) gives, the writer of this
    /// chain compacts nothing before.
    pub fn until_filled(&self, kept: impl Any + Send + Sync) {
        *lock(&self.until_filled) = Some(Box::new(kept));
    }

    /// The state records of the epoch, in the order of the chain. A restore must use every one.
    #[must_use]
    pub fn state(&self) -> &[StateRecord] {
        &self.state
    }

    fn file_order(&self) -> Result<&[PageRun], RestoreError> {
        match self.file_order.get() {
            Some(runs) => Ok(runs),
            None => {
                let runs = Plan::new(&self.chain, self.epoch)?.into_runs();
                Ok(self.file_order.get_or_init(|| runs))
            }
        }
    }
}

impl PageSources for PageMap {
    fn open(&self) -> Box<dyn PageSource + '_> {
        Box::new(Source { map: self, reader: None })
    }

    fn epoch(&self) -> EpochId {
        self.epoch
    }

    fn touched_before(&self) -> Vec<Gfn> {
        super::touched::load(&self.chain)
    }

    fn filled(&self) {
        self.chain.let_go();
        drop(lock(&self.until_filled).take());
    }

    fn keep_touched(&self, order: &[Gfn]) {
        super::touched::keep(&self.chain, order);
    }
}

/// Reads pages of a [`PageMap`].
#[derive(Debug)]
struct Source<'a> {
    map: &'a PageMap,
    reader: Option<PageReader>,
}

impl PageSource for Source<'_> {
    fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, Option<&PageBytes>)) -> Result<(), RestoreError> {
        let PageMap { chain, epoch, .. } = self.map;
        let failed = |source| RestoreError::Page { epoch: *epoch, gfn, source };
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => none.insert(PageReader::new(chain.clone(), *epoch).map_err(failed)?),
        };
        match reader.read(gfn, &mut |gfn, page| take(gfn, Some(page))).map_err(failed)? {
            FoundPages::Given => {}
            FoundPages::Zeros(run) => {
                let first = gfn.0 - gfn.0 % ZERO_GROUP;
                let group = (first..first.saturating_add(ZERO_GROUP)).map(Gfn);
                group.filter(|gfn| run.contains(*gfn) && chain.description().contains(*gfn)).for_each(|gfn| take(gfn, None));
            }
        }
        Ok(())
    }

    fn next(&mut self, place: &mut u64) -> Result<Option<Gfn>, RestoreError> {
        // The number of a run above, that of a page in it below: a run is of one block.
        let (run, page) = (*place >> 32, *place & 0xFFFF_FFFF);
        let Some(found) = usize::try_from(run).ok().and_then(|run| self.map.file_order().map(|order| order.get(run)).transpose())
        else {
            return Ok(None);
        };
        let found = found?;
        *place = if page + 1 < found.count { *place + 1 } else { (run + 1) << 32 };
        Ok(Some(Gfn(found.first.0 + page)))
    }
}
