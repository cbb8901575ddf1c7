//! Results that nobody measured, for tests.

use std::time::Duration;

use super::endtoend::{RatePoint, RateRow};
use super::hot::{HotPoint, HotRow, hot_points};
use super::machine::Machine;
use super::outputs::{AnswerTimes, OutputPoint, OutputRow, output_points};
use super::pairs::{
    FailoverTimes, MigrateRun, StandbyPoint, StandbyRun, UnderRequests, migrate_points, migrate_row, standby_points, standby_row,
};
use super::results::{Row, rows};
use super::runner::{Measured, Sample};
use super::session::{Line, Results};
use super::stats::Spread;
use super::streaming::{StreamPoint, StreamRow, stream_points};
use super::workload::{Axis, Extent, Point, TrackerKind, points};
use crate::kvm::host::Flavour;

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
const fn number(count: u64) -> f64 {
    count as f64
}

/// A machine where the bitmap costs a microsecond for each 64 MiB and 50 ns a page, the ring 200 ns
/// a page, a fault 5 us, and a copy 300 ns.
fn measured(point: &Point) -> Measured {
    let pages = point.full_ring.map_or(point.pages, u64::from);
    let sample = |kind: TrackerKind, index: u32| {
        let tracking = match kind {
            TrackerKind::Ring => 0.2 * number(pages),
            TrackerKind::RingHot => 0.1 * number(pages),
            TrackerKind::Bitmap | TrackerKind::BitmapClear => number(point.memory_bytes >> 26) + 0.05 * number(pages),
        };
        Sample {
            pages: pages + 1,
            run: 5.0 * number(pages),
            kick: if point.vcpus == 1 { 0.1 } else { 20.0 },
            state: 20.0 + f64::from(index % 7),
            harvest: tracking / 4.0,
            copy: 0.3 * number(pages) + f64::from(index % 3),
            reset: tracking * 3.0 / 4.0,
        }
    };
    let samples = |kind| (0..50).map(|index| sample(kind, index)).collect();
    Measured {
        trackers: point.trackers().iter().map(|kind| (*kind, samples(*kind))).collect(),
        untracked_pass_us: vec![0.02 * number(point.pages); 5],
        copy_us: vec![0.3 * number(pages); 5],
        rounds: 3,
    }
}

/// The rows of a point.
pub(super) fn rows_of(point: &Point) -> Vec<Row> {
    rows(point, &measured(point))
}

fn rate_row(point: &RatePoint) -> RateRow {
    let rate = f64::from(point.rate.unwrap_or(3000));
    RateRow {
        axes: vec!["rate"],
        tracker: point.tracker.as_str(),
        guest: point.guest.to_owned(),
        memory_bytes: 512 << 20,
        wanted_per_s: point.rate,
        epochs: 100,
        durable_per_s: rate,
        epoch_pages: 60.0,
        bytes_per_page: 200.0,
        pause_us: Spread { p50: 80.0, p99: 120.0, max: 300.0 },
        cpu_percent: 50.0,
        cpu_encode_percent: 10.0,
        cpu_write_percent: 5.0,
        burst_us: point.guest.contains("every").then_some(5000.0),
        unprotected_burst_us: point.guest.contains("every").then_some(4000.0),
        slowdown_percent: rate / 50.0,
        stretch_percent: 25.0,
        lost_percent: 0.0,
    }
}

/// A machine where rounds leave a hundred pages.
fn stream_rows(point: &StreamPoint) -> Vec<StreamRow> {
    let row = |(tracker, early, left): (&'static str, &'static str, u64)| StreamRow {
        axes: vec!["early"],
        tracker,
        early,
        guest: point.guest.clone(),
        memory_bytes: point.memory_bytes,
        dirty_pages: point.pages,
        interval_us: point.interval.map(|_| 50_000),
        epochs: 20,
        epoch_pages: number(point.pages),
        early_pages: number(point.pages - left),
        repeated_pages: 0.0,
        pause_us: Spread { p50: 50.0 + 0.3 * number(left), p99: 100.0 + 0.3 * number(left), max: 900.0 + 0.3 * number(left) },
        durable_after_us: Spread { p50: 500.0 + 1.5 * number(left), p99: 9000.0, max: 9000.0 },
        stretch_percent: 900.0,
    };
    let left = point.pages.min(100);
    [("ring", "off", point.pages), ("ring", "auto", left), ("bitmap+clear", "off", point.pages)].map(row).to_vec()
}

fn hot_row(point: &HotPoint) -> HotRow {
    HotRow {
        axes: vec!["hot"],
        guest: point.guest.to_owned(),
        memory_bytes: 512 << 20,
        wanted_per_s: point.rate,
        epochs: 300,
        epoch_pages: 700.0,
        fault_us: 5.0,
        copy_us: 0.3,
        none_us: 3700.0,
        chosen_us: 1100.0,
        least_us: 1000.0,
        over_least: 1.1,
        slowdown_percent: 2.0,
        none_slowdown_percent: 6.0,
    }
}

fn output_row(point: &OutputPoint) -> OutputRow {
    OutputRow {
        axes: vec!["outputs"],
        link: point.link,
        durability: point.durability_name(),
        request_pages: point.pages,
        clients: point.clients as u64,
        requests: 3000,
        held_per_s: 1500.0,
        free_per_s: 2500.0,
        throughput_share: 0.6,
        held_us: AnswerTimes { p50: 600.0, p95: 900.0, p99: 1500.0 },
        free_us: AnswerTimes { p50: 200.0, p95: 300.0, p99: 500.0 },
        floor_us: 450.0,
        over_floor_p50: 1.33,
        over_floor_p99: 3.33,
        pause_us: 50.0,
        packets_per_cut: 1.5,
    }
}

fn standby_run(point: &StandbyPoint) -> StandbyRun {
    let under = |p50, answers_per_s| UnderRequests {
        answers: AnswerTimes { p50, p95: 1.5 * p50, p99: 2.5 * p50 },
        answers_per_s,
        epoch_bytes: 1200.0,
    };
    let failover = FailoverTimes { detect: 20_100.0, witness: 2000.0, apply: 3000.0, first_run: 400.0, total: 25_500.0 };
    StandbyRun {
        alone: under(400.0, 2100.0),
        paired: under(650.0, 1400.0),
        round_trip_us: 60.0,
        failovers: vec![failover; point.kills],
        silences: vec![Duration::from_millis(30); point.kills],
    }
}

/// A run over all axes.
pub(super) fn results(extent: Extent) -> Results {
    let cuts = points(extent, &Axis::ALL).iter().flat_map(rows_of).map(Line::Cuts).collect::<Vec<_>>();
    let streams = stream_points(extent, &Axis::ALL);
    let rates = super::endtoend::rate_points(extent, &Axis::ALL);
    let hot = hot_points(extent, &Axis::ALL);
    Results {
        machine: Machine {
            processor: "A <fast> & \"good\" one".to_owned(),
            processors: 2,
            memory_bytes: 24 << 30,
            kernel: "6.18.0".to_owned(),
            kvm: Flavour::Pvm,
            pml: false,
            ring_entries_max: 65_536,
            version: "0.0.0",
            optimised: true,
        },
        exit_us: Spread { p50: 1.5, p99: 2.0, max: 9.0 },
        lines: cuts
            .into_iter()
            .chain(streams.iter().flat_map(stream_rows).map(Line::Early))
            .chain(rates.iter().map(rate_row).map(Line::Rate))
            .chain(hot.iter().map(hot_row).map(Line::Hot))
            .chain(output_points(extent, &Axis::ALL, true).iter().map(output_row).map(Line::Outputs))
            .chain(standby_points(extent, &Axis::ALL).iter().map(|at| standby_row(at, &standby_run(at))).map(Line::Standby))
            .chain(migrate_points(extent, &Axis::ALL).iter().map(|at| {
                let run =
                    MigrateRun { seeding_us: 4e5, parked_us: 1100.0, first_run_us: 3200.0, pause_us: 90.0, tracking_us: 9.0 };
                Line::Migrate(migrate_row(at, &[run]))
            }))
            .collect(),
    }
}
