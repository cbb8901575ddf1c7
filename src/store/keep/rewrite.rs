//! One segment in the place of several, with some of their epochs. Follows `docs/format.md`,
//! "Compaction".

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::Arc;

use crate::format::{
    BLOCK_PAGES, BlockDecoder, BlockEncoder, BlockList, BlockPages, Compression, EpochWriter, Mention, SegmentHeader, Synced,
    is_zero,
};
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes, PageRun, runs};
use crate::store::epoch::Epoch;
use crate::store::error::StoreError;
use crate::store::medium::WritableFile;
use crate::store::names::SegmentNumbers;
use crate::store::read::assembly;
use crate::store::read::covered_pages::Found;
use crate::store::read::frames::{self, Fault};
use crate::store::read::view::{self, Part, Unanswered, View};
use crate::store::read::{Chain, Segment};

/// Bytes that are collected before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// What a rewrite came to.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Rewritten {
    pub(in crate::store) epochs: u64,
    pub(in crate::store) bytes: u64,
}

/// Writes a segment that stands for `numbers`, with those epochs of the chain's segments `from`
/// that are in `keep` and the last one of them, to `file`. No more than `bytes_most` are written.
/// Told how many bytes of the old segments are done.
pub(in crate::store) fn rewrite(
    chain: &Arc<Chain>,
    from: RangeInclusive<usize>,
    numbers: SegmentNumbers,
    keep: &BTreeSet<EpochId>,
    (file, path, bytes_most): (&dyn WritableFile, &Path, u64),
    progress: &mut dyn FnMut(u64) -> Result<(), StoreError>,
) -> Result<Rewritten, StoreError> {
    let sources = chain.all_segments();
    let first = chain.segment(*from.start())?;
    let previous = first.look(|index| Ok(index.previous()))?;
    let previous_hash = if previous == EpochId::NONE { 0 } else { chain.epoch(previous)?.identity };
    let description = chain.description();
    let header = SegmentHeader {
        format: description.format,
        number: numbers.first,
        more: numbers.last - numbers.first,
        chain: description.chain,
        previous_hash,
        previous,
    };
    let mut out = Out { file, path, at: 0, bytes_most, buffer: header.encode_frame() };
    let mut last = (previous, previous_hash);
    let mut window = Vec::new();
    let mut written = 0;
    let mut done = 0;
    for (at, source) in sources.iter().enumerate().take(from.end() + 1).skip(*from.start()) {
        let epochs = source.epochs()?;
        for number in 0..epochs {
            window.push((at, number));
            let indexed = source.look(|index| index.epoch(number))?;
            let is_last = at == *from.end() && number + 1 == epochs;
            if !is_last && !keep.contains(&indexed.epoch) {
                continue;
            }
            let epoch = source.epoch(number)?;
            if window.len() == 1 && epoch.commit.parent == last.0 && epoch.commit.parent_hash == last.1 {
                out.copy(chain, source, &epoch)?;
            } else {
                Rewrite::new(chain, &epoch, &window)?.write(source, last, &mut out)?;
            }
            last = (epoch.commit.epoch, epoch.identity);
            written += 1;
            window.clear();
            progress(done + epoch.commit_offset)?;
        }
        done += source.bytes();
    }
    if last.0 != EpochId::NONE {
        out.buffer.extend(Synced { epoch: last.0, identity: last.1 }.close_frame(description.chain));
    }
    out.flush()?;
    Ok(Rewritten { epochs: written, bytes: out.at })
}

/// The segment that is written.
struct Out<'a> {
    file: &'a dyn WritableFile,
    path: &'a Path,
    at: u64,
    /// What is above this is left for others.
    bytes_most: u64,
    buffer: Vec<u8>,
}

impl Out<'_> {
    fn flush(&mut self) -> Result<(), StoreError> {
        if self.at.saturating_add(self.buffer.len() as u64) > self.bytes_most {
            return Err(StoreError::io("write", self.path)(std::io::ErrorKind::StorageFull.into()));
        }
        self.file.write(self.at, &[&self.buffer]).map_err(StoreError::io("write", self.path))?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn flush_full(&mut self) -> Result<(), StoreError> {
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Appends the frames of an epoch as they are. Each is checked: damage must not become part of
    /// a segment that is new, and whose source is removed.
    fn copy(&mut self, chain: &Chain, source: &Segment, epoch: &Epoch) -> Result<(), StoreError> {
        let tag = chain.description().chain;
        let end = epoch.commit_offset + epoch.commit.encode_frame(tag).len() as u64;
        let (mut offset, mut frame) = (epoch.offset, Vec::new());
        while offset < end {
            let (header, payload) =
                frames::read_frame(source.file(), offset, end, tag, &mut frame).map_err(|fault| match fault {
                    Fault::Io(error) => StoreError::io("read", source.path())(error),
                    Fault::Format(error) => source.damaged(epoch.commit.epoch, offset, &error),
                })?;
            self.buffer.extend(header.encode(tag));
            self.buffer.extend_from_slice(payload);
            self.buffer.resize(self.buffer.len().next_multiple_of(8), 0);
            offset = offset.saturating_add(header.frame_bytes());
            self.flush_full()?;
        }
        Ok(())
    }
}

/// An epoch that is to say what several said.
struct Rewrite<'a> {
    chain: &'a Arc<Chain>,
    epoch: &'a Epoch,
    /// Whether what was mentioned before these epochs does not count.
    base: bool,
    content: Content,
}

/// What the newest mention of each page in some epochs is.
#[derive(Debug, Default)]
struct Content {
    found: Found,
    zeros: Vec<PageRun>,
    whole: Vec<WholePages>,
    changed: BTreeSet<Gfn>,
}

/// Pages of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WholePages {
    segment: usize,
    frame: u32,
    run: PageRun,
}

impl<'a> Rewrite<'a> {
    /// `window`: the epochs, by segment and number there, oldest first; the last is `epoch`.
    fn new(chain: &'a Arc<Chain>, epoch: &'a Epoch, window: &[(usize, u64)]) -> Result<Self, StoreError> {
        let (base, content) = view::ask(chain, || {
            let mut content = Content::default();
            let mut end = window.len();
            while let Some((segment, last)) = end.checked_sub(1).and_then(|at| window.get(at)).copied() {
                let source = chain.segment(segment)?;
                let index = source.index()?;
                let asked = |error| Unanswered::Index(segment, error);
                // The epochs of the window that are in this segment are the last before `end`, and
                // follow each other.
                let in_segment = window.get(..end).unwrap_or_default().iter().rev().take_while(|(at, _)| *at == segment).count();
                let first = last + 1 - in_segment as u64;
                let base = index.base_up_to(last).map_err(asked)?.filter(|base| *base >= first);
                let begin = index.epoch(base.unwrap_or(first)).map_err(asked)?.first_frame;
                let frames = begin..index.frames_end(last).map_err(asked)?;
                if let Some(damage) = source.fault(index.epoch(first).map_err(asked)?.epoch, epoch.commit.epoch) {
                    return Err(StoreError::Damaged(damage.clone()).into());
                }
                content.segment(segment, index, frames).map_err(asked)?;
                if base.is_some() {
                    return Ok((true, content));
                }
                end -= in_segment;
            }
            Ok((false, content))
        })?;
        Ok(Self { chain, epoch, base, content })
    }

    /// Appends the epoch, which changes `parent`.
    fn write(self, source: &Segment, parent: (EpochId, u128), out: &mut Out<'_>) -> Result<(), StoreError> {
        let Self { chain, epoch, base, content } = self;
        let base = base || parent.0 == EpochId::NONE;
        let number = epoch.commit.epoch;
        let mut pages = Pages {
            writer: EpochWriter::new(chain.description().chain, number),
            encoder: BlockEncoder::new(Compression::default()),
            waiting: Vec::new(),
            zeros: Vec::new(),
        };
        let Content { mut zeros, mut whole, changed, .. } = content;
        whole.sort_unstable();
        let mut decoder = BlockDecoder::new();
        let mut decoded: Box<BlockPages> = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
        let mut buffer = Vec::new();
        for of_block in whole.chunk_by(|one, other| (one.segment, one.frame) == (other.segment, other.frame)) {
            let Some(block) = of_block.first() else { continue };
            let held_by = chain.segment(block.segment)?;
            let place = held_by.look(|index| Segment::place(index, block.frame.into()))?;
            let damaged = |error| held_by.damaged(place.epoch, place.offset, &error);
            let payload = held_by.payload(&place, &mut buffer)?;
            let list = BlockList::parse(payload).map_err(damaged)?;
            let wanted = |gfn: Gfn| of_block.iter().any(|pages| pages.run.contains(gfn));
            let met = list.gfns().iter().filter(|gfn| wanted(**gfn)).count();
            let expected = of_block.iter().fold(0, |sum: u64, pages| sum.saturating_add(pages.run.count));
            if met as u64 != expected {
                // Whatever these pages are, what is written here would take the place of it.
                return Err(view::lacks_pages(held_by, &place, expected, met as u64));
            }
            if met == list.gfns().len() {
                pages.writer.block_again(&mut out.buffer, payload, met).map_err(StoreError::Input)?;
            } else {
                decoder.decode(payload, &mut decoded).map_err(damaged)?;
                for (gfn, page) in list.gfns().iter().zip(decoded.iter()).filter(|(gfn, _)| wanted(**gfn)) {
                    pages.add(*gfn, page, &mut out.buffer)?;
                }
            }
            out.flush_full()?;
        }
        if !changed.is_empty() {
            let view = View::new(chain, number)?;
            let changed: Vec<_> = changed.into_iter().collect();
            for some in changed.chunks(chain.bounds().changed_pages) {
                let mut made = Vec::with_capacity(some.len());
                assembly::read_all(chain, &view, some, &mut |gfn, page| {
                    made.push((gfn, Box::new(*page)));
                    Ok(())
                })?;
                if made.len() != some.len() {
                    return Err(StoreError::io("read", chain.dir())(std::io::ErrorKind::NotFound.into()));
                }
                made.sort_unstable_by_key(|(gfn, _)| *gfn);
                for (gfn, page) in &made {
                    pages.add(*gfn, page, &mut out.buffer)?;
                    out.flush_full()?;
                }
            }
        }
        pages.flush(&mut out.buffer)?;
        zeros.extend(pages.zeros);
        zeros.sort_unstable();
        if base {
            zeros.clear();
        }
        pages.writer.zeros(&mut out.buffer, &zeros).map_err(StoreError::Input)?;
        let payload = source.state(epoch, &mut buffer)?;
        pages.writer.state_again(&mut out.buffer, payload).map_err(StoreError::Input)?;
        let zero_pages = zeros.iter().fold(0, |sum: u64, run| sum.saturating_add(run.count));
        let commit = epoch.commit.rewritten(epoch.identity, parent, pages.writer.totals(), zero_pages, base);
        out.buffer.extend(commit.encode_frame(chain.description().chain));
        out.flush_full()
    }
}

impl Content {
    /// Takes what these frames of a segment mention, older than all taken before.
    fn segment(
        &mut self,
        segment: usize,
        index: &crate::format::Index,
        frames: Range<u32>,
    ) -> Result<(), crate::format::IndexError> {
        let part = Part::new(segment, frames);
        for number in 0..index.runs() {
            let run = index.run(number)?;
            let Some(frame) = part.newest(index, &run)? else { continue };
            let mention = index.frame_of(frame.into(), run.run)?.mention;
            let Self { found, zeros, whole, changed } = self;
            found.add(run.run, |run| match mention {
                Mention::Zeros => zeros.push(run),
                Mention::Whole => whole.push(WholePages { segment, frame, run }),
                Mention::Changes => changed.extend(run.gfns()),
            });
        }
        Ok(())
    }
}

/// Pages that are encoded anew.
struct Pages {
    writer: EpochWriter,
    encoder: BlockEncoder,
    waiting: Vec<(Gfn, Box<PageBytes>)>,
    zeros: Vec<PageRun>,
}

impl Pages {
    fn add(&mut self, gfn: Gfn, page: &PageBytes, out: &mut Vec<u8>) -> Result<(), StoreError> {
        if is_zero(page) {
            self.zeros.extend(runs([gfn]));
            return Ok(());
        }
        self.waiting.push((gfn, Box::new(*page)));
        if self.waiting.len() == BLOCK_PAGES { self.flush(out) } else { Ok(()) }
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), StoreError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.waiting.sort_unstable_by_key(|(gfn, _)| *gfn);
        // A block reaches over no more than 2^32 pages.
        let block: Vec<_> = self.waiting.iter().map(|(gfn, page)| (*gfn, &**page)).collect();
        for near in block.chunk_by(|one, other| one.0.0 >> 31 == other.0.0 >> 31) {
            self.writer.pages(out, &mut self.encoder, near).map_err(StoreError::Input)?;
        }
        drop(block);
        self.waiting.clear();
        Ok(())
    }
}
