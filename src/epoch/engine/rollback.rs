//! Back to the last cut, in memory: the epoch in hand is thrown away.
//!
//! The engine keeps a *point*: a shadow of guest memory and the state, both of the last cut. What
//! was written since then is what the rings list, what the VMM wrote, the hot set, and what was
//! drained before: those pages are copied back.
//!
//! # Why nothing is lost
//! - A page that was put back holds what the last cut had. That is in the chain or on its way, or
//!   the page is one of a failed epoch: those stay pending ([`Engine::owed`]), the others do not.
//! - The collection that lists the pages has the next write to each logged again, before anything
//!   is put back. So whatever is written afterwards is logged: by the guest, and by the kernel as
//!   it takes the state.
//! - The shadow takes what a cut copies from memory, page for page, and nothing else. If tracking
//!   was lost, a cut takes all of memory, and a rollback compares all of it.

use std::time::Instant;

use super::{Engine, InHand, ns, park};
use crate::epoch::error::EngineError;
use crate::epoch::guest::{CapturedState, RollbackGuest};
use crate::epoch::report::RollbackCount;
use crate::page::EpochId;
use crate::parked::Parked;

/// What a call of [`Engine::rollback`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The epoch that the guest is back at.
    pub epoch: EpochId,
    /// Pages put back.
    pub pages: u64,
    /// Tracking was lost, so all memory was compared; `pages` are those that differed.
    pub compared: bool,
}

impl<C: CapturedState> Engine<C> {
    /// Throws the epoch in hand away: puts the guest's memory and state back to the last cut, and
    /// lets it run from there. Only the pages that were written since are copied. Needs
    /// [`EngineOptions::rollback`](crate::epoch::EngineOptions::rollback).
    ///
    /// What the guest sent out since the cut is the VMM's to drop, as is what its devices hold of
    /// the epoch. The next epoch has the pages that are written from now on.
    ///
    /// # Errors
    /// [`EngineError::NoRollback`] and [`EngineError::NoCut`]: nothing was done, and the guest runs
    /// on. [`EngineError::Guest`]: the guest could not be parked, and runs on. All others: the
    /// guest was halted, as by [`cut`](Self::cut).
    pub fn rollback<G: RollbackGuest<State = C>>(&mut self, guest: &mut G) -> Result<RolledBack, EngineError> {
        if self.halted {
            return Err(EngineError::Halted);
        }
        match &self.point {
            None => return Err(EngineError::NoRollback),
            Some(point) if point.epoch == EpochId::NONE => return Err(EngineError::NoCut),
            Some(_) => {}
        }
        let outcome = self.try_rollback(guest);
        if outcome.as_ref().is_err_and(|error| !matches!(error, EngineError::Guest { .. })) {
            self.halted = true;
            guest.halt();
        }
        outcome
    }

    /// As [`rollback`](Self::rollback). After any error but [`EngineError::Guest`], the guest may
    /// be parked.
    fn try_rollback<G: RollbackGuest<State = C>>(&mut self, guest: &mut G) -> Result<RolledBack, EngineError> {
        let mut hand = InHand::begin();
        self.absorb_failure()?;
        park(guest, &mut hand)?;
        self.collect(&mut hand)?;
        let mut scope = ();
        let parked = Parked::vouch(&mut scope);
        let start = Instant::now();
        let Self { point, pending, memory, runs, base, .. } = self;
        let Some(point) = point else { return Err(EngineError::NoRollback) };
        let compared = self.tracking.is_lost();
        let pages = if compared {
            base.put_back(runs.iter().flat_map(|run| run.gfns()));
            point.shadow.put_back_all(&parked, memory.as_ref()).map_err(EngineError::Memory)?
        } else {
            base.put_back(pending.iter());
            point.shadow.put_back(&parked, memory.as_ref(), pending.iter()).map_err(EngineError::Memory)?;
            pending.len()
        };
        pending.clear();
        self.owed.iter().for_each(|gfn| {
            pending.insert(gfn);
        });
        self.tracking.rolled_back();
        self.tracker.rolled_back(&parked);
        let copied = Instant::now();
        hand.phases.copy_ns = ns(copied - start);
        guest.restore(&parked, &point.state).map_err(|source| EngineError::Restore { epoch: point.epoch, source })?;
        hand.phases.state_ns = ns(copied.elapsed());
        let epoch = point.epoch;
        self.ran_ns = 0;
        self.resume(guest);
        self.counts.rollback(&RollbackCount { phases: hand.phases, pages, compared });
        Ok(RolledBack { epoch, pages, compared })
    }
}
