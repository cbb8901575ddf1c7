//! Running a machine, with or without checkpoints.
#![expect(unsafe_code, reason = "a second handle of a vCPU")]

use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};

use super::alarm::Alarm;
use super::carriers::Carriers;
use super::cut::Vcpus;
use super::devices::GuestEnd;
use super::error::{VmmError, kvm, system};
use super::gate::Gate;
use super::guests::GuestSpec;
use super::monitor::{GuestReport, Monitor, Paced};
use super::network::NetworkReport;
use super::rounds;
use super::shared::{Limits, Shared};
use super::stop::Stop;
use super::vcpu::VcpuThread;
use super::vm::Vm;
use crate::epoch::{Engine, EngineLock, JoinError, Report, RolledBack, Sink, SinkReport};
use crate::format::Trigger;
use crate::kvm::duplicate;
use crate::kvm::kick::{self, Kick};
use crate::lock::lock;
use crate::machine::MachineState;
use crate::page::EpochId;
use crate::replica::seed::{SeedError, Seeds};
use crate::restore::{FillReport, OnDemand};

/// How long a guest has for its whole check.
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// An engine for the machine, and when it is to cut besides full rings.
#[derive(Debug)]
pub struct Protection {
    /// The engine.
    pub engine: Engine<MachineState>,
    /// An epoch ends after this time at the latest.
    pub interval: Option<Duration>,
    /// Whether the first cut comes before the guest runs: the base of a new chain.
    pub base_first: bool,
    /// Pages that the VMM may write before an epoch ends.
    pub share_pages: u64,
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What the engine did, where there was one.
    pub report: Option<Report>,
    /// What went over the network, where the machine has network devices.
    pub network: Option<NetworkReport>,
    /// What the guest says.
    pub guest: GuestReport,
    /// How a Linux guest ended its own run, if it did.
    pub end: Option<GuestEnd>,
    /// How long the guest ran, pauses included.
    pub elapsed: Duration,
    /// When the guest was first entered.
    pub first_entry: Option<Instant>,
    /// What was brought on demand, where memory is filled so.
    pub fill: Option<FillReport>,
    /// Why the run ended, unless by its limits or on request.
    pub error: Option<VmmError>,
}

/// A machine whose vCPU threads have been started.
#[derive(Debug)]
pub struct Running {
    pub(super) shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Outlives every access to guest memory.
    filling: Option<OnDemand>,
    late_check: Option<JoinHandle<()>>,
    rounds: Option<JoinHandle<()>>,
    carriers: Carriers,
    interval: Option<Duration>,
    started: Instant,
    passes_at_start: u64,
}

impl Running {
    /// Starts the vCPU threads; with protection whose base comes first, takes it before they enter
    /// the guest. `limits` and `stop` end the run.
    ///
    /// # Errors
    /// [`VmmError`]: threads, or the base epoch.
    pub fn start(vm: Vm, protection: Option<Protection>, limits: Limits, stop: Stop) -> Result<Self, VmmError> {
        let memory = vm.memory().clone();
        let Vm {
            fd,
            vcpus,
            capture,
            spec,
            help,
            filling,
            late_check,
            devices,
            network,
            console_outlet,
            vsock,
            attention,
            kvm_path,
            ..
        } = vm;
        let signal = kick::default_signal();
        kick::install_handler(signal).map_err(system("sigaction for the kick signal"))?;
        let handles = vcpus.iter().map(|vcpu| second_handle(&fd, vcpu).map(Mutex::new)).collect::<Result<Vec<_>, _>>()?;
        let kicks = vcpus.iter().map(|vcpu| Kick::new(vcpu, signal)).collect::<std::io::Result<Vec<_>>>();
        let kicks = kicks.map_err(system("mapping kvm_run"))?;
        let (engine, interval, base_first, share_pages) = match protection {
            Some(protection) => {
                (Some(EngineLock::new(protection.engine)), protection.interval, protection.base_first, protection.share_pages)
            }
            None => (None, None, false, 0),
        };
        let shared = Arc::new(Shared {
            vcpus: Vcpus { gate: Gate::closed(kicks, help), vm: fd, capture, handles, rewinder: Mutex::default(), devices },
            monitor: Monitor::new(memory.clone(), &spec),
            guest_period: spec.guest.every(),
            is_linux: matches!(spec.guest, GuestSpec::Linux(_)),
            memory,
            engine,
            share_pages,
            limits,
            epochs: AtomicU64::new(0),
            last_cut: Mutex::new(Instant::now()),
            first_entry: Mutex::new(None),
            entered: AtomicBool::new(false),
            error: Mutex::new(None),
            stop,
            rounds: Alarm::default(),
            log_is_late: AtomicBool::new(false),
            kvm_path,
        });
        if let Some(filling) = &filling {
            let shared = shared.clone();
            filling.on_failure(move |error| shared.fail(error.into()));
        }
        let passes_at_start = shared.monitor.read().0.passes;
        let threads = Vec::with_capacity(vcpus.len());
        let mut running = Self {
            shared: shared.clone(),
            threads,
            filling,
            late_check: None,
            rounds: None,
            carriers: Carriers::default(),
            interval,
            started: Instant::now(),
            passes_at_start,
        };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let shared = shared.clone();
            let thread = Builder::new().name(format!("vcpu-{index}")).spawn(move || {
                let _leaving = Leaving { shared: &shared, index };
                if let Err(error) = VcpuThread::new(&shared, index, vcpu).run() {
                    shared.fail(error);
                }
            });
            match thread {
                Ok(thread) => running.threads.push(thread),
                Err(source) => {
                    running.halt();
                    return Err(VmmError::System { step: "starting a vCPU's thread", source });
                }
            }
        }
        if shared.vcpus.devices.as_ref().is_some_and(|devices| devices.end().is_some()) {
            // A checkpoint of a machine that was switched off.
            shared.stop.ask();
        }
        if base_first {
            shared.cut(Trigger::Request, None);
        } else {
            shared.vcpus.gate.open();
        }
        running.started = Instant::now();
        running.carriers =
            Carriers::start(&shared, network, console_outlet, vsock, attention).map_err(system("starting a thread"))?;
        if shared.engine.is_some() {
            let shared = shared.clone();
            let thread = Builder::new().name("slackwater-round".to_owned()).spawn(move || rounds::run(&shared));
            running.rounds = Some(thread.map_err(system("starting a thread"))?);
        }
        if let Some(check) = late_check {
            let thread = Builder::new().name("slackwater-check".to_owned()).spawn(move || check.run());
            running.late_check = Some(thread.map_err(system("starting a thread"))?);
        }
        Ok(running)
    }

    /// Lets the guest run until a limit is reached, it is asked to stop, or something fails.
    pub fn supervise(&mut self) {
        self.supervise_to(self.shared.limits.time.map(|time| self.started + time));
    }

    /// As [`supervise`](Self::supervise), but until `end` in place of the limit of time.
    pub fn supervise_until(&mut self, end: Instant) {
        self.supervise_to(Some(end));
    }

    fn supervise_to(&self, end: Option<Instant>) {
        let shared = &self.shared;
        let over = || shared.stop.is_asked() || shared.vcpus.gate.is_halted();
        while !over() && end.is_none_or(|end| Instant::now() < end) {
            let due = || {
                let interval = self.interval.map(|interval| *lock(&shared.last_cut) + interval);
                interval.into_iter().chain(shared.output_due()).min()
            };
            let is_due = || due().is_some_and(|due| due <= Instant::now());
            if !is_due() {
                let next = end.into_iter().chain(due()).min();
                // An output that came meanwhile may not wait so long.
                let sooner = || shared.output_due().is_some_and(|due| next.is_none_or(|next| due < next));
                shared.stop.wait_until(next, || over() || sooner());
                continue;
            }
            // What is left by now is the cut's.
            shared.round_before_cut();
            if shared.vcpus.gate.lead() {
                // Another cut may have come first.
                if !is_due() {
                    shared.vcpus.gate.open();
                    continue;
                }
                shared.cut(Trigger::Interval, None);
                if is_due() {
                    // Storage is behind, and nothing was cut: try again in a moment.
                    let interval = self.interval.unwrap_or_default();
                    let moment = (interval / 8).clamp(Duration::from_micros(200), Duration::from_millis(10));
                    shared.stop.wait_until(Some(Instant::now() + moment), over);
                }
            }
        }
    }

    /// Asks the guest for its whole check, and waits for the answer; a guest that can't check
    /// itself is not asked.
    ///
    /// # Errors
    /// [`VmmError::CheckTimeout`]. What the check finds ends the run, and is in its outcome.
    pub fn check(&self) -> Result<(), VmmError> {
        let shared = &self.shared;
        shared.monitor.want_checks();
        let over = || shared.monitor.all_checked() || shared.vcpus.gate.is_halted() || shared.stop.is_asked();
        shared.stop.wait_until(Some(Instant::now() + CHECK_LIMIT), over);
        if over() { Ok(()) } else { Err(VmmError::CheckTimeout { seconds: CHECK_LIMIT.as_secs() }) }
    }

    /// When the guest was first entered; none before that.
    #[must_use]
    pub fn first_entry(&self) -> Option<Instant> {
        *lock(&self.shared.first_entry)
    }

    /// The guest's passes before this run.
    #[must_use]
    pub const fn passes_at_start(&self) -> u64 {
        self.passes_at_start
    }

    /// What the guest says of itself now.
    #[must_use]
    pub fn guest(&self) -> GuestReport {
        self.shared.monitor.read().0
    }

    /// Whether the guest was halted: by its limits, by whoever stopped it, or by an error, which
    /// [`finish`](Self::finish) says.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.shared.vcpus.gate.is_halted()
    }

    /// What a paced guest did so far in this run.
    #[must_use]
    pub fn paced(&self) -> Paced {
        self.shared.monitor.paced()
    }

    /// What was brought on demand so far, where memory is filled so.
    #[must_use]
    pub fn fill_report(&self) -> Option<FillReport> {
        self.filling.as_ref().map(OnDemand::report)
    }

    /// What the engine did so far.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.shared.engine.as_ref().map(|engine| engine.lock().report())
    }

    /// Takes an epoch now, and returns once it is in the chain (durable, where the mode promises
    /// that). Returns whether it is: with
    /// [`OnStorageError::Continue`](crate::epoch::OnStorageError::Continue) the guest runs on
    /// although it may not be.
    ///
    /// # Errors
    /// Whatever ended the run.
    pub fn request(&self) -> Result<bool, VmmError> {
        self.shared.request()
    }

    /// Puts the guest back to its last epoch, in memory ([`Engine::rollback`]). Returns `None`
    /// without an engine, or once the guest was halted.
    ///
    /// # Errors
    /// [`VmmError::Engine`]. Where the guest could not go on, it was halted.
    pub fn rollback(&self) -> Result<Option<RolledBack>, VmmError> {
        if self.shared.vcpus.gate.lead() { Ok(self.shared.rollback()?) } else { Ok(None) }
    }

    /// The machine, for threads that bring its epochs elsewhere. All of them have to be gone before
    /// [`finish`](Self::finish).
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Takes the last epoch, ends all threads and closes the chain.
    #[must_use]
    pub fn finish(mut self) -> Outcome {
        if self.shared.engine.is_some() && self.shared.vcpus.gate.lead() {
            self.shared.cut(Trigger::Final, None);
        }
        let elapsed = self.started.elapsed();
        self.halt();
        self.shared.rounds.end();
        self.carriers.end_input();
        if let Some(thread) = self.rounds.take() {
            // It tells what fails, and panics with an engine that nobody trusts then.
            let _ = thread.join();
        }
        for (vcpu, thread) in self.threads.drain(..).enumerate() {
            if thread.join().is_err() {
                self.shared.fail(VmmError::Panicked { vcpu });
            }
        }
        if let Some(check) = self.late_check.take() {
            // It only reports what it finds.
            let _ = check.join();
        }
        let (guest, inconsistency) = self.shared.monitor.read();
        let missed = self.filling.as_ref().and_then(OnDemand::forget_on_failure);
        let mut error = lock(&self.shared.error).take().or(missed.map(VmmError::from));
        error = error.or(inconsistency.map(VmmError::Inconsistent));
        let first_entry = self.first_entry();
        let end = self.shared.vcpus.devices.as_ref().and_then(|devices| devices.end());
        // The threads are gone, and with them all other holders.
        let engine = Arc::into_inner(self.shared).and_then(|shared| shared.engine);
        let report = engine.map(|engine| {
            let finished = engine.into_inner().finish();
            if let (None, Some(failed)) = (&error, finished.error) {
                error = Some(failed.into());
            }
            finished.report
        });
        // All that is ever released is by now.
        let network = self.carriers.finish();
        let fill = self.filling.map(OnDemand::finish);
        let ok = guest.ok && !matches!(error, Some(VmmError::Inconsistent(_)));
        Outcome { report, network, guest: GuestReport { ok, ..guest }, end, elapsed, first_entry, fill, error }
    }

    fn halt(&self) {
        self.shared.vcpus.gate.halt();
        self.shared.vcpus.gate.open();
    }
}

/// A machine that runs, for threads that bring its epochs elsewhere.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Halts the guest for good: the run ends with this error.
    pub fn fail(&self, error: VmmError) {
        self.0.fail(error);
    }

    /// Halts the guest for good: the run ends in order, without another epoch.
    pub fn end(&self) {
        self.0.vcpus.gate.halt();
        self.0.unpark();
    }

    /// Takes an epoch after which the guest stays parked, until [`unpark`](Self::unpark) or
    /// [`end`](Self::end), and returns it. Whoever takes other epochs waits meanwhile. None, and
    /// the guest is not parked, where it was halted or takes no epochs.
    #[must_use]
    pub fn park(&self) -> Option<EpochId> {
        self.0.park()
    }

    /// The guest runs on that was parked.
    pub fn unpark(&self) {
        self.0.unpark();
    }

    /// As [`Running::request`].
    ///
    /// # Errors
    /// As there.
    pub fn request(&self) -> Result<bool, VmmError> {
        self.0.request()
    }

    /// As [`Running::report`].
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.0.engine.as_ref().map(|engine| engine.lock().report())
    }

    /// The newest epoch whose outputs may leave.
    #[must_use]
    pub fn released(&self) -> EpochId {
        self.0.engine.as_ref().map_or(EpochId::NONE, |engine| engine.lock().released())
    }

    /// Where each sink of the engine is.
    #[must_use]
    pub fn sinks(&self) -> Vec<SinkReport> {
        self.0.engine.as_ref().map_or_else(Vec::new, |engine| engine.lock().sinks())
    }

    /// As [`Running::guest`].
    #[must_use]
    pub fn guest(&self) -> GuestReport {
        self.0.monitor.read().0
    }

    fn engine(&self) -> Result<&EngineLock<MachineState>, SeedError> {
        Ok(self.0.engine.as_ref().ok_or("the machine takes no checkpoints")?)
    }
}

impl Seeds for Handle {
    fn attach(&self, sink: Box<dyn Sink>) -> Result<usize, SeedError> {
        Ok(self.engine()?.lock().attach(sink)?)
    }

    fn join(&self, sink: usize) -> Result<bool, SeedError> {
        match self.engine()?.lock().join(sink) {
            Ok(()) => Ok(true),
            Err(JoinError::Busy) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn copy_base(&self) -> Result<bool, SeedError> {
        Ok(self.engine()?.lock().copy_base()?)
    }

    fn is_over(&self) -> bool {
        self.0.vcpus.gate.is_halted()
    }
}

/// Another handle of `vcpu`, with its own mapping of `kvm_run`.
fn second_handle(vm: &VmFd, vcpu: &VcpuFd) -> Result<VcpuFd, VmmError> {
    let fd = duplicate(vcpu).map_err(system("duplicating a vCPU's descriptor"))?;
    // SAFETY: the descriptor is a vCPU's of this VM, and is handed over.
    unsafe { vm.create_vcpu_from_rawfd(fd.into_raw_fd()) }.map_err(kvm("mapping kvm_run"))
}

/// Tells the others that a vCPU's thread ends, however it does.
struct Leaving<'s> {
    shared: &'s Shared,
    index: usize,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.shared.vcpus.gate.leave(self.index);
        self.shared.announce();
    }
}
