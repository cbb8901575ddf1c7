//! Whether a checkpoint can run on this host: asked before anything is built, printed piece by
//! piece.

use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;

use super::error::CliError;
use super::output;
use super::saved_machine::{machine_of, state_of};
use crate::kvm::offer::Offer;
use crate::kvm::probe::runs_kernels;
use crate::machine::MachineState;
use crate::machine::fit::{Finding, Fit, TscChoice, Verdict, Wishes, compare};
use crate::page::EpochId;
use crate::store::{Chain, StoreError};
use crate::vmm::GuestSpec;

/// What to do where the time stamp counter had another frequency and can't be scaled to it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TscName {
    /// Refuse.
    Same,
    /// Go on at this host's frequency, with a warning; refused all the same where the guest was
    /// shown an invariant counter.
    Host,
}

impl From<TscName> for TscChoice {
    fn from(name: TscName) -> Self {
        match name {
            TscName::Same => Self::Same,
            TscName::Host => Self::Host,
        }
    }
}

/// Compares the machine that `state` was captured of with a host.
///
/// # Errors
/// [`CliError::CannotRun`].
pub(super) fn fitting(dir: &Path, epoch: EpochId, state: &MachineState, host: &Offer, wishes: Wishes) -> Result<Fit, CliError> {
    let fit = compare(state, host, wishes);
    if !fit.can_run() {
        return Err(cannot_run(dir, epoch, &fit));
    }
    if let Some(finding) = fit.warning() {
        eprintln!("warning: {finding} ({} there, {} here)", finding.captured, finding.host);
    }
    Ok(fit)
}

fn cannot_run(dir: &Path, epoch: EpochId, fit: &Fit) -> CliError {
    /// More are for `--check` to list.
    const SHOWN: usize = 8;
    let mut reasons: Vec<_> = fit.reasons().take(SHOWN).map(shown).collect();
    let more = fit.reasons().count().saturating_sub(SHOWN);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    CliError::CannotRun { dir: dir.to_owned(), epoch, reasons, tsc_only: fit.runs_with_hosts_counter() }
}

fn shown(finding: &Finding) -> String {
    let Finding { captured, host, .. } = finding;
    format!("{finding} (captured: {captured}; here: {host})")
}

/// The last line of `restore --check --json` and `host --for --json`.
#[derive(Debug, Serialize)]
struct FitReport<'a> {
    epoch: EpochId,
    can_run: bool,
    /// How the counter would go on.
    tsc: crate::machine::fit::Counter,
    findings: &'a [Finding],
}

/// What is to be checked.
#[derive(Debug)]
pub(super) struct Check<'a> {
    pub(super) store: &'a Path,
    /// Taken from here.
    pub(super) branch: &'a str,
    pub(super) epoch: Option<EpochId>,
    pub(super) kvm: &'a Path,
    pub(super) tsc: TscName,
    /// Whether it is to go on with dirty rings.
    pub(super) ring: bool,
    pub(super) json: bool,
}

impl Check<'_> {
    /// Compares, prints, and builds nothing. Takes no lock.
    ///
    /// # Errors
    /// [`CliError::CannotRun`], after it was printed.
    pub(super) fn run(&self) -> Result<(), CliError> {
        let host = Offer::read(self.kvm)?;
        let chain = Chain::open_branch(self.store, self.branch)?;
        if let (None, Some(damage)) = (self.epoch, chain.damage().first()) {
            return Err(CliError::DamagedBehind {
                dir: self.store.to_owned(),
                newest: chain.newest(),
                found: damage.to_string(),
            });
        }
        let epoch = self.epoch.unwrap_or(chain.newest());
        let machine = machine_of(self.store, chain.description())?;
        let state = state_of(&chain, epoch, machine.vcpus)?;
        let runs_kernels = match machine.guest {
            GuestSpec::Linux(_) => Some(runs_kernels(self.kvm).is_ok()),
            GuestSpec::Churn(_) | GuestSpec::Touch(_) | GuestSpec::Ledger(_) => None,
        };
        let fit = compare(&state, &host, Wishes { tsc: self.tsc.into(), ring: self.ring, runs_kernels });
        let can_run = fit.can_run();
        if self.json {
            output::json(&FitReport { epoch, can_run, tsc: fit.counter(), findings: fit.findings() })?
        } else {
            let verdict = if can_run { "can run on this host" } else { "can NOT run on this host" };
            output::line(format_args!("epoch {epoch} of {} {verdict}", self.store.display()))?;
            let mut findings: Vec<_> = fit.findings().iter().collect();
            findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
            for finding in findings {
                let text = if finding.verdict == Verdict::Same { finding.to_string() } else { shown(finding) };
                output::line(format_args!("  {:<12}{text}", finding.verdict.to_string()))?;
            }
        }
        if can_run { Ok(()) } else { Err(cannot_run(self.store, epoch, &fit)) }
    }
}

/// The branch to check for `restore`: that which is to go on, where there is one, or that which it
/// is taken from.
pub(super) fn branch_of<'a>(store: &Path, into: Option<&'a str>, from: &'a str) -> Result<&'a str, CliError> {
    let Some(into) = into else { return Ok(from) };
    match Chain::description_in(store, into) {
        Ok(_) => Ok(into),
        Err(StoreError::NoBranch { .. }) => Ok(from),
        Err(error) => Err(error.into()),
    }
}
