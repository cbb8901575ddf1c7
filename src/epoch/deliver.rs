//! The thread of one sink: gives it the epochs, has them synced as the durability mode says, and
//! keeps account of what would be lost with it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use super::encoded::Encoded;
use super::error::LeftReason;
use super::options::Durability;
use super::shared::{PipelineError, Shared, SinkState, Standing};
use super::sink::{Listen, Sink, SinkError, SinkStart, Told};
use super::slot::Slot;
use crate::format::{Complete, Head};
use crate::page::{EpochId, PageRun, PageSet};

/// What a sink's thread is told.
pub(super) enum Order<C> {
    /// A part of an epoch.
    Part(Arc<Encoded<C>>),
    /// The epochs of this attempt are next: say what they go on from.
    Attempt(u64),
    /// Be ready for the base of the try with this number.
    Join(u64),
    /// The sink has told something that the shared state has.
    Look,
    /// No more comes.
    End,
}

/// Brings what a sink tells to the shared state, and wakes its thread.
pub(super) struct Ear<C> {
    pub(super) sink: usize,
    pub(super) shared: Arc<Shared<C>>,
    pub(super) orders: Sender<Order<C>>,
}

impl<C: Send + Sync + 'static> Listen for Ear<C> {
    fn told(&self, told: Told) {
        match told {
            Told::Durable(epoch) => self.shared.durable(self.sink, epoch),
            Told::Acknowledged(epoch) => self.shared.acknowledged(self.sink, epoch),
            Told::Failed(error) => {
                if let Some(sink) = self.shared.lock().sinks.get_mut(self.sink) {
                    sink.told_failure = Some(error);
                }
                // It fails when the thread has ended, which is told nothing any more.
                let _ = self.orders.send(Order::Look);
            }
        }
    }
}

/// The one who uses a sink.
pub(super) struct Delivery<C> {
    index: usize,
    sink: Box<dyn Sink>,
    keeps: bool,
    shared: Arc<Shared<C>>,
    durability: Durability,
    /// All of guest memory.
    memory: Arc<[PageRun]>,
    /// The newest epoch that the sink has whole.
    head: Head,
    /// Parts of this epoch were appended, its end was not.
    open_epoch: Option<EpochId>,
    /// The pages of those parts. They are apart from `unsynced` because a sync that comes between
    /// two parts makes none of them durable.
    open_pages: PageSet,
    /// The pages of epochs that were appended and are not known to be durable.
    unsynced: PageSet,
    /// The first epoch that no sync was asked for was cut then.
    sync_due_since: Option<Instant>,
    /// The sink takes nothing until it was opened again.
    latched: bool,
    /// It began with epochs that are not durable.
    begins_unsynced: bool,
    /// The end of this epoch latched the sink: it counts as failed, and may be found when the sink
    /// is opened again.
    doubtful: Option<EpochId>,
}

impl<C> Delivery<C> {
    pub(super) fn new(
        (index, sink): (usize, Box<dyn Sink>),
        start: &SinkStart,
        shared: Arc<Shared<C>>,
        (frames, part_pages, memory): (u64, usize, Arc<[PageRun]>),
        durability: Durability,
    ) -> Self {
        Self {
            index,
            sink,
            keeps: start.keeps,
            shared,
            durability,
            memory,
            head: start.head,
            open_epoch: None,
            open_pages: PageSet::new(frames, part_pages),
            unsynced: PageSet::new(frames, part_pages),
            sync_due_since: None,
            latched: false,
            begins_unsynced: start.durable.is_some_and(|durable| durable < start.head.epoch),
            doubtful: None,
        }
    }

    /// Delivers until no more comes.
    pub(super) fn run(mut self, orders: &Receiver<Order<C>>) {
        if self.begins_unsynced {
            self.sync();
        }
        loop {
            let order = match self.deadline() {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            self.hear();
            match order {
                Ok(Order::Part(encoded)) => encoded.slot().into_iter().for_each(|slot| self.take(slot)),
                Ok(Order::Attempt(attempt)) => self.begin(attempt),
                Ok(Order::Join(number)) => self.join(number),
                Ok(Order::Look) => {}
                Err(RecvTimeoutError::Timeout) => self.sync(),
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.deadline().is_some_and(|at| Instant::now() >= at) {
                self.sync();
            }
        }
        self.close();
    }

    /// When the epochs appended must be synced: half of the window is left for the sync itself.
    fn deadline(&self) -> Option<Instant> {
        match self.durability {
            Durability::Group(window) => self.sync_due_since.and_then(|since| since.checked_add(window / 2)),
            Durability::Epoch | Durability::None => None,
        }
    }

    fn with_state<T>(&self, look: impl FnOnce(&mut SinkState) -> T) -> Option<T> {
        self.shared.lock().sinks.get_mut(self.index).map(look)
    }

    fn standing(&self) -> Option<Standing> {
        self.with_state(|state| state.standing.clone())
    }

    /// Takes note of what the sink has told.
    fn hear(&mut self) {
        let heard = self.with_state(|state| (state.unsynced.is_empty(), state.told_failure.take()));
        let Some((all_durable, failure)) = heard else { return };
        if all_durable {
            self.unsynced.clear();
        }
        if let Some(error) = failure.filter(|_| !self.latched) {
            self.fail(error.into());
        }
    }

    fn take(&mut self, slot: &Slot<C>) {
        // What is left of another try is no part of this one.
        let ours = |number| slot.part.joiner.is_some_and(|joiner| (joiner.sink, joiner.number) == (self.index, number));
        match self.standing() {
            Some(Standing::Following) if !slot.part.base_only => self.take_part(slot),
            Some(Standing::Joining(number, _)) if ours(number) => self.take_base(slot),
            _ => {}
        }
    }

    fn take_part(&mut self, slot: &Slot<C>) {
        if slot.part.attempt <= self.shared.lock().failed_attempt {
            self.give_back(slot);
            return;
        }
        let end = slot.complete.as_ref();
        let appended = self.append(slot, slot.part.epoch, (&slot.frames, end));
        if let (Err(PipelineError::Sink(SinkError::Latched(_))), Some(_)) = (&appended, end) {
            self.doubtful = Some(slot.part.epoch);
        }
        match appended {
            Ok(false) => {
                for gfn in slot.arena.gfns() {
                    self.open_pages.insert(*gfn);
                }
            }
            Ok(true) => {
                for gfn in slot.arena.gfns().iter().copied().chain(self.open_pages.iter()) {
                    self.unsynced.insert(gfn);
                }
                self.open_pages.clear();
                self.appended(slot, end);
            }
            Err(error) => {
                self.give_back(slot);
                self.fail(error);
            }
        }
    }

    /// Appends a part of `epoch`; its end, with the last one. Returns whether that is so.
    fn append(
        &mut self,
        slot: &Slot<C>,
        epoch: EpochId,
        (frames, end): (&[u8], Option<&Complete>),
    ) -> Result<bool, PipelineError> {
        // The parts before one that could not be encoded stay in the sink until the next epoch
        // comes.
        slot.encoded.clone()?;
        self.drop_other(epoch)?;
        match end {
            Some(end) => {
                self.sink.complete(frames, end)?;
                self.head = end.head();
            }
            None => {
                self.sink.append(epoch, frames)?;
                self.open_epoch = Some(epoch);
                if self.durability != Durability::None {
                    self.sink.begin_sync();
                }
            }
        }
        Ok(end.is_some())
    }

    /// After any error of the sink, what it had of the epoch is gone.
    fn drop_other(&mut self, epoch: EpochId) -> Result<(), SinkError> {
        match self.open_epoch.take() {
            Some(open) if open != epoch => self.sink.abort(),
            _ => Ok(()),
        }
    }

    /// A part of the base that this sink joins with.
    fn take_base(&mut self, slot: &Slot<C>) {
        let Some(joiner) = slot.part.joiner else { return };
        if slot.part.attempt <= self.shared.lock().failed_attempt {
            self.leave(LeftReason::NoEpoch);
            return;
        }
        let end = slot.base_complete.as_ref();
        match self.append(slot, joiner.epoch, (&slot.base_frames, end)) {
            Ok(false) => {}
            Ok(true) => {
                // Until it is durable, it may be gone with all that it has.
                self.memory.iter().for_each(|run| self.unsynced.insert_run(*run));
                let has_joined = self.with_state(|state| {
                    let joins = matches!(state.standing, Standing::Joining(..));
                    if joins {
                        state.standing = Standing::Following;
                    }
                    joins
                });
                if has_joined == Some(true) {
                    tracing::info!(sink = self.index, epoch = joiner.epoch.0, "a sink has joined");
                }
                self.appended(slot, end);
            }
            Err(error) => {
                self.latched |= matches!(error, PipelineError::Sink(SinkError::Latched(_)));
                self.leave(LeftReason::Failed(Arc::new(error)));
            }
        }
    }

    /// The sink has a whole epoch more, which ends so.
    fn appended(&mut self, slot: &Slot<C>, end: Option<&Complete>) {
        self.sync_due_since.get_or_insert(slot.part.cut_at);
        let epoch = self.head.epoch;
        self.with_state(|state| {
            state.unsynced.push(epoch);
            state.unacknowledged.push(epoch);
            state.lateness.appended(epoch, slot.part.cut_at);
            let progress = &mut state.progress;
            progress.reached.appended = epoch;
            progress.epochs += 1;
            if let Some(complete) = end.filter(|_| self.keeps) {
                progress.bytes_written += complete.commit.bytes_written;
                progress.zero_pages += complete.commit.zero_pages;
                progress.unchanged_pages += complete.commit.unchanged_pages;
            }
        });
        self.shared.notify();
        self.shared.completed(epoch);
        if self.durability == Durability::Epoch {
            self.sync();
        }
        self.shared.release();
    }

    fn sync(&mut self) {
        self.sync_due_since = None;
        if self.latched {
            return;
        }
        match self.sink.sync() {
            Ok(()) => self.hear(),
            Err(error) => self.fail(error.into()),
        }
    }

    /// The epochs of `attempt` come next, where there is no failure before.
    fn begin(&mut self, attempt: u64) {
        if !matches!(self.standing(), Some(Standing::Following)) {
            return;
        }
        if self.latched {
            match self.sink.reopen() {
                Ok(head) => self.reopened(head),
                Err(error) => return self.fail(error.into()),
            }
        }
        let mut state = self.shared.lock();
        let (head, others) = (self.head, state.goes_on);
        match others.filter(|(of, _)| *of == attempt) {
            None => state.goes_on = Some((attempt, head)),
            // Another was asked as well, and was quicker.
            Some((_, other)) if other != head => {
                drop(state);
                self.leave(LeftReason::OtherEpoch);
                return;
            }
            Some(_) => {}
        }
        drop(state);
        self.shared.notify();
    }

    /// The chain ends at `head` now, which is durable.
    fn reopened(&mut self, head: Head) {
        self.latched = false;
        self.open_epoch = None;
        self.head = head;
        self.sync_due_since = None;
        let newest = head.epoch;
        let doubtful = u64::from(self.doubtful.take().is_some_and(|epoch| epoch <= newest));
        self.with_state(|state| {
            let SinkState { progress, unsynced, unacknowledged, lateness, .. } = state;
            lateness.forget();
            let found = unsynced.take_up_to(newest);
            let lost = unsynced.len();
            unsynced.clear();
            unacknowledged.clear();
            progress.reached.appended = newest;
            progress.reached.durable = newest;
            progress.epochs = progress.epochs - lost + doubtful;
            progress.failed_epochs = progress.failed_epochs + lost - doubtful;
            progress.durable_epochs += found + doubtful;
        });
        self.unsynced.clear();
        self.shared.notify();
        self.shared.release();
    }

    /// Makes the sink ready for a base: whatever it has of an epoch that is not whole goes.
    fn join(&mut self, number: u64) {
        let asked = |state: &SinkState| matches!(state.standing, Standing::Opening(asked) if asked == number);
        if self.with_state(|state| asked(state)) != Some(true) {
            return;
        }
        match self.sink.reopen() {
            Ok(head) => {
                self.open_pages.clear();
                self.reopened(head);
                self.with_state(|state| {
                    if asked(state) {
                        state.standing = Standing::Joining(number, head);
                    }
                });
                self.shared.notify();
            }
            Err(error) => {
                self.latched = true;
                self.leave(LeftReason::Failed(Arc::new(error)));
            }
        }
    }

    /// Takes no more epochs until it is asked to join.
    fn leave(&mut self, reason: LeftReason) {
        tracing::warn!(sink = self.index, error = &reason as &dyn std::error::Error, "a sink gets no more epochs");
        if self.open_epoch.take().is_some() && !self.latched && self.sink.abort().is_err() {
            self.latched = true;
        }
        self.open_pages.clear();
        self.sync_due_since = None;
        self.with_state(|state| state.standing = Standing::Left(reason));
        self.shared.notify();
    }

    /// Something went wrong. Where others follow, the epochs go on to them. Where none does,
    /// everything that is in flight is given up: pages that are not in the chain must come again,
    /// and where the sink latched, those of all epochs that are not known to be durable.
    fn fail(&mut self, error: PipelineError) {
        let is_latched = matches!(error, PipelineError::Sink(SinkError::Latched(_)));
        self.latched |= is_latched;
        let mut state = self.shared.lock();
        let mut others = state.sinks.iter().enumerate().filter(|(index, _)| *index != self.index);
        let is_needed = matches!(error, PipelineError::Format(_)) || !others.any(|(_, sink)| sink.has_all());
        let follows = state.sinks.get(self.index).is_some_and(SinkState::follows);
        if !follows || !is_needed {
            // Before the state is unlocked, so that the last one that follows knows it.
            let reason = LeftReason::Failed(Arc::new(error));
            if let Some(sink) = state.sinks.get_mut(self.index) {
                sink.standing = Standing::Left(reason.clone());
            }
            drop(state);
            return self.leave(reason);
        }
        tracing::warn!(error = &error as &dyn std::error::Error, "an epoch could not be stored");
        for gfn in self.open_pages.iter() {
            state.failed_pages.insert(gfn);
        }
        self.open_pages.clear();
        if is_latched {
            for gfn in self.unsynced.iter() {
                state.failed_pages.insert(gfn);
            }
            self.unsynced.clear();
            self.sync_due_since = None;
        }
        state.failed_attempt = state.attempt;
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
        if let Some(sink) = state.sinks.get_mut(self.index) {
            sink.progress.failed_epochs += u64::from(slot.part.commit.is_some());
        }
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
        match self.sink.close(self.durability != Durability::None) {
            Ok(()) => {
                self.hear();
                self.with_state(|state| {
                    if state.follows() {
                        state.standing = Standing::Closed;
                    }
                });
            }
            Err(error) => self.fail(error.into()),
        }
    }
}
