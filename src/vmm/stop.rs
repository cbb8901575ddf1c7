//! Ending a run, and waking whoever waits for its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::lock::lock;

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

    /// Wakes whoever waits, after a change.
    pub(super) fn announce(&self) {
        drop(lock(&self.0.1));
        self.0.2.notify_all();
    }

    /// Waits until `deadline`, or until `condition` holds; whoever changes that calls `announce`.
    pub(super) fn wait_until(&self, deadline: Option<Instant>, condition: impl Fn() -> bool) {
        let mut guard = lock(&self.0.1);
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
