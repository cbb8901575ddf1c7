//! `slackwater restore`: a guest from a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::output;
use super::protect::{ProtectArgs, RunReport, stop_on_signals};
use crate::epoch::Start;
use crate::format::Identity;
use crate::machine::MachineState;
use crate::page::EpochId;
use crate::restore::{FillReport, PageMap, Plan};
use crate::store::{Chain, Writer, WriterOptions};
use crate::vmm::{HotCheck, MachineSpec, Running, Tracking, Vm, VmmError, memory_regions};

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
    /// Run the guest at once, and bring its memory as it is touched and in the background. Needs userfaultfd: `slackwater host` says whether it works here.
    #[arg(long)]
    lazy: bool,
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
    /// What the kernel needed to set the machine up: VM, memslots, vCPUs.
    kvm_setup_us: u128,
    ram_bytes: u64,
    /// Pages that are not zero. With `--lazy`, those that were brought until the end.
    restored_pages: u64,
    #[serde(flatten)]
    fill: Option<FillReport>,
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
        let tracking = if self.r#continue { self.protect.tracking()? } else { Tracking::None };
        let Opened { mut vm, epoch, writer, pages } = if self.lazy { self.open_lazily(tracking)? } else { self.open(tracking)? };
        let protection = match writer {
            Some(writer) => Some(self.protect.protect(&mut vm, writer, Start::Restored(epoch))?),
            None => None,
        };
        let kvm_setup_us = vm.setup().total().as_micros();
        let ram_bytes = vm.spec().memory_bytes;
        let mut running = Running::start(vm, protection, self.protect.limits(), stop_on_signals()?)?;
        let passes_at_restore = running.passes_at_start();
        running.check()?;
        running.supervise();
        let outcome = running.finish();
        let report = RestoreReport {
            epoch,
            mode: if self.lazy { "lazy" } else { "eager" },
            first_run_us: outcome.first_entry.map_or(0, |entry| entry.duration_since(process_start).as_micros()),
            kvm_setup_us,
            ram_bytes,
            restored_pages: outcome.fill.map_or(pages, |fill| fill.pages()),
            fill: outcome.fill,
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

    fn writer(&self) -> Result<Option<Writer>, CliError> {
        if self.r#continue { open_writer(&self.store).map(Some) } else { Ok(None) }
    }

    fn open(&self, tracking: Tracking) -> Result<Opened, CliError> {
        // The lock comes first: nobody else appends, and what is read stays.
        let writer = self.writer()?;
        let chain = Chain::open(&self.store)?;
        let epoch = self.choose(&chain)?;
        let Restored { vm, pages } = restore_machine(&chain, epoch, &self.kvm, tracking)?;
        Ok(Opened { vm, epoch, writer, pages })
    }

    /// Nothing is done before the guest runs that can be done later, and the kernel sets the machine up while the chain is opened.
    fn open_lazily(&self, tracking: Tracking) -> Result<Opened, CliError> {
        let machine = machine_of(&self.store, &Chain::identity_in(&self.store, crate::format::MAIN_BRANCH)?)?;
        let build =
            || Vm::build_with(&self.kvm, machine, tracking, HotCheck::Late).map_err(|error| unbuildable(&self.store, error));
        let (opened, vm) = std::thread::scope(|scope| {
            let vm = std::thread::Builder::new().name("slackwater-build".to_owned()).spawn_scoped(scope, build);
            let open = || {
                let writer = self.writer()?;
                let chain = Arc::new(Chain::open(&self.store)?);
                let epoch = self.choose(&chain)?;
                Ok::<_, CliError>((writer, epoch, PageMap::new(chain, epoch)?))
            };
            let opened = open();
            let vm = vm.map(|vm| vm.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (opened, vm.map_err(|source| CliError::System { step: "starting a thread", source }))
        });
        let (writer, epoch, pages) = opened?;
        let mut vm = vm??;
        let state = MachineState::from_records(pages.state(), vm.spec().vcpus);
        let state = state.map_err(|source| CliError::State { epoch, source })?;
        vm.fill_on_demand(Arc::new(pages), true)?;
        vm.apply(&state)?;
        Ok(Opened { vm, epoch, writer, pages: 0 })
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

/// What is to run.
struct Opened {
    vm: Vm,
    epoch: EpochId,
    writer: Option<Writer>,
    pages: u64,
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
    let machine = machine_of(chain.dir(), chain.identity())?;
    let mut vm = Vm::build(kvm, machine, tracking).map_err(|error| unbuildable(chain.dir(), error))?;
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

fn unbuildable(dir: &Path, error: VmmError) -> CliError {
    match error {
        source @ VmmError::Guest(_) => CliError::Unbuildable { file: dir.join("identity.json"), source },
        other => other.into(),
    }
}

/// The machine of a chain, whose description must fit the memory that the chain is about.
fn machine_of(dir: &Path, identity: &Identity) -> Result<MachineSpec, CliError> {
    let file = || dir.join("identity.json");
    let spec: MachineSpec = serde_json::from_value(identity.machine.clone())
        .map_err(|error| CliError::Unbuildable { file: file(), source: VmmError::Machine(error) })?;
    if memory_regions(spec.memory_bytes) != identity.memory || spec.vcpus != identity.vcpus {
        return Err(CliError::MachineMismatch { file: file() });
    }
    Ok(spec)
}

impl RestoreReport {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn print(&self) -> Result<(), CliError> {
        let RestoredGuest { passes_at_restore, passes, checks, ok } = self.guest;
        let Self { epoch, restored_pages, first_run_us, kvm_setup_us, .. } = self;
        let how = if self.fill.is_some() { "restored on demand" } else { "restored" };
        output::line(format_args!(
            "epoch {epoch} {how}: {restored_pages} pages; the guest ran {first_run_us} us after the start, of which the kernel took {kvm_setup_us} to set it up"
        ))?;
        if let Some(fill) = self.fill {
            let FillReport { faults, fault_us, pages_by_faults, pages_recorded, pages_rest, .. } = fill;
            output::line(format_args!(
                "  faults        {faults}, served in {:.0} us (p50), {:.0} us (p99)",
                fault_us.p50, fault_us.p99
            ))?;
            let whole = match fill.filled_us {
                Some(us) => format!("all there after {:.0} ms", us as f64 / 1e3),
                None => "not all there at the end".to_owned(),
            };
            output::line(format_args!(
                "  pages         {pages_by_faults} by faults, {pages_recorded} as touched the last time, {pages_rest} others; {whole}"
            ))?;
        }
        let verdict = if ok { "found nothing wrong" } else { "FOUND AN INCONSISTENCY" };
        output::line(format_args!("  guest         checked itself {checks} times and {verdict}"))?;
        output::line(format_args!("  passes        {passes_at_restore} at the checkpoint, {passes} now"))?;
        self.checkpoint.as_ref().map_or(Ok(()), RunReport::print)
    }
}
