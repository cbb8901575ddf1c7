//! A thread that resets the rings while the leader of a cut copies pages.
//!
//! The order for a reset is the leader's or the thread's: whoever takes it first. So a thread that
//! comes late, because it was not woken in time or has no processor, costs the leader nothing but
//! the order.
//!
//! The thread is kept off the leader's processor. Kernels like to wake a thread where its waker
//! runs, which is right for one that hands over and goes to sleep: here it would stop the leader's
//! copying, and nothing would go on at the same time (measured).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::kvm::kick::SignalsBlocked;
use crate::lock::lock;

/// How long the leader spins for a reset that is under way, before it sleeps: longer than waking it
/// would take.
const SPIN: Duration = Duration::from_micros(200);

#[derive(Debug)]
enum Order {
    None,
    Given,
    Taken,
    Done(io::Result<u64>),
    /// The thread is to end.
    Over,
}

struct Shared {
    reset: Box<dyn Fn() -> io::Result<u64> + Send + Sync>,
    order: Mutex<Order>,
    changed: Condvar,
    /// Whether the order is given and nobody has taken it: what those on the lookout look at.
    given: AtomicBool,
    /// Threads on the lookout.
    lookouts: AtomicU32,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("order", &self.order).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Order> {
        lock(&self.order)
    }

    fn wait_while(&self, condition: impl FnMut(&mut Order) -> bool) -> MutexGuard<'_, Order> {
        self.changed.wait_while(self.lock(), condition).unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what was ordered, unless somebody else has taken it. Signals are blocked.
    fn carry_out(&self, mut order: MutexGuard<'_, Order>) {
        if !matches!(*order, Order::Given) {
            return;
        }
        *order = Order::Taken;
        self.given.store(false, Ordering::Relaxed);
        drop(order);
        let outcome = (self.reset)();
        *self.lock() = Order::Done(outcome);
        self.changed.notify_all();
    }
}

/// Lets a thread that waits for the end of a cut, awake, do the reset meanwhile: a parked vCPU's.
#[derive(Clone, Debug)]
pub struct ResetHelp(Arc<Shared>);

impl ResetHelp {
    /// Says that the calling thread will look at [`is_wanted`](Self::is_wanted) all the time, as
    /// long as the lookout lives: then no other is woken.
    #[must_use]
    pub fn look_out(&self) -> Lookout<'_> {
        self.0.lookouts.fetch_add(1, Ordering::SeqCst);
        Lookout(&self.0)
    }

    /// Whether there is a reset that nobody has begun.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.given.load(Ordering::Relaxed)
    }

    /// Does it, with signals blocked, unless somebody else was faster. Not on a thread that uses
    /// io_uring.
    pub fn give(&self) {
        let _blocked = SignalsBlocked::new();
        self.0.carry_out(self.0.lock());
    }
}

/// A thread is on the lookout for a reset. One that leaves although a reset was just ordered does
/// no harm: the leader does it then.
#[derive(Debug)]
pub struct Lookout<'h>(&'h Shared);

impl Drop for Lookout<'_> {
    fn drop(&mut self) {
        self.0.lookouts.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The thread, ended when this is dropped.
#[derive(Debug)]
pub(super) struct Beside {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    id: Pid,
    /// Where the process might run when the thread was started.
    allowed: CpuSet,
    /// The processor that the thread is kept off.
    off: Option<usize>,
}

impl Beside {
    /// Starts the thread, on which every signal is blocked. `reset` is the ioctl.
    ///
    /// # Errors
    /// There is no thread to be had, or the system does not say which processors there are.
    pub(super) fn start(reset: impl Fn() -> io::Result<u64> + Send + Sync + 'static) -> io::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let (say, said) = mpsc::sync_channel(1);
        let shared = Arc::new(Shared {
            reset: Box::new(reset),
            order: Mutex::new(Order::None),
            changed: Condvar::new(),
            given: AtomicBool::new(false),
            lookouts: AtomicU32::new(0),
        });
        let theirs = shared.clone();
        // The thread inherits the mask: there is no moment in which a signal could come to it.
        let blocked = SignalsBlocked::new();
        let thread = std::thread::Builder::new().name("slackwater-reset".to_owned()).spawn(move || {
            let _ = say.send(gettid());
            loop {
                let order = theirs.wait_while(|order| !matches!(order, Order::Given | Order::Over));
                if matches!(*order, Order::Over) {
                    return;
                }
                theirs.carry_out(order);
            }
        });
        drop(blocked);
        let thread = thread?;
        let id = said.recv().map_err(io::Error::other)?;
        Ok(Self { shared, thread: Some(thread), id, allowed, off: None })
    }

    /// For threads that can help.
    pub(super) fn help(&self) -> ResetHelp {
        ResetHelp(self.shared.clone())
    }

    /// Orders a reset. False where nobody is there to do it on another processor.
    pub(super) fn order(&mut self) -> bool {
        let awake = self.shared.lookouts.load(Ordering::SeqCst) > 0;
        if !awake && !self.keep_off() {
            return false;
        }
        *self.shared.lock() = Order::Given;
        self.shared.given.store(true, Ordering::Relaxed);
        if !awake {
            self.shared.changed.notify_all();
        }
        true
    }

    /// Keeps the thread off this processor. False where it has no other.
    fn keep_off(&mut self) -> bool {
        let here = sched_getcpu();
        if self.off == Some(here) {
            return true;
        }
        let mut others = self.allowed;
        if here < CpuSet::MAX_CPU {
            others.unset(here);
        }
        if others.count() == 0 || sched_setaffinity(Some(self.id), &others).is_err() {
            return false;
        }
        self.off = Some(here);
        true
    }

    /// The outcome of the reset that was ordered, waiting for it where it is under way. `None`
    /// where the thread has not begun, or nothing was ordered: it is the caller's to do then.
    pub(super) fn take(&self) -> Option<io::Result<u64>> {
        let start = Instant::now();
        loop {
            let mut order = self.shared.lock();
            if start.elapsed() >= SPIN {
                drop(order);
                order = self.shared.wait_while(|order| matches!(order, Order::Taken));
            }
            match *order {
                Order::Taken => drop(order),
                Order::Over => return None,
                Order::None | Order::Given | Order::Done(_) => {
                    self.shared.given.store(false, Ordering::Relaxed);
                    return match std::mem::replace(&mut *order, Order::None) {
                        Order::Done(outcome) => Some(outcome),
                        _ => None,
                    };
                }
            }
            (0..32).for_each(|_| std::hint::spin_loop());
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // A reset under way ends first: what it sets would be taken for the end's.
        let _ = self.take();
        *self.shared.lock() = Order::Over;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::atomic::AtomicU64;

    use super::*;

    /// Counts resets, and answers with how many there were.
    fn counting() -> (Arc<AtomicU64>, Beside) {
        let resets = Arc::new(AtomicU64::new(0));
        let theirs = resets.clone();
        let beside = Beside::start(move || Ok(theirs.fetch_add(1, Ordering::SeqCst) + 1)).unwrap();
        (resets, beside)
    }

    #[test]
    fn a_reset_is_done_once_by_the_thread_or_left_to_the_leader() {
        let (resets, mut beside) = counting();
        assert!(beside.take().is_none(), "nothing was ordered");
        let mut done = 0;
        for round in 0..3000 {
            // On one processor there is nobody to order it from.
            if !beside.order() {
                continue;
            }
            // From at once to long enough for the thread.
            (0..round).for_each(|_| std::hint::spin_loop());
            let outcome = beside.take().map(Result::unwrap);
            done += u64::from(outcome.is_some());
            assert!(outcome.is_none_or(|count| count == done), "{outcome:?} after {done}");
            if outcome.is_none() {
                // Time for the thread to come late.
                (0..20_000).for_each(|_| std::hint::spin_loop());
            }
            assert_eq!(resets.load(Ordering::SeqCst), done, "an order that was taken back is not carried out");
            assert!(beside.take().is_none(), "an outcome is handed over once");
        }
        println!("{done} of 3000 by the thread");
    }

    #[test]
    fn a_thread_on_the_lookout_does_it() {
        let (resets, mut beside) = counting();
        let help = beside.help();
        let lookout = help.look_out();
        assert!(!help.is_wanted());
        assert!(beside.order() && help.is_wanted());
        help.give();
        assert!(!help.is_wanted());
        help.give();
        assert_eq!(resets.load(Ordering::SeqCst), 1, "the second found nothing to do");
        assert_eq!(beside.take().unwrap().unwrap(), 1);
        // One that leaves without a look: nobody was woken, and the leader does it.
        assert!(beside.order());
        drop(lookout);
        assert!(beside.take().is_none() && !help.is_wanted());
        assert_eq!(resets.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn failures_are_handed_over_and_the_end_waits_for_nothing() {
        let mut beside = Beside::start(|| Err(io::Error::from_raw_os_error(libc::EIO))).unwrap();
        let help = beside.help();
        let lookout = help.look_out();
        assert!(beside.order());
        help.give();
        assert_eq!(beside.take().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
        drop(lookout);
        beside.order();
        drop(beside);
        help.give();
        assert!(!help.is_wanted());
    }

    #[test]
    fn every_signal_is_blocked_on_the_thread() {
        let (_, beside) = counting();
        let path = format!("/proc/self/task/{}/status", beside.id.as_raw_nonzero());
        let status = std::fs::read_to_string(path).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
        // Signals 9 and 19 can't be blocked, and the C library keeps 32 and 33 (and 34) for itself.
        let free: Vec<_> = (1..=64).filter(|signal| blocked & 1 << (signal - 1) == 0).collect();
        assert!(free.iter().all(|signal| [9, 19, 32, 33, 34].contains(signal)), "{free:?}");
    }
}
