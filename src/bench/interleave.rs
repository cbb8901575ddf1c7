//! Turns: machines that are alive together and run one after the other.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::epoch::{Collected, Settled, Tracker, TrackerError};
use crate::lock::lock;
use crate::page::PageSet;
use crate::parked::Parked;

/// How far a machine may go. Everybody who waits for something of it waits here.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Collections that are allowed, and that were made, since the machine was built.
    allowed: u64,
    made: u64,
    /// A collection waits for the next turn: all vCPUs are parked, and nothing of the machine runs.
    waits: bool,
    /// Epochs that have come out of the pipeline.
    appended: u64,
    /// Nobody waits any more.
    over: bool,
}

impl Turns {
    /// The base is allowed, and nothing after it.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { allowed: 1, ..State::default() }), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Lets the machine make `cuts` more cuts, and waits until they are made and have come out of
    /// the pipeline, and all vCPUs are parked again. Returns how many of the cuts were made: fewer
    /// where that takes longer than `limit`, or `has_failed`.
    pub(super) fn take(&self, cuts: u64, limit: Duration, has_failed: impl Fn() -> bool) -> u64 {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        let before = state.made;
        state.allowed = before + cuts;
        self.changed.notify_all();
        loop {
            let done = state.made == state.allowed && state.waits && state.appended >= state.made;
            if done || has_failed() || Instant::now() >= end {
                return state.made - before;
            }
            state = self.changed.wait_timeout(state, Duration::from_millis(100)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets the machine go on to its end.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// An epoch has come out of the pipeline.
    pub(super) fn appended(&self) {
        self.lock().appended += 1;
        self.changed.notify_all();
    }

    /// For a collection: waits for its turn.
    fn wait(&self) {
        let mut state = self.lock();
        while state.made >= state.allowed && !state.over {
            state.waits = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waits = false;
        state.made += 1;
    }
}

/// A tracker that collects when it is its machine's turn. The vCPUs are parked while it waits, and
/// the wait is in none of the phases.
#[derive(Debug)]
pub(super) struct TakingTurns {
    pub(super) inner: Box<dyn Tracker>,
    pub(super) turns: Arc<Turns>,
}

impl Tracker for TakingTurns {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn bound(&self) -> Option<u64> {
        self.inner.bound()
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        self.turns.wait();
        self.inner.collect(parked, into)
    }

    fn begin(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        self.turns.wait();
        self.inner.begin(parked, into)
    }

    fn wrote_more(&self, parked: &Parked<'_>) -> Option<bool> {
        self.inner.wrote_more(parked)
    }

    fn settle(&mut self, parked: &Parked<'_>) -> Result<Settled, TrackerError> {
        self.inner.settle(parked)
    }

    fn rolled_back(&mut self, parked: &Parked<'_>) {
        self.inner.rolled_back(parked);
    }

    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackerError> {
        self.inner.rearm(parked)
    }
}
