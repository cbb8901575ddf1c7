//! An engine that several threads use.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::early::Place;
use super::engine::{Engine, Round};
use super::error::EngineError;
use super::guest::CapturedState;
use crate::lock::lock;

/// How often a thread that may give up looks again at once, and how long it sleeps then.
const SPINS: u32 = 64;
const NAP: Duration = Duration::from_micros(50);

/// An engine behind a lock, for a VMM whose vCPUs cut and one more thread of which does rounds: a
/// round yields to whoever waits for the lock, after a few pages.
#[derive(Debug)]
pub struct EngineLock<C: CapturedState> {
    engine: Mutex<Engine<C>>,
    /// Threads that wait.
    waiting: AtomicU32,
}

impl<C: CapturedState> EngineLock<C> {
    /// Takes the engine.
    #[must_use]
    pub const fn new(engine: Engine<C>) -> Self {
        Self { engine: Mutex::new(engine), waiting: AtomicU32::new(0) }
    }

    /// The engine, for a cut and everything else.
    pub fn lock(&self) -> MutexGuard<'_, Engine<C>> {
        if let Ok(engine) = self.engine.try_lock() {
            return engine;
        }
        // It is only a hint: a round that does not see it goes on for a few pages more.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let engine = lock(&self.engine);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        engine
    }

    /// As [`lock`](Self::lock), until `give_up` returns true: for a vCPU whose ring is full
    /// ([`Engine::ring_full`]), which must park for a cut whose leader has the engine.
    pub fn lock_unless(&self, give_up: impl Fn() -> bool) -> Option<MutexGuard<'_, Engine<C>>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut tries = 0;
        let engine = loop {
            match self.engine.try_lock() {
                Ok(engine) => break Some(engine),
                Err(TryLockError::Poisoned(engine)) => break Some(engine.into_inner()),
                Err(TryLockError::WouldBlock) if give_up() => break None,
                // A round yields in a few microseconds; who waits for storage takes longer.
                Err(TryLockError::WouldBlock) if tries < SPINS => std::thread::yield_now(),
                Err(TryLockError::WouldBlock) => std::thread::sleep(NAP),
            }
            tries += 1;
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        engine
    }

    /// A round ([`Engine::round`]) that ends when somebody waits for the engine.
    ///
    /// # Errors
    /// As [`Engine::round`].
    pub fn round(&self, place: Place) -> Result<Round, EngineError> {
        self.lock().round(place, &|| self.waiting.load(Ordering::Relaxed) > 0)
    }

    /// Gives the engine back.
    #[must_use]
    pub fn into_inner(self) -> Engine<C> {
        self.engine.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
