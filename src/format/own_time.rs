//! When epochs were cut: by the clock, and by the chain's own time, in which no clock jumps.

use super::{Commit, OWN_TIME_UNIT_NS};
use crate::page::EpochId;

/// When an epoch was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutTime {
    /// The epoch.
    pub epoch: EpochId,
    /// By the chain's own time, in nanoseconds since 1970 or what was taken for it:
    /// [`Commit::own_time_ns`].
    pub own_ns: u64,
    /// By the clock.
    pub unix_ns: u64,
}

impl From<&Commit> for CutTime {
    fn from(commit: &Commit) -> Self {
        Self { epoch: commit.epoch, own_ns: commit.own_time_ns(), unix_ns: commit.time_unix_ns }
    }
}

/// The clock was set between two epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockJump {
    /// The first epoch behind it.
    pub epoch: EpochId,
    /// How far it was set forward, in nanoseconds; below 0, back.
    pub by_ns: i128,
}

impl ClockJump {
    /// A clock that is slowed down or sped up, to be right again, does not jump: in a second or so,
    /// or in a thousandth of the time, it may go wrong by as much.
    const LEAST_NS: i128 = 1_000_000_000;

    /// Whether the clock was set between two cuts, and how far.
    #[must_use]
    pub fn between(before: &CutTime, cut: &CutTime) -> Option<Self> {
        let passed = |from: u64, to: u64| i128::from(to) - i128::from(from);
        let own = passed(before.own_ns, cut.own_ns);
        let by_ns = passed(before.unix_ns, cut.unix_ns) - own;
        (by_ns.abs() > Self::LEAST_NS + own.abs() / 1000).then_some(Self { epoch: cut.epoch, by_ns })
    }

    /// All of them, in order.
    #[must_use]
    pub fn all(epochs: &[CutTime]) -> Vec<Self> {
        epochs.iter().zip(epochs.iter().skip(1)).filter_map(|(before, cut)| Self::between(before, cut)).collect()
    }
}

/// The time that a chain's writer tells of its epochs: no jump of the clock is in it.
///
/// While one writer goes on, it is what the engine measures, which no clock is set for. From one
/// writer to the next it goes on by as much as the clock does: a machine that was off for a week
/// has epochs that are a week old. A clock that has gone back says nothing, and no time passes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnTime {
    newest: Option<CutTime>,
    /// What is added to the engine's time; none before this writer's first epoch.
    ahead_ns: Option<i128>,
}

impl OwnTime {
    /// For a chain whose newest epoch is `newest`.
    pub(crate) const fn behind(newest: Option<CutTime>) -> Self {
        Self { newest, ahead_ns: None }
    }

    /// The chain was opened again, and ends at `newest` now.
    pub(crate) const fn reopened(&mut self, newest: Option<CutTime>) {
        self.newest = newest;
    }

    /// The time of an epoch that the engine cut at `engine_ns` by its own time, or 0 if it has
    /// none, and at `unix_ns` by the clock.
    pub(crate) fn of(&self, epoch: EpochId, engine_ns: u64, unix_ns: u64) -> (CutTime, i128) {
        let engine_ns = if engine_ns == 0 { unix_ns } else { engine_ns };
        let ahead_ns = self.ahead_ns.unwrap_or_else(|| {
            self.newest.map_or(0, |newest| {
                let passed = unix_ns.saturating_sub(newest.unix_ns);
                i128::from(newest.own_ns.saturating_add(passed)) - i128::from(engine_ns)
            })
        });
        let own_ns = (i128::from(engine_ns) + ahead_ns).clamp(OWN_TIME_UNIT_NS.into(), u64::MAX.into());
        let own_ns = u64::try_from(own_ns).unwrap_or(u64::MAX).max(self.newest.map_or(0, |newest| newest.own_ns));
        (CutTime { epoch, own_ns, unix_ns }, ahead_ns)
    }

    /// The epoch is in the chain.
    pub(crate) const fn appended(&mut self, (cut, ahead_ns): (CutTime, i128)) {
        (self.newest, self.ahead_ns) = (Some(cut), Some(ahead_ns));
    }

    #[cfg(test)]
    pub(crate) const fn newest(&self) -> Option<CutTime> {
        self.newest
    }
}
