//! What a standby costs, how long a failover takes, and how long a machine that goes to another
//! host stands still. The command measures it, with processes of its own: a [`Pairs`].

use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::outputs::AnswerTimes;
use super::stats::{quantile, round, sorted};
use super::workload::{Axis, Extent};

/// What is asked of a machine that has a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyPoint {
    /// Pages that a request has the guest write.
    pub pages: u32,
    /// Requests under way.
    pub clients: usize,
    /// How many primaries are killed.
    pub kills: usize,
}

/// A machine that goes to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigratePoint {
    /// Guest memory.
    pub memory_bytes: u64,
    /// `ring` or `bitmap`.
    pub tracker: &'static str,
    /// The guest.
    pub guest: &'static str,
    /// How often.
    pub times: usize,
}

/// The points of an extent, where the axis is asked for.
#[must_use]
pub fn standby_points(extent: Extent, axes: &[Axis]) -> Vec<StandbyPoint> {
    if !axes.contains(&Axis::Standby) {
        return Vec::new();
    }
    let points: &[(u32, usize, usize)] = match extent {
        Extent::Full => &[(1, 1, 0), (8, 1, 10), (60, 1, 0), (8, 16, 0), (60, 16, 0)],
        Extent::Quick => &[(8, 1, 3)],
        Extent::Tiny => &[(8, 1, 1)],
    };
    points.iter().map(|(pages, clients, kills)| StandbyPoint { pages: *pages, clients: *clients, kills: *kills }).collect()
}

/// The points of an extent, where the axis is asked for.
#[must_use]
pub fn migrate_points(extent: Extent, axes: &[Axis]) -> Vec<MigratePoint> {
    const CALM: &str = "churn:pages=4096,content=words,burst=60,every=10ms";
    const BUSY: &str = "churn:pages=65536,content=words,burst=2000,every=10ms";
    const TRIVIAL: &str = "churn:pages=64,burst=16,every=10ms";
    if !axes.contains(&Axis::Migrate) {
        return Vec::new();
    }
    let points: &[(u64, &str, usize)] = match extent {
        Extent::Full => {
            &[(512 << 20, CALM, 10), (512 << 20, BUSY, 10), (1 << 30, TRIVIAL, 3), (16 << 30, TRIVIAL, 1), (60 << 30, TRIVIAL, 1)]
        }
        Extent::Quick => &[(512 << 20, CALM, 2)],
        Extent::Tiny => &[(64 << 20, TRIVIAL, 1)],
    };
    let both = |(memory_bytes, guest, times): &(u64, &'static str, usize)| {
        ["ring", "bitmap"].map(|tracker| MigratePoint { memory_bytes: *memory_bytes, tracker, guest, times: *times })
    };
    points.iter().flat_map(both).collect()
}

/// How long a failover took, in microseconds since the last message of the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FailoverTimes {
    /// Until the primary was taken for dead.
    pub detect: f64,
    /// From then until the witness's answer.
    pub witness: f64,
    /// From then until all was ready.
    pub apply: f64,
    /// From then until the guest ran.
    pub first_run: f64,
    /// All of it.
    pub total: f64,
}

/// A machine under requests, for some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UnderRequests {
    /// From a request to its answer.
    pub answers: AnswerTimes,
    /// Answers a second.
    pub answers_per_s: f64,
    /// Bytes of an epoch.
    pub epoch_bytes: f64,
}

/// All that was measured at a point with a standby.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StandbyRun {
    /// Without one; epochs are released when the chain has them.
    pub alone: UnderRequests,
    /// With one, that acknowledges from memory.
    pub paired: UnderRequests,
    /// There and back over the same kind of connection, with nothing in it.
    pub round_trip_us: f64,
    /// Of each primary that was killed.
    pub failovers: Vec<FailoverTimes>,
    /// The longest time without an answer, of each.
    pub silences: Vec<Duration>,
}

/// What a standby costs. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StandbyRow {
    /// `standby`.
    pub axes: Vec<&'static str>,
    /// Pages that a request has the guest write.
    pub request_pages: u32,
    /// Requests under way.
    pub clients: u64,
    /// Answers without a standby, outputs held until the chain has their epoch.
    pub alone_us: AnswerTimes,
    /// Answers with one.
    pub paired_us: AnswerTimes,
    /// There and back over TLS on this host.
    pub round_trip_us: f64,
    /// What nobody gets around: an answer without a standby, and the round trip.
    pub floor_us: f64,
    /// The median by that.
    pub over_floor_p50: f64,
    /// 95 of 100 by that.
    pub over_floor_p95: f64,
    /// 99 of 100 by that.
    pub over_floor_p99: f64,
    /// Answers a second without a standby. Of one client, each waits for an epoch of its own.
    pub alone_per_s: f64,
    /// With one.
    pub paired_per_s: f64,
    /// The share of those without.
    pub share: f64,
    /// Bytes of an epoch on the wire: those of the chain.
    pub epoch_bytes: f64,
    /// Primaries that were killed.
    pub failovers: u64,
    /// Each part's median.
    pub failover_us: FailoverTimes,
    /// 99 of 100 failovers are at most this.
    pub failover_p99_us: f64,
    /// The longest time without an answer, the median of all failovers.
    pub silence_us: f64,
}

/// One migration. Times are in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MigrateRun {
    /// Until the standby was ready.
    pub seeding_us: f64,
    /// From the wish to park the guest until the witness had said whose it is.
    pub parked_us: f64,
    /// From then until it ran there.
    pub first_run_us: f64,
    /// The median pause of an epoch, seeding included.
    pub pause_us: f64,
    /// Of it, the time that tracking takes: harvest and reset.
    pub tracking_us: f64,
}

/// Migrations of one kind. Times are in microseconds, and medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MigrateRow {
    /// `migrate`.
    pub axes: Vec<&'static str>,
    /// How writes were tracked.
    pub tracker: &'static str,
    /// Guest memory.
    pub memory_bytes: u64,
    /// The guest.
    pub guest: &'static str,
    /// How many.
    pub migrations: u64,
    /// Until the standby was ready.
    pub seeding_us: f64,
    /// From the wish to park the guest until the witness had said whose it is.
    pub parked_us: f64,
    /// From then until it ran there.
    pub first_run_us: f64,
    /// Both.
    pub downtime_us: f64,
    /// 99 of 100 downtimes are at most this.
    pub downtime_p99_us: f64,
    /// The pause of an epoch, seeding included.
    pub pause_us: f64,
    /// Of it, harvest and reset: what a round costs.
    pub tracking_us: f64,
}

/// Whoever can start two processes.
pub trait Pairs {
    /// Measures a machine with a standby and without, each for `time`.
    ///
    /// # Errors
    /// [`BenchError`].
    fn standby(&self, point: &StandbyPoint, time: Duration) -> Result<StandbyRun, BenchError>;

    /// Measures migrations.
    ///
    /// # Errors
    /// [`BenchError`].
    fn migrate(&self, point: &MigratePoint) -> Result<Vec<MigrateRun>, BenchError>;
}

/// The row of a run.
pub(super) fn standby_row(point: &StandbyPoint, run: &StandbyRun) -> StandbyRow {
    let StandbyRun { alone, paired, round_trip_us, failovers, silences } = run;
    let floor_us = alone.answers.p50 + round_trip_us;
    let over = |us: f64| round(us / floor_us.max(1e-9));
    let of = |part: fn(&FailoverTimes) -> f64, share: f64| round(quantile(&sorted(failovers.iter().map(part)), share));
    StandbyRow {
        axes: vec![Axis::Standby.as_str()],
        request_pages: point.pages,
        clients: point.clients as u64,
        alone_us: alone.answers,
        paired_us: paired.answers,
        round_trip_us: round(*round_trip_us),
        floor_us: round(floor_us),
        over_floor_p50: over(paired.answers.p50),
        over_floor_p95: over(paired.answers.p95),
        over_floor_p99: over(paired.answers.p99),
        alone_per_s: round(alone.answers_per_s),
        paired_per_s: round(paired.answers_per_s),
        share: round(paired.answers_per_s / alone.answers_per_s.max(1e-9)),
        epoch_bytes: round(paired.epoch_bytes),
        failovers: failovers.len() as u64,
        failover_us: FailoverTimes {
            detect: of(|times| times.detect, 0.5),
            witness: of(|times| times.witness, 0.5),
            apply: of(|times| times.apply, 0.5),
            first_run: of(|times| times.first_run, 0.5),
            total: of(|times| times.total, 0.5),
        },
        failover_p99_us: of(|times| times.total, 0.99),
        silence_us: round(quantile(&sorted(silences.iter().map(|silence| silence.as_secs_f64() * 1e6)), 0.5)),
    }
}

/// The row of some migrations.
pub(super) fn migrate_row(point: &MigratePoint, runs: &[MigrateRun]) -> MigrateRow {
    let of = |part: fn(&MigrateRun) -> f64, share: f64| round(quantile(&sorted(runs.iter().map(part)), share));
    MigrateRow {
        axes: vec![Axis::Migrate.as_str()],
        tracker: point.tracker,
        memory_bytes: point.memory_bytes,
        guest: point.guest,
        migrations: runs.len() as u64,
        seeding_us: of(|run| run.seeding_us, 0.5),
        parked_us: of(|run| run.parked_us, 0.5),
        first_run_us: of(|run| run.first_run_us, 0.5),
        downtime_us: of(|run| run.parked_us + run.first_run_us, 0.5),
        downtime_p99_us: of(|run| run.parked_us + run.first_run_us, 0.99),
        pause_us: of(|run| run.pause_us, 0.5),
        tracking_us: of(|run| run.tracking_us, 0.5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_floor_of_its_own_run_and_medians_of_its_failovers() {
        let under = |p50, answers_per_s| UnderRequests {
            answers: AnswerTimes { p50, p95: 2.0 * p50, p99: 3.0 * p50 },
            answers_per_s,
            epoch_bytes: 1000.0,
        };
        let failover = |total| FailoverTimes { detect: total / 2.0, total, ..FailoverTimes::default() };
        let run = StandbyRun {
            alone: under(400.0, 2000.0),
            paired: under(600.0, 1500.0),
            round_trip_us: 100.0,
            failovers: vec![failover(20.0), failover(60.0), failover(30.0)],
            silences: vec![Duration::from_micros(70)],
        };
        let row = standby_row(&StandbyPoint { pages: 8, clients: 1, kills: 3 }, &run);
        assert_eq!((row.floor_us, row.over_floor_p50, row.over_floor_p95, row.over_floor_p99), (500.0, 1.2, 2.4, 3.6));
        assert_eq!((row.share, row.failovers, row.silence_us), (0.75, 3, 70.0));
        assert_eq!((row.failover_us.total, row.failover_us.detect, row.failover_p99_us), (30.0, 15.0, 60.0));
    }

    #[test]
    fn ring_and_bitmap_are_compared_at_each_point() {
        for extent in [Extent::Full, Extent::Quick, Extent::Tiny] {
            let points = migrate_points(extent, &[Axis::Migrate]);
            assert!(points.chunks(2).all(|pair| (pair[0].tracker, pair[1].tracker) == ("ring", "bitmap")), "{points:?}");
            assert!(points.chunks(2).all(|pair| (pair[0].memory_bytes, pair[0].guest) == (pair[1].memory_bytes, pair[1].guest)));
            assert!(standby_points(extent, &[Axis::Standby]).iter().any(|point| point.kills > 0));
        }
        assert!(migrate_points(Extent::Full, &[Axis::Rate]).is_empty());
        assert!(standby_points(Extent::Full, &[Axis::Rate]).is_empty());
    }
}
