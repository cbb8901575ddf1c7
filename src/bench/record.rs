//! A sink that keeps what the engine says of each epoch, and drops the pages.

use std::sync::{Arc, Mutex};

use super::interleave::Turns;
use crate::epoch::{Marks, Sink, SinkError, SinkStart};
use crate::format::{Commit, Complete, Head};
use crate::lock::lock;
use crate::page::EpochId;

/// What was kept, in the order of the epochs.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded(Arc<Mutex<Vec<Commit>>>);

impl Recorded {
    /// Hands over what was kept since the last time.
    pub(super) fn take(&self) -> Vec<Commit> {
        std::mem::take(&mut lock(&self.0))
    }
}

/// A chain that only counts.
#[derive(Debug)]
pub(super) struct RecordingSink {
    recorded: Recorded,
    turns: Arc<Turns>,
    head: Head,
    marks: Marks,
}

impl RecordingSink {
    pub(super) const fn new(recorded: Recorded, turns: Arc<Turns>) -> Self {
        Self { recorded, turns, head: Head { epoch: EpochId::NONE, identity: 0, cut: None }, marks: Marks::nowhere() }
    }
}

impl Sink for RecordingSink {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.marks = marks;
        SinkStart { head: self.head, durable: Some(self.head.epoch), keeps: true, ..SinkStart::default() }
    }

    fn append(&mut self, _epoch: EpochId, _frames: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    fn complete(&mut self, _frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        self.head = epoch.head();
        lock(&self.recorded.0).push(epoch.commit);
        self.turns.appended();
        Ok(())
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.marks.durable(self.head.epoch);
        Ok(())
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        Ok(self.head)
    }

    fn close(&mut self, _sync: bool) -> Result<(), SinkError> {
        self.sync()
    }
}
