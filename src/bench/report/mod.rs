//! The results as JSON, CSV, a table for a terminal, and a page with plots.

mod csv;
mod html;
mod plots;
mod svg;
mod table;
#[cfg(test)]
mod tests;

use serde::Serialize;
use serde_json::Value;

use super::session::{Line, Results};
use super::stats::Spread;
use super::summary::Summary;

pub use csv::csv;
pub use html::html;
pub use svg::PlotError;
pub use table::{head as table_head, line as table_line};

/// The last line of the JSON.
#[derive(Debug, Serialize)]
struct Last<'r> {
    kind: &'static str,
    machine: &'r super::machine::Machine,
    floors: Floors,
    summary: &'r Summary,
}

#[derive(Debug, Serialize)]
struct Floors {
    /// An entry and its exit.
    exit_us: Spread,
}

/// A line of the results.
///
/// # Errors
/// Never for what a run measures: numbers and names.
pub fn json_line(line: &Line) -> serde_json::Result<Value> {
    serde_json::to_value(line)
}

/// The last line: machine, floors, and what the rows come to.
///
/// # Errors
/// As [`json_line`].
pub fn json_last(results: &Results, summary: &Summary) -> serde_json::Result<Value> {
    let floors = Floors { exit_us: results.exit_us };
    serde_json::to_value(Last { kind: "summary", machine: &results.machine, floors, summary })
}

/// All lines, as `--json` prints them.
///
/// # Errors
/// As [`json_line`].
pub fn json(results: &Results, summary: &Summary) -> serde_json::Result<String> {
    let mut text = String::new();
    for line in &results.lines {
        text.push_str(&format!("{}\n", json_line(line)?));
    }
    text.push_str(&format!("{}\n", json_last(results, summary)?));
    Ok(text)
}
