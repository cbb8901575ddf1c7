//! How long packets waited until they left.

use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;

use crate::epoch::times::Times;
use crate::lock::lock;

/// From the guest's sending a packet to its leaving by the link, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct OutputDelay {
    /// The median.
    pub p50: f64,
    /// 95 of 100 are at most this.
    pub p95: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
}

/// Those of one interface.
#[derive(Debug)]
pub(in crate::vmm) struct Delays(Mutex<Times>);

impl Delays {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Times::new()))
    }

    pub(super) fn record(&self, waited: Duration) {
        lock(&self.0).record(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Of all of these together, with how many there are.
    pub(in crate::vmm) fn of<'d>(all: impl Iterator<Item = &'d Self>) -> (u64, OutputDelay) {
        let mut sum = Times::new();
        all.for_each(|delays| sum.add(&lock(&delays.0)));
        (sum.count(), OutputDelay { p50: sum.us(0.5), p95: sum.us(0.95), p99: sum.us(0.99) })
    }
}
