//! Rows for a terminal.

use crate::bench::endtoend::RateRow;
use crate::bench::hot::HotRow;
use crate::bench::outputs::OutputRow;
use crate::bench::pairs::{MigrateRow, StandbyRow};
use crate::bench::prose::{bytes, time};
use crate::bench::results::Row;
use crate::bench::session::Line;
use crate::bench::streaming::StreamRow;

/// The names of the columns of a line's kind.
#[must_use]
pub fn head(line: &Line) -> String {
    match line {
        Line::Cuts(_) => format!(
            "{:>8} {:>6} {:<10} {:>5} {:>6}  {:<12} {:>9} {:>6} {:>6} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8}",
            "memory",
            "pages",
            "pattern",
            "vcpus",
            "ring",
            "tracker",
            "run",
            "kick",
            "state",
            "harvest",
            "reset",
            "copy",
            "pause",
            "p99",
            "floor",
            "pages/s",
            "fault"
        ),
        Line::Rate(_) => format!(
            "{:>8}  {:<12} {:>9} {:>10} {:>8} {:>9} {:>9} {:>6} {:>9} {:>9}  {}",
            "wanted/s", "tracker", "durable/s", "pages", "B/page", "pause", "p99", "cpu %", "slower %", "stretch %", "guest"
        ),
        Line::Early(_) => format!(
            "{:>7} {:>8}  {:<12} {:<5} {:>6} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}  {}",
            "pages",
            "interval",
            "tracker",
            "early",
            "epochs",
            "early",
            "repeated",
            "pause",
            "p99",
            "durable",
            "p99",
            "stretch %",
            "guest"
        ),
        Line::Hot(_) => format!(
            "{:>8} {:>6} {:>7} {:>8} {:>8} {:>9} {:>9} {:>9} {:>6} {:>9} {:>10}  {}",
            "wanted/s", "epochs", "pages", "fault", "copy", "none", "chosen", "least", "over", "slower %", "none: %", "guest"
        ),
        Line::Outputs(_) => format!(
            "{:<4} {:<10} {:>5} {:>7} {:>8} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>8} {:>9}",
            "link",
            "durability",
            "pages",
            "clients",
            "held/s",
            "free/s",
            "share",
            "free",
            "floor",
            "held",
            "p95",
            "p99",
            "over",
            "p99",
            "pause",
            "packets"
        ),
        Line::Standby(_) => format!(
            "{:>5} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>9} {:>9} {:>6} {:>8} {:>9} {:>8} {:>9} {:>9}",
            "pages",
            "clients",
            "alone",
            "floor",
            "paired",
            "p95",
            "p99",
            "over",
            "p99",
            "alone/s",
            "paired/s",
            "share",
            "bytes",
            "failovers",
            "detect",
            "total",
            "p99"
        ),
        Line::Migrate(_) => format!(
            "{:>8} {:<7} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}  {}",
            "MiB", "tracker", "times", "seeding", "parked", "first run", "downtime", "p99", "pause", "tracking", "guest"
        ),
    }
}

/// A row. Times are in microseconds.
#[must_use]
pub fn line(line: &Line) -> String {
    match line {
        Line::Cuts(row) => cuts(row),
        Line::Rate(row) => rate(row),
        Line::Early(row) => stream(row),
        Line::Hot(row) => hot(row),
        Line::Outputs(row) => outputs(row),
        Line::Standby(row) => standby(row),
        Line::Migrate(row) => migrate(row),
    }
}

fn cuts(row: &Row) -> String {
    let ring = row.ring_entries.map_or("-".to_owned(), |entries| entries.to_string());
    format!(
        "{:>8} {:>6} {:<10} {:>5} {ring:>6}  {:<12} {:>9.1} {:>6.1} {:>6.1} {:>8.1} {:>8.1} {:>8.1} {:>9.1} {:>9.1} {:>9.1} {:>9.0} {:>8.2}",
        bytes(row.memory_bytes),
        row.dirty_pages,
        row.pattern,
        row.vcpus,
        row.tracker,
        row.run_us,
        row.kick_us,
        row.state_us,
        row.harvest_us,
        row.reset_us,
        row.copy_us,
        row.pause_us.p50,
        row.pause_us.p99,
        row.floor_copy_us,
        row.pages_per_s,
        row.fault_us_per_page,
    )
}

fn rate(row: &RateRow) -> String {
    let wanted = row.wanted_per_s.map_or("most".to_owned(), |rate| rate.to_string());
    format!(
        "{wanted:>8}  {:<12} {:>9.0} {:>10.1} {:>8.0} {:>9.1} {:>9.1} {:>6.0} {:>9.2} {:>9.1}  {}",
        row.tracker,
        row.durable_per_s,
        row.epoch_pages,
        row.bytes_per_page,
        row.pause_us.p50,
        row.pause_us.p99,
        row.cpu_percent,
        row.slowdown_percent,
        row.stretch_percent,
        row.guest
    )
}

fn stream(row: &StreamRow) -> String {
    #[expect(clippy::cast_precision_loss, reason = "an interval")]
    let interval = row.interval_us.map_or("-".to_owned(), |us| time(us as f64));
    format!(
        "{:>7.0} {interval:>8}  {:<12} {:<5} {:>6} {:>8.0} {:>8.0} {:>9.1} {:>9.1} {:>9.0} {:>9.0} {:>9.1}  {}",
        row.epoch_pages,
        row.tracker,
        row.early,
        row.epochs,
        row.early_pages,
        row.repeated_pages,
        row.pause_us.p50,
        row.pause_us.p99,
        row.durable_after_us.p50,
        row.durable_after_us.p99,
        row.stretch_percent,
        row.guest
    )
}

fn outputs(row: &OutputRow) -> String {
    format!(
        "{:<4} {:<10} {:>5} {:>7} {:>8.0} {:>8.0} {:>6.2} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>6.2} {:>6.2} {:>8.1} {:>9.2}",
        row.link.as_str(),
        row.durability,
        row.request_pages,
        row.clients,
        row.held_per_s,
        row.free_per_s,
        row.throughput_share,
        row.free_us.p50,
        row.floor_us,
        row.held_us.p50,
        row.held_us.p95,
        row.held_us.p99,
        row.over_floor_p50,
        row.over_floor_p99,
        row.pause_us,
        row.packets_per_cut
    )
}

fn standby(row: &StandbyRow) -> String {
    format!(
        "{:>5} {:>7} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>6.2} {:>6.2} {:>9.0} {:>9.0} {:>6.2} {:>8.0} {:>9} {:>8.0} {:>9.0} {:>9.0}",
        row.request_pages,
        row.clients,
        row.alone_us.p50,
        row.floor_us,
        row.paired_us.p50,
        row.paired_us.p95,
        row.paired_us.p99,
        row.over_floor_p50,
        row.over_floor_p99,
        row.alone_per_s,
        row.paired_per_s,
        row.share,
        row.epoch_bytes,
        row.failovers,
        row.failover_us.detect,
        row.failover_us.total,
        row.failover_p99_us
    )
}

fn migrate(row: &MigrateRow) -> String {
    format!(
        "{:>8} {:<7} {:>5} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>8.1} {:>8.1}  {}",
        row.memory_bytes >> 20,
        row.tracker,
        row.migrations,
        row.seeding_us,
        row.parked_us,
        row.first_run_us,
        row.downtime_us,
        row.downtime_p99_us,
        row.pause_us,
        row.tracking_us,
        row.guest
    )
}

fn hot(row: &HotRow) -> String {
    format!(
        "{:>8} {:>6} {:>7.0} {:>8.2} {:>8.2} {:>9.0} {:>9.0} {:>9.0} {:>6.2} {:>9.2} {:>10.2}  {}",
        row.wanted_per_s,
        row.epochs,
        row.epoch_pages,
        row.fault_us,
        row.copy_us,
        row.none_us,
        row.chosen_us,
        row.least_us,
        row.over_least,
        row.slowdown_percent,
        row.none_slowdown_percent,
        row.guest
    )
}
