//! How long after its cut an epoch was durable.

use std::collections::VecDeque;
use std::time::Instant;

use super::times::{Distribution, Times};
use crate::page::EpochId;

/// Cuts that are remembered until they are durable. Those beyond are not measured: what is never
/// durable must not take memory.
const CUTS: usize = 1024;

/// Epochs that are not durable yet, and how long it took with the others.
#[derive(Debug)]
pub(super) struct Lateness {
    /// Rising.
    cuts: VecDeque<(EpochId, Instant)>,
    times: Times,
}

impl Lateness {
    pub(super) fn new() -> Self {
        Self { cuts: VecDeque::with_capacity(CUTS), times: Times::new() }
    }

    /// `epoch` was cut then, and is appended now.
    pub(super) fn appended(&mut self, epoch: EpochId, cut_at: Instant) {
        if self.cuts.len() < CUTS {
            self.cuts.push_back((epoch, cut_at));
        }
    }

    /// `epoch` and those before it are durable.
    pub(super) fn durable(&mut self, epoch: EpochId) {
        while let Some((_, cut_at)) = self.cuts.front().filter(|(cut, _)| *cut <= epoch) {
            self.times.record(u64::try_from(cut_at.elapsed().as_nanos()).unwrap_or(u64::MAX));
            self.cuts.pop_front();
        }
    }

    /// The epochs that are not durable by now failed.
    pub(super) fn forget(&mut self) {
        self.cuts.clear();
    }

    pub(super) fn durable_after(&self) -> Distribution {
        self.times.distribution()
    }
}
