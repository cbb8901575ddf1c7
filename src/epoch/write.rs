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
    /// Parts of this epoch were appended, its commit was not.
    open_epoch: Option<EpochId>,
    /// The pages of those parts. They are apart from `unsynced` because a sync that comes between two parts makes none of them durable.
    open_pages: PageSet,
    /// Epochs that were appended and are not known to be durable.
    unsynced_epochs: EpochRuns,
    /// Their pages.
    unsynced: PageSet,
    /// The first of them was cut then.
    unsynced_since: Option<Instant>,
    /// The sink takes nothing until it was opened again.
    latched: bool,
    /// The commit of this epoch latched the sink: it counts as failed, and may be found when the sink is opened again.
    doubtful: Option<EpochId>,
    /// The newest epoch that was told to `on_commit`.
    released: EpochId,
}

/// Rising epoch numbers. Takes memory for each gap in them, and not for each number.
#[derive(Debug, Default)]
struct EpochRuns(Vec<(EpochId, u64)>);

impl EpochRuns {
    fn push(&mut self, epoch: EpochId) {
        match self.0.last_mut() {
            Some((first, count)) if first.0.saturating_add(*count) == epoch.0 => *count += 1,
            _ => self.0.push((epoch, 1)),
        }
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// How many are at most `newest`.
    fn up_to(&self, newest: EpochId) -> u64 {
        let within = |(first, count): &(EpochId, u64)| newest.next().0.saturating_sub(first.0).min(*count);
        self.0.iter().map(within).sum()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

impl<C> Writer<C> {
    pub(super) fn new(
        sink: Box<dyn Sink>,
        shared: Arc<Shared<C>>,
        frames: u64,
        part_pages: usize,
        durability: Durability,
        on_commit: Option<OnCommit>,
    ) -> Self {
        Self {
            released: sink.tip(),
            sink,
            shared,
            durability,
            on_commit,
            open_epoch: None,
            open_pages: PageSet::new(frames, part_pages),
            unsynced_epochs: EpochRuns::default(),
            unsynced: PageSet::new(frames, part_pages.saturating_mul(4)),
            unsynced_since: None,
            latched: false,
            doubtful: None,
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
            Durability::Group(window) => self.unsynced_since.and_then(|since| since.checked_add(window / 2)),
            Durability::Epoch | Durability::None => None,
        }
    }

    fn take(&mut self, mut slot: Slot<C>) {
        if slot.part.generation <= self.shared.lock().failed_generation {
            self.give_back(&slot);
            self.shared.release(slot);
            return;
        }
        match self.append(&mut slot) {
            Ok(None) => {
                for gfn in slot.arena.gfns() {
                    self.open_pages.insert(*gfn);
                }
            }
            Ok(Some(bytes)) => {
                for gfn in slot.arena.gfns().iter().copied().chain(self.open_pages.iter()) {
                    self.unsynced.insert(gfn);
                }
                self.open_pages.clear();
                self.unsynced_epochs.push(slot.part.epoch);
                self.unsynced_since.get_or_insert(slot.part.cut_at);
                self.count(&slot, bytes);
                match self.durability {
                    Durability::Epoch => self.sync(),
                    Durability::Group(_) => {}
                    Durability::None => self.release_outputs(slot.part.epoch),
                }
            }
            Err(error) => {
                self.give_back(&slot);
                self.fail(error);
            }
        }
        self.shared.release(slot);
    }

    /// Appends a part; with the last one, the bytes of the epoch.
    fn append(&mut self, slot: &mut Slot<C>) -> Result<Option<u64>, PipelineError> {
        // The parts before one that could not be encoded stay in the sink until the next epoch comes.
        std::mem::replace(&mut slot.encoded, Ok(()))?;
        if self.latched {
            let newest = self.sink.reopen()?;
            self.reopened(newest);
        }
        // After any error of the sink, what it had of the epoch is gone.
        if self.open_epoch.take().is_some_and(|open| open != slot.part.epoch) {
            self.sink.abort()?;
        }
        match slot.part.commit {
            Some(mut commit) => {
                commit.base = self.sink.tip() == EpochId::NONE;
                let committed = self.sink.commit(&slot.frames, commit);
                if let Err(SinkError::Latched(_)) = committed {
                    self.doubtful = Some(slot.part.epoch);
                }
                Ok(Some(committed?))
            }
            None => {
                self.sink.append(slot.part.epoch, &slot.frames)?;
                self.open_epoch = Some(slot.part.epoch);
                Ok(None)
            }
        }
    }

    /// The chain ends at `newest` now, which is durable.
    fn reopened(&mut self, newest: EpochId) {
        self.latched = false;
        self.open_epoch = None;
        let found = self.unsynced_epochs.up_to(newest);
        let lost = self.unsynced_epochs.len() - found;
        let doubtful = self.doubtful.take().is_some_and(|epoch| epoch <= newest);
        self.unsynced_epochs.clear();
        let mut state = self.shared.lock();
        let progress = &mut state.progress;
        progress.committed = newest;
        progress.durable = newest;
        progress.epochs = progress.epochs - lost + u64::from(doubtful);
        progress.failed_epochs = progress.failed_epochs + lost - u64::from(doubtful);
        progress.durable_epochs += found + u64::from(doubtful);
        drop(state);
        self.shared.notify();
        self.release_outputs(newest);
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
        let epochs = self.unsynced_epochs.len();
        self.unsynced_epochs.clear();
        let mut state = self.shared.lock();
        state.progress.durable = durable;
        state.progress.durable_epochs += epochs;
        drop(state);
        self.shared.notify();
        self.release_outputs(durable);
    }

    fn release_outputs(&mut self, epoch: EpochId) {
        if epoch <= self.released {
            return;
        }
        self.released = epoch;
        if let Some(on_commit) = &mut self.on_commit {
            on_commit(epoch);
        }
    }

    /// Gives up everything that is in flight. Pages that are not in the chain must come again, and where the sink latched, those of all epochs that
    /// are not known to be durable.
    fn fail(&mut self, error: PipelineError) {
        tracing::warn!(error = &error as &dyn std::error::Error, "an epoch could not be stored");
        let mut state = self.shared.lock();
        for gfn in self.open_pages.iter() {
            state.failed_pages.insert(gfn);
        }
        self.open_pages.clear();
        if matches!(error, PipelineError::Sink(SinkError::Latched(_))) {
            for gfn in self.unsynced.iter() {
                state.failed_pages.insert(gfn);
            }
            self.unsynced.clear();
            self.unsynced_since = None;
            self.latched = true;
        }
        state.failed_generation = state.generation;
        state.failure = Some(error);
        drop(state);
        self.shared.notify();
    }

    /// Has the pages of a part that is not stored come again.
    fn give_back(&self, slot: &Slot<C>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_count_numbers_up_to_one() {
        let mut runs = EpochRuns::default();
        [2, 3, 4, 7, 9, 10].into_iter().for_each(|epoch| runs.push(EpochId(epoch)));
        assert_eq!((runs.len(), runs.0.len()), (6, 3));
        let counts: Vec<_> = (0..12).map(|newest| runs.up_to(EpochId(newest))).collect();
        assert_eq!(counts, [0, 0, 1, 2, 3, 3, 3, 4, 4, 5, 6, 6]);
        assert_eq!(runs.up_to(EpochId(u64::MAX)), 6);
    }
}
