//! `slackwater status`: what a machine that runs says of itself.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::control::{Status, call};
use super::error::CliError;
use super::output;

/// Say what a machine that runs is doing.
#[derive(Debug, Args)]
pub(super) struct StatusVerb {
    /// Its control socket.
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl StatusVerb {
    pub(super) fn run(self) -> Result<(), CliError> {
        let status = ask(&self.control)?;
        output::unless_gone(if self.json { output::json(&status) } else { print(&status) })
    }
}

/// What the machine at `control` says.
pub(super) fn ask(control: &std::path::Path) -> Result<Status, CliError> {
    let said = call(control, "GET", "/status", &Value::Null)?;
    let unlike = |error: serde_json::Error| CliError::Control { socket: control.to_owned(), source: error.into() };
    serde_json::from_value(said).map_err(unlike)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn print(status: &Status) -> Result<(), CliError> {
    let ms = |us: u64| us as f64 / 1e3;
    output::line(format_args!("{}, generation {}", status.role, status.generation))?;
    match (&status.standby, &status.refused) {
        (Some(standby), None) => output::line(format_args!("  standby       wanted at {standby}"))?,
        (Some(standby), Some(refused)) => output::line(format_args!("  standby       none at {standby}: {refused}"))?,
        (None, _) => {}
    }
    if let Some(silence) = status.silence_us {
        output::line(format_args!("  heard         {:.1} ms ago", ms(silence)))?;
    }
    output::line(format_args!(
        "  epochs        {} complete, {} durable, {} acknowledged, {} released",
        status.complete_epoch, status.durable_epoch, status.acknowledged_epoch, status.released_epoch
    ))?;
    if let Some((epochs, us)) = status.lag_epochs.zip(status.lag_us) {
        output::line(format_args!("  lag           {epochs} epochs; each takes {:.2} ms to the standby", ms(us)))?;
    }
    if let Some(us) = status.witness_us {
        output::line(format_args!("  witness       answered in {:.1} ms", ms(us)))?;
    }
    let pause = status.pause_us;
    if pause.max > 0.0 {
        output::line(format_args!("  pause         p50 {} us, p99 {} us, max {} us", pause.p50, pause.p99, pause.max))?;
    }
    if let Some(guest) = status.guest {
        let what = if guest.ok { "no inconsistency" } else { "AN INCONSISTENCY" };
        output::line(format_args!("  guest         {} passes, {what}", guest.passes))?;
    }
    Ok(())
}
