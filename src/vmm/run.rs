//! Running a machine, with or without checkpoints.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};

use super::error::{VmmError, system};
use super::gate::Gate;
use super::monitor::{GuestReport, Monitor};
use super::vcpu::{Cutting, VcpuThread};
use super::vm::{GuestSpec, Vm};
use crate::epoch::{Cut, Engine, Report};
use crate::format::Trigger;
use crate::kvm::kick::{self, Kick};
use crate::machine::{CaptureSpec, MachineState};
use crate::memory::GuestMemory;

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

/// When a run ends by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After this time.
    pub time: Option<Duration>,
    /// After so many epochs, the base included. The guest does not run on after the last.
    pub epochs: Option<u64>,
}

/// Ends a run from elsewhere: a signal handler's thread, say.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<(AtomicBool, Mutex<()>, Condvar)>);

impl Stop {
    /// Asks for the end.
    pub fn ask(&self) {
        self.0.0.store(true, Ordering::SeqCst);
        self.announce();
    }

    /// Whether it was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.0.load(Ordering::SeqCst)
    }

    fn announce(&self) {
        drop(self.guard());
        self.0.2.notify_all();
    }

    fn guard(&self) -> MutexGuard<'_, ()> {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `deadline`, or until `condition` holds; whoever changes that calls `announce`.
    fn wait_until(&self, deadline: Option<Instant>, condition: impl Fn() -> bool) {
        let mut guard = self.guard();
        while !condition() {
            guard = match deadline {
                None => self.0.2.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    self.0.2.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What the engine did, where there was one.
    pub report: Option<Report>,
    /// What the guest says.
    pub guest: GuestReport,
    /// How long the guest ran, pauses included.
    pub elapsed: Duration,
    /// When the guest was first entered.
    pub first_entry: Option<Instant>,
    /// Why the run ended, unless by its limits or on request.
    pub error: Option<VmmError>,
}

/// What all threads of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) gate: Gate,
    pub(super) fd: Arc<VmFd>,
    pub(super) capture: CaptureSpec,
    pub(super) vcpus: usize,
    pub(super) monitor: Monitor,
    pub(super) guest_period: Duration,
    memory: GuestMemory,
    engine: Option<Mutex<Engine<MachineState>>>,
    share_pages: u64,
    limits: Limits,
    epochs: AtomicU64,
    last_cut: Mutex<Instant>,
    first_entry: Mutex<Option<Instant>>,
    entered: AtomicBool,
    error: Mutex<Option<VmmError>>,
    stop: Stop,
}

impl Shared {
    pub(super) fn announce(&self) {
        self.stop.announce();
    }

    pub(super) fn note_first_entry(&self) {
        if !self.entered.load(Ordering::Relaxed) && !self.entered.swap(true, Ordering::AcqRel) {
            *lock(&self.first_entry) = Some(Instant::now());
        }
    }

    pub(super) fn vmm_share_is_used(&self) -> bool {
        let written = self.memory.written();
        self.engine.is_some() && !written.is_empty() && written.len() as u64 >= self.share_pages
    }

    /// Leads a cut; the caller has closed the gate. It is open afterwards.
    pub(super) fn cut(&self, trigger: Trigger, me: Option<(usize, &VcpuFd)>) {
        let taken = self.epochs.load(Ordering::Acquire);
        let last = trigger == Trigger::Final || self.limits.epochs.is_some_and(|limit| taken + 1 >= limit);
        let mut cutting = Cutting::new(self, me, last);
        let Some(engine) = &self.engine else { return };
        let outcome = lock(engine).cut(&mut cutting, trigger);
        drop(cutting);
        match outcome {
            Ok(Cut::Taken { .. }) => {
                *lock(&self.last_cut) = Instant::now();
                self.epochs.fetch_add(1, Ordering::AcqRel);
            }
            Ok(Cut::Lengthened { .. } | Cut::Skipped) => return,
            Err(error) => self.fail(error.into()),
        }
        self.announce();
    }

    /// Ends the run because of `error`; the first one counts.
    fn fail(&self, error: VmmError) {
        lock(&self.error).get_or_insert(error);
        self.gate.halt();
        self.announce();
    }
}

/// A machine whose vCPU threads have been started.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    interval: Option<Duration>,
    started: Instant,
    passes_at_start: u64,
}

impl Running {
    /// Starts the vCPU threads; with protection whose base comes first, takes it before they enter the guest. `limits` and `stop` end the
    /// run.
    ///
    /// # Errors
    /// [`VmmError`]: threads, or the base epoch.
    pub fn start(vm: Vm, protection: Option<Protection>, limits: Limits, stop: Stop) -> Result<Self, VmmError> {
        let memory = vm.memory().clone();
        let Vm { fd, vcpus, capture, spec, .. } = vm;
        let signal = kick::default_signal();
        kick::install_handler(signal).map_err(system("sigaction for the kick signal"))?;
        let kicks = vcpus.iter().map(|vcpu| Kick::new(vcpu, signal)).collect::<std::io::Result<Vec<_>>>();
        let kicks = kicks.map_err(system("mapping kvm_run"))?;
        let (engine, interval, base_first, share_pages) = match protection {
            Some(protection) => {
                (Some(Mutex::new(protection.engine)), protection.interval, protection.base_first, protection.share_pages)
            }
            None => (None, None, false, 0),
        };
        let GuestSpec::Churn(options) = &spec.guest;
        let shared = Arc::new(Shared {
            gate: Gate::closed(kicks),
            fd,
            capture,
            vcpus: vcpus.len(),
            monitor: Monitor::new(memory.clone(), spec.vcpus),
            guest_period: options.every(),
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
        });
        let passes_at_start = shared.monitor.read().0.passes;
        let threads = Vec::with_capacity(vcpus.len());
        let mut running = Self { shared: shared.clone(), threads, interval, started: Instant::now(), passes_at_start };
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
        if base_first {
            shared.cut(Trigger::Request, None);
        } else {
            shared.gate.open();
        }
        running.started = Instant::now();
        Ok(running)
    }

    /// Lets the guest run until a limit is reached, it is asked to stop, or something fails.
    pub fn supervise(&mut self) {
        let shared = &self.shared;
        let end = shared.limits.time.map(|time| self.started + time);
        let over = || shared.stop.is_asked() || shared.gate.is_halted();
        while !over() && end.is_none_or(|end| Instant::now() < end) {
            let Some(interval) = self.interval else {
                shared.stop.wait_until(end, over);
                continue;
            };
            let due = || *lock(&shared.last_cut) + interval;
            if Instant::now() < due() {
                shared.stop.wait_until(Some(end.map_or(due(), |end| end.min(due()))), over);
            } else if shared.gate.lead() {
                // Another cut may have come first.
                if Instant::now() < due() {
                    shared.gate.open();
                    continue;
                }
                shared.cut(Trigger::Interval, None);
                if due() <= Instant::now() {
                    // Storage is behind, and nothing was cut: try again in a moment.
                    let moment = (interval / 8).clamp(Duration::from_micros(200), Duration::from_millis(10));
                    shared.stop.wait_until(Some(Instant::now() + moment), over);
                }
            }
        }
    }

    /// Asks the guest for its whole check, and waits for the answer.
    ///
    /// # Errors
    /// [`VmmError::CheckTimeout`]. What the check finds ends the run, and is in its outcome.
    pub fn check(&self) -> Result<(), VmmError> {
        let shared = &self.shared;
        shared.monitor.want_checks();
        let over = || shared.monitor.all_checked() || shared.gate.is_halted() || shared.stop.is_asked();
        shared.stop.wait_until(Some(Instant::now() + CHECK_LIMIT), over);
        if over() { Ok(()) } else { Err(VmmError::CheckTimeout { seconds: CHECK_LIMIT.as_secs() }) }
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

    /// What the engine did so far.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.shared.engine.as_ref().map(|engine| lock(engine).report())
    }

    /// Takes an epoch now, and returns once it is in the chain (durable, where the mode promises that).
    ///
    /// # Errors
    /// Whatever ended the run.
    pub fn request(&self) -> Result<(), VmmError> {
        if self.shared.gate.lead() {
            self.shared.cut(Trigger::Request, None);
        }
        if let Some(engine) = &self.shared.engine {
            // Where this fails, the next cut says why.
            let _ = lock(engine).flush();
        }
        match lock(&self.shared.error).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Takes the last epoch, ends all threads and closes the chain.
    #[must_use]
    pub fn finish(mut self) -> Outcome {
        if self.shared.engine.is_some() && self.shared.gate.lead() {
            self.shared.cut(Trigger::Final, None);
        }
        let elapsed = self.started.elapsed();
        self.halt();
        for (vcpu, thread) in self.threads.drain(..).enumerate() {
            if thread.join().is_err() {
                self.shared.fail(VmmError::Panicked { vcpu });
            }
        }
        let (guest, inconsistency) = self.shared.monitor.read();
        let mut error = lock(&self.shared.error).take().or(inconsistency.map(VmmError::Inconsistent));
        let first_entry = *lock(&self.shared.first_entry);
        // The threads are gone, and with them all other holders.
        let engine = Arc::into_inner(self.shared).and_then(|shared| shared.engine);
        let report = engine.map(|engine| {
            let finished = engine.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
            if let (None, Some(failed)) = (&error, finished.error) {
                error = Some(failed.into());
            }
            finished.report
        });
        let ok = guest.ok && !matches!(error, Some(VmmError::Inconsistent(_)));
        Outcome { report, guest: GuestReport { ok, ..guest }, elapsed, first_entry, error }
    }

    fn halt(&self) {
        self.shared.gate.halt();
        self.shared.gate.open();
    }
}

/// Tells the others that a vCPU's thread ends, however it does.
struct Leaving<'s> {
    shared: &'s Shared,
    index: usize,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.shared.gate.leave(self.index);
        self.shared.announce();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
