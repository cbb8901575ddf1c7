//! When the epoch in hand is to end because outputs wait for that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nothing waits.
const NEVER: u64 = u64::MAX;

/// The time of the cut that outputs ask for: the first that waits sets it, those that follow share
/// it. Read without a lock.
#[derive(Debug)]
pub(in crate::vmm) struct CutDue {
    begun: Instant,
    /// Nanoseconds from an output to its cut.
    delay_ns: AtomicU64,
    /// Nanoseconds since `begun`.
    due_ns: AtomicU64,
}

impl Default for CutDue {
    fn default() -> Self {
        Self { begun: Instant::now(), delay_ns: AtomicU64::new(0), due_ns: AtomicU64::new(NEVER) }
    }
}

impl CutDue {
    pub(in crate::vmm) fn set_delay(&self, delay: Duration) {
        self.delay_ns.store(u64::try_from(delay.as_nanos()).unwrap_or(NEVER), Ordering::Release);
    }

    /// An output waits for a cut. Returns whether it is the first.
    pub(in crate::vmm) fn ask(&self) -> bool {
        let now = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(NEVER);
        let due = now.saturating_add(self.delay_ns.load(Ordering::Acquire)).min(NEVER - 1);
        self.due_ns.compare_exchange(NEVER, due, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// A cut captures all outputs that wait. It comes before the guest runs again: whoever looks
    /// then must not cut once more for them.
    pub(in crate::vmm) fn captured(&self) {
        self.due_ns.store(NEVER, Ordering::Release);
    }

    /// When it is to be.
    pub(in crate::vmm) fn at(&self) -> Option<Instant> {
        match self.due_ns.load(Ordering::Acquire) {
            NEVER => None,
            due => self.begun.checked_add(Duration::from_nanos(due)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_share_the_cut_that_the_first_asks_for() {
        let due = CutDue::default();
        due.set_delay(Duration::from_secs(100));
        assert_eq!(due.at(), None);
        assert!(due.ask());
        let at = due.at();
        assert!(at.is_some_and(|at| at > Instant::now()) && !due.ask() && due.at() == at);
        due.captured();
        assert_eq!(due.at(), None);
        assert!(due.ask() && due.at() >= at);
    }
}
