//! What time it is: by the clock that people and time servers set, and by one that nobody does.

use rustix::time::{ClockId, Timespec, clock_gettime};

pub(super) use crate::clock::unix_ns;

/// Time that goes on from what the clock said when this was made, however the clock is set. A host
/// that sleeps counts.
#[derive(Debug)]
pub(super) struct Clock {
    unix_ns: u64,
    made: Timespec,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { unix_ns: unix_ns(), made: clock_gettime(ClockId::Boottime) }
    }

    /// Nanoseconds since 1970.
    pub(super) fn now_ns(&self) -> u64 {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
        let passed = i128::from(tv_sec - self.made.tv_sec) * 1_000_000_000 + i128::from(tv_nsec - self.made.tv_nsec);
        self.unix_ns.saturating_add(u64::try_from(passed).unwrap_or_default())
    }
}
