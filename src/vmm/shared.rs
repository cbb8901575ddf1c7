//! What all threads of a run share.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::alarm::Alarm;
use super::cut::{After, Cutting, Vcpus};
use super::devices::{Devices, Wish};
use super::error::VmmError;
use super::monitor::Monitor;
use super::stop::Stop;
use crate::epoch::{Cut, EngineError, EngineLock, FullRing, NextRound, Place, RolledBack, Round};
use crate::format::Trigger;
use crate::lock::lock;
use crate::machine::MachineState;
use crate::memory::GuestMemory;
use crate::page::EpochId;

/// When a run ends by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After this time.
    pub time: Option<Duration>,
    /// After so many epochs, the base included. The guest does not run on after the last.
    pub epochs: Option<u64>,
}

/// What all threads of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) vcpus: Vcpus,
    pub(super) monitor: Monitor,
    pub(super) guest_period: Duration,
    pub(super) is_linux: bool,
    pub(super) memory: GuestMemory,
    pub(super) engine: Option<EngineLock<MachineState>>,
    pub(super) share_pages: u64,
    pub(super) limits: Limits,
    pub(super) epochs: AtomicU64,
    pub(super) last_cut: Mutex<Instant>,
    pub(super) first_entry: Mutex<Option<Instant>>,
    pub(super) entered: AtomicBool,
    pub(super) error: Mutex<Option<VmmError>>,
    pub(super) stop: Stop,
    /// For the thread of rounds.
    pub(super) rounds: Alarm,
    /// Processors keep a log of their own here (PML), which is in the ring only after an exit.
    pub(super) log_is_late: AtomicBool,
    pub(super) kvm_path: PathBuf,
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

    /// Pages that the VMM may write between two cuts, where there is a bound.
    pub(super) fn room_pages(&self) -> Option<u64> {
        self.engine.is_some().then_some(self.share_pages)
    }

    /// The devices that answer at ports. Those of built-in guests are the VMM's own.
    pub(super) fn devices_at_ports(&self) -> Option<&Devices> {
        self.vcpus.devices.as_deref().filter(|_| self.is_linux)
    }

    /// When an output wants the epoch in hand to end.
    pub(super) fn output_due(&self) -> Option<Instant> {
        self.vcpus.devices.as_ref().filter(|_| self.engine.is_some()).and_then(|devices| devices.cut_due())
    }

    pub(super) fn output_is_due(&self) -> bool {
        self.output_due().is_some_and(|due| due <= Instant::now())
    }

    /// Attends to the devices on a thread that is no vCPU's: packets came in, or there is room for
    /// those that go out.
    pub(super) fn attend_beside(&self) {
        let Some(devices) = &self.vcpus.devices else { return };
        devices.call();
        // Whoever has closed the gate has every vCPU look after the devices before it runs on.
        while devices.is_busy() && !self.vcpus.gate.is_closed() && !self.vcpus.gate.is_halted() {
            match devices.attend(self.room_pages(), &|| self.vcpus.gate.is_closed()) {
                Ok(Wish::Nothing) => {}
                Ok(Wish::Epoch) => self.announce(),
                Ok(Wish::Room) => {
                    if !self.vcpus.gate.try_lead() {
                        return;
                    }
                    self.cut(Trigger::RingFull, None);
                }
                Ok(Wish::End) => return self.stop.ask(),
                Err(error) => return self.fail(error.into()),
            }
        }
    }

    pub(super) fn vmm_share_is_used(&self) -> bool {
        let written = self.memory.written();
        self.engine.is_some() && !written.is_empty() && written.len() as u64 >= self.share_pages
    }

    /// Leads a cut; the caller has closed the gate. It is open afterwards.
    pub(super) fn cut(&self, trigger: Trigger, me: Option<usize>) {
        // The guest runs again before a cut is over, and the next cut may begin: epochs are counted
        // under the engine's lock.
        let mut engine = self.engine.as_ref().map(EngineLock::lock);
        let left = self.limits.epochs.map(|limit| limit.saturating_sub(self.epochs.load(Ordering::Acquire)));
        let last = trigger == Trigger::Final || left.is_some_and(|left| left <= 1);
        let mut cutting = Cutting::new(&self.vcpus, me, if last { After::Halt } else { After::Run });
        if left == Some(0) && self.vcpus.gate.is_halted() {
            return;
        }
        let Some(engine_held) = &mut engine else { return };
        // The last one is taken whatever the storage says: the guest does not run on to another.
        let outcome = engine_held.cut(&mut cutting, if last { Trigger::Final } else { trigger });
        drop(cutting);
        if let Ok(Cut::Taken { epoch, .. }) = outcome {
            self.note_taken(epoch);
        }
        drop(engine);
        match outcome {
            Ok(Cut::Taken { .. }) => {}
            Ok(Cut::Lengthened { .. } | Cut::Skipped) => return,
            Err(error) => self.fail(error.into()),
        }
        self.announce();
    }

    /// An epoch was cut, and the engine is locked.
    fn note_taken(&self, epoch: EpochId) {
        if let Some(devices) = &self.vcpus.devices {
            devices.note_taken(epoch);
        }
        *lock(&self.last_cut) = Instant::now();
        self.epochs.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes an epoch after which the guest stays parked, and returns it. None, and nobody is
    /// parked, where the guest was halted or takes no epochs.
    pub(super) fn park(&self) -> Option<EpochId> {
        let engine = self.engine.as_ref()?;
        if !self.vcpus.gate.lead() {
            return None;
        }
        let mut engine = engine.lock();
        let mut cutting = Cutting::new(&self.vcpus, None, After::Park);
        let outcome = engine.cut(&mut cutting, Trigger::Request);
        drop(cutting);
        let taken = match outcome {
            Ok(Cut::Taken { epoch, .. }) => {
                self.note_taken(epoch);
                Ok(Some(epoch))
            }
            Ok(Cut::Lengthened { .. } | Cut::Skipped) => Ok(None),
            Err(error) => Err(error),
        };
        drop(engine);
        let taken = taken.unwrap_or_else(|error| {
            self.fail(error.into());
            None
        });
        if taken.is_none() {
            self.unpark();
        }
        taken
    }

    /// The guest runs on that was parked, unless it was halted.
    pub(super) fn unpark(&self) {
        self.vcpus.gate.open();
        self.announce();
    }

    /// Takes an epoch now: see [`Running::request`](super::Running::request).
    pub(super) fn request(&self) -> Result<bool, VmmError> {
        if self.vcpus.gate.lead() {
            self.cut(Trigger::Request, None);
        }
        let stored = self.engine.as_ref().is_some_and(|engine| engine.lock().flush());
        lock(&self.error).take().map_or(Ok(stored), Err)
    }

    /// The ring of a vCPU is full, and its thread asks whether it may go on. Whoever leads a cut
    /// waits for this thread to park, perhaps with the engine locked.
    pub(super) fn ring_full(&self) -> FullRing {
        let Some(engine) = &self.engine else { return FullRing::Cut };
        let Some(mut engine) = engine.lock_unless(|| self.vcpus.gate.is_closed()) else { return FullRing::GoOn };
        let full = engine.ring_full();
        drop(engine);
        if full == FullRing::GoOn {
            self.rounds.wake();
        }
        full
    }

    /// A round, and the cut that it may find to be due. Says when the next one is.
    pub(super) fn round(&self, place: Place) -> Option<Duration> {
        match self.engine.as_ref()?.round(place) {
            Ok(Round { next: NextRound::After(time), .. }) => Some(time),
            Ok(Round { next: NextRound::Never, .. }) => None,
            Ok(Round { next: NextRound::Cut, .. }) => {
                if self.vcpus.gate.try_lead() {
                    self.cut(Trigger::RingFull, None);
                }
                Some(Duration::ZERO)
            }
            // Whoever halted it says why.
            Err(EngineError::Halted) => None,
            Err(error) => {
                self.fail(error.into());
                None
            }
        }
    }

    /// The round before a cut whose time has come: what it leaves is the cut's.
    pub(super) fn round_before_cut(&self) {
        let wants = || self.engine.as_ref().is_some_and(|engine| engine.lock().wants_round(Place::BeforeCut));
        if self.log_is_late.load(Ordering::Relaxed) && wants() {
            self.vcpus.gate.call_out();
        }
        self.round(Place::BeforeCut);
    }

    /// Whether the engine has learnt something. Where it failed, the run is over.
    pub(super) fn learnt(&self, learnt: Result<bool, EngineError>) -> bool {
        learnt.unwrap_or_else(|error| {
            self.fail(error.into());
            false
        })
    }

    /// Leads a rollback; the caller has closed the gate. It is open afterwards.
    pub(super) fn rollback(&self) -> Result<Option<RolledBack>, EngineError> {
        let mut engine = self.engine.as_ref().map(EngineLock::lock);
        let mut cutting = Cutting::new(&self.vcpus, None, After::Run);
        match &mut engine {
            Some(engine) if !self.vcpus.gate.is_halted() => {
                let rolled_back = engine.rollback(&mut cutting)?;
                drop(cutting);
                if let Some(devices) = &self.vcpus.devices {
                    devices.note_taken(rolled_back.epoch);
                }
                Ok(Some(rolled_back))
            }
            _ => Ok(None),
        }
    }

    /// Ends the run because of `error`; the first one counts.
    pub(super) fn fail(&self, error: VmmError) {
        lock(&self.error).get_or_insert(error);
        self.vcpus.gate.halt();
        self.announce();
    }
}
