//! What a page costs the guest: a fault, or a copy in the pause. Pure.

use std::time::Duration;

/// A cut of fewer pages tells little of what copying one takes.
const PAGES_LEAST: u64 = 64;
/// What a cut adds to what is known.
const PART: f64 = 0.25;
/// A change of so much is told.
const TOLD: f64 = 1.25;

/// The costs of a page, on the host at hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageCosts {
    fault_ns: f64,
    copy_ns: f64,
    /// What copying one took when that was asked for last.
    told_ns: f64,
}

impl PageCosts {
    #[expect(clippy::cast_precision_loss, reason = "times of less than a day")]
    pub(super) fn new(fault: Duration, copy_ns: f64) -> Self {
        Self { fault_ns: fault.as_nanos() as f64, copy_ns, told_ns: copy_ns }
    }

    /// What the first write to a protected page costs, in nanoseconds.
    pub(super) const fn fault_ns(&self) -> f64 {
        self.fault_ns
    }

    /// What copying a page takes, in nanoseconds.
    pub(super) const fn copy_ns(&self) -> f64 {
        self.copy_ns
    }

    /// What a fault is worth, in copies.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    pub(super) fn worth(&self) -> u32 {
        (self.fault_ns / self.copy_ns) as u32
    }

    /// A cut has copied so many pages in this time. What was measured at the start was so with
    /// caches and memory as they were then. Whether the costs have changed since they were told.
    #[expect(clippy::cast_precision_loss, reason = "pages and times of one cut")]
    pub(super) fn copied(&mut self, pages: u64, took_ns: u64) -> bool {
        if pages < PAGES_LEAST {
            return false;
        }
        self.copy_ns += PART * (took_ns as f64 / pages as f64 - self.copy_ns);
        let changed = !(self.told_ns / TOLD..self.told_ns * TOLD).contains(&self.copy_ns);
        if changed {
            self.told_ns = self.copy_ns;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_tell_what_copying_takes() {
        let mut costs = PageCosts::new(Duration::from_micros(6), 1200.0);
        assert_eq!(costs.worth(), 5);
        assert!(!costs.copied(63, 1), "too few");
        let told = (0..40).filter(|_| costs.copied(1000, 300_000)).count();
        assert!((2..10).contains(&told), "{told}");
        assert_eq!(costs.worth(), 19);
        assert!(!costs.copied(1000, 310_000));
    }

    #[test]
    fn a_copy_that_takes_no_time_is_no_division() {
        let mut costs = PageCosts::new(Duration::from_micros(6), 0.0);
        assert_eq!(costs.worth(), u32::MAX);
        costs.copied(1000, 0);
        assert_eq!(PageCosts::new(Duration::ZERO, 0.0).worth(), 0);
    }
}
