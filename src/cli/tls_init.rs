//! `slackwater tls-init`: certificates for a first try.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::output;
use crate::replica::wire::tls_init;

/// Make certificates with which two hosts know each other, for a first try: a CA, and one for each
/// host.
#[derive(Debug, Args)]
pub(super) struct TlsInit {
    /// The directory that is made. One that is there has to be empty.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print what was made as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// What each host gets.
    hosts: [PathBuf; 2],
    ca_key: PathBuf,
    expires: String,
    ca_expires: String,
}

impl TlsInit {
    pub(super) fn run(self) -> Result<(), CliError> {
        let made = tls_init(&self.dir)?;
        let report = Report {
            hosts: made.hosts.map(|host| self.dir.join(host)),
            ca_key: self.dir.join(made.ca_key),
            expires: second(made.expires),
            ca_expires: second(made.ca_expires),
        };
        if self.json {
            return output::unless_gone(output::json(&report));
        }
        output::unless_gone(report.print())
    }
}

impl Report {
    fn print(&self) -> Result<(), CliError> {
        let [one, two] = &self.hosts;
        output::line(format_args!("{}  for one host, until {}", one.display(), self.expires))?;
        output::line(format_args!("{}  for the other", two.display()))?;
        output::line(format_args!("{}  keep it on neither: it makes further certificates", self.ca_key.display()))
    }
}

fn second(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "an unknown time".to_owned(), |time| format!("{time:.0}"))
}
