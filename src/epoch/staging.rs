//! Page-aligned memory that a cut copies into.

use memmap2::{Advice, MmapMut};

use crate::page::{Gfn, PAGE_SIZE, PageBytes};

/// Room for a fixed number of pages, page-aligned: a copy to a place 16 bytes off takes five times
/// as long (measured, docs/kernel.md).
#[derive(Debug)]
pub struct Staging {
    map: MmapMut,
    gfns: Vec<Gfn>,
    capacity: usize,
}

impl Staging {
    /// Takes the address space for `capacity` pages: see [`touch`](Self::touch).
    ///
    /// # Errors
    /// The error of `mmap`.
    pub fn new(capacity: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(capacity.max(1) * PAGE_SIZE)?;
        // Only a hint: kernels without transparent huge pages refuse it.
        let _ = map.advise(Advice::HugePage);
        Ok(Self { map, gfns: Vec::with_capacity(capacity), capacity })
    }

    /// Takes the memory, so that a copy never waits for the host to find some.
    pub fn touch(&mut self) {
        for page in self.map.chunks_mut(PAGE_SIZE) {
            if let Some(byte) = page.first_mut() {
                // The compiler may not drop a write to memory that is read later.
                *byte = 1;
            }
        }
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

    /// The places that hold no page yet, in order. What is copied there is held after
    /// [`hold`](Self::hold).
    pub fn free(&mut self) -> impl Iterator<Item = &mut PageBytes> {
        let held = self.gfns.len();
        self.map.as_chunks_mut().0.iter_mut().take(self.capacity).skip(held)
    }

    /// The next places hold these pages now. What does not fit is left out.
    pub fn hold(&mut self, gfns: &[Gfn]) {
        let free = self.capacity.saturating_sub(self.gfns.len());
        self.gfns.extend(gfns.iter().take(free));
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
