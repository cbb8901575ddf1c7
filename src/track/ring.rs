//! The tracker on dirty rings.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::hot::HotSet;
use super::{TrackError, insert};
use crate::epoch::{Collected, Settled, Tracker, TrackerError};
use crate::kvm::VmHandle;
use crate::kvm::memslot::Memslot;
use crate::kvm::probe::PagesStayWritable;
use crate::kvm::ring::{DirtyPage, ResetHelp, VmRings};
use crate::memory::GuestMemory;
use crate::page::{Gfn, PAGE_SIZE, PageSet};
use crate::parked::Parked;
use crate::xxh3::xxh3_64;

/// Tracks by the dirty rings of all vCPUs.
#[derive(Debug)]
pub struct RingTracker {
    vm: VmHandle,
    memory: GuestMemory,
    rings: VmRings,
    hot: Option<HotSet>,
    /// There will be a hot set of so many pages once this says that there can be.
    hot_later: Option<(usize, Receiver<PagesStayWritable>)>,
    /// What a fault is worth, in copies, once it is known.
    worth: Option<u32>,
    /// What the next reset protects, where that is not all that is listed. Kept for its memory.
    protect: Vec<DirtyPage>,
}

impl RingTracker {
    /// For a VM whose vCPUs are all mapped in `rings` and whose memory was registered with logging
    /// on.
    #[must_use]
    pub const fn new(vm: VmHandle, memory: GuestMemory, rings: VmRings) -> Self {
        Self { vm, memory, rings, hot: None, hot_later: None, worth: None, protect: Vec::new() }
    }

    /// Has large resets done by a thread of the rings' own, while pages are copied. Does nothing
    /// where there is one processor.
    ///
    /// # Errors
    /// [`TrackError::Prepare`]: the system has no thread or no descriptor left.
    pub fn with_thread(mut self) -> Result<Self, TrackError> {
        if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
            self.rings.start_thread().map_err(TrackError::Prepare)?;
        }
        Ok(self)
    }

    /// For threads that wait for a cut's end and can help with its reset, where there is [a
    /// thread](Self::with_thread) for resets.
    #[must_use]
    pub fn help(&self) -> Option<ResetHelp> {
        self.rings.help()
    }

    /// Leaves up to `most` pages that are written often writable. Something else than full
    /// rings must then end epochs too: members do not fill them.
    #[must_use]
    pub fn with_hot_set(mut self, most: usize, _: PagesStayWritable) -> Self {
        self.begin_hot_set(most);
        self
    }

    /// As [`with_hot_set`](Self::with_hot_set), as soon as `later` has the evidence; none where it
    /// never comes.
    #[must_use]
    pub fn with_hot_set_later(mut self, most: usize, later: Receiver<PagesStayWritable>) -> Self {
        self.hot_later = (most > 0).then_some((most, later));
        self
    }

    fn begin_hot_set(&mut self, most: usize) {
        self.hot = (most > 0).then(|| HotSet::new(self.memory.frames(), most));
        if let (Some(hot), Some(worth)) = (&mut self.hot, self.worth) {
            hot.set_worth(worth);
        }
    }

    /// Begins to leave pages writable, if it is known by now that they can be. Up to here all were
    /// tracked.
    fn look_for_hot_set(&mut self) {
        let Some((most, later)) = &self.hot_later else { return };
        match later.try_recv() {
            Ok(_) => {
                let most = *most;
                self.begin_hot_set(most);
            }
            Err(TryRecvError::Disconnected) => {}
            Err(TryRecvError::Empty) => return,
        }
        self.hot_later = None;
    }
}

/// The frame that `page` is. Slot ids are the indices of `slots`, in address space 0; anything else
/// is not ours.
fn frame(slots: &[Memslot], page: DirtyPage) -> Option<Gfn> {
    slots.get(usize::try_from(page.slot).ok()?)?.frame(page.offset)
}

/// What the reset is to protect for an entry that lists `page`, which is the frame `gfn`.
fn to_protect(hot: Option<&mut HotSet>, gfn: Option<Gfn>, page: DirtyPage) -> Option<DirtyPage> {
    let (Some(hot), Some(gfn)) = (hot, gfn) else { return Some(page) };
    hot.listed(gfn, page)
}

impl Tracker for RingTracker {
    fn name(&self) -> &'static str {
        if self.hot.is_some() { "ring+hot" } else { "ring" }
    }

    fn bound(&self) -> Option<u64> {
        // A page that enters the hot set is one that is listed.
        Some(self.rings.bound() + self.hot.as_ref().map_or(0, HotSet::len) as u64)
    }

    fn listed(&self) -> Option<u64> {
        Some(self.rings.listed())
    }

    fn round(&mut self, most: usize, into: &mut PageSet) -> Result<Option<Collected>, TrackerError> {
        let start = Instant::now();
        let Self { memory, rings, hot, protect, .. } = self;
        let slots = memory.slots();
        let frame = |page| frame(slots, page);
        let harvest = rings.harvest_some(most);
        let entries = harvest.names().len() as u64;
        if entries == 0 && harvest.lost().is_none() {
            return Ok(Some(Collected::default()));
        }
        protect.clear();
        // Pages of the hot set are taken by the cut, those that enter now as well. One that leaves
        // is taken now.
        protect.extend(harvest.names().iter().filter_map(|page| to_protect(hot.as_mut(), frame(*page), *page)));
        let harvested = start.elapsed();
        let reset = harvest.reset_instead(protect)?;
        let lost = reset.lost.map(Into::into);
        for page in &*protect {
            insert(into, frame(*page), page.slot, page.offset)?;
        }
        let hot = hot.as_ref().map_or(0, |hot| hot.len() as u64);
        Ok(Some(Collected { entries, hot, lost, harvest: harvested, reset: start.elapsed().saturating_sub(harvested) }))
    }

    fn has_hot_set(&self) -> bool {
        self.hot.is_some() || self.hot_later.is_some()
    }

    fn learn(&mut self, copies: u32) {
        self.worth = Some(copies);
        if let Some(hot) = &mut self.hot {
            hot.set_worth(copies);
        }
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        let collected = self.begin(parked, into)?;
        let Settled { lost, reset } = self.settle(parked)?;
        Ok(Collected { lost, reset, ..collected })
    }

    fn begin(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        let start = Instant::now();
        self.look_for_hot_set();
        let Self { memory, rings, hot, protect, .. } = self;
        let slots = memory.slots();
        let frame = |page| frame(slots, page);
        let harvest = rings.harvest();
        let pages = harvest.while_parked(parked);
        let entries = pages.len() as u64;
        protect.clear();
        // Before any leaves.
        for gfn in hot.iter().flat_map(HotSet::iter) {
            let _ = into.insert(gfn);
        }
        let inserted = pages.iter().try_for_each(|page| -> Result<(), TrackError> {
            let gfn = frame(*page);
            insert(into, gfn, page.slot, page.offset)?;
            protect.extend(to_protect(hot.as_mut(), gfn, *page));
            Ok(())
        });
        if let Some(hot) = &mut *hot {
            let mut copy = [0; PAGE_SIZE];
            let content = |gfn| memory.read_page(gfn, &mut copy).ok().map(|()| xxh3_64(&copy));
            let unmap = hot.look(pages.len() - protect.len(), content, protect);
            hot.end();
            unmap.map_or(Ok(()), |gfn| memory.unmap_page(parked, gfn))?;
        }
        if let Err(error) = inserted {
            // The log can't be believed. What it lists is no loss to make good here.
            let _ = harvest.reset()?;
            return Err(error.into());
        }
        harvest.begin_reset(hot.is_some().then_some(protect), parked)?;
        let hot = hot.as_ref().map_or(0, |hot| hot.len() as u64);
        Ok(Collected { entries, hot, lost: None, harvest: start.elapsed(), reset: Duration::ZERO })
    }

    fn wrote_more(&self, _parked: &Parked<'_>) -> Option<bool> {
        // With several vCPUs, those that are awake capture their state first: that they are better
        // at.
        (self.rings.vcpus() == 1).then(|| self.rings.list_more())
    }

    fn settle(&mut self, _parked: &Parked<'_>) -> Result<Settled, TrackerError> {
        let start = Instant::now();
        let lost = self.rings.finish_reset()?.lost.map(Into::into);
        Ok(Settled { lost, reset: start.elapsed() })
    }

    fn rolled_back(&mut self, _parked: &Parked<'_>) {
        let Self { memory, hot: Some(hot), .. } = self else { return };
        let mut copy = [0; PAGE_SIZE];
        hot.put_back(|gfn| memory.read_page(gfn, &mut copy).ok().map(|()| xxh3_64(&copy)));
    }

    fn rearm(&mut self, _parked: &Parked<'_>) -> Result<(), TrackerError> {
        // The rings are emptied first: after a change of memslots their entries might mean other
        // pages. What this reset may lose, the protection of everything below makes good.
        let _ = self.rings.harvest().reset()?;
        self.memory.register(&self.vm, false)?;
        self.memory.register(&self.vm, true)?;
        if let Some(hot) = &mut self.hot {
            hot.clear();
        }
        Ok(())
    }
}
