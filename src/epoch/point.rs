//! What a rollback goes back to: memory and state of the last cut.

use super::guest::CapturedState;
use super::memory::{Memory, MemoryError};
use super::shadow::Shadow;
use super::staging::Staging;
use crate::page::EpochId;
use crate::parked::Parked;

/// The last cut, in memory.
#[derive(Debug)]
pub(super) struct Point<C> {
    pub(super) shadow: Shadow,
    pub(super) state: C,
    /// [`EpochId::NONE`] before the first cut.
    pub(super) epoch: EpochId,
    /// The shadow is all of memory as of the last cut; before the first one, only where memory was
    /// zeros then.
    whole: bool,
}

impl<C: CapturedState> Point<C> {
    /// None yet. `zeros` says that memory is zeros but for what the first cut collects.
    pub(super) fn new(memory: &dyn Memory, zeros: bool) -> std::io::Result<Self> {
        Ok(Self { shadow: Shadow::new(memory)?, state: C::default(), epoch: EpochId::NONE, whole: zeros })
    }

    /// The guest is parked for a cut: the first time, all of its memory is taken.
    pub(super) fn begin(&mut self, parked: &Parked<'_>, memory: &dyn Memory) -> Result<(), MemoryError> {
        if !std::mem::replace(&mut self.whole, true) {
            self.shadow.save_all(parked, memory)?;
        }
        Ok(())
    }

    /// Takes the pages of a part.
    pub(super) fn save(&mut self, part: &Staging) -> Result<(), MemoryError> {
        let mut pages = part.gfns().iter().enumerate().filter_map(|(place, gfn)| Some((*gfn, part.page(place)?)));
        pages.try_for_each(|(gfn, page)| self.shadow.save(gfn, page))
    }

    /// All parts of `epoch` were taken.
    pub(super) fn end(&mut self, epoch: EpochId, state: &C) {
        self.state.clone_from(state);
        self.epoch = epoch;
    }
}
