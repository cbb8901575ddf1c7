//! `slackwater restore`: a guest from a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::CliError;
use super::fit::{Check, TscName, branch_of, fitting};
use super::linux::attach_console;
use super::output;
use super::pair::supervise;
use super::protect::{ProtectArgs, RunReport, stop_on_signals};
use super::read_again::again;
use super::saved_machine::{machine_of, state_of};
use super::stderr;
use super::units::{branch, epoch};
use crate::epoch::{Marks, Sink, Start};
use crate::format::MAIN_BRANCH;
use crate::kvm::offer::Offer;
use crate::machine::MachineState;
use crate::machine::fit::{Counter, Wishes};
use crate::page::EpochId;
use crate::replica::record_file::read_record;
use crate::restore::{FillReport, PageMap, Plan};
use crate::store::{Chain, StoreError, Writer};
use crate::vmm::devices::GuestEnd;
use crate::vmm::vsock::VsockSpec;
use crate::vmm::{BuildOptions, Clocks, HotCheck, MachineSpec, NetSpec, Running, Tracking, Vm, VmmError};

/// How the guest's clocks go on.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum ClockName {
    /// From where they were: to the guest no time passed.
    Continue,
    /// Forward by the time that passed on the host since the checkpoint.
    Host,
}

/// Run a guest from a checkpoint, and have it check all it knows first.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The epoch [default: the newest].
    #[arg(long, value_name = "N", value_parser = epoch)]
    epoch: Option<EpochId>,
    /// Go on taking checkpoints into the same chain. Only from its newest epoch.
    #[arg(long)]
    r#continue: bool,
    /// Run the guest at once, and bring its memory as it is touched and in the background. Needs
    /// userfaultfd: `slackwater host` says whether it works here.
    #[arg(long)]
    lazy: bool,
    /// With `--witness`: go on although another machine may, or although outputs may have left that
    /// belong to epochs which this store does not have. You vouch that no other runs.
    #[arg(long, requires = "witness")]
    accept_loss: bool,
    /// Go on taking checkpoints into this branch. One that there is goes on from its newest epoch.
    /// With `--epoch` or `--from`, one that there is not is made, and goes on from there beside the
    /// original.
    #[arg(long, value_name = "NAME", value_parser = branch)]
    branch: Option<String>,
    /// The branch that the epoch is taken from [default: that of `--branch`, if there is one, or
    /// main].
    #[arg(long, value_name = "NAME", value_parser = branch)]
    from: Option<String>,
    /// Where the image of a disk is, if it is not where it was; for several disks, in their order.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// How the guest's clocks go on.
    #[arg(long, value_enum, default_value_t = ClockName::Continue)]
    clock: ClockName,
    /// Where the time stamp counter had another frequency (more than 250 ppm) and this host can't
    /// scale its own.
    #[arg(long, value_enum, default_value_t = TscName::Same)]
    tsc: TscName,
    /// Only say whether the guest can run on this host, and what differs, piece by piece: nothing
    /// is built. Exit code 1 where it can't.
    #[arg(long)]
    check: bool,
    /// What a network device is connected to now, if not to what it was: `tap=NAME` or `unix=PATH`.
    /// May be given for each, in their order.
    #[arg(long, value_name = "LINK")]
    net: Vec<NetSpec>,
    /// What the socket device is connected to now, if not to what it was: `cid=N,path=PATH`.
    #[arg(long, value_name = "SOCKET")]
    vsock: Option<VsockSpec>,
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
    clock: ClockName,
    /// By how much the guest's clocks were put forward.
    clock_forward_us: u128,
    /// How the guest's time stamp counter goes on.
    tsc: Counter,
    /// The chain that goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    branch: Option<String>,
    guest: RestoredGuest,
    /// How a Linux guest ended its own run, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_end: Option<GuestEnd>,
    /// With `--continue`: what `checkpoint` reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<RunReport>,
}

#[derive(Debug, Serialize)]
struct RestoredGuest {
    passes_at_restore: u64,
    passes: u64,
    checks: u64,
    /// Whether it is a guest that can check itself.
    checks_itself: bool,
    ok: bool,
}

impl Restore {
    pub(super) fn run(self, process_start: Instant) -> Result<(), CliError> {
        let goes_on = self.r#continue || self.branch.is_some();
        if !goes_on && self.protect.limits().epochs.is_some() {
            return Err(CliError::Usage(
                "`--epochs` goes with `--continue` or `--branch`: without them no epoch is taken".to_owned(),
            ));
        }
        if let Some(option) = self.protect.needs_epochs().filter(|_| !goes_on) {
            return Err(CliError::Usage(format!(
                "`{option}` goes with `--continue` or `--branch`: without them no checkpoints are taken"
            )));
        }
        if !goes_on && self.protect.writer_options().retention.is_some() {
            return Err(CliError::Usage(
                "the `--keep` options go with `--continue` or `--branch`; `slackwater prune` drops epochs of a chain that rests"
                    .to_owned(),
            ));
        }
        let from = self.from.as_deref().unwrap_or(MAIN_BRANCH);
        let into = goes_on.then(|| self.branch.as_deref().unwrap_or(from));
        if self.check {
            let branch = branch_of(&self.store, into, from)?;
            let (store, kvm, ring) = (&self.store, &self.kvm, into.is_some() && self.protect.uses_ring());
            let Self { epoch, tsc, json, .. } = self;
            return Check { store, branch, epoch, kvm, tsc, ring, json }.run();
        }
        if into.is_some() {
            self.check_pair()?;
        }
        let tracking = if into.is_some() { self.protect.tracking()? } else { Tracking::None };
        let opened = if self.lazy { self.open_lazily(from, into, tracking)? } else { self.open(from, into, tracking)? };
        let Opened { mut vm, epoch, goes_on, pages, forward, counter } = opened;
        let writer = match goes_on {
            None => None,
            Some(GoesOn::As(_, writer)) => Some(*writer),
            // Now that the machine is there: what failed before leaves no branch.
            Some(GoesOn::New(name)) => Some(self.create_branch(&name, from, epoch)?),
        };
        let stop = stop_on_signals()?;
        let is_of_a_pair = into.is_some() && self.protect.pair.is_given();
        let paired = if is_of_a_pair { Some(self.protect.pair.start_reading(&self.store)?) } else { None };
        let (protection, description) = match writer {
            Some(mut writer) => {
                if let Some((paired, register)) = &paired {
                    let head = writer.start(Marks::nowhere()).head;
                    paired.open_again(&self.store, *register, head, self.accept_loss, &stop)?;
                }
                let description = writer.description().clone();
                let node = paired.as_ref().map(|(paired, _)| &paired.node);
                let protection = self.protect.protect(&mut vm, writer, Start::Restored(epoch), node)?;
                (Some(protection), Some(description))
            }
            None => (None, None),
        };
        let kvm_setup_us = vm.setup().total().as_micros();
        let ram_bytes = vm.spec().memory_bytes;
        let console = attach_console(&vm, &stop)?;
        let control = self.protect.control(paired.as_ref().map(|(paired, _)| paired), &stop)?;
        let mut running = Running::start(vm, protection, self.protect.limits(), stop)?;
        let passes_at_restore = running.passes_at_start();
        running.check()?;
        let kept = match (&paired, description) {
            (Some((paired, _)), Some(description)) => Some(paired.keep(&running, description, self.protect.mentions_most())?),
            _ => None,
        };
        supervise(&mut running, control, kept.as_ref());
        if let Some(kept) = kept {
            kept.finish(&running);
        }
        let outcome = running.finish();
        drop(console);
        let report = RestoreReport {
            epoch,
            mode: if self.lazy { "lazy" } else { "eager" },
            first_run_us: outcome.first_entry.map_or(0, |entry| entry.duration_since(process_start).as_micros()),
            kvm_setup_us,
            ram_bytes,
            restored_pages: outcome.fill.map_or(pages, |fill| fill.pages()),
            fill: outcome.fill,
            clock: self.clock,
            clock_forward_us: forward.as_micros(),
            tsc: counter,
            branch: into.map(str::to_owned),
            guest: RestoredGuest {
                passes_at_restore,
                passes: outcome.guest.passes,
                checks: outcome.guest.checks,
                checks_itself: outcome.guest.checks_itself,
                ok: outcome.guest.ok,
            },
            guest_end: outcome.end,
            checkpoint: RunReport::new(&outcome, &self.protect),
        };
        output::unless_gone(if self.json { output::json(&report) } else { report.print() })?;
        outcome.error.map_or(Ok(()), |error| Err(self.protect.explain(error)))
    }

    /// A store that was part of a pair goes on where its witness says so, and only there.
    fn check_pair(&self) -> Result<(), CliError> {
        let is_given = self.protect.pair.is_given();
        if is_given && (self.branch.is_some() || self.epoch.is_some()) {
            return Err(CliError::Usage(
                "`--witness` goes with `--continue` from the newest epoch: a branch is another machine".to_owned(),
            ));
        }
        if !is_given && self.branch.is_none() && read_record(&self.store)?.is_some() {
            return Err(CliError::OfAPair { store: self.store.clone() });
        }
        Ok(())
    }

    fn build_options(&self, hot_check: HotCheck) -> BuildOptions {
        // Without an engine nothing is ever released.
        let goes_on = self.r#continue || self.branch.is_some();
        BuildOptions {
            hot_check,
            images: self.disk.clone(),
            nets: self.net.clone(),
            vsock: self.vsock.clone(),
            holds_outputs: goes_on && self.protect.holds_outputs(),
            holds_console: goes_on && self.protect.holds_console(),
        }
    }

    fn open(&self, from: &str, into: Option<&str>, tracking: Tracking) -> Result<Opened, CliError> {
        // The lock comes first: nobody else appends, and what is read stays.
        let goes_on = into.map(|into| self.open_writer(into)).transpose()?;
        let options = self.build_options(HotCheck::First);
        let (wishes, kvm) = (self.wishes(tracking), &self.kvm);
        let (epoch, restored) = again(|| {
            let (chain, epoch) = self.choose(from, goes_on.as_ref())?;
            let clocks = self.clocks(&chain, epoch)?;
            Ok((epoch, restore_machine(&chain, epoch, kvm, tracking, &options, clocks, wishes)?))
        })?;
        let Restored { vm, pages, forward, counter } = restored;
        Ok(Opened { vm, epoch, goes_on, pages, forward, counter })
    }

    /// Whether a kernel runs is found while the machine is built.
    fn wishes(&self, tracking: Tracking) -> Wishes {
        Wishes { tsc: self.tsc.into(), ring: matches!(tracking, Tracking::Ring { .. }), runs_kernels: None }
    }

    /// Nothing is done before the guest runs that can be done later. What the host offers is read
    /// while the chain is opened, and the kernel sets the machine up while the pages are looked
    /// for.
    fn open_lazily(&self, from: &str, into: Option<&str>, tracking: Tracking) -> Result<Opened, CliError> {
        // A branch has the machine of what it branches off.
        let machine = machine_of(&self.store, &Chain::description_in(&self.store, from)?)?;
        let options = self.build_options(HotCheck::Late);
        let (chosen, host) = beside(
            || Offer::read(&self.kvm),
            || {
                let goes_on = into.map(|into| self.open_writer(into)).transpose()?;
                let (chain, epoch, clocks, state) = again(|| {
                    let (chain, epoch) = self.choose(from, goes_on.as_ref())?;
                    let clocks = self.clocks(&chain, epoch)?;
                    let state = state_of(&chain, epoch, machine.vcpus)?;
                    Ok((chain, epoch, clocks, state))
                })?;
                Ok::<_, CliError>((goes_on, chain, epoch, clocks, state))
            },
        )?;
        let (goes_on, chain, epoch, clocks, mut state) = chosen?;
        let fit = host.map_err(CliError::from).and_then(|host| fitting(&self.store, epoch, &state, &host, self.wishes(tracking)));
        let fit = fit.map_err(|error| said_first(&self.store, &machine, error))?;
        fit.adapt(&mut state);
        let build = || Vm::build_with(&self.kvm, machine, tracking, &options).map_err(|error| unbuildable(&self.store, error));
        let branch = goes_on.as_ref().map_or(from, |goes_on| goes_on.reads_from(from)).to_owned();
        let mut chain = Some(chain);
        let (pages, vm) = beside(build, || {
            // The epoch stays the one that was chosen.
            again(|| {
                let chain = chain.take().map_or_else(|| Chain::open_branch(&self.store, &branch), Ok)?;
                Ok(PageMap::new(Arc::new(chain), epoch)?)
            })
        })?;
        let (pages, mut vm) = (pages?, vm?);
        // A branch that is to be made begins at this epoch, and keeps it.
        if let Some(GoesOn::As(_, writer)) = goes_on.as_ref().filter(|_| !pages.is_held()) {
            pages.until_filled(writer.keep_segments());
        }
        vm.fill_on_demand(Arc::new(pages), true)?;
        let forward = vm.apply_with(&state, clocks)?;
        Ok(Opened { vm, epoch, goes_on, pages: 0, forward, counter: fit.counter() })
    }

    fn clocks(&self, chain: &Chain, epoch: EpochId) -> Result<Clocks, CliError> {
        Ok(match self.clock {
            ClockName::Continue => Clocks::Continue,
            ClockName::Host => Clocks::Host { cut_unix_ns: chain.epoch(epoch)?.commit.time_unix_ns },
        })
    }

    /// Opens the chain that is to go on, if there is one of that name yet.
    fn open_writer(&self, into: &str) -> Result<GoesOn, CliError> {
        let is_asked_for = self.epoch.is_some() || self.from.is_some();
        match Writer::open_branch(&self.store, into, self.protect.writer_options()) {
            Ok((_, _)) if self.from.as_deref().is_some_and(|from| from != into) => {
                let from = self.from.clone().unwrap_or_default();
                Err(CliError::BranchExists { name: into.to_owned(), from })
            }
            Ok((writer, recovered)) => {
                if let Some(torn) = recovered.torn {
                    stderr::note(format_args!("note: {torn}; it was never said to be durable and was cut off"));
                }
                Ok(GoesOn::As(into.to_owned(), Box::new(writer)))
            }
            // Whoever mistypes a name gets no new branch.
            Err(StoreError::NoBranch { .. }) if self.branch.is_some() && is_asked_for => Ok(GoesOn::New(into.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// The chain to restore from, and the epoch.
    fn choose(&self, from: &str, goes_on: Option<&GoesOn>) -> Result<(Chain, EpochId), CliError> {
        let branch = goes_on.map_or(from, |goes_on| goes_on.reads_from(from));
        let chain = Chain::open_branch(&self.store, branch)?;
        if let Some(tail) = chain.tail() {
            stderr::note(format_args!("note: {tail}; it was never said to be durable"));
        }
        let newest = chain.newest();
        let Some(epoch) = self.epoch else {
            if let Some(damage) = chain.damage().first() {
                return Err(CliError::DamagedBehind { dir: self.store.clone(), newest, found: damage.to_string() });
            }
            let epoch = chain.epoch(newest)?.commit.epoch;
            return Ok((chain, epoch));
        };
        if matches!(goes_on, Some(GoesOn::As(..))) && epoch != newest {
            return Err(CliError::NotNewest { branch: branch.to_owned(), epoch, newest });
        }
        Ok((chain, epoch))
    }

    /// Makes the branch. Many may be made of one epoch at once, or while a writer compacts: each
    /// takes its turn.
    fn create_branch(&self, name: &str, from: &str, epoch: EpochId) -> Result<Writer, CliError> {
        let begun = Instant::now();
        loop {
            match Writer::create_branch(&self.store, name, from, epoch, self.protect.writer_options()) {
                Err(StoreError::InUse { .. }) if begun.elapsed() < BRANCH_WAIT_MAX => std::thread::sleep(BRANCH_RETRY),
                Err(StoreError::Exists { .. }) => {
                    return Err(CliError::BranchExists { name: name.to_owned(), from: format!("epoch {epoch} of {from}") });
                }
                made => return Ok(made?),
            }
        }
    }
}

/// A chain that goes on.
#[derive(Debug)]
enum GoesOn {
    /// That of this name, which nobody else writes to now.
    As(String, Box<Writer>),
    /// A branch that is to be made.
    New(String),
}

impl GoesOn {
    /// The branch that is read, where a restore starts from `from`.
    fn reads_from<'a>(&'a self, from: &'a str) -> &'a str {
        match self {
            Self::As(name, _) => name,
            Self::New(_) => from,
        }
    }
}

/// What is to run.
struct Opened {
    vm: Vm,
    epoch: EpochId,
    goes_on: Option<GoesOn>,
    pages: u64,
    /// By how much the guest's clocks were put forward.
    forward: Duration,
    counter: Counter,
}

/// Does one thing on another thread while it does the other here. Returns what came of the other
/// first.
fn beside<A: Send, B>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> Result<(B, A), CliError> {
    std::thread::scope(|scope| {
        let one = std::thread::Builder::new().name("slackwater-build".to_owned()).spawn_scoped(scope, one);
        let one = one.map_err(|source| CliError::System { step: "starting a thread", source })?;
        let other = other();
        Ok((other, one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    })
}

/// How long to wait for others who compact the store or make branches.
const BRANCH_WAIT_MAX: Duration = Duration::from_secs(30);
const BRANCH_RETRY: Duration = Duration::from_millis(5);

/// A machine that was built and filled from a chain.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) vm: Vm,
    /// Pages that are not zero.
    pub(super) pages: u64,
    /// By how much the guest's clocks were put forward.
    pub(super) forward: Duration,
    /// How its counter goes on.
    pub(super) counter: Counter,
}

/// Builds the machine of `chain` as it was at `epoch`, where this host can run it.
pub(super) fn restore_machine(
    chain: &Chain,
    epoch: EpochId,
    kvm: &Path,
    tracking: Tracking,
    options: &BuildOptions,
    clocks: Clocks,
    wishes: Wishes,
) -> Result<Restored, CliError> {
    let plan = Plan::new(chain, epoch)?;
    let machine = machine_of(chain.dir(), chain.description())?;
    let fitted = || {
        let host = Offer::read(kvm)?;
        let state = MachineState::from_records(plan.state(), machine.vcpus);
        let state = state.map_err(|source| CliError::State { epoch, source })?;
        let fit = fitting(chain.dir(), epoch, &state, &host, wishes)?;
        Ok((state, fit))
    };
    let (mut state, fit) = fitted().map_err(|error| said_first(chain.dir(), &machine, error))?;
    fit.adapt(&mut state);
    let mut vm = Vm::build_with(kvm, machine, tracking, options).map_err(|error| unbuildable(chain.dir(), error))?;
    let bar = stderr::bar("restoring");
    let filled = plan.fill(&mut vm.memory().clone(), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let forward = vm.apply_with(&state, clocks)?;
    Ok(Restored { vm, pages: filled.pages, forward, counter: fit.counter() })
}

/// Where the machine of the store in `dir` can't be built on any host, that is said, and not what
/// this host lacks. Building finds it by itself.
fn said_first(dir: &Path, machine: &MachineSpec, error: CliError) -> CliError {
    machine.check().err().map_or(error, |unfit| unbuildable(dir, unfit))
}

fn unbuildable(dir: &Path, error: VmmError) -> CliError {
    match error {
        source @ VmmError::Guest(_) => CliError::Unbuildable { file: dir.join("description.json"), source },
        other => other.into(),
    }
}

impl RestoreReport {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn print(&self) -> Result<(), CliError> {
        let RestoredGuest { passes_at_restore, passes, checks, checks_itself, ok } = self.guest;
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
        if matches!(self.clock, ClockName::Host) {
            output::line(format_args!("  clocks        put forward by {:.3} s", self.clock_forward_us as f64 / 1e6))?;
        }
        if let Some(branch) = &self.branch {
            output::line(format_args!("  goes on       as {branch}"))?;
        }
        output::line(match (ok, checks_itself, checks) {
            (false, ..) => format!("  guest         FOUND AN INCONSISTENCY, after {checks} checks that found none"),
            (true, false, _) => "  guest         does not check itself: nothing is known of it".to_owned(),
            (true, true, 0) => "  guest         did not check itself".to_owned(),
            (true, true, _) => format!("  guest         checked itself {checks} times and found nothing wrong"),
        })?;
        if passes > 0 {
            output::line(format_args!("  passes        {passes_at_restore} at the checkpoint, {passes} now"))?;
        }
        self.checkpoint.as_ref().map_or(Ok(()), RunReport::print)
    }
}
