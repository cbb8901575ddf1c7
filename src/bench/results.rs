//! Rows: what was measured at one point with one tracker.

use serde::Serialize;

use super::runner::{Measured, Sample};
use super::stats::{Spread, median, quantile, round, sorted};
use super::workload::{Point, TrackerKind};

/// The quantiles of the pause that a row carries, in hundredths.
pub const PAUSE_QUANTILES: [u8; 9] = [0, 10, 25, 50, 75, 90, 95, 99, 100];

/// What was measured at one point with one tracker. Times are in microseconds, and medians where
/// nothing else is said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The axes that the point lies on.
    pub axes: Vec<&'static str>,
    /// The way of tracking.
    pub tracker: &'static str,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Pages of a pass of the guest.
    pub dirty_pages: u64,
    /// Which pages they are.
    pub pattern: String,
    /// vCPUs.
    pub vcpus: u32,
    /// Entries of each vCPU's ring, where rings track.
    pub ring_entries: Option<u32>,
    /// What ended the epochs: `request` (the guest, after each pass) or `ring_full`.
    pub trigger: &'static str,
    /// Rounds of turns.
    pub rounds: u32,
    /// Cuts that were measured in them.
    pub cuts: usize,
    /// Pages of an epoch.
    pub epoch_pages: f64,
    /// How long the guest ran from one cut to the next.
    pub run_us: f64,
    /// Getting all vCPUs out of the guest.
    pub kick_us: f64,
    /// Capturing state.
    pub state_us: f64,
    /// Reading the log.
    pub harvest_us: f64,
    /// Copying pages.
    pub copy_us: f64,
    /// Protecting pages again.
    pub reset_us: f64,
    /// Harvest and reset: what the way of tracking costs while the guest stands still.
    pub tracking_us: f64,
    /// All phases together.
    pub pause_us: Spread,
    /// The distribution of the pause, at [`PAUSE_QUANTILES`].
    pub pause_quantiles_us: Vec<f64>,
    /// Pages captured in a second, running and pausing.
    pub pages_per_s: f64,
    /// Cuts in a second, running and pausing.
    pub cuts_per_s: f64,
    /// How long the same pages take the guest without tracking.
    pub untracked_run_us: f64,
    /// How many times as long the guest takes, running and pausing.
    pub slowdown: f64,
    /// What the first write to a page costs the guest, beyond the write: the difference of both
    /// runs, by pages.
    pub fault_us_per_page: f64,
    /// The floor: copying the same pages, and nothing else.
    pub floor_copy_us: f64,
    /// The median pause beyond that floor.
    pub pause_above_floor_us: f64,
}

/// The rows of a point.
#[must_use]
pub fn rows(point: &Point, measured: &Measured) -> Vec<Row> {
    let trackers = measured.trackers.iter().filter(|(_, samples)| !samples.is_empty());
    trackers.map(|(kind, samples)| row(point, measured, *kind, samples)).collect()
}

fn row(point: &Point, measured: &Measured, kind: TrackerKind, samples: &[Sample]) -> Row {
    let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field));
    #[expect(clippy::cast_precision_loss, reason = "pages are fewer than 2^52")]
    let pages = |count: u64| count as f64;
    let epoch_pages = median(samples.iter().map(|sample| pages(sample.pages)));
    // With full rings an epoch has another number of pages than a pass.
    let passes = if point.full_ring.is_some() { epoch_pages / pages(point.pages) } else { 1.0 };
    let untracked = median(measured.untracked_pass_us.iter().copied()) * passes;
    let floor = median(measured.copy_us.iter().copied());
    let cycle = of(|sample| sample.run + sample.pause());
    let pauses = sorted(samples.iter().map(Sample::pause));
    let pause = Spread::of(pauses.iter().copied());
    let per_second = |count: f64| if cycle > 0.0 { (count * 1e6 / cycle).round() } else { 0.0 };
    let ring = matches!(kind, TrackerKind::Ring | TrackerKind::RingHot).then(|| point.ring().ok()).flatten();
    Row {
        axes: point.axes.iter().map(|axis| axis.as_str()).collect(),
        tracker: kind.as_str(),
        memory_bytes: point.memory_bytes,
        dirty_pages: point.pages,
        pattern: point.pattern.to_string(),
        vcpus: point.vcpus,
        ring_entries: ring.map(|ring| ring.entries()),
        trigger: if point.full_ring.is_some() { "ring_full" } else { "request" },
        rounds: measured.rounds,
        cuts: samples.len(),
        epoch_pages,
        run_us: round(of(|sample| sample.run)),
        kick_us: round(of(|sample| sample.kick)),
        state_us: round(of(|sample| sample.state)),
        harvest_us: round(of(|sample| sample.harvest)),
        copy_us: round(of(|sample| sample.copy)),
        reset_us: round(of(|sample| sample.reset)),
        tracking_us: round(of(Sample::tracking)),
        pause_us: pause,
        pause_quantiles_us: PAUSE_QUANTILES.map(|at| round(quantile(&pauses, f64::from(at) / 100.0))).to_vec(),
        pages_per_s: per_second(epoch_pages),
        cuts_per_s: per_second(1.0),
        untracked_run_us: round(untracked),
        slowdown: if untracked > 0.0 { round(cycle / untracked) } else { 0.0 },
        fault_us_per_page: round((of(|sample| sample.run) - untracked) / epoch_pages.max(1.0)),
        floor_copy_us: round(floor),
        pause_above_floor_us: round(pause.p50 - floor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::testing::rows_of;
    use crate::bench::workload::{Axis, Extent, points};

    #[test]
    fn a_row_is_made_of_medians() {
        let point = points(Extent::Full, &[Axis::Memory]).into_iter().find(|point| point.pages == 512).unwrap();
        let rows = rows_of(&point);
        assert_eq!(rows.iter().map(|row| row.tracker).collect::<Vec<_>>(), TrackerKind::ALL.map(TrackerKind::as_str));
        let ring = &rows[0];
        assert_eq!((ring.cuts, ring.trigger, ring.ring_entries), (50, "request", Some(2048)));
        assert!((ring.tracking_us - 102.4).abs() < 1e-6 && (ring.run_us - 2560.0).abs() < 1e-6);
        // Kick 0.1, state 23, tracking 102.4, copy 154.6.
        assert!((ring.pause_us.p50 - 280.1).abs() < 1.1, "{:?}", ring.pause_us);
        assert_eq!(ring.pause_quantiles_us.len(), PAUSE_QUANTILES.len());
        assert!(ring.pause_quantiles_us.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!((ring.floor_copy_us - 153.6).abs() < 1e-6);
        assert!((ring.slowdown - (2560.0 + 280.1) / 10.24).abs() < 0.2, "{}", ring.slowdown);
        assert!((ring.fault_us_per_page - (2560.0 - 10.24) / 513.0).abs() < 1e-3);
    }

    #[test]
    fn a_full_ring_is_compared_with_as_many_pages_without_tracking() {
        let point = points(Extent::Full, &[Axis::Budget]).into_iter().find(|point| point.full_ring == Some(1024)).unwrap();
        let rows = rows_of(&point);
        assert_eq!((rows.len(), rows[0].trigger, rows[0].ring_entries), (1, "ring_full", Some(1024)));
        // A pass of 65,536 pages takes 1310.72 us.
        assert!((rows[0].untracked_run_us - 1310.72 * 1025.0 / 65_536.0).abs() < 1e-3);
    }
}
