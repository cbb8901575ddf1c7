//! A guest under the whole engine with a chain on disk, and without it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::BenchError;
use super::cpu::{Group, Usage};
use super::runner::Sample;
use crate::epoch::{Durability, Early, Engine, EngineOptions, Report, Start, Tracker};
use crate::format::Compression;
use crate::machine::MachineState;
use crate::store::{Chain, NewChain, Writer, WriterOptions};
use crate::vmm::{GuestSpec, Limits, MachineSpec, Paced, Protection, Running, Stop, Tracking, Vm, VmmError, memory_regions};

/// How long a paced guest has for a pass, at the most.
const PASS_LIMIT: Duration = Duration::from_secs(20);

/// The guest whose options are `text`.
pub(super) fn guest(text: &str) -> Result<GuestSpec, BenchError> {
    text.parse().map_err(|error: crate::vmm::GuestSpecError| BenchError::Guest { guest: text.to_owned(), source: error.into() })
}

/// The engine of `vm`, which has one vCPU and its memory loaded. Its chain is new, at `store`. The
/// tracker is made of the machine's.
pub(super) fn engine(
    vm: &mut Vm,
    store: &Path,
    options: EngineOptions,
    wrap: impl FnOnce(Box<dyn Tracker>) -> Box<dyn Tracker>,
) -> Result<Engine<MachineState>, BenchError> {
    let machine = serde_json::to_value(vm.spec()).map_err(VmmError::Machine)?;
    let new = NewChain { memory: memory_regions(vm.spec().memory_bytes), device_runs: 0, vcpus: 1, machine };
    let writer = Writer::create(store, &new, WriterOptions::default())?;
    let tracker = vm.take_tracker().ok_or(VmmError::Ring(crate::kvm::ring::RingError::Unsupported))?;
    Ok(Engine::new(vm.memory().clone(), wrap(tracker), Box::new(writer), Start::Fresh, options)?)
}

/// What a guest did in a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) passes: f64,
    pub(super) seconds: f64,
    pub(super) paced: Paced,
}

impl Work {
    pub(super) fn passes_per_s(&self) -> f64 {
        self.passes / self.seconds.max(1e-9)
    }

    /// How much longer a pass takes than in the runs `plain`, in percent.
    pub(super) fn stretch_percent(&self, plain: &[Self]) -> f64 {
        100.0 * (mean(plain, Self::passes_per_s) / self.passes_per_s().max(1e-9) - 1.0)
    }

    /// The mean time of a burst in microseconds, where the guest is paced.
    pub(super) fn burst_us(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "bursts are few")]
        let bursts = self.paced.bursts as f64;
        (self.paced.bursts > 0).then(|| self.paced.busy.as_secs_f64() * 1e6 / bursts)
    }
}

/// The mean of something over some runs.
pub(super) fn mean(runs: &[Work], of: impl Fn(&Work) -> f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "there are two")]
    let count = runs.len().max(1) as f64;
    runs.iter().map(of).sum::<f64>() / count
}

/// What both runs have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine<'m> {
    pub(super) kvm: &'m Path,
    pub(super) guest: &'m GuestSpec,
    pub(super) memory_bytes: u64,
    pub(super) time: Duration,
}

/// How the guest is protected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Under {
    pub(super) tracking: Tracking,
    pub(super) budget_pages: u64,
    pub(super) interval: Option<Duration>,
    pub(super) durability: Durability,
    pub(super) early: Early,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Protected {
    pub(super) work: Work,
    pub(super) usage: BTreeMap<Group, Duration>,
    /// Of each epoch but the base: pages, bytes and pause in microseconds.
    pub(super) epochs: Vec<(u64, u64, f64)>,
    /// Copying took so long in all of them together, in microseconds.
    pub(super) copy_us: f64,
    pub(super) report: Report,
}

/// Removes the store when it is not needed any more.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    /// A directory within `dir` that is not there yet.
    pub(super) fn new(dir: &Path) -> Self {
        Self(dir.join(format!("slackwater-bench-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory that stays is untidy, not wrong.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Machine<'_> {
    fn spec(&self) -> MachineSpec {
        MachineSpec { memory_bytes: self.memory_bytes, vcpus: 1, guest: self.guest.clone(), nets: Vec::new(), vsock: None }
    }

    fn limits(&self) -> Limits {
        Limits { time: Some(self.time), epochs: None }
    }

    /// Lets the guest run until its time is over, and a paced one has ended a pass: without, there
    /// is no figure.
    fn supervise(&self, running: &mut Running) -> Work {
        let start = Instant::now();
        running.supervise();
        let paced = !self.guest.every().is_zero();
        while paced && running.paced().bursts == 0 && !running.is_over() && start.elapsed() < PASS_LIMIT {
            running.supervise_until(Instant::now() + Duration::from_millis(20));
        }
        #[expect(clippy::cast_precision_loss, reason = "passes are fewer than 2^52")]
        let passes = (running.guest().passes - running.passes_at_start()) as f64;
        Work { passes, seconds: start.elapsed().as_secs_f64(), paced: running.paced() }
    }

    /// Lets the guest run without protection.
    pub(super) fn unprotected(&self) -> Result<Work, BenchError> {
        let mut vm = Vm::build(self.kvm, self.spec(), Tracking::None)?;
        vm.load()?;
        let mut running = Running::start(vm, None, self.limits(), Stop::default())?;
        let work = self.supervise(&mut running);
        running.finish().error.map_or(Ok(work), |error| Err(error.into()))
    }

    /// Lets it run under protection. The chain is made in a new directory within `dir` and removed.
    pub(super) fn protected(&self, dir: &Path, under: Under) -> Result<Protected, BenchError> {
        self.protected_with(dir, under, |tracker| tracker)
    }

    /// As [`protected`](Self::protected), with a tracker made of the machine's.
    pub(super) fn protected_with(
        &self,
        dir: &Path,
        under: Under,
        wrap: impl FnOnce(Box<dyn Tracker>) -> Box<dyn Tracker>,
    ) -> Result<Protected, BenchError> {
        let scratch = Scratch::new(dir);
        let mut vm = Vm::build(self.kvm, self.spec(), under.tracking)?;
        vm.load()?;
        let options = EngineOptions {
            budget_pages: usize::try_from(under.budget_pages).unwrap_or(usize::MAX),
            durability: under.durability,
            compression: Compression::default(),
            early: under.early,
            ..EngineOptions::default()
        };
        let engine = engine(&mut vm, &scratch.0, options, wrap)?;
        let protection = Protection { engine, interval: under.interval, base_first: true, share_pages: 0 };
        let usage_before = Usage::now();
        let mut running = Running::start(vm, Some(protection), self.limits(), Stop::default())?;
        let work = self.supervise(&mut running);
        let usage = Usage::now().since(&usage_before);
        let outcome = running.finish();
        if let Some(error) = outcome.error {
            return Err(error.into());
        }
        let chain = Chain::open(&scratch.0)?;
        let commits: Vec<_> = chain.epochs().map(|epoch| epoch.map(|epoch| epoch.commit)).collect::<Result<_, _>>()?;
        let commits = || commits.iter().filter(|commit| !commit.base && !commit.recovery);
        let copy_us = commits().map(|commit| Sample::from(commit).copy).sum();
        let epochs = commits().map(|commit| (commit.captured_pages, commit.bytes_written, Sample::from(commit).pause()));
        Ok(Protected { work, usage, epochs: epochs.collect(), copy_us, report: outcome.report.unwrap_or_default() })
    }
}
