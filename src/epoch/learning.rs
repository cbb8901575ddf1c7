//! What rounds took of the epoch in hand, and what is learnt of the guest by it.

use std::time::Instant;

use super::early::{Choice, Habits, Place};
use super::page_costs::PageCosts;
use crate::page::Gfn;

/// What rounds did of the epoch in hand.
#[derive(Debug, Default)]
pub(super) struct TakenEarly {
    /// Why writes may have been missed, as a round found.
    pub(super) lost: Option<String>,
    /// Rounds that copied something.
    pub(super) rounds: u64,
    /// Pages that they copied.
    pub(super) pages: u64,
}

/// What is learnt of the guest, and by what.
#[derive(Debug)]
pub(super) struct Learning {
    habits: Habits,
    /// For each frame which kind of round took it last in the epoch in hand. A byte each, of zeros
    /// at first, so that the host gives memory as they are touched.
    takers: Vec<u8>,
    /// The frames of which it says something.
    taken: Vec<Gfn>,
    /// How many entries were left in the log, when it was looked at last.
    looked: (Instant, u64),
}

/// No round took the page, or one that had no choice: the ring was full.
const NO_TAKER: u8 = 0;
const MIDDLE: u8 = 1;
const BEFORE_CUT: u8 = 2;

impl Learning {
    /// For pages that cost so much.
    pub(super) fn new(costs: PageCosts, frames: u64, budget_pages: usize) -> Self {
        let frames = usize::try_from(frames).unwrap_or(usize::MAX);
        Self {
            habits: Habits::new(costs),
            takers: vec![NO_TAKER; frames],
            taken: Vec::with_capacity(budget_pages.min(frames)),
            looked: (Instant::now(), 0),
        }
    }

    /// Pages cost so much now.
    pub(super) const fn costs(&mut self, costs: PageCosts) {
        self.habits.costs(costs);
    }

    /// Whether rounds of this kind may take something in the epoch in hand.
    pub(super) const fn wants(&self, place: Place) -> bool {
        self.habits.wants(place)
    }

    /// What to do with the entries that are listed; at most `most` are taken at a time.
    pub(super) fn choose(&mut self, place: Place, listed: u64, most: u64) -> Choice {
        let now = Instant::now();
        let (looked_at, left) = self.looked;
        let choice = self.habits.choose(place, listed, listed.saturating_sub(left), now - looked_at);
        let taken = if let Choice::Take(wanted) = choice { wanted.min(most) } else { 0 };
        self.looked = (now, listed.saturating_sub(taken));
        choice
    }

    /// These pages are taken: again, where a round has taken them before.
    pub(super) fn take(&mut self, gfns: &[Gfn], place: Option<Place>) {
        let taker = match place {
            None => NO_TAKER,
            Some(Place::Middle) => MIDDLE,
            Some(Place::BeforeCut) => BEFORE_CUT,
        };
        if let Some(place) = place {
            self.habits.took(place, gfns.len() as u64);
        }
        for gfn in gfns {
            let Some(before) = usize::try_from(gfn.0).ok().and_then(|gfn| self.takers.get_mut(gfn)) else { continue };
            match std::mem::replace(before, taker) {
                MIDDLE => self.habits.repeated(Place::Middle, 1),
                BEFORE_CUT => self.habits.repeated(Place::BeforeCut, 1),
                _ if taker == NO_TAKER => {}
                _ => self.taken.push(*gfn),
            }
        }
    }

    /// The epoch is over; its last pages are these.
    pub(super) fn end(&mut self, last: &[Gfn]) {
        if !self.taken.is_empty() {
            self.take(last, None);
        }
        for gfn in self.taken.drain(..) {
            if let Some(taker) = usize::try_from(gfn.0).ok().and_then(|gfn| self.takers.get_mut(gfn)) {
                *taker = NO_TAKER;
            }
        }
        self.habits.end();
        self.looked = (Instant::now(), 0);
    }
}
