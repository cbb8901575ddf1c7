//! The choice of the hot set, against the least that any set could cost on the same trace.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::endtoend::{self, BUDGET, MEMORY_BYTES, RatePoint, STANDARD_GUEST};
use super::stats::round;
use super::whole::{self, Machine};
use super::workload::{Axis, Extent, TrackerKind};
use crate::epoch::{Collected, Tracker, TrackerError};
use crate::lock::lock;
use crate::page::{Gfn, PAGE_SIZE_U64, PageSet};
use crate::parked::Parked;
use crate::track::replay::{Tracked, least, replay};

/// Guests of other patterns, paced as the standard one is.
const PATTERNS: [&str; 3] = [
    "churn:pages=4096,pattern=zipf,content=words,burst=2000,every=50ms",
    "churn:pages=4096,pattern=uniform,content=words,burst=2000,every=50ms",
    "churn:pages=4096,pattern=sequential,content=words,burst=2000,every=50ms",
];
/// Epochs of a trace: a set is learnt in some tens of them.
const EPOCHS: u64 = 240;
/// The most pages in the set, as in a run of the whole engine: half of the budget.
const MOST: u64 = BUDGET / 2;

/// A guest, and its checkpoints a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotPoint {
    /// The guest.
    pub guest: &'static str,
    /// Checkpoints in a second.
    pub rate: u32,
    /// Epochs of its trace.
    pub epochs: u64,
}

/// The points of an extent, where the axis is asked for.
#[must_use]
pub fn hot_points(extent: Extent, axes: &[Axis]) -> Vec<HotPoint> {
    if !axes.contains(&Axis::Hot) {
        return Vec::new();
    }
    let point = |guest, rate, epochs| HotPoint { guest, rate, epochs };
    match extent {
        Extent::Full => {
            let standard = [20, 200].map(|rate| point(STANDARD_GUEST, rate, EPOCHS));
            standard.into_iter().chain(PATTERNS.map(|guest| point(guest, 20, EPOCHS))).collect()
        }
        Extent::Quick => Vec::new(),
        Extent::Tiny => vec![point(STANDARD_GUEST, 200, 10)],
    }
}

/// What the hot set costs a guest, and what the best would have. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HotRow {
    /// `hot`.
    pub axes: Vec<&'static str>,
    /// The guest's options.
    pub guest: String,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Checkpoints wanted in a second.
    pub wanted_per_s: u32,
    /// Epochs of the trace.
    pub epochs: u64,
    /// Pages that the guest wrote in an epoch, on average.
    pub epoch_pages: f64,
    /// What the first write to a protected page costs.
    pub fault_us: f64,
    /// What copying a page in the pause costs.
    pub copy_us: f64,
    /// Faults and copies of an epoch without a hot set.
    pub none_us: f64,
    /// With the product's, replayed on the trace, looks included.
    pub chosen_us: f64,
    /// With the best that stays the same.
    pub least_us: f64,
    /// The second last by the last.
    pub over_least: f64,
    /// As measured: how much more of its time the guest's work takes, in percent of the period.
    pub slowdown_percent: f64,
    /// The same without a hot set.
    pub none_slowdown_percent: f64,
}

/// Epochs, each with the pages that were written in it.
type Trace = Arc<Mutex<Vec<Vec<Gfn>>>>;

/// A tracker that notes what each collection found.
#[derive(Debug)]
struct Traced {
    tracker: Box<dyn Tracker>,
    trace: Trace,
}

impl Tracker for Traced {
    fn name(&self) -> &'static str {
        self.tracker.name()
    }

    fn bound(&self) -> Option<u64> {
        self.tracker.bound()
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        let collected = self.tracker.collect(parked, into)?;
        lock(&self.trace).push(into.iter().collect());
        Ok(collected)
    }

    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackerError> {
        self.tracker.rearm(parked)
    }
}

/// Measures `point`: a run whose writes are noted, and the whole engine with a hot set and without,
/// each framed by runs without protection, of `time` each. A fault costs so much here.
///
/// # Errors
/// [`BenchError`].
pub fn measure(kvm: &Path, dir: &Path, point: &HotPoint, fault_us: f64, time: Duration) -> Result<HotRow, BenchError> {
    let guest = whole::guest(point.guest)?;
    let traced = Duration::from_secs(point.epochs) / point.rate.max(1);
    let machine = Machine { kvm, guest: &guest, memory_bytes: MEMORY_BYTES, time: traced };
    let at = |tracker| RatePoint { guest: point.guest, rate: Some(point.rate), tracker };
    let plain = at(TrackerKind::Ring);
    let trace = Trace::default();
    let run = machine.protected_with(dir, plain.under(), |tracker| Box::new(Traced { tracker, trace: trace.clone() }))?;
    let copied: u64 = run.epochs.iter().map(|(pages, ..)| pages).sum();
    let none = endtoend::measure(kvm, dir, &plain, time)?;
    let hot = endtoend::measure(kvm, dir, &at(TrackerKind::RingHot), time)?;
    #[expect(clippy::cast_precision_loss, reason = "counts are fewer than 2^52")]
    let copy_us = run.copy_us / (copied as f64).max(1.0);
    let trace = std::mem::take(&mut *lock(&trace));
    Ok(row(point, &trace, (fault_us, copy_us), (hot.slowdown_percent, none.slowdown_percent)))
}

fn row(point: &HotPoint, trace: &[Vec<Gfn>], (fault, copy): (f64, f64), slowdowns: (f64, f64)) -> HotRow {
    #[expect(clippy::cast_precision_loss, reason = "counts are fewer than 2^52")]
    let epochs = trace.len().max(1) as f64;
    #[expect(clippy::cast_precision_loss, reason = "counts are fewer than 2^52")]
    let pages = trace.iter().map(Vec::len).sum::<usize>() as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let worth = (fault / copy.max(1e-9)) as u32;
    let most = usize::try_from(MOST).unwrap_or(usize::MAX);
    let each = |tracked: Tracked| round(tracked.cost(fault, copy) / epochs);
    let replayed = |most| each(replay(trace, MEMORY_BYTES / PAGE_SIZE_U64, most, worth));
    let (chosen, best) = (replayed(most), round(least(trace, most, fault, copy) / epochs));
    HotRow {
        axes: vec![Axis::Hot.as_str()],
        guest: point.guest.to_owned(),
        memory_bytes: MEMORY_BYTES,
        wanted_per_s: point.rate,
        epochs: trace.len() as u64,
        epoch_pages: round(pages / epochs),
        fault_us: round(fault),
        copy_us: round(copy),
        none_us: replayed(0),
        chosen_us: chosen,
        least_us: best,
        over_least: round(chosen / best.max(1e-9)),
        slowdown_percent: slowdowns.0,
        none_slowdown_percent: slowdowns.1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_compares_on_one_trace() {
        let point = &hot_points(Extent::Full, &[Axis::Hot])[0];
        let trace: Vec<Vec<Gfn>> = (0..400).map(|epoch| (0..60).chain([1000 + epoch]).map(Gfn).collect()).collect();
        let row = row(point, &trace, (6.0, 0.5), (3.0, 9.0));
        assert_eq!((row.epochs, row.epoch_pages, row.none_us), (400, 61.0, 61.0 * 6.5));
        assert_eq!(row.least_us, 60.0 * 0.5 + 6.5);
        assert!((1.0..1.3).contains(&row.over_least), "{row:?}");
    }

    #[test]
    fn the_paced_guest_and_three_patterns_are_there() {
        let points = hot_points(Extent::Full, &[Axis::Hot]);
        assert!(points.len() == 5 && points.iter().all(|point| whole::guest(point.guest).is_ok()));
        assert_eq!([points[0].rate, points[1].rate], [20, 200]);
        assert!(hot_points(Extent::Full, &[Axis::Rate]).is_empty());
    }
}
