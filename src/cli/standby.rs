//! `slackwater standby`: follows a machine on another host, and takes over.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::error::CliError;
use super::linux::attach_console_if_possible;
use super::output;
use super::pair::{Kept, Paired, supervise};
use super::protect::{ProtectArgs, RunReport, stop_on_signals};
use super::saved_machine::machine_of;
use super::stderr;
use crate::clock::whole_us;
use crate::epoch::Start;
use crate::format::Description;
use crate::machine::MachineState;
use crate::memory::GuestMemory;
use crate::page::EpochId;
use crate::replica::register::{Generation, Register};
use crate::replica::standby::serve::{Place, Server, Takeover};
use crate::store::{Writer, WriterOptions};
use crate::vmm::devices::Console;
use crate::vmm::{BuildOptions, Clocks, GuestReport, HotCheck, NetSpec, Running, Stop, Tracking, Vm, VmmError};

/// Follow a machine on another host, and take over when that dies.
#[derive(Debug, Args)]
pub(super) struct StandbyVerb {
    /// Where to listen for a primary.
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// The directory for the chain that is kept beside the memory. What is there when a primary
    /// comes is set aside, as `DIR.superseded-N`.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Where the image of a disk is, if it is not where it is on the other host; for several disks,
    /// in their order.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// What a network device is connected to here, if not to what it is on the other host. May be
    /// given for each, in their order.
    #[arg(long, value_name = "LINK")]
    net: Vec<NetSpec>,
    /// The KVM device.
    #[arg(long, value_name = "FILE", default_value = crate::kvm::host::KVM_PATH)]
    kvm: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    protect: ProtectArgs,
}

/// A guest that was not entered by then is not waited for.
const FIRST_ENTRY_LIMIT: Duration = Duration::from_secs(1);

/// How long a failover took, in microseconds since the last message of the primary.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct FailoverUs {
    /// Until the primary was taken for dead.
    pub(super) detect: u64,
    /// From then until the witness's answer.
    pub(super) witness: u64,
    /// From then until memory, state and chain were ready.
    pub(super) apply: u64,
    /// From then until the guest ran.
    pub(super) first_run: u64,
    /// All of it.
    pub(super) total: u64,
}

/// The last line of `standby --json`.
#[derive(Debug, Serialize)]
struct StandbyReport {
    /// `promoted`, `halted` or `stopped`.
    role: &'static str,
    generation: Generation,
    /// The epoch that the machine went on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<EpochId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failover_us: Option<FailoverUs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<GuestReport>,
    /// What `checkpoint` reports, of the time as a primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<RunReport>,
}

/// A machine that was taken over, and runs.
struct GoneOn {
    running: Running,
    /// From this epoch on.
    epoch: EpochId,
    failover: FailoverUs,
    kept: Kept,
    console: Option<Console>,
}

impl StandbyVerb {
    pub(super) fn run(self) -> Result<(), CliError> {
        let tls = self.protect.pair.tls()?;
        let paired = self.protect.pair.start_standby(&self.store)?;
        let stop = stop_on_signals()?;
        let control = self.protect.control(Some(&paired), &stop)?;
        let server = Server::listen(paired.node.clone(), tls, &self.listen)?;
        stderr::note(format_args!("standby: listening at {}", server.address()));
        let (asked, node) = (stop.clone(), paired.node.clone());
        let ends = move || {
            while !asked.is_asked() && !node.is_over() {
                std::thread::sleep(Duration::from_millis(20));
            }
            // What is promoted goes on until its own end.
            if asked.is_asked() {
                node.end();
            }
        };
        let tracking = self.protect.tracking()?;
        let mut built = None;
        let mut place = |description: &Description| {
            built = None;
            let (vm, place) = self.place(description, tracking)?;
            built = Some(vm);
            Ok(place)
        };
        let watch = std::thread::Builder::new().name("slackwater-stop".to_owned()).spawn(ends);
        watch.map_err(|source| CliError::System { step: "starting a thread", source })?;
        let taken = server.serve(&mut place)?;
        let generation = |register: Option<Register>| register.map_or(Generation::NONE, |register| register.generation);
        let (Some(takeover), Some(vm)) = (taken, built) else {
            let generation = generation(paired.node.register());
            let report =
                StandbyReport { role: "stopped", generation, epoch: None, failover_us: None, guest: None, checkpoint: None };
            return output::unless_gone(if self.json { output::json(&report) } else { output::line("stopped") });
        };
        let node = paired.node.clone();
        let GoneOn { mut running, epoch, failover, kept, console } = self.go_on(takeover, vm, &paired, &stop)?;
        supervise(&mut running, control, Some(&kept));
        let register = node.register();
        kept.finish(&running);
        let outcome = running.finish();
        drop(console);
        let is_fenced = matches!(outcome.error, Some(VmmError::Fenced(_)));
        let report = StandbyReport {
            role: if is_fenced { "halted" } else { "promoted" },
            generation: generation(register),
            epoch: Some(epoch),
            failover_us: Some(failover),
            guest: Some(outcome.guest),
            checkpoint: RunReport::new(&outcome, &self.protect),
        };
        output::unless_gone(if self.json { output::json(&report) } else { report.print() })?;
        outcome.error.map_or(Ok(()), |error| Err(self.protect.explain(error)))
    }

    /// The machine of a primary that comes, and a chain for its epochs.
    fn place(
        &self,
        description: &Description,
        tracking: Tracking,
    ) -> Result<(Vm, Place<GuestMemory, Writer>), Box<dyn std::error::Error + Send + Sync>> {
        let spec = machine_of(&self.store, description)?;
        let options = BuildOptions {
            hot_check: HotCheck::Late,
            images: self.disk.clone(),
            nets: self.net.clone(),
            holds_outputs: self.protect.holds_outputs(),
            holds_console: self.protect.holds_console(),
            ..BuildOptions::default()
        };
        let vm = Vm::build_with(&self.kvm, spec, tracking, &options)?;
        set_aside(&self.store)?;
        let chain = Writer::create_for(&self.store, description, self.writer_options())?;
        let place = Place { image: vm.memory().clone(), chain, store: self.store.clone() };
        Ok((vm, place))
    }

    fn writer_options(&self) -> WriterOptions {
        self.protect.writer_options()
    }

    /// Runs the machine that was taken over.
    fn go_on(
        &self,
        takeover: Takeover<GuestMemory, Writer>,
        mut vm: Vm,
        paired: &Paired,
        stop: &Stop,
    ) -> Result<GoneOn, CliError> {
        let Takeover { incoming, chain, followed, heard_at, asked_at, won_at, preferred } = takeover;
        let head = incoming.head().unwrap_or_default();
        let state = MachineState::from_records(incoming.state(), followed.description.vcpus);
        let state = state.map_err(|source| CliError::State { epoch: head.epoch, source })?;
        let began_at = Instant::now();
        vm.apply_with(&state, Clocks::Continue)?;
        let applied_at = Instant::now();
        paired.node.promoted(self.protect.pair.primary_options(), head.into());
        let protection = self.protect.protect(&mut vm, chain, Start::Restored(head.epoch), Some(&paired.node))?;
        let ready_at = Instant::now();
        let (state, engine) = (applied_at - began_at, ready_at - applied_at);
        tracing::debug!(?state, ?engine, "the machine is ready");
        let console = attach_console_if_possible(&vm, stop);
        let running = Running::start(vm, Some(protection), self.protect.limits(), stop.clone())?;
        let kept = paired.keep(&running, followed.description, self.protect.mentions_most())?;
        let first_at = first_entry(&running).unwrap_or(ready_at);
        drop(preferred);
        let [detect, witness, apply] =
            [(heard_at, asked_at), (asked_at, won_at), (won_at, ready_at)].map(|(from, to)| us_between(from, to));
        let total = us_between(heard_at, first_at);
        let first_run = total.saturating_sub(detect + witness + apply);
        let failover = FailoverUs { detect, witness, apply, first_run, total };
        stderr::note(format_args!("standby: the machine goes on here, from epoch {}, after {failover}", head.epoch));
        Ok(GoneOn { running, epoch: head.epoch, failover, kept, console })
    }
}

/// When the guest was first entered: now, or it never is.
fn first_entry(running: &Running) -> Option<Instant> {
    let end = Instant::now() + FIRST_ENTRY_LIMIT;
    loop {
        let entry = running.first_entry();
        if entry.is_some() || running.is_over() || Instant::now() >= end {
            return entry;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Microseconds from one instant to another.
fn us_between(from: Instant, to: Instant) -> u64 {
    whole_us(to.saturating_duration_since(from))
}

/// Moves what is at `store` out of the way: it was superseded, and is kept.
fn set_aside(store: &Path) -> std::io::Result<()> {
    if std::fs::symlink_metadata(store).is_err() {
        return Ok(());
    }
    let is_empty = std::fs::read_dir(store).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty {
        return Ok(());
    }
    for number in 1_u32.. {
        let mut name = store.as_os_str().to_owned();
        name.push(format!(".superseded-{number}"));
        if std::fs::symlink_metadata(&name).is_err() {
            return std::fs::rename(store, name);
        }
    }
    Ok(())
}

impl StandbyReport {
    fn print(&self) -> Result<(), CliError> {
        let epoch = self.epoch.unwrap_or_default();
        output::line(format_args!("{}: generation {}, from epoch {epoch}", self.role, self.generation))?;
        if let Some(failover) = self.failover_us {
            output::line(format_args!("  failover      {failover}"))?;
        }
        self.checkpoint.as_ref().map_or(Ok(()), RunReport::print)
    }
}

impl fmt::Display for FailoverUs {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { detect, witness, apply, first_run, total } = self;
        let [detect, witness, apply, first_run, total] = [detect, witness, apply, first_run, total].map(|us| *us as f64 / 1e3);
        write!(
            f,
            "{total:.1} ms: {detect:.1} to notice, {witness:.1} for the witness, {apply:.1} to make ready, {first_run:.1} to run"
        )
    }
}
