//! How long packets waited until they left.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

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

/// Times up to an hour, to three digits.
#[derive(Debug)]
pub(in crate::vmm) struct Delays(Mutex<Histogram<u64>>);

impl Delays {
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        Self(Mutex::new(histogram.expect("1 ns to an hour with 3 digits are bounds that the histogram takes")))
    }

    pub(super) fn record(&self, waited: Duration) {
        lock(&self.0).saturating_record(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Of all of these together, with how many there are.
    #[expect(clippy::cast_precision_loss, reason = "times below 2^52 ns are exact, and this is for people")]
    pub(in crate::vmm) fn of<'d>(all: impl Iterator<Item = &'d Self>) -> (u64, OutputDelay) {
        let Self(sum) = Self::new();
        let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.for_each(|delays| sum += &*lock(&delays.0));
        let us = |quantile| (sum.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0;
        (
            sum.len(),
            if sum.is_empty() { OutputDelay::default() } else { OutputDelay { p50: us(0.5), p95: us(0.95), p99: us(0.99) } },
        )
    }
}
