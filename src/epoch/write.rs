//! The writer thread: appends epochs, syncs as the durability mode says, and keeps account of what is not durable.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use super::options::{Durability, OnCommit};
use super::pipeline::{PipelineError, Shared, Slot};
use super::sink::{Sink, SinkError};
use crate::page::{EpochId, PageSet};

/// The one who appends to the chain.
pub(super) struct Writer<C> {
    sink: Box<dyn Sink>,
    shared: Arc<Shared<C>>,
    durability: Durability,
    on_commit: Option<OnCommit>,
    /// Pages of parts and epochs that were appended and are not durable.
    unsynced: PageSet,
    /// The first of these epochs was cut then.
    unsynced_since: Option<Instant>,
    unsynced_epochs: u64,
    /// The newest generation seen.
    generation: u64,
    /// The sink takes nothing until it was opened again.
    latched: bool,
    /// Parts of this epoch were appended, its commit was not.
    open_epoch: Option<EpochId>,
}

impl<C> Writer<C> {
    pub(super) fn new(
        sink: Box<dyn Sink>,
        shared: Arc<Shared<C>>,
        frames: u64,
        budget: usize,
        durability: Durability,
        on_commit: Option<OnCommit>,
    ) -> Self {
        Self {
            sink,
            shared,
            durability,
            on_commit,
            unsynced: PageSet::new(frames, budget.saturating_mul(4)),
            unsynced_since: None,
            unsynced_epochs: 0,
            generation: 0,
            latched: false,
            open_epoch: None,
        }
    }

    /// Writes until no more parts come, then closes the chain.
    pub(super) fn run(mut self, parts: &Receiver<Slot<C>>) {
        loop {
            let next = match self.deadline() {
                Some(deadline) => parts.recv_timeout(deadline.saturating_duration_since(Instant::now())),
                None => parts.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(slot) => self.take(slot),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                self.sync();
            }
        }
        self.close();
    }

    /// When the epochs appended must be synced: half of the window is left for the sync itself.
    fn deadline(&self) -> Option<Instant> {
        match self.durability {
            Durability::Group(window) => self.unsynced_since.map(|since| since + window / 2),
            Durability::Epoch | Durability::None => None,
        }
    }

    fn take(&mut self, mut slot: Slot<C>) {
        if slot.part.generation <= self.shared.lock().failed_generation {
            self.fail_pages_of(&slot);
            self.shared.release(slot);
            return;
        }
        self.generation = slot.part.generation;
        let outcome = self.append(&mut slot);
        for gfn in slot.arena.gfns() {
            self.unsynced.insert(*gfn);
        }
        let cut_at = slot.part.cut_at;
        match outcome {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                self.unsynced_since.get_or_insert(cut_at);
                self.unsynced_epochs += 1;
                self.count(&slot, bytes);
                match self.durability {
                    Durability::Epoch => self.sync(),
                    Durability::Group(_) => {}
                    Durability::None => self.released(slot.part.epoch),
                }
            }
            Err(error) => self.fail(error),
        }
        self.shared.release(slot);
    }

    /// Appends a part; with the last one, the bytes of the epoch.
    fn append(&mut self, slot: &mut Slot<C>) -> Result<Option<u64>, PipelineError> {
        std::mem::replace(&mut slot.encoded, Ok(()))?;
        if self.latched {
            self.sink.reopen()?;
            self.latched = false;
        }
        if self.open_epoch.take().is_some_and(|open| open != slot.part.epoch) {
            self.sink.abort()?;
        }
        match slot.part.commit {
            Some(mut commit) => {
                commit.base = self.sink.tip() == EpochId::NONE;
                Ok(Some(self.sink.commit(&slot.frames, commit)?))
            }
            None => {
                self.sink.append(slot.part.epoch, &slot.frames)?;
                self.open_epoch = Some(slot.part.epoch);
                Ok(None)
            }
        }
    }

    fn count(&self, slot: &Slot<C>, bytes: u64) {
        let mut state = self.shared.lock();
        let progress = &mut state.progress;
        progress.committed = slot.part.epoch;
        progress.epochs += 1;
        progress.bytes_written += bytes;
        if let Some(commit) = &slot.part.commit {
            progress.zero_pages += commit.zero_pages;
            progress.unchanged_pages += commit.unchanged_pages;
        }
        drop(state);
        self.shared.notify();
    }

    fn sync(&mut self) {
        match self.sink.sync() {
            Ok(durable) => self.synced(durable),
            Err(error) => self.fail(error.into()),
        }
    }

    fn synced(&mut self, durable: EpochId) {
        self.unsynced.clear();
        self.unsynced_since = None;
        let epochs = std::mem::take(&mut self.unsynced_epochs);
        let mut state = self.shared.lock();
        state.progress.durable = durable;
        state.progress.durable_epochs += epochs;
        drop(state);
        self.shared.notify();
        self.released(durable);
    }

    fn released(&mut self, epoch: EpochId) {
        if let Some(on_commit) = &mut self.on_commit {
            on_commit(epoch);
        }
    }

    /// Gives up everything of the generation in hand. Pages of epochs that are not known to be durable must come again.
    fn fail(&mut self, error: PipelineError) {
        tracing::warn!(error = &error as &dyn std::error::Error, "an epoch could not be stored");
        self.latched |= matches!(error, PipelineError::Sink(SinkError::Latched(_)));
        self.open_epoch = None;
        let mut state = self.shared.lock();
        for gfn in self.unsynced.iter() {
            state.failed_pages.insert(gfn);
        }
        if !matches!(error, PipelineError::Sink(SinkError::Latched(_))) {
            // What was appended before is in the chain and will be synced; it only comes again.
            state.progress.failed_epochs += 1;
        } else {
            let lost = std::mem::take(&mut self.unsynced_epochs);
            state.progress.failed_epochs += lost.max(1);
            self.unsynced_since = None;
        }
        state.failed_generation = self.generation;
        state.failure = Some(error);
        drop(state);
        self.shared.notify();
    }

    fn fail_pages_of(&self, slot: &Slot<C>) {
        let mut state = self.shared.lock();
        for gfn in slot.arena.gfns() {
            state.failed_pages.insert(*gfn);
        }
        state.progress.failed_epochs += u64::from(slot.part.commit.is_some());
    }

    fn close(&mut self) {
        if self.open_epoch.take().is_some()
            && let Err(error) = self.sink.abort()
        {
            self.fail(error.into());
        }
        if self.latched {
            return; // what is there is read back by whoever opens the chain next
        }
        let sync = self.durability != Durability::None;
        match self.sink.close(sync) {
            Ok(durable) if sync => self.synced(durable),
            Ok(_) => {}
            Err(error) => self.fail(error.into()),
        }
    }
}
