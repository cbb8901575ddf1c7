//! `slackwater promote`: a person has a standby take over.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::control::call;
use super::error::CliError;
use super::output;
use super::status;

/// Have a standby take over now. Without `--accept-risk`, say what is risked and do nothing.
#[derive(Debug, Args)]
pub(super) struct Promote {
    /// The control socket of the standby.
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// You know that the machine runs nowhere else, or there is a witness that says who goes on.
    #[arg(long)]
    accept_risk: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Promoted {
    promoted: bool,
    /// What it was before.
    role: String,
    epoch: crate::page::EpochId,
}

impl Promote {
    pub(super) fn run(self) -> Result<(), CliError> {
        let before = status::ask(&self.control)?;
        let (role, epoch) = (before.role, before.complete_epoch);
        if self.accept_risk {
            call(&self.control, "POST", "/promote", &json!({ "accept_risk": true }))?;
        }
        let report = Promoted { promoted: self.accept_risk, role, epoch };
        if self.json {
            return output::unless_gone(output::json(&report));
        }
        output::unless_gone(report.print(before.silence_us))
    }
}

impl Promoted {
    fn print(&self, silence_us: Option<u64>) -> Result<(), CliError> {
        if self.promoted {
            return output::line(format_args!("the standby was told to go on from epoch {}", self.epoch));
        }
        let silence_s = silence_us.unwrap_or_default() / 1_000_000;
        output::line(format_args!(
            "nothing was done. This is a standby ({}) with epoch {}; its primary was heard {silence_s} s ago.",
            self.role, self.epoch
        ))?;
        output::line("With --accept-risk it takes over. What is risked:")?;
        output::line("- With `--witness manual`: if the primary still runs, there are two of this machine from then on.")?;
        output::line("  Both answer clients, and one of the two histories is lost in the end. Switch the other host off first.")?;
        output::line("- With a witness: at most one goes on, whatever happens. The primary halts if it still runs.")?;
        output::line("- If the pair was not made yet, outputs may have left that the standby does not know.")
    }
}
