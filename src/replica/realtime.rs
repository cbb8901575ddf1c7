//! Threads that a busy host may not keep waiting.
#![expect(unsafe_code, reason = "the scheduling class of a thread")]

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Above every thread that is not realtime, and below whatever an operator set on purpose.
const PRIORITY: libc::c_int = 1;

static REFUSED: AtomicBool = AtomicBool::new(false);
static TOLD: Once = Once::new();

/// The calling thread is to run before all that are not realtime (`SCHED_FIFO`). It must wait for
/// something most of the time. Where that is not allowed (`CAP_SYS_NICE` or a limit `RLIMIT_RTPRIO`
/// of 1), it is said once, and the thread goes on as it is.
pub(super) fn prefer_this_thread() {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: it takes nothing, and can't fail.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: the thread is the calling one, and the parameters outlive the call.
    let error = unsafe { libc::pthread_setschedparam(this, libc::SCHED_FIFO, &raw const parameters) };
    if error != 0 {
        REFUSED.store(true, Ordering::Relaxed);
        TOLD.call_once(|| {
            let error = io::Error::from_raw_os_error(error);
            tracing::warn!(%error, "no SCHED_FIFO: on a busy host heartbeats may be late, so give a longer `--timeout`");
        });
    }
}

/// Whether each thread that asked for it runs so.
pub(crate) fn is_preferred() -> bool {
    !REFUSED.load(Ordering::Relaxed)
}
