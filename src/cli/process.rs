//! What the command changes of its own process, before any verb. The library changes nothing of it.
#![expect(unsafe_code, reason = "ignores a signal")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A write beyond the limit on the size of files (`RLIMIT_FSIZE`) is an error as a full disk is,
/// and not the end of the process and of its guest; and as many files may be open as the system
/// allows this process, not only as many as it begins with.
pub(super) fn prepare() {
    // SAFETY: ignoring a signal calls nothing. No other thread was started yet.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, the limit is what it was, and what needs more says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
