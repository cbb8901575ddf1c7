//! `slackwater bench`: ways to track writes, compared on this machine.

use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use super::output;
use crate::bench::workload::{Axis, Extent, points};
use crate::bench::{results, runner};

/// Compare ways to track writes on this machine.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// The KVM device.
    #[arg(long, value_name = "FILE", default_value = crate::kvm::host::KVM_PATH)]
    kvm: PathBuf,
    /// A selection that takes less than a minute.
    #[arg(long)]
    quick: bool,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), CliError> {
        let extent = if self.quick { Extent::Quick } else { Extent::Full };
        for point in points(extent, &Axis::ALL) {
            let measured = runner::measure(&self.kvm, &point, extent)?;
            for row in results::rows(&point, &measured) {
                output::json(&row)?;
            }
        }
        Ok(())
    }
}
