//! `slackwater host`: what this machine's KVM can do.

use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use super::output;
use crate::kvm::host::Host;

/// Print what this machine's KVM can do.
#[derive(Debug, Args)]
pub(super) struct HostVerb {
    /// The KVM device.
    #[arg(long, value_name = "FILE", default_value = crate::kvm::host::KVM_PATH)]
    kvm: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl HostVerb {
    pub(super) fn run(self) -> Result<(), CliError> {
        let host = Host::probe(&self.kvm)?;
        output::json(&host)
    }
}
