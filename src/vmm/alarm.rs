//! What a thread that does something now and then waits for.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::lock::lock;

/// Wakes the thread before its time, and ends it.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    asked: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    wake: bool,
    end: bool,
}

impl Alarm {
    /// There is something to do before its time.
    pub(super) fn wake(&self) {
        lock(&self.asked).wake = true;
        self.changed.notify_one();
    }

    /// There are to be no more.
    pub(super) fn end(&self) {
        lock(&self.asked).end = true;
        self.changed.notify_one();
    }

    /// Waits for so long, or until woken. Returns whether there are to be more.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let asked = lock(&self.asked);
        let waits = |asked: &mut Asked| !asked.wake && !asked.end;
        let (mut asked, _) = self.changed.wait_timeout_while(asked, time, waits).unwrap_or_else(PoisonError::into_inner);
        asked.wake = false;
        !asked.end
    }
}
