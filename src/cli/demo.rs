//! `slackwater demo`.

use clap::Args;

use super::error::CliError;

/// Run, checkpoint, kill, restore and check a built-in guest, and say what happened.
#[derive(Debug, Args)]
pub(super) struct Demo {}

impl Demo {
    pub(super) fn run(self) -> Result<(), CliError> {
        Err(CliError::Check { what: "later".into() })
    }
}
