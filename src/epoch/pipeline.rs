//! What lies between a cut and its commit: a fixed number of slots that go round, an encode thread and a writer thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use super::contents::Contents;
use super::encode::Encoder;
use super::guest::CapturedState;
use super::options::EngineOptions;
use super::sink::Sink;
use super::slot::{FIRST_GENERATION, Part, PipelineError, Progress, Shared, Slot, State};
use super::versions::Versions;
use super::write::Writer;
use crate::format::{BLOCK_PAGES, Compression, FRAME_HEADER_BYTES};
use crate::memory::Arena;
use crate::page::{EpochId, PAGE_SIZE, PageSet};

/// Says that the threads are gone, however they went.
struct Ending<C>(Arc<Shared<C>>);

impl<C> Drop for Ending<C> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.notify();
    }
}

/// The pipeline, as the engine sees it.
pub(super) struct Pipeline<C> {
    shared: Arc<Shared<C>>,
    parts: Option<SyncSender<Slot<C>>>,
    threads: Vec<JoinHandle<()>>,
    slots: usize,
    /// A slot taken and not yet submitted.
    spare: Option<Slot<C>>,
}

impl<C: CapturedState> Pipeline<C> {
    /// Takes all memory and starts the threads. `frames` bounds the frames of guest memory, `part_pages` the pages of a part; `known_zero` says that
    /// memory begins as zeros.
    pub(super) fn start(
        sink: Box<dyn Sink>,
        frames: u64,
        part_pages: usize,
        known_zero: bool,
        options: &mut EngineOptions,
    ) -> io::Result<Self> {
        let slots = options.slots.max(2);
        let blocks = part_pages.div_ceil(BLOCK_PAGES);
        // Address space only, until pages are touched: room for a part whose pages do not compress.
        let frames_bytes = part_pages.saturating_mul(PAGE_SIZE).saturating_add(blocks * (FRAME_HEADER_BYTES + 128) + (64 << 10));
        let free = (0..slots)
            .map(|_| {
                let part =
                    Part { epoch: EpochId::NONE, generation: 0, store_unchanged: false, cut_at: Instant::now(), commit: None };
                let mut frames = Vec::new();
                frames.try_reserve_exact(frames_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
                Ok(Slot { arena: Arena::new(part_pages)?, state: C::default(), frames, part, encoded: Ok(()) })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let shared = Arc::new(Shared::new(State {
            free,
            progress: Progress { committed: sink.tip(), durable: sink.tip(), ..Progress::default() },
            failure: None,
            failed_pages: PageSet::new(frames, part_pages),
            failed_generation: 0,
            generation: FIRST_GENERATION,
            ended: false,
        }));
        let (parts, to_encode) = sync_channel::<Slot<C>>(slots);
        let (encoded, to_write) = sync_channel::<Slot<C>>(slots);
        let contents = Contents::new(frames, known_zero, random_seed());
        let discards = sink.discards();
        let keeps_versions = !discards && options.compression != Compression::None;
        let versions = Versions::new(frames, if keeps_versions { options.version_pages } else { 0 });
        let known = (contents, versions);
        let encoder = Encoder::new(sink.as_ref(), options.compression, known, part_pages);
        let writer = Writer::new(sink, shared.clone(), frames, part_pages, options.durability, options.on_commit.take());
        let ending = Ending(shared.clone());
        let threads = vec![
            Builder::new().name("slackwater-encode".into()).spawn(move || encoder.run(&to_encode, &encoded))?,
            Builder::new().name("slackwater-write".into()).spawn(move || {
                let _ending = ending;
                writer.run(&to_write);
            })?,
        ];
        Ok(Self { shared, parts: Some(parts), threads, slots, spare: None })
    }

    /// A free slot, where there is one now. It stays the engine's until it is submitted.
    pub(super) fn has_slot(&mut self) -> bool {
        if self.spare.is_none() {
            self.spare = self.shared.lock().free.pop();
        }
        self.spare.is_some()
    }

    /// The slot in hand, waiting for one where there is none; `None` after a failure, or when the threads are gone.
    pub(super) fn slot(&mut self) -> Option<&mut Slot<C>> {
        if self.spare.is_none() {
            self.spare = self.shared.wait_while(|state| state.free.is_empty()).free.pop();
        }
        self.spare.as_mut()
    }

    /// Sends the slot in hand on its way.
    pub(super) fn submit(&mut self, part: Part) {
        let Some(mut slot) = self.spare.take() else { return };
        slot.part = part;
        // There are no more slots than places in the channel, so this never waits. If the encoder is gone, `ended` says so.
        if let Some(parts) = &self.parts {
            let _ = parts.send(slot);
        }
    }

    /// What was done so far.
    pub(super) fn progress(&self) -> Progress {
        self.shared.lock().progress
    }

    /// Waits until `epoch` is durable, or something failed. Returns whether it is.
    pub(super) fn wait_durable(&self, epoch: EpochId) -> bool {
        self.shared.wait_while(|state| state.progress.durable < epoch && state.failure.is_none()).progress.durable >= epoch
    }

    /// Waits until `epoch` is in the chain, or something failed. Returns whether it is.
    pub(super) fn wait_committed(&self, epoch: EpochId) -> bool {
        self.shared.wait_while(|state| state.progress.committed < epoch && state.failure.is_none()).progress.committed >= epoch
    }

    /// Whether something failed that [`take_failure`](Self::take_failure) would return.
    pub(super) fn has_failed(&self) -> bool {
        let state = self.shared.lock();
        state.failure.is_some() || state.ended
    }

    /// If something failed: waits until nothing of its generation is in flight, moves the pages that are not in the chain into `pages`, and returns why
    /// and the generation that begins now.
    pub(super) fn take_failure(&mut self, pages: &mut PageSet) -> Option<(PipelineError, u64)> {
        self.shared.lock().failure.as_ref()?;
        let all = self.slots - usize::from(self.spare.is_some());
        let mut state = self.shared.wait_while(|state| state.free.len() < all);
        let failure = state.failure.take()?;
        for gfn in state.failed_pages.iter() {
            pages.insert(gfn);
        }
        state.failed_pages.clear();
        state.generation += 1;
        Some((failure, state.generation))
    }

    /// Lets the pipeline run empty, closes the chain and ends the threads.
    pub(super) fn finish(mut self) -> (Progress, Option<PipelineError>) {
        self.end();
        let mut state = self.shared.lock();
        (state.progress, state.failure.take())
    }
}

impl<C> Pipeline<C> {
    fn end(&mut self) {
        self.parts = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has set `ended`, and its epochs are not counted.
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

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
