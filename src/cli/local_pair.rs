//! A machine and its standby as two processes on this host, with all that they need.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::error::CliError;
use super::own_process::OwnProcess;
use crate::replica::register::{Holder, Incarnation, Register};
use crate::replica::wire::tls_init;
use crate::replica::witness::manual::Permission;
use crate::replica::witness::{Witness, WitnessSpec};
use crate::store::Writer;
use crate::vmm::Stop;

/// The most that a wait may take.
pub(super) const WAIT_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// On a busy host an answer takes long.
const WITNESS_LIMIT: Duration = Duration::from_secs(10);
/// What a standby says first, before its address.
const LISTENING: &str = "standby: listening at ";
/// What it says when it runs the machine.
const GOES_ON: &str = "standby: the machine goes on here";
const NO_PAIR: &str = "the two did not become a pair (is this host very busy?)";
const STORES: [&str; 2] = ["primary", "standby"];

/// Why it came to nothing.
pub(super) enum Unfinished {
    /// One of the two was taken for dead although it lived.
    TooBusy,
    Failed(Box<CliError>),
}

impl<E: Into<CliError>> From<E> for Unfinished {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// Where a pair has its things.
pub(super) struct Place<'p> {
    /// For certificates, the witness and the socket of the network.
    pub(super) scratch: &'p Path,
    /// For the two stores.
    pub(super) stores: &'p Path,
    pub(super) kvm: &'p Path,
    /// Ends every wait.
    pub(super) stop: &'p Stop,
}

/// Two processes that the witness has named a pair.
pub(super) struct Pair {
    pub(super) primary: OwnProcess,
    pub(super) standby: OwnProcess,
    witness: Box<dyn Witness>,
    /// Who runs the machine.
    runs: Incarnation,
}

/// A standby whose primary was killed.
pub(super) struct Survivor {
    pub(super) standby: OwnProcess,
    witness: Box<dyn Witness>,
    killed: Incarnation,
}

impl Place<'_> {
    /// What the machine's network device is connected to.
    pub(super) fn network(&self) -> PathBuf {
        self.scratch.join("network")
    }

    pub(super) fn standby_store(&self) -> PathBuf {
        self.stores.join("standby")
    }

    fn witness(&self) -> WitnessSpec {
        WitnessSpec::File { dir: self.scratch.join("witness"), name: "demo".to_owned() }
    }

    /// Starts both processes, and waits until they are a pair. `machine` are options of
    /// `checkpoint`. Somebody listens at the network already.
    pub(super) fn start(&self, machine: &[&str]) -> Result<Pair, Unfinished> {
        let mut witness = self.prepare()?;
        let (mut standby, address) = self.start_standby(&[])?;
        let network = format!("unix={}", self.network().display());
        let mut primary = self.start_primary(&[machine, &["--standby", &address, "--net", &network]].concat())?;
        let runs = self.wait_for(NO_PAIR, || {
            primary.check()?;
            standby.check()?;
            Ok(paired(self.register(&mut *witness)?))
        })?;
        Ok(Pair { primary, standby, witness, runs })
    }

    /// Starts a standby, whose options are these, and returns where it listens.
    pub(super) fn start_standby(&self, options: &[&str]) -> Result<(OwnProcess, String), Unfinished> {
        let mut standby = OwnProcess::start("standby", |command| {
            command.args(["--listen", "127.0.0.1:0", "--json"]).args(options);
            self.describe(command, "standby", "two");
        })?;
        let address = self.wait_for("the standby did not listen", || {
            standby.check()?;
            Ok(address(&standby.messages()))
        })?;
        Ok((standby, address))
    }

    /// Starts a machine, whose options are these.
    pub(super) fn start_primary(&self, options: &[&str]) -> Result<OwnProcess, CliError> {
        OwnProcess::start("checkpoint", |command| {
            command.args(options);
            self.describe(command, "primary", "one");
        })
    }

    /// Removes the stores of a pair that is gone.
    pub(super) fn clear(&self) {
        for store in STORES {
            // The next pair says what is in its way.
            drop(std::fs::remove_dir_all(self.stores.join(store)));
        }
    }

    /// Waits for what `look` finds, unless a signal or [`WAIT_LIMIT`] ends it.
    pub(super) fn wait_for<T>(
        &self,
        missing: &str,
        mut look: impl FnMut() -> Result<Option<T>, Unfinished>,
    ) -> Result<T, Unfinished> {
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            if self.stop.is_asked() {
                return Err(check("a signal ended it".to_owned()).into());
            }
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(check(format!("{missing} within {} s", WAIT_LIMIT.as_secs())).into());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Makes certificates and the witness.
    pub(super) fn prepare(&self) -> Result<Box<dyn Witness>, CliError> {
        make(self.stores)?;
        make(&self.scratch.join("witness"))?;
        tls_init(&self.scratch.join("tls"))?;
        Ok(self.witness().open(self.stores, &Permission::default(), WITNESS_LIMIT)?)
    }

    /// What both processes are given.
    fn describe(&self, command: &mut Command, store: &str, host: &str) {
        command.arg("--store").arg(self.stores.join(store));
        command.arg("--tls").arg(self.scratch.join("tls").join(host));
        command.arg("--witness").arg(self.witness().to_string());
        command.arg("--kvm").arg(self.kvm);
    }

    fn register(&self, witness: &mut dyn Witness) -> Result<Option<Register>, CliError> {
        witness.read().map_err(|source| CliError::NoAnswer { witness: self.witness().to_string(), source })
    }
}

impl Pair {
    /// Kills the primary, once the two surely are a pair.
    pub(super) fn kill_primary(mut self, place: &Place<'_>) -> Result<Survivor, Unfinished> {
        place.wait_for(NO_PAIR, || {
            let register = place.register(&mut *self.witness)?;
            if register.is_some_and(|register| register.holder.primary() != self.runs) {
                return Err(Unfinished::TooBusy);
            }
            self.primary.check()?;
            self.standby.check()?;
            Ok(paired(register))
        })?;
        self.primary.kill()?;
        Ok(Survivor { standby: self.standby, witness: self.witness, killed: self.runs })
    }
}

impl Survivor {
    /// Waits until the standby runs the machine.
    pub(super) fn wait_for_takeover(&mut self, place: &Place<'_>) -> Result<(), Unfinished> {
        place.wait_for("the standby did not take over", || {
            self.standby.check()?;
            let holder = place.register(&mut *self.witness)?.map(|register| register.holder);
            match holder {
                Some(Holder::Solo(alone)) if alone == self.killed => Err(Unfinished::TooBusy),
                Some(Holder::Solo(_)) => Ok(self.standby.messages().contains(GOES_ON).then_some(())),
                Some(Holder::Paired(..)) | None => Ok(None),
            }
        })
    }
}

/// That there is room for two stores in `dir`.
pub(super) fn check_place(dir: &Path) -> Result<(), CliError> {
    Ok(STORES.iter().try_for_each(|store| Writer::check_place(dir.join(store)))?)
}

/// Who runs the machine of a pair.
fn paired(register: Option<Register>) -> Option<Incarnation> {
    register.filter(|register| matches!(register.holder, Holder::Paired(..))).map(|register| register.holder.primary())
}

fn make(dir: &Path) -> Result<(), CliError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| CliError::File { path: dir.to_owned(), step: "making the directory", source })
}

fn check(what: String) -> CliError {
    CliError::Check { what }
}

/// The address in what a standby says, once it has said all of the line.
fn address(messages: &str) -> Option<String> {
    let mut lines = messages.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.find_map(|line| line.strip_prefix(LISTENING)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_taken_from_a_whole_line() {
        assert_eq!(address("standby: listening at 127.0.0.1:70"), None);
        assert_eq!(address("warning\nstandby: listening at 127.0.0.1:7001\nmore"), Some("127.0.0.1:7001".to_owned()));
    }
}
