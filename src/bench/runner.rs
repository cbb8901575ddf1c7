//! Measures a point: machines with one tracker each take turns.

use std::path::Path;
use std::time::{Duration, Instant};

use super::effort::{COLD_CUTS, Costs, Effort};
use super::floor::{Copies, PlainCopy, Untracked};
use super::interleave::{TakingTurns, Turns};
use super::record::{Recorded, RecordingSink};
use super::stats::median;
use super::workload::{Extent, Point, TrackerKind, fault_point};
use super::{BenchError, TURN_LIMIT};
use crate::epoch::Tracker;
use crate::epoch::{Durability, Engine, EngineOptions, Start, WhenBehind};
use crate::format::{Commit, Compression};
use crate::kvm::ring::RingError;
use crate::vmm::guests::touch;
use crate::vmm::{GuestSpec, Limits, MachineSpec, Protection, Running, Stop, Tracking, Vm, VmmError, exit_times};

/// Page writes of the guest between two cuts where nothing tracks, at least: so that the cut itself
/// does not count.
const UNTRACKED_WRITES: u64 = 40_000;
/// The names of what runs without tracking.
const UNTRACKED: &str = "the guest without tracking";
const COPYING: &str = "the guest whose pages are copied";
/// Parts of epochs in flight: the fewest, since staging is most of the memory.
const SLOTS: usize = 2;

/// A cut, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Pages captured.
    pub pages: u64,
    /// How long the guest ran since the cut before.
    pub run: f64,
    /// Getting all vCPUs out of the guest.
    pub kick: f64,
    /// Capturing state.
    pub state: f64,
    /// Reading the log.
    pub harvest: f64,
    /// Copying pages.
    pub copy: f64,
    /// Protecting pages again.
    pub reset: f64,
}

impl Sample {
    /// All phases together.
    #[must_use]
    pub const fn pause(&self) -> f64 {
        self.kick + self.state + self.harvest + self.copy + self.reset
    }

    /// What the way of tracking costs within the pause.
    #[must_use]
    pub const fn tracking(&self) -> f64 {
        self.harvest + self.reset
    }
}

impl From<&Commit> for Sample {
    fn from(commit: &Commit) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "times below 2^52 ns are exact")]
        let us = |ns: u64| ns as f64 / 1000.0;
        let phases = &commit.phases;
        Self {
            pages: commit.captured_pages,
            run: us(commit.run_ns),
            kick: us(phases.kick_ns),
            state: us(phases.state_ns),
            harvest: us(phases.harvest_ns),
            copy: us(phases.copy_ns),
            reset: us(phases.reset_ns),
        }
    }
}

/// What was measured at a point.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Each tracker's cuts.
    pub trackers: Vec<(TrackerKind, Vec<Sample>)>,
    /// How long a pass of the guest takes without tracking, in microseconds.
    pub untracked_pass_us: Vec<f64>,
    /// How long copying the pages of an epoch takes alone, in microseconds.
    pub copy_us: Vec<f64>,
    /// Rounds of turns.
    pub rounds: u32,
}

/// Measures `point` on the KVM whose device is `kvm`, where `costs` decide how long that takes.
///
/// # Errors
/// [`BenchError`].
pub fn measure(kvm: &Path, point: &Point, extent: Extent, costs: &Costs) -> Result<Measured, BenchError> {
    let start = Instant::now();
    let effort = Effort::plan(extent, point, options(point, 1)?.lists(), costs);
    let point = &Point { lists: Some(effort.lists), ..point.clone() };
    let mut lanes = Vec::new();
    for kind in point.trackers() {
        lanes.push((*kind, Lane::tracked(kvm, point, *kind)?));
    }
    let passes = UNTRACKED_WRITES.div_ceil(point.pages);
    let mut untracked = Lane::untracked(kvm, point, passes)?;
    let copies = Copies::default();
    let floor_of = point.trackers().first().copied().unwrap_or(TrackerKind::Bitmap);
    let mut copying = Lane::copying(kvm, point, floor_of, copies.clone())?;
    let mut measured = Measured {
        trackers: point.trackers().iter().map(|kind| (*kind, Vec::new())).collect(),
        untracked_pass_us: Vec::new(),
        copy_us: Vec::new(),
        rounds: 0,
    };
    // Each list once: afterwards every page has been touched, and what a write costs is what it
    // costs from then on.
    let warm = effort.warm_cuts(point);
    for (kind, lane) in &mut lanes {
        lane.turn(kind.as_str(), warm)?;
    }
    untracked.turn(UNTRACKED, effort.lists.div_ceil(passes) + 1)?;
    copying.turn(COPYING, warm)?;
    let cuts = effort.cuts;
    while !effort.is_enough(extent, measured.rounds, start.elapsed()) {
        for ((kind, lane), (_, samples)) in lanes.iter_mut().zip(&mut measured.trackers) {
            let commits = lane.turn(kind.as_str(), cuts + COLD_CUTS)?;
            samples.extend(warm_part(&commits).iter().map(Sample::from));
        }
        let commits = untracked.turn(UNTRACKED, cuts.min(12) + COLD_CUTS)?;
        #[expect(clippy::cast_precision_loss, reason = "passes are few")]
        let pass = |commit: &Commit| Sample::from(commit).run / passes as f64;
        measured.untracked_pass_us.extend(warm_part(&commits).iter().map(pass));
        copies.take();
        copying.turn(COPYING, cuts + COLD_CUTS)?;
        measured.copy_us.extend(warm_part(&copies.take()));
        measured.rounds += 1;
    }
    lanes.into_iter().map(|(_, lane)| lane).chain([untracked, copying]).try_for_each(Lane::end)?;
    Ok(measured)
}

/// What the first write to a page in an epoch costs a guest, in microseconds, writes and exits
/// included.
///
/// # Errors
/// [`BenchError`].
pub fn measure_fault(kvm: &Path) -> Result<f64, BenchError> {
    const CUTS: u64 = 8;
    let point = fault_point();
    let mut lane = Lane::tracked(kvm, &point, TrackerKind::Ring)?;
    lane.turn(TrackerKind::Ring.as_str(), options(&point, 1)?.lists() + 1)?;
    let commits = lane.turn(TrackerKind::Ring.as_str(), CUTS + COLD_CUTS)?;
    lane.end()?;
    #[expect(clippy::cast_precision_loss, reason = "pages are few")]
    let pages = point.pages as f64;
    Ok(median(warm_part(&commits).iter().map(|commit| Sample::from(commit).run / pages)))
}

/// What an exit costs, in microseconds: `KVM_RUN` with a guest that does next to nothing before it
/// writes to a port. Fewer `rounds` where exits are so slow that they took `time`.
///
/// # Errors
/// [`BenchError`].
pub fn measure_exits(kvm: &Path, rounds: usize, time: Duration) -> Result<Vec<f64>, BenchError> {
    const AT_ONCE: usize = 500;
    let guest = "touch:pages=1,pattern=same";
    let guest = GuestSpec::Touch(parse(guest)?);
    let mut vm =
        Vm::build(kvm, MachineSpec { memory_bytes: 16 << 20, vcpus: 1, guest, nets: Vec::new(), vsock: None }, Tracking::None)?;
    vm.load()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < rounds && (times.is_empty() || start.elapsed() < time) {
        times.extend(exit_times(&mut vm, AT_ONCE.min(rounds - times.len()))?);
    }
    Ok(warm_part(&times).iter().map(|time| time.as_secs_f64() * 1e6).collect())
}

fn warm_part<T>(turn: &[T]) -> &[T] {
    turn.get(usize::try_from(COLD_CUTS).unwrap_or(usize::MAX)..).unwrap_or_default()
}

fn parse(guest: &str) -> Result<touch::Options, BenchError> {
    guest.parse().map_err(|source: touch::OptionsError| BenchError::Guest { guest: guest.to_owned(), source: source.into() })
}

fn options(point: &Point, cut: u64) -> Result<touch::Options, BenchError> {
    parse(&point.guest(cut))
}

/// A machine and its engine.
struct Lane {
    running: Option<Running>,
    turns: std::sync::Arc<Turns>,
    recorded: Recorded,
}

impl Lane {
    fn tracked(kvm: &Path, point: &Point, kind: TrackerKind) -> Result<Self, BenchError> {
        let (vm, tracker) = Self::tracked_vm(kvm, point, kind)?;
        Self::start(vm, tracker, kind.budget_pages(point))
    }

    /// Nothing but the guest, with a cut every so many passes.
    fn untracked(kvm: &Path, point: &Point, passes: u64) -> Result<Self, BenchError> {
        let vm = Self::vm(kvm, point, options(point, passes)?, Tracking::None)?;
        Self::start(vm, Box::new(Untracked), 256)
    }

    /// The same machine as a tracked one, whose pages are copied plainly besides.
    fn copying(kvm: &Path, point: &Point, kind: TrackerKind, copies: Copies) -> Result<Self, BenchError> {
        let (vm, tracker) = Self::tracked_vm(kvm, point, kind)?;
        let pages = usize::try_from(point.budget_pages()).unwrap_or(usize::MAX);
        let plain = PlainCopy::new(tracker, vm.memory().clone(), pages, copies);
        let plain = plain.map_err(|source| BenchError::System { step: "taking memory for the copy floor", source })?;
        Self::start(vm, Box::new(plain), point.budget_pages())
    }

    fn tracked_vm(kvm: &Path, point: &Point, kind: TrackerKind) -> Result<(Vm, Box<dyn Tracker>), BenchError> {
        let cut = u64::from(point.full_ring.is_none());
        let tracking = kind.tracking(point).map_err(VmmError::from)?;
        let mut vm = Self::vm(kvm, point, options(point, cut)?, tracking)?;
        let tracker = vm.take_tracker().ok_or(VmmError::Ring(RingError::Unsupported))?;
        Ok((vm, tracker))
    }

    fn vm(kvm: &Path, point: &Point, options: touch::Options, tracking: Tracking) -> Result<Vm, BenchError> {
        let Point { memory_bytes, vcpus, .. } = *point;
        let mut vm = Vm::build(
            kvm,
            MachineSpec { memory_bytes, vcpus, guest: GuestSpec::Touch(options), nets: Vec::new(), vsock: None },
            tracking,
        )?;
        vm.load()?;
        Ok(vm)
    }

    fn start(vm: Vm, inner: Box<dyn Tracker>, budget_pages: u64) -> Result<Self, BenchError> {
        let (turns, recorded) = (Turns::new(), Recorded::default());
        let tracker = Box::new(TakingTurns { inner, turns: turns.clone() });
        let sink = Box::new(RecordingSink::new(recorded.clone(), turns.clone()));
        let options = EngineOptions {
            budget_pages: usize::try_from(budget_pages).unwrap_or(usize::MAX),
            slots: SLOTS,
            durability: Durability::None,
            compression: Compression::None,
            when_behind: WhenBehind::Wait,
            ..EngineOptions::default()
        };
        let engine = Engine::new(vm.memory().clone(), tracker, sink, Start::Fresh, options)?;
        let protection = Protection { engine, interval: None, base_first: true, share_pages: 0 };
        let running = Running::start(vm, Some(protection), Limits::default(), Stop::default())?;
        Ok(Self { running: Some(running), turns, recorded })
    }

    /// Lets the machine make so many cuts, and returns what the engine says of them.
    fn turn(&mut self, tracker: &'static str, cuts: u64) -> Result<Vec<Commit>, BenchError> {
        let failed = || self.running.as_ref().is_none_or(Running::is_over);
        let found = self.turns.take(cuts, TURN_LIMIT, failed);
        if failed() {
            self.finish()?;
        }
        if found < cuts {
            return Err(BenchError::Stalled { tracker, expected: cuts, found, seconds: TURN_LIMIT.as_secs() });
        }
        let commits = self.recorded.take();
        // The base is in the first turn.
        Ok(commits.into_iter().filter(|commit| !commit.base).collect())
    }

    fn end(mut self) -> Result<(), BenchError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), BenchError> {
        self.turns.end();
        let outcome = self.running.take().map(Running::finish);
        outcome.and_then(|outcome| outcome.error).map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Drop for Lane {
    /// After an error elsewhere: nobody waits for a turn that never comes.
    fn drop(&mut self) {
        let _ = self.finish();
    }
}
