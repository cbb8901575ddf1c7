//! The encode thread: from staged pages to frames.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use super::contents::{Content, Contents};
use super::deliver::Order;
use super::encoded::Encoded;
use super::guest::CapturedState;
use super::shared::{FIRST_ATTEMPT, Shared};
use super::slot::{Joiner, Slot};
use super::staging::Staging;
use super::versions::{Store, Versions};
use crate::format::{
    BLOCK_PAGES, BlockEncoder, ChainId, ChangedWords, Commit, Complete, Compression, EpochWriter, FormatError, Head, Line,
    StateRecord, is_zero,
};
use crate::page::{EpochId, Gfn, PageBytes, runs};

/// What the encoder is told.
#[expect(clippy::large_enum_variant, reason = "there is one for each part of an epoch, and nearly all are parts")]
pub(super) enum Input<C> {
    /// A part of an epoch.
    Part(Slot<C>),
    /// One sink more: its thread, and whether it keeps anything.
    Sink(Sender<Order<C>>, bool),
}

/// Encodes the parts of epochs, in order, completes the epochs, and gives them to all sinks.
pub(super) struct Encoder<C> {
    chain: ChainId,
    shared: Arc<Shared<C>>,
    sinks: Vec<Sender<Order<C>>>,
    /// No sink keeps anything of what would be encoded.
    discards: bool,
    line: Line,
    attempt: u64,
    blocks: BlockEncoder,
    known: Known,
    /// The epoch in hand; parts of it may have gone before.
    epoch: InHand,
    /// The base in hand, of a sink that is joining.
    base: Option<(Joiner, InHand)>,
    /// Places in the arena, by ascending frame. Kept for its memory.
    order: Vec<(Gfn, u32)>,
    zeros: Vec<Gfn>,
}

/// An epoch that is not complete yet.
struct InHand {
    writer: EpochWriter,
    zero_pages: u64,
    unchanged_pages: u64,
}

impl InHand {
    fn new(chain: ChainId, epoch: EpochId) -> Self {
        Self { writer: EpochWriter::new(chain, epoch), zero_pages: 0, unchanged_pages: 0 }
    }

    /// Appends what `next` says of each page of a part, in `order`: places in the arena, by
    /// ascending frame.
    fn pages(
        &mut self,
        frames: &mut Vec<u8>,
        (blocks, zeros): (&mut BlockEncoder, &mut Vec<Gfn>),
        (arena, order): (&Staging, &[(Gfn, u32)]),
        mut next: impl FnMut(Gfn, &PageBytes) -> Next,
    ) -> Result<(), FormatError> {
        zeros.clear();
        let mut block: Vec<(Gfn, &PageBytes)> = Vec::with_capacity(BLOCK_PAGES);
        let mut changes: Vec<(Gfn, &PageBytes, ChangedWords)> = Vec::with_capacity(BLOCK_PAGES);
        for (gfn, place) in order {
            let page = usize::try_from(*place).ok().and_then(|place| arena.page(place));
            let Some(page) = page else { continue };
            match next(*gfn, page) {
                Next::Unchanged => self.unchanged_pages += 1,
                Next::Zero => zeros.push(*gfn),
                Next::Changes(changed) => changes.push((*gfn, page, changed)),
                Next::Whole => block.push((*gfn, page)),
            }
            if block.len() == BLOCK_PAGES {
                self.writer.pages(frames, blocks, &block)?;
                block.clear();
            }
            if changes.len() == BLOCK_PAGES {
                self.writer.changes(frames, &changes)?;
                changes.clear();
            }
        }
        if !block.is_empty() {
            self.writer.pages(frames, blocks, &block)?;
        }
        if !changes.is_empty() {
            self.writer.changes(frames, &changes)?;
        }
        if !zeros.is_empty() {
            let runs: Vec<_> = runs(zeros.iter().copied()).collect();
            self.writer.zeros(frames, &runs)?;
            self.zero_pages += zeros.len() as u64;
        }
        Ok(())
    }
}

impl<C: CapturedState> Encoder<C> {
    pub(super) fn new(
        shared: Arc<Shared<C>>,
        (chain, head): (ChainId, Head),
        compression: Compression,
        (contents, versions): (Contents, Versions),
        part_pages: usize,
    ) -> Self {
        Self {
            chain,
            shared,
            sinks: Vec::new(),
            discards: true,
            line: Line::behind(chain, head),
            attempt: FIRST_ATTEMPT,
            blocks: BlockEncoder::new(compression),
            known: Known { contents, versions },
            epoch: InHand::new(chain, EpochId::NONE),
            base: None,
            order: Vec::with_capacity(part_pages),
            zeros: Vec::with_capacity(part_pages),
        }
    }

    /// Takes one sink more. It is given what is encoded from now on.
    pub(super) fn add(&mut self, sink: Sender<Order<C>>, keeps: bool) {
        self.sinks.push(sink);
        self.discards &= !keeps;
    }

    /// Encodes until no more comes.
    pub(super) fn run(mut self, inputs: &Receiver<Input<C>>) {
        for input in inputs {
            match input {
                Input::Sink(sink, keeps) => self.add(sink, keeps),
                Input::Part(mut slot) => {
                    slot.encoded = Ok(());
                    // A part that is thrown away is not encoded: its sinks see that themselves.
                    if self.begin(slot.part.attempt) {
                        slot.encoded = self.encode(&mut slot);
                    }
                    let encoded = Encoded::new(slot, self.shared.clone());
                    self.tell(|| Order::Part(encoded.clone()));
                }
            }
        }
        self.tell(|| Order::End);
    }

    fn tell(&self, order: impl Fn() -> Order<C>) {
        for sink in &self.sinks {
            // One that has ended has said why.
            let _ = sink.send(order());
        }
    }

    /// Goes on where the sinks are, if `attempt` is a new one. Returns whether it has not failed
    /// yet.
    fn begin(&mut self, attempt: u64) -> bool {
        if attempt != self.attempt {
            self.tell(|| Order::Attempt(attempt));
            let state = self
                .shared
                .wait_while(|state| state.failed_attempt < attempt && state.goes_on.is_none_or(|(of, _)| of != attempt));
            match state.goes_on.filter(|(of, _)| *of == attempt && state.failed_attempt < attempt) {
                Some((_, head)) => {
                    self.line.go_back(head);
                    self.attempt = attempt;
                }
                None => return false,
            }
        }
        self.shared.lock().failed_attempt < attempt
    }

    fn encode(&mut self, slot: &mut Slot<C>) -> Result<(), FormatError> {
        slot.frames.clear();
        slot.base_frames.clear();
        (slot.complete, slot.base_complete) = (None, None);
        if self.discards {
            slot.complete = slot.part.commit.map(|commit| self.line.complete(commit));
            return Ok(());
        }
        self.order.clear();
        self.order.extend(slot.arena.gfns().iter().copied().zip(0u32..));
        self.order.sort_unstable();
        debug_assert!(self.order.is_sorted_by(|a, b| a.0 < b.0), "a part has each page once");
        let records = if slot.part.commit.is_some() { slot.state.records() } else { Vec::new() };
        if !slot.part.base_only {
            self.encode_part(slot, &records)?;
        }
        match slot.part.joiner {
            Some(joiner) => self.encode_base(joiner, slot, &records),
            None => {
                self.base = None;
                Ok(())
            }
        }
    }

    /// What the sinks lack that have all epochs before.
    fn encode_part(&mut self, slot: &mut Slot<C>, records: &[StateRecord]) -> Result<(), FormatError> {
        if self.epoch.writer.epoch() != slot.part.epoch {
            self.epoch = InHand::new(self.chain, slot.part.epoch);
        }
        let Self { epoch, known, blocks, order, zeros, .. } = self;
        let Slot { arena, frames, part, complete, .. } = slot;
        let next = |gfn, page: &PageBytes| known.next(gfn, page, part.store_unchanged);
        epoch.pages(frames, (blocks, zeros), (arena, order), next)?;
        if let Some(commit) = part.commit {
            epoch.writer.state(frames, records)?;
            let (zero_pages, unchanged_pages) = (epoch.zero_pages, epoch.unchanged_pages);
            let commit = Commit { totals: epoch.writer.totals(), zero_pages, unchanged_pages, ..commit };
            *complete = Some(self.line.complete(commit));
        }
        Ok(())
    }

    /// All pages of the part, whatever is known of them, for a sink of which nothing is known.
    fn encode_base(&mut self, joiner: Joiner, slot: &mut Slot<C>, records: &[StateRecord]) -> Result<(), FormatError> {
        let Self { base, blocks, order, zeros, .. } = self;
        if base.as_ref().is_none_or(|(of, _)| *of != joiner) {
            *base = Some((joiner, InHand::new(self.chain, joiner.epoch)));
        }
        let Some((_, base)) = base else { return Ok(()) };
        let Slot { arena, base_frames: frames, complete, base_complete, .. } = slot;
        let next = |_, page: &PageBytes| if is_zero(page) { Next::Zero } else { Next::Whole };
        base.pages(frames, (blocks, zeros), (arena, order), next)?;
        // The others come to the epoch of the base when it is whole.
        if let Some(complete) = complete.as_ref().filter(|complete| complete.commit.epoch == joiner.epoch) {
            base.writer.state(frames, records)?;
            let (totals, behind) = (base.writer.totals(), (joiner.head.epoch, joiner.head.identity));
            let commit = complete.commit.rewritten(complete.identity, behind, totals, base.zero_pages, true);
            *base_complete = Some(Complete::new(self.chain, commit));
            self.base = None;
        }
        Ok(())
    }
}

/// What is known of what the chain holds.
struct Known {
    /// Of pages whose version is not kept.
    contents: Contents,
    versions: Versions,
}

impl Known {
    /// What to store of a page, and takes note of it as stored.
    fn next(&mut self, gfn: Gfn, page: &PageBytes, store_unchanged: bool) -> Next {
        if is_zero(page) {
            let known = !self.versions.forget(gfn);
            let changed = self.contents.replace(gfn, Content::ZERO) || !known;
            return if changed || store_unchanged { Next::Zero } else { Next::Unchanged };
        }
        match self.versions.update(gfn, page, store_unchanged) {
            Some(Store::Nothing) => Next::Unchanged,
            Some(Store::Changes(changed)) => Next::Changes(changed),
            Some(Store::Whole) => Next::Whole,
            None => {
                let content = self.contents.of(page);
                // Only what is written again and again is kept: a base, most of which is never
                // written again, would drop everything else.
                let again = self.contents.has_hash(gfn);
                if !self.contents.replace(gfn, content) && !store_unchanged {
                    return Next::Unchanged;
                }
                if again && let Some((dropped, version)) = self.versions.keep(gfn, page) {
                    let content = self.contents.of(&version);
                    self.contents.replace(dropped, content);
                }
                Next::Whole
            }
        }
    }
}

/// What to store of a page.
enum Next {
    Unchanged,
    Zero,
    Changes(ChangedWords),
    Whole,
}
