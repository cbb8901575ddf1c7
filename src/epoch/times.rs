//! Distributions of times.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A distribution of times, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// Times up to an hour, to three digits. The first one takes a quarter of a mebibyte: a machine
/// that is taken over runs before it has any.
#[derive(Clone, Debug)]
pub(crate) struct Times(Option<Histogram<u64>>);

impl Times {
    pub(crate) const fn new() -> Self {
        Self(None)
    }

    fn histogram(&mut self) -> &mut Histogram<u64> {
        self.0.get_or_insert_with(|| {
            let histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
            histogram.expect("1 ns to an hour with 3 digits are bounds that the histogram takes")
        })
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.histogram().saturating_record(ns);
    }

    /// Adds all the times of `other`.
    #[cfg(feature = "vmm")]
    pub(crate) fn add(&mut self, other: &Self) {
        if let Some(other) = &other.0 {
            *self.histogram() += other;
        }
    }

    /// How many there are.
    #[cfg(feature = "vmm")]
    pub(crate) fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// A quantile in microseconds, or 0 of no times.
    pub(crate) fn us(&self, quantile: f64) -> f64 {
        self.0.as_ref().map_or(0.0, |times| us(times.value_at_quantile(quantile)))
    }

    pub(super) fn distribution(&self) -> Distribution {
        let max = self.0.as_ref().map_or(0.0, |times| us(times.max()));
        Distribution { p50: self.us(0.5), p99: self.us(0.99), max }
    }

    pub(super) fn median(&self) -> f64 {
        self.us(0.5)
    }
}

/// Nanoseconds as microseconds, to a tenth.
#[expect(clippy::cast_precision_loss, reason = "times below 2^52 ns are exact, and this is for people")]
pub(crate) fn us(ns: u64) -> f64 {
    (ns as f64 / 100.0).round() / 10.0
}
