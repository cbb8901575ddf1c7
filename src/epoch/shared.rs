//! What the engine, the encoder and the sinks' threads share.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::error::LeftReason;
use super::lateness::Lateness;
use super::options::OnRelease;
use super::release::{Reached, Release};
use super::sink::{SinkError, SinkStart};
use super::slot::Slot;
use crate::format::{FormatError, Head};
use crate::lock::lock;
use crate::page::{EpochId, PageSet};

/// The number of the first attempt.
pub(super) const FIRST_ATTEMPT: u64 = 1;

/// Why the newest failed epoch could not be stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum PipelineError {
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("encoding")]
    Format(#[from] FormatError),
}

/// Whether a sink has the epochs.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// It is given every epoch.
    Following,
    /// It was given every epoch, and its chain has ended in order.
    Closed,
    /// It is asked whether it can be given a base, for the try with this number.
    Opening(u64),
    /// It is given a base of its own in that try. Its newest epoch is this one.
    Joining(u64, Head),
    /// It is given nothing, for this reason.
    Left(LeftReason),
}

/// What one sink has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) reached: Reached,
    pub(super) epochs: u64,
    pub(super) durable_epochs: u64,
    pub(super) released_epochs: u64,
    pub(super) acknowledged_epochs: u64,
    pub(super) bytes_written: u64,
    pub(super) zero_pages: u64,
    pub(super) unchanged_pages: u64,
    pub(super) failed_epochs: u64,
}

/// One sink, as all see it.
#[derive(Debug)]
pub(super) struct SinkState {
    pub(super) standing: Standing,
    /// Whether it ever tells what is durable.
    tells_durable: bool,
    pub(super) progress: Progress,
    /// Epochs that were appended and are not known to be durable.
    pub(super) unsynced: EpochRuns,
    /// Epochs that were appended and that no other host is known to hold.
    pub(super) unacknowledged: EpochRuns,
    pub(super) lateness: Lateness,
    /// What the sink told besides, for its own thread.
    pub(super) told_failure: Option<SinkError>,
}

impl SinkState {
    pub(super) fn new(standing: Standing, start: &SinkStart) -> Self {
        let SinkStart { head, durable, .. } = *start;
        let reached = Reached { appended: head.epoch, durable: durable.unwrap_or(EpochId::NONE), ..Reached::default() };
        let progress = Progress { reached, ..Progress::default() };
        Self {
            standing,
            tells_durable: durable.is_some(),
            progress,
            unsynced: EpochRuns::default(),
            unacknowledged: EpochRuns::default(),
            lateness: Lateness::new(),
            told_failure: None,
        }
    }

    pub(super) const fn follows(&self) -> bool {
        matches!(self.standing, Standing::Following)
    }

    /// Whether it has every epoch.
    pub(super) const fn has_all(&self) -> bool {
        matches!(self.standing, Standing::Following | Standing::Closed)
    }
}

#[derive(Debug)]
pub(super) struct State<C> {
    pub(super) free: Vec<Slot<C>>,
    pub(super) sinks: Vec<SinkState>,
    /// The newest failure that the engine has not seen, and the pages that it must bring again.
    pub(super) failure: Option<PipelineError>,
    pub(super) failed_pages: PageSet,
    /// What is of this attempt or an older one is thrown away.
    pub(super) failed_attempt: u64,
    /// What the engine cuts now is of this attempt. A failure fails all of it: whatever the engine
    /// cut before it noticed may build on what failed.
    pub(super) attempt: u64,
    /// Where the epochs of an attempt go on.
    pub(super) goes_on: Option<(u64, Head)>,
    /// The threads are gone.
    pub(super) ended: bool,
}

impl<C> State<C> {
    /// The first sink that has every epoch, or the first of all where none does.
    pub(super) fn leading_index(&self) -> usize {
        self.sinks.iter().position(SinkState::has_all).unwrap_or_default()
    }

    /// What that one has done.
    pub(super) fn leading(&self) -> Progress {
        self.sinks.get(self.leading_index()).map_or_else(Progress::default, |sink| sink.progress)
    }

    /// What every sink that follows has reached. Durable is what those have that tell it; where
    /// none does, what is appended, so that nobody waits for ever.
    pub(super) fn reached(&self) -> Reached {
        let following = || self.sinks.iter().filter(|sink| sink.follows());
        let Some(first) = following().next() else { return self.leading().reached };
        let all = following().fold(first.progress.reached, |all, sink| {
            let one = sink.progress.reached;
            Reached {
                appended: all.appended.min(one.appended),
                durable: all.durable,
                acknowledged: all.acknowledged.min(one.acknowledged),
            }
        });
        let durable = following().filter(|sink| sink.tells_durable).map(|sink| sink.progress.reached.durable).min();
        Reached { durable: durable.unwrap_or(all.appended), ..all }
    }
}

/// Who may leave, and who is told.
struct Releases {
    rule: Release,
    on_release: Option<OnRelease>,
    released: EpochId,
    /// Epochs that a sink has whole and that are not released.
    waiting: EpochRuns,
    /// The newest that ever was among them.
    newest: EpochId,
    released_epochs: u64,
}

/// See the module.
pub(super) struct Shared<C> {
    state: Mutex<State<C>>,
    changed: Condvar,
    releases: Mutex<Releases>,
}

impl<C> Shared<C> {
    pub(super) fn new(state: State<C>, rule: Release, on_release: Option<OnRelease>) -> Self {
        let releases = Mutex::new(Releases {
            rule,
            on_release,
            released: EpochId::NONE,
            waiting: EpochRuns::default(),
            newest: EpochId::NONE,
            released_epochs: 0,
        });
        Self { state: Mutex::new(state), changed: Condvar::new(), releases }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<C>> {
        lock(&self.state)
    }

    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Gives a slot back.
    pub(super) fn free(&self, slot: Slot<C>) {
        self.lock().free.push(slot);
        self.notify();
    }

    /// Waits while `condition` holds and the threads are there.
    pub(super) fn wait_while(&self, mut condition: impl FnMut(&mut State<C>) -> bool) -> MutexGuard<'_, State<C>> {
        self.changed.wait_while(self.lock(), |state| !state.ended && condition(state)).unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one sink more. What it begins with is no news.
    pub(super) fn add_sink(&self, sink: SinkState) {
        let mut state = self.lock();
        state.sinks.push(sink);
        let reached = reached_of(&state);
        drop(state);
        let mut releases = lock(&self.releases);
        releases.released = releases.released.max(releases.rule.newest(&reached));
    }

    /// Releases what has come far enough. The state must not be locked by the caller.
    pub(super) fn release(&self) {
        let reached = reached_of(&self.lock());
        let mut releases = lock(&self.releases);
        let newest = releases.rule.newest(&reached);
        if newest <= releases.released {
            return;
        }
        releases.released = newest;
        releases.released_epochs += releases.waiting.take_up_to(newest);
        if let Some(on_release) = &mut releases.on_release {
            on_release(newest);
        }
    }

    /// A sink has `epoch` whole. The others tell it, too.
    pub(super) fn completed(&self, epoch: EpochId) {
        let mut releases = lock(&self.releases);
        // What comes again after a failure was counted.
        if epoch > releases.newest {
            releases.newest = epoch;
            releases.waiting.push(epoch);
        }
    }

    /// The newest epoch that is released, and how many were.
    pub(super) fn released(&self) -> (EpochId, u64) {
        let releases = lock(&self.releases);
        (releases.released, releases.released_epochs)
    }

    /// A sink has told that `epoch` is durable.
    pub(super) fn durable(&self, sink: usize, epoch: EpochId) {
        let mut state = self.lock();
        let Some(SinkState { progress, unsynced, lateness, .. }) = state.sinks.get_mut(sink) else { return };
        lateness.durable(epoch);
        progress.durable_epochs += unsynced.take_up_to(epoch);
        progress.reached.durable = progress.reached.durable.max(epoch);
        drop(state);
        self.notify();
        self.release();
    }

    /// A sink has told that another host holds `epoch`.
    pub(super) fn acknowledged(&self, sink: usize, epoch: EpochId) {
        let mut state = self.lock();
        let Some(sink) = state.sinks.get_mut(sink) else { return };
        let SinkState { progress, unacknowledged, .. } = sink;
        progress.acknowledged_epochs += unacknowledged.take_up_to(epoch);
        progress.reached.acknowledged = epoch.max(progress.reached.acknowledged);
        drop(state);
        self.notify();
        self.release();
    }
}

fn reached_of<C>(state: &State<C>) -> Vec<Reached> {
    state.sinks.iter().map(|sink| sink.progress.reached).collect()
}

/// Rising epoch numbers. Takes memory for each gap in them, and not for each number.
#[derive(Debug, Default)]
pub(super) struct EpochRuns(Vec<(EpochId, u64)>);

impl EpochRuns {
    pub(super) fn push(&mut self, epoch: EpochId) {
        match self.0.last_mut() {
            Some((first, count)) if first.0.saturating_add(*count) == epoch.0 => *count += 1,
            _ => self.0.push((epoch, 1)),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Takes out those that are at most `newest`, and says how many there were.
    pub(super) fn take_up_to(&mut self, newest: EpochId) -> u64 {
        let mut taken = 0;
        for (first, count) in &mut self.0 {
            let within = newest.next().0.saturating_sub(first.0).min(*count);
            first.0 += within;
            *count -= within;
            taken += within;
        }
        self.0.retain(|(_, count)| *count > 0);
        taken
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_count_numbers_up_to_one() {
        for newest in (0..12).chain([u64::MAX]) {
            let numbers = [2, 3, 4, 7, 9, 10];
            let mut runs = EpochRuns::default();
            numbers.into_iter().for_each(|epoch| runs.push(EpochId(epoch)));
            assert_eq!((runs.len(), runs.0.len()), (6, 3));
            let expected = numbers.iter().filter(|number| **number <= newest).count() as u64;
            assert_eq!((runs.take_up_to(EpochId(newest)), runs.len()), (expected, 6 - expected));
            assert_eq!(runs.is_empty(), expected == 6);
            assert_eq!(runs.take_up_to(EpochId(newest)), 0);
        }
    }
}
