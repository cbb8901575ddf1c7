//! `slackwater repair`: puts right what can be put right in a store, and says first what it will
//! do.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::output;
use super::stderr;
use super::units::{branch, epoch};
use super::verify::show;
use crate::page::EpochId;
use crate::store::repair::{RepairOptions, RepairPlan, RepairStep};

/// Remove what a store does not need, and cut off a torn tail. A damaged chain is cut
/// only with `--truncate-after`.
#[derive(Debug, Args)]
pub(super) struct Repair {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Only say what would be done, also while somebody writes to the store.
    #[arg(long)]
    dry_run: bool,
    /// Cut the chain behind this epoch, the newest before the damage, and move what is cut off to
    /// `lost-NNN` in the store.
    #[arg(long, value_name = "EPOCH", value_parser = epoch)]
    truncate_after: Option<EpochId>,
    /// The branch to cut [default: main].
    #[arg(long, value_name = "NAME", value_parser = branch, requires = "truncate_after")]
    branch: Option<String>,
    /// Print what is done as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Whether the steps were taken.
    done: bool,
    steps: &'a [RepairStep],
    /// Branches that were left as they are.
    in_use: &'a [String],
    /// Whether damage remains.
    damaged: bool,
    /// The newest epoch of the chain before the damage.
    newest: Option<EpochId>,
}

impl Repair {
    pub(super) fn run(self) -> Result<(), CliError> {
        let bar = stderr::bytes_bar();
        let options = RepairOptions { branch: self.branch.clone(), truncate_after: self.truncate_after };
        let plan = if self.dry_run { RepairPlan::look } else { RepairPlan::new };
        let plan = plan(&self.store, &options, &mut |progress| show(&bar, progress))?;
        bar.finish_and_clear();
        let steps = plan.steps();
        if !self.json {
            output::unless_gone(steps.iter().try_for_each(|step| output::line(format_args!("{step}"))))?;
        }
        if !self.dry_run {
            plan.apply()?;
        }
        if self.json {
            let (in_use, damaged, newest) = (plan.in_use(), plan.remains(), plan.report().newest);
            output::unless_gone(output::json(&Report { done: !self.dry_run, steps, in_use, damaged, newest }))?;
        } else {
            let done = if self.dry_run { "to take; nothing was changed" } else { "taken" };
            output::unless_gone(output::line(format_args!("{} steps {done}", steps.len())))?;
        }
        for branch in plan.in_use() {
            let left = if self.dry_run { "nothing is said of it" } else { "it was left as it is" };
            stderr::note(format_args!("note: somebody writes to {branch}: {left}"));
        }
        if plan.remains() { Err(CliError::Unsound { hint: hint(&plan), dir: self.store }) } else { Ok(()) }
    }
}

/// What remains to be decided.
fn hint(plan: &RepairPlan) -> String {
    let damaged = plan.report().branches.iter().find(|found| found.damaged > 0);
    let Some(found) = damaged else {
        return "`slackwater verify` lists what is damaged".to_owned();
    };
    let branch = if found.of.is_some() { format!(" --branch {}", found.name) } else { String::new() };
    match found.newest {
        Some(newest) => format!(
            "`slackwater repair{branch} --truncate-after {newest}` drops every epoch behind {newest}, and keeps what it drops in `lost-NNN`; \
             `slackwater verify` lists what is damaged"
        ),
        None => format!("no epoch of {} comes before the damage: nothing can be kept of it", found.name),
    }
}
