//! Walking the frames of one segment after the other: which epochs there are, and where they end.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::xxh3::Xxh3;

use super::frames::{Fault, Window, find_header, read_header, read_payload};
use super::pooled_files::Files;
use crate::format::{
    BLOCK_LIST_BYTES_MAX, BlockList, ChainId, Commit, Description, FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind,
    Index, IndexBuilder, IndexBytes, IndexedEpoch, Mention, SEGMENT_HEADER_FRAME_BYTES, SYNCED_FRAME_BYTES, SegmentHeader,
    Synced, decode_zeros,
};
use crate::page::EpochId;
use crate::store::damage::Damage;
use crate::store::epoch::Epoch;
use crate::store::error::StoreError;
use crate::store::medium::{Medium, MediumFile};
use crate::store::names::SegmentNumbers;

/// Walks one segment that is part of a sound chain, for what its index should say.
pub(in crate::store) fn walk_one(
    path: &Path,
    numbers: SegmentNumbers,
    file: &dyn MediumFile,
    bytes: u64,
    description: &Arc<Description>,
) -> Result<Walked, StoreError> {
    let (pending, last, broken) = walk_alone(&At { numbers, path, file, bytes }, description)?;
    let mut walked = pending.finish(usize::MAX, last, bytes).map_err(StoreError::Input)?;
    walked.faults.extend(broken.map(|damage| (damage.epoch, damage)));
    Ok(walked)
}

/// The bytes of the index of a segment all of whose frames are sound and durable.
pub(in crate::store) fn index_of(
    path: &Path,
    numbers: SegmentNumbers,
    file: &dyn MediumFile,
    bytes: u64,
    description: &Arc<Description>,
) -> Result<Vec<u8>, StoreError> {
    let (pending, last, broken) = walk_alone(&At { numbers, path, file, bytes }, description)?;
    if let Some(damage) = broken.or_else(|| pending.faults.first().map(|(_, damage)| damage.clone())) {
        return Err(StoreError::Damaged(damage));
    }
    let last = if pending.index.epochs() > 0 { last } else { (EpochId::NONE, 0) };
    pending.index.finish(&pending.first_frame, bytes, pending.previous, last.1).map_err(StoreError::Input)
}

/// What walking a segment gave.
#[derive(Debug)]
pub(crate) struct Walked {
    pub(in crate::store) index: Index,
    /// Frames whose lists of pages could not be read, by their epochs, rising: what they mention is
    /// not known.
    pub(in crate::store) faults: Vec<(EpochId, Damage)>,
}

/// What a segment holds, its last epoch with that one's identity, and what ends it early.
type Alone = (Pending, (EpochId, u128), Option<Damage>);

/// Walks one segment, which names what it begins behind; tells what is in it, the last epoch with
/// its identity, and what ends it early.
fn walk_alone(at: &At<'_>, description: &Arc<Description>) -> Result<Alone, StoreError> {
    let damaged = |error: &FormatError| StoreError::Damaged(Damage::new(at.path, EpochId::NONE, 0, error));
    let mut buffer = Vec::new();
    let header = read_header(at.file, 0, at.bytes, description.chain).and_then(|header| {
        let payload = read_payload(at.file, 0, &header, &mut buffer)?;
        Ok(SegmentHeader::decode(payload)?)
    });
    let header = header.map_err(|fault| match fault {
        Fault::Io(error) => StoreError::io("read", at.path)(error),
        Fault::Format(error) => damaged(&error),
    })?;
    let mut walk = Walk::new(description, (header.previous, header.previous_hash));
    walk.number = at.numbers.first.saturating_sub(1);
    let content = walk.segment(at, None)?;
    match content {
        Content::Walked(pending) => Ok((pending, (walk.newest, walk.newest_hash), walk.broken)),
        _ => Err(damaged(&FormatError::field("kind", 4, "a segment header", "something else"))),
    }
}

/// The epoch whose frames are being read.
struct Current {
    epoch: EpochId,
    offset: u64,
    frames: u32,
    blocks: u32,
    headers: Xxh3,
    state_offset: Option<u64>,
}

/// A segment's file.
pub(super) struct At<'a> {
    pub(super) numbers: SegmentNumbers,
    pub(super) path: &'a Path,
    pub(super) file: &'a dyn MediumFile,
    pub(super) bytes: u64,
}

/// Where a segment's epochs and pages are known from.
pub(super) enum Content {
    Sealed(Index),
    Walked(Pending),
    /// Not even its header is sound.
    None,
}

/// What a walk collects of a segment.
pub(super) struct Pending {
    first_frame: [u8; SEGMENT_HEADER_FRAME_BYTES],
    previous: EpochId,
    index: IndexBuilder,
    faults: Vec<(EpochId, Damage)>,
}

impl Pending {
    /// Keeps the first `epochs` epochs, of which `last` is the last, with its identity.
    pub(super) fn finish(mut self, epochs: usize, last: (EpochId, u128), bytes: u64) -> Result<Walked, FormatError> {
        self.index.truncate(epochs);
        self.faults.retain(|(epoch, _)| *epoch <= last.0);
        let index = self.index.finish(&self.first_frame, bytes, self.previous, last.1)?;
        let index = Index::open(Box::new(index), header_of(&self.first_frame), bytes)
            .map_err(|error| FormatError::input("index", "a sound one", error))?;
        Ok(Walked { index, faults: self.faults })
    }
}

pub(super) struct Walk<'a> {
    pub(super) description: &'a Arc<Description>,
    /// Where it is counted how many indexes are mapped.
    pub(super) files: Option<&'a Files>,
    pub(super) chain: ChainId,
    pub(super) buffer: Vec<u8>,
    /// The last number so far.
    pub(super) number: u32,
    current: Option<Current>,
    /// The first place that is not a valid continuation.
    pub(super) broken: Option<Damage>,
    /// The segment in hand is compacted: it got its name when it was whole and synced.
    compacted: bool,
    /// Whether that place is in such a segment.
    pub(super) broken_compacted: bool,
    /// What is known of the segment in hand.
    pub(super) pending: Option<Pending>,
    /// The epochs of segments that were walked.
    pub(super) epochs: Vec<Epoch>,
    /// The newest epoch before those, and its identity: the one that the chain begins at, or the
    /// last of a sealed segment.
    pub(super) before: (EpochId, u128),
    pub(super) newest: EpochId,
    pub(super) newest_hash: u128,
    pub(super) durable: EpochId,
    pub(super) end: Option<(SegmentNumbers, u64)>,
    pub(super) closed: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(description: &'a Arc<Description>, from: (EpochId, u128)) -> Self {
        Self {
            description,
            files: None,
            chain: description.chain,
            buffer: Vec::new(),
            number: 0,
            current: None,
            broken: None,
            compacted: false,
            broken_compacted: false,
            pending: None,
            epochs: Vec::new(),
            before: from,
            newest: from.0,
            newest_hash: from.1,
            durable: EpochId::NONE,
            end: None,
            closed: false,
        }
    }

    fn break_at(&mut self, file: &Path, offset: u64, expected: impl Into<String>, found: impl Into<String>) {
        if self.broken.is_none() {
            let epoch = self.current.take().map_or_else(|| self.newest.next(), |current| current.epoch);
            self.broken = Some(Damage { file: file.to_owned(), offset, epoch, expected: expected.into(), found: found.into() });
            self.broken_compacted = self.compacted;
        }
    }

    fn break_with(&mut self, at: &At<'_>, offset: u64, error: &FormatError) {
        self.break_at(at.path, offset.saturating_add(error.offset()), error.expected(), error.found());
    }

    /// Reads one segment; with a medium, its index is asked first.
    pub(super) fn segment(&mut self, at: &At<'_>, medium: Option<&dyn Medium>) -> Result<Content, StoreError> {
        let missing = self.number.saturating_add(1);
        self.compacted = false;
        if at.numbers.first > missing {
            let path = at.path.with_file_name(SegmentNumbers::one(missing).file_name());
            self.break_at(&path, 0, "a segment", "no such file");
        } else if at.numbers.first < missing {
            self.break_at(at.path, 0, format!("a segment from number {missing} on"), at.numbers.to_string());
        }
        self.number = at.numbers.last;
        self.compacted = at.numbers.is_compacted();
        let mut window = Window::new(at.file);
        let mut offset = 0;
        // A segment that is empty still lacks its header.
        while offset < at.bytes || offset == 0 {
            match window.header(offset, at.bytes, self.chain) {
                Ok(header) => {
                    self.frame(at, &mut window, offset, &header)?;
                    if offset == 0
                        && self.broken.is_none()
                        && let Some(index) = medium.and_then(|medium| self.sealed(at, medium))
                    {
                        self.take_sealed(at, &index)?;
                        return Ok(Content::Sealed(index));
                    }
                    offset = offset.saturating_add(header.frame_bytes());
                }
                Err(Fault::Io(error)) => return Err(StoreError::io("read", at.path)(error)),
                Err(Fault::Format(error)) => {
                    self.break_with(at, offset, &error);
                    // Behind the fault only the proofs of durability are of interest.
                    match find_header(at.file, offset + 8, at.bytes, self.chain).map_err(StoreError::io("read", at.path))? {
                        Some(next) => offset = next,
                        None => break,
                    }
                }
            }
        }
        if self.current.is_some() {
            self.break_at(at.path, at.bytes, "more frames of the epoch", "the end of the segment");
        }
        if self.compacted && !self.closed && self.newest != EpochId::NONE {
            self.break_at(at.path, at.bytes, "a close, which ends a compacted segment", "the end of the segment");
        }
        Ok(self.pending.take().map_or(Content::None, Content::Walked))
    }

    /// The segment's index, where there is one that fits it.
    fn sealed(&self, at: &At<'_>, medium: &dyn Medium) -> Option<Index> {
        let pending = self.pending.as_ref()?;
        let name = at.numbers.index_name();
        let mapped = match self.files.is_none_or(Files::may_map) {
            true => medium.map(&name),
            false => Err(io::ErrorKind::OutOfMemory.into()),
        };
        let read = match mapped {
            // There is no room for a mapping: it is as good in memory of our own.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => read_index(medium, &name, at.bytes),
            mapped => mapped,
        };
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%name, %error, "the index cannot be read: the segment is walked instead");
                return None;
            }
        };
        match Index::open(bytes, header_of(&pending.first_frame), at.bytes) {
            Ok(index) if index.previous() == self.newest && index.last() >= self.newest => Some(index),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%name, %error, "the index does not fit: the segment is walked instead");
                None
            }
        }
    }

    fn take_sealed(&mut self, at: &At<'_>, index: &Index) -> Result<(), StoreError> {
        self.pending = None;
        if index.epochs() > 0 {
            (self.newest, self.newest_hash) = (index.last(), index.identity());
            self.before = (self.newest, self.newest_hash);
        }
        // Only what is durable is indexed.
        self.proven(self.newest);
        self.end = Some((at.numbers, at.bytes));
        let offset = at.bytes.saturating_sub(SYNCED_FRAME_BYTES as u64);
        self.closed = match read_header(at.file, offset, at.bytes, self.chain) {
            Ok(header) => header.kind == FrameKind::Close && header.epoch == self.newest,
            Err(Fault::Format(_)) => false,
            Err(Fault::Io(error)) => return Err(StoreError::io("read", at.path)(error)),
        };
        Ok(())
    }

    /// Takes one frame whose header is sound.
    fn frame(&mut self, at: &At<'_>, window: &mut Window<'_>, offset: u64, header: &FrameHeader) -> Result<(), StoreError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let small = header.kind.is_between_epochs() || header.kind == FrameKind::Commit;
        let payload = if small { small_payload(at, window, offset, header, &mut buffer).map(Some) } else { Ok(None) };
        let result = match payload {
            Ok(None) => self.body_frame(offset, header),
            Ok(Some(payload)) => match header.kind {
                FrameKind::SegmentHeader => self.segment_header(at, offset, header, payload),
                FrameKind::Commit => self.commit(at, offset, header, payload),
                _ => self.synced(at, offset, header, payload),
            },
            Err(Fault::Format(error)) => Err(error),
            Err(Fault::Io(error)) => return Err(StoreError::io("read", at.path)(error)),
        };
        let result = match result {
            Ok(()) if !small && self.broken.is_none() => self.mentions(at, window, offset, header, &mut buffer),
            Ok(()) => Ok(()),
            Err(FormatError::Version { found, .. }) => Err(StoreError::Version { file: at.path.to_owned(), found }),
            Err(error) => {
                self.break_with(at, offset, &error);
                Ok(())
            }
        };
        self.buffer = buffer;
        result
    }

    /// Collects the pages that a frame mentions. A list that cannot be read does not end the chain:
    /// the epochs that lean on it cannot be had.
    fn mentions(
        &mut self,
        at: &At<'_>,
        window: &mut Window<'_>,
        offset: u64,
        header: &FrameHeader,
        buffer: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let description = self.description;
        let in_memory = |gfn| match description.contains(gfn) {
            true => Ok(()),
            false => Err(FormatError::field("gfn", FRAME_HEADER_BYTES, "a page of guest memory", gfn)),
        };
        let found = match header.kind {
            FrameKind::Pages => {
                let room = BLOCK_LIST_BYTES_MAX.min(usize::try_from(header.length).unwrap_or(usize::MAX));
                let list = window.at(offset + FRAME_HEADER_BYTES as u64, room).map_err(StoreError::io("read", at.path))?;
                BlockList::parse(list).and_then(|list| {
                    list.gfns().iter().try_for_each(|gfn| in_memory(*gfn))?;
                    pending.index.block(offset, list.is_changes(), list.gfns())
                })
            }
            FrameKind::Zeros => match read_payload(at.file, offset, header, buffer) {
                Err(Fault::Io(error)) => return Err(StoreError::io("read", at.path)(error)),
                Err(Fault::Format(error)) => Err(error),
                Ok(payload) => decode_zeros(payload).and_then(|runs| {
                    if let Some(run) = runs.iter().find(|run| !description.contains_run(**run)) {
                        let found = format!("{} pages from {}", run.count, run.first);
                        return Err(FormatError::field("run", FRAME_HEADER_BYTES, "pages of guest memory", found));
                    }
                    pending.index.frame(offset, Mention::Zeros, runs)
                }),
            },
            _ => Ok(()),
        };
        if let Err(error) = found {
            pending.faults.push((header.epoch, Damage::new(at.path, header.epoch, offset, &error)));
        }
        Ok(())
    }

    pub(super) fn proven(&mut self, epoch: EpochId) {
        self.durable = self.durable.max(epoch);
    }

    fn segment_header(&mut self, at: &At<'_>, offset: u64, header: &FrameHeader, payload: &[u8]) -> Result<(), FormatError> {
        let segment = SegmentHeader::decode(payload)?;
        // The segment before is synced before the next is made.
        self.proven(segment.previous);
        if self.broken.is_some() {
            return Ok(());
        }
        let begin = FRAME_HEADER_BYTES;
        if offset != 0 {
            return Err(FormatError::field("kind", 4, "a frame of an epoch or a close", "a segment header"));
        }
        if segment.number != at.numbers.first {
            return Err(FormatError::field("segment number", begin + 4, at.numbers.first, segment.number));
        }
        if segment.chain != self.chain {
            return Err(FormatError::field("chain", begin + 8, self.chain, segment.chain));
        }
        let more = at.numbers.last - at.numbers.first;
        if segment.more != more {
            return Err(FormatError::field("further numbers", begin + 60, more, segment.more));
        }
        if segment.previous != self.newest {
            return Err(FormatError::field("epoch of the newest commit", begin + 40, self.newest, segment.previous));
        }
        if segment.previous_hash != self.newest_hash {
            return Err(differs("identity of the newest epoch", begin + 24, self.newest_hash, segment.previous_hash));
        }
        self.end = Some((at.numbers, SEGMENT_HEADER_FRAME_BYTES as u64));
        self.closed = false;
        let mut first_frame = [0; SEGMENT_HEADER_FRAME_BYTES];
        let (head, body) = first_frame.split_at_mut(FRAME_HEADER_BYTES);
        head.copy_from_slice(&header.encode(self.chain));
        body.copy_from_slice(payload);
        self.pending = Some(Pending { first_frame, previous: self.newest, index: IndexBuilder::new(), faults: Vec::new() });
        Ok(())
    }

    /// A durable frame, or a close: what is before it was synced.
    fn synced(&mut self, at: &At<'_>, offset: u64, header: &FrameHeader, payload: &[u8]) -> Result<(), FormatError> {
        let is_close = header.kind == FrameKind::Close;
        let Synced { epoch, identity } = Synced::decode(header, payload)?;
        self.proven(epoch);
        if self.broken.is_some() {
            return Ok(());
        }
        self.between_epochs(offset, if is_close { "a close" } else { "a durable frame" })?;
        let (newest, expected) = (self.newest, self.newest_hash);
        if epoch != newest {
            return Err(FormatError::field("newest epoch", FRAME_HEADER_BYTES, newest, epoch));
        }
        if identity != expected {
            return Err(differs("identity of the newest epoch", FRAME_HEADER_BYTES + 8, expected, identity));
        }
        self.end = Some((at.numbers, offset + header.frame_bytes()));
        self.closed = is_close;
        Ok(())
    }

    fn between_epochs(&self, offset: u64, what: &str) -> Result<(), FormatError> {
        if offset == 0 {
            return Err(FormatError::field("kind", 4, "a segment header", what));
        }
        if self.current.is_some() {
            return Err(FormatError::field("kind", 4, "a frame of the epoch in hand", what));
        }
        Ok(())
    }

    /// A pages, zeros or state frame.
    fn body_frame(&mut self, offset: u64, header: &FrameHeader) -> Result<(), FormatError> {
        if self.broken.is_some() {
            return Ok(());
        }
        let newest = self.newest;
        if self.current.is_none() {
            self.between_epochs(offset, header.kind.as_str())?;
            if header.epoch <= newest {
                return Err(FormatError::field("epoch", 8, format!("above {newest}"), header.epoch));
            }
        }
        let current = self.current.get_or_insert_with(|| Current {
            epoch: header.epoch,
            offset,
            frames: 0,
            blocks: 0,
            headers: Xxh3::new(),
            state_offset: None,
        });
        if header.epoch != current.epoch {
            return Err(FormatError::field("epoch", 8, current.epoch, header.epoch));
        }
        if header.sequence != current.frames {
            return Err(FormatError::field("sequence", 16, current.frames, header.sequence));
        }
        if current.state_offset.is_some() {
            return Err(FormatError::field("kind", 4, "a commit behind the state", header.kind.as_str()));
        }
        // The highest sequence is the commit frame's.
        current.frames =
            current.frames.checked_add(1).ok_or_else(|| FormatError::field("sequence", 16, "below 2^32 - 1", header.sequence))?;
        match header.kind {
            FrameKind::Pages => current.blocks += 1,
            FrameKind::State => current.state_offset = Some(offset),
            _ => {}
        }
        current.headers.update(&header.encode(self.chain));
        Ok(())
    }

    fn commit(&mut self, at: &At<'_>, offset: u64, header: &FrameHeader, payload: &[u8]) -> Result<(), FormatError> {
        let commit = Commit::decode(header, payload)?;
        if self.broken.is_some() {
            return Ok(());
        }
        let Some((current, state_offset)) = self.current.as_ref().and_then(|current| Some((current, current.state_offset?)))
        else {
            return Err(FormatError::field("kind", 4, "the state of the epoch", "its commit"));
        };
        let totals = commit.totals;
        let begin = FRAME_HEADER_BYTES;
        if commit.epoch != current.epoch {
            return Err(FormatError::field("epoch", 8, current.epoch, commit.epoch));
        }
        if totals.frames != current.frames {
            return Err(FormatError::field("frames", begin + 24, current.frames, totals.frames));
        }
        if totals.blocks != current.blocks {
            return Err(FormatError::field("blocks", begin + 28, current.blocks, totals.blocks));
        }
        if totals.frames_bytes != offset - current.offset {
            return Err(FormatError::field("bytes of frames", begin + 32, offset - current.offset, totals.frames_bytes));
        }
        let headers = current.headers.digest128();
        if totals.frames_hash != headers {
            return Err(differs("hash of headers", begin + 40, headers, totals.frames_hash));
        }
        let (newest, hash) = (self.newest, self.newest_hash);
        if commit.parent != newest {
            return Err(FormatError::field("parent", begin, newest, commit.parent));
        }
        if commit.parent_hash != hash {
            return Err(differs("parent hash", begin + 8, hash, commit.parent_hash));
        }
        let hash = commit.identity(&[&header.encode(self.chain)[..], payload].concat());
        let epoch =
            Epoch { commit, identity: hash, segment: at.numbers, offset: current.offset, state_offset, commit_offset: offset };
        if let Some(pending) = &mut self.pending {
            let Epoch { offset, state_offset, commit_offset, .. } = epoch;
            let (epoch, base) = (commit.epoch, commit.base);
            pending.index.epoch(IndexedEpoch { epoch, offset, state_offset, commit_offset, first_frame: 0, base });
        }
        self.epochs.push(epoch);
        (self.newest, self.newest_hash) = (commit.epoch, hash);
        self.end = Some((at.numbers, offset + header.frame_bytes()));
        self.closed = false;
        self.current = None;
        Ok(())
    }
}

/// Reads all of the index of a segment of `segment_bytes`.
fn read_index(medium: &dyn Medium, name: &str, segment_bytes: u64) -> io::Result<Box<dyn IndexBytes>> {
    let file = medium.open(name)?;
    let len = file.len()?;
    // An entry takes no more than what it is about: no index of a segment is longer.
    let most = segment_bytes.saturating_mul(16).saturating_add(1 << 20);
    let room = usize::try_from(len).ok().filter(|_| len <= most).ok_or(io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; room];
    let read = file.read(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(Box::new(bytes))
}

/// The header of a segment's first frame.
fn header_of(first_frame: &[u8; SEGMENT_HEADER_FRAME_BYTES]) -> &[u8; FRAME_HEADER_BYTES] {
    const NONE: &[u8; FRAME_HEADER_BYTES] = &[0; FRAME_HEADER_BYTES];
    first_frame.first_chunk().unwrap_or(NONE)
}

/// The payload of a frame of a kind that is small.
fn small_payload<'a>(
    at: &At<'_>,
    window: &mut Window<'_>,
    offset: u64,
    header: &FrameHeader,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], Fault> {
    let len = usize::try_from(header.padded_bytes()).unwrap_or(usize::MAX);
    if len > SMALL_BYTES_MAX {
        return read_payload(at.file, offset, header, buffer);
    }
    buffer.clear();
    buffer.extend(window.at(offset + FRAME_HEADER_BYTES as u64, len)?);
    Ok(header.check_body(buffer)?)
}

/// No sound frame of a small kind has more bytes of payload.
const SMALL_BYTES_MAX: usize = 256;

fn differs(field: &'static str, offset: usize, expected: u128, found: u128) -> FormatError {
    FormatError::field(field, offset, format!("{expected:032x}"), format!("{found:032x}"))
}
