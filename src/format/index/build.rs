//! From what a segment's frames mention to the bytes of an index.

use super::{
    BLOCK_BYTES, CONTENT_BYTES, EPOCHS, FRAMES, INDEX_MENTIONS_MAX, IndexedEpoch, IndexedFrame, MAGIC, MENTIONS, Mention, RUNS,
    Table, VERSION,
};
use crate::format::{FRAME_HEADER_BYTES, FormatError, SEGMENT_HEADER_FRAME_BYTES};
use crate::page::{EpochId, Gfn, PageRun, runs};
use crate::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Collects what the frames of a segment mention, in the order of the segment.
#[derive(Clone, Debug, Default)]
pub struct IndexBuilder {
    epochs: Vec<IndexedEpoch>,
    frames: Vec<IndexedFrame>,
    spans: Vec<Span>,
    pages: u64,
}

/// Pages that a frame mentions.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u64,
    count: u64,
    frame: u32,
}

impl IndexBuilder {
    /// An index of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many epochs were added.
    #[must_use]
    pub fn epochs(&self) -> usize {
        self.epochs.len()
    }

    /// How many mentions of pages were added.
    #[must_use]
    pub const fn mentions(&self) -> u64 {
        self.pages
    }

    /// Adds a frame of the epoch that comes next, and the pages that it mentions.
    ///
    /// # Errors
    /// More frames than an index has numbers for.
    pub fn frame(&mut self, offset: u64, mention: Mention, spans: impl IntoIterator<Item = PageRun>) -> Result<(), FormatError> {
        let too_many = |what| FormatError::input(what, "less than 2^32 in a segment", "more");
        let frame = u32::try_from(self.frames.len()).ok().filter(|frame| *frame < u32::MAX).ok_or_else(|| too_many("frames"))?;
        let epoch = u32::try_from(self.epochs.len()).map_err(|_| too_many("epochs"))?;
        self.frames.push(IndexedFrame { offset, epoch, mention });
        for run in spans {
            self.pages = self.pages.saturating_add(run.count);
            self.spans.push(Span { first: run.first.0, count: run.count, frame });
        }
        Ok(())
    }

    /// Adds a block's frame, which mentions these pages, in rising order.
    ///
    /// # Errors
    /// As [`frame`](Self::frame).
    pub fn block(&mut self, offset: u64, changes: bool, gfns: &[Gfn]) -> Result<(), FormatError> {
        self.frame(offset, if changes { Mention::Changes } else { Mention::Whole }, runs(gfns.iter().copied()))
    }

    /// Ends the epoch whose frames were added; its first frame's number is filled in here.
    pub fn epoch(&mut self, epoch: IndexedEpoch) {
        let number = self.epochs.len();
        let first = self.frames.partition_point(|frame| usize::try_from(frame.epoch).is_ok_and(|epoch| epoch < number));
        self.epochs.push(IndexedEpoch { first_frame: u32::try_from(first).unwrap_or(u32::MAX), ..epoch });
    }

    /// Forgets the frames that were added since the last epoch ended.
    pub fn forget_frames(&mut self) {
        let number = self.epochs.len();
        let frames = self.frames.partition_point(|frame| usize::try_from(frame.epoch).is_ok_and(|epoch| epoch < number));
        self.frames.truncate(frames);
        while let Some(span) = self.spans.pop_if(|span| usize::try_from(span.frame).is_ok_and(|frame| frame >= frames)) {
            self.pages = self.pages.saturating_sub(span.count);
        }
    }

    /// Forgets all epochs from the one with this number on, and their frames.
    pub fn truncate(&mut self, epochs: usize) {
        self.epochs.truncate(epochs);
        self.forget_frames();
    }

    /// The index's bytes. `first_frame` is the segment's first frame, `segment_bytes` the segment's
    /// length, `previous` the epoch before the first, `identity` that of the last epoch.
    ///
    /// # Errors
    /// More than [`INDEX_MENTIONS_MAX`] mentions.
    pub fn finish(
        mut self,
        first_frame: &[u8; SEGMENT_HEADER_FRAME_BYTES],
        segment_bytes: u64,
        previous: EpochId,
        identity: u128,
    ) -> Result<Vec<u8>, FormatError> {
        // Stable: spans of the same page stay in the order of their frames.
        self.spans.sort_by_key(|span| span.first);
        let (runs, mentions) = disjoint(&self.spans)?;
        drop(std::mem::take(&mut self.spans));
        let header = first_frame.get(..FRAME_HEADER_BYTES).unwrap_or_default();
        let mut out = Blocks { key: xxh3_64(header), bytes: Vec::new() };
        let numbers = [
            segment_bytes,
            self.epochs.len() as u64,
            self.frames.len() as u64,
            runs.len() as u64,
            mentions.len() as u64,
            previous.0,
            self.epochs.last().map_or(0, |epoch| epoch.epoch.0),
        ];
        let mut head = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        head.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        head.extend(identity.to_le_bytes());
        let base = self.epochs.iter().rposition(|epoch| epoch.base).map_or(0, |number| number as u64 + 1);
        head.extend(base.to_le_bytes());
        head.extend(first_frame);
        out.block(&head);
        out.table(EPOCHS, &self.epochs, |epoch, out| {
            for number in [epoch.epoch.0, epoch.offset, epoch.state_offset, epoch.commit_offset] {
                out.extend(number.to_le_bytes());
            }
            out.extend(epoch.first_frame.to_le_bytes());
            out.extend(u32::from(epoch.base).to_le_bytes());
        });
        out.table(FRAMES, &self.frames, |frame, out| {
            out.extend(frame.offset.to_le_bytes());
            out.extend(frame.epoch.to_le_bytes());
            let (kind, changes) = match frame.mention {
                Mention::Whole => (2, 0),
                Mention::Changes => (2, 1),
                Mention::Zeros => (3, 0),
            };
            out.extend([kind, changes, 0, 0]);
        });
        out.table(RUNS, &runs, |(run, first), out| {
            for number in [run.first.0, run.count, *first] {
                out.extend(number.to_le_bytes());
            }
        });
        out.table(MENTIONS, &mentions, |frame, out| out.extend(frame.to_le_bytes()));
        Ok(out.bytes)
    }
}

/// Whole blocks of an index, with their checksums.
struct Blocks {
    key: u64,
    bytes: Vec<u8>,
}

impl Blocks {
    fn block(&mut self, content: &[u8]) {
        let number = (self.bytes.len() / BLOCK_BYTES) as u64;
        let begin = self.bytes.len();
        self.bytes.extend(content);
        self.bytes.resize(begin + CONTENT_BYTES, 0);
        let sum = xxh3_64_with_seed(self.bytes.get(begin..).unwrap_or_default(), self.key.wrapping_add(number));
        self.bytes.extend(sum.to_le_bytes());
    }

    fn table<T>(&mut self, table: Table, entries: &[T], encode: impl Fn(&T, &mut Vec<u8>)) {
        let mut content = Vec::with_capacity(CONTENT_BYTES);
        for entries in entries.chunks(table.entries_in_block()) {
            content.clear();
            entries.iter().for_each(|entry| encode(entry, &mut content));
            self.block(&content);
        }
    }
}

/// A run of pages and the number of its first mention.
type Run = (PageRun, u64);

/// Cuts spans, sorted by their first page and then by frame, into runs of pages that the same
/// frames mention.
fn disjoint(spans: &[Span]) -> Result<(Vec<Run>, Vec<u32>), FormatError> {
    let mut runs: Vec<Run> = Vec::new();
    let mut mentions: Vec<u32> = Vec::new();
    // The spans that hold `at`: their frames, rising, and where they end.
    let mut active: Vec<(u32, u64)> = Vec::new();
    let mut merged = Vec::new();
    let mut rest = spans.iter().peekable();
    let mut at = 0;
    loop {
        if active.is_empty() {
            let Some(next) = rest.peek() else { break };
            at = next.first;
        }
        if rest.peek().is_some_and(|span| span.first == at) {
            merged.clear();
            let mut old = active.drain(..).peekable();
            while let Some(span) = rest.next_if(|span| span.first == at) {
                while let Some(old) = old.next_if(|(frame, _)| *frame < span.frame) {
                    merged.push(old);
                }
                merged.push((span.frame, span.first.saturating_add(span.count)));
            }
            merged.extend(old);
            std::mem::swap(&mut active, &mut merged);
        }
        let ends = active.iter().map(|(_, end)| *end).min().unwrap_or(at);
        let end = rest.peek().map_or(ends, |span| ends.min(span.first));
        if end > at {
            let begin = mentions.len();
            if (begin + active.len()) as u64 > INDEX_MENTIONS_MAX {
                return Err(FormatError::input("mentions of an index", format!("up to {INDEX_MENTIONS_MAX}"), "more"));
            }
            mentions.extend(active.iter().map(|(frame, _)| *frame));
            let before = runs.last_mut().filter(|(run, first)| {
                let same = usize::try_from(*first).ok().and_then(|first| mentions.get(first..begin)) == mentions.get(begin..);
                run.end() == Some(Gfn(at)) && same
            });
            match before {
                Some((run, _)) => {
                    run.count += end - at;
                    mentions.truncate(begin);
                }
                None => runs.push((PageRun { first: Gfn(at), count: end - at }, begin as u64)),
            }
        }
        active.retain(|(_, ends)| *ends > end);
        at = end;
    }
    Ok((runs, mentions))
}
