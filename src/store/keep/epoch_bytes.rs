//! How much of its segment each epoch takes.

use std::collections::BTreeSet;

use crate::format::CutTime;
use crate::page::EpochId;
use crate::store::epoch::Epoch;
use crate::store::error::StoreError;
use crate::store::read::Chain;

/// An epoch, and how much of its segment it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct SizedEpoch {
    pub(super) cut: CutTime,
    /// Bytes of all its frames.
    pub(super) bytes: u64,
    /// Bytes from its state on: what it has at least.
    pub(super) state_bytes: u64,
}

impl SizedEpoch {
    pub(super) fn new(epoch: &Epoch) -> Self {
        let bytes = epoch.commit.bytes_written;
        let state_bytes = bytes.saturating_sub(epoch.state_offset.saturating_sub(epoch.offset));
        Self { cut: CutTime::from(&epoch.commit), bytes, state_bytes }
    }
}

/// What a segment holds.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) bytes: u64,
    pub(super) epochs: Vec<SizedEpoch>,
    /// Bytes of the first epoch, where that is a base.
    pub(super) base_bytes: u64,
}

impl Seen {
    pub(super) fn all(chain: &Chain) -> Result<Vec<Self>, StoreError> {
        let seen = chain.own().iter().map(|segment| {
            let epochs = (0..segment.epochs()?).map(|number| segment.epoch(number)).collect::<Result<Vec<_>, _>>()?;
            let base = epochs.first().filter(|epoch| epoch.commit.base);
            Ok(Self {
                bytes: segment.bytes(),
                base_bytes: base.map_or(0, |epoch| epoch.commit.bytes_written),
                epochs: epochs.iter().map(SizedEpoch::new).collect(),
            })
        });
        seen.collect()
    }

    pub(super) fn len(&self) -> u64 {
        self.epochs.len() as u64
    }

    /// How many of its epochs are not kept.
    pub(super) fn drops(&self, kept: &BTreeSet<EpochId>) -> u64 {
        self.epochs.iter().filter(|epoch| !kept.contains(&epoch.cut.epoch)).count() as u64
    }

    /// Bytes of its epochs that are not kept, other than a base.
    pub(super) fn waste(&self, kept: &BTreeSet<EpochId>) -> u64 {
        let bytes = self.bytes.saturating_sub(self.base_bytes);
        bytes / (self.epochs.len() as u64).max(1) * self.drops(kept)
    }
}

pub(super) fn sum(segments: &[Seen], of: impl Fn(&Seen) -> u64) -> u64 {
    segments.iter().fold(0, |sum: u64, segment| sum.saturating_add(of(segment)))
}
