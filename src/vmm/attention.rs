//! Looking after a machine's devices, for threads that are no vCPU's.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use super::alarm::Alarm;
use crate::lock::lock;

/// Until the devices are looked after, unless somebody calls.
const IDLE: Duration = Duration::from_secs(60);

/// As long as the machine is there.
#[derive(Default)]
pub(super) struct Attention {
    attend: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// For who has no time to do it.
    pub(super) alarm: Alarm,
}

impl fmt::Debug for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attention").field("alarm", &self.alarm).finish_non_exhaustive()
    }
}

impl Attention {
    /// The machine runs, and `attend` looks after its devices.
    pub(super) fn begin(&self, attend: impl Fn() + Send + 'static) {
        *lock(&self.attend) = Some(Box::new(attend));
    }

    /// Looks after the devices now.
    pub(super) fn attend(&self) {
        if let Some(attend) = &*lock(&self.attend) {
            attend();
        }
    }

    /// Looks after them whenever somebody calls, until the end.
    pub(super) fn wait_on(&self) {
        while self.alarm.wait(IDLE) {
            self.attend();
        }
    }

    /// The machine was halted. Nobody looks after it any more when this returns.
    pub(super) fn end(&self) {
        lock(&self.attend).take();
        self.alarm.end();
    }
}
