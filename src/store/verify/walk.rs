//! The walk over all frames of a chain: what exists, what is damage, and what is a torn tail.

use std::mem;

use xxhash_rust::xxh3::Xxh3;

use super::content::{self, Blocks};
use super::digest::MemoryDigest;
use super::frame::{Close, Commit, HEADER_BYTES_U64, Header, Kind, SegmentHeader, hex};
use super::identity::Identity;
use super::pieces::{self, Look, Pieces, Segment};
use super::report::{Damage, DamageKind, Fault, Progress, TornTail, VerifyError, VerifyOptions, VerifyReport};
use crate::page::EpochId;

/// Bytes between two calls of the progress callback.
const PROGRESS_BYTES: u64 = 4 << 20;
/// What a commit frame adds to the bytes that it counts.
const COMMIT_FRAME_BYTES: u64 = 240;

/// Whether the walk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
enum Flow {
    On,
    /// What follows was never committed.
    Torn,
}

/// The epoch that the next one changes.
#[derive(Clone, Debug)]
struct Last {
    /// Its number; where it is not `certain`, a number that it is not below.
    epoch: u64,
    /// The hash of its commit frame.
    hash: u128,
    /// Whether it is known which epoch it is. Not so where a commit frame may have been lost.
    certain: bool,
}

/// An epoch whose commit frame has not come yet.
struct Open {
    epoch: u64,
    /// Where its first frame begins.
    start: u64,
    /// The position of the next frame.
    next: Option<u32>,
    /// Some of its frames are missing or not readable: counts and hashes say nothing.
    gap: bool,
    /// Some of its pages are not known.
    spoiled: bool,
    blocks: u32,
    bytes: u64,
    headers: Xxh3,
    stored: u64,
    zero: u64,
    states: u64,
    /// What is wrong in frames that are intact. It counts only if the epoch exists.
    findings: Vec<Fault>,
    findings_omitted: u64,
    /// The commit frame whose memory the digest showed before this epoch.
    memory_before: Option<u128>,
}

impl Open {
    fn new(epoch: u64, start: u64, gap: bool, memory_before: Option<u128>) -> Self {
        Self {
            epoch,
            start,
            next: Some(0),
            gap,
            spoiled: false,
            blocks: 0,
            bytes: 0,
            headers: Xxh3::new(),
            stored: 0,
            zero: 0,
            states: 0,
            findings: Vec::new(),
            findings_omitted: 0,
            memory_before,
        }
    }

    fn count(&mut self, header: &Header) {
        self.next = header.sequence.checked_add(1);
        self.bytes = self.bytes.saturating_add(header.bytes());
        self.headers.update(&header.raw);
        self.blocks = self.blocks.saturating_add(u32::from(header.kind == Kind::Pages));
        self.states = self.states.saturating_add(u64::from(header.kind == Kind::State));
    }
}

/// Where the walk is.
struct Place {
    /// Which of the segments.
    index: usize,
    at: u64,
    /// What is just before `at` could not be read, and this was reported.
    lost: bool,
    open: Option<Open>,
}

impl Place {
    fn new(index: usize) -> Self {
        Self { index, at: 0, lost: false, open: None }
    }
}

/// Walks a chain from its first frame to its last.
pub(super) struct Walk<'a> {
    identity: &'a Identity,
    segments: &'a [Segment],
    options: &'a VerifyOptions,
    report: VerifyReport,
    last: Last,
    /// The newest epoch that an accepted commit frame calls durable.
    durable: u64,
    /// The newest epoch that a frame behind the first fault calls durable; looked for only then.
    durable_behind: Option<u64>,
    /// Whether nothing yet makes later epochs worthless.
    sound: bool,
    memory: MemoryDigest,
    /// The commit frame whose memory the digest shows, or 0 for no epoch.
    memory_of: Option<u128>,
    /// By how much the newest audit differs from the digest.
    audit_difference: u128,
    bytes_done: u64,
    progress_due: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(identity: &'a Identity, segments: &'a [Segment], options: &'a VerifyOptions) -> Self {
        Self {
            identity,
            segments,
            options,
            report: VerifyReport {
                segments: segments.len() as u64,
                bytes: segments.iter().map(|segment| segment.bytes).fold(0, u64::saturating_add),
                ..VerifyReport::default()
            },
            last: Last { epoch: 0, hash: 0, certain: true },
            durable: 0,
            durable_behind: None,
            sound: true,
            memory: MemoryDigest::default(),
            memory_of: Some(0),
            audit_difference: 0,
            bytes_done: 0,
            progress_due: 0,
        }
    }

    pub(super) fn run(mut self, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport, VerifyError> {
        let mut blocks = Blocks::default();
        let mut expected = 1;
        for (index, segment) in self.segments.iter().enumerate() {
            if segment.number != expected && self.missing(index, expected)? == Flow::Torn {
                break;
            }
            expected = segment.number.saturating_add(1);
            let flow = self.segment(index, &mut blocks, progress)?;
            self.bytes_done = self.bytes_done.saturating_add(segment.bytes);
            self.tell(segment, 0, progress);
            if flow == Flow::Torn {
                break;
            }
        }
        Ok(self.report)
    }

    fn tell(&mut self, segment: &Segment, at: u64, progress: &mut dyn FnMut(Progress)) {
        let bytes = self.bytes_done.saturating_add(at);
        self.progress_due = bytes.saturating_add(PROGRESS_BYTES);
        progress(Progress { segment: segment.number, bytes, bytes_total: self.report.bytes, epoch: EpochId(self.last.epoch) });
    }

    /// Segments from `expected` on are not there, up to the one at `index`.
    fn missing(&mut self, index: usize, expected: u32) -> Result<Flow, VerifyError> {
        let place = Place::new(index);
        let found = self.segments.get(index).map(|segment| segment.name.clone()).unwrap_or_default();
        let name = pieces::segment_name(expected);
        if !self.is_damage(&place)? {
            return Ok(self.tear(&place, None));
        }
        let fault = Fault::new(DamageKind::MissingSegment, 0, name.clone(), format!("{found} comes next"));
        self.push(name, None, fault);
        self.sound = false;
        self.last.certain = false;
        Ok(Flow::On)
    }

    fn segment(&mut self, index: usize, blocks: &mut Blocks, progress: &mut dyn FnMut(Progress)) -> Result<Flow, VerifyError> {
        let Some(segment) = self.segments.get(index) else { return Ok(Flow::On) };
        let identity = self.identity;
        let mut pieces = Pieces::open(segment, &identity.chain)?;
        let mut place = Place::new(index);
        loop {
            if self.bytes_done.saturating_add(place.at) >= self.progress_due {
                self.tell(segment, place.at, progress);
            }
            let flow = match pieces.look(place.at)? {
                Look::End => return self.end(place),
                Look::Fault(fault) => self.unreadable(&mut place, &mut pieces, fault)?,
                Look::Frame(header) => self.frame(&mut place, &mut pieces, blocks, &header)?,
            };
            if flow == Flow::Torn {
                return Ok(flow);
            }
        }
    }

    /// The file ends.
    fn end(&mut self, mut place: Place) -> Result<Flow, VerifyError> {
        if place.at == 0 {
            let fault = Fault::new(DamageKind::SegmentHeader, 0, "a segment header", "an empty file");
            let flow = self.judge(&mut place, None, vec![fault])?;
            self.last.certain = false;
            return Ok(flow);
        }
        if let Some(epoch) = place.open.as_ref().map(|open| open.epoch) {
            if !place.lost {
                let fault =
                    Fault::new(DamageKind::Truncated, place.at, format!("more frames of epoch {epoch}"), "the end of the file");
                if self.judge(&mut place, Some(epoch), vec![fault])? == Flow::Torn {
                    return Ok(Flow::Torn);
                }
            }
            self.abandon(&mut place);
        } else if place.lost {
            self.last.certain = false;
        }
        Ok(Flow::On)
    }

    /// No frame stands where one should.
    fn unreadable(&mut self, place: &mut Place, pieces: &mut Pieces<'_>, fault: Fault) -> Result<Flow, VerifyError> {
        let epoch = (place.at != 0).then(|| place.open.as_ref().map_or(self.last.epoch.saturating_add(1), |open| open.epoch));
        if !self.is_damage(place)? {
            return Ok(self.tear(place, epoch));
        }
        let from = place.at;
        self.resynchronise(place, pieces)?;
        let mut fault = fault;
        fault.found = format!("{}; {} bytes are no frame", fault.found, place.at - from);
        self.judge(place, epoch, vec![fault])
    }

    /// Goes to the next frame, wherever it is.
    fn resynchronise(&mut self, place: &mut Place, pieces: &mut Pieces<'_>) -> Result<(), VerifyError> {
        place.at = pieces.next_intact(place.at.saturating_add(8))?.unwrap_or(pieces.end()).max(place.at);
        place.lost = true;
        if let Some(open) = &mut place.open {
            open.gap = true;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        place: &mut Place,
        pieces: &mut Pieces<'_>,
        blocks: &mut Blocks,
        header: &Header,
    ) -> Result<Flow, VerifyError> {
        let first = place.at == 0;
        if first != (header.kind == Kind::Segment) {
            let (kind, expected) = if first {
                (DamageKind::SegmentHeader, "a segment header")
            } else {
                (DamageKind::Kind, "a segment header only at the beginning")
            };
            let fault = Fault::new(kind, place.at + 4, expected, format!("{:?}", header.kind));
            let epoch = place.open.as_ref().map(|open| open.epoch);
            if self.judge(place, epoch, vec![fault])? == Flow::Torn {
                return Ok(Flow::Torn);
            }
        }
        match header.kind {
            Kind::Segment => self.segment_header(place, pieces, header),
            Kind::Close => self.close(place, pieces, header),
            _ => self.epoch_frame(place, pieces, blocks, header),
        }
    }

    fn segment_header(&mut self, place: &mut Place, pieces: &mut Pieces<'_>, header: &Header) -> Result<Flow, VerifyError> {
        let at = place.at;
        let found = match pieces.payload(at, header)? {
            Ok(payload) => SegmentHeader::parse(payload),
            Err(fault) => return self.broken(place, pieces, header, None, fault),
        };
        if at == 0 {
            let number = self.segments.get(place.index).map_or(0, |segment| segment.number);
            let payload = HEADER_BYTES_U64;
            let field = |offset: u64, name: &str, expected: u64, found: u64| {
                (expected != found)
                    .then(|| Fault::new(DamageKind::SegmentHeader, offset, format!("{name} {expected}"), found.to_string()))
            };
            let mut faults: Vec<Fault> = [
                field(8, "epoch", 0, header.epoch),
                field(16, "sequence", 0, header.sequence.into()),
                field(payload, "format version", 1, found.version.into()),
                field(payload + 4, "segment number", number.into(), found.number.into()),
                field(payload + 56, "page size", 4096, found.page_size.into()),
                field(payload + 60, "reserved", 0, found.reserved.into()),
            ]
            .into_iter()
            .flatten()
            .collect();
            if found.chain != self.identity.chain {
                let (expected, found) = (hex(&self.identity.chain), hex(&found.chain));
                faults.push(Fault::new(DamageKind::SegmentHeader, payload + 8, expected, found));
            }
            let belongs = faults.is_empty();
            if self.last.certain && (found.epoch, found.hash) != (self.last.epoch, self.last.hash) {
                let expected = format!("epoch {}, hash {:032x} before this segment", self.last.epoch, self.last.hash);
                let found = format!("epoch {}, hash {:032x}", found.epoch, found.hash);
                faults.push(Fault::new(DamageKind::SegmentHeader, payload + 24, expected, found));
            }
            if !faults.is_empty() && self.judge(place, None, faults)? == Flow::Torn {
                return Ok(Flow::Torn);
            }
            if belongs && found.epoch >= self.last.epoch {
                self.last = Last { epoch: found.epoch, hash: found.hash, certain: true };
            }
        }
        place.at = at + header.bytes();
        Ok(Flow::On)
    }

    fn close(&mut self, place: &mut Place, pieces: &mut Pieces<'_>, header: &Header) -> Result<Flow, VerifyError> {
        let at = place.at;
        let lost = mem::take(&mut place.lost);
        if let Some(open) = &place.open {
            if !lost {
                let epoch = open.epoch;
                let fault = Fault::new(DamageKind::Kind, at + 4, format!("more frames of epoch {epoch}"), "Close");
                if self.judge(place, Some(epoch), vec![fault])? == Flow::Torn {
                    return Ok(Flow::Torn);
                }
            }
            self.abandon(place);
        }
        self.last.certain &= !lost;
        let found = match pieces.payload(at, header)? {
            Ok(payload) => Close::parse(payload),
            Err(fault) => return self.broken(place, pieces, header, None, fault),
        };
        let mut faults = Vec::new();
        // Which epoch a close frame's header names is not written down: the one that it closes, or none.
        if header.epoch != 0 && header.epoch != found.epoch {
            faults.push(Fault::new(DamageKind::Epoch, at + 8, format!("epoch {}", found.epoch), header.epoch.to_string()));
        }
        if header.sequence != 0 {
            faults.push(Fault::new(DamageKind::Sequence, at + 16, "0", header.sequence.to_string()));
        }
        let differs = if self.last.certain {
            (found.epoch, found.hash) != (self.last.epoch, self.last.hash)
        } else {
            found.epoch < self.last.epoch
        };
        if differs {
            let expected = format!("epoch {}, hash {:032x}", self.last.epoch, self.last.hash);
            let found = format!("epoch {}, hash {:032x}", found.epoch, found.hash);
            faults.push(Fault::new(DamageKind::Close, at + HEADER_BYTES_U64, expected, found));
        }
        if !faults.is_empty() && self.judge(place, None, faults)? == Flow::Torn {
            return Ok(Flow::Torn);
        }
        self.durable = self.durable.max(found.epoch);
        if found.epoch >= self.last.epoch {
            self.last = Last { epoch: found.epoch, hash: found.hash, certain: true };
        }
        place.at = at + header.bytes();
        Ok(Flow::On)
    }

    /// A frame whose header is intact and whose payload is not.
    fn broken(
        &mut self,
        place: &mut Place,
        pieces: &mut Pieces<'_>,
        header: &Header,
        epoch: Option<u64>,
        fault: Fault,
    ) -> Result<Flow, VerifyError> {
        let truncated = fault.kind == DamageKind::Truncated;
        if self.judge(place, epoch, vec![fault])? == Flow::Torn {
            return Ok(Flow::Torn);
        }
        if let Some(open) = &mut place.open {
            open.spoiled = true;
            open.count(header);
        }
        if truncated {
            // Its length is intact, so the file has lost something: frames may follow before its end.
            self.resynchronise(place, pieces)?;
        } else {
            place.at += header.bytes();
            if header.kind == Kind::Commit {
                self.abandon(place);
            }
        }
        Ok(Flow::On)
    }

    /// A frame of an epoch: finds out whether it is the one that should come, and checks what is in it.
    fn epoch_frame(
        &mut self,
        place: &mut Place,
        pieces: &mut Pieces<'_>,
        blocks: &mut Blocks,
        header: &Header,
    ) -> Result<Flow, VerifyError> {
        if self.enter(place, header)? == Flow::Torn {
            return Ok(Flow::Torn);
        }
        let at = place.at;
        let payload = match pieces.payload(at, header)? {
            Ok(payload) => payload,
            Err(fault) => return self.broken(place, pieces, header, Some(header.epoch), fault),
        };
        let offset = at + HEADER_BYTES_U64;
        let Some(open) = &mut place.open else { return Ok(Flow::On) };
        if header.kind == Kind::Commit {
            let commit = Commit::parse(payload);
            let mut hash = Xxh3::new();
            hash.update(&header.raw);
            hash.update(payload);
            return self.commit(place, header, &commit, hash.digest128());
        }
        if open.states > 0 && header.kind != Kind::Passable {
            let fault =
                Fault::new(DamageKind::Kind, at + 4, "the commit frame behind the state frame", format!("{:?}", header.kind));
            note(open, fault, self.options);
        }
        open.count(header);
        let checked = match header.kind {
            Kind::Pages => blocks.decode(payload, offset, self.identity).map(|pages| {
                for (gfn, bytes) in pages {
                    open.stored += 1;
                    if self.options.audits {
                        self.memory.set(gfn, bytes);
                    }
                }
            }),
            Kind::Zeros => content::zero_runs(payload, offset, self.identity).map(|runs| {
                for run in runs {
                    open.zero = open.zero.saturating_add(run.count);
                    self.memory.clear(run);
                }
            }),
            Kind::State => content::check_state(payload, offset),
            _ => Ok(()),
        };
        if let Err(fault) = checked {
            open.spoiled |= header.kind != Kind::State;
            note(open, fault, self.options);
        }
        place.at = at + header.bytes();
        Ok(Flow::On)
    }

    /// Makes sure that the epoch of the frame at hand is the open one.
    fn enter(&mut self, place: &mut Place, header: &Header) -> Result<Flow, VerifyError> {
        let lost = mem::take(&mut place.lost);
        let (at, epoch, sequence) = (place.at, header.epoch, header.sequence);
        let found = format!("frame {sequence} of epoch {epoch}");
        if let Some(open) = &mut place.open {
            let (open_epoch, next) = (open.epoch, open.next.unwrap_or(u32::MAX));
            let same = open_epoch == epoch;
            if same && next == sequence {
                return Ok(Flow::On);
            }
            open.gap = true;
            if !lost {
                let fault =
                    Fault::new(DamageKind::Sequence, at + 8, format!("frame {next} of epoch {open_epoch}"), found.clone());
                if self.judge(place, Some(open_epoch), vec![fault])? == Flow::Torn {
                    return Ok(Flow::Torn);
                }
            }
            if same {
                return Ok(Flow::On);
            }
            self.abandon(place);
        }
        let rises = epoch > self.last.epoch;
        let fault = if !rises {
            Some(Fault::new(DamageKind::Epoch, at + 8, format!("an epoch above {}", self.last.epoch), epoch.to_string()))
        } else if sequence != 0 && !lost {
            Some(Fault::new(DamageKind::Sequence, at + 16, format!("frame 0 of epoch {epoch}"), found))
        } else {
            None
        };
        if let Some(fault) = fault
            && self.judge(place, Some(epoch.max(self.last.epoch.saturating_add(1))), vec![fault])? == Flow::Torn
        {
            return Ok(Flow::Torn);
        }
        if lost {
            // Any number of epochs may have been in what could not be read, all below this one.
            self.last.certain = false;
            self.last.epoch = self.last.epoch.max(epoch.saturating_sub(1));
        }
        self.memory.begin_epoch();
        place.open = Some(Open::new(epoch, at, !rises || sequence != 0, self.memory_of.take()));
        Ok(Flow::On)
    }

    fn commit(&mut self, place: &mut Place, header: &Header, commit: &Commit, hash: u128) -> Result<Flow, VerifyError> {
        let Some(open) = &place.open else { return Ok(Flow::On) };
        let epoch = open.epoch;
        let faults = self.contradictions(place.at, open, header, commit);
        let contradicted = !faults.is_empty();
        if contradicted && self.judge(place, Some(epoch), faults)? == Flow::Torn {
            return Ok(Flow::Torn);
        }
        let Some(mut open) = place.open.take() else { return Ok(Flow::On) };
        for fault in breaches(place.at, &open, commit) {
            note(&mut open, fault, self.options);
        }
        let whole = !contradicted && !open.gap && !open.spoiled && open.findings.is_empty() && open.findings_omitted == 0;
        self.flush(place.index, &mut open);
        if whole && self.sound {
            self.report.epochs += 1;
            self.report.newest = Some(EpochId(epoch));
        } else if whole {
            self.report.epochs_behind_damage += 1;
        } else {
            self.sound = false;
        }

        self.memory_of = None;
        if !open.gap && !open.spoiled && !contradicted {
            if commit.has(Commit::BASE) {
                self.memory.keep_epoch_only();
                self.audit_difference = 0;
                self.memory_of = Some(hash);
            } else if open.memory_before == Some(commit.parent_hash) {
                self.memory_of = Some(hash);
            }
        }
        if commit.has(Commit::AUDITED) {
            self.audit(place, epoch, commit.audit);
        }

        self.durable = self.durable.max(commit.durable);
        if epoch > self.last.epoch {
            self.last = Last { epoch, hash, certain: true };
        }
        place.at += header.bytes();
        Ok(Flow::On)
    }

    /// Why the epoch that `commit` ends does not exist.
    fn contradictions(&self, at: u64, open: &Open, header: &Header, commit: &Commit) -> Vec<Fault> {
        let mut faults = Vec::new();
        let payload = at + HEADER_BYTES_U64;
        let mut check = |kind, offset, name: &str, expected: String, found: String| {
            if expected != found {
                faults.push(Fault::new(kind, payload + offset, format!("{name} {expected}"), found));
            }
        };
        check(DamageKind::Counts, 24, "frames", header.sequence.to_string(), commit.frames.to_string());
        if !open.gap {
            check(DamageKind::Counts, 28, "blocks", open.blocks.to_string(), commit.blocks.to_string());
            check(DamageKind::Counts, 32, "bytes", open.bytes.to_string(), commit.bytes.to_string());
            let frames_hash = open.headers.digest128();
            check(DamageKind::FramesHash, 40, "hash", format!("{frames_hash:032x}"), format!("{:032x}", commit.frames_hash));
        }
        if self.last.certain {
            let text = |epoch: u64, hash: u128| format!("{epoch}, hash {hash:032x}");
            let (expected, found) = (text(self.last.epoch, self.last.hash), text(commit.parent, commit.parent_hash));
            check(DamageKind::Parent, 0, "parent", expected, found);
        }
        faults
    }

    fn audit(&mut self, place: &Place, epoch: u64, expected: u128) {
        if self.memory_of.is_none() || !self.options.audits {
            self.report.audits_unchecked += 1;
            return;
        }
        self.report.audits_checked += 1;
        let found = self.memory.sum();
        let difference = expected.wrapping_sub(found);
        if difference != 0 {
            self.report.audits_failed += 1;
        }
        if difference != 0 && difference != self.audit_difference {
            let offset = place.at + HEADER_BYTES_U64 + 176;
            let fault =
                Fault::new(DamageKind::AuditMismatch, offset, format!("{expected:032x}"), format!("{found:032x} from the chain"));
            self.push(self.name(place.index), Some(epoch), fault);
        }
        self.audit_difference = difference;
    }

    /// The open epoch has no commit frame that can be read. Nothing says whether it had one.
    fn abandon(&mut self, place: &mut Place) {
        if let Some(mut open) = place.open.take() {
            self.flush(place.index, &mut open);
            self.last.epoch = self.last.epoch.max(open.epoch);
            self.last.certain = false;
        }
    }

    /// Whether a fault at `place` is damage: something behind the last epoch was durable.
    fn is_damage(&mut self, place: &Place) -> Result<bool, VerifyError> {
        let behind = match self.durable_behind {
            Some(behind) => behind,
            None => {
                let segments = self.segments.get(place.index..).unwrap_or_default();
                let offset = place.open.as_ref().map_or(place.at, |open| open.start);
                pieces::durable(segments, offset, &self.identity.chain)?
            }
        };
        self.durable_behind = Some(behind);
        Ok(self.durable.max(behind) > self.last.epoch)
    }

    /// Reports `faults`, which all have the same cause: as damage, or as the torn tail that ends the chain.
    fn judge(&mut self, place: &mut Place, epoch: Option<u64>, faults: Vec<Fault>) -> Result<Flow, VerifyError> {
        if !self.is_damage(place)? {
            return Ok(self.tear(place, epoch));
        }
        self.sound = false;
        if let Some(open) = &mut place.open {
            self.flush(place.index, open);
        }
        for fault in faults {
            self.push(self.name(place.index), epoch, fault);
        }
        Ok(Flow::On)
    }

    fn tear(&mut self, place: &Place, epoch: Option<u64>) -> Flow {
        let (offset, open) = place.open.as_ref().map_or((place.at, None), |open| (open.start, Some(open.epoch)));
        let segments = self.segments.get(place.index..).unwrap_or_default();
        let bytes = segments.iter().map(|segment| segment.bytes).fold(0, u64::saturating_add);
        self.report.torn_tail = Some(TornTail {
            file: self.name(place.index),
            offset,
            bytes: bytes.saturating_sub(offset),
            epoch: open.or(epoch).unwrap_or(self.last.epoch.saturating_add(1)),
        });
        Flow::Torn
    }

    fn name(&self, index: usize) -> String {
        self.segments.get(index).map(|segment| segment.name.clone()).unwrap_or_default()
    }

    /// Moves what was found in an epoch into the report.
    fn flush(&mut self, index: usize, open: &mut Open) {
        self.report.damage_omitted = self.report.damage_omitted.saturating_add(mem::take(&mut open.findings_omitted));
        for fault in mem::take(&mut open.findings) {
            self.sound = false;
            self.push(self.name(index), Some(open.epoch), fault);
        }
    }

    fn push(&mut self, file: String, epoch: Option<u64>, fault: Fault) {
        if self.report.damage.len() < self.options.damage_max {
            let Fault { kind, offset, expected, found } = fault;
            self.report.damage.push(Damage { file, offset, epoch, kind, expected, found });
        } else {
            self.report.damage_omitted = self.report.damage_omitted.saturating_add(1);
        }
    }
}

/// Keeps what is wrong with an open epoch until it is known whether the epoch exists.
fn note(open: &mut Open, fault: Fault, options: &VerifyOptions) {
    if open.findings.len() < options.damage_max {
        open.findings.push(fault);
    } else {
        open.findings_omitted = open.findings_omitted.saturating_add(1);
    }
}

/// What a commit frame says that may not be said, or that is not so, in an epoch that exists all the same.
fn breaches(at: u64, open: &Open, commit: &Commit) -> Vec<Fault> {
    let mut faults = Vec::new();
    let payload = at + HEADER_BYTES_U64;
    let mut check = |holds: bool, kind, offset: u64, expected: String, found: String| {
        if !holds {
            faults.push(Fault::new(kind, payload + offset, expected, found));
        }
    };
    let Commit { pages, zero, unchanged, stored, bytes_written, durable, parent, trigger, flags, .. } = *commit;
    check((1..=4).contains(&trigger), DamageKind::Flags, 168, "a trigger from 1 to 4".to_owned(), trigger.to_string());
    let known = Commit::BASE | Commit::RECOVERY | Commit::AUDITED;
    check(flags & !known == 0, DamageKind::Flags, 169, "flags 1, 2 and 4 only".to_owned(), flags.to_string());
    check(commit.reserved == [0; 6], DamageKind::Reserved, 170, "000000000000".to_owned(), hex(&commit.reserved));
    let audited = commit.has(Commit::AUDITED) || commit.audit == 0;
    check(audited, DamageKind::Flags, 176, "no digest without audit".to_owned(), format!("{:032x}", commit.audit));
    check(durable <= parent, DamageKind::Durable, 160, format!("at most the parent, {parent}"), durable.to_string());
    let written = commit.bytes.saturating_add(COMMIT_FRAME_BYTES);
    check(bytes_written == written, DamageKind::Counts, 152, format!("{written} bytes written"), bytes_written.to_string());
    if open.gap {
        return faults;
    }
    check(open.states == 1, DamageKind::Kind, 0, "one state frame before the commit frame".to_owned(), open.states.to_string());
    if open.spoiled {
        return faults;
    }
    check(stored == open.stored, DamageKind::Counts, 144, format!("{} pages stored", open.stored), stored.to_string());
    // A base or a recovery is streamed in parts and may meet a page again, or leave out that a page is zero.
    if !commit.has(Commit::BASE) && !commit.has(Commit::RECOVERY) {
        check(zero == open.zero, DamageKind::Counts, 128, format!("{} zero pages", open.zero), zero.to_string());
        let sum = zero.saturating_add(unchanged).saturating_add(stored);
        let expected = format!("{sum} pages: {zero} zero, {unchanged} unchanged, {stored} stored");
        check(pages == sum, DamageKind::Counts, 120, expected, pages.to_string());
    }
    faults
}
