//! Where vCPU threads meet for a cut.
//!
//! One thread leads a cut: a vCPU's own after its exit, or any other. It closes the gate, gets
//! everybody else out of the guest, has every vCPU's state read, at the same time by those threads
//! that are awake, and opens the gate again. Waiting is spinning for a moment and sleeping then: a
//! cut takes less time than waking a thread.
//!
//! Why no vCPU runs while the leader thinks that all are parked: a vCPU says `RUNNING` and *then*
//! looks at the gate, before each entry; the leader closes the gate and *then* looks at the vCPU.
//! All four are sequentially consistent, so either the vCPU sees the closed gate and does not
//! enter, or the leader sees `RUNNING`, kicks it (which ends the entry it may be making) and waits
//! for it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::kvm::kick::Kick;
use crate::kvm::ring::ResetHelp;
use crate::lock::lock;
use crate::machine::{StateError, VcpuState};

const RUNNING: u32 = 0;
const PARKED: u32 = 1;
/// The vCPU's thread has ended.
const GONE: u32 = 2;

/// No order, or one that was carried out.
const NO_ORDER: u32 = 0;
/// The vCPU is to be captured, by its own thread or by the leader: whoever claims the order first.
const CAPTURE: u32 = 1;
/// The vCPU's own thread has claimed the order.
const CLAIMED: u32 = 2;
/// It has carried it out.
const CAPTURED: u32 = 3;

/// How long a leader spins before it sleeps: about a kick's way to another processor and back. Not
/// longer: whoever it waits for may need this very processor.
const LEADER_SPIN: Duration = Duration::from_micros(30);
/// How long a parked thread spins before it sleeps: about a small cut, and a kick's way to another
/// core and back.
const SPIN: Duration = Duration::from_micros(100);

/// A vCPU's place at the gate.
#[derive(Debug)]
struct Seat {
    state: AtomicU32,
    order: AtomicU32,
    kick: Kick,
    captured: Mutex<Captured>,
}

#[derive(Debug)]
struct Captured {
    state: VcpuState,
    outcome: Result<(), StateError>,
}

impl Seat {
    /// Claims the order to capture, if there is one that nobody has claimed.
    fn take_order(&self, now: u32) -> bool {
        self.order.compare_exchange(CAPTURE, now, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// The gate of one VM.
#[derive(Debug)]
pub(super) struct Gate {
    seats: Vec<Seat>,
    closed: AtomicBool,
    halted: AtomicBool,
    /// Spinning only helps where the others have a processor of their own.
    spin: Duration,
    /// What parked threads that are awake can help with.
    help: Option<ResetHelp>,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

/// A vCPU could not be captured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum GateError {
    #[error("capturing vCPU {vcpu}")]
    Capture {
        vcpu: usize,
        #[source]
        source: StateError,
    },
    #[error("the thread of vCPU {vcpu} has ended")]
    Gone { vcpu: usize },
    #[error("the guest was halted")]
    Halted,
}

impl Gate {
    /// A closed gate: threads that come park, until a leader opens it.
    pub(super) fn closed(kicks: Vec<Kick>, help: Option<ResetHelp>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let spin = if kicks.len() <= cpus { SPIN } else { Duration::ZERO };
        let seats = kicks.into_iter().zip(0u32..).map(|(kick, index)| Seat {
            state: AtomicU32::new(RUNNING),
            order: AtomicU32::new(NO_ORDER),
            kick,
            captured: Mutex::new(Captured { state: VcpuState::new(index), outcome: Ok(()) }),
        });
        Self {
            seats: seats.collect(),
            closed: AtomicBool::new(true),
            halted: AtomicBool::new(false),
            spin,
            help,
            sleepers: AtomicU32::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// Begins to lead a cut, unless another does.
    pub(super) fn try_lead(&self) -> bool {
        !self.closed.swap(true, Ordering::SeqCst)
    }

    /// Begins to lead a cut as soon as nobody else does. Not for vCPU threads, which park instead.
    /// False once the guest was halted.
    pub(super) fn lead(&self) -> bool {
        loop {
            if self.is_halted() {
                return false;
            }
            if self.try_lead() {
                return true;
            }
            self.wait_until(SPIN, || !self.is_closed() || self.is_halted());
        }
    }

    /// For the leader: waits until every vCPU but `me` is out of the guest, its exits complete.
    pub(super) fn park_others(&self, me: Option<usize>) {
        let others = || self.seats.iter().enumerate().filter(move |(index, _)| Some(*index) != me).map(|(_, seat)| seat);
        for seat in others() {
            if seat.state.load(Ordering::SeqCst) == RUNNING {
                seat.kick.kick();
            }
        }
        // A kick does not end the sleep of a vCPU that rests.
        self.announce();
        self.wait_until(LEADER_SPIN, || others().all(|seat| seat.state.load(Ordering::SeqCst) != RUNNING));
    }

    /// Has every vCPU that runs leave the guest once; each enters again by itself. They are waited
    /// for, but not for long: nothing depends on it.
    pub(super) fn call_out(&self) {
        let runs = |seat: &&Seat| seat.state.load(Ordering::SeqCst) == RUNNING;
        self.seats.iter().filter(runs).for_each(|seat| seat.kick.kick());
        self.spin_until(LEADER_SPIN, || self.seats.iter().filter(runs).all(|seat| !seat.kick.is_pending()));
    }

    /// For the leader, all others being parked: captures every vCPU into its place in `into`, with
    /// `capture`. A thread that is on the lookout captures its own vCPU while the leader captures
    /// `me`; for one that sleeps the leader does it: waking it would take longer.
    pub(super) fn capture(
        &self,
        me: Option<usize>,
        into: &mut [VcpuState],
        capture: impl Fn(usize, &mut VcpuState) -> Result<(), StateError>,
    ) -> Result<(), GateError> {
        let capture = |vcpu, state: &mut _| capture(vcpu, state).map_err(|source| GateError::Capture { vcpu, source });
        for (_, seat) in self.seats.iter().enumerate().filter(|(vcpu, _)| Some(*vcpu) != me) {
            seat.order.store(CAPTURE, Ordering::SeqCst);
        }
        let own = me.and_then(|vcpu| into.get_mut(vcpu).map(|state| capture(vcpu, state)));
        let mut result = own.unwrap_or(Ok(()));
        for ((vcpu, seat), state) in self.seats.iter().enumerate().zip(into).filter(|((vcpu, _), _)| Some(*vcpu) != me) {
            if seat.state.load(Ordering::SeqCst) == PARKED && seat.take_order(NO_ORDER) {
                if result.is_ok() {
                    result = capture(vcpu, state);
                }
                continue;
            }
            self.wait_until(LEADER_SPIN, || {
                seat.order.load(Ordering::SeqCst) == CAPTURED || seat.state.load(Ordering::SeqCst) == GONE || self.is_halted()
            });
            let order = seat.order.swap(NO_ORDER, Ordering::SeqCst);
            if result.is_err() {
                continue;
            }
            if order != CAPTURED {
                let gone = seat.state.load(Ordering::SeqCst) == GONE;
                result = Err(if gone { GateError::Gone { vcpu } } else { GateError::Halted });
                continue;
            }
            let mut captured = lock(&seat.captured);
            result = std::mem::replace(&mut captured.outcome, Ok(())).map_err(|source| GateError::Capture { vcpu, source });
            std::mem::swap(state, &mut captured.state);
        }
        result
    }

    /// For the leader: the cut is over.
    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.announce();
    }

    /// Ends all vCPU threads, now and for good. From any thread, at any time.
    pub(super) fn halt(&self) {
        self.halted.store(true, Ordering::SeqCst);
        self.announce();
        for seat in &self.seats {
            if seat.state.load(Ordering::SeqCst) == RUNNING {
                seat.kick.kick();
            }
        }
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::SeqCst)
    }

    /// Whether a vCPU must not enter the guest now.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// For a vCPU's thread, before anything else.
    pub(super) fn arrive(&self, me: usize) {
        if let Some(seat) = self.seats.get(me) {
            seat.kick.bind_to_this_thread();
        }
    }

    /// For a vCPU's thread: its kicks up to now have had their effect.
    pub(super) fn acknowledge(&self, me: usize) {
        if let Some(seat) = self.seats.get(me) {
            seat.kick.acknowledge();
        }
    }

    /// For a vCPU's thread, before each entry: parks while the gate is closed, and captures when
    /// asked. Its exits are complete. Returns false when the thread is to end.
    pub(super) fn pass(&self, me: usize, mut capture: impl FnMut(&mut VcpuState) -> Result<(), StateError>) -> bool {
        let Some(seat) = self.seats.get(me) else { return false };
        loop {
            seat.state.store(RUNNING, Ordering::SeqCst);
            if self.is_halted() {
                return false;
            }
            if !self.is_closed() {
                return true;
            }
            seat.state.store(PARKED, Ordering::SeqCst);
            self.announce();
            let ordered = || seat.order.load(Ordering::SeqCst) == CAPTURE;
            self.wait_parked(|| !self.is_closed() || self.is_halted() || ordered());
            if seat.take_order(CLAIMED) {
                let mut captured = lock(&seat.captured);
                captured.outcome = capture(&mut captured.state);
                drop(captured);
                seat.order.store(CAPTURED, Ordering::SeqCst);
                self.announce();
                self.wait_parked(|| !self.is_closed() || self.is_halted() || ordered());
            }
        }
    }

    /// For a vCPU's thread that holds its vCPU outside of the guest: waits until `deadline`, or
    /// until the gate closes.
    pub(super) fn rest(&self, deadline: Instant) {
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !self.is_closed() && !self.is_halted() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            guard = self.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// For a vCPU's thread that ends.
    pub(super) fn leave(&self, me: usize) {
        if let Some(seat) = self.seats.get(me) {
            seat.state.store(GONE, Ordering::SeqCst);
        }
        self.announce();
    }

    /// Wakes whoever sleeps. Comes after the change: a sleeper counts itself first and looks at the
    /// condition then.
    fn announce(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.changed.notify_all();
        }
    }

    /// For a parked vCPU's thread: waits, and does a reset that the leader has no time for while it
    /// is awake.
    fn wait_parked(&self, condition: impl Fn() -> bool) {
        let Some(help) = &self.help else { return self.wait_until(SPIN, condition) };
        let lookout = help.look_out();
        while self.spin_until(SPIN, || condition() || help.is_wanted()) && !condition() {
            help.give();
        }
        drop(lookout);
        self.wait_until(Duration::ZERO, condition);
    }

    fn wait_until(&self, spin: Duration, condition: impl Fn() -> bool) {
        if self.spin_until(spin, &condition) {
            return;
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !condition() {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Spins at most so long. Returns whether the condition holds.
    fn spin_until(&self, spin: Duration, condition: impl Fn() -> bool) -> bool {
        if condition() {
            return true;
        }
        let spin = spin.min(self.spin);
        if spin.is_zero() {
            return false;
        }
        let start = Instant::now();
        while start.elapsed() < spin {
            for _ in 0..32 {
                if condition() {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::kvm::kick::{default_signal, install_handler};
    use crate::page::PAGE_SIZE_U64;

    #[test]
    fn who_runs_is_called_out_once_and_who_is_parked_is_not() {
        install_handler(default_signal()).unwrap();
        // In place of a vCPU's first page.
        let pages: Vec<_> = (0..2).map(|_| tempfile::tempfile().unwrap()).collect();
        pages.iter().for_each(|page| page.set_len(PAGE_SIZE_U64).unwrap());
        let kicks = || pages.iter().map(|page| Kick::new(page, default_signal()).unwrap()).collect::<Vec<_>>();
        let (gate, seen) = (Gate::closed(kicks(), None), kicks());
        let exits = AtomicU32::new(0);
        std::thread::scope(|scope| {
            // The first runs in the guest, and leaves it when it is kicked; the second is parked.
            scope.spawn(|| {
                gate.arrive(0);
                while !gate.is_halted() {
                    if seen[0].is_pending() {
                        gate.acknowledge(0);
                        exits.fetch_add(1, Ordering::SeqCst);
                    }
                    std::thread::yield_now();
                }
            });
            scope.spawn(|| {
                gate.arrive(1);
                gate.pass(1, |_| Ok(()))
            });
            while gate.seats[1].state.load(Ordering::SeqCst) != PARKED {
                std::thread::yield_now();
            }
            gate.call_out();
            while exits.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let (pending, is_parked) =
                ([0, 1].map(|vcpu: usize| seen[vcpu].is_pending()), gate.seats[1].state.load(Ordering::SeqCst));
            // Or a failure would wait for the others.
            gate.halt();
            assert_eq!((exits.load(Ordering::SeqCst), pending, is_parked), (1, [false; 2], PARKED));
        });
    }
}
