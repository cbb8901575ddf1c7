//! The whole engine with rounds and without: pause, time to durability, and what the guest loses.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::stats::{Spread, round};
use super::whole::{self, Machine, Protected, Under, Work};
use super::workload::{Axis, Extent, TrackerKind};
use crate::epoch::{Durability, Early};

const STREAM_BYTES: u64 = 4 << 30;
const PATTERN_BYTES: u64 = 512 << 20;
/// Epochs after the base that are left out: rounds learn in them, and pages are touched for the
/// first time.
const COLD_EPOCHS: usize = 3;
/// What a page of a pass takes at the most, with its fault, its copy and its storage: a run lasts
/// for some passes.
const PAGE_US: f64 = 60.0;
/// No run lasts longer.
const TIME_MOST: Duration = Duration::from_secs(12);

/// What is compared: ways of tracking, each with rounds or without.
const KINDS: [(TrackerKind, Early); 3] =
    [(TrackerKind::Ring, Early::Off), (TrackerKind::Ring, Early::Auto), (TrackerKind::BitmapClear, Early::Off)];

/// A guest, and when its epochs end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPoint {
    /// The guest.
    pub guest: String,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Pages of an epoch, at most.
    pub pages: u64,
    /// When epochs end; `None`: the guest asks for a cut after each pass.
    pub interval: Option<Duration>,
}

impl StreamPoint {
    /// Pages that come one after the other, each once in an epoch.
    fn stream(pages: u64) -> Self {
        let guest = format!("touch:pages={pages},pattern=sequential,words=8,lists=2,cut=1");
        Self { guest, memory_bytes: STREAM_BYTES, pages, interval: None }
    }

    fn pattern(pattern: &str, interval_ms: u64) -> Self {
        let guest = format!("churn:pages=4096,pattern={pattern},content=words");
        Self { guest, memory_bytes: PATTERN_BYTES, pages: 4096, interval: Some(Duration::from_millis(interval_ms)) }
    }

    /// Room for an epoch beside full rings.
    fn budget_pages(&self) -> u64 {
        (self.pages * 2).max(8192)
    }

    fn under(&self, tracker: TrackerKind, early: Early) -> Under {
        let budget_pages = self.budget_pages();
        // A stream has no page that is written twice, and no use for a hot set.
        let has_hot_set = tracker == TrackerKind::Ring && self.interval.is_some();
        let kind = if has_hot_set { TrackerKind::RingHot } else { tracker };
        Under {
            tracking: kind.tracking_with(budget_pages, None, early != Early::Off),
            budget_pages,
            interval: self.interval,
            // As soon as can be: a delay for groups would hide what rounds gain.
            durability: Durability::Group(Duration::ZERO),
            early,
        }
    }

    pub(super) fn time(&self, at_least: Duration) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "pages are fewer than 2^52")]
        let passes = Duration::from_secs_f64(self.pages as f64 * PAGE_US / 1e6);
        if self.interval.is_some() { at_least } else { passes.clamp(at_least, TIME_MOST.max(at_least)) }
    }
}

/// The points of an extent, where the axis is asked for.
#[must_use]
pub fn stream_points(extent: Extent, axes: &[Axis]) -> Vec<StreamPoint> {
    if !axes.contains(&Axis::Early) {
        return Vec::new();
    }
    let pages: &[u64] = match extent {
        Extent::Full => &[60, 1000, 4000, 20_000, 65_000, 200_000],
        Extent::Quick => &[60, 4000],
        Extent::Tiny => &[1000],
    };
    let patterns: &[&str] = if extent == Extent::Full { &["hotcold", "uniform", "zipf"] } else { &[] };
    let streams = pages.iter().map(|pages| StreamPoint::stream(*pages));
    streams.chain(patterns.iter().flat_map(|pattern| [10, 50].map(|ms| StreamPoint::pattern(pattern, ms)))).collect()
}

/// What a run of the whole engine came to, with rounds or without. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamRow {
    /// `early`.
    pub axes: Vec<&'static str>,
    /// The way of tracking.
    pub tracker: &'static str,
    /// Whether there were rounds: `off` or `auto`.
    pub early: &'static str,
    /// The guest's options.
    pub guest: String,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Pages of a pass of the guest.
    pub dirty_pages: u64,
    /// When epochs end; none where the guest asks for a cut after each pass.
    pub interval_us: Option<u64>,
    /// Epochs that were measured: neither the base nor the first few.
    pub epochs: u64,
    /// Pages of an epoch, on average.
    pub epoch_pages: f64,
    /// Of these, pages that a round took, on average over all epochs.
    pub early_pages: f64,
    /// Pages that an epoch mentions once more, on average over all epochs.
    pub repeated_pages: f64,
    /// The pauses.
    pub pause_us: Spread,
    /// From the cut until the epoch was durable, over all epochs.
    pub durable_after_us: Spread,
    /// How much longer the guest's work takes, in percent of the time that it takes without
    /// protection.
    pub stretch_percent: f64,
}

impl StreamRow {
    /// Whether epochs have the pages of a pass, and nothing ended them before.
    #[must_use]
    pub fn whole_epochs(&self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "pages are fewer than 2^52")]
        let pages = self.dirty_pages as f64;
        self.epoch_pages > 0.8 * pages
    }
}

/// Runs the guest of `point` without protection, under each of the ways that are compared, and
/// without protection again, for `time` each or longer. Chains are made in new directories within
/// `dir` and removed.
///
/// # Errors
/// [`BenchError`].
pub fn measure(kvm: &Path, dir: &Path, point: &StreamPoint, time: Duration) -> Result<Vec<StreamRow>, BenchError> {
    let guest = whole::guest(&point.guest)?;
    let machine = Machine { kvm, guest: &guest, memory_bytes: point.memory_bytes, time: point.time(time) };
    let before = machine.unprotected()?;
    let mut runs = Vec::new();
    for (tracker, early) in KINDS {
        runs.push((tracker, early, machine.protected(dir, point.under(tracker, early))?));
    }
    let plain = [before, machine.unprotected()?];
    Ok(runs.iter().map(|(tracker, early, run)| row(point, (*tracker, *early), run, &plain)).collect())
}

fn row(point: &StreamPoint, (tracker, early): (TrackerKind, Early), run: &Protected, plain: &[Work]) -> StreamRow {
    #[expect(clippy::cast_precision_loss, reason = "counts are fewer than 2^52")]
    let number = |count: u64| count as f64;
    let warm = run.epochs.get(COLD_EPOCHS.min(run.epochs.len() / 2)..).unwrap_or_default();
    let of_all = |count: u64| round(number(count) / number(run.epochs.len() as u64).max(1.0));
    let durable = run.report.durable_after_us;
    StreamRow {
        axes: vec![Axis::Early.as_str()],
        tracker: tracker.as_str(),
        early: if early == Early::Off { "off" } else { "auto" },
        guest: point.guest.clone(),
        memory_bytes: point.memory_bytes,
        dirty_pages: point.pages,
        interval_us: point.interval.and_then(|interval| u64::try_from(interval.as_micros()).ok()),
        epochs: warm.len() as u64,
        epoch_pages: round(number(warm.iter().map(|(pages, ..)| pages).sum()) / number(warm.len() as u64).max(1.0)),
        early_pages: of_all(run.report.early_pages),
        repeated_pages: of_all(run.report.repeated_pages),
        pause_us: Spread::of(warm.iter().map(|(_, _, pause)| *pause)),
        durable_after_us: Spread { p50: durable.p50, p99: durable.p99, max: durable.max },
        stretch_percent: round(run.work.stretch_percent(plain)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Report;
    use crate::vmm::Paced;

    fn work(passes: f64) -> Work {
        Work { passes, seconds: 2.0, paced: Paced { bursts: 0, busy: Duration::ZERO } }
    }

    #[test]
    fn a_row_leaves_out_what_was_learnt_in() {
        let epochs = (0..10).map(|epoch| (100, 1000, if epoch < 3 { 900.0 } else { 40.0 })).collect();
        let report = Report { early_pages: 500, repeated_pages: 20, ..Report::default() };
        let run = Protected { work: work(80.0), usage: Default::default(), epochs, copy_us: 0.0, report };
        let point = &stream_points(Extent::Full, &[Axis::Early])[0];
        let row = row(point, (TrackerKind::Ring, Early::Auto), &run, &[work(90.0), work(110.0)]);
        assert_eq!((row.epochs, row.epoch_pages, row.early_pages, row.repeated_pages), (7, 100.0, 50.0, 2.0));
        assert_eq!((row.pause_us.max, row.stretch_percent, row.early), (40.0, 25.0, "auto"));
    }

    #[test]
    fn what_must_be_shown_is_there_and_every_guest_is_one() {
        let points = stream_points(Extent::Full, &[Axis::Early]);
        for pages in [60, 4000, 20_000, 200_000] {
            assert!(points.iter().any(|point| point.pages == pages && point.interval.is_none()));
        }
        for extent in [Extent::Full, Extent::Quick, Extent::Tiny] {
            for point in stream_points(extent, &Axis::ALL) {
                whole::guest(&point.guest).unwrap();
                assert!(point.budget_pages() > point.pages && point.time(Duration::ZERO) <= TIME_MOST);
            }
        }
        assert!(stream_points(Extent::Full, &[Axis::Rate]).is_empty());
    }
}
