//! A second copy of guest memory, as it was at one moment.

use memmap2::{MmapMut, MmapOptions};

use super::memory::{Memory, MemoryError};
use crate::page::{Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageBytes, PageRun};
use crate::parked::Parked;

/// What a page holds that was never written.
const ZERO: PageBytes = [0; PAGE_SIZE];

/// A page for each page of a guest's memory. The host gives memory for those that are saved and not
/// zero, and for no others.
#[derive(Debug)]
pub struct Shadow {
    runs: Vec<(PageRun, MmapMut)>,
}

impl Shadow {
    /// All zeros, for every page of `memory`.
    ///
    /// # Errors
    /// The error of `mmap`.
    pub fn new(memory: &dyn Memory) -> std::io::Result<Self> {
        let map = |run: PageRun| {
            let bytes = usize::try_from(run.count.saturating_mul(PAGE_SIZE_U64)).unwrap_or(usize::MAX);
            Ok((run, MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?))
        };
        Ok(Self { runs: memory.runs().into_iter().map(map).collect::<std::io::Result<_>>()? })
    }

    /// Saves `page` as the content of `gfn`.
    ///
    /// # Errors
    /// A frame that there is not.
    pub fn save(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), MemoryError> {
        let place = self.page_mut(gfn).ok_or_else(|| no_frame(gfn))?;
        place.copy_from_slice(page);
        Ok(())
    }

    /// Saves all of `memory`. Pages of zeros that are saved as such take no memory.
    ///
    /// # Errors
    /// A frame that there is not where `memory` is not the one that this is for.
    pub fn save_all(&mut self, parked: &Parked<'_>, memory: &dyn Memory) -> Result<(), MemoryError> {
        let _ = parked;
        let mut page = ZERO;
        for (run, map) in &mut self.runs {
            for (place, gfn) in map.as_chunks_mut().0.iter_mut().zip(run.first.0..) {
                memory.read(Gfn(gfn), &mut page)?;
                if *place != page {
                    *place = page;
                }
            }
        }
        Ok(())
    }

    /// Puts pages of `memory` back to what was saved of them. That is not recorded as a write of
    /// the VMM.
    ///
    /// # Errors
    /// A frame that there is not; pages before it were put back.
    pub fn put_back(
        &self,
        parked: &Parked<'_>,
        memory: &dyn Memory,
        gfns: impl IntoIterator<Item = Gfn>,
    ) -> Result<(), MemoryError> {
        let _ = parked;
        for gfn in gfns {
            let from = self.page(gfn).ok_or_else(|| no_frame(gfn))?;
            memory.put_back(gfn, from)?;
        }
        Ok(())
    }

    /// Compares all of `memory` with what was saved, and puts back the pages that differ. Returns
    /// how many did.
    ///
    /// # Errors
    /// A frame that there is not where `memory` is not the one that this is for.
    pub fn put_back_all(&self, parked: &Parked<'_>, memory: &dyn Memory) -> Result<u64, MemoryError> {
        let _ = parked;
        let mut differed = 0;
        let mut page = ZERO;
        for (run, map) in &self.runs {
            for (saved, gfn) in map.as_chunks().0.iter().zip(run.first.0..) {
                memory.read(Gfn(gfn), &mut page)?;
                if page != *saved {
                    memory.put_back(Gfn(gfn), saved)?;
                    differed += 1;
                }
            }
        }
        Ok(differed)
    }

    /// What was saved of `gfn`, where that is memory.
    #[must_use]
    pub fn page(&self, gfn: Gfn) -> Option<&PageBytes> {
        let (run, map) = self.runs.iter().find(|(run, _)| run.contains(gfn))?;
        map.as_chunks().0.get(usize::try_from(gfn.0 - run.first.0).ok()?)
    }

    fn page_mut(&mut self, gfn: Gfn) -> Option<&mut PageBytes> {
        let (run, map) = self.runs.iter_mut().find(|(run, _)| run.contains(gfn))?;
        map.as_chunks_mut().0.get_mut(usize::try_from(gfn.0 - run.first.0).ok()?)
    }
}

fn no_frame(gfn: Gfn) -> MemoryError {
    format!("frame {gfn} is no memory that was saved").into()
}
