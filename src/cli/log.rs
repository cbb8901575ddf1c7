//! `slackwater log`: the epochs of a store.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::output;
use super::read_again::again;
use super::stderr;
use super::units::{branch, bytes_text};
use crate::epoch::PhasesReport;
use crate::epoch::times::us;
use crate::format::MAIN_BRANCH;
use crate::page::{EpochId, PAGE_SIZE_U64};
use crate::store::{Branch, Chain, Epoch, branches};

/// List the epochs of a store, and its branches.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The branch [default: main, which is the chain itself].
    #[arg(long, value_name = "NAME", value_parser = branch, default_value = MAIN_BRANCH, hide_default_value = true)]
    branch: String,
    /// List the branches of the store, and no epochs.
    #[arg(long, conflicts_with = "branch")]
    branches: bool,
    /// Print one JSON object per epoch, or per branch.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Entry {
    epoch: EpochId,
    time: String,
    pages: u64,
    zero_pages: u64,
    unchanged_pages: u64,
    bytes_raw: u64,
    bytes_written: u64,
    trigger: &'static str,
    audited: bool,
    base: bool,
    recovery: bool,
    pause_us: f64,
    phases_us: PhasesReport,
}

impl Entry {
    fn new(epoch: &Epoch) -> Self {
        let commit = &epoch.commit;
        let time = jiff::Timestamp::from_nanosecond(commit.time_unix_ns.into());
        Self {
            epoch: commit.epoch,
            time: time.map_or_else(|_| commit.time_unix_ns.to_string(), |time| format!("{time:.6}")),
            pages: commit.captured_pages,
            zero_pages: commit.zero_pages,
            unchanged_pages: commit.unchanged_pages,
            bytes_raw: commit.captured_pages.saturating_mul(PAGE_SIZE_U64),
            bytes_written: commit.bytes_written,
            trigger: commit.trigger.as_str(),
            audited: commit.audit.is_some(),
            base: commit.base,
            recovery: commit.recovery,
            pause_us: us(commit.phases.pause_ns()),
            phases_us: PhasesReport::from(&commit.phases),
        }
    }

    fn line(&self) -> String {
        let mark = |set, text| if set { text } else { "" };
        format!(
            "{:>8}  {}  {:>8} pages  {:>10}  {:<9}{}{}{}",
            self.epoch,
            self.time,
            self.pages,
            bytes_text(self.bytes_written),
            self.trigger,
            mark(self.base, " base"),
            mark(self.recovery, " recovery"),
            mark(self.audited, " audited"),
        )
    }
}

/// A line of `log --branches --json`.
#[derive(Debug, Serialize)]
struct BranchEntry {
    branch: String,
    of: String,
    epoch: EpochId,
}

impl Log {
    pub(super) fn run(self) -> Result<(), CliError> {
        if self.branches {
            return self.list_branches();
        }
        let mut printed = EpochId::NONE;
        let chain = again(|| {
            let chain = Chain::open_branch(&self.store, &self.branch)?;
            for epoch in chain.epochs() {
                let entry = Entry::new(&epoch?);
                // What was printed before a compaction took its file away is not printed twice.
                if entry.epoch > printed {
                    if self.json {
                        output::json(&entry)?
                    } else {
                        output::line(entry.line())?
                    }
                    printed = entry.epoch;
                }
            }
            Ok(chain)
        })?;
        if !self.json {
            self.list_branches()?;
        }
        if chain.newest() == EpochId::NONE && chain.damage().is_empty() {
            stderr::note("note: the store holds no epoch yet");
        }
        if let Some(tail) = chain.tail() {
            stderr::note(format_args!("note: {tail}; it was never said to be durable"));
        }
        match chain.damage().first() {
            None => Ok(()),
            Some(damage) => Err(CliError::DamagedBehind { dir: self.store, newest: chain.newest(), found: damage.to_string() }),
        }
    }

    fn list_branches(&self) -> Result<(), CliError> {
        for Branch { name, of, epoch, .. } in branches(&self.store)? {
            if self.json {
                output::json(&BranchEntry { branch: name, of, epoch })?;
            } else {
                output::line(format_args!("branch {name} from {of} at {epoch}"))?;
            }
        }
        Ok(())
    }
}
