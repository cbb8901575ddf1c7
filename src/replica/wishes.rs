//! What a node wants of whoever runs it, until somebody takes it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::proto::Halted;
use super::register::Incarnation;
use crate::lock::lock;

/// What a node wants of whoever runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The guest is to run.
    Run,
    /// The guest is to be parked, and a last epoch taken.
    Park,
    /// This one is no standby any more: end its connections.
    Drop(Incarnation),
    /// The guest is to be halted for good.
    Halt(Halted),
}

/// Wishes in their order. Each is taken once.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    queue: Mutex<VecDeque<Wish>>,
    changed: Condvar,
    /// Threads of heartbeats ask this, who wait for no lock that an ordinary thread may hold.
    is_over: AtomicBool,
}

impl Wishes {
    pub(super) fn push(&self, wish: Wish) {
        lock(&self.queue).push_back(wish);
        self.changed.notify_all();
    }

    /// Forgets those that nobody took.
    pub(super) fn clear(&self) {
        lock(&self.queue).clear();
    }

    /// The next one; none within `limit`, or where it is over.
    pub(super) fn wait(&self, limit: Duration) -> Option<Wish> {
        let waiting = |queue: &mut VecDeque<Wish>| queue.is_empty() && !self.is_over();
        let waited = self.changed.wait_timeout_while(lock(&self.queue), limit, waiting);
        waited.unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        // Nobody is between asking and waiting.
        let queue = lock(&self.queue);
        self.is_over.store(true, Ordering::Release);
        drop(queue);
        self.changed.notify_all();
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}
