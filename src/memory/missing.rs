//! Guest memory whose pages come as they are touched, and which of them have come.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use zerocopy::FromZeros;

use super::{GuestMemory, MemoryError};
use crate::kvm::uffd::{Fault, MissingPages};
use crate::page::{Gfn, PageRun};

/// Which pages of a guest's memory were put in place.
#[derive(Debug)]
pub struct FilledPages {
    bits: Box<[AtomicU64]>,
    /// Those that were not are zeros.
    whole: AtomicBool,
    /// No more will come.
    ended: AtomicBool,
    /// Some can't come.
    lacking: AtomicBool,
}

impl FilledPages {
    /// None of the frames below `frames`.
    ///
    /// # Errors
    /// There is no memory for a bit a frame.
    pub fn new(frames: u64) -> io::Result<Self> {
        let words = usize::try_from(frames.div_ceil(64)).unwrap_or(usize::MAX);
        // Not touched before it is needed: the guest waits for this.
        let bits = <[AtomicU64]>::new_box_zeroed_with_elems(words).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(Self { bits, whole: AtomicBool::new(false), ended: AtomicBool::new(false), lacking: AtomicBool::new(false) })
    }

    fn word(&self, gfn: Gfn) -> Option<&AtomicU64> {
        self.bits.get(usize::try_from(gfn.0 / 64).ok()?)
    }

    /// Whether the page needs no filling: it has come, or all have that are not zeros.
    #[must_use]
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.word(gfn).is_some_and(|word| word.load(Ordering::Acquire) >> (gfn.0 % 64) & 1 != 0) || self.is_whole()
    }

    /// Notes that the page has come.
    pub fn mark(&self, gfn: Gfn) {
        if let Some(word) = self.word(gfn) {
            word.fetch_or(1 << (gfn.0 % 64), Ordering::AcqRel);
        }
    }

    /// Whether every page that is not zeros has come.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Every page that is not zeros has come.
    pub fn note_whole(&self) {
        self.whole.store(true, Ordering::Release);
    }

    /// Whether nobody brings pages any more. If memory is not whole then, what has not come must
    /// not be read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether there is a page that can't be brought.
    pub(super) fn lacks_any(&self) -> bool {
        self.lacking.load(Ordering::Acquire)
    }

    /// Nobody brings pages any more.
    pub fn note_end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// Guest memory whose missing pages are waited for. Made by [`GuestMemory::wait_for_missing`].
///
/// When this is dropped and memory is not whole, missing pages are zeros for whoever touches them
/// by other means than [`GuestMemory::read_page`] and
/// [`Memory::copy`](crate::epoch::Memory::copy), which fail then: no guest may run on it.
#[derive(Debug)]
pub struct MissingMemory {
    /// Goes first: the memory must outlive it.
    pages: MissingPages,
    memory: GuestMemory,
    filled: Arc<FilledPages>,
}

impl MissingMemory {
    pub(super) const fn new(pages: MissingPages, memory: GuestMemory, filled: Arc<FilledPages>) -> Self {
        Self { pages, memory, filled }
    }

    /// Which pages have come: for whoever brings them to note.
    #[must_use]
    pub fn filled(&self) -> &FilledPages {
        &self.filled
    }

    /// The memory.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The descriptor, readable when there is a fault.
    #[must_use]
    pub const fn pages(&self) -> &MissingPages {
        &self.pages
    }

    /// As [`MissingPages::take_fault`].
    ///
    /// # Errors
    /// As there.
    pub fn take_fault(&self) -> io::Result<Option<Fault>> {
        self.pages.take_fault()
    }

    /// As [`MissingPages::copy`].
    ///
    /// # Errors
    /// As there.
    pub fn copy(&self, first: Gfn, pages: &[u8]) -> io::Result<u64> {
        self.pages.copy(first, pages)
    }

    /// As [`MissingPages::zero`].
    ///
    /// # Errors
    /// As there.
    pub fn zero(&self, run: PageRun) -> io::Result<u64> {
        self.pages.zero(run)
    }

    /// Makes a page that can't be brought inaccessible, for good: whoever waits for it, or touches
    /// it later, gets an error of the call in hand (`KVM_RUN` ends with `EFAULT`), and code of this
    /// process that touches it in user mode gets SIGSEGV. Nobody gets zeros.
    ///
    /// # Errors
    /// [`MemoryError`]; who waits, waits on.
    pub fn deny(&self, gfn: Gfn) -> Result<(), MemoryError> {
        self.filled.lacking.store(true, Ordering::Release);
        // In this order: who is woken finds the page inaccessible.
        self.memory.forbid(PageRun { first: gfn, count: 1 })?;
        self.pages.give_up(gfn).map_err(|source| MemoryError::Unreadable { gfn, source })
    }

    /// As [`deny`](Self::deny), with all of memory.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn deny_all(&self) -> Result<(), MemoryError> {
        self.filled.lacking.store(true, Ordering::Release);
        for run in self.memory.runs() {
            self.memory.forbid(run)?;
        }
        self.pages.end().map_err(|source| MemoryError::Unreadable { gfn: Gfn(0), source })
    }

    /// Ends the waiting, every page that is not zeros being there.
    ///
    /// # Errors
    /// As [`MissingPages::end`].
    pub fn end(&self) -> io::Result<()> {
        self.pages.end()
    }
}
