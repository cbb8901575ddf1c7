//! Where an engine is with the base: the epoch that has all of guest memory.

use super::slot::Joiner;
use crate::format::Head;
use crate::page::{EpochId, Gfn, PageRun, PageSet};

/// The base in hand.
#[derive(Debug)]
pub(super) enum Base {
    /// The next epoch is the base. Memory is zeros but for what that epoch has.
    Fresh,
    /// The next epoch is the base, and all of memory is copied for it beside the running guest. So
    /// many pages may yet be copied: the guest may write as fast as they are, and it has to end.
    Copying { left: u64 },
    /// A sink is asked whether it can join.
    Asked { sink: usize },
    /// A sink joins: all of memory is copied for it beside the running guest and the epochs that
    /// the others get.
    Joining(Joining),
    /// Every sink that follows has a base.
    Done,
}

/// A sink that is joining.
#[derive(Debug)]
pub(super) struct Joining {
    joiner: Joiner,
    /// What it was not given yet.
    pages: PageSet,
}

/// The number of the epoch that a base of a sink that joins is of is at least so far ahead: the
/// others get that many epochs meanwhile. Numbers are 64 bits long.
const NUMBERS_AHEAD: u64 = 1_000_000;

impl Base {
    /// Whether the next epoch is the first.
    pub(super) const fn is_first(&self) -> bool {
        matches!(self, Self::Fresh | Self::Copying { .. })
    }

    /// Whether the first epoch is copied beside the running guest.
    pub(super) const fn is_copying(&self) -> bool {
        matches!(self, Self::Copying { .. })
    }

    /// The sink is at `head`, and can be given all of `memory`. `next` is the number of the next
    /// epoch.
    pub(super) fn begin(
        &mut self,
        (sink, head, number): (usize, Head, u64),
        next: EpochId,
        memory: &[PageRun],
        mut pages: PageSet,
    ) {
        memory.iter().for_each(|run| pages.insert_run(*run));
        // A round number, so that people see why numbers jump there.
        let least = next.max(head.epoch.next());
        let epoch = EpochId((least.0 / NUMBERS_AHEAD + 2).saturating_mul(NUMBERS_AHEAD));
        *self = Self::Joining(Joining { joiner: Joiner { sink, epoch, head, number }, pages });
    }

    /// The sink that gets a base of its own.
    pub(super) const fn joiner(&self) -> Option<Joiner> {
        match self {
            Self::Joining(joining) => Some(joining.joiner),
            _ => None,
        }
    }

    /// The number of the epoch that is cut now: `next`, or the one that completes the base of the
    /// sink that joins.
    pub(super) const fn number(&self, next: EpochId) -> EpochId {
        match self {
            Self::Joining(Joining { joiner, pages }) if pages.is_empty() => joiner.epoch,
            _ => next,
        }
    }

    /// Whether the base has to be whole before the next epoch is cut, for want of numbers.
    pub(super) fn is_due(&self, next: EpochId) -> bool {
        matches!(self, Self::Joining(Joining { joiner, pages }) if next.next() >= joiner.epoch && !pages.is_empty())
    }

    /// `epoch` was cut, with all that it needs.
    pub(super) fn cut(&mut self, epoch: EpochId) {
        match self {
            Self::Joining(Joining { joiner, .. }) if joiner.epoch != epoch => {}
            Self::Asked { .. } => {}
            _ => *self = Self::Done,
        }
    }

    /// The epochs behind the newest one of the chain do not exist. Returns the sink that gets no
    /// base after all.
    pub(super) fn failed(&mut self, memory_pages: u64) -> Option<usize> {
        let sink = match self {
            Self::Copying { left } => {
                *left = memory_pages;
                return None;
            }
            Self::Fresh | Self::Done => return None,
            Self::Asked { sink } => *sink,
            Self::Joining(joining) => joining.joiner.sink,
        };
        *self = Self::Done;
        Some(sink)
    }

    /// Takes up to `most` pages that a sink that joins was not given yet. Returns whether there are
    /// more.
    pub(super) fn take(&mut self, most: usize, out: &mut Vec<Gfn>) -> bool {
        let Self::Joining(Joining { pages, .. }) = self else { return false };
        pages.take(most, out);
        !pages.is_empty()
    }

    /// These pages hold something older than what the sink that joins was given.
    pub(super) fn put_back(&mut self, put_back: impl Iterator<Item = Gfn>) {
        if let Self::Joining(Joining { pages, .. }) = self {
            put_back.for_each(|gfn| {
                pages.insert(gfn);
            });
        }
    }
}
