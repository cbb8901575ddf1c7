//! Getting a vCPU out of the guest, and keeping signals out of a reset.
//!
//! A kick sets `immediate_exit` in the vCPU's `kvm_run` and then signals its thread. If the thread
//! is in the guest, the signal ends `KVM_RUN` with `EINTR`; if it is about to enter,
//! `immediate_exit` does. There is no moment in which a kick is lost. The thread clears the flag
//! with [`Kick::acknowledge`] before it runs the vCPU again; a kick that comes late costs it one
//! empty exit.
#![expect(unsafe_code, reason = "signals, and a mapping that the kernel reads")]

use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use memmap2::{MmapOptions, MmapRaw};

use crate::page::PAGE_SIZE;

/// SIGURG: what kicks use unless told otherwise. It is ignored by default and hardly used, and it
/// does not queue: a real-time signal is refused while the user's processes together have too many
/// that wait (`RLIMIT_SIGPENDING`).
#[must_use]
pub const fn default_signal() -> i32 {
    libc::SIGURG
}

extern "C" fn on_kick(_: libc::c_int) {}

/// Makes `signal` interrupt system calls and do nothing else, in the whole process. Call it before
/// the first kick.
///
/// # Errors
/// The error of `sigaction`: `EINVAL` for a number that is no signal or can't be caught.
pub fn install_handler(signal: i32) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sigaction`: no flags (no SA_RESTART, so that KVM_RUN
    // returns), and an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as *const () as usize;
    // SAFETY: `action` is initialised; the handler does nothing, so it is safe in any context.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Kicks one vCPU's thread out of the guest. Shared by the thread and all who kick it.
#[derive(Debug)]
pub struct Kick {
    /// A mapping of the vCPU's first page, `struct kvm_run`, of our own.
    run: MmapRaw,
    signal: i32,
    /// The thread that runs the vCPU, 0 before it said so.
    thread: AtomicI32,
}

impl Kick {
    /// For a vCPU (a `kvm_ioctls::VcpuFd`); `signal` as given to [`install_handler`].
    ///
    /// # Errors
    /// The error of `mmap`.
    pub fn new(vcpu: &impl AsRawFd, signal: i32) -> io::Result<Self> {
        let run = MmapOptions::new().len(PAGE_SIZE).map_raw(vcpu.as_raw_fd())?;
        Ok(Self { run, signal, thread: AtomicI32::new(0) })
    }

    /// Says that the calling thread is the one that runs the vCPU.
    pub fn bind_to_this_thread(&self) {
        // SAFETY: gettid has no preconditions.
        let thread = unsafe { libc::gettid() };
        self.thread.store(thread, Ordering::Release);
    }

    /// Makes the next, or the current, `KVM_RUN` return `EINTR`.
    pub fn kick(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::Acquire);
        if thread == 0 {
            return;
        }
        // A real-time signal is refused while too many wait: a kick must not be lost for that.
        while !self.signal(thread) {
            std::thread::yield_now();
        }
    }

    /// Signals the thread. False where there is no room for the signal now.
    fn signal(&self, thread: i32) -> bool {
        // SAFETY: takes numbers. If the thread has ended, the call fails with ESRCH, or in the
        // worst case another thread of this very process gets a signal whose handler does nothing.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, self.signal) };
        result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN)
    }

    /// Clears `immediate_exit`: kicks up to now have had their effect.
    pub fn acknowledge(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    /// Whether a kick has not had its effect yet.
    pub fn is_pending(&self) -> bool {
        self.immediate_exit().load(Ordering::SeqCst) != 0
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping is a page long, so the offset lies within it.
        let field = unsafe { self.run.as_mut_ptr().add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the byte is mapped as long as `self` lives, any address is aligned for a byte,
        // and the kernel as well as kvm-ioctls only read or write it whole.
        unsafe { AtomicU8::from_ptr(field) }
    }
}

/// Every signal is blocked on this thread as long as this lives; then the mask is what it was.
///
/// `KVM_RESET_DIRTY_RINGS` returns early when a signal is pending and then loses track of pages
/// (docs/kernel.md). Signals that only the kernel can send for a fault are not held back, and
/// neither are SIGKILL and SIGSTOP: they end or stop the process as a whole.
#[derive(Debug)]
pub struct SignalsBlocked {
    before: libc::sigset_t,
    /// A mask belongs to a thread.
    not_send: std::marker::PhantomData<*const ()>,
}

impl SignalsBlocked {
    /// Blocks them.
    #[must_use]
    pub fn new() -> Self {
        let mut all = MaybeUninit::uninit();
        // SAFETY: sigfillset writes the whole set and can't fail for a valid pointer.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        let mut before = MaybeUninit::uninit();
        // SAFETY: `all` was initialised above, `before` has room for a set; SIG_SETMASK is valid,
        // so that the call can't fail.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: the call above wrote the old mask.
        let before = unsafe { before.assume_init() };
        Self { before, not_send: std::marker::PhantomData }
    }
}

impl Default for SignalsBlocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` is a mask that pthread_sigmask returned for this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
