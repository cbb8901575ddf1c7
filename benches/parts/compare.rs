//! Two things timed in turn, so that what else the machine does meets both.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Rounds of each.
const ROUNDS: usize = 31;

/// If `asked`, prints how many times as long `one` takes as `other`: the median over rounds of both
/// in turn, and the quartiles.
pub(crate) fn compare(asked: bool, name: &str, mut one: impl FnMut() -> Duration, mut other: impl FnMut() -> Duration) {
    if !asked || std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mut ratios: Vec<_> = (0..ROUNDS).map(|_| one().as_secs_f64() / other().as_secs_f64().max(1e-9)).collect();
    ratios.sort_by(f64::total_cmp);
    eprintln!("{name}: {:.3} ({:.3} to {:.3})\n", ratios[ROUNDS / 2], ratios[ROUNDS / 4], ratios[ROUNDS * 3 / 4]);
}

/// What the calling thread works for `work`: waiting does not count, nor what others do meanwhile.
pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
    };
    let start = now();
    work();
    now().saturating_sub(start)
}
