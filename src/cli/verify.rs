//! `slackwater verify`: checks every byte of a store with a reader of its own.

use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use super::output;
use super::units::bytes_text;
use crate::store::verify::{DamageKind, VerifyOptions, VerifyReport, verify};

/// How many pieces of damage people are shown; `--json` has more.
const DAMAGE_SHOWN: usize = 20;

/// Check a store: every frame, every page, every audit.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), CliError> {
        let bar = output::bar("verifying");
        let mut options = VerifyOptions::default();
        if !self.json {
            options.damage_max = DAMAGE_SHOWN;
        }
        let report = verify(&self.store, &options, &mut |progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes);
        })?;
        bar.finish_and_clear();
        if self.json {
            output::json(&report)?
        } else {
            print(&report)?
        }
        if report.is_sound() { Ok(()) } else { Err(CliError::Unsound { hint: hint(&report), dir: self.store }) }
    }
}

/// What can still be had.
fn hint(report: &VerifyReport) -> String {
    let audit = report.damage.iter().find(|damage| damage.kind == DamageKind::AuditMismatch);
    match (audit.and_then(|damage| damage.epoch), report.newest) {
        (Some(epoch), _) => {
            format!("from epoch {epoch} on, memory in the store is not what the guest had: restore an epoch before it")
        }
        (None, Some(newest)) => format!("`slackwater restore --epoch {newest}` restores the newest epoch before the damage"),
        (None, None) => "no epoch comes before the damage".to_owned(),
    }
}

fn print(report: &VerifyReport) -> Result<(), CliError> {
    let VerifyReport { epochs, segments, bytes, audits_checked, audits_failed, .. } = report;
    output::line(format_args!("{epochs} epochs in {segments} segments ({}) are whole", bytes_text(*bytes)))?;
    output::line(format_args!("  audits        {audits_checked} recomputed, {audits_failed} differ"))?;
    if let Some(tail) = &report.torn_tail {
        output::line(format_args!(
            "  torn tail     {} at offset {}: {} bytes that were never committed",
            tail.file, tail.offset, tail.bytes
        ))?;
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
