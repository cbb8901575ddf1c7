//! An index, compared with what the frames of its segment hold.
//!
//! Takes as much memory as the index has bytes, plus 8 for each run; the format bounds both, and so
//! does the file's length.

use std::io::{self, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use super::damage::{DamageKind, Fault};
use super::frame::{COMMIT_BYTES, FIRST_FRAME, HEADER_BYTES, le, u32_at, u64_at, u128_at};
use super::listing::Segment;
use super::report::VerifyError;
use crate::page::{Gfn, PageRun};
use crate::store::medium::MediumFile;
use crate::xxh3::{xxh3_64, xxh3_64_with_seed};

const MAGIC: [u8; 4] = [0xD7, 0x53, 0x57, 0x49];
const VERSION: u32 = 2;
const BLOCK_BYTES: usize = 4096;
const CONTENT_BYTES: usize = 4088;
/// Bytes of the first block's content that say something.
const HEADER_END: usize = FIRST_FRAME.end;
const MENTIONS_MAX: u64 = 1 << 26;
/// What an epoch takes at the least: a state frame without records, and a commit frame.
const EPOCH_BYTES_MIN: u64 = 56 + HEADER_BYTES as u64 + COMMIT_BYTES as u64;

/// A table of entries.
#[derive(Clone, Copy, Debug)]
struct Table {
    name: &'static str,
    /// The number of its first block.
    block: u64,
    entries: u64,
    entry_bytes: usize,
}

impl Table {
    fn blocks(self) -> u64 {
        self.entries.div_ceil(self.per_block() as u64)
    }

    fn per_block(self) -> usize {
        CONTENT_BYTES / self.entry_bytes
    }

    /// Where an entry stands in the file.
    fn offset(self, entry: usize) -> u64 {
        let (block, within) = (entry / self.per_block(), entry % self.per_block());
        (self.block + block as u64) * BLOCK_BYTES as u64 + (within * self.entry_bytes) as u64
    }

    /// What is wrong with an entry.
    fn fault(self, entry: usize, expected: impl Into<String>, found: impl Into<String>) -> Fault {
        let expected = format!("{} {entry}: {}", self.name, expected.into());
        Fault::new(DamageKind::Index, self.offset(entry), expected, found)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EpochEntry {
    epoch: u64,
    start: u64,
    state: u64,
    commit: u64,
    first_frame: u32,
    flags: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameEntry {
    offset: u64,
    epoch: u32,
    kind: u8,
    changes: u8,
    reserved: [u8; 2],
}

#[derive(Clone, Copy, Debug)]
struct RunEntry {
    first: u64,
    count: u64,
    /// The first of its mentions that no frame was found for yet.
    next_mention: u32,
    /// Behind the last of its mentions.
    end_mention: u32,
}

/// What stands in the place of an index.
pub(super) enum Reading {
    /// A compaction has removed it since the store was listed.
    Gone,
    /// Something that a reader does not use: no index of this segment as it is, or not all of one.
    Unfit,
    /// All of its checksums are right, and it contradicts itself.
    Wrong(Fault),
    Sound(Box<Index>),
}

/// An index whose tables are sound, and how much of its segment was compared with it.
#[derive(Debug)]
pub(super) struct Index {
    before: u64,
    last: (u64, u128),
    /// 1 more than the number of the last base.
    last_base: u64,
    tables: [Table; 4],
    epochs: Vec<EpochEntry>,
    frames: Vec<FrameEntry>,
    runs: Vec<RunEntry>,
    mentions: Vec<u32>,
    epochs_seen: usize,
    frames_seen: usize,
    /// As `last_base`, of the epochs that were seen.
    base_seen: u64,
    /// How many frames there were when the epoch in hand began.
    frames_before: usize,
    /// Where the state frame of the epoch in hand stands.
    state: u64,
    /// The first thing that differs.
    fault: Option<Fault>,
}

impl Index {
    /// Reads the index called `name` of `segment`, which begins with `first_frame`.
    pub(super) fn read(name: &str, segment: &Segment, first_frame: &[u8]) -> Result<Reading, VerifyError> {
        let place = &segment.place;
        let segment_bytes = segment.bytes;
        let path = &place.path().join(name);
        let io = |source| VerifyError::Io { path: path.clone(), offset: 0, source };
        match place.look(name) {
            Ok(found) if found.is_file => {}
            Ok(_) => return Ok(Reading::Unfit),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Reading::Gone),
            Err(error) => return Err(io(error)),
        }
        let file = match segment.open_beside(name) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Reading::Gone),
            Err(error) => return Err(io(error)),
        };
        let bytes = file.len().map_err(io)?;
        let key = xxh3_64(first_frame.get(..HEADER_BYTES).unwrap_or_default());
        let mut blocks =
            Blocks { file: BufReader::with_capacity(1 << 18, FromTheBeginning { file, at: 0 }), key, number: 0, path };
        let Some(first) = blocks.next()? else { return Ok(Reading::Unfit) };
        let Some(read) = Self::header(&first, segment_bytes, bytes) else { return Ok(Reading::Unfit) };
        // Whatever it says, it says nothing as long as a block of it may be another's.
        let read = match read {
            Ok(_) if first.get(FIRST_FRAME) != Some(first_frame) => {
                let expected = "the first frame of the segment";
                Err(Fault::new(DamageKind::Index, FIRST_FRAME.start as u64, expected, "another"))
            }
            Ok(index) => index.tables(&mut blocks)?,
            Err(fault) => Err(fault),
        };
        while blocks.number * (BLOCK_BYTES as u64) < bytes {
            if blocks.next()?.is_none() {
                return Ok(Reading::Unfit);
            }
        }
        Ok(match read {
            Ok(Some(index)) => Reading::Sound(Box::new(index)),
            Ok(None) => Reading::Unfit,
            Err(fault) => Reading::Wrong(fault),
        })
    }

    /// Reads the first block, and says what the file of `bytes` must hold. `None` where it is no
    /// index of this version, of a segment of this length.
    fn header(block: &[u8; BLOCK_BYTES], segment_bytes: u64, bytes: u64) -> Option<Result<Self, Fault>> {
        let [epochs, frames, runs, mentions] = [16, 24, 32, 40].map(|at| u64_at(block, at));
        let mut next: u64 = 1;
        let mut table = |name, entries, entry_bytes| {
            let table = Table { name, block: next, entries, entry_bytes };
            next = next.saturating_add(table.blocks());
            table
        };
        let tables =
            [table("epoch", epochs, 40), table("frame", frames, 16), table("run", runs, 24), table("mention", mentions, 4)];
        let fits = le::<4>(block, 0) == MAGIC
            && u32_at(block, 4) == VERSION
            && u64_at(block, 8) == segment_bytes
            && bytes == next.saturating_mul(BLOCK_BYTES as u64);
        fits.then(|| Self::checked(block, segment_bytes, tables))
    }

    /// Checks what the first block says beside the length of its file.
    fn checked(block: &[u8; BLOCK_BYTES], segment_bytes: u64, tables: [Table; 4]) -> Result<Self, Fault> {
        let check = |holds: bool, offset, expected: String, found: String| {
            if holds { Ok(()) } else { Err(Fault::new(DamageKind::Index, offset, expected, found)) }
        };
        let [epochs, frames, runs, mentions] = tables.map(|table| table.entries);
        let epochs_max = segment_bytes / EPOCH_BYTES_MIN;
        check(epochs <= epochs_max, 16, format!("at most {epochs_max} epochs"), epochs.to_string())?;
        check(mentions <= MENTIONS_MAX, 40, format!("at most {MENTIONS_MAX} mentions"), mentions.to_string())?;
        // Each frame and each run has a mention, so this bounds them all.
        check(frames <= mentions, 24, format!("at most {mentions} frames, as there are mentions"), frames.to_string())?;
        check(runs <= mentions, 32, format!("at most {mentions} runs, as there are mentions"), runs.to_string())?;
        let rest = block.get(HEADER_END..CONTENT_BYTES).unwrap_or_default();
        if let Some(at) = rest.iter().position(|byte| *byte != 0) {
            check(false, (HEADER_END + at) as u64, "zeros".to_owned(), "another byte".to_owned())?;
        }
        Ok(Self {
            before: u64_at(block, 48),
            last: (u64_at(block, 56), u128_at(block, 64)),
            last_base: u64_at(block, 80),
            tables,
            epochs: Vec::new(),
            frames: Vec::new(),
            runs: Vec::new(),
            mentions: Vec::new(),
            epochs_seen: 0,
            frames_seen: 0,
            base_seen: 0,
            frames_before: 0,
            state: 0,
            fault: None,
        })
    }

    /// Reads the tables. The file was found to be as long as they are. `None` where a block is not
    /// the index's.
    fn tables(mut self, blocks: &mut Blocks<'_>) -> Result<Result<Option<Self>, Fault>, VerifyError> {
        for table in self.tables {
            for block in 0..table.blocks() {
                let Some(bytes) = blocks.next()? else { return Ok(Ok(None)) };
                let done = block * table.per_block() as u64;
                let count = usize::try_from(table.entries - done).unwrap_or(usize::MAX).min(table.per_block());
                let (entries, rest) = bytes.get(..CONTENT_BYTES).unwrap_or_default().split_at(count * table.entry_bytes);
                if let Some(at) = rest.iter().position(|byte| *byte != 0) {
                    let offset = (table.block + block) * BLOCK_BYTES as u64 + (entries.len() + at) as u64;
                    return Ok(Err(Fault::new(DamageKind::Index, offset, "zeros behind the last entry", "another byte")));
                }
                for entry in entries.chunks_exact(table.entry_bytes) {
                    if let Err(fault) = self.add(table, entry) {
                        return Ok(Err(fault));
                    }
                }
            }
        }
        Ok(self.check_runs().map(|()| Some(self)))
    }

    /// Takes the next entry of a table.
    fn add(&mut self, table: Table, bytes: &[u8]) -> Result<(), Fault> {
        match table.name {
            "epoch" => {
                let number = self.epochs.len();
                let entry = EpochEntry {
                    epoch: u64_at(bytes, 0),
                    start: u64_at(bytes, 8),
                    state: u64_at(bytes, 16),
                    commit: u64_at(bytes, 24),
                    first_frame: u32_at(bytes, 32),
                    flags: u32_at(bytes, 36),
                };
                let before = self.epochs.last().map_or(0, |before| before.epoch);
                if entry.epoch <= before {
                    return Err(table.fault(number, format!("an epoch above {before}"), entry.epoch.to_string()));
                }
                self.epochs.push(entry);
            }
            "frame" => {
                let number = self.frames.len();
                let entry = FrameEntry {
                    offset: u64_at(bytes, 0),
                    epoch: u32_at(bytes, 8),
                    kind: le::<1>(bytes, 12)[0],
                    changes: le::<1>(bytes, 13)[0],
                    reserved: le(bytes, 14),
                };
                let before = self.frames.last().map_or(0, |before| before.offset);
                if entry.offset <= before {
                    return Err(table.fault(number, format!("an offset above {before}"), entry.offset.to_string()));
                }
                if usize::try_from(entry.epoch).map_or(true, |epoch| epoch >= self.epochs.len()) {
                    let expected = format!("one of {} epochs", self.epochs.len());
                    return Err(table.fault(number, expected, entry.epoch.to_string()));
                }
                self.frames.push(entry);
            }
            "run" => {
                let number = self.runs.len();
                let (first, count, mention) = (u64_at(bytes, 0), u64_at(bytes, 8), u64_at(bytes, 16));
                let end = self.runs.last().map_or(0, |before| before.first + before.count);
                if count == 0 || first < end || first.checked_add(count).is_none() {
                    let expected = format!("at least one page, from {end:#x} on");
                    return Err(table.fault(number, expected, format!("{count} from {first:#x}")));
                }
                let before = self.runs.last().map(|before| before.next_mention);
                let mention = u32::try_from(mention).unwrap_or(u32::MAX);
                let rises = before.map_or(mention == 0, |before| mention > before);
                if !rises || u64::from(mention) >= self.tables[3].entries {
                    let expected = before.map_or("mentions from 0 on".to_owned(), |before| format!("mentions behind {before}"));
                    return Err(table.fault(number, expected, mention.to_string()));
                }
                if let Some(before) = self.runs.last_mut() {
                    before.end_mention = mention;
                }
                let end_mention = u32::try_from(self.tables[3].entries).unwrap_or(u32::MAX);
                self.runs.push(RunEntry { first, count, next_mention: mention, end_mention });
            }
            _ => {
                let frame = u32_at(bytes, 0);
                if usize::try_from(frame).map_or(true, |frame| frame >= self.frames.len()) {
                    let expected = format!("one of {} frames", self.frames.len());
                    return Err(table.fault(self.mentions.len(), expected, frame.to_string()));
                }
                self.mentions.push(frame);
            }
        }
        Ok(())
    }

    /// Checks what the tables of runs and mentions say together.
    fn check_runs(&self) -> Result<(), Fault> {
        let mentions = self.tables[3];
        if self.runs.is_empty() && !self.mentions.is_empty() {
            return Err(mentions.fault(0, "a run that it belongs to", "no run"));
        }
        for run in &self.runs {
            let (from, to) = (position(run.next_mention), position(run.end_mention));
            let of_run = self.mentions.get(from..to).unwrap_or_default();
            if let Some(at) = of_run.windows(2).position(|pair| pair.first() >= pair.last()) {
                let found = of_run.get(at + 1).copied().unwrap_or_default();
                return Err(mentions.fault(from + at + 1, "a later frame than the mention before", found.to_string()));
            }
        }
        Ok(())
    }

    /// A frame of state stands at `at`.
    pub(super) fn state(&mut self, at: u64) {
        self.state = at;
    }

    /// The frame at `at` mentions the pages of `runs`, which rise. `kind` is 2 for pages and 3 for
    /// zeros.
    pub(super) fn frame(&mut self, at: u64, kind: u8, changes: bool, runs: impl IntoIterator<Item = PageRun>) {
        let mut runs = joined(runs).peekable();
        if self.fault.is_some() || runs.peek().is_none() {
            return;
        }
        let number = self.frames_seen;
        self.frames_seen += 1;
        let epoch = u32::try_from(self.epochs_seen).unwrap_or(u32::MAX);
        let entry = FrameEntry { offset: at, epoch, kind, changes: changes.into(), reserved: [0; 2] };
        if self.frames.get(number) != Some(&entry) {
            let found = self.frames.get(number).map_or_else(|| "none".to_owned(), |found| format!("{found:?}"));
            self.fault = Some(self.tables[1].fault(number, format!("{entry:?}"), found));
            return;
        }
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.fault = runs.find_map(|run| self.mention(number, run));
    }

    /// Ticks off what the tables say of the pages of `run`, which `frame` mentions: it may not end
    /// inside of a run of theirs.
    fn mention(&mut self, frame: u32, run: PageRun) -> Option<Fault> {
        let end = run.first.0.saturating_add(run.count);
        let mut next = run.first.0;
        let mut number = self.runs.partition_point(|entry| entry.first < next);
        while next < end {
            let entry = self.runs.get_mut(number).filter(|entry| entry.first == next && entry.count <= end - next);
            let Some(entry) = entry else {
                let found = self
                    .runs
                    .get(number)
                    .map_or_else(|| "none".to_owned(), |entry| format!("{} pages from {:#x}", entry.count, entry.first));
                return Some(self.tables[2].fault(number, format!("up to {} pages from {next:#x}", end - next), found));
            };
            let at = position(entry.next_mention);
            if entry.next_mention == entry.end_mention || self.mentions.get(at) != Some(&frame) {
                let expected = format!("frame {frame} for the pages from {next:#x}");
                return Some(self.tables[3].fault(at, expected, "another, or none"));
            }
            entry.next_mention += 1;
            next += entry.count;
            number += 1;
        }
        None
    }

    /// An epoch, whose first frame stands at `start`, ends with the commit frame at `commit`.
    pub(super) fn commit(&mut self, epoch: u64, start: u64, commit: u64, base: bool) {
        let number = self.epochs_seen;
        self.epochs_seen += 1;
        if base {
            self.base_seen = self.epochs_seen as u64;
        }
        let first_frame = u32::try_from(self.frames_before).unwrap_or(u32::MAX);
        self.frames_before = self.frames_seen;
        let entry = EpochEntry { epoch, start, state: self.state, commit, first_frame, flags: base.into() };
        if self.fault.is_none() && self.epochs.get(number) != Some(&entry) {
            let found = self.epochs.get(number).map_or_else(|| "none".to_owned(), |found| format!("{found:?}"));
            self.fault = Some(self.tables[0].fault(number, format!("{entry:?}"), found));
        }
    }

    /// The segment has ended. `before` is the epoch that its header names, `last` its last epoch
    /// and the identity of that. Returns what is wrong with the index.
    pub(super) fn finish(mut self, before: u64, last: Option<(u64, u128)>) -> Option<Fault> {
        if self.fault.is_some() {
            return self.fault.take();
        }
        if let Some(entry) = self.epochs.get(self.epochs_seen) {
            return Some(self.tables[0].fault(self.epochs_seen, "no more epochs", entry.epoch.to_string()));
        }
        if let Some(entry) = self.frames.get(self.frames_seen) {
            return Some(self.tables[1].fault(self.frames_seen, "no more frames", format!("one at {}", entry.offset)));
        }
        if let Some(run) = self.runs.iter().find(|run| run.next_mention < run.end_mention) {
            let expected = format!("frames that mention the pages from {:#x}", run.first);
            let at = position(run.next_mention);
            let found = self.mentions.get(at).copied().unwrap_or_default();
            return Some(self.tables[3].fault(at, expected, format!("frame {found}, which does not")));
        }
        if self.before != before {
            let expected = format!("{before} as the epoch before the first");
            return Some(Fault::new(DamageKind::Index, 48, expected, self.before.to_string()));
        }
        if self.last_base != self.base_seen {
            let expected = format!("{} as 1 more than the last base's number", self.base_seen);
            return Some(Fault::new(DamageKind::Index, 80, expected, self.last_base.to_string()));
        }
        let last = last.unwrap_or_default();
        let text = |(epoch, identity): (u64, u128)| format!("last epoch {epoch}, {identity:032x}");
        (self.last != last).then(|| Fault::new(DamageKind::Index, 56, text(last), text(self.last)))
    }
}

fn position(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Joins runs that rise, where one begins where the one before it ends.
fn joined(runs: impl IntoIterator<Item = PageRun>) -> impl Iterator<Item = PageRun> {
    let mut runs = runs.into_iter().peekable();
    std::iter::from_fn(move || {
        let PageRun { first, mut count } = runs.next()?;
        while let Some(next) = runs.next_if(|next| first.0.checked_add(count).map(Gfn) == Some(next.first)) {
            count = count.saturating_add(next.count);
        }
        Some(PageRun { first, count })
    })
}

/// A file that is read from its beginning on.
struct FromTheBeginning {
    file: Arc<dyn MediumFile>,
    at: u64,
}

impl Read for FromTheBeginning {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(self.at, buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The blocks of an index, one after the other.
struct Blocks<'a> {
    file: BufReader<FromTheBeginning>,
    key: u64,
    number: u64,
    path: &'a Path,
}

impl Blocks<'_> {
    /// The next block; `None` where the file ends, or where what is there is no block of this
    /// index.
    fn next(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, VerifyError> {
        let number = self.number;
        self.number += 1;
        let mut block = [0; BLOCK_BYTES];
        match self.file.read_exact(&mut block) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(source) => {
                return Err(VerifyError::Io { path: self.path.to_owned(), offset: number * BLOCK_BYTES as u64, source });
            }
        }
        let sum = xxh3_64_with_seed(block.get(..CONTENT_BYTES).unwrap_or_default(), self.key.wrapping_add(number));
        Ok((sum == u64_at(&block, CONTENT_BYTES)).then_some(block))
    }
}
