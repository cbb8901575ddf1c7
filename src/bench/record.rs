//! A sink that keeps what the engine says of each epoch, and drops the pages.

use std::sync::{Arc, Mutex, PoisonError};

use super::interleave::Turns;
use crate::epoch::{Sink, SinkError};
use crate::format::{ChainId, Commit};
use crate::page::EpochId;

/// What was kept, in the order of the epochs.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded(Arc<Mutex<Vec<Commit>>>);

impl Recorded {
    /// Hands over what was kept since the last time.
    pub(super) fn take(&self) -> Vec<Commit> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A chain that only counts.
#[derive(Debug)]
pub(super) struct RecordingSink {
    recorded: Recorded,
    turns: Arc<Turns>,
    tip: EpochId,
}

impl RecordingSink {
    pub(super) const fn new(recorded: Recorded, turns: Arc<Turns>) -> Self {
        Self { recorded, turns, tip: EpochId::NONE }
    }
}

impl Sink for RecordingSink {
    fn chain(&self) -> ChainId {
        ChainId([0; 16])
    }

    fn tip(&self) -> EpochId {
        self.tip
    }

    fn append(&mut self, _epoch: EpochId, _frames: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    fn commit(&mut self, frames: &[u8], commit: Commit) -> Result<u64, SinkError> {
        self.tip = commit.epoch;
        self.recorded.0.lock().unwrap_or_else(PoisonError::into_inner).push(commit);
        self.turns.committed();
        Ok(frames.len() as u64)
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<EpochId, SinkError> {
        Ok(self.tip)
    }

    fn reopen(&mut self) -> Result<EpochId, SinkError> {
        Ok(self.tip)
    }

    fn close(&mut self, _sync: bool) -> Result<EpochId, SinkError> {
        Ok(self.tip)
    }
}
