//! What is decided while memory fills on demand: what to put where, and which page comes next. No
//! thread, no clock, no kernel.
//!
//! # Why the guest never sees anything but the epoch's pages
//! A page is put only where it is missing, whole, by one operation of the kernel, which leaves a
//! page alone that is there: whoever comes second of two that bring the same page changes nothing,
//! even if the guest has written the page meanwhile. Both bring the same content, the epoch's. A
//! page is noted as filled only after it was put, and missing pages are given up to the kernel
//! (which makes them zeros) only after every page that the source has was noted.

use std::io;

use memmap2::MmapMut;

use super::RestoreError;
use super::pages::PageSource;
use crate::format::BLOCK_PAGES;
use crate::memory::{FilledPages, MissingMemory};
use crate::page::{Gfn, PAGE_SIZE, PageRun, runs};

/// Where pages are put that are missing. A page that is there stays as it is.
pub(super) trait Place {
    /// Puts whole pages from `first` on, and returns how many were missing.
    fn copy(&self, first: Gfn, pages: &[u8]) -> io::Result<u64>;
    /// The same with zeros.
    fn zero(&self, run: PageRun) -> io::Result<u64>;
    /// Which pages were put.
    fn filled(&self) -> &FilledPages;
}

impl Place for MissingMemory {
    fn copy(&self, first: Gfn, pages: &[u8]) -> io::Result<u64> {
        Self::copy(self, first, pages)
    }

    fn zero(&self, run: PageRun) -> io::Result<u64> {
        Self::zero(self, run)
    }

    fn filled(&self) -> &FilledPages {
        Self::filled(self)
    }
}

/// Pages on their way from a source to their place.
#[derive(Debug)]
pub(super) struct Batch {
    /// Page-aligned: copying from elsewhere takes several times as long.
    bytes: MmapMut,
    /// Whose content is in `bytes`, one after the other.
    pages: Vec<Gfn>,
    zeros: Vec<Gfn>,
}

impl Batch {
    pub(super) fn new() -> io::Result<Self> {
        let bytes = MmapMut::map_anon(BLOCK_PAGES * PAGE_SIZE)?;
        Ok(Self { bytes, pages: Vec::with_capacity(BLOCK_PAGES), zeros: Vec::new() })
    }

    /// Reads `gfn`, and keeps of what comes with it what is not in place.
    pub(super) fn read(&mut self, gfn: Gfn, source: &mut dyn PageSource, filled: &FilledPages) -> Result<(), RestoreError> {
        let Self { bytes, pages, zeros } = self;
        pages.clear();
        zeros.clear();
        source.read(gfn, &mut |found, content| {
            if (found != gfn && filled.contains(found)) || pages.contains(&found) || zeros.contains(&found) {
                return;
            }
            match content {
                None => zeros.push(found),
                Some(content) => {
                    // There is always room for the page that is wanted.
                    let room = if found == gfn { BLOCK_PAGES } else { BLOCK_PAGES - 1 + usize::from(pages.contains(&gfn)) };
                    let at = pages.len() * PAGE_SIZE;
                    if let Some(place) = bytes.get_mut(at..at + PAGE_SIZE).filter(|_| pages.len() < room) {
                        place.copy_from_slice(content);
                        pages.push(found);
                    }
                }
            }
        })
    }

    /// Puts the page that was asked for, and if it is zeros those beside it. Returns how many were
    /// put.
    ///
    /// # Errors
    /// The place's; `NotFound` where the source did not give the page.
    pub(super) fn put_asked(&mut self, gfn: Gfn, place: &dyn Place) -> io::Result<Put> {
        if let Some(at) = self.pages.iter().position(|page| *page == gfn) {
            let page = self.bytes.get(at * PAGE_SIZE..(at + 1) * PAGE_SIZE).unwrap_or_default();
            let pages = place.copy(gfn, page)?;
            place.filled().mark(gfn);
            return Ok(Put { pages, zeros: 0 });
        }
        self.zeros.sort_unstable();
        let run = runs(self.zeros.iter().copied()).find(|run| run.contains(gfn)).ok_or(io::ErrorKind::NotFound)?;
        Ok(Put { pages: 0, zeros: put_zeros(run, place)? })
    }

    /// Puts all the rest.
    ///
    /// # Errors
    /// The place's.
    pub(super) fn put_rest(&mut self, asked: Gfn, place: &dyn Place) -> io::Result<Put> {
        let mut put = Put::default();
        let mut at = 0;
        while let Some(first) = self.pages.get(at).copied() {
            // Pages that follow each other in the block and in memory go together.
            let rest = self.pages.get(at..).unwrap_or_default();
            let count = rest.iter().zip(first.0..).take_while(|(gfn, expected)| gfn.0 == *expected && **gfn != asked).count();
            if count == 0 {
                at += 1;
                continue;
            }
            put.pages += place.copy(first, self.bytes.get(at * PAGE_SIZE..(at + count) * PAGE_SIZE).unwrap_or_default())?;
            (first.0..).take(count).for_each(|gfn| place.filled().mark(Gfn(gfn)));
            at += count;
        }
        self.zeros.sort_unstable();
        for run in runs(self.zeros.iter().copied()).filter(|run| !run.contains(asked)) {
            put.zeros += put_zeros(run, place)?;
        }
        Ok(put)
    }
}

fn put_zeros(run: PageRun, place: &dyn Place) -> io::Result<u64> {
    let zeros = place.zero(run)?;
    (run.first.0..run.first.0 + run.count).for_each(|gfn| place.filled().mark(Gfn(gfn)));
    Ok(zeros)
}

/// Pages that were put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) pages: u64,
    pub(super) zeros: u64,
}

/// Why the background brings a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The guest touched it the last time.
    Recorded,
    /// It is left.
    Rest,
}

/// Which pages the background brings: first those that were touched the last time, in that order,
/// then all others in the source's order.
#[derive(Debug)]
pub(super) struct Walk {
    recorded: std::vec::IntoIter<Gfn>,
    place: u64,
}

impl Walk {
    pub(super) fn new(recorded: Vec<Gfn>) -> Self {
        Self { recorded: recorded.into_iter(), place: 0 }
    }

    /// The next page that has not come.
    pub(super) fn next(
        &mut self,
        source: &mut dyn PageSource,
        filled: &FilledPages,
    ) -> Result<Option<(Gfn, Turn)>, RestoreError> {
        if let Some(gfn) = self.recorded.find(|gfn| !filled.contains(*gfn)) {
            return Ok(Some((gfn, Turn::Recorded)));
        }
        while let Some(gfn) = source.next(&mut self.place)? {
            if !filled.contains(gfn) {
                return Ok(Some((gfn, Turn::Rest)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::page::PageBytes;
    use crate::store::testing::Random;

    const FRAMES: u64 = 96;

    /// The page's content at the epoch: none for zeros.
    fn epoch_page(gfn: Gfn) -> Option<PageBytes> {
        let byte = u8::try_from(gfn.0 % 250 + 1).unwrap();
        (gfn.0 % 7 != 3).then_some([byte; PAGE_SIZE])
    }

    /// Gives a page and its neighbours in groups of `group`.
    struct Source {
        group: u64,
    }

    impl PageSource for Source {
        fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, Option<&PageBytes>)) -> Result<(), RestoreError> {
            let first = gfn.0 - gfn.0 % self.group;
            for other in (first..(first + self.group).min(FRAMES)).map(Gfn) {
                take(other, epoch_page(other).as_ref());
            }
            Ok(())
        }

        fn next(&mut self, place: &mut u64) -> Result<Option<Gfn>, RestoreError> {
            // Backwards, to tell this order from others.
            let found = (*place < FRAMES).then(|| Gfn(FRAMES - 1 - *place));
            *place += 1;
            Ok(found)
        }
    }

    /// The kernel: pages that are there, and what the guest made of them.
    struct Kernel {
        pages: RefCell<BTreeMap<Gfn, PageBytes>>,
        filled: FilledPages,
    }

    impl Kernel {
        fn put(&self, gfn: Gfn, page: &[u8]) -> u64 {
            let mut pages = self.pages.borrow_mut();
            if pages.contains_key(&gfn) {
                return 0;
            }
            pages.insert(gfn, page.try_into().unwrap());
            1
        }
    }

    impl Place for Kernel {
        fn copy(&self, first: Gfn, pages: &[u8]) -> io::Result<u64> {
            assert!(!pages.is_empty() && pages.len().is_multiple_of(PAGE_SIZE));
            Ok((first.0..).zip(pages.chunks(PAGE_SIZE)).map(|(gfn, page)| self.put(Gfn(gfn), page)).sum())
        }

        fn zero(&self, run: PageRun) -> io::Result<u64> {
            Ok((run.first.0..run.first.0 + run.count).map(|gfn| self.put(Gfn(gfn), &[0; PAGE_SIZE])).sum())
        }

        fn filled(&self) -> &FilledPages {
            &self.filled
        }
    }

    /// What one thread is about to do.
    enum Step {
        Read,
        Asked(Gfn),
        Rest(Gfn),
    }

    /// Two fault threads and the background at any interleaving, over a guest that writes what it
    /// finds.
    #[test]
    fn the_guest_finds_the_pages_of_the_epoch_in_any_race() {
        for seed in 0..200 {
            let mut random = Random(seed);
            let kernel = Kernel { pages: RefCell::default(), filled: FilledPages::new(FRAMES).unwrap() };
            let recorded: Vec<_> = (0..random.below(20)).map(|_| Gfn(random.below(FRAMES))).collect();
            let mut walk = Walk::new(recorded);
            let group = [1, 5, 16, 40][usize::try_from(random.below(4)).unwrap()];
            let mut source = Source { group };
            let mut threads: Vec<_> = (0..3).map(|_| (Batch::new().unwrap(), Step::Read)).collect();
            let mut guest: BTreeMap<Gfn, PageBytes> = BTreeMap::new();
            let mut over = false;
            while !over {
                let which = usize::try_from(random.below(3)).unwrap();
                let (batch, step) = &mut threads[which];
                *step = match *step {
                    Step::Read => {
                        let next = if which == 0 {
                            let next = walk.next(&mut source, &kernel.filled).unwrap();
                            over = next.is_none();
                            next.map(|(gfn, _)| gfn)
                        } else {
                            Some(Gfn(random.below(FRAMES)))
                        };
                        let Some(gfn) = next else { continue };
                        batch.read(gfn, &mut source, &kernel.filled).unwrap();
                        Step::Asked(gfn)
                    }
                    Step::Asked(gfn) => {
                        batch.put_asked(gfn, &kernel).unwrap();
                        let mut pages = kernel.pages.borrow_mut();
                        let page = pages.get_mut(&gfn).expect("it was asked for");
                        let expected = guest.get(&gfn).copied().or_else(|| epoch_page(gfn)).unwrap_or([0; PAGE_SIZE]);
                        assert!(*page == expected, "seed {seed}: {gfn} is another page");
                        // The guest goes on and writes it.
                        page[9] = page[9].wrapping_add(1);
                        guest.insert(gfn, *page);
                        Step::Rest(gfn)
                    }
                    Step::Rest(gfn) => {
                        batch.put_rest(gfn, &kernel).unwrap();
                        Step::Read
                    }
                };
            }
            let pages = kernel.pages.into_inner();
            for gfn in (0..FRAMES).map(Gfn) {
                let found = pages.get(&gfn).copied();
                // What is missing now is made zeros by the kernel.
                let expected = guest.get(&gfn).copied().or_else(|| epoch_page(gfn));
                assert!(found.unwrap_or([0; PAGE_SIZE]) == expected.unwrap_or([0; PAGE_SIZE]), "seed {seed}: {gfn}");
                assert!(found.is_none() || kernel.filled.contains(gfn));
            }
        }
    }

    #[test]
    fn touched_pages_come_first_then_the_rest_in_the_sources_order() {
        let filled = FilledPages::new(FRAMES).unwrap();
        let mut source = Source { group: 1 };
        let mut walk = Walk::new([50, 7, 7, 8].map(Gfn).to_vec());
        filled.mark(Gfn(8));
        filled.mark(Gfn(95));
        let mut order = Vec::new();
        while let Some((gfn, turn)) = walk.next(&mut source, &filled).unwrap() {
            filled.mark(gfn);
            order.push((gfn.0, turn));
        }
        assert_eq!(order[..4], [(50, Turn::Recorded), (7, Turn::Recorded), (94, Turn::Rest), (93, Turn::Rest)]);
        assert_eq!(order.len() as u64, FRAMES - 2);
    }

    #[test]
    fn a_source_that_does_not_give_the_page_is_an_error_and_no_zeros() {
        struct Empty;
        impl PageSource for Empty {
            fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, Option<&PageBytes>)) -> Result<(), RestoreError> {
                take(Gfn(gfn.0 + 1), None);
                Ok(())
            }
            fn next(&mut self, _: &mut u64) -> Result<Option<Gfn>, RestoreError> {
                Ok(None)
            }
        }
        let kernel = Kernel { pages: RefCell::default(), filled: FilledPages::new(FRAMES).unwrap() };
        let mut batch = Batch::new().unwrap();
        batch.read(Gfn(4), &mut Empty, &kernel.filled).unwrap();
        assert_eq!(batch.put_asked(Gfn(4), &kernel).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(kernel.pages.borrow().is_empty() && !kernel.filled.contains(Gfn(4)));
    }
}
