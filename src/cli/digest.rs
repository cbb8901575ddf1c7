//! `slackwater digest`: one number for all memory and state of an epoch.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::output;
use super::read_again::again;
use super::units::{branch, epoch};
use crate::format::{MAIN_BRANCH, hash_bytes};
use crate::page::EpochId;
use crate::restore;
use crate::store::Chain;

/// Print a hash of all memory and state of an epoch.
#[derive(Debug, Args)]
pub(super) struct Digest {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The branch [default: main, which is the chain itself].
    #[arg(long, value_name = "NAME", value_parser = branch, default_value = MAIN_BRANCH, hide_default_value = true)]
    branch: String,
    /// The epoch [default: the newest].
    #[arg(long, value_name = "N", value_parser = epoch)]
    epoch: Option<EpochId>,
    /// Print it as JSON, with its parts.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct DigestReport {
    epoch: EpochId,
    digest: String,
    memory: String,
    state: String,
    /// The digest of memory that the engine took from the guest, where the epoch was audited.
    audit: Option<String>,
    audit_matches: Option<bool>,
}

impl Digest {
    pub(super) fn run(self) -> Result<(), CliError> {
        let (epoch, restore::Digest { memory, state }) = again(|| {
            let chain = Chain::open_branch(&self.store, &self.branch)?;
            if let (None, Some(damage)) = (self.epoch, chain.damage().first()) {
                let (dir, newest) = (self.store.clone(), chain.newest());
                return Err(CliError::DamagedBehind { dir, newest, found: damage.to_string() });
            }
            let epoch = chain.epoch(self.epoch.unwrap_or(chain.newest()))?;
            Ok((epoch, restore::digest(&chain, epoch.commit.epoch)?))
        })?;
        let audit = epoch.commit.audit;
        let epoch = epoch.commit.epoch;
        let whole = hash_bytes(&[memory.0.to_le_bytes(), state.to_le_bytes()].concat());
        let report = DigestReport {
            epoch,
            digest: format!("{whole:032x}"),
            memory: memory.to_string(),
            state: format!("{state:032x}"),
            audit: audit.map(|audit| audit.to_string()),
            audit_matches: audit.map(|audit| audit == memory),
        };
        output::unless_gone(if self.json { output::json(&report) } else { output::line(&report.digest) })?;
        if report.audit_matches == Some(false) { Err(CliError::Damaged { dir: self.store }) } else { Ok(()) }
    }
}
