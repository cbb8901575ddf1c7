//! Threads that a busy host may not keep waiting.
#![expect(unsafe_code, reason = "the scheduling class of a thread")]

use std::io;
use std::marker::PhantomData;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Above every thread that is not realtime, and below whatever an operator set on purpose.
const PRIORITY: libc::c_int = 1;

static REFUSED: AtomicBool = AtomicBool::new(false);
static TOLD: Once = Once::new();

/// The calling thread is to run before all that are not realtime (`SCHED_FIFO`), and those that it
/// starts are not. It must wait for something most of the time. Where that is not allowed
/// (`CAP_SYS_NICE` or a limit `RLIMIT_RTPRIO` of 1), it is said once, and the thread goes on as it
/// is.
pub(super) fn prefer_this_thread() {
    if let Err(error) = schedule(libc::SCHED_FIFO, PRIORITY) {
        REFUSED.store(true, Ordering::Relaxed);
        TOLD.call_once(|| {
            tracing::warn!(%error, "no SCHED_FIFO: on a busy host heartbeats may be late, so give a longer `--timeout`");
        });
    }
}

/// As long as this is there, the thread that made it runs before all that are not realtime, where
/// that is allowed.
#[derive(Debug)]
pub struct Preferred(PhantomData<*const ()>);

impl Preferred {
    /// Prefers the calling thread.
    pub(super) fn begin() -> Self {
        prefer_this_thread();
        Self(PhantomData)
    }
}

impl Drop for Preferred {
    fn drop(&mut self) {
        // Nobody may be kept from being less.
        let _ = schedule(libc::SCHED_OTHER, 0);
    }
}

fn schedule(class: libc::c_int, sched_priority: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: 0 is the calling thread, and the parameters outlive the call.
    match unsafe { libc::sched_setscheduler(0, class | libc::SCHED_RESET_ON_FORK, &raw const parameters) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether each thread that asked for it runs so.
pub(crate) fn is_preferred() -> bool {
    !REFUSED.load(Ordering::Relaxed)
}
