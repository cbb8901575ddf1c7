//! Page-aligned memory that a cut copies into.
#![expect(unsafe_code, reason = "hands raw pointers to the copy")]

use memmap2::{Advice, MmapMut};

use super::copy::{stream_page, streamed};
use super::guest::{GuestMemory, MemoryError};
use crate::page::{Gfn, PAGE_SIZE, PageBytes};

/// Room for a fixed number of pages, page-aligned (a copy to a place 16 bytes off takes five times as long: measured, docs/kernel.md) and touched at start, so that
/// a copy never waits for the host to find memory.
#[derive(Debug)]
pub struct Arena {
    map: MmapMut,
    gfns: Vec<Gfn>,
    capacity: usize,
}

impl Arena {
    /// Takes the memory for `capacity` pages.
    ///
    /// # Errors
    /// The error of `mmap`.
    pub fn new(capacity: usize) -> std::io::Result<Self> {
        let mut map = MmapMut::map_anon(capacity.max(1) * PAGE_SIZE)?;
        // Only a hint: kernels without transparent huge pages refuse it.
        let _ = map.advise(Advice::HugePage);
        for page in map.chunks_mut(PAGE_SIZE) {
            if let Some(byte) = page.first_mut() {
                // The compiler may not drop a write to memory that is read later.
                *byte = 1;
            }
        }
        Ok(Self { map, gfns: Vec::with_capacity(capacity), capacity })
    }

    /// How many pages fit.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// The frames of the pages held, in the order of their places.
    #[must_use]
    pub fn gfns(&self) -> &[Gfn] {
        &self.gfns
    }

    /// Forgets all pages.
    pub fn clear(&mut self) {
        self.gfns.clear();
    }

    /// Copies pages of `memory` to the places behind those taken, until all of `gfns` were copied or the arena is full.
    ///
    /// # Errors
    /// [`MemoryError::NoFrame`], [`MemoryError::Unreadable`]; pages before it were copied.
    pub fn copy_from(&mut self, memory: &GuestMemory, gfns: &[Gfn]) -> Result<(), MemoryError> {
        let free = self.map.chunks_exact_mut(PAGE_SIZE).take(self.capacity).skip(self.gfns.len());
        let mut froms = gfns.iter().map(|gfn| (*gfn, memory.host_page(*gfn))).peekable();
        for place in free {
            let Some((gfn, from)) = froms.next() else { break };
            let from = from.ok_or(MemoryError::NoFrame { gfn })?;
            memory.bring(gfn, from)?;
            let next = froms.peek().and_then(|(_, from)| *from).unwrap_or(from);
            // SAFETY: `from` is a page of guest memory, which `memory` keeps mapped and to which there is no reference; `place` is a page of this
            // arena, page-aligned as the mapping is, and borrowed for this loop only.
            unsafe { stream_page(from, place.as_mut_ptr(), next) };
            self.gfns.push(gfn);
        }
        streamed();
        Ok(())
    }

    /// The page at place `index`, where one is held.
    #[must_use]
    pub fn page(&self, index: usize) -> Option<&PageBytes> {
        if index >= self.gfns.len() {
            return None;
        }
        self.map.get(index * PAGE_SIZE..(index + 1) * PAGE_SIZE)?.try_into().ok()
    }
}
