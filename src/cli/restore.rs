//! `slackwater restore`: a guest from a checkpoint.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::output;
use super::protect::{ProtectArgs, RunReport, stop_on_signals};
use crate::epoch::Start;
use crate::machine::MachineState;
use crate::page::EpochId;
use crate::restore::Plan;
use crate::store::{Chain, Writer, WriterOptions};
use crate::vmm::{MachineSpec, Running, Tracking, Vm, VmmError, memory_regions};

/// Run a guest from a checkpoint, and have it check all it knows first.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The epoch [default: the newest].
    #[arg(long, value_name = "N")]
    epoch: Option<u64>,
    /// Go on taking checkpoints into the same store. Only from the newest epoch.
    #[arg(long)]
    r#continue: bool,
    /// The KVM device.
    #[arg(long, value_name = "FILE", default_value = crate::kvm::host::KVM_PATH)]
    kvm: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    protect: ProtectArgs,
}

/// The last line of `restore --json`.
#[derive(Debug, Serialize)]
struct RestoreReport {
    epoch: EpochId,
    mode: &'static str,
    first_run_us: u128,
    ram_bytes: u64,
    restored_pages: u64,
    guest: RestoredGuest,
    /// With `--continue`: what `checkpoint` reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<RunReport>,
}

#[derive(Debug, Serialize)]
struct RestoredGuest {
    passes_at_restore: u64,
    passes: u64,
    checks: u64,
    ok: bool,
}

impl Restore {
    pub(super) fn run(self, process_start: Instant) -> Result<(), CliError> {
        if !self.r#continue && self.protect.limits().epochs.is_some() {
            return Err(CliError::Usage("`--epochs` goes with `--continue`: without it no epoch is taken".to_owned()));
        }
        // The lock comes first: nobody else appends, and what is read stays.
        let writer = if self.r#continue { Some(open_writer(&self.store)?) } else { None };
        let chain = Chain::open(&self.store)?;
        let epoch = self.choose(&chain)?;
        let tracking = if self.r#continue { self.protect.tracking()? } else { Tracking::None };
        let Restored { mut vm, pages } = restore_machine(&chain, epoch, &self.kvm, tracking)?;
        let protection = match writer {
            Some(writer) => Some(self.protect.protect(&mut vm, writer, Start::Restored(epoch))?),
            None => None,
        };
        let ram_bytes = vm.spec().memory_bytes;
        let mut running = Running::start(vm, protection, self.protect.limits(), stop_on_signals()?)?;
        let passes_at_restore = running.passes_at_start();
        running.check()?;
        running.supervise();
        let outcome = running.finish();
        let report = RestoreReport {
            epoch,
            mode: "eager",
            first_run_us: outcome.first_entry.map_or(0, |entry| entry.duration_since(process_start).as_micros()),
            ram_bytes,
            restored_pages: pages,
            guest: RestoredGuest {
                passes_at_restore,
                passes: outcome.guest.passes,
                checks: outcome.guest.checks,
                ok: outcome.guest.ok,
            },
            checkpoint: RunReport::new(&outcome),
        };
        if self.json {
            output::json(&report)?
        } else {
            report.print()?
        }
        outcome.error.map_or(Ok(()), |error| Err(error.into()))
    }

    fn choose(&self, chain: &Chain) -> Result<EpochId, CliError> {
        if let Some(tail) = chain.tail() {
            eprintln!("note: {tail}; it was never committed");
        }
        let newest = chain.newest();
        let Some(epoch) = self.epoch.map(EpochId) else {
            if let Some(damage) = chain.damage().first() {
                return Err(CliError::DamagedBehind { dir: self.store.clone(), newest, found: damage.to_string() });
            }
            return Ok(chain.epoch(newest).map(|epoch| epoch.commit.epoch)?);
        };
        if self.r#continue && epoch != newest {
            return Err(CliError::NotNewest { epoch, newest });
        }
        Ok(epoch)
    }
}

fn open_writer(store: &Path) -> Result<Writer, CliError> {
    let (writer, recovered) = Writer::open(store, WriterOptions::default())?;
    if let Some(torn) = recovered.torn {
        eprintln!("note: {torn}; it was never committed and was cut off");
    }
    Ok(writer)
}

/// A machine that was built and filled from a chain.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) vm: Vm,
    /// Pages that are not zero.
    pub(super) pages: u64,
}

/// Builds the machine of `chain` as it was at `epoch`.
pub(super) fn restore_machine(chain: &Chain, epoch: EpochId, kvm: &Path, tracking: Tracking) -> Result<Restored, CliError> {
    let plan = Plan::new(chain, epoch)?;
    let mut vm = Vm::build(kvm, machine_of(chain)?, tracking).map_err(|error| match error {
        source @ VmmError::Guest(_) => CliError::Unbuildable { file: chain.dir().join("identity.json"), source },
        other => other.into(),
    })?;
    let state = MachineState::from_records(plan.state(), vm.spec().vcpus);
    let state = state.map_err(|source| CliError::State { epoch, source })?;
    let bar = output::bar("restoring");
    let filled = plan.fill(&mut vm.memory().clone(), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    vm.apply(&state)?;
    Ok(Restored { vm, pages: filled.pages })
}

/// The machine of a chain, whose description must fit the memory that the chain is about.
fn machine_of(chain: &Chain) -> Result<MachineSpec, CliError> {
    let identity = chain.identity();
    let file = || chain.dir().join("identity.json");
    let spec: MachineSpec = serde_json::from_value(identity.machine.clone())
        .map_err(|error| CliError::Unbuildable { file: file(), source: VmmError::Machine(error) })?;
    if memory_regions(spec.memory_bytes) != identity.memory || spec.vcpus != identity.vcpus {
        return Err(CliError::MachineMismatch { file: file() });
    }
    Ok(spec)
}

impl RestoreReport {
    fn print(&self) -> Result<(), CliError> {
        let RestoredGuest { passes_at_restore, passes, checks, ok } = self.guest;
        output::line(format_args!(
            "epoch {} restored: {} pages; the guest ran {} us after the start",
            self.epoch, self.restored_pages, self.first_run_us
        ))?;
        let verdict = if ok { "found nothing wrong" } else { "FOUND AN INCONSISTENCY" };
        output::line(format_args!("  guest         checked itself {checks} times and {verdict}"))?;
        output::line(format_args!("  passes        {passes_at_restore} at the checkpoint, {passes} now"))?;
        self.checkpoint.as_ref().map_or(Ok(()), RunReport::print)
    }
}
