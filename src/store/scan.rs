//! Walking the frames of all segments: which epochs exist, and where the chain ends. Follows `docs/format.md`, "Reading, and what a
//! crash can leave".

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::medium::{Medium, MediumFile};
use super::{StoreError, segment_name, segment_number};
use crate::format::{
    ChainId, Close, Commit, FRAME_HEADER_BYTES, FRAME_MAGIC, FormatError, FrameHeader, FrameKind, Identity,
    SEGMENT_HEADER_FRAME_BYTES, SegmentHeader,
};
use crate::page::EpochId;

/// An epoch of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Epoch {
    /// What its commit frame says.
    pub commit: Commit,
    /// The hash of its commit frame.
    pub hash: u128,
    /// The segment that it lies in.
    pub segment: u32,
    /// Where its first frame begins, in bytes from the segment's beginning.
    pub offset: u64,
    /// Where its state frame begins.
    pub state_offset: u64,
    /// Where its commit frame begins.
    pub commit_offset: u64,
}

/// A place in a chain that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// The epoch that the place belongs to: the one that should stand there, if that cannot be read.
    pub epoch: EpochId,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, epoch, expected, found } = self;
        write!(f, "{} at offset {offset}, epoch {epoch}: expected {expected}, found {found}", file.display())
    }
}

/// The end of a chain that was never committed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TornTail {
    /// The file in which it begins.
    pub file: PathBuf,
    /// Where in the file it begins, in bytes: a writer cuts it off here.
    pub offset: u64,
    /// How many bytes there are of it, in this file and those behind it.
    pub bytes: u64,
    /// The first place in it that is not what it must be, and why.
    pub reason: Damage,
}

impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, bytes, reason } = self;
        write!(f, "torn tail of {bytes} bytes from {} at offset {offset} on ({reason})", file.display())
    }
}

/// What a walk found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) epochs: Vec<Epoch>,
    /// *D*: the newest epoch that something in the chain says was durable.
    pub(super) durable: EpochId,
    pub(super) tail: Option<TornTail>,
    pub(super) damage: Option<Damage>,
    /// Every segment's number and length in bytes, in order.
    pub(super) segments: Vec<(u32, u64)>,
    /// Where the sound part ends; none where not even the first segment's header is sound.
    pub(super) end: Option<(u32, u64)>,
    /// Whether the sound part ends in a close frame.
    pub(super) closed: bool,
}

/// Reads or refuses.
#[derive(Debug)]
pub(super) enum Fault {
    Io(io::Error),
    Format(FormatError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FormatError> for Fault {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

/// Reads the header of the frame at `offset` of a file that ends at `end`, in which the whole frame must lie.
pub(super) fn read_header(file: &dyn MediumFile, offset: u64, end: u64, chain: ChainId) -> Result<FrameHeader, Fault> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    let room = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(FRAME_HEADER_BYTES);
    let read = file.read(offset, bytes.get_mut(..room).unwrap_or_default())?;
    header_within(bytes.get(..read).unwrap_or_default(), offset, end, chain).map_err(Fault::Format)
}

/// Parses a header at the beginning of `bytes`, which are at `offset` of a file that ends at `end`.
pub(super) fn header_within(bytes: &[u8], offset: u64, end: u64, chain: ChainId) -> Result<FrameHeader, FormatError> {
    let header = FrameHeader::parse(bytes, chain)?;
    let found = end.saturating_sub(offset);
    if header.frame_bytes() > found {
        return Err(FormatError::Short { field: "frame", offset: 0, needed: header.frame_bytes(), found });
    }
    Ok(header)
}

/// Reads and checks the payload of the frame at `offset`. The caller knows that the frame lies within the file, which bounds what is
/// allocated here.
pub(super) fn read_payload<'a>(
    file: &dyn MediumFile,
    offset: u64,
    header: &FrameHeader,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], Fault> {
    let body_bytes = usize::try_from(header.padded_bytes()).unwrap_or(usize::MAX);
    if buffer.len() < body_bytes {
        buffer.resize(body_bytes, 0);
    }
    let body = buffer.get_mut(..body_bytes).unwrap_or_default();
    let read = file.read(offset + FRAME_HEADER_BYTES as u64, body)?;
    Ok(header.check_body(body.get(..read).unwrap_or_default())?)
}

/// Finds the next sound header at or behind `from`, a multiple of 8. Looks at every place once.
fn find_header(file: &dyn MediumFile, from: u64, end: u64, chain: ChainId) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; 256 << 10];
    let mut base = from;
    loop {
        let read = file.read(base, &mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        let mut at = 0;
        while let Some(place) = bytes.get(at..at + FRAME_HEADER_BYTES) {
            let offset = base + at as u64;
            if place.starts_with(&FRAME_MAGIC) && header_within(place, offset, end, chain).is_ok() {
                return Ok(Some(offset));
            }
            at += 8;
        }
        if at == 0 {
            return Ok(None);
        }
        base += at as u64;
    }
}

/// Walks the chain that `identity` says, in `dir`.
pub(super) fn scan(dir: &Path, medium: &dyn Medium, identity: &Identity) -> Result<Scan, StoreError> {
    let mut numbers: Vec<_> =
        medium.list().map_err(StoreError::io("list", dir))?.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let (chain, format) = (identity.chain, identity.format);
    let mut walk =
        Walk { dir, medium, chain, format, buffer: Vec::new(), at: 0, current: None, broken: None, out: Scan::empty() };
    for number in numbers {
        walk.segment(number)?;
    }
    walk.decide()
}

impl Scan {
    const fn empty() -> Self {
        Self {
            epochs: Vec::new(),
            durable: EpochId::NONE,
            tail: None,
            damage: None,
            segments: Vec::new(),
            end: None,
            closed: false,
        }
    }

    pub(super) fn newest(&self) -> EpochId {
        self.epochs.last().map_or(EpochId::NONE, |epoch| epoch.commit.epoch)
    }

    pub(super) fn newest_hash(&self) -> u128 {
        self.epochs.last().map_or(0, |epoch| epoch.hash)
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

/// The first place that is not a valid continuation.
struct Broken {
    segment: u32,
    offset: u64,
    epoch: EpochId,
    expected: String,
    found: String,
}

struct Walk<'a> {
    dir: &'a Path,
    medium: &'a dyn Medium,
    chain: ChainId,
    format: u32,
    buffer: Vec<u8>,
    /// The segment in hand.
    at: u32,
    current: Option<Current>,
    broken: Option<Broken>,
    out: Scan,
}

impl Walk<'_> {
    fn path(&self, number: u32) -> PathBuf {
        self.dir.join(segment_name(number))
    }

    fn break_at(&mut self, segment: u32, offset: u64, expected: impl Into<String>, found: impl Into<String>) {
        if self.broken.is_none() {
            let epoch = self.current.take().map_or_else(|| self.out.newest().next(), |current| current.epoch);
            self.broken = Some(Broken { segment, offset, epoch, expected: expected.into(), found: found.into() });
        }
    }

    fn break_with(&mut self, offset: u64, error: &FormatError) {
        self.break_at(self.at, offset + error.offset(), error.expected(), error.found());
    }

    fn segment(&mut self, number: u32) -> Result<(), StoreError> {
        let path = self.path(number);
        let missing = self.at + 1;
        if number != missing {
            self.break_at(missing, 0, "a segment", "no such file");
        }
        self.at = number;
        let file = self.medium.open(&segment_name(number), false).map_err(StoreError::io("open", &path))?;
        let file = file.as_ref();
        let end = file.len().map_err(StoreError::io("read", &path))?;
        self.out.segments.push((number, end));

        let mut offset = 0;
        // A segment that is empty still lacks its header.
        while offset < end || offset == 0 {
            match read_header(file, offset, end, self.chain) {
                Ok(header) => {
                    self.frame(file, &path, offset, &header)?;
                    offset += header.frame_bytes();
                }
                Err(Fault::Io(error)) => return Err(StoreError::io("read", &path)(error)),
                Err(Fault::Format(error)) => {
                    self.break_with(offset, &error);
                    // Behind the fault only the proofs of durability are of interest.
                    match find_header(file, offset + 8, end, self.chain).map_err(StoreError::io("read", &path))? {
                        Some(next) => offset = next,
                        None => break,
                    }
                }
            }
        }
        if self.current.is_some() {
            self.break_at(number, end, "more frames of the epoch", "the end of the segment");
        }
        Ok(())
    }

    /// Takes one frame whose header is sound.
    fn frame(&mut self, file: &dyn MediumFile, path: &Path, offset: u64, header: &FrameHeader) -> Result<(), StoreError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let small = matches!(header.kind, FrameKind::SegmentHeader | FrameKind::Commit | FrameKind::Close);
        let payload = if small { read_payload(file, offset, header, &mut buffer).map(Some) } else { Ok(None) };
        let result = match payload {
            Ok(None) => self.body_frame(offset, header),
            Ok(Some(payload)) => match header.kind {
                FrameKind::SegmentHeader => self.segment_header(offset, payload),
                FrameKind::Commit => self.commit(offset, header, payload),
                _ => self.close(offset, header, payload),
            },
            Err(Fault::Format(error)) => Err(error),
            Err(Fault::Io(error)) => return Err(StoreError::io("read", path)(error)),
        };
        self.buffer = buffer;
        match result {
            Ok(()) => Ok(()),
            Err(FormatError::Version { found, .. }) => Err(StoreError::Version { file: path.to_owned(), found }),
            Err(error) => {
                self.break_with(offset, &error);
                Ok(())
            }
        }
    }

    fn proven(&mut self, epoch: EpochId) {
        self.out.durable = self.out.durable.max(epoch);
    }

    fn segment_header(&mut self, offset: u64, payload: &[u8]) -> Result<(), FormatError> {
        let segment = SegmentHeader::decode(payload)?;
        // The segment before is synced before the next is made.
        self.proven(segment.previous);
        if self.broken.is_some() {
            return Ok(());
        }
        let header = FRAME_HEADER_BYTES;
        if offset != 0 {
            return Err(FormatError::field("kind", 4, "a frame of an epoch or a close", "a segment header"));
        }
        if segment.format != self.format {
            return Err(FormatError::field("format version", header, self.format, segment.format));
        }
        if segment.number != self.at {
            return Err(FormatError::field("segment number", header + 4, self.at, segment.number));
        }
        if segment.chain != self.chain {
            return Err(FormatError::field("chain", header + 8, self.chain, segment.chain));
        }
        let (newest, hash) = (self.out.newest(), self.out.newest_hash());
        if segment.previous != newest {
            return Err(FormatError::field("epoch of the newest commit", header + 40, newest, segment.previous));
        }
        if segment.previous_hash != hash {
            return Err(differs("hash of the newest commit", header + 24, hash, segment.previous_hash));
        }
        self.out.end = Some((self.at, SEGMENT_HEADER_FRAME_BYTES as u64));
        self.out.closed = false;
        Ok(())
    }

    fn close(&mut self, offset: u64, header: &FrameHeader, payload: &[u8]) -> Result<(), FormatError> {
        let close = Close::decode(header, payload)?;
        self.proven(close.epoch);
        if self.broken.is_some() {
            return Ok(());
        }
        self.between_epochs(offset, "a close")?;
        let (newest, hash) = (self.out.newest(), self.out.newest_hash());
        if close.epoch != newest {
            return Err(FormatError::field("newest epoch", FRAME_HEADER_BYTES, newest, close.epoch));
        }
        if close.commit_hash != hash {
            return Err(differs("hash of the newest commit", FRAME_HEADER_BYTES + 8, hash, close.commit_hash));
        }
        self.out.end = Some((self.at, offset + header.frame_bytes()));
        self.out.closed = true;
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
        let newest = self.out.newest();
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

    fn commit(&mut self, offset: u64, header: &FrameHeader, payload: &[u8]) -> Result<(), FormatError> {
        let commit = Commit::decode(header, payload)?;
        self.proven(commit.durable);
        if self.broken.is_some() {
            return Ok(());
        }
        let Some((current, state_offset)) = self.current.as_ref().and_then(|current| Some((current, current.state_offset?)))
        else {
            return Err(FormatError::field("kind", 4, "the state of the epoch", "its commit"));
        };
        let totals = commit.totals;
        let at = FRAME_HEADER_BYTES;
        if commit.epoch != current.epoch {
            return Err(FormatError::field("epoch", 8, current.epoch, commit.epoch));
        }
        if totals.frames != current.frames {
            return Err(FormatError::field("frames", at + 24, current.frames, totals.frames));
        }
        if totals.blocks != current.blocks {
            return Err(FormatError::field("blocks", at + 28, current.blocks, totals.blocks));
        }
        if totals.frames_bytes != offset - current.offset {
            return Err(FormatError::field("bytes of frames", at + 32, offset - current.offset, totals.frames_bytes));
        }
        let headers = current.headers.digest128();
        if totals.frames_hash != headers {
            return Err(differs("hash of headers", at + 40, headers, totals.frames_hash));
        }
        let (newest, hash) = (self.out.newest(), self.out.newest_hash());
        if commit.parent != newest {
            return Err(FormatError::field("parent", at, newest, commit.parent));
        }
        if commit.parent_hash != hash {
            return Err(differs("parent hash", at + 8, hash, commit.parent_hash));
        }
        let hash = Commit::hash_frame(&[&header.encode(self.chain)[..], payload].concat());
        let epoch = Epoch { commit, hash, segment: self.at, offset: current.offset, state_offset, commit_offset: offset };
        self.out.epochs.push(epoch);
        self.out.end = Some((self.at, offset + header.frame_bytes()));
        self.out.closed = false;
        self.current = None;
        Ok(())
    }

    /// Checks the payloads of what was not proven durable, and says what the first fault means.
    fn decide(mut self) -> Result<Scan, StoreError> {
        let from = self.out.epochs.partition_point(|epoch| epoch.commit.epoch <= self.out.durable);
        let mut file = None;
        for index in from..self.out.epochs.len() {
            let Some(epoch) = self.out.epochs.get(index).copied() else { break };
            let path = self.path(epoch.segment);
            let open = match file.take() {
                Some((number, open)) if number == epoch.segment => open,
                _ => self.medium.open(&segment_name(epoch.segment), false).map_err(StoreError::io("open", &path))?,
            };
            let open = &file.insert((epoch.segment, open)).1;
            match check_payloads(open.as_ref(), &epoch, self.chain, &mut self.buffer) {
                Ok(()) => {}
                Err((_, Fault::Io(error))) => return Err(StoreError::io("read", &path)(error)),
                Err((offset, Fault::Format(error))) => {
                    self.broken = Some(Broken {
                        segment: epoch.segment,
                        offset: offset + error.offset(),
                        epoch: epoch.commit.epoch,
                        expected: error.expected(),
                        found: error.found(),
                    });
                    self.out.epochs.truncate(index);
                    self.out.end = Some((epoch.segment, epoch.offset));
                    self.out.closed = false;
                    break;
                }
            }
        }
        let Some(Broken { segment, offset, epoch, expected, found }) = self.broken.take() else { return Ok(self.out) };
        let damage = Damage { file: self.path(segment), offset, epoch, expected, found };
        if self.out.durable > self.out.newest() {
            self.out.damage = Some(damage);
        } else {
            let (end_segment, end_offset) = self.out.end.unwrap_or((0, 0));
            let behind = self.out.segments.iter().filter(|(number, _)| *number >= end_segment).map(|(_, bytes)| *bytes);
            let bytes = behind.fold(0, u64::saturating_add).saturating_sub(end_offset);
            // Where the sound part ends with a segment, the tail begins with the next file.
            let whole = self.out.segments.contains(&(end_segment, end_offset)) || end_segment == 0;
            let (file, offset) = if whole { (end_segment + 1, 0) } else { (end_segment, end_offset) };
            self.out.tail = Some(TornTail { file: self.path(file), offset, bytes, reason: damage });
        }
        Ok(self.out)
    }
}

/// Checks the payload of every frame of `epoch`; a fault comes with the frame's offset.
fn check_payloads(file: &dyn MediumFile, epoch: &Epoch, chain: ChainId, buffer: &mut Vec<u8>) -> Result<(), (u64, Fault)> {
    let mut offset = epoch.offset;
    while offset < epoch.commit_offset {
        let at = |fault| (offset, fault);
        let header = read_header(file, offset, epoch.commit_offset, chain).map_err(at)?;
        read_payload(file, offset, &header, buffer).map_err(at)?;
        offset += header.frame_bytes();
    }
    Ok(())
}

fn differs(field: &'static str, offset: usize, expected: u128, found: u128) -> FormatError {
    FormatError::field(field, offset, format!("{expected:032x}"), format!("{found:032x}"))
}
