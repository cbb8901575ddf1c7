//! Order statistics of small samples.

use serde::Serialize;

/// The value at `quantile` (0 to 1) of a sample: the smallest value that at least that share of the
/// sample does not exceed. 0 for an empty sample.
#[must_use]
pub fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    #[expect(clippy::cast_precision_loss, reason = "samples are fewer than 2^52")]
    let rank = (quantile.clamp(0.0, 1.0) * sorted.len() as f64).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the length")]
    let index = (rank as usize).saturating_sub(1).min(last);
    sorted.get(index).copied().unwrap_or_default()
}

/// The median of a sample in any order; 0 for an empty one.
#[must_use]
pub fn median(sample: impl IntoIterator<Item = f64>) -> f64 {
    quantile(&sorted(sample), 0.5)
}

/// A sample in ascending order. What is no number is left out.
#[must_use]
pub fn sorted(sample: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sample: Vec<f64> = sample.into_iter().filter(|value| value.is_finite()).collect();
    sample.sort_by(f64::total_cmp);
    sample
}

/// A distribution of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of a sample in any order.
    #[must_use]
    pub fn of(sample: impl IntoIterator<Item = f64>) -> Self {
        let sorted = sorted(sample);
        Self { p50: round(quantile(&sorted, 0.5)), p99: round(quantile(&sorted, 0.99)), max: round(quantile(&sorted, 1.0)) }
    }
}

/// To three decimals: what a time in microseconds is known to.
#[must_use]
pub fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_members_of_the_sample() {
        let sample = sorted((1..=100).rev().map(f64::from).chain([f64::NAN]));
        assert_eq!(sample.len(), 100);
        for (at, value) in [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.505, 51.0), (0.99, 99.0), (1.0, 100.0), (7.0, 100.0)] {
            assert!((quantile(&sample, at) - value).abs() < 1e-9, "{at}");
        }
        assert_eq!((quantile(&[], 0.5), quantile(&[3.0], 0.0), median([2.0, 9.0, 1.0])), (0.0, 3.0, 2.0));
        assert_eq!(Spread::of([3.0, 1.0, 2.00049]), Spread { p50: 2.0, p99: 3.0, max: 3.0 });
        assert_eq!(Spread::of([]), Spread::default());
    }
}
