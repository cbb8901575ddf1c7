//! Memory that fills while the guest runs: the threads around
//! [`on_demand_fill`](super::on_demand_fill), and what happens when a page can't be had.
//!
//! # Why nothing waits for ever
//! Whoever touches a missing page, a vCPU or a thread of this process, waits for the threads here.
//! These take the locks of this module and, to report a failure, those that the `failed` function
//! takes; none of them is ever held over an access to guest memory, and no thread here touches
//! guest memory but through the kernel's call that puts pages. Reading the chain and decoding need
//! memory and a disk. So they get on whatever the others hold.
//!
//! When a page can't be had, `failed` is called first (to halt the guest and kick its vCPUs), then
//! the page is made inaccessible and who waits is woken: `KVM_RUN` ends with an error. The other
//! pages are served as before, so that all threads get to where they see that the run is over. A
//! thread here that panics denies all of memory.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;
use zerocopy::FromZeros;

use super::RestoreError;
use super::on_demand_fill::{Batch, Place, Put, Turn, Walk};
use super::pages::{PageSource, PageSources};
use super::touched::{TOUCHED_MOST, merge};
use crate::clock::whole_us;
use crate::kvm::uffd::{Fault, Userfaultfd};
use crate::lock::lock;
use crate::memory::{GuestMemory, MemoryError, MissingMemory};
use crate::page::Gfn;

/// More threads than this do not make faults quicker.
const FAULT_THREADS_MOST: usize = 4;

/// How memory is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillOptions {
    /// Threads that serve faults: as many as the guest has vCPUs is enough. At least 1; no more
    /// than there are processors, and than 4.
    pub fault_threads: usize,
    /// Whether pages that nobody touches are brought as well. Without it memory is never whole.
    pub background: bool,
}

impl Default for FillOptions {
    fn default() -> Self {
        Self { fault_threads: 1, background: true }
    }
}

/// How long faults took, from taking one from the kernel to the page being in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FillTimes {
    /// The median, in microseconds.
    pub p50: f64,
    /// 99 of 100 took at most so long.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// What was brought on demand so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FillReport {
    /// Faults that were served.
    pub faults: u64,
    /// The time that they took.
    pub fault_us: FillTimes,
    /// Pages put because of faults, neighbours included, zeros not.
    pub pages_by_faults: u64,
    /// Pages put in the order in which they were touched the last time.
    pub pages_recorded: u64,
    /// Pages put in the order of the chain.
    pub pages_rest: u64,
    /// Pages of zeros put.
    pub zero_pages: u64,
    /// Whether all of memory was filled.
    pub filled: bool,
    /// The time from the start until it was, in microseconds.
    pub filled_us: Option<u64>,
}

impl FillReport {
    /// Pages put, zeros not.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages_by_faults + self.pages_recorded + self.pages_rest
    }
}

type Failed = Box<dyn FnOnce(RestoreError) + Send>;

/// What becomes of a failure: it is kept until somebody wants it, once.
enum Failure {
    /// None yet, and nobody to tell.
    None,
    /// None yet, and whom to tell.
    Tell(Failed),
    /// There was one before anybody wanted it.
    Kept(RestoreError),
    /// There was one, and it was told.
    Told,
}

struct Shared {
    missing: MissingMemory,
    sources: Arc<dyn PageSources>,
    failure: Mutex<Failure>,
    has_failed: AtomicBool,
    stop: AtomicBool,
    /// The other end is closed when the threads are to end.
    ending: PipeReader,
    end: Mutex<Option<PipeWriter>>,
    /// Pages in the order in which they were demanded, plus one; 0 is a place whose writer has not
    /// come to store it.
    demanded: Box<[AtomicU64]>,
    demands: AtomicUsize,
    times: Mutex<Histogram<u64>>,
    started: Instant,
    pages_by_faults: AtomicU64,
    pages_recorded: AtomicU64,
    pages_rest: AtomicU64,
    zero_pages: AtomicU64,
    filled_us: AtomicU64,
}

/// Fills memory as the guest touches it, and in the background.
///
/// Must live as long as the guest runs. Once everything is filled its threads have ended, and it
/// costs nothing more.
pub struct OnDemand {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnDemand").field("missing", &self.shared.missing).finish_non_exhaustive()
    }
}

fn thread_error(step: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
    move |source| RestoreError::Thread { step, source }
}

impl OnDemand {
    /// From now on pages of `memory` that are missing come from `sources`. Nothing of it has been
    /// touched.
    ///
    /// # Errors
    /// [`RestoreError::OnDemand`] where the kernel or its permissions do not allow it,
    /// [`RestoreError::Thread`].
    pub fn start(memory: &GuestMemory, sources: Arc<dyn PageSources>, options: FillOptions) -> Result<Self, RestoreError> {
        let on_demand = |error: MemoryError| RestoreError::OnDemand(error);
        let uffd = Userfaultfd::open().map_err(|error| on_demand(error.into()))?;
        let missing = memory.wait_for_missing(uffd).map_err(on_demand)?;
        let (reader, writer) = io::pipe().map_err(thread_error("making a pipe"))?;
        let demanded = <[AtomicU64]>::new_box_zeroed_with_elems(TOUCHED_MOST).map_err(|_| io::ErrorKind::OutOfMemory.into());
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other);
        let shared = Arc::new(Shared {
            missing,
            sources,
            failure: Mutex::new(Failure::None),
            has_failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            ending: reader,
            end: Mutex::new(Some(writer)),
            demanded: demanded.map_err(thread_error("taking memory"))?,
            demands: AtomicUsize::new(0),
            times: Mutex::new(times.map_err(thread_error("taking memory"))?),
            started: Instant::now(),
            pages_by_faults: AtomicU64::new(0),
            pages_recorded: AtomicU64::new(0),
            pages_rest: AtomicU64::new(0),
            zero_pages: AtomicU64::new(0),
            filled_us: AtomicU64::new(0),
        });
        let mut filling = Self { shared: shared.clone(), threads: Vec::new() };
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        for _ in 0..options.fault_threads.clamp(1, processors.min(FAULT_THREADS_MOST)) {
            filling.spawn("slackwater-fault", Shared::serve)?;
        }
        if options.background {
            filling.spawn("slackwater-fill", Shared::fill)?;
        }
        Ok(filling)
    }

    fn spawn(&mut self, name: &str, run: fn(&Shared)) -> Result<(), RestoreError> {
        let shared = self.shared.clone();
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            let guard = DenyAllOnPanic(&shared);
            run(&shared);
            std::mem::forget(guard);
        });
        self.threads.push(thread.map_err(thread_error("starting a thread that fills memory"))?);
        Ok(())
    }

    /// Calls `failed` when a page can't be had, or at once if that was so before. It is called at
    /// most once, and must not touch guest memory nor wait for anybody who might.
    pub fn on_failure(&self, failed: impl FnOnce(RestoreError) + Send + 'static) {
        let mut failure = lock(&self.shared.failure);
        match std::mem::replace(&mut *failure, Failure::Told) {
            Failure::Kept(error) => failed(error),
            Failure::None | Failure::Tell(_) => *failure = Failure::Tell(Box::new(failed)),
            Failure::Told => {}
        }
    }

    /// Drops what [`on_failure`](Self::on_failure) was given; it is not being called then. Returns
    /// a failure that nobody was told of.
    #[must_use]
    pub fn forget_on_failure(&self) -> Option<RestoreError> {
        let mut failure = lock(&self.shared.failure);
        match std::mem::replace(&mut *failure, Failure::None) {
            Failure::Kept(error) => Some(error),
            Failure::Told => {
                *failure = Failure::Told;
                None
            }
            Failure::None | Failure::Tell(_) => None,
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn report(&self) -> FillReport {
        let Shared { pages_by_faults, pages_recorded, pages_rest, zero_pages, filled_us, times, missing, .. } = &*self.shared;
        let times = lock(times);
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a minute are exact")]
        let us = |ns: u64| ns as f64 / 1e3;
        let quantile = |at| if times.is_empty() { 0.0 } else { us(times.value_at_quantile(at)) };
        let filled = missing.filled().is_whole();
        FillReport {
            faults: times.len(),
            fault_us: FillTimes {
                p50: quantile(0.5),
                p99: quantile(0.99),
                max: if times.is_empty() { 0.0 } else { us(times.max()) },
            },
            pages_by_faults: pages_by_faults.load(Ordering::Relaxed),
            pages_recorded: pages_recorded.load(Ordering::Relaxed),
            pages_rest: pages_rest.load(Ordering::Relaxed),
            zero_pages: zero_pages.load(Ordering::Relaxed),
            filled,
            filled_us: filled.then(|| filled_us.load(Ordering::Relaxed)),
        }
    }

    /// Ends the threads, filled or not. Comes after the last access to guest memory.
    #[must_use]
    pub fn finish(mut self) -> FillReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            // One that panicked has denied all of memory.
            let _ = thread.join();
        }
        self.shared.missing.filled().note_end();
    }
}

impl Drop for OnDemand {
    fn drop(&mut self) {
        self.end();
    }
}

/// No page may be waited for that nobody brings.
struct DenyAllOnPanic<'s>(&'s Shared);

impl Drop for DenyAllOnPanic<'_> {
    fn drop(&mut self) {
        let source = io::Error::other("it panicked");
        self.0.fail(RestoreError::Thread { step: "a thread that fills memory ended", source });
        self.0.deny_all();
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || self.missing.filled().is_whole()
    }

    /// Has all threads see whether they are to end.
    fn wake(&self) {
        *lock(&self.end) = None;
    }

    fn serve(&self) {
        if let Err(error) = self.try_serve() {
            self.fail(error);
            self.deny_all();
        }
    }

    /// Serves faults until memory is whole, or until told to end.
    fn try_serve(&self) -> Result<(), RestoreError> {
        let mut source = self.sources.open();
        let mut batch = Batch::new().map_err(thread_error("taking memory"))?;
        while !self.is_over() {
            match self.missing.take_fault() {
                Ok(Some(fault)) => self.serve_one(fault, &mut batch, source.as_mut()),
                Ok(None) => self.wait_for_fault()?,
                Err(source) => return Err(RestoreError::Thread { step: "taking a fault from the kernel", source }),
            }
        }
        Ok(())
    }

    fn wait_for_fault(&self) -> Result<(), RestoreError> {
        let faults = self.missing.pages().as_fd();
        let mut polled = [PollFd::from_borrowed_fd(faults, PollFlags::IN), PollFd::new(&self.ending, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(error) => Err(RestoreError::Thread { step: "waiting for faults", source: error.into() }),
        }
    }

    fn serve_one(&self, fault: Fault, batch: &mut Batch, source: &mut dyn PageSource) {
        let start = Instant::now();
        let gfn = fault.gfn;
        let filled = self.missing.filled();
        if filled.contains(gfn) {
            // It came while this fault was on its way; or the VMM has taken it out of memory, which
            // leaves zeros.
            let run = crate::page::PageRun { first: gfn, count: 1 };
            if let Err(error) = self.missing.zero(run) {
                self.cannot_put(gfn, error);
            }
            return;
        }
        let place = self.demands.fetch_add(1, Ordering::Relaxed);
        if let Some(entry) = self.demanded.get(place) {
            entry.store(gfn.0 + 1, Ordering::Release);
        }
        if let Err(error) = batch.read(gfn, source, filled) {
            self.fail(error);
            self.deny(gfn);
            return;
        }
        match batch.put_asked(gfn, &self.missing) {
            Ok(put) => {
                let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                lock(&self.times).saturating_record(ns);
                self.count(&self.pages_by_faults, put);
            }
            Err(error) => return self.cannot_put(gfn, error),
        }
        match batch.put_rest(gfn, &self.missing) {
            Ok(put) => self.count(&self.pages_by_faults, put),
            // Whoever wants one of them will say what is wrong.
            Err(error) => tracing::debug!(%error, "pages beside {gfn} could not be put"),
        }
    }

    fn count(&self, pages: &AtomicU64, put: Put) {
        pages.fetch_add(put.pages, Ordering::Relaxed);
        self.zero_pages.fetch_add(put.zeros, Ordering::Relaxed);
    }

    fn cannot_put(&self, gfn: Gfn, error: io::Error) {
        if self.is_over() {
            // The kernel serves memory again, and has woken everybody.
            return;
        }
        self.fail(RestoreError::Target { epoch: self.sources.epoch(), gfn, source: error.into() });
        self.deny(gfn);
    }

    /// The first failure counts.
    fn fail(&self, error: RestoreError) {
        self.has_failed.store(true, Ordering::SeqCst);
        let mut failure = lock(&self.failure);
        match std::mem::replace(&mut *failure, Failure::Told) {
            // Called under the lock, so that nobody who has forgotten it sees it called.
            Failure::Tell(failed) => failed(error),
            Failure::None => *failure = Failure::Kept(error),
            Failure::Kept(first) => *failure = Failure::Kept(first),
            Failure::Told => {}
        }
    }

    fn deny(&self, gfn: Gfn) {
        if let Err(error) = self.missing.deny(gfn) {
            tracing::error!(%error, "denying all of guest memory");
            self.deny_all();
        }
    }

    fn deny_all(&self) {
        if let Err(error) = self.missing.deny_all() {
            // Somebody would wait for ever, or find zeros.
            tracing::error!(%error, "guest memory can neither be filled nor denied");
            std::process::abort();
        }
    }

    fn fill(&self) {
        if let Err(error) = self.try_fill() {
            self.fail(error);
        }
    }

    /// Brings page after page, and ends the waiting when all are there.
    fn try_fill(&self) -> Result<(), RestoreError> {
        let before = self.sources.touched_before();
        let mut source = self.sources.open();
        let mut batch = Batch::new().map_err(thread_error("taking memory"))?;
        let filled = self.missing.filled();
        let mut walk = Walk::new(before.clone());
        let whole = loop {
            if self.stop.load(Ordering::SeqCst) || self.has_failed.load(Ordering::SeqCst) {
                break false;
            }
            let Some((gfn, turn)) = walk.next(source.as_mut(), filled)? else { break true };
            batch.read(gfn, source.as_mut(), filled)?;
            let place: &dyn Place = &self.missing;
            let put = batch.put_asked(gfn, place).and_then(|asked| {
                let rest = batch.put_rest(gfn, place)?;
                Ok(Put { pages: asked.pages + rest.pages, zeros: asked.zeros + rest.zeros })
            });
            let put = put.map_err(|error| RestoreError::Target { epoch: self.sources.epoch(), gfn, source: error.into() })?;
            self.count(if turn == Turn::Recorded { &self.pages_recorded } else { &self.pages_rest }, put);
        };
        if whole {
            self.filled_us.store(whole_us(self.started.elapsed()), Ordering::Relaxed);
            // In this order: a fault thread that finds memory unregistered knows why.
            filled.note_whole();
            self.missing.end().map_err(thread_error("ending the service of missing pages"))?;
            self.wake();
            self.sources.filled();
        }
        if !self.has_failed.load(Ordering::SeqCst) {
            self.keep_touched(&before);
        }
        Ok(())
    }

    fn keep_touched(&self, before: &[Gfn]) {
        let demands = self.demands.load(Ordering::Acquire);
        let entries = self.demanded.iter().take(demands).map(|entry| entry.load(Ordering::Acquire));
        let demanded: Vec<_> = entries.filter_map(|entry| entry.checked_sub(1).map(Gfn)).collect();
        if !demanded.is_empty() {
            self.sources.keep_touched(&merge(&demanded, before));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::epoch::{Memory as _, Staging};
    use crate::kvm::uffd::UserfaultError;
    use crate::page::{EpochId, PAGE_SIZE, PageBytes, PageRun};
    use crate::store::StoreError;

    const FRAMES: u64 = 256;
    const BAD: Gfn = Gfn(100);

    /// Every page has its number in it. One can't be read.
    #[derive(Debug)]
    struct Numbered {
        panics: bool,
    }

    struct Source<'n>(&'n Numbered);

    fn page(gfn: Gfn) -> PageBytes {
        [u8::try_from(gfn.0 % 256).unwrap(); PAGE_SIZE]
    }

    impl PageSources for Numbered {
        fn open(&self) -> Box<dyn PageSource + '_> {
            Box::new(Source(self))
        }

        fn epoch(&self) -> EpochId {
            EpochId(7)
        }
    }

    impl PageSource for Source<'_> {
        fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, Option<&PageBytes>)) -> Result<(), RestoreError> {
            if gfn == BAD {
                assert!(!self.0.panics, "on purpose");
                let source = StoreError::NoEpoch { epoch: EpochId(7), newest: EpochId(7) };
                return Err(RestoreError::Page { epoch: EpochId(7), gfn, source });
            }
            take(gfn, Some(&page(gfn)).filter(|_| gfn.0 != 0));
            Ok(())
        }

        fn next(&mut self, place: &mut u64) -> Result<Option<Gfn>, RestoreError> {
            *place += 1;
            Ok(Some(Gfn(*place)).filter(|gfn| gfn.0 < FRAMES))
        }
    }

    /// None where this process may not have a userfaultfd.
    fn start(panics: bool, background: bool) -> Option<(GuestMemory, OnDemand)> {
        let run = |first, count| PageRun { first: Gfn(first), count };
        let memory = GuestMemory::anonymous(&[run(0, 64), run(64, FRAMES - 64)], 4).unwrap();
        match OnDemand::start(&memory, Arc::new(Numbered { panics }), FillOptions { fault_threads: 2, background }) {
            Ok(filling) => Some((memory, filling)),
            Err(RestoreError::OnDemand(MemoryError::Userfault(
                error @ (UserfaultError::Denied { .. } | UserfaultError::Absent),
            ))) => {
                println!("not here: {error}; {}", error.hint());
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_this_process_reads_comes_from_the_source() {
        let Some((memory, filling)) = start(false, false) else { return };
        std::thread::scope(|scope| {
            for begin in 0..4 {
                let memory = &memory;
                scope.spawn(move || {
                    let mut found = [1; PAGE_SIZE];
                    for gfn in (begin..FRAMES).step_by(3).map(Gfn).filter(|gfn| *gfn != BAD) {
                        memory.read_page(gfn, &mut found).unwrap();
                        assert!(found == page(gfn), "{gfn}");
                    }
                });
            }
        });
        let mut arena = Staging::new(4).unwrap();
        memory.copy(&[3, 99, 101].map(Gfn), &mut arena).unwrap();
        assert!((0..3).all(|at| arena.page(at) == Some(&page(arena.gfns()[at]))));
        let report = filling.finish();
        assert!(report.faults >= FRAMES - 1 && report.pages_by_faults == FRAMES - 2 && report.zero_pages == 1, "{report:?}");
        assert!(!report.filled);
        // Nobody would bring it now.
        assert!(matches!(memory.read_page(BAD, &mut [0; PAGE_SIZE]), Err(MemoryError::Unreadable { gfn: BAD, .. })));
    }

    /// By a fault, by the background, and by a thread that panics: an error within a moment, for
    /// all who wait, and no zeros.
    #[test]
    fn a_page_that_can_not_be_had_is_an_error_for_all_who_wait() {
        for (panics, background) in [(false, false), (false, true), (true, false), (true, true)] {
            let Some((memory, filling)) = start(panics, background) else { return };
            let (told, failure) = mpsc::channel();
            filling.on_failure(move |error| told.send(error).unwrap());
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        let mut found = [1; PAGE_SIZE];
                        let read = memory.read_page(BAD, &mut found);
                        assert!(matches!(read, Err(MemoryError::Unreadable { gfn: BAD, .. })), "{read:?}");
                        assert!(found == [1; PAGE_SIZE]);
                        let copied = memory.copy(&[BAD], &mut Staging::new(1).unwrap()).unwrap_err();
                        let copied = copied.downcast_ref();
                        assert!(matches!(copied, Some(MemoryError::Unreadable { .. })), "{copied:?}");
                        // Other pages come, unless the one who brings them is gone.
                        if !panics {
                            memory.read_page(Gfn(200), &mut found).unwrap();
                            assert!(found == page(Gfn(200)));
                        }
                    });
                }
            });
            let error = failure.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(matches!(error, RestoreError::Page { gfn: BAD, .. }), !panics, "{error}");
            assert!(filling.forget_on_failure().is_none());
            assert!(!filling.finish().filled);
        }
    }

    #[test]
    fn a_failure_that_nobody_waited_for_is_kept() {
        let Some((memory, filling)) = start(false, false) else { return };
        assert!(memory.read_page(BAD, &mut [0; PAGE_SIZE]).is_err());
        assert!(matches!(filling.forget_on_failure(), Some(RestoreError::Page { .. })));
        assert!(
            OnDemand::start(&memory, Arc::new(Numbered { panics: false }), FillOptions::default()).is_err(),
            "once for a memory"
        );
    }
}
