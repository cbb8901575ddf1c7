//! Whether every write is known.

use crate::page::EpochId;

/// What is known of the pages that were written since the newest epoch that the chain has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    /// Every write is known.
    Sound,
    /// Writes may have been missed since the last cut: the next epoch has all memory. Before that,
    /// an epoch that had all memory may be owed as well.
    Lost { owed: bool },
    /// Writes may have been missed before the last cut, and the epoch that had all memory then did
    /// not reach the chain: its pages come again.
    Owed,
}

/// Whether every write is known, and which epoch has made up for it where it was not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracking {
    now: Now,
    /// The newest epoch that had all memory because writes may have been missed.
    last_recovery: EpochId,
}

impl Tracking {
    pub(super) const fn sound() -> Self {
        Self { now: Now::Sound, last_recovery: EpochId::NONE }
    }

    /// Writes may have been missed.
    pub(super) const fn lose(&mut self) {
        self.now = Now::Lost { owed: matches!(self.now, Now::Owed | Now::Lost { owed: true }) };
    }

    /// Whether all memory has to be looked at, to know what was written since the last cut.
    pub(super) const fn is_lost(&self) -> bool {
        matches!(self.now, Now::Lost { .. })
    }

    /// Whether the next epoch makes up for writes that may have been missed.
    pub(super) const fn is_recovery(&self) -> bool {
        !matches!(self.now, Now::Sound)
    }

    /// `epoch` was cut.
    pub(super) const fn cut(&mut self, epoch: EpochId) {
        if self.is_recovery() {
            self.last_recovery = epoch;
        }
        self.now = Now::Sound;
    }

    /// Memory was put back to the last cut, all of it if need be.
    pub(super) const fn rolled_back(&mut self) {
        self.now = match self.now {
            Now::Lost { owed: true } | Now::Owed => Now::Owed,
            Now::Lost { owed: false } | Now::Sound => Now::Sound,
        };
    }

    /// Epochs behind `newest` did not reach the chain.
    pub(super) fn failed(&mut self, newest: EpochId) {
        if self.last_recovery > newest {
            self.now = match self.now {
                Now::Lost { .. } => Now::Lost { owed: true },
                Now::Sound | Now::Owed => Now::Owed,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_made_up_for_lost_writes_is_owed_until_one_like_it_is_cut() {
        let mut tracking = Tracking::sound();
        tracking.failed(EpochId(3));
        assert!(!tracking.is_recovery(), "nothing was lost");
        tracking.lose();
        assert!(tracking.is_lost() && tracking.is_recovery());
        tracking.cut(EpochId(7));
        assert!(!tracking.is_recovery());
        tracking.failed(EpochId(7));
        assert!(!tracking.is_recovery(), "epoch 7 is there");
        tracking.failed(EpochId(6));
        assert!(tracking.is_recovery() && !tracking.is_lost());
        // Lost and owed: going back knows what was written since the cut, and the chain still lacks
        // epoch 7.
        tracking.lose();
        tracking.rolled_back();
        assert!(tracking.is_recovery() && !tracking.is_lost());
        tracking.cut(EpochId(9));
        tracking.lose();
        tracking.rolled_back();
        assert!(!tracking.is_recovery(), "all memory is as the cut had it");
    }
}
