//! Guest memory as the engine needs it.
#![expect(unsafe_code, reason = "hands raw pointers to the copy")]

use super::copy::{stream_page, streamed};
use super::guest::{GuestMemory, MemoryError};
use crate::epoch::{Memory, Staging};
use crate::page::{Gfn, PAGE_SIZE, PageBytes, PageRun};
use crate::parked::Parked;

impl Memory for GuestMemory {
    fn frames(&self) -> u64 {
        Self::frames(self)
    }

    fn runs(&self) -> Vec<PageRun> {
        Self::runs(self).collect()
    }

    fn read(&self, gfn: Gfn, into: &mut PageBytes) -> Result<(), crate::epoch::MemoryError> {
        Ok(self.read_page(gfn, into)?)
    }

    fn put_back(&self, gfn: Gfn, page: &PageBytes) -> Result<(), crate::epoch::MemoryError> {
        Ok(self.fill_page(gfn, page)?)
    }

    fn copy(&self, gfns: &[Gfn], into: &mut Staging) -> Result<(), crate::epoch::MemoryError> {
        let mut froms = gfns.iter().map(|gfn| (*gfn, self.host_page(*gfn))).peekable();
        let mut copied = 0;
        let mut copy_all = || -> Result<(), MemoryError> {
            for place in into.free() {
                let Some((gfn, from)) = froms.next() else { break };
                let from = from.ok_or(MemoryError::NoFrame { gfn })?;
                self.bring(gfn, from)?;
                let next = froms.peek().and_then(|(_, from)| *from).unwrap_or(from);
                assert!(place.as_ptr().addr().is_multiple_of(PAGE_SIZE), "staging is page-aligned");
                // SAFETY: `from` is a page of guest memory, which `self` keeps mapped and to which
                // there is no reference; `place` is page-aligned, and borrowed for this loop only.
                unsafe { stream_page(from, place.as_mut_ptr(), next) };
                copied += 1;
            }
            Ok(())
        };
        let result = copy_all();
        streamed();
        into.hold(gfns.get(..copied).unwrap_or_default());
        Ok(result?)
    }

    fn written(&self) -> usize {
        Self::written(self).len()
    }

    fn take_written(&self, parked: &Parked<'_>, each: &mut dyn FnMut(Gfn)) {
        Self::written(self).take(parked, each);
    }
}
