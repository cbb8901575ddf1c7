//! Rounds: pages of the epoch in hand are taken beside the running guest, so that the cut has few
//! left.
//!
//! # Why nothing is missed
//! A round has the next write to each page logged again *before* it copies the page. So the copy
//! has every write that the round took from the log, and whatever is written later is listed again:
//! the page comes once more, in a later part of the epoch, and the later mention counts. The last
//! part is the cut's, and is copied while the guest stands still.
//!
//! - The VMM's own writes are the cut's alone: a VMM may mark a page before it writes it, and a
//!   round that took the mark would copy what was there before.
//! - A round that finds that writes may have been missed only says so. The cut begins tracking
//!   anew, for that needs the vCPUs parked.
//! - A part names the epoch that it is of. Once there is one, the epoch keeps its number.
//! - An epoch of which parts are in a sink and whose end is not does not exist: what failed comes
//!   again, the pages of those parts as well.
//!
//! # The bound
//! A round takes from the log only while the epoch surely holds what it has, what is taken, what
//! may be listed then until the next chance to end it, and the VMM's share. Pages that are taken
//! again and again count once, but an epoch mentions pages at most twice as often as it may have
//! some.

use std::time::{Duration, Instant};

use super::Engine;
use crate::epoch::early::{Choice, Place};
use crate::epoch::error::EngineError;
use crate::epoch::guest::CapturedState;
use crate::epoch::learning::Learning;
use crate::epoch::options::Early;
use crate::epoch::page_costs::PageCosts;
use crate::page::{Gfn, PageRun};

/// Entries that a round takes from the log at a time. The kernel holds locks meanwhile that a vCPU,
/// and so a cut, may wait for.
const ENTRIES: u64 = 512;

/// Pages that are copied before a round looks whether it is to yield.
const COPIED_AT_ONCE: usize = 8;

/// A round begins with so many slots free: one is for the cut.
const SLOTS: usize = 2;

/// A call of a round goes on at most so often, however fast the guest writes.
const GOES_MOST: u32 = 8;

/// When to look again, after a round and where there can be none for now.
const SOON: Duration = Duration::from_millis(1);
const REST: Duration = Duration::from_millis(10);

/// What a call of [`Engine::round`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Pages copied.
    pub pages: u64,
    /// What comes next.
    pub next: NextRound,
}

/// What comes after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRound {
    /// Another round, after this time.
    After(Duration),
    /// A cut: the epoch holds no more, or writes may have been missed.
    Cut,
    /// None: there are no rounds, for want of a log that can be read beside the guest, or because
    /// they are off.
    Never,
}

/// What to do with a vCPU whose ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullRing {
    /// It goes on: its ring has room again, and the epoch as well. A round is due.
    GoOn,
    /// The epoch is to end.
    Cut,
}

/// Whether there may be a round now.
enum Rounds {
    Go,
    /// Not now.
    Rest,
    /// A cut has to come first.
    Cut,
    Never,
}

/// What there was to take from the log.
enum Taken {
    Some,
    None,
    /// More than the epoch holds.
    NoRoom,
}

impl<C: CapturedState> Engine<C> {
    /// Tells how long the first write to a protected page holds the guest up here
    /// ([`fault_cost`](crate::kvm::probe::fault_cost)): rounds of [`Early::Auto`] begin, and the
    /// tracker is told, which chooses by it what to leave writable. What copying a page costs is
    /// measured now, for which a slot must be free: false where none is.
    ///
    /// # Errors
    /// [`EngineError::Memory`].
    pub fn learn_fault_cost(&mut self, fault: Duration) -> Result<bool, EngineError> {
        let Some(copy_ns) = self.measure_copy()? else { return Ok(false) };
        tracing::debug!(fault_ns = fault.as_nanos(), copy_ns, "what a page costs here");
        let costs = PageCosts::new(fault, copy_ns);
        self.tracker.learn(costs.worth());
        if self.options.early == Early::Auto {
            self.learning = Some(Learning::new(costs, self.memory.frames(), self.options.budget_pages));
        }
        self.costs = Some(costs);
        Ok(true)
    }

    /// The copy of the cut in hand took so long.
    pub(super) fn learn_copy_cost(&mut self, parts: u64, copy_ns: u64) {
        let Some(costs) = self.costs.as_mut().filter(|_| parts == 1) else { return };
        if costs.copied(self.last_pages.len() as u64, copy_ns) {
            self.tracker.learn(costs.worth());
            self.learning.iter_mut().for_each(|learning| learning.costs(*costs));
        }
    }

    /// Whether [`learn_fault_cost`](Self::learn_fault_cost) is waited for: by rounds, or by the
    /// tracker.
    #[must_use]
    pub fn wants_fault_cost(&self) -> bool {
        self.costs.is_none() && (self.options.early == Early::Auto || self.tracker.has_hot_set())
    }

    /// What copying a page takes, in nanoseconds: of pages all over memory, as a guest writes them.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a moment")]
    fn measure_copy(&mut self) -> Result<Option<f64>, EngineError> {
        const PAGES: u64 = 64;
        if !self.pipeline.has_slot() {
            return Ok(None);
        }
        let step = usize::try_from((self.pages / PAGES).max(1)).unwrap_or(usize::MAX);
        let sampled = |run: &PageRun| run.first.0..run.end().map_or(u64::MAX, |end| end.0);
        // A range of numbers takes a step at once; the runs' own iterator walks the frames between.
        let gfns: Vec<_> = self.runs.iter().flat_map(|run| sampled(run).step_by(step)).map(Gfn).collect();
        let Some(slot) = self.pipeline.slot() else { return Ok(None) };
        let mut least = f64::MAX;
        for gfns in gfns.chunks(self.part_pages.min(16)) {
            slot.arena.clear();
            let start = Instant::now();
            self.memory.copy(gfns, &mut slot.arena).map_err(EngineError::Memory)?;
            least = least.min(start.elapsed().as_nanos() as f64 / gfns.len() as f64);
        }
        Ok(Some(least))
    }

    /// Whether a round there may take something now. Where the processor has a log of its own
    /// (PML), what it holds is listed at the vCPU's next exit: it is worth one then, before the
    /// round.
    #[must_use]
    pub fn wants_round(&mut self, place: Place) -> bool {
        matches!(self.rounds(), Rounds::Go) && self.learning.as_ref().is_none_or(|learning| learning.wants(place))
    }

    /// Takes pages of the epoch in hand beside the running guest and sends them on their way, so
    /// that the cut has fewer to copy: as many as the options say. It says when to call it again.
    /// As soon as `yields` returns true, which is asked every few pages, it leaves the rest to the
    /// cut that is waited for: [`EngineLock`](crate::epoch::EngineLock) does that for a VMM with
    /// several threads.
    ///
    /// It never waits for storage. It blocks signals while it resets the rings. Not on a thread
    /// that uses io_uring.
    ///
    /// # Errors
    /// [`EngineError::Memory`], [`EngineError::Ended`], [`EngineError::Halted`]. The next
    /// [`cut`](Self::cut) halts the guest.
    pub fn round(&mut self, place: Place, yields: &dyn Fn() -> bool) -> Result<Round, EngineError> {
        if self.halted {
            return Err(EngineError::Halted);
        }
        self.try_round(place, yields).inspect_err(|_| self.halted = true)
    }

    fn try_round(&mut self, place: Place, yields: &dyn Fn() -> bool) -> Result<Round, EngineError> {
        let (mut pages, mut goes) = (0, 0);
        let next = loop {
            match self.rounds() {
                Rounds::Never => break NextRound::Never,
                Rounds::Rest => break NextRound::After(REST),
                Rounds::Cut => break NextRound::Cut,
                Rounds::Go => {}
            }
            goes += 1;
            if yields() || goes > GOES_MOST || !self.pipeline.has_slots(SLOTS) {
                break NextRound::After(SOON);
            }
            // What a full ring had is protected again already, whether it is copied now or not.
            let mut chosen = None;
            if self.pending.is_empty() {
                let most = match self.choose(place) {
                    Choice::Take(most) => most,
                    Choice::Wait(time) => break NextRound::After(time),
                };
                match self.list_early(most) {
                    Taken::Some => chosen = Some(place),
                    Taken::None => break NextRound::After(SOON),
                    Taken::NoRoom => break NextRound::Cut,
                }
            }
            pages += self.copy_early(chosen, yields)?;
        };
        self.taken_early.rounds += u64::from(pages > 0);
        Ok(Round { pages, next })
    }

    /// How many entries a round is to take.
    fn choose(&mut self, place: Place) -> Choice {
        let listed = self.tracker.listed().unwrap_or(0);
        self.learning.as_mut().map_or(Choice::Take(listed), |learning| learning.choose(place, listed, ENTRIES))
    }

    /// A vCPU has left the guest because its ring is full. Empties the rings beside the others,
    /// where the epoch surely holds what comes until they are full again.
    ///
    /// It blocks signals while it resets the rings. Not on a thread that uses io_uring.
    #[must_use]
    pub fn ring_full(&mut self) -> FullRing {
        while !self.halted && matches!(self.rounds(), Rounds::Go) {
            match self.list_early(u64::MAX) {
                Taken::Some => {}
                Taken::None => return FullRing::GoOn,
                Taken::NoRoom => break,
            }
        }
        FullRing::Cut
    }

    /// Whether there may be a round now.
    fn rounds(&mut self) -> Rounds {
        if self.options.early == Early::Off || self.point.is_some() || self.tracker.listed().is_none() {
            Rounds::Never
        } else if self.taken_early.lost.is_some() {
            Rounds::Cut
        } else if self.learns() || self.base.is_first() || self.storage_rests() || self.pipeline.has_failed() {
            Rounds::Rest
        } else {
            Rounds::Go
        }
    }

    /// Whether rounds wait for what pages cost.
    fn learns(&self) -> bool {
        self.options.early == Early::Auto && self.learning.is_none()
    }

    /// Takes some entries from the log, up to `most`, if the epoch holds them: their pages are
    /// pending, and their next writes are logged.
    fn list_early(&mut self, most: u64) -> Taken {
        let listed = self.tracker.listed().unwrap_or(0).min(most).min(ENTRIES);
        if listed == 0 {
            return Taken::None;
        }
        if !self.holds_another_ring(listed) {
            return Taken::NoRoom;
        }
        let most = usize::try_from(listed).unwrap_or(usize::MAX);
        let lost = match self.tracker.round(most, &mut self.pending) {
            Ok(collected) => collected.and_then(|collected| collected.lost),
            Err(error) => Some(error),
        };
        self.taken_early.lost = lost.map(|lost| lost.to_string());
        Taken::Some
    }

    /// Copies pending pages into a slot and sends it off. Returns how many.
    fn copy_early(&mut self, chosen: Option<Place>, yields: &dyn Fn() -> bool) -> Result<u64, EngineError> {
        self.last_pages.clear();
        self.pending.take(self.part_pages, &mut self.last_pages);
        let Self { pipeline, memory, last_pages, pending, .. } = self;
        let slot = pipeline.slot().ok_or(EngineError::Ended)?;
        slot.arena.clear();
        let mut copied = 0;
        for pages in last_pages.chunks(COPIED_AT_ONCE) {
            if copied > 0 && yields() {
                break;
            }
            memory.copy(pages, &mut slot.arena).map_err(EngineError::Memory)?;
            copied += pages.len();
        }
        for gfn in last_pages.drain(copied..) {
            pending.insert(gfn);
        }
        self.taken_early.pages += copied as u64;
        if let Some(learning) = &mut self.learning {
            learning.take(&self.last_pages, chosen);
        }
        self.send_part(Instant::now())?;
        Ok(copied as u64)
    }
}
