//! `slackwater demo`: the whole story in a few seconds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::demo_failover::Failover;
use super::error::CliError;
use super::output;
use super::own_process::OwnProcess;
use super::restore::{Restored, restore_machine};
use super::scratch_store::scratch;
use super::units::bytes_text;
use crate::machine::fit::Wishes;
use crate::page::EpochId;
use crate::store::verify::{VerifyOptions, verify};
use crate::store::{Chain, StoreError, Writer};
use crate::vmm::{BuildOptions, Clocks, Limits, Running, Stop, Tracking};

const GUEST: &str = "churn:pages=4096,pattern=hotcold,content=words";
const VCPUS: &str = "2";
const MEMORY: &str = "64M";
const BUDGET: &str = "1024";
const AUDIT_EVERY: &str = "20";

/// The guest is killed when so many epochs are appended.
const EPOCHS: u64 = 250;
/// The most that the first part may take.
const RUN_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// How long the restored guest runs.
const RESTORED_RUN: Duration = Duration::from_secs(1);

/// Run, checkpoint, kill, restore and check a built-in guest, and say what happened.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Show a standby that takes over instead: two processes, of which the one that runs the
    /// machine is killed while clients talk to it.
    #[arg(long)]
    failover: bool,
    /// Keep the store in this directory [default: a temporary one, removed at the end]. With
    /// `--failover` both stores, as `DIR/primary` and `DIR/standby`.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The KVM device.
    #[arg(long, value_name = "FILE", default_value = crate::kvm::host::KVM_PATH)]
    kvm: PathBuf,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct DemoReport {
    epochs: u64,
    epoch: EpochId,
    bytes: u64,
    audits_checked: u64,
    restored_pages: u64,
    passes_at_restore: u64,
    passes: u64,
    checks: u64,
    ok: bool,
    elapsed_s: f64,
}

impl Demo {
    pub(super) fn run(self) -> Result<(), CliError> {
        if self.failover {
            let Self { store, kvm, json, .. } = &self;
            return Failover { kvm, json: *json }.run(store.as_deref());
        }
        match &self.store {
            Some(store) => self.play(store),
            None => {
                let scratch = scratch("slackwater-demo-")?;
                self.play(&scratch.path().join("store"))
            }
        }
    }

    fn play(&self, store: &Path) -> Result<(), CliError> {
        let started = Instant::now();
        Writer::check_place(store)?;
        self.say(format_args!(
            "A guest with {VCPUS} vCPUs and {MEMORY} of memory rewrites its pages without rest. Every page carries"
        ))?;
        self.say(format_args!("its number, a ticket from a counter that both vCPUs share, and a checksum: the guest itself"))?;
        self.say(format_args!("notices when its memory or its registers are not of one instant.\n"))?;
        let mut guest = self.start(store)?;
        let process = guest.id();
        self.say(format_args!(
            "1. It runs in process {process}, and is stopped for a checkpoint whenever its dirty rings are full."
        ))?;
        let epochs = wait_for_epochs(&mut guest, store)?;
        guest.kill()?;
        let ran = started.elapsed().as_secs_f64();
        self.say(format_args!(
            "2. After {epochs} checkpoints in {ran:.1} s, process {process} is killed by SIGKILL in the middle of its work."
        ))?;
        let verified = verify(store, &VerifyOptions::default(), &mut |_| {})?;
        if !verified.is_sound() {
            return Err(CliError::Damaged { dir: store.into() });
        }
        self.say(format_args!(
            "3. The store holds {} epochs in {}. An independent reader checks every byte, and recomputes",
            verified.epochs,
            bytes_text(verified.bytes)
        ))?;
        self.say(format_args!(
            "   {} digests of all guest memory that were taken while the guest stood still: all agree.",
            verified.audits_checked
        ))?;
        let chain = Chain::open(store)?;
        let epoch = chain.newest();
        let restoring = Instant::now();
        let options = BuildOptions::default();
        let Restored { vm, pages, .. } =
            restore_machine(&chain, epoch, &self.kvm, Tracking::None, &options, Clocks::Continue, Wishes::default())?;
        let limits = Limits { time: Some(RESTORED_RUN), epochs: None };
        let mut running = Running::start(vm, None, limits, Stop::default())?;
        let restored_ms = restoring.elapsed().as_secs_f64() * 1e3;
        self.say(format_args!(
            "4. Epoch {epoch}, the newest, is restored: {pages} pages in {restored_ms:.0} ms. The guest goes on in this process."
        ))?;
        let passes_at_restore = running.passes_at_start();
        running.check()?;
        running.supervise();
        let outcome = running.finish();
        if let Some(error) = outcome.error {
            return Err(error.into());
        }
        let report = DemoReport {
            epochs: verified.epochs,
            epoch,
            bytes: verified.bytes,
            audits_checked: verified.audits_checked,
            restored_pages: pages,
            passes_at_restore,
            passes: outcome.guest.passes,
            checks: outcome.guest.checks,
            ok: outcome.guest.ok,
            elapsed_s: (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
        };
        if self.json {
            return output::json(&report);
        }
        self.say(format_args!(
            "5. The guest checked all of its memory, registers and tickets, and found nothing wrong. It was at pass"
        ))?;
        self.say(format_args!("   {} at the checkpoint, and is at pass {} now.\n", report.passes_at_restore, report.passes))?;
        self.say(format_args!("Nothing was lost. That took {:.1} s.", report.elapsed_s))
    }

    fn say(&self, text: std::fmt::Arguments<'_>) -> Result<(), CliError> {
        output::prose(self.json, text)
    }

    fn start(&self, store: &Path) -> Result<OwnProcess, CliError> {
        OwnProcess::start("checkpoint", |command| {
            command.arg("--store").arg(store).arg("--kvm").arg(&self.kvm);
            command.args(["--guest", GUEST, "--vcpus", VCPUS, "--memory", MEMORY, "--budget", BUDGET, "--audit", AUDIT_EVERY]);
        })
    }
}

/// Reads the store beside its writer until it holds enough epochs.
fn wait_for_epochs(guest: &mut OwnProcess, store: &Path) -> Result<u64, CliError> {
    let deadline = Instant::now() + RUN_LIMIT;
    loop {
        guest.check()?;
        let epochs = match Chain::open(store) {
            Ok(chain) => chain.epochs_len().unwrap_or_default(),
            Err(StoreError::Missing { .. } | StoreError::Empty { .. } | StoreError::NotAStore { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        if epochs >= EPOCHS {
            return Ok(epochs);
        }
        if Instant::now() > deadline {
            let limit = RUN_LIMIT.as_secs();
            return Err(CliError::Check { what: format!("only {epochs} checkpoints were appended within {limit} s") });
        }
        std::thread::sleep(POLL);
    }
}
