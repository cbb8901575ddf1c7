//! Makes a mutated chain hang together again: numbers, counts, hashes of commits, and with a model
//! of memory the checksums of changed pages and the audits. The model is a third reading of
//! `docs/format.md`, beside the reader's and verify's: an audit that it made must match both.

use std::collections::{BTreeMap, BTreeSet};

use slackwater::format::{BlockDecoder, BlockPages, ChainId, FORMAT_VERSION, MemoryDigest, decode_zeros};
use slackwater::page::{Gfn, PAGE_SIZE, PageBytes};
use twox_hash::{XxHash3_64, XxHash3_128};

use super::frames::{
    CLOSE, COMMIT, COMMIT_BYTES, DURABLE, Frame, HEADER, PAGES, Piece, REWRITTEN_BYTES, SEGMENT_BYTES, SEGMENT_HEADER, STATE,
    ZEROS, is_rewritten, list, put, u64_at,
};

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repair {
    /// Numbers, counts and hashes that tie frames together.
    pub(super) order: bool,
    /// Checksums of changed pages, and audits.
    pub(super) content: bool,
}

/// Repairs and seals the segments of a chain, of which the first and the last of their numbers are
/// given.
pub(super) fn repair(segments: &mut [Vec<Piece>], numbers: &[(u32, u32)], chain: ChainId, how: Repair) {
    let mut model = Model::default();
    for ((first, last), segment) in numbers.iter().zip(segments) {
        model.begin_epoch();
        for frame in segment.iter_mut().filter_map(Piece::frame) {
            match frame.kind() {
                SEGMENT_HEADER if how.order => {
                    frame.payload.resize(SEGMENT_BYTES, 0);
                    frame.set_epoch(0);
                    frame.set_sequence(0);
                    let place = [&FORMAT_VERSION.to_le_bytes()[..], &first.to_le_bytes(), &chain.0].concat();
                    put(&mut frame.payload, 0, &place);
                    put(&mut frame.payload, 24, &model.tip_hash.to_le_bytes());
                    put(&mut frame.payload, 40, &model.tip.to_le_bytes());
                    put(&mut frame.payload, 48, &[0; 8]);
                    put(&mut frame.payload, 56, &[0, 16, 0, 0]);
                    put(&mut frame.payload, 64, &[0; 16]);
                    put(&mut frame.payload, 60, &(last - first).to_le_bytes());
                }
                PAGES | ZEROS | STATE => {
                    if how.order {
                        model.number(frame);
                    }
                    // The list's checksum first, for the model reads the list.
                    frame.seal(chain);
                    model.content(frame, how.content);
                }
                COMMIT => {
                    if how.order {
                        model.number(frame);
                        model.count(frame);
                    }
                    model.commit(frame, how.content);
                    frame.seal(chain);
                    model.end_epoch(frame);
                    continue;
                }
                CLOSE | DURABLE if how.order => {
                    frame.payload.resize(24, 0);
                    frame.set_epoch(model.tip);
                    frame.set_sequence(0);
                    put(&mut frame.payload, 0, &model.tip.to_le_bytes());
                    put(&mut frame.payload, 8, &model.tip_hash.to_le_bytes());
                }
                _ => {}
            }
            frame.seal(chain);
            if matches!(frame.kind(), PAGES | ZEROS | STATE) {
                model.add(frame);
            }
        }
    }
}

/// What the frames so far come to.
#[derive(Default)]
struct Model {
    tip: u64,
    tip_hash: u128,
    memory: BTreeMap<u64, Box<PageBytes>>,
    /// The pages that the epoch in hand mentions.
    mentioned: BTreeSet<u64>,
    epoch: Option<u64>,
    frames: u32,
    blocks: u32,
    bytes: u64,
    stored: u64,
    zero: u64,
    headers: XxHash3_128,
}

impl Model {
    fn begin_epoch(&mut self) {
        let Self { tip, tip_hash, .. } = *self;
        *self = Self { tip, tip_hash, memory: std::mem::take(&mut self.memory), ..Self::default() };
    }

    fn number(&mut self, frame: &mut Frame) {
        let epoch = *self.epoch.get_or_insert(frame.epoch().max(self.tip.saturating_add(1)));
        frame.set_epoch(epoch);
        frame.set_sequence(self.frames);
    }

    fn add(&mut self, frame: &Frame) {
        self.frames += 1;
        self.blocks += u32::from(frame.kind() == PAGES);
        self.bytes += frame.bytes().len() as u64;
        self.headers.write(&frame.header);
    }

    fn content(&mut self, frame: &mut Frame, repair: bool) {
        match frame.kind() {
            PAGES => {
                let Some((list, at)) = list(&frame.payload) else { return };
                self.stored += list.gfns().len() as u64;
                if list.is_changes() {
                    self.changes(&mut frame.payload, list.gfns(), at, repair);
                    return;
                }
                let mut pages: Box<BlockPages> = Box::new([[0; PAGE_SIZE]; 16]);
                if BlockDecoder::new().decode(&frame.payload, &mut pages).is_ok() {
                    for (gfn, page) in list.gfns().iter().zip(pages.iter()) {
                        self.memory.insert(gfn.0, Box::new(*page));
                        self.mentioned.insert(gfn.0);
                    }
                }
            }
            ZEROS => {
                for run in decode_zeros(&frame.payload).unwrap_or_default() {
                    self.zero = self.zero.saturating_add(run.count);
                    self.memory.retain(|gfn, _| !run.contains(Gfn(*gfn)));
                    self.mentioned.retain(|gfn| !run.contains(Gfn(*gfn)));
                }
            }
            _ => {}
        }
    }

    /// Applies changes to the pages as they are, and states the checksums that this gives.
    fn changes(&mut self, payload: &mut [u8], gfns: &[Gfn], mut at: usize, repair: bool) {
        for gfn in gfns {
            let Some(bits) = payload.get(at + 8..at + 72).map(<[u8]>::to_vec) else { return };
            let words: Vec<usize> = (0..512).filter(|word| bits[word / 8] & 1 << (word % 8) != 0).collect();
            let page = self.memory.entry(gfn.0).or_insert_with(|| Box::new([0; PAGE_SIZE]));
            for (index, word) in words.iter().enumerate() {
                let value = u64_at(payload, at + 72 + 8 * index);
                put(&mut page[..], 8 * word, &value.to_le_bytes());
            }
            self.mentioned.insert(gfn.0);
            if repair {
                put(payload, at, &XxHash3_64::oneshot(&page[..]).to_le_bytes());
            }
            at += 72 + 8 * words.len();
        }
    }

    fn count(&self, frame: &mut Frame) {
        let payload = &mut frame.payload;
        let length = if is_rewritten(payload) { REWRITTEN_BYTES } else { COMMIT_BYTES };
        payload.resize(length, 0);
        put(payload, 0, &self.tip.to_le_bytes());
        put(payload, 8, &self.tip_hash.to_le_bytes());
        put(payload, 24, &self.frames.to_le_bytes());
        put(payload, 28, &self.blocks.to_le_bytes());
        put(payload, 32, &self.bytes.to_le_bytes());
        put(payload, 40, &self.headers.finish_128().to_le_bytes());
        let unchanged = u64_at(payload, 136);
        put(payload, 120, &self.zero.saturating_add(self.stored).saturating_add(unchanged).to_le_bytes());
        put(payload, 128, &self.zero.to_le_bytes());
        put(payload, 144, &self.stored.to_le_bytes());
        put(payload, 152, &(self.bytes + (HEADER + length) as u64).to_le_bytes());
        put(payload, 160, &[0; 8]);
        put(payload, 192, &[0; 16]);
    }

    fn commit(&mut self, frame: &mut Frame, repair: bool) {
        let flags = frame.payload.get(169).copied().unwrap_or_default();
        if flags & 1 != 0 {
            let mentioned = &self.mentioned;
            self.memory.retain(|gfn, _| mentioned.contains(gfn));
        }
        if repair {
            let mut digest = MemoryDigest::default();
            if flags & 4 != 0 {
                self.memory.iter().for_each(|(gfn, page)| digest.add_page(Gfn(*gfn), page));
            }
            put(&mut frame.payload, 176, &digest.0.to_le_bytes());
        }
    }

    fn end_epoch(&mut self, frame: &Frame) {
        self.tip = frame.epoch();
        self.tip_hash = frame.identity();
        self.begin_epoch();
    }
}
