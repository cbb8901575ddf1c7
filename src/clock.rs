//! What time it is, by the clock that people and time servers set, and times as numbers.

#[cfg(any(feature = "kvm", feature = "replica"))]
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970; 0 for a clock that stands before it.
pub(crate) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A time in whole microseconds: as many as a number holds, where it is longer.
#[cfg(any(feature = "kvm", feature = "replica"))]
pub(crate) fn whole_us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
