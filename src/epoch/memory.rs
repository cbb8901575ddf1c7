//! What the engine needs of a guest's memory.

use super::staging::Staging;
use crate::page::{Gfn, PageBytes, PageRun};
use crate::parked::Parked;

/// What can't be done with guest memory: a frame that there is not, a page that can't be read.
pub type MemoryError = Box<dyn std::error::Error + Send + Sync>;

/// A guest's memory, and which of its pages the VMM itself has written.
pub trait Memory: Send + std::fmt::Debug {
    /// Bounds the frames: every page is below.
    fn frames(&self) -> u64;

    /// All pages, as runs that rise and are disjoint. They stay the same while an engine has the
    /// memory.
    fn runs(&self) -> Vec<PageRun>;

    /// Reads one page.
    ///
    /// # Errors
    /// A frame that there is not, a page that can't be read.
    fn read(&self, gfn: Gfn, into: &mut PageBytes) -> Result<(), MemoryError>;

    /// Writes one page, which is not recorded as a write of the VMM.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn put_back(&self, gfn: Gfn, page: &PageBytes) -> Result<(), MemoryError>;

    /// Copies pages behind those that `into` holds, until all were copied or it is full. This is
    /// most of a pause.
    ///
    /// # Errors
    /// As [`read`](Self::read); pages before the one in question were copied.
    fn copy(&self, gfns: &[Gfn], into: &mut Staging) -> Result<(), MemoryError>;

    /// How many pages the VMM wrote since they were taken last, at least.
    fn written(&self) -> usize;

    /// Takes the pages that the VMM wrote. A page that is marked meanwhile comes now or the next
    /// time.
    fn take_written(&self, parked: &Parked<'_>, each: &mut dyn FnMut(Gfn));
}
