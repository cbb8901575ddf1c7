//! The encode thread: from staged pages to frames.

use std::sync::mpsc::{Receiver, SyncSender};

use super::contents::{Content, Contents};
use super::guest::CapturedState;
use super::sink::Sink;
use super::slot::Slot;
use super::versions::{Store, Versions};
use crate::format::{BLOCK_PAGES, BlockEncoder, ChainId, ChangedWords, Compression, EpochWriter, FormatError, is_zero};
use crate::page::{EpochId, Gfn, PageBytes, runs};

/// Encodes the parts of epochs, in order.
pub(super) struct Encoder {
    chain: ChainId,
    blocks: BlockEncoder,
    known: Known,
    /// Nothing is kept of what would be encoded.
    discards: bool,
    /// The epoch in hand; parts of it may have gone before.
    writer: EpochWriter,
    zero_pages: u64,
    unchanged_pages: u64,
    /// Places in the arena, by ascending frame. Kept for its memory.
    order: Vec<(Gfn, u32)>,
    zeros: Vec<Gfn>,
}

impl Encoder {
    pub(super) fn new(
        sink: &dyn Sink,
        compression: Compression,
        (contents, versions): (Contents, Versions),
        budget_pages: usize,
    ) -> Self {
        let chain = sink.chain();
        Self {
            chain,
            discards: sink.discards(),
            blocks: BlockEncoder::new(compression),
            known: Known { contents, versions },
            writer: EpochWriter::new(chain, EpochId::NONE),
            zero_pages: 0,
            unchanged_pages: 0,
            order: Vec::with_capacity(budget_pages),
            zeros: Vec::with_capacity(budget_pages),
        }
    }

    /// Encodes until no more parts come.
    pub(super) fn run<C: CapturedState>(mut self, parts: &Receiver<Slot<C>>, to_writer: &SyncSender<Slot<C>>) {
        for mut slot in parts {
            if !self.discards {
                slot.encoded = self.encode(&mut slot);
            }
            if to_writer.send(slot).is_err() {
                return; // the writer has ended, and says why itself
            }
        }
    }

    fn encode<C: CapturedState>(&mut self, slot: &mut Slot<C>) -> Result<(), FormatError> {
        if self.writer.epoch() != slot.part.epoch {
            self.writer = EpochWriter::new(self.chain, slot.part.epoch);
            (self.zero_pages, self.unchanged_pages) = (0, 0);
        }
        slot.frames.clear();
        self.order.clear();
        self.order.extend(slot.arena.gfns().iter().copied().zip(0u32..));
        self.order.sort_unstable();
        debug_assert!(self.order.is_sorted_by(|a, b| a.0 < b.0), "a part has each page once");
        self.zeros.clear();
        let mut block: Vec<(Gfn, &PageBytes)> = Vec::with_capacity(BLOCK_PAGES);
        let mut changes: Vec<(Gfn, &PageBytes, ChangedWords)> = Vec::with_capacity(BLOCK_PAGES);
        for (gfn, place) in &self.order {
            let page = usize::try_from(*place).ok().and_then(|place| slot.arena.page(place));
            let Some(page) = page else { continue };
            match self.known.next(*gfn, page, slot.part.store_unchanged) {
                Next::Unchanged => self.unchanged_pages += 1,
                Next::Zero => self.zeros.push(*gfn),
                Next::Changes(changed) => changes.push((*gfn, page, changed)),
                Next::Whole => block.push((*gfn, page)),
            }
            if block.len() == BLOCK_PAGES {
                self.writer.pages(&mut slot.frames, &mut self.blocks, &block)?;
                block.clear();
            }
            if changes.len() == BLOCK_PAGES {
                self.writer.changes(&mut slot.frames, &changes)?;
                changes.clear();
            }
        }
        if !block.is_empty() {
            self.writer.pages(&mut slot.frames, &mut self.blocks, &block)?;
        }
        if !changes.is_empty() {
            self.writer.changes(&mut slot.frames, &changes)?;
        }
        if !self.zeros.is_empty() {
            let runs: Vec<_> = runs(self.zeros.iter().copied()).collect();
            self.writer.zeros(&mut slot.frames, &runs)?;
            self.zero_pages += self.zeros.len() as u64;
        }
        if let Some(commit) = &mut slot.part.commit {
            let records = slot.state.records();
            self.writer.state(&mut slot.frames, &records)?;
            commit.totals = self.writer.totals();
            commit.zero_pages = self.zero_pages;
            commit.unchanged_pages = self.unchanged_pages;
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
                // Only what is written again and again is kept: a base, most of which is never written again, would drop everything else.
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
