//! `slackwater verify`: checks every byte of a store with a reader of its own.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;

use super::error::CliError;
use super::output;
use super::stderr;
use super::units::{branch, bytes_text, epoch};
use crate::page::EpochId;
use crate::store::verify::{BranchReport, DamageKind, EpochReport, LeftoverKind, Progress, VerifyOptions, VerifyReport, verify};

/// How many pieces of damage people are shown; `--json` has more.
const DAMAGE_SHOWN: usize = 20;

/// Check a store: every frame, every page, every audit, every index, of all branches.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Only this branch and what it builds on; `main` is the one that is none.
    #[arg(long, value_name = "NAME", value_parser = branch)]
    branch: Option<String>,
    /// Only what is needed to restore this epoch.
    #[arg(long, value_name = "N", value_parser = epoch)]
    epoch: Option<EpochId>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut options = VerifyOptions { branch: self.branch.clone(), epoch: self.epoch, ..VerifyOptions::default() };
        if !self.json {
            options.damage_max = DAMAGE_SHOWN;
        }
        let bar = if self.epoch.is_some() { stderr::spinner("verifying") } else { stderr::bytes_bar() };
        let report = verify(&self.store, &options, &mut |progress| show(&bar, progress))?;
        bar.finish_and_clear();
        output::unless_gone(if self.json { output::json(&report) } else { print(&report) })?;
        if report.is_sound() { Ok(()) } else { Err(CliError::Unsound { hint: hint(&report), dir: self.store }) }
    }
}

/// Shows how far `verify` has come.
pub(super) fn show(bar: &ProgressBar, progress: Progress) {
    if progress.bytes_total > 0 {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(format!("verifying: {} epochs", progress.epochs));
    } else {
        bar.set_message(format!("verifying: {}", bytes_text(progress.bytes)));
    }
}

/// What can still be had.
fn hint(report: &VerifyReport) -> String {
    if report.is_readable() {
        return "every epoch can be restored; `slackwater repair` takes wrong indexes away".to_owned();
    }
    let audit = report.damage.iter().find(|damage| damage.kind == DamageKind::AuditMismatch);
    match (audit.and_then(|damage| damage.epoch), report.newest) {
        (Some(epoch), _) => {
            format!("from epoch {epoch} on, memory in the store is not what the guest had: restore an epoch before it")
        }
        (None, Some(newest)) => format!("`slackwater restore --epoch {newest}` restores the newest epoch before the damage"),
        (None, None) if report.epoch.is_some() => "`slackwater verify` without `--epoch` says which epochs are whole".to_owned(),
        (None, None) => "no epoch comes before the damage".to_owned(),
    }
}

fn print(report: &VerifyReport) -> Result<(), CliError> {
    let VerifyReport { epochs, segments, bytes, audits_checked, audits_failed, .. } = report;
    match &report.epoch {
        Some(found) => print_epoch(found, report)?,
        None => {
            let bytes = bytes_text(*bytes);
            if *epochs == 0 && report.damage.is_empty() {
                output::line(format_args!("no epoch yet, in {segments} segments ({bytes})"))?;
            } else {
                output::line(format_args!("{epochs} epochs in {segments} segments ({bytes}) are whole"))?;
            }
            if report.branches.len() > 1 {
                report.branches.iter().try_for_each(print_branch)?;
            }
        }
    }
    if *audits_checked > 0 {
        output::line(format_args!("  audits        {audits_checked} recomputed, {audits_failed} differ"))?;
    } else {
        output::line("  audits        none was recomputed")?;
    }
    if report.epoch.is_none() {
        let VerifyReport { indexes_checked, indexes_missing, .. } = report;
        let wrong = report.damage.iter().filter(|damage| damage.kind == DamageKind::Index).count();
        output::line(format_args!("  indexes       {indexes_checked} compared, {wrong} differ, {indexes_missing} missing"))?;
    }
    if let Some(tail) = &report.torn_tail {
        output::line(format_args!(
            "  torn tail     {} at offset {}: {} bytes that were never said to be durable",
            tail.file, tail.offset, tail.bytes
        ))?;
    }
    for left in &report.leftovers {
        let what = match left.kind {
            LeftoverKind::Replaced => "replaced by a compacted segment",
            LeftoverKind::Index => "an index that fits no segment as it is",
            LeftoverKind::Branch => "a branch that is not finished",
            _ => "not finished",
        };
        output::line(format_args!("  left over     {}: {what}", left.file))?;
    }
    for damage in &report.damage {
        let epoch = damage.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
        output::line(format_args!(
            "  DAMAGE        {} at offset {}{epoch}: expected {}, found {}",
            damage.file, damage.offset, damage.expected, damage.found
        ))?;
    }
    if report.damage_omitted > 0 {
        output::line(format_args!("  DAMAGE        {} more", report.damage_omitted))?;
    }
    Ok(())
}

fn print_branch(found: &BranchReport) -> Result<(), CliError> {
    let BranchReport { name, of, begins_at, epochs, newest, .. } = found;
    let from = of.iter().zip(begins_at).map(|(of, epoch)| format!(", from epoch {epoch} of {of}")).collect::<String>();
    let newest = newest.map(|newest| format!(", newest {newest}")).unwrap_or_default();
    let damage = if found.damaged > 0 { format!(", {} DAMAGED", found.damaged) } else { String::new() };
    output::line(format_args!("  {name:<13} {epochs} epochs{from}{newest}{damage}"))
}

fn print_epoch(found: &EpochReport, report: &VerifyReport) -> Result<(), CliError> {
    let EpochReport { epoch, branch, pages, blocks, .. } = found;
    let bytes = bytes_text(report.bytes);
    let whole = if report.is_sound() { "is whole" } else { "is NOT whole" };
    output::line(format_args!("epoch {epoch} of {branch} {whole}; nothing else was checked"))?;
    output::line(format_args!("  pages         {pages} from {blocks} blocks in {} segments, {bytes} read", report.segments))?;
    if let Some(memory) = &found.memory {
        output::line(format_args!("  memory        {memory}"))?;
    }
    if let Some(state) = &found.state {
        output::line(format_args!("  state         {state}"))?;
    }
    Ok(())
}
