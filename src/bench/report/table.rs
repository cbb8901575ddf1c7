//! Rows for a terminal.

use crate::bench::endtoend::RateRow;
use crate::bench::prose::bytes;
use crate::bench::results::Row;
use crate::bench::session::Line;

/// The names of the columns of cuts, or of runs of the whole engine.
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
    }
}

/// A row. Times are in microseconds.
#[must_use]
pub fn line(line: &Line) -> String {
    match line {
        Line::Cuts(row) => cuts(row),
        Line::Rate(row) => rate(row),
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
