//! `slackwater migrate`: a machine goes to another host while it runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::control::call;
use super::error::CliError;
use super::output;
use super::units::time_above_zero;
use crate::clock::whole_us;

/// Move a machine that runs to another host, where `slackwater standby` listens. Its process here
/// ends then.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// The control socket of the machine.
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Where the standby listens that is to have it.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Park the guest when it is expected to stand still for no longer than this.
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = time_above_zero)]
    downtime: Duration,
    /// Give up after this time. The machine stays then.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time_above_zero)]
    within: Duration,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Migrate {
    pub(super) fn run(self) -> Result<(), CliError> {
        let wanted = json!({ "to": self.to, "downtime_us": whole_us(self.downtime), "within_us": whole_us(self.within) });
        let said = call(&self.control, "POST", "/migrate", &wanted)?;
        if self.json {
            return output::unless_gone(output::json(&said));
        }
        let ms = |name: &str| said.get(name).and_then(Value::as_u64).unwrap_or_default() as f64 / 1e3;
        let generation = said.get("generation").and_then(Value::as_u64).unwrap_or_default();
        output::unless_gone(output::line(format_args!(
            "the machine goes on at {}, in generation {generation}: {:.0} ms to make it ready, parked for {:.1} ms here",
            self.to,
            ms("seeding_us"),
            ms("downtime_us")
        )))
    }
}
