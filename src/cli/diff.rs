//! `slackwater diff`: what differs between two epochs.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::output;
use super::read_again::again;
use super::stderr;
use super::units::{branch, bytes_text, epoch};
use crate::format::MAIN_BRANCH;
use crate::page::{EpochId, Gfn, PAGE_SIZE_U64};
use crate::restore::{DiffError, Difference, PageChange, StateChange, diff};
use crate::store::Chain;

/// How many runs of pages people are shown; `--json` has all.
const RUNS_SHOWN: usize = 10;

/// Show what differs between two epochs: which pages, how many of their bytes, and which state.
///
/// The epochs may be of different branches: `main:5 try:7`. What counts is the content, not what
/// was written. Pages that differ are put aside in a nameless file in the directory for temporary
/// files (TMPDIR).
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The branch of epochs that are given without one [default: main, which is the chain itself].
    #[arg(long, value_name = "NAME", value_parser = branch, default_value = MAIN_BRANCH, hide_default_value = true)]
    branch: String,
    /// One epoch: its number, or `BRANCH:NUMBER` for one of another branch.
    #[arg(value_name = "EPOCH", value_parser = branch_and_epoch)]
    a: BranchAndEpoch,
    /// The other.
    #[arg(value_name = "EPOCH", value_parser = branch_and_epoch)]
    b: BranchAndEpoch,
    /// Print a line for each page as well.
    #[arg(long)]
    pages: bool,
    /// Print the report as JSON, behind an object for each page where those are asked for.
    #[arg(long)]
    json: bool,
}

/// An epoch, and its branch where that is given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BranchAndEpoch {
    branch: Option<String>,
    epoch: EpochId,
}

fn branch_and_epoch(text: &str) -> Result<BranchAndEpoch, String> {
    // No name of a branch has a colon.
    let (name, number) = text.rsplit_once(':').map_or((None, text), |(name, number)| (Some(name), number));
    let named = name.map(|name| branch(name).map_err(|error| format!("the name of a branch is {error}")));
    let number = epoch(number).map_err(|error| format!("{error}; one of another branch is `BRANCH:NUMBER`"));
    Ok(BranchAndEpoch { branch: named.transpose()?, epoch: number? })
}

/// Pages that differ and follow each other.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    first: Gfn,
    count: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct DiffReport<'a> {
    a: EpochId,
    a_branch: &'a str,
    b: EpochId,
    b_branch: &'a str,
    pages_changed: u64,
    bytes_changed: u64,
    zero_at_a: u64,
    zero_at_b: u64,
    runs: &'a [Run],
    state_changed: &'a [StateChange],
}

impl Diff {
    pub(super) fn run(self) -> Result<(), CliError> {
        let [branch_a, branch_b] = [&self.a, &self.b].map(|own| own.branch.as_deref().unwrap_or(&self.branch));
        let spill = tempfile::tempfile();
        let spill = spill.map_err(|source| CliError::System { step: "making a temporary file", source })?;
        let bar = stderr::bar("comparing");
        let found = again(|| {
            let chain_a = Chain::open_branch(&self.store, branch_a)?;
            let other = if branch_a == branch_b { None } else { Some(Chain::open_branch(&self.store, branch_b)?) };
            let chain_b = other.as_ref().unwrap_or(&chain_a);
            let found = diff((&chain_a, self.a.epoch), (chain_b, self.b.epoch), &spill, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            });
            found.map_err(|error| match error {
                DiffError::Restore(error) => CliError::Restore(error),
                error => CliError::Diff(error),
            })
        })?;
        bar.finish_and_clear();
        if self.pages {
            for page in &found.pages {
                if self.json {
                    output::json(page)?
                } else {
                    output::line(format_args!("{:>14}  {:>4} bytes", page.gfn, page.bytes))?
                }
            }
        }
        let runs = runs(&found.pages);
        let bytes_changed = found.pages.iter().map(|page| page.bytes).sum();
        if self.json {
            return output::json(&DiffReport {
                a: found.a,
                a_branch: branch_a,
                b: found.b,
                b_branch: branch_b,
                pages_changed: found.pages.len() as u64,
                bytes_changed,
                zero_at_a: found.zero_at_a,
                zero_at_b: found.zero_at_b,
                runs: &runs,
                state_changed: &found.state,
            });
        }
        let names = if branch_a == branch_b {
            [found.a.to_string(), found.b.to_string()]
        } else {
            [format!("{branch_a}:{}", found.a), format!("{branch_b}:{}", found.b)]
        };
        print(&found, names, bytes_changed, runs)
    }
}

fn runs(pages: &[PageChange]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run.first.0 + run.count == page.gfn.0 => {
                run.count += 1;
                run.bytes += page.bytes;
            }
            _ => runs.push(Run { first: page.gfn, count: 1, bytes: page.bytes }),
        }
    }
    runs
}

fn print(found: &Difference, [a, b]: [String; 2], bytes_changed: u64, mut runs: Vec<Run>) -> Result<(), CliError> {
    let Difference { pages, zero_at_a, zero_at_b, state, .. } = found;
    let pages = pages.len() as u64;
    let size = bytes_text(pages.saturating_mul(PAGE_SIZE_U64));
    output::line(format_args!(
        "epochs {a} and {b} differ in {pages} pages ({size}), in {} of their bytes",
        bytes_text(bytes_changed)
    ))?;
    output::line(format_args!("  zeros         {zero_at_a} of them at {a}, {zero_at_b} at {b}"))?;
    if state.is_empty() {
        output::line("  state         the same")?;
    }
    // One line for a name, however many vCPUs there are.
    for of_name in state.chunk_by(|one, next| one.name == next.name) {
        let indices: Vec<_> = of_name.iter().map(|record| record.index.to_string()).collect();
        let name = of_name.first().map_or("", |record| record.name.as_str());
        output::line(format_args!("  state         {name} {}", indices.join(" ")))?;
    }
    let all = runs.len();
    runs.sort_by_key(|run| (std::cmp::Reverse(run.count), run.first));
    for Run { first, count, bytes } in runs.into_iter().take(RUNS_SHOWN) {
        output::line(format_args!("  run           {count} pages from {first}: {} changed", bytes_text(bytes)))?;
    }
    if all > RUNS_SHOWN {
        output::line(format_args!("  run           {} more, none longer", all - RUNS_SHOWN))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_may_have_a_branch() {
        let of = |branch: Option<&str>, epoch| Ok(BranchAndEpoch { branch: branch.map(str::to_owned), epoch: EpochId(epoch) });
        assert_eq!(branch_and_epoch("5"), of(None, 5));
        assert_eq!(branch_and_epoch("main:5"), of(Some("main"), 5));
        assert_eq!(branch_and_epoch("try-2.a_b:7"), of(Some("try-2.a_b"), 7));
        for bad in ["", ":", "a:", ":5", "a:b:5", "a b:5", "../x:5", "a:0", "0", "5:a", "-1"] {
            assert!(branch_and_epoch(bad).is_err(), "{bad}");
        }
    }
}
