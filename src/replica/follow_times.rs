//! How long epochs take to a standby, as its primary sees it. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::page::EpochId;

/// How long the last epochs took from being complete to being held by the standby.
#[derive(Debug, Default)]
pub(super) struct FollowTimes {
    /// Epochs that are not held, and when they were complete.
    open: VecDeque<(EpochId, Duration)>,
    times: VecDeque<Duration>,
    /// The standby has said nothing new since it came, when this was the newest that was held.
    begins: bool,
    begun_at: EpochId,
}

impl FollowTimes {
    const MOST: usize = 32;

    /// A standby comes, and `held` is what was held before. What it lacks comes with its base.
    pub(super) fn begin(&mut self, held: EpochId) {
        *self = Self { begins: true, begun_at: held, ..Self::default() };
    }

    pub(super) fn completed(&mut self, epoch: EpochId, now: Duration) {
        // It is told once for each sink.
        if self.open.back().is_some_and(|(last, _)| *last >= epoch) {
            return;
        }
        if self.open.len() == Self::MOST {
            self.open.pop_front();
        }
        self.open.push_back((epoch, now));
    }

    pub(super) fn held(&mut self, held: EpochId, now: Duration) {
        while let Some((_, since)) = self.open.front().copied().filter(|(epoch, _)| *epoch <= held) {
            self.open.pop_front();
            if self.begins {
                continue;
            }
            if self.times.len() == Self::MOST {
                self.times.pop_front();
            }
            self.times.push_back(now.saturating_sub(since));
        }
        self.begins &= held == self.begun_at;
    }

    pub(super) fn median(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.times.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_what_a_standby_was_given_is_timed() {
        let mut times = FollowTimes::default();
        // Without a standby.
        for epoch in 1..100 {
            times.completed(EpochId(epoch), ms(epoch));
        }
        assert!(times.open.len() <= FollowTimes::MOST);
        times.begin(EpochId(40));
        // While it gets its base, and with the base.
        times.completed(EpochId(100), ms(200));
        times.held(EpochId(40), ms(300));
        times.held(EpochId(100), ms(400));
        assert_eq!(times.median(), None, "a base is no epoch that follows");
        for (epoch, took) in [(101, 5), (102, 1), (103, 3)] {
            // Each sink tells it.
            times.completed(EpochId(epoch), ms(10 * epoch));
            times.completed(EpochId(epoch), ms(10 * epoch + 1));
            times.held(EpochId(epoch), ms(10 * epoch + took));
        }
        assert_eq!(times.median(), Some(ms(3)));
        for epoch in 104..300 {
            times.completed(EpochId(epoch), ms(10 * epoch));
            times.held(EpochId(epoch), ms(10 * epoch + 7));
        }
        assert_eq!((times.median(), times.times.len(), times.open.len()), (Some(ms(7)), FollowTimes::MOST, 0));
    }
}
