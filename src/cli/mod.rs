//! The command: one file per verb. Data goes to standard output, everything else to standard error.

/// As the standard library's, but for a standard error that is gone or full: that is no reason to
/// panic.
macro_rules! eprintln {
    ($($text:tt)*) => {
        // There is nowhere left to say that it failed.
        drop(::std::io::Write::write_fmt(&mut ::std::io::stderr(), ::std::format_args!("{}\n", ::std::format_args!($($text)*))))
    };
}

mod advise;
mod bench;
mod bench_pairs;
mod checkpoint;
mod compact;
mod control;
mod demo;
mod demo_failover;
mod diff;
mod digest;
mod draft;
mod error;
mod export;
mod fit;
mod host;
mod keep;
mod ledger_client;
mod linux;
mod local_pair;
mod log;
mod migrate;
mod output;
mod own_process;
mod pair;
mod process;
mod promote;
mod protect;
mod prune;
mod read_again;
mod repair;
mod restore;
mod saved_machine;
mod scratch_store;
mod standby;
mod status;
mod stderr;
mod tls_init;
mod units;
mod verify;
mod watched_clients;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Checkpoints KVM virtual machines, driven by the dirty ring.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 damage found, 4 another writer, or another machine that
/// goes on. A reader of the output that has gone away is no failure.
#[derive(Debug, Parser)]
#[command(name = "slackwater", version, max_term_width = 100)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Demo),
    Checkpoint(checkpoint::Checkpoint),
    Restore(restore::Restore),
    Standby(standby::StandbyVerb),
    Status(status::StatusVerb),
    Migrate(migrate::Migrate),
    Promote(promote::Promote),
    Log(log::Log),
    Verify(verify::Verify),
    Repair(repair::Repair),
    Digest(digest::Digest),
    Diff(diff::Diff),
    Prune(prune::Prune),
    Compact(compact::Compact),
    Export(export::Export),
    Host(host::HostVerb),
    Bench(bench::Bench),
    Advise(advise::Advise),
    LedgerClient(ledger_client::LedgerClient),
    TlsInit(tls_init::TlsInit),
}

/// Runs the command of this process's arguments. `process_start` is what times are counted from.
#[must_use]
pub fn main(process_start: Instant) -> ExitCode {
    process::prepare();
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // Help and version are data and exit with 0; clap's own code for usage is 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let filter = EnvFilter::try_from_env("SLACKWATER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    // It would say by a panic that standard error is gone.
    log.log_internal_errors(false).init();
    let outcome = match command.verb {
        Verb::Demo(verb) => verb.run(),
        Verb::Checkpoint(verb) => verb.run(),
        Verb::Restore(verb) => verb.run(process_start),
        Verb::Standby(verb) => verb.run(),
        Verb::Status(verb) => verb.run(),
        Verb::Migrate(verb) => verb.run(),
        Verb::Promote(verb) => verb.run(),
        Verb::Log(verb) => verb.run(),
        Verb::Verify(verb) => verb.run(),
        Verb::Repair(verb) => verb.run(),
        Verb::Digest(verb) => verb.run(),
        Verb::Diff(verb) => verb.run(),
        Verb::Prune(verb) => verb.run(),
        Verb::Compact(verb) => verb.run(),
        Verb::Export(verb) => verb.run(),
        Verb::Host(verb) => verb.run(),
        Verb::Bench(verb) => verb.run(),
        Verb::Advise(verb) => verb.run(),
        Verb::LedgerClient(verb) => verb.run(),
        Verb::TlsInit(verb) => verb.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_verb_is_described_and_has_a_schema() {
        let (command, schemas) = (include_str!("../../docs/command.md"), include_str!("../../docs/schema/README.md"));
        for verb in Command::command().get_subcommands() {
            let name = verb.get_name();
            assert!(verb.get_arguments().any(|argument| argument.get_long() == Some("json")), "{name} has --json");
            assert!(schemas.contains(&format!("[`{name}`]({name}.schema.json)")), "docs/schema/README.md has a row for {name}");
            let described = command.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == name);
            assert!(described, "docs/command.md describes {name}");
        }
    }
}
