//! What lies between a cut and the sinks: a fixed number of slots that go round, a thread that
//! encodes, and a thread for each sink.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use super::contents::Contents;
use super::deliver::{Delivery, Ear, Order};
use super::encode::{Encoder, Input};
use super::error::{AttachError, EngineError, LeftReason};
use super::guest::CapturedState;
use super::options::{Durability, EngineOptions};
use super::release::{Need, Reached, Release};
use super::shared::{FIRST_ATTEMPT, PipelineError, Progress, Shared, SinkState, Standing, State};
use super::sink::{Marks, Sink, SinkStart};
use super::slot::{Part, Slot};
use super::staging::Staging;
use super::times::Distribution;
use super::versions::Versions;
use crate::format::{BLOCK_PAGES, Compression, FRAME_HEADER_BYTES};
use crate::page::{EpochId, PAGE_SIZE, PageRun, PageSet};

/// Says that a sink's thread is gone, however it went.
struct SinkEnding<C> {
    shared: Arc<Shared<C>>,
    sink: usize,
}

impl<C> Drop for SinkEnding<C> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(sink) = state.sinks.get_mut(self.sink)
            && (sink.follows() || std::thread::panicking())
        {
            sink.standing = Standing::Left(LeftReason::Ended);
        }
        state.ended |= !state.sinks.iter().any(SinkState::follows);
        drop(state);
        self.shared.notify();
    }
}

/// Says that the encoder is gone where it should not be.
struct EncoderEnding<C>(Arc<Shared<C>>);

impl<C> Drop for EncoderEnding<C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().ended = true;
            self.0.notify();
        }
    }
}

/// What is to be brought to the sinks.
#[derive(Clone)]
pub(super) struct Extent {
    /// Bounds the frames of guest memory.
    pub(super) frames: u64,
    /// Bounds the pages of a part.
    pub(super) part_pages: usize,
    /// All of guest memory.
    pub(super) memory: Arc<[PageRun]>,
    /// It begins as zeros.
    pub(super) known_zero: bool,
}

/// The pipeline, as the engine sees it.
pub(super) struct Pipeline<C> {
    shared: Arc<Shared<C>>,
    inputs: Option<Sender<Input<C>>>,
    encoder: Option<JoinHandle<()>>,
    sinks: Vec<(Sender<Order<C>>, JoinHandle<()>)>,
    /// Takes the memory of the slots, and frees them one after the other.
    touching: Option<JoinHandle<()>>,
    slots: usize,
    /// A slot taken and not yet submitted.
    spare: Option<Slot<C>>,
    /// What the first sink was, and so where the epochs begin.
    began: SinkStart,
    /// A part was submitted.
    has_begun: bool,
    extent: Extent,
    durability: Durability,
}

impl<C: CapturedState> Pipeline<C> {
    /// Takes all address space and starts the threads, if `sink` is at the epoch `expected`.
    pub(super) fn start(
        mut sink: Box<dyn Sink>,
        expected: EpochId,
        extent: Extent,
        options: &mut EngineOptions,
    ) -> Result<Self, EngineError> {
        let (slots, budget_pages) = (options.slots.max(2), options.budget_pages);
        let failed = |source| EngineError::Start { slots, budget_pages, source };
        let taken = take_slots(slots, extent.part_pages).map_err(failed)?;
        let state = State {
            free: Vec::with_capacity(slots),
            sinks: Vec::new(),
            failure: None,
            failed_pages: PageSet::new(extent.frames, extent.part_pages),
            failed_attempt: 0,
            attempt: FIRST_ATTEMPT,
            goes_on: None,
            ended: false,
        };
        let release = options.release.take().unwrap_or_else(|| {
            Release::All(vec![match options.durability {
                Durability::None => Need::Appended(0),
                Durability::Epoch | Durability::Group(_) => Need::Durable(0),
            }])
        });
        let shared = Arc::new(Shared::new(state, release, options.on_release.take()));
        let (orders, told) = channel();
        let began = sink.start(ear(0, &shared, &orders));
        if began.head.epoch != expected {
            return Err(EngineError::OtherEpoch { expected, found: began.head.epoch });
        }
        let contents = Contents::new(extent.frames, extent.known_zero, random_seed());
        let keeps_versions = began.keeps && options.compression != Compression::None;
        let versions = Versions::new(extent.frames, if keeps_versions { options.version_pages } else { 0 });
        let known = (contents, versions);
        let mut encoder = Encoder::new(shared.clone(), (began.chain, began.head), options.compression, known, extent.part_pages);
        encoder.add(orders.clone(), began.keeps);
        let durability = options.durability;
        let mut pipeline = Self {
            shared,
            inputs: None,
            encoder: None,
            sinks: Vec::new(),
            touching: None,
            slots,
            spare: None,
            began,
            has_begun: false,
            extent,
            durability,
        };
        pipeline.deliver_to(sink, &began, Standing::Following, (orders, told)).map_err(failed)?;
        // The guest does not wait for all of it.
        let shared = pipeline.shared.clone();
        let touching = Builder::new().name("slackwater-slots".into()).spawn(move || {
            for mut slot in taken {
                slot.arena.touch();
                shared.free(slot);
            }
        });
        pipeline.touching = Some(touching.map_err(failed)?);
        let (inputs, to_encode) = channel();
        let ending = EncoderEnding(pipeline.shared.clone());
        let encoder = Builder::new().name("slackwater-encode".into()).spawn(move || {
            let _ending = ending;
            encoder.run(&to_encode);
        });
        pipeline.encoder = Some(encoder.map_err(failed)?);
        pipeline.inputs = Some(inputs);
        Ok(pipeline)
    }

    /// Takes one sink more, and returns its number. It follows from the beginning if it is where
    /// the first one was and nothing has come yet; else it is to join.
    pub(super) fn attach(&mut self, mut sink: Box<dyn Sink>) -> Result<usize, AttachError> {
        let index = self.sinks.len();
        let (orders, told) = channel();
        let start = sink.start(ear(index, &self.shared, &orders));
        let (expected, found) = (self.began.chain, start.chain);
        if found != expected {
            return Err(AttachError::OtherChain { expected, found });
        }
        let is_there = start.head == self.began.head && !self.has_begun;
        let standing = if is_there { Standing::Following } else { Standing::Left(LeftReason::NotJoined) };
        self.deliver_to(sink, &start, standing, (orders.clone(), told)).map_err(AttachError::Thread)?;
        if let Some(inputs) = &self.inputs {
            // It fails where the encoder is gone, which is told by whoever waits for it.
            let _ = inputs.send(Input::Sink(orders, start.keeps));
        }
        Ok(index)
    }

    /// Has a sink that gets no epochs prepare for a base, the `number`th of all.
    pub(super) fn ask_to_join(&self, sink: usize, number: u64) {
        if let Some((orders, _)) = self.sinks.get(sink) {
            if let Some(state) = self.shared.lock().sinks.get_mut(sink) {
                state.standing = Standing::Opening(number);
            }
            let _ = orders.send(Order::Join(number));
        }
    }

    /// A sink that joins gets no base after all.
    pub(super) fn give_up(&self, sink: usize) {
        let mut state = self.shared.lock();
        let joins = |sink: &&mut SinkState| matches!(sink.standing, Standing::Opening(_) | Standing::Joining(..));
        if let Some(sink) = state.sinks.get_mut(sink).filter(joins) {
            sink.standing = Standing::Left(LeftReason::NoEpoch);
        }
    }

    /// Starts the thread of a sink.
    fn deliver_to(
        &mut self,
        sink: Box<dyn Sink>,
        start: &SinkStart,
        standing: Standing,
        (orders, told): (Sender<Order<C>>, Receiver<Order<C>>),
    ) -> io::Result<()> {
        let index = self.sinks.len();
        self.shared.add_sink(SinkState::new(standing, start));
        let ending = SinkEnding { shared: self.shared.clone(), sink: index };
        let Extent { frames, part_pages, memory, .. } = self.extent.clone();
        let (shared, durability) = (self.shared.clone(), self.durability);
        let delivery = Delivery::new((index, sink), start, shared, (frames, part_pages, memory), durability);
        let name = if index == 0 { "slackwater-write".to_owned() } else { format!("slackwater-to-{index}") };
        let thread = Builder::new().name(name).spawn(move || {
            let _ending = ending;
            delivery.run(&told);
        })?;
        self.sinks.push((orders, thread));
        Ok(())
    }

    /// A free slot, where there is one now. It stays the engine's until it is submitted.
    pub(super) fn has_slot(&mut self) -> bool {
        if self.spare.is_none() {
            self.spare = self.shared.lock().free.pop();
        }
        self.spare.is_some()
    }

    /// Whether so many slots are free now.
    pub(super) fn has_slots(&mut self, count: usize) -> bool {
        self.has_slot() && 1 + self.shared.lock().free.len() >= count
    }

    /// The slot in hand, waiting for one where there is none; `None` after a failure, or when the
    /// threads are gone.
    pub(super) fn slot(&mut self) -> Option<&mut Slot<C>> {
        if self.spare.is_none() {
            self.spare = self.shared.wait_while(|state| state.free.is_empty()).free.pop();
        }
        self.spare.as_mut()
    }

    /// Waits until so many slots are free. Returns whether they are: not after a failure.
    pub(super) fn wait_slots(&mut self, count: usize) -> bool {
        let count = count.min(self.slots);
        if self.slot().is_none() {
            return false;
        }
        let free = self.shared.wait_while(|state| 1 + state.free.len() < count && state.failure.is_none()).free.len();
        1 + free >= count
    }

    /// Sends the slot in hand on its way.
    pub(super) fn submit(&mut self, part: Part) {
        let Some(mut slot) = self.spare.take() else { return };
        slot.part = part;
        self.has_begun = true;
        // If the encoder is gone, `ended` says so.
        if let Some(inputs) = &self.inputs {
            let _ = inputs.send(Input::Part(slot));
        }
    }

    /// What the first sink that has every epoch has done.
    pub(super) fn progress(&self) -> Progress {
        let state = self.shared.lock();
        let progress = state.leading();
        let acknowledged_epochs = state.sinks.iter().map(|sink| sink.progress.acknowledged_epochs).max().unwrap_or_default();
        drop(state);
        let (_, released_epochs) = self.shared.released();
        Progress { released_epochs, acknowledged_epochs, ..progress }
    }

    /// The newest epoch whose outputs may leave.
    pub(super) fn released(&self) -> EpochId {
        self.shared.released().0
    }

    /// What all sinks that follow have reached.
    pub(super) fn reached(&self) -> Reached {
        self.shared.lock().reached()
    }

    /// Each sink: whether it has the epochs, and what it has reached.
    pub(super) fn sinks(&self) -> Vec<(Standing, Reached)> {
        self.shared.lock().sinks.iter().map(|sink| (sink.standing.clone(), sink.progress.reached)).collect()
    }

    /// Waits until `epoch` is durable in all sinks that follow, or something failed. Returns
    /// whether it is.
    pub(super) fn wait_durable(&self, epoch: EpochId) -> bool {
        self.wait(epoch, |reached| reached.durable)
    }

    /// As [`wait_durable`](Self::wait_durable), until it is appended.
    pub(super) fn wait_appended(&self, epoch: EpochId) -> bool {
        self.wait(epoch, |reached| reached.appended)
    }

    fn wait(&self, epoch: EpochId, mark: impl Fn(Reached) -> EpochId) -> bool {
        let waits = |state: &mut State<C>| mark(state.reached()) < epoch && state.failure.is_none();
        mark(self.shared.wait_while(waits).reached()) >= epoch
    }

    /// Whether something failed that [`take_failure`](Self::take_failure) would return.
    pub(super) fn has_failed(&self) -> bool {
        let state = self.shared.lock();
        state.failure.is_some() || state.ended
    }

    /// If something failed: waits until nothing of its attempt is in flight, moves the pages that
    /// are not in the chain into `pages`, and returns why and the attempt that begins now.
    pub(super) fn take_failure(&mut self, pages: &mut PageSet) -> Option<(PipelineError, u64)> {
        self.shared.lock().failure.as_ref()?;
        let all = self.slots - usize::from(self.spare.is_some());
        let mut state = self.shared.wait_while(|state| state.free.len() < all);
        let failure = state.failure.take()?;
        for gfn in state.failed_pages.iter() {
            pages.insert(gfn);
        }
        state.failed_pages.clear();
        state.attempt += 1;
        Some((failure, state.attempt))
    }

    /// How long after their cuts epochs were durable in the first sink.
    pub(super) fn durable_after(&self) -> Distribution {
        self.shared.lock().sinks.first().map_or_else(Distribution::default, |sink| sink.lateness.durable_after())
    }

    /// Lets the pipeline run empty, closes the chains and ends the threads.
    pub(super) fn finish(&mut self) -> (Progress, Vec<(Standing, Reached)>, Option<PipelineError>) {
        self.end();
        let (progress, sinks) = (self.progress(), self.sinks());
        (progress, sinks, self.shared.lock().failure.take())
    }
}

impl<C> Pipeline<C> {
    fn end(&mut self) {
        self.inputs = None;
        if let Some(touching) = self.touching.take() {
            let _ = touching.join();
        }
        // A thread that panicked has set `ended`, and its epochs are not counted.
        if let Some(encoder) = self.encoder.take() {
            let _ = encoder.join();
        }
        for (orders, thread) in self.sinks.drain(..) {
            // The encoder has said so, unless it panicked.
            let _ = orders.send(Order::End);
            let _ = thread.join();
        }
    }
}

impl<C> Drop for Pipeline<C> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<C> std::fmt::Debug for Pipeline<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("slots", &self.slots).finish_non_exhaustive()
    }
}

fn ear<C: CapturedState>(sink: usize, shared: &Arc<Shared<C>>, orders: &Sender<Order<C>>) -> Marks {
    Marks::new(Arc::new(Ear { sink, shared: shared.clone(), orders: orders.clone() }))
}

fn take_slots<C: CapturedState>(slots: usize, part_pages: usize) -> io::Result<Vec<Slot<C>>> {
    let blocks = part_pages.div_ceil(BLOCK_PAGES);
    // Address space only, until pages are touched: room for a part whose pages do not compress.
    let frames_bytes = part_pages.saturating_mul(PAGE_SIZE).saturating_add(blocks * (FRAME_HEADER_BYTES + 128) + (64 << 10));
    (0..slots)
        .map(|_| {
            let part = Part {
                epoch: EpochId::NONE,
                attempt: 0,
                store_unchanged: false,
                cut_at: Instant::now(),
                commit: None,
                joiner: None,
                base_only: false,
            };
            let mut frames = Vec::new();
            frames.try_reserve_exact(frames_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
            let (arena, base_frames) = (Staging::new(part_pages)?, Vec::new());
            Ok(Slot {
                arena,
                state: C::default(),
                part,
                frames,
                complete: None,
                base_frames,
                base_complete: None,
                encoded: Ok(()),
            })
        })
        .collect()
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
