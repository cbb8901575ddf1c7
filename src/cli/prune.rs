//! `slackwater prune`: drops epochs that no rule keeps.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::keep::KeepArgs;
use super::units::{branch, bytes_text};
use super::{compact, output};
use crate::format::ClockJump;
use crate::format::MAIN_BRANCH;
use crate::page::EpochId;
use crate::store::{PrunePlan, plan_prune};

/// How many jumps of the clock people are shown.
const JUMPS_SHOWN: usize = 4;

/// How many runs of epochs people are shown; `--json` has all.
const RUNS_SHOWN: usize = 16;

/// Drop the epochs of a chain that no rule keeps. What is kept stays restorable, to the bit.
///
/// Prints first what is to be kept and dropped. A chain that is written or read meanwhile goes on.
#[derive(Debug, Args)]
pub(super) struct Prune {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The branch, of whose own epochs some are dropped [default: main, which is the chain itself].
    #[arg(long, value_name = "NAME", value_parser = branch, default_value = MAIN_BRANCH, hide_default_value = true)]
    branch: String,
    #[command(flatten)]
    keep: KeepArgs,
    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the plan as a JSON object, and behind it another with the report.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Plan<'a> {
    branch: &'a str,
    kept: &'a [EpochId],
    dropped: &'a [EpochId],
    bytes: u64,
    bytes_expected: u64,
    /// Where the clock was set, and by how many seconds.
    clock_jumps: Vec<Jump>,
}

#[derive(Debug, Serialize)]
struct Jump {
    epoch: EpochId,
    by_s: f64,
}

impl Prune {
    pub(super) fn run(self) -> Result<(), CliError> {
        let rules = self.keep.retention().ok_or_else(|| {
            CliError::Usage(
                "which epochs stay? `--keep-last`, `--keep-every` and `--keep-within` say it, one at least".to_owned(),
            )
        })?;
        let plan = plan_prune(&self.store, &self.branch, &rules)?;
        let PrunePlan { dropped, clock_jumps, .. } = &plan;
        output::unless_gone(self.print(&plan))?;
        for jump in clock_jumps.iter().take(JUMPS_SHOWN) {
            eprintln!("note: {}: how old epochs are is counted without it", set(jump));
        }
        if let Some(more) = clock_jumps.len().checked_sub(JUMPS_SHOWN).filter(|more| *more > 0) {
            eprintln!("note: and the clock was set {more} times more; `--json` has all");
        }
        if self.dry_run || dropped.is_empty() { Ok(()) } else { compact::run(&self.store, &self.branch, Some(&rules), self.json) }
    }
}

impl Prune {
    fn print(&self, plan: &PrunePlan) -> Result<(), CliError> {
        let PrunePlan { kept, dropped, bytes, bytes_expected, clock_jumps, .. } = plan;
        if self.json {
            let (bytes, bytes_expected) = (*bytes, *bytes_expected);
            let clock_jumps = clock_jumps.iter().map(|jump| Jump { epoch: jump.epoch, by_s: seconds(jump.by_ns) }).collect();
            return output::json(&Plan { branch: &self.branch, kept, dropped, bytes, bytes_expected, clock_jumps });
        }
        output::line(format_args!("keep          {} epochs{}", kept.len(), runs(kept, dropped)))?;
        output::line(format_args!("drop          {} epochs{}", dropped.len(), runs(dropped, kept)))?;
        output::line(format_args!("bytes         {} now, about {} expected", bytes_text(*bytes), bytes_text(*bytes_expected)))
    }
}

/// Nanoseconds as seconds, to a thousandth.
#[expect(clippy::cast_precision_loss, reason = "for people, and no jump is told to a thousandth after a thousand years")]
fn seconds(ns: i128) -> f64 {
    (ns / 1_000_000) as f64 / 1e3
}

/// That the clock was set.
fn set(jump: &ClockJump) -> String {
    let seconds = jump.by_ns.unsigned_abs() / 1_000_000_000;
    let by = match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    };
    let way = if jump.by_ns < 0 { "back" } else { "forward" };
    format!("the clock was set {way} by {by} before epoch {}", jump.epoch)
}

/// Epochs as text: those with none of `others` between them together.
fn runs(epochs: &[EpochId], others: &[EpochId]) -> String {
    let together = |one: &EpochId, next: &EpochId| {
        let below = |epoch: &EpochId| others.partition_point(|other| other < epoch);
        below(one) == below(next)
    };
    let mut text = String::new();
    let runs = epochs.chunk_by(together);
    let left = runs.clone().count().saturating_sub(RUNS_SHOWN);
    for (number, run) in runs.take(RUNS_SHOWN).enumerate() {
        text.push_str(if number == 0 { ": " } else { ", " });
        match run {
            [first, .., last] => text.push_str(&format!("{first} to {last}")),
            [one] => text.push_str(&one.to_string()),
            [] => {}
        }
    }
    if left > 0 {
        text.push_str(&format!(", and {left} runs more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_told_in_a_unit_that_fits() {
        let told = |by_ns| set(&ClockJump { epoch: EpochId(7), by_ns });
        let second = 1_000_000_000;
        assert_eq!(told(90 * second), "the clock was set forward by 90 s before epoch 7");
        assert_eq!(told(-3_700 * second), "the clock was set back by 61 minutes before epoch 7");
        assert_eq!(told(56 * 365 * 86_400 * second), "the clock was set forward by 20440 days before epoch 7");
        assert!((seconds(-1_234_567_890) + 1.234).abs() < 1e-9);
    }

    #[test]
    fn epochs_are_told_in_runs() {
        let ids = |numbers: &[u64]| numbers.iter().copied().map(EpochId).collect::<Vec<_>>();
        // A number that no epoch has parts nothing.
        let (kept, dropped) = (ids(&[3, 7, 9, 10]), ids(&[1, 2, 4, 6, 8]));
        assert_eq!(runs(&kept, &dropped), ": 3, 7, 9 to 10");
        assert_eq!(runs(&dropped, &kept), ": 1 to 2, 4 to 6, 8");
        assert_eq!(runs(&[], &kept), "");
        let (even, odd): (Vec<_>, Vec<_>) = (0..100).map(EpochId).partition(|epoch| epoch.0 % 2 == 0);
        assert!(runs(&even, &odd).ends_with("28, 30, and 34 runs more"), "{}", runs(&even, &odd));
    }
}
