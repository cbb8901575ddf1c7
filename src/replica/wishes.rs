//! What a node wants of whoever runs it, until somebody takes it.

use std::collections::VecDeque;
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

#[derive(Debug, Default)]
struct Queue {
    wishes: VecDeque<Wish>,
    is_over: bool,
}

/// Wishes in their order. Each is taken once.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Wishes {
    pub(super) fn push(&self, wish: Wish) {
        lock(&self.queue).wishes.push_back(wish);
        self.changed.notify_all();
    }

    /// Forgets those that nobody took.
    pub(super) fn clear(&self) {
        lock(&self.queue).wishes.clear();
    }

    /// The next one; none within `limit`, or where it is over.
    pub(super) fn wait(&self, limit: Duration) -> Option<Wish> {
        let waiting = |queue: &mut Queue| queue.wishes.is_empty() && !queue.is_over;
        let waited = self.changed.wait_timeout_while(lock(&self.queue), limit, waiting);
        waited.unwrap_or_else(PoisonError::into_inner).0.wishes.pop_front()
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        lock(&self.queue).is_over = true;
        self.changed.notify_all();
    }

    pub(super) fn is_over(&self) -> bool {
        lock(&self.queue).is_over
    }
}
