//! How a guest's clocks go on after a restore.

use crate::clock::unix_ns;
use crate::machine::VmState;

/// How a guest's clocks go on after a restore: kvmclock, the time stamp counters, and a Linux
/// guest's real-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clocks {
    /// From where they were: to the guest no time passed.
    #[default]
    Continue,
    /// They are put forward by the time that passed on the host since the cut. Never back: a host's
    /// clock that is behind the cut counts as no time.
    Host {
        /// When the cut was, in nanoseconds since 1970 by the host's real-time clock: a commit's
        /// `time_unix_ns`. It counts where the saved state does not say it itself.
        cut_unix_ns: u64,
    },
}

impl Clocks {
    /// From when on time passed that the guest is to see.
    pub(super) fn since(self, saved: &VmState) -> Option<Since> {
        match self {
            Self::Continue => None,
            Self::Host { cut_unix_ns } => Some(Since { unix_ns: saved.clock_read_unix_ns().unwrap_or(cut_unix_ns) }),
        }
    }
}

/// A time on the host's real-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since {
    unix_ns: u64,
}

impl Since {
    /// Nanoseconds since then. Each clock is put forward by what this says when it is set, so that
    /// all are right.
    pub(super) fn passed_ns(self) -> u64 {
        self.passed_ns_at(unix_ns())
    }

    /// Nanoseconds by which the host's clock is behind, if it is.
    pub(super) fn behind_ns(self) -> Option<u64> {
        self.behind_ns_at(unix_ns())
    }

    const fn passed_ns_at(self, now_unix_ns: u64) -> u64 {
        now_unix_ns.saturating_sub(self.unix_ns)
    }

    fn behind_ns_at(self, now_unix_ns: u64) -> Option<u64> {
        self.unix_ns.checked_sub(now_unix_ns).filter(|behind| *behind > 0)
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};

    use super::*;

    #[test]
    fn time_passes_forward_only() {
        let since = Since { unix_ns: 1_000 };
        for (now, passed, behind) in
            [(1_500, 500, None), (1_000, 0, None), (999, 0, Some(1)), (0, 0, Some(1_000)), (u64::MAX, u64::MAX - 1_000, None)]
        {
            assert_eq!((since.passed_ns_at(now), since.behind_ns_at(now)), (passed, behind), "{now}");
        }
    }

    #[test]
    fn what_the_kernel_says_counts_before_the_commit() {
        let read =
            |flags| VmState { clock: Some(kvm_clock_data { realtime: 70, flags, ..Default::default() }), ..VmState::default() };
        let host = Clocks::Host { cut_unix_ns: 90 };
        assert_eq!(host.since(&read(KVM_CLOCK_REALTIME)), Some(Since { unix_ns: 70 }));
        assert_eq!(host.since(&read(0)), Some(Since { unix_ns: 90 }));
        assert_eq!(host.since(&VmState::default()), Some(Since { unix_ns: 90 }));
        assert_eq!(Clocks::default().since(&read(KVM_CLOCK_REALTIME)), None);
    }
}
