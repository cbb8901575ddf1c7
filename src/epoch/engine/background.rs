//! Copying all of guest memory beside the running guest: for the first epoch of a guest that was in
//! use, or for a sink that joins while the others get their epochs.
//!
//! # Why nothing is missed
//! A page is copied while the guest may write it, so the copy may be of no instant. Such a page is
//! listed by the tracker, and comes again in an epoch that is cut later: the last mention counts.
//! The base is complete only with the last part of such an epoch.

use std::time::Instant;

use super::{Engine, Standing};
use crate::epoch::base::Base;
use crate::epoch::error::{EngineError, JoinError};
use crate::epoch::guest::CapturedState;
use crate::epoch::slot::Part;
use crate::page::{EpochId, PageSet};

impl<C: CapturedState> Engine<C> {
    /// Has a sink that gets no epochs join: it is opened again, and gets a base of its own beside
    /// the epochs that the others get. Call [`copy_base`](Self::copy_base) until it returns false;
    /// the next cut then is the first epoch that the sink has. The number of that epoch is the next
    /// but one that can be divided by a million: the sink's part of it is written before, and
    /// numbers rise.
    ///
    /// [`sinks`](Self::sinks) tells what came of it. Whatever fails, the others have every epoch.
    ///
    /// # Errors
    /// No such sink, one that has every epoch, a base that is being copied.
    pub fn join(&mut self, sink: usize) -> Result<(), JoinError> {
        match self.pipeline.sinks().get(sink) {
            None => return Err(JoinError::NoSink(sink)),
            Some((Standing::Following, _)) => return Err(JoinError::Follows(sink)),
            Some(_) if !matches!(self.base, Base::Done) => return Err(JoinError::Busy),
            Some(_) => {}
        }
        self.joins += 1;
        self.pipeline.ask_to_join(sink, self.joins);
        self.base = Base::Asked { sink };
        Ok(())
    }

    /// Copies up to a budget of pages of a base beside the running guest: the first epoch of a
    /// guest that was in use ([`Start::InUse`](super::Start::InUse)), or the base of a sink that
    /// joins. Call it again, with cuts in between as they come, until it returns false: the next
    /// cut then completes the base, or the one behind it where a round has begun the epoch in hand.
    /// It comes to that however much the guest writes. While storage is left alone after a failure,
    /// and while a sink that is to join is being opened, it returns true and copies nothing.
    ///
    /// # Errors
    /// [`EngineError::Storage`], [`EngineError::Memory`], [`EngineError::Ended`],
    /// [`EngineError::Halted`]. The next [`cut`](Self::cut) halts the guest.
    pub fn copy_base(&mut self) -> Result<bool, EngineError> {
        if self.halted {
            return Err(EngineError::Halted);
        }
        if self.base.is_copying() && self.storage_rests() && !self.pipeline.has_failed() {
            return Ok(true);
        }
        self.copy_base_part().inspect_err(|_| self.halted = true)
    }

    fn copy_base_part(&mut self) -> Result<bool, EngineError> {
        if matches!(self.base, Base::Fresh | Base::Done) {
            return Ok(false);
        }
        self.absorb_failure()?;
        match self.base {
            Base::Fresh | Base::Done => Ok(false),
            Base::Copying { left } => self.copy_first_epoch(left),
            Base::Asked { sink } => {
                self.begin_to_join(sink);
                Ok(!matches!(self.base, Base::Done))
            }
            Base::Joining(_) => self.copy_for_joiner(),
        }
    }

    fn copy_first_epoch(&mut self, left: u64) -> Result<bool, EngineError> {
        if self.pending.len() <= self.part_pages as u64 || left == 0 {
            self.base = Base::Fresh;
            return Ok(false);
        }
        self.copy_part()?;
        self.send_part(Instant::now())?;
        self.base = Base::Copying { left: left.saturating_sub(self.last_pages.len() as u64) };
        Ok(true)
    }

    /// Looks whether the sink is ready.
    fn begin_to_join(&mut self, sink: usize) {
        match self.pipeline.sinks().get(sink) {
            Some((Standing::Joining(number, head), _)) => {
                let pages = PageSet::new(self.memory.frames(), self.part_pages);
                // Behind the epoch in hand, which has its number already.
                let next = self.number_in_hand.map_or(self.next, EpochId::next);
                self.base.begin((sink, *head, *number), next, &self.runs, pages);
            }
            Some((Standing::Left(_), _)) | None => self.base = Base::Done,
            Some(_) => {}
        }
    }

    fn copy_for_joiner(&mut self) -> Result<bool, EngineError> {
        let Some(joiner) = self.base.joiner() else { return Ok(false) };
        if !matches!(self.pipeline.sinks().get(joiner.sink), Some((Standing::Joining(..), _))) {
            // It has failed, which its own thread has said.
            self.base = Base::Done;
            return Ok(false);
        }
        self.last_pages.clear();
        let has_more = self.base.take(self.part_pages, &mut self.last_pages);
        if self.last_pages.is_empty() {
            return Ok(false);
        }
        self.stage_pages()?;
        let Self { attempt, store_unchanged, .. } = *self;
        let part = Part {
            epoch: joiner.epoch,
            attempt,
            store_unchanged,
            cut_at: Instant::now(),
            commit: None,
            joiner: Some(joiner),
            base_only: true,
        };
        self.pipeline.submit(part);
        Ok(has_more)
    }

    /// A base that is still being copied is completed by the cut itself: beside the guest, but for
    /// what storage has failed to take by then.
    pub(super) fn complete_base(&mut self) -> Result<(), EngineError> {
        let parts = self.pages.div_ceil(self.part_pages as u64);
        for _ in 0..parts {
            if !self.copy_base_part()? {
                break;
            }
        }
        Ok(())
    }
}
