//! The whole engine, with a chain on disk, at a rate of checkpoints.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::cpu::Group;
use super::stats::{Spread, round};
use super::whole::{self, Machine, Protected, Under, Work, mean};
use super::workload::{Axis, Extent, TrackerKind};
use crate::epoch::{Durability, Early};
use crate::vmm::GuestSpec;

/// The guest that every rate is measured with: hot and cold pages, 2,000 page writes in each 50 ms,
/// a few words changed in each page.
pub const STANDARD_GUEST: &str = "churn:pages=4096,pattern=hotcold,hot=512,content=words,burst=2000,every=50ms";
/// A guest without rest, whose 60 pages are in every epoch.
const UNPACED_GUESTS: [&str; 2] = ["churn:pages=60,content=words", "touch:pages=60,pattern=same,words=8"];
pub(super) const MEMORY_BYTES: u64 = 512 << 20;
pub(super) const BUDGET: u64 = 8192;

/// A run of the whole engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RatePoint {
    /// The guest.
    pub guest: &'static str,
    /// Checkpoints wanted in a second; `None` for as many as there can be.
    pub rate: Option<u32>,
    /// The way of tracking.
    pub tracker: TrackerKind,
}

impl RatePoint {
    /// When epochs end. The guest of the last kind asks for its cuts itself.
    fn interval(&self) -> Option<Duration> {
        match self.rate {
            Some(rate) => Some(Duration::from_secs(1) / rate.max(1)),
            None if self.guest.starts_with("touch") => None,
            None => Some(Duration::from_micros(1)),
        }
    }

    /// How the guest is protected.
    pub(super) fn under(&self) -> Under {
        Under {
            tracking: self.tracker.tracking_with(BUDGET, None, false),
            budget_pages: BUDGET,
            interval: self.interval(),
            durability: Durability::Group(Durability::GROUP_DEFAULT),
            early: Early::Off,
        }
    }
}

/// The runs of an extent, where the axis is asked for.
#[must_use]
pub fn rate_points(extent: Extent, axes: &[Axis]) -> Vec<RatePoint> {
    if !axes.contains(&Axis::Rate) {
        return Vec::new();
    }
    let (rates, trackers): (&[Option<u32>], &[TrackerKind]) = match extent {
        Extent::Full => (
            &[Some(1), Some(20), Some(50), Some(200), Some(1000), None],
            &[TrackerKind::Ring, TrackerKind::RingHot, TrackerKind::BitmapClear],
        ),
        Extent::Quick => (&[Some(20), Some(200), None], &[TrackerKind::Ring, TrackerKind::RingHot]),
        Extent::Tiny => (&[None], &[TrackerKind::Ring]),
    };
    let standard = rates
        .iter()
        .flat_map(|rate| trackers.iter().map(|tracker| RatePoint { guest: STANDARD_GUEST, rate: *rate, tracker: *tracker }));
    let unpaced = UNPACED_GUESTS
        .iter()
        .flat_map(|guest| [TrackerKind::Ring, TrackerKind::RingHot].map(|tracker| RatePoint { guest, rate: None, tracker }));
    standard.chain(unpaced.filter(|_| extent != Extent::Tiny)).collect()
}

/// What a run of the whole engine came to. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RateRow {
    /// `rate`.
    pub axes: Vec<&'static str>,
    /// The way of tracking.
    pub tracker: &'static str,
    /// The guest's options.
    pub guest: String,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Checkpoints wanted in a second; none for as many as there can be.
    pub wanted_per_s: Option<u32>,
    /// Epochs in the chain, the base not counted.
    pub epochs: u64,
    /// Of these, durable ones in a second.
    pub durable_per_s: f64,
    /// Pages of an epoch, on average.
    pub epoch_pages: f64,
    /// Bytes in the chain for each page captured.
    pub bytes_per_page: f64,
    /// The pauses.
    pub pause_us: Spread,
    /// Processor time of the whole process, guest included, in percent of one processor.
    pub cpu_percent: f64,
    /// Of that, the encoder's.
    pub cpu_encode_percent: f64,
    /// Of that, the writer's.
    pub cpu_write_percent: f64,
    /// A pass of a paced guest takes so long.
    pub burst_us: Option<f64>,
    /// The same without protection.
    pub unprotected_burst_us: Option<f64>,
    /// Of a paced guest: how much more of its time its work takes, in percent of the period. Of
    /// another: how much less it does, in percent.
    pub slowdown_percent: f64,
    /// How much longer a piece of work takes, in percent of the time that it takes without
    /// protection.
    pub stretch_percent: f64,
    /// How many passes fewer the guest made in the same time, in percent.
    pub lost_percent: f64,
}

/// Runs the guest of `point` for `time` without protection, under it, and without it again; longer
/// where a paced guest has not ended a pass by then. The chain is made in a new directory within
/// `dir` and removed.
///
/// # Errors
/// [`BenchError`].
pub fn measure(kvm: &Path, dir: &Path, point: &RatePoint, time: Duration) -> Result<RateRow, BenchError> {
    let guest = whole::guest(point.guest)?;
    let machine = Machine { kvm, guest: &guest, memory_bytes: MEMORY_BYTES, time };
    let before = machine.unprotected()?;
    let run = machine.protected(dir, point.under())?;
    let after = machine.unprotected()?;
    Ok(row(point, &guest, &run, &[before, after]))
}

fn row(point: &RatePoint, guest: &GuestSpec, run: &Protected, unprotected: &[Work]) -> RateRow {
    #[expect(clippy::cast_precision_loss, reason = "counts are fewer than 2^52")]
    let number = |count: u64| count as f64;
    let seconds = run.work.seconds.max(1e-9);
    let percent = |group: Group| run.usage.get(&group).map_or(0.0, |time| time.as_secs_f64() * 100.0 / seconds);
    let pages = number(run.epochs.iter().map(|(pages, ..)| pages).sum());
    let bytes = number(run.epochs.iter().map(|(_, bytes, _)| bytes).sum());
    let durable = run.report.durable_epochs.saturating_sub(1);
    let burst = run.work.burst_us();
    let burst_unprotected = burst.is_some().then(|| mean(unprotected, |work| work.burst_us().unwrap_or_default()));
    let plain_per_s = mean(unprotected, Work::passes_per_s);
    let lost = 100.0 * (1.0 - run.work.passes_per_s() / plain_per_s.max(1e-9));
    let (slowdown, stretch) = match (burst, burst_unprotected) {
        (Some(burst), Some(plain)) => {
            let period = guest.every().as_secs_f64() * 1e6;
            (100.0 * (burst - plain) / period.max(1e-9), 100.0 * (burst - plain) / plain.max(1e-9))
        }
        _ => (lost, run.work.stretch_percent(unprotected)),
    };
    RateRow {
        axes: vec![Axis::Rate.as_str()],
        tracker: point.tracker.as_str(),
        guest: point.guest.to_owned(),
        memory_bytes: MEMORY_BYTES,
        wanted_per_s: point.rate,
        epochs: run.epochs.len() as u64,
        durable_per_s: (number(durable) / seconds).round(),
        epoch_pages: round(pages / number(run.epochs.len() as u64).max(1.0)),
        bytes_per_page: round(bytes / pages.max(1.0)),
        pause_us: Spread::of(run.epochs.iter().map(|(_, _, pause)| *pause)),
        cpu_percent: round(run.usage.keys().map(|group| percent(*group)).sum()),
        cpu_encode_percent: round(percent(Group::Encode)),
        cpu_write_percent: round(percent(Group::Write)),
        burst_us: burst.map(round),
        unprotected_burst_us: burst_unprotected.map(round),
        slowdown_percent: round(slowdown),
        stretch_percent: round(stretch),
        lost_percent: round(lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Report;
    use crate::vmm::Paced;

    fn work(passes: f64, bursts: u64, busy_ms: u64) -> Work {
        Work { passes, seconds: 2.0, paced: Paced { bursts, busy: Duration::from_millis(busy_ms) } }
    }

    fn protected(work: Work) -> Protected {
        let usage = [(Group::Encode, Duration::from_millis(500)), (Group::Other, Duration::from_millis(1500))].into();
        Protected {
            work,
            usage,
            epochs: vec![(10, 1000, 50.0), (30, 3000, 70.0)],
            copy_us: 0.0,
            report: Report { durable_epochs: 101, ..Report::default() },
        }
    }

    #[test]
    fn a_paced_guest_is_slowed_by_what_its_work_takes_more() {
        let point = &rate_points(Extent::Full, &Axis::ALL)[0];
        let guest = STANDARD_GUEST.parse().unwrap();
        // 40 bursts of 5 ms each without, of 6 ms with.
        let row = row(point, &guest, &protected(work(40.0, 40, 240)), &[work(40.0, 40, 190), work(40.0, 40, 210)]);
        assert_eq!((row.burst_us, row.unprotected_burst_us), (Some(6000.0), Some(5000.0)));
        assert_eq!((row.slowdown_percent, row.stretch_percent, row.lost_percent), (2.0, 20.0, 0.0));
        assert_eq!((row.epoch_pages, row.bytes_per_page, row.durable_per_s), (20.0, 100.0, 50.0));
        assert_eq!((row.cpu_percent, row.cpu_encode_percent, row.cpu_write_percent), (100.0, 25.0, 0.0));
    }

    #[test]
    fn another_guest_is_slowed_by_what_it_does_less() {
        let point = RatePoint { guest: UNPACED_GUESTS[0], rate: None, tracker: TrackerKind::Ring };
        let guest = point.guest.parse().unwrap();
        let row = row(&point, &guest, &protected(work(50.0, 0, 0)), &[work(100.0, 0, 0), work(100.0, 0, 0)]);
        assert_eq!((row.slowdown_percent, row.stretch_percent, row.lost_percent), (50.0, 100.0, 50.0));
        assert_eq!((row.burst_us, row.unprotected_burst_us), (None, None));
    }

    #[test]
    fn every_rate_has_its_interval() {
        let points = rate_points(Extent::Full, &[Axis::Rate]);
        assert_eq!(points[0].interval(), Some(Duration::from_secs(1)));
        assert!(points.iter().any(|point| point.rate.is_none() && point.interval() == Some(Duration::from_micros(1))));
        assert_eq!(points.last().unwrap().interval(), None, "that guest asks for its cuts");
        assert!(rate_points(Extent::Full, &[Axis::Memory]).is_empty());
    }
}
