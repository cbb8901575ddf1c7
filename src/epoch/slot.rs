//! What goes round in the pipeline, and what its threads and the engine share.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::sink::SinkError;
use crate::format::{Commit, FormatError};
use crate::memory::Arena;
use crate::page::{EpochId, PageSet};

/// The generation of the first parts.
pub(super) const FIRST_GENERATION: u64 = 1;

/// A part of an epoch: all of it, or up to a budget of its pages.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) epoch: EpochId,
    /// Failures count up; what was cut before one was noticed has an older number, and is thrown away.
    pub(super) generation: u64,
    /// Store pages even if their content is what an earlier epoch had: that epoch may never have reached the chain.
    pub(super) store_unchanged: bool,
    /// When the epoch was cut.
    pub(super) cut_at: Instant,
    /// What is known of the epoch, with its last part.
    pub(super) commit: Option<Commit>,
}

/// Staging for one part, and its frames.
#[derive(Debug)]
pub(super) struct Slot<C> {
    pub(super) arena: Arena,
    pub(super) state: C,
    pub(super) frames: Vec<u8>,
    pub(super) part: Part,
    pub(super) encoded: Result<(), FormatError>,
}

/// Why the newest failed epoch could not be stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum PipelineError {
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("encoding")]
    Format(#[from] FormatError),
}

/// What the pipeline has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) committed: EpochId,
    pub(super) durable: EpochId,
    pub(super) epochs: u64,
    pub(super) durable_epochs: u64,
    pub(super) bytes_written: u64,
    pub(super) zero_pages: u64,
    pub(super) unchanged_pages: u64,
    pub(super) failed_epochs: u64,
}

#[derive(Debug)]
pub(super) struct State<C> {
    pub(super) free: Vec<Slot<C>>,
    pub(super) progress: Progress,
    /// The newest failure that the engine has not seen, and the pages that it must bring again.
    pub(super) failure: Option<PipelineError>,
    pub(super) failed_pages: PageSet,
    /// What is of this generation or older is thrown away.
    pub(super) failed_generation: u64,
    /// What the engine cuts now is of this generation. A failure fails all of it: whatever the engine cut before it noticed may build on what
    /// failed.
    pub(super) generation: u64,
    /// The threads are gone.
    pub(super) ended: bool,
}

/// What the engine and the writer share.
#[derive(Debug)]
pub(super) struct Shared<C> {
    state: Mutex<State<C>>,
    changed: Condvar,
}

impl<C> Shared<C> {
    pub(super) const fn new(state: State<C>) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Gives a slot back.
    pub(super) fn release(&self, slot: Slot<C>) {
        self.lock().free.push(slot);
        self.notify();
    }

    /// Waits while `condition` holds and the threads are there.
    pub(super) fn wait_while(&self, mut condition: impl FnMut(&mut State<C>) -> bool) -> MutexGuard<'_, State<C>> {
        self.changed.wait_while(self.lock(), |state| !state.ended && condition(state)).unwrap_or_else(PoisonError::into_inner)
    }
}
