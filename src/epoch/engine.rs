//! The engine: what happens at a trigger.

mod background;
mod rollback;
mod round;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::rollback::RolledBack;
pub use self::round::{FullRing, NextRound, Round};
use super::base::Base;
use super::clock::{Clock, unix_ns};
use super::error::{AttachError, EngineError, LeftReason};
use super::guest::{CapturedState, Guest};
use super::learning::{Learning, TakenEarly};
use super::memory::Memory;
use super::options::{Durability, Early, EngineOptions, OnStorageError};
use super::page_costs::PageCosts;
use super::pipeline::{Extent, Pipeline};
use super::point::Point;
use super::policy::{Action, Situation, decide};
use super::release::Reached;
use super::report::{Counts, EpochCount, Report};
use super::shared::{FIRST_ATTEMPT, PipelineError, Progress, Standing};
use super::sink::{Sink, SinkError};
use super::slot::Part;
use super::tracker::Tracker;
use super::tracking::Tracking;
use crate::format::{Commit, MemoryDigest, Phases, Trigger};
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageRun, PageSet};
use crate::parked::Parked;

/// What guest memory is when an engine is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Zeros, but for what the VMM wrote through
    /// [`GuestMemory::ram`](crate::memory::GuestMemory::ram) since it was mapped. The chain is
    /// empty.
    Fresh,
    /// What epoch `0` of the chain says, which is the chain's newest.
    Restored(EpochId),
    /// Anything: the guest has been running. The chain is empty. All memory is copied beside the
    /// running guest by [`Engine::copy_base`], and the first epoch behind that is the first that
    /// can be restored.
    InUse,
}

/// What a call of [`Engine::cut`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// An epoch was taken and is on its way to the chain.
    Taken {
        /// Its number.
        epoch: EpochId,
        /// Pages captured.
        pages: u64,
    },
    /// Only the list of pages was taken: the epoch goes on.
    Lengthened {
        /// Pages listed for it by now.
        pages: u64,
    },
    /// Nothing: the interval was over while storage is behind.
    Skipped,
}

/// The end of an engine.
#[derive(Debug)]
pub struct Finished {
    /// What it did.
    pub report: Report,
    /// Where each sink is: one that failed while others have every epoch is no error.
    pub sinks: Vec<SinkReport>,
    /// Why the last epochs are not in the chain, where they are not.
    pub error: Option<EngineError>,
}

/// Where one sink of an engine is.
#[derive(Clone, Debug)]
pub struct SinkReport {
    /// How far its epochs have come.
    pub reached: Reached,
    /// Whether it is given the epochs.
    pub standing: SinkStanding,
}

/// Whether a sink is given the epochs.
#[derive(Clone, Debug)]
pub enum SinkStanding {
    /// Each one.
    Follows,
    /// Each one, and it has ended in order.
    Closed,
    /// A base of its own, and each one from then on.
    Joins,
    /// None, for this reason, until [`Engine::join`].
    Left(LeftReason),
}

/// Takes epochs of one guest and brings them to its sinks: a chain, and what was attached.
///
/// It has no vCPU thread and no timer: the VMM calls [`cut`](Self::cut) when a ring-full exit, an
/// interval or a request says so, from any thread, one at a time. Two threads of its own encode and
/// write.
#[derive(Debug)]
pub struct Engine<C: CapturedState> {
    memory: Box<dyn Memory>,
    /// All pages of it.
    runs: Arc<[PageRun]>,
    /// How many.
    pages: u64,
    tracker: Box<dyn Tracker>,
    pipeline: Pipeline<C>,
    options: EngineOptions,
    counts: Counts,
    /// Pages whose newest content neither the chain nor the pipeline has, besides those that the
    /// tracker will list.
    pending: PageSet,
    /// Those of them that failed epochs had: the chain lacks them even if the guest never writes
    /// them again.
    owed: PageSet,
    /// What [`Engine::rollback`] goes back to, where that is planned.
    point: Option<Point<C>>,
    /// The state of the cut in hand; its memory goes round with the slots'.
    captured: C,
    /// The number of the next epoch.
    next: EpochId,
    /// The newest epoch that was cut, or that the chain had.
    newest: EpochId,
    attempt: u64,
    /// The next epoch follows a failed one: whatever it has, the chain may lack.
    store_unchanged: bool,
    /// Why that one failed.
    failure: Option<PipelineError>,
    tracking: Tracking,
    base: Base,
    /// Bases of sinks that joined, so far.
    joins: u64,
    /// Pages of the next epoch that are in parts that were sent off already.
    sent: PageSet,
    /// How often those parts mention a page.
    mentions: u64,
    /// The number of the epoch in hand, once a part of it was sent off.
    number_in_hand: Option<EpochId>,
    taken_early: TakenEarly,
    /// Where rounds are done as they pay.
    learning: Option<Learning>,
    /// What a page costs on this host, once it was told.
    costs: Option<PageCosts>,
    /// The most pages in a part: a budget, or all of memory where that is less; with rounds less.
    part_pages: usize,
    /// Cuts that are not known to be durable, oldest first.
    not_durable: VecDeque<(EpochId, Instant)>,
    storage_rests_until: Option<Instant>,
    resumed_at: Instant,
    /// How long the guest ran since the last cut and before that.
    ran_ns: u64,
    clock: Clock,
    cuts: u64,
    /// The pages of the part in hand. Kept for its memory.
    last_pages: Vec<Gfn>,
    /// The pages of the newest epoch that a trigger ended while the guest worked: what the copy
    /// floor is measured with.
    floor_pages: Vec<Gfn>,
    /// The guest was halted, or is to be.
    halted: bool,
}

/// With rounds, a part has room for so many pages at least: a batch of them comes at a time.
const PART_LEAST: usize = 1024;

/// A rest that is longer than the clock can say is this long.
const REST_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The cut in hand.
struct InHand {
    phases: Phases,
    entered_at: Instant,
}

impl InHand {
    fn begin() -> Self {
        Self { phases: Phases::default(), entered_at: Instant::now() }
    }
}

impl<C: CapturedState> Engine<C> {
    /// Takes all memory, starts the threads and, unless `start` is [`Start::Fresh`] or a restored
    /// guest, marks all memory to be copied.
    ///
    /// The guest must not run before its first [`cut`](Self::cut) where `start` is
    /// [`Start::Fresh`]: that one is the base.
    ///
    /// # Errors
    /// [`EngineError::Start`], [`EngineError::OtherEpoch`].
    pub fn new(
        memory: impl Memory + 'static,
        tracker: Box<dyn Tracker>,
        sink: Box<dyn Sink>,
        start: Start,
        mut options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let expected = match start {
            Start::Fresh | Start::InUse => EpochId::NONE,
            Start::Restored(epoch) => epoch,
        };
        options.budget_pages = options.budget_pages.max(1);
        if options.early != Early::Off {
            // With rounds a slot rarely holds a whole epoch. All together they have half of the
            // memory that they have without, and twice the largest epoch.
            options.slots = options.slots.max(2).saturating_mul(2);
        }
        let (budget_pages, slots) = (options.budget_pages, options.slots);
        let memory: Box<dyn Memory> = Box::new(memory);
        let runs: Arc<[PageRun]> = memory.runs().into();
        let pages = runs.iter().fold(0, |sum: u64, run| sum.saturating_add(run.count));
        let epoch_pages = usize::try_from(pages).unwrap_or(usize::MAX).clamp(1, budget_pages);
        let part_pages = match options.early {
            Early::Off => epoch_pages,
            Early::Auto | Early::Always => (2 * epoch_pages).div_ceil(slots).max(PART_LEAST).min(epoch_pages),
        };
        let start_error = |source| EngineError::Start { slots, budget_pages, source };
        let extent = Extent { frames: memory.frames(), part_pages, memory: runs.clone(), known_zero: start == Start::Fresh };
        let pipeline = Pipeline::start(sink, expected, extent, &mut options)?;
        let point =
            if options.rollback { Some(Point::new(memory.as_ref(), start == Start::Fresh).map_err(start_error)?) } else { None };
        let memory_frames = memory.frames();
        let mut pending = PageSet::new(memory_frames, epoch_pages);
        if start == Start::InUse {
            runs.iter().for_each(|run| pending.insert_run(*run));
        }
        let base = match start {
            Start::Fresh => Base::Fresh,
            Start::Restored(EpochId::NONE) => Base::Fresh,
            Start::Restored(_) => Base::Done,
            Start::InUse => Base::Copying { left: pages },
        };
        Ok(Self {
            counts: Counts::new(budget_pages as u64),
            owed: PageSet::new(memory_frames, part_pages),
            point,
            memory,
            runs,
            pages,
            tracker,
            pipeline,
            options,
            pending,
            captured: C::default(),
            next: expected.next(),
            newest: expected,
            attempt: FIRST_ATTEMPT,
            store_unchanged: false,
            failure: None,
            tracking: Tracking::sound(),
            base,
            joins: 0,
            sent: PageSet::new(memory_frames, epoch_pages),
            mentions: 0,
            number_in_hand: None,
            taken_early: TakenEarly::default(),
            learning: None,
            costs: None,
            part_pages,
            not_durable: VecDeque::new(),
            storage_rests_until: None,
            resumed_at: Instant::now(),
            ran_ns: 0,
            clock: Clock::new(),
            cuts: 0,
            last_pages: Vec::with_capacity(part_pages),
            floor_pages: Vec::with_capacity(part_pages),
            halted: false,
        })
    }

    /// Takes one sink more, and returns its number, from 1. Its thread starts. It gets every epoch
    /// from the beginning if its chain ends where that of the first sink did, and nothing was cut
    /// yet; else it gets none until [`join`](Self::join).
    ///
    /// # Errors
    /// A sink of another chain, a thread that can't be started.
    pub fn attach(&mut self, sink: Box<dyn Sink>) -> Result<usize, AttachError> {
        self.pipeline.attach(sink)
    }

    /// Where each sink is.
    #[must_use]
    pub fn sinks(&self) -> Vec<SinkReport> {
        report_sinks(self.pipeline.sinks())
    }

    /// Ends the epoch, if the policy lets it.
    ///
    /// The guest is parked, its state captured, its written pages collected and copied; then it
    /// runs again, and the epoch goes to the chain behind its back. With [`Durability::Epoch`] it
    /// runs again only when the epoch is durable. [`Trigger::Request`] and [`Trigger::Final`] wait
    /// for storage if they must; the others do as [`super::WhenBehind`] says.
    ///
    /// # Errors
    /// [`EngineError::Guest`]: no epoch was taken, nothing is lost, and the guest runs. All others:
    /// the guest was halted, and every further call is answered by [`EngineError::Halted`].
    pub fn cut<G: Guest<State = C>>(&mut self, guest: &mut G, trigger: Trigger) -> Result<Cut, EngineError> {
        let outcome = if self.halted { Err(EngineError::Halted) } else { self.try_cut(guest, trigger) };
        if outcome.as_ref().is_err_and(|error| !matches!(error, EngineError::Guest { .. })) {
            self.halted = true;
            guest.halt();
        }
        outcome
    }

    /// As [`cut`](Self::cut). After any error but [`EngineError::Guest`], the guest may be parked.
    fn try_cut<G: Guest<State = C>>(&mut self, guest: &mut G, trigger: Trigger) -> Result<Cut, EngineError> {
        let mut hand = InHand::begin();
        self.absorb_failure()?;
        let must_cut = matches!(trigger, Trigger::Request | Trigger::Final);
        if must_cut && self.base.is_copying() || self.base.is_due(self.next) {
            self.complete_base()?;
        }
        let situation = Situation {
            storage_keeps_up: self.storage_keeps_up(),
            storage_rests: self.storage_rests(),
            base_in_progress: self.base.is_copying(),
            must_cut,
            when_behind: self.options.when_behind,
        };
        let action = decide(&situation);
        match (action, trigger) {
            (Action::Drain | Action::DrainOrWait, Trigger::Interval) => return Ok(Cut::Skipped),
            (Action::WaitAndCut, _) => self.wait_for_storage(&mut hand)?,
            _ => {}
        }
        park(guest, &mut hand)?;
        if matches!(action, Action::Drain | Action::DrainOrWait) {
            self.collect(&mut hand)?;
            if action == Action::Drain || self.holds_another_ring(0) {
                self.ran_until(&hand);
                self.resume(guest);
                self.counts.drain();
                return Ok(Cut::Lengthened { pages: self.pending.len() });
            }
            self.wait_for_storage(&mut hand)?;
        }
        self.take(guest, trigger, &mut hand)
    }

    /// Waits until everything taken so far is in the chain, and durable where the mode promises
    /// that. Returns whether it is. After a failure it is not, until another epoch was taken.
    #[must_use]
    pub fn flush(&self) -> bool {
        if self.store_unchanged {
            return false;
        }
        let last = self.newest;
        match self.options.durability {
            Durability::None => self.pipeline.wait_appended(last),
            Durability::Epoch | Durability::Group(_) => self.pipeline.wait_durable(last),
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.counts.report(&self.pipeline.progress(), self.pipeline.durable_after())
    }

    /// The newest epoch whose outputs may leave.
    #[must_use]
    pub fn released(&self) -> EpochId {
        self.pipeline.released()
    }

    /// How far the epochs have come in all sinks that follow.
    #[must_use]
    pub fn reached(&self) -> Reached {
        self.pipeline.reached()
    }

    /// Ends the engine: everything taken goes to the chain, and the chain is closed. Take a
    /// [`Trigger::Final`] cut before.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        if let Some(floor) = self.measure_copy_floor() {
            self.counts.copy_floor(floor);
        }
        let Self { mut pipeline, counts, options, failure: noticed, .. } = self;
        let (progress, sinks, failure) = pipeline.finish();
        let error = failure.or(noticed).map(|failure| storage(&progress, &options, failure));
        Finished { report: counts.report(&progress, pipeline.durable_after()), sinks: report_sinks(sinks), error }
    }

    /// Takes an epoch of the parked guest, and lets it run again.
    fn take<G: Guest<State = C>>(&mut self, guest: &mut G, trigger: Trigger, hand: &mut InHand) -> Result<Cut, EngineError> {
        let cut_at = Instant::now();
        let (time_unix_ns, own_ns) = (unix_ns(), self.clock.now_ns());
        // The reset then goes on beside the capture as well.
        let collects_first = self.wrote_more().is_some();
        if collects_first {
            self.begin_collection(hand)?;
        }
        let capture_at = Instant::now();
        let captured = self.capture(guest);
        hand.phases.state_ns = ns(capture_at.elapsed());
        if let Err(error) = captured {
            if collects_first {
                self.settle_collection(hand)?;
            }
            // What was collected up to now stays pending.
            self.ran_until(hand);
            self.resume(guest);
            return Err(error);
        }
        if !collects_first {
            self.begin_collection(hand)?;
        } else if self.wrote_more() != Some(false) {
            // Reading state may have the kernel write guest memory.
            self.settle_collection(hand)?;
            self.begin_collection(hand)?;
        } else {
            // And the VMM, of whose writes the tracker knows nothing.
            self.take_written(hand);
        }
        // Beside the reset, as the copy: both only read memory, and nobody writes it before the
        // guest runs.
        if let Some(point) = &mut self.point {
            let mut scope = ();
            point.begin(&Parked::vouch(&mut scope), self.memory.as_ref()).map_err(EngineError::Memory)?;
        }
        let mut parts = self.copy_all(cut_at, hand)?;
        self.settle_collection(hand)?;
        if !self.pending.is_empty() {
            // Tracking was lost: all memory. What is in the slot in hand is among it.
            parts = parts - 1 + self.copy_all(cut_at, hand)?;
        }
        let recovery = self.tracking.is_recovery();
        let whole = self.base.is_first() || recovery || self.store_unchanged;
        let digest = self.audit()?;
        let audit = self.look_for_late_writes(digest);
        let (epoch, pages) = (self.number(), self.epoch_pages());
        let early = (self.taken_early.pages, self.taken_early.rounds);
        let repeated_pages = self.mentions + self.last_pages.len() as u64 - pages;
        let commit = Commit {
            epoch,
            time_unix_ns,
            own_ns,
            run_ns: self.ran_ns.saturating_add(ns(hand.entered_at.duration_since(self.resumed_at))),
            phases: hand.phases,
            captured_pages: pages,
            trigger,
            recovery,
            audit,
            ..Commit::default()
        };
        let waits = self.options.durability == Durability::Epoch;
        if !waits {
            self.resume(guest);
        }
        self.save_part()?;
        if let Some(point) = &mut self.point {
            point.end(epoch, &self.captured);
        }
        self.submit_part(cut_at, Some(commit));
        (self.newest, self.next) = (epoch, epoch.next());
        self.ran_ns = 0;
        self.cuts += 1;
        if parts == 1 && matches!(trigger, Trigger::RingFull | Trigger::Interval) {
            self.floor_pages.clone_from(&self.last_pages);
        }
        // Before a failure is noticed below, which sets these again.
        self.tracking.cut(epoch);
        self.base.cut(epoch);
        self.store_unchanged = false;
        self.owed.clear();
        (self.failure, self.storage_rests_until) = (None, None);
        self.forget_parts();
        if let Some(learning) = &mut self.learning {
            learning.end(&self.last_pages);
        }
        self.learn_copy_cost(parts, hand.phases.copy_ns);
        if waits {
            self.wait_until_durable(epoch, hand)?;
            self.resume(guest);
        } else if self.options.durability != Durability::None {
            self.not_durable.push_back((epoch, cut_at));
        }
        let audited = audit.is_some();
        self.counts.epoch(&EpochCount { trigger, phases: hand.phases, pages, early, repeated_pages, whole, audited });
        Ok(Cut::Taken { epoch, pages })
    }

    fn capture<G: Guest<State = C>>(&mut self, guest: &mut G) -> Result<(), EngineError> {
        let mut scope = ();
        let captured = guest.capture(&Parked::vouch(&mut scope), &mut self.captured);
        captured.map_err(|source| EngineError::Guest { action: "capture the state", source })
    }

    /// Copies all pending pages. All parts but the last are sent off; returns how many parts there
    /// are.
    fn copy_all(&mut self, cut_at: Instant, hand: &mut InHand) -> Result<u64, EngineError> {
        let mut parts = 1;
        while self.pending.len() > self.part_pages as u64 {
            self.copy_and_time(hand)?;
            self.send_part(cut_at)?;
            parts += 1;
        }
        self.copy_and_time(hand)?;
        Ok(parts)
    }

    fn wrote_more(&self) -> Option<bool> {
        self.tracker.wrote_more(&Parked::vouch(&mut ()))
    }

    /// Adds what was written since the last collection to the pending pages.
    fn collect(&mut self, hand: &mut InHand) -> Result<(), EngineError> {
        self.begin_collection(hand)?;
        self.settle_collection(hand).map(drop)
    }

    /// As [`collect`](Self::collect), but for [`settle_collection`](Self::settle_collection), which
    /// has to come before the guest runs.
    fn begin_collection(&mut self, hand: &mut InHand) -> Result<(), EngineError> {
        let mut scope = ();
        let parked = Parked::vouch(&mut scope);
        self.take_written(hand);
        match self.tracker.begin(&parked, &mut self.pending) {
            Ok(collected) => {
                hand.phases.harvest_ns += ns(collected.harvest);
                hand.phases.reset_ns += ns(collected.reset);
                self.counts.hot_pages(collected.hot);
                collected.lost.map_or(Ok(()), |lost| self.tracking_lost(&lost.to_string()))
            }
            Err(error) => self.tracking_lost(&error.to_string()),
        }?;
        // A round has found that before.
        let lost = self.taken_early.lost.take();
        lost.map_or(Ok(()), |lost| self.tracking_lost(&lost))
    }

    /// Adds what the VMM wrote since its log was last taken to the pending pages.
    fn take_written(&mut self, hand: &mut InHand) {
        if self.memory.written() == 0 {
            return;
        }
        let start = Instant::now();
        let mut foreign = false;
        let Self { memory, pending, .. } = self;
        memory.take_written(&Parked::vouch(&mut ()), &mut |gfn| foreign |= pending.insert(gfn).is_none());
        debug_assert!(!foreign, "the write log covers the memory and nothing else");
        hand.phases.harvest_ns += ns(start.elapsed());
    }

    /// All pages were copied: what the VMM writes now is in the next epoch. There should be nothing
    /// yet. Who wrote since the capture was not quiesced, and memory and state of this epoch are
    /// not of one instant. Its digest may be of another memory than what was copied, and would be
    /// taken for damage of the chain: it is left out.
    fn look_for_late_writes(&mut self, audit: Option<MemoryDigest>) -> Option<MemoryDigest> {
        let pages = self.memory.written();
        if pages == 0 {
            return audit;
        }
        tracing::warn!(
            epoch = self.next.0,
            pages,
            "the VMM wrote guest memory between capture and resume: the epoch is not of one instant"
        );
        self.counts.late_writes();
        None
    }

    /// Waits until what was collected is protected again. If tracking turns out to be lost, all
    /// memory is pending then.
    fn settle_collection(&mut self, hand: &mut InHand) -> Result<(), EngineError> {
        let settled = self.tracker.settle(&Parked::vouch(&mut ()));
        match settled {
            Ok(settled) => {
                hand.phases.reset_ns += ns(settled.reset);
                settled.lost.map_or(Ok(()), |lost| self.tracking_lost(&lost.to_string()))
            }
            Err(error) => self.tracking_lost(&error.to_string()),
        }
    }

    /// Tracking begins anew, and the epoch in hand has all memory.
    fn tracking_lost(&mut self, lost: &str) -> Result<(), EngineError> {
        tracing::warn!(epoch = self.next.0, reason = lost, "tracking lost: comparing all guest memory");
        self.counts.tracking_lost();
        self.tracking.lose();
        if let Err(source) = self.tracker.rearm(&Parked::vouch(&mut ())) {
            return Err(EngineError::Tracking { lost: lost.to_owned(), source });
        }
        let Self { runs, pending, .. } = self;
        runs.iter().for_each(|run| pending.insert_run(*run));
        Ok(())
    }

    fn copy_and_time(&mut self, hand: &mut InHand) -> Result<(), EngineError> {
        let start = Instant::now();
        // Waiting for a slot, between the parts of a large epoch, is a stall and no copy.
        self.pipeline.slot().ok_or(EngineError::Ended)?;
        let waited = start.elapsed();
        self.copy_part()?;
        hand.phases.stall_ns += ns(waited);
        hand.phases.copy_ns += ns(start.elapsed().saturating_sub(waited));
        Ok(())
    }

    /// Copies up to a budget of pending pages into the slot in hand.
    fn copy_part(&mut self) -> Result<(), EngineError> {
        self.last_pages.clear();
        self.pending.take(self.part_pages, &mut self.last_pages);
        self.stage_pages()
    }

    /// Copies the pages of the part in hand into the slot in hand.
    fn stage_pages(&mut self) -> Result<(), EngineError> {
        let slot = self.pipeline.slot().ok_or(EngineError::Ended)?;
        slot.arena.clear();
        self.memory.copy(&self.last_pages, &mut slot.arena).map_err(EngineError::Memory)
    }

    /// Has the point, where there is one, take the part in hand: the copy of it, which the guest
    /// does not touch.
    fn save_part(&mut self) -> Result<(), EngineError> {
        let Self { point: Some(point), pipeline, .. } = self else { return Ok(()) };
        let slot = pipeline.slot().ok_or(EngineError::Ended)?;
        point.save(&slot.arena).map_err(EngineError::Memory)
    }

    /// Sends off a part that is not the last.
    fn send_part(&mut self, cut_at: Instant) -> Result<(), EngineError> {
        self.save_part()?;
        self.submit_part(cut_at, None);
        let Self { last_pages, sent, mentions, .. } = self;
        for gfn in &*last_pages {
            sent.insert(*gfn);
        }
        *mentions += last_pages.len() as u64;
        Ok(())
    }

    /// The number of the epoch in hand. If all of memory has gone to a sink that joins before the
    /// first part of an epoch is sent off, the base is whole with that epoch's last part. It need
    /// not come before a round: one that is busy has a round in every epoch.
    fn number(&self) -> EpochId {
        self.number_in_hand.unwrap_or_else(|| self.base.number(self.next))
    }

    /// How many pages the epoch has, with the part in hand.
    fn epoch_pages(&self) -> u64 {
        self.sent.len() + self.last_pages.len() as u64 - self.sent_before(self.last_pages.iter().copied())
    }

    /// How many of these pages the epoch has in parts already.
    fn sent_before(&self, pages: impl Iterator<Item = Gfn>) -> u64 {
        if self.sent.is_empty() {
            return 0;
        }
        pages.filter(|gfn| self.sent.contains(*gfn)).count() as u64
    }

    fn submit_part(&mut self, cut_at: Instant, commit: Option<Commit>) {
        let Self { attempt, store_unchanged, .. } = *self;
        let epoch = *self.number_in_hand.insert(self.number());
        let joiner = self.base.joiner();
        if let (Some(_), Some(slot)) = (commit, self.pipeline.slot()) {
            std::mem::swap(&mut slot.state, &mut self.captured);
        }
        self.pipeline.submit(Part { epoch, attempt, store_unchanged, cut_at, commit, joiner, base_only: false });
    }

    /// A digest of all memory, where one is due.
    fn audit(&self) -> Result<Option<MemoryDigest>, EngineError> {
        let due = self.options.audit_every.is_some_and(|every| self.cuts.is_multiple_of(every.get()));
        if !due {
            return Ok(None);
        }
        let mut digest = MemoryDigest::default();
        let mut page = [0; PAGE_SIZE];
        for run in &*self.runs {
            for gfn in run.gfns() {
                self.memory.read(gfn, &mut page).map_err(EngineError::Memory)?;
                digest.add_page(gfn, &page);
            }
        }
        Ok(Some(digest))
    }

    /// The guest was stopped, and its epoch goes on.
    fn ran_until(&mut self, hand: &InHand) {
        self.ran_ns = self.ran_ns.saturating_add(ns(hand.entered_at.duration_since(self.resumed_at)));
    }

    fn resume<G: Guest<State = C>>(&mut self, guest: &mut G) {
        self.resumed_at = Instant::now();
        guest.resume();
    }

    /// Whether the budget surely holds what the epoch has, `listed` pages besides, and whatever may
    /// come then before the next chance to end it; and twice the budget, how often it mentions a
    /// page.
    fn holds_another_ring(&self, listed: u64) -> bool {
        let Self { pending, sent, mentions, .. } = self;
        let budget = self.options.budget_pages as u64;
        let more = self.tracker.bound().unwrap_or(u64::MAX).saturating_add(self.options.share_pages).saturating_add(listed);
        let fits = |pages: u64| pages.saturating_add(more) <= budget;
        let has = sent.len() + pending.len();
        // Pages that it has twice are counted only where that may matter.
        (fits(has) || fits(has - self.sent_before(pending.iter())))
            && (mentions + pending.len()).saturating_add(more) <= budget.saturating_mul(2)
    }

    /// No part of the next epoch was sent off.
    fn forget_parts(&mut self) {
        self.sent.clear();
        self.mentions = 0;
        self.number_in_hand = None;
        self.taken_early = TakenEarly { lost: self.taken_early.lost.take(), ..TakenEarly::default() };
    }

    fn storage_keeps_up(&mut self) -> bool {
        self.lag().is_none() && self.pipeline.has_slots(self.slots_for_cut())
    }

    /// The slots that a cut takes now, as far as that is known before it.
    fn slots_for_cut(&self) -> usize {
        let listed = self.tracker.listed().unwrap_or(0).saturating_add(self.counts.hot());
        let pages = self.pending.len().saturating_add(listed).min(self.options.budget_pages as u64);
        usize::try_from(pages).unwrap_or(usize::MAX).div_ceil(self.part_pages).max(1)
    }

    /// The oldest epoch that should be durable by now and is not.
    fn lag(&mut self) -> Option<EpochId> {
        let Durability::Group(window) = self.options.durability else { return None };
        let (oldest, cut_at) = *self.not_durable.front()?;
        if cut_at.elapsed() <= window {
            return None;
        }
        let durable = self.pipeline.reached().durable;
        while self.not_durable.front().is_some_and(|(epoch, _)| *epoch <= durable) {
            self.not_durable.pop_front();
        }
        let (oldest, cut_at) = if oldest <= durable { *self.not_durable.front()? } else { (oldest, cut_at) };
        (cut_at.elapsed() > window).then_some(oldest)
    }

    fn storage_rests(&self) -> bool {
        self.storage_rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// Waits until storage keeps up. The guest may be parked or not.
    fn wait_for_storage(&mut self, hand: &mut InHand) -> Result<(), EngineError> {
        let start = Instant::now();
        while let Some(oldest) = self.lag() {
            if !self.pipeline.wait_durable(oldest) {
                break;
            }
        }
        let slots = self.slots_for_cut();
        let slot = self.pipeline.wait_slots(slots) || self.pipeline.has_slot();
        hand.phases.stall_ns += ns(start.elapsed());
        if slot { self.absorb_failure() } else { Err(EngineError::Ended) }
    }

    /// Waits until `epoch` is durable, or has failed and may be tried again.
    fn wait_until_durable(&mut self, epoch: EpochId, hand: &mut InHand) -> Result<(), EngineError> {
        let start = Instant::now();
        let durable = self.pipeline.wait_durable(epoch);
        hand.phases.stall_ns += ns(start.elapsed());
        if durable { Ok(()) } else { self.absorb_failure() }
    }

    /// If epochs failed: takes their pages back, and goes on or not as the options say.
    fn absorb_failure(&mut self) -> Result<(), EngineError> {
        if !self.pipeline.has_failed() {
            return Ok(());
        }
        let Some((failure, attempt)) = self.pipeline.take_failure(&mut self.owed) else { return Err(EngineError::Ended) };
        let Self { owed, pending, .. } = self;
        owed.iter().for_each(|gfn| {
            pending.insert(gfn);
        });
        self.attempt = attempt;
        self.store_unchanged = true;
        self.not_durable.clear();
        // The number of an epoch of which parts went to the sink is not used again.
        self.next = self.next.next();
        self.forget_parts();
        if let Some(sink) = self.base.failed(self.pages) {
            self.pipeline.give_up(sink);
        }
        let progress = self.pipeline.progress();
        // Of a chain that latched, only what is durable is known to be there.
        let latched = matches!(failure, PipelineError::Sink(SinkError::Latched(_)));
        let Reached { appended, durable, .. } = progress.reached;
        self.tracking.failed(if latched { durable } else { appended });
        match self.options.on_storage_error {
            OnStorageError::Stop => Err(storage(&progress, &self.options, failure)),
            OnStorageError::Continue { retry_after } => {
                let now = Instant::now();
                self.storage_rests_until = now.checked_add(retry_after).or(now.checked_add(REST_MAX));
                self.failure = Some(failure);
                Ok(())
            }
        }
    }

    /// The time that copying as many pages as the last epoch had takes, again and again: the least
    /// that a pause can be.
    fn measure_copy_floor(&mut self) -> Option<Duration> {
        const ROUNDS: usize = 32;
        if self.floor_pages.is_empty() || self.pipeline.has_failed() {
            return None;
        }
        let pages = &self.floor_pages;
        let slot = self.pipeline.slot()?;
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            slot.arena.clear();
            let start = Instant::now();
            self.memory.copy(pages, &mut slot.arena).ok()?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        times.get(ROUNDS / 2).copied()
    }
}

fn park<G: Guest>(guest: &mut G, hand: &mut InHand) -> Result<(), EngineError> {
    let start = Instant::now();
    guest.park().map_err(|source| EngineError::Guest { action: "park the vCPUs", source })?;
    hand.phases.kick_ns += ns(start.elapsed());
    Ok(())
}

fn report_sinks(sinks: Vec<(Standing, Reached)>) -> Vec<SinkReport> {
    let report = |(standing, reached)| {
        let standing = match standing {
            Standing::Following => SinkStanding::Follows,
            Standing::Closed => SinkStanding::Closed,
            Standing::Opening(_) | Standing::Joining(..) => SinkStanding::Joins,
            Standing::Left(reason) => SinkStanding::Left(reason),
        };
        SinkReport { reached, standing }
    };
    sinks.into_iter().map(report).collect()
}

fn storage(progress: &Progress, options: &EngineOptions, failure: PipelineError) -> EngineError {
    let Reached { appended, durable, .. } = progress.reached;
    let newest = if options.durability == Durability::None { appended } else { durable };
    EngineError::Storage { newest, source: Box::new(failure) }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
