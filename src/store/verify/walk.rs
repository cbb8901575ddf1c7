//! The walk over all frames of a chain: what exists, what is damage, and what is a torn tail.

use std::collections::BTreeMap;
use std::mem;

use super::content::{self, Blocks};
use super::damage::{DamageKind, Fault};
use super::description::{BranchOf, Description};
use super::digest::MemoryDigest;
use super::epoch::Open;
use super::frame::{Commit, HEADER_BYTES_U64, Header, Kind, SegmentHeader, Synced, hex};
use super::index::{Index, Reading};
use super::listing::{Chain, Segment, Store};
use super::mark::Proof;
use super::names::in_directory;
use super::report::{BranchReport, End, Leftover, LeftoverKind, SegmentFile, TornTail, VerifyError, VerifyOptions};
use super::segment_file::{self, Look, Pieces};
use super::totals::Tally;
use super::versions::{At, Changed, Versions};
use crate::page::{EpochId, Gfn, runs};

/// Branches behind each other.
const BRANCHES_MAX: usize = 64;

/// Whether the walk goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
enum Flow {
    On,
    /// What follows is a torn tail.
    Torn,
    /// What follows was not asked for.
    Done,
}

/// The epoch that the next one changes.
#[derive(Clone, Debug)]
struct Last {
    /// The number of the newest whose commit frame was read.
    epoch: u64,
    /// The hash of its commit frame.
    hash: u128,
    /// Whether there was none after it. Not known where a commit frame may have been lost.
    certain: bool,
}

/// Where the walk is.
struct Place {
    /// Which of the segments.
    index: usize,
    at: u64,
    /// What is just before `at` could not be read, and this was reported.
    lost: bool,
    open: Option<Open>,
    /// Nothing follows the last close frame.
    closed: bool,
    /// It is before the segment, where others are missing.
    before: bool,
}

impl Place {
    fn new(index: usize) -> Self {
        Self { index, at: 0, lost: false, open: None, closed: false, before: false }
    }
}

/// Walks a chain from its first frame to its last, and each branch of it when it comes to the epoch
/// that the branch begins at.
pub(super) struct Walk<'a, 't, 'p> {
    store: &'a Store,
    /// Which of the store's chains.
    number: usize,
    chain: &'a Chain,
    description: &'a Description,
    segments: &'a [Segment],
    /// Which of the store's segments the first of `segments` is.
    first_segment: usize,
    options: &'a VerifyOptions,
    tally: &'t mut Tally<'p>,
    own: BranchReport,
    /// The branches that begin at an epoch.
    forks: BTreeMap<u64, Vec<usize>>,
    /// How many chains this one builds on.
    depth: usize,
    /// Nothing behind this epoch is asked for.
    stop_at: Option<u64>,
    /// The epoch whose commit frame was the last that was read, until it is seen which branches
    /// begin at it.
    completed: Option<u64>,
    /// The index of the segment in hand, as long as nothing is damaged there.
    index: Option<Index>,
    /// Whether the segment in hand has an index of its own, whatever that says.
    has_index: bool,
    /// The epoch that the header of the segment in hand names.
    before_segment: u64,
    /// The last epoch of the segment in hand, and its identity.
    last_in_segment: Option<(u64, u128)>,
    last: Last,
    /// The newest epoch of which any frame was seen.
    seen: u64,
    /// The newest epoch that an accepted durable or close frame calls durable, or the mark, or an
    /// index.
    durable: u64,
    /// The newest epoch that a frame behind the first fault calls durable; looked for only then.
    durable_behind: Option<u64>,
    /// Whether the walk has come so far without passing over anything.
    unbroken: bool,
    /// Whether nothing yet makes later epochs worthless.
    sound: bool,
    memory: MemoryDigest,
    versions: Versions<'a>,
    /// The identity of the epoch whose memory the digest shows, or 0 for no epoch.
    memory_of: Option<u128>,
    /// By how much the newest audit differs from the digest.
    audit_difference: u128,
}

/// Walks all chains of `store` that `tally` wants.
pub(super) fn walk<'a>(store: &'a Store, options: &'a VerifyOptions, tally: &mut Tally<'_>) -> Result<(), VerifyError> {
    while let Some((number, chain)) = tally.next(store).and_then(|number| Some((number, store.chains.get(number)?))) {
        tally.begins(number);
        let mut walk = Walk::new(store, number, chain, options, tally);
        if let Some(of) = &chain.description.branch_of {
            // No walk came to where it begins.
            let found = "no such epoch, or none that can be read";
            walk.lose(of, Fault::new(DamageKind::Branch, 0, format!("epoch {} in {:?}", of.epoch, of.branch), found));
        }
        walk.run()?;
    }
    Ok(())
}

impl<'a, 't, 'p> Walk<'a, 't, 'p> {
    /// A walk of a chain before which there is nothing.
    fn new(store: &'a Store, number: usize, chain: &'a Chain, options: &'a VerifyOptions, tally: &'t mut Tally<'p>) -> Self {
        let (segments, first_segment) = store.segments_of(number);
        let mut forks: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (branch, of) in store.chains.iter().map(|chain| &chain.description.branch_of).enumerate() {
            if let Some(of) = of.as_ref().filter(|of| of.branch == chain.name) {
                forks.entry(of.epoch).or_default().push(branch);
            }
        }
        let of = chain.description.branch_of.as_ref();
        Self {
            store,
            number,
            chain,
            description: &chain.description,
            segments,
            first_segment,
            options,
            own: BranchReport {
                name: chain.name.clone(),
                of: of.map(|of| of.branch.clone()),
                begins_at: of.map(|of| EpochId(of.epoch)),
                segments: segments.len() as u64,
                bytes: segments.iter().map(|segment| segment.bytes).fold(0, u64::saturating_add),
                files: segments
                    .iter()
                    .map(|Segment { name, numbers, bytes, index, .. }| SegmentFile {
                        segment: name.clone(),
                        compacted: numbers.is_compacted(),
                        bytes: *bytes,
                        index: index.clone(),
                    })
                    .collect(),
                chain: chain.description.chain,
                mark: chain.mark_name(),
                ..BranchReport::default()
            },
            forks,
            depth: 0,
            stop_at: tally.stop_at(store, number),
            tally,
            completed: None,
            index: None,
            has_index: false,
            before_segment: 0,
            last_in_segment: None,
            last: Last { epoch: 0, hash: 0, certain: true },
            seen: 0,
            durable: chain.may_be_durable(),
            durable_behind: None,
            unbroken: true,
            sound: true,
            memory: MemoryDigest::default(),
            versions: Versions::new(&chain.description, &store.segments, store.pages_kept),
            memory_of: Some(0),
            audit_difference: 0,
        }
    }

    /// The chain is a branch `of` an epoch of which nothing is known, because of `fault`.
    fn lose(&mut self, of: &BranchOf, fault: Fault) {
        self.last = Last { epoch: of.epoch, hash: of.identity, certain: true };
        self.seen = of.epoch;
        self.sound = false;
        self.memory_of = None;
        self.push(self.chain.description_name(), Some(of.epoch), fault);
    }

    fn run(mut self) -> Result<(), VerifyError> {
        if let Some(fault) = self.chain.mark_fault.clone() {
            self.push(self.chain.mark_name(), None, fault);
        }
        let mut blocks = Blocks::default();
        let mut expected = 1;
        let mut is_whole = true;
        for (index, segment) in self.segments.iter().enumerate() {
            if let Some(found) = &segment.stray {
                let fault = Fault::new(DamageKind::SegmentNumbers, 0, "numbers of its own", found);
                self.push(segment.name.clone(), None, fault);
                self.sound = false;
                self.last.certain = false;
                expected = expected.max(segment.numbers.last.saturating_add(1));
                self.tally.pass(segment.bytes);
                continue;
            }
            if segment.numbers.first != expected && self.missing(index, expected)? == Flow::Torn {
                is_whole = false;
                break;
            }
            expected = segment.numbers.last.saturating_add(1);
            let flow = self.segment(index, &mut blocks)?;
            self.compare_index(segment, flow, index + 1 == self.segments.len());
            self.tally.pass(segment.bytes);
            self.tally.tell(segment, 0, self.last.epoch);
            if flow != Flow::On {
                is_whole = false;
                break;
            }
        }
        if is_whole {
            self.all_is_there(expected);
        }
        self.tally.end(self.number, self.own);
        Ok(())
    }

    /// The chain has ended before segment `next`: is what was durable in it?
    fn all_is_there(&mut self, next: u32) {
        let (proven, newest) = (self.chain.proven(), self.seen.max(self.last.epoch));
        if proven <= newest {
            return;
        }
        let found = if newest == 0 { "none".to_owned() } else { format!("epochs up to {newest}") };
        let expected = format!("epochs up to {proven}, which were durable");
        let fault = Fault::new(DamageKind::LostEpochs, 0, expected, found);
        self.push(self.chain.segment_name(next), Some(newest.saturating_add(1)), fault);
    }

    /// Walks the branches that begin at `epoch`, which was read just now.
    fn branches_at(&mut self, epoch: u64) -> Result<(), VerifyError> {
        for number in self.forks.remove(&epoch).unwrap_or_default() {
            let Some((chain, of)) =
                self.store.chains.get(number).and_then(|chain| Some((chain, chain.description.branch_of.as_ref()?)))
            else {
                continue;
            };
            if !self.tally.begins(number) {
                continue;
            }
            let mut branch = Walk::new(self.store, number, chain, self.options, &mut *self.tally);
            branch.depth = self.depth + 1;
            let identity = self.last.hash;
            let fault = if let Some(expected) = chain.description.differs(self.description) {
                Some(Fault::new(DamageKind::Branch, 0, expected, "not so"))
            } else if of.identity != identity {
                let expected = format!("epoch {epoch} of {:?} with identity {:032x}", of.branch, of.identity);
                Some(Fault::new(DamageKind::Branch, 0, expected, format!("{identity:032x}")))
            } else if branch.depth > BRANCHES_MAX {
                let expected = format!("at most {BRANCHES_MAX} branches behind each other");
                branch.forks.clear();
                Some(Fault::new(DamageKind::Branch, 0, expected, "one more"))
            } else {
                None
            };
            match fault {
                Some(fault) => branch.lose(of, fault),
                None => {
                    branch.last = Last { epoch, hash: identity, certain: true };
                    branch.seen = epoch;
                    branch.sound = self.sound;
                    branch.memory = self.memory.clone();
                    branch.versions = self.versions.fork();
                    branch.memory_of = self.memory_of;
                    branch.audit_difference = self.audit_difference;
                }
            }
            branch.run()?;
        }
        Ok(())
    }

    /// The walk of `segment` is over: what is to be said of its index?
    fn compare_index(&mut self, segment: &Segment, flow: Flow, last: bool) {
        let Some(name) = &segment.index else {
            // A writer makes it when it goes on to the next segment.
            self.tally.report.indexes_missing += u64::from(!last && flow != Flow::Done);
            return;
        };
        let Some(index) = self.index.take() else { return };
        if flow != Flow::On {
            self.tally.report.indexes_unchecked += 1;
            return;
        }
        self.tally.report.indexes_checked += 1;
        if let Some(fault) = index.finish(self.before_segment, self.last_in_segment) {
            self.push(name.clone(), None, fault);
        }
    }

    /// Reads the index of `segment`, which begins with `first_frame`.
    fn read_index(&mut self, segment: &Segment, first_frame: &[u8]) -> Result<(), VerifyError> {
        let Some(name) = &segment.index else { return Ok(()) };
        let read = Index::read(in_directory(name), segment, first_frame)?;
        self.has_index = matches!(read, Reading::Sound(_) | Reading::Wrong(_));
        match read {
            Reading::Sound(index) => self.index = Some(*index),
            Reading::Wrong(fault) => {
                self.tally.report.indexes_checked += 1;
                self.push(name.clone(), None, fault);
            }
            Reading::Unfit => {
                let bytes = segment.place.look(in_directory(name)).map_or(0, |found| found.bytes);
                self.tally.report.leftovers.push(Leftover { file: name.clone(), kind: LeftoverKind::Index, bytes });
            }
            Reading::Gone => {}
        }
        Ok(())
    }

    /// Segments from `expected` on are not there, up to the one at `index`.
    fn missing(&mut self, index: usize, expected: u32) -> Result<Flow, VerifyError> {
        let place = Place { before: true, ..Place::new(index) };
        let found = self.segments.get(index).map(|segment| segment.name.clone()).unwrap_or_default();
        let name = self.chain.segment_name(expected);
        if !self.is_damage(&place, None)? {
            return Ok(self.tear(&place, None));
        }
        let fault = Fault::new(DamageKind::MissingSegment, 0, name.clone(), format!("{found} comes next"));
        self.push(name, None, fault);
        self.sound = false;
        self.last.certain = false;
        Ok(Flow::On)
    }

    fn segment(&mut self, index: usize, blocks: &mut Blocks) -> Result<Flow, VerifyError> {
        let Some(segment) = self.segments.get(index) else { return Ok(Flow::On) };
        let mut pieces = Pieces::open(segment, self.description)?;
        let mut place = Place::new(index);
        self.index = None;
        self.has_index = false;
        self.before_segment = 0;
        self.last_in_segment = None;
        loop {
            if self.tally.is_due(place.at) {
                self.tally.tell(segment, place.at, self.last.epoch);
            }
            let flow = match pieces.look(place.at)? {
                Look::End => return self.end(place),
                Look::Fault(fault) => self.unreadable(&mut place, &mut pieces, fault)?,
                Look::Frame(header) => self.frame(&mut place, &mut pieces, blocks, &header)?,
            };
            if flow != Flow::On {
                return Ok(flow);
            }
            if let Some(epoch) = self.completed.take() {
                self.branches_at(epoch)?;
                if self.stop_at.is_some_and(|stop| stop <= epoch) {
                    return Ok(Flow::Done);
                }
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
        } else if !place.closed && self.last.epoch > 0 && self.is_compacted(&place) {
            let fault = Fault::new(
                DamageKind::Truncated,
                place.at,
                "a close frame, which ends a compacted segment",
                "the end of the file",
            );
            return self.judge(&mut place, None, vec![fault]);
        }
        Ok(Flow::On)
    }

    /// Whether a compaction made the segment that `place` is in: it got its name when it was whole
    /// and synced.
    fn is_compacted(&self, place: &Place) -> bool {
        !place.before && self.segments.get(place.index).is_some_and(|segment| segment.numbers.is_compacted())
    }

    /// No frame stands where one should.
    fn unreadable(&mut self, place: &mut Place, pieces: &mut Pieces<'_>, fault: Fault) -> Result<Flow, VerifyError> {
        let epoch = (place.at != 0).then(|| self.epoch_at(place, None));
        if !self.is_damage(place, epoch)? {
            return Ok(self.tear(place, epoch));
        }
        let from = place.at;
        self.resynchronise(place, pieces)?;
        let mut fault = fault;
        fault.found = format!("{}; {} bytes are no frame", fault.found, place.at - from);
        self.report_damage(place, epoch, vec![fault]);
        Ok(Flow::On)
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
            Kind::Close | Kind::Durable => self.synced(place, pieces, header),
            Kind::Pages | Kind::Zeros | Kind::State | Kind::Commit => self.epoch_frame(place, pieces, blocks, header),
        }
    }

    fn segment_header(&mut self, place: &mut Place, pieces: &mut Pieces<'_>, header: &Header) -> Result<Flow, VerifyError> {
        let at = place.at;
        let (found, first_frame) = match pieces.payload(at, header)? {
            Ok(payload) => (SegmentHeader::parse(payload), [&header.raw, payload].concat()),
            Err(fault) => return self.broken(place, pieces, header, None, fault),
        };
        if at == 0 {
            let Some(segment) = self.segments.get(place.index) else { return Ok(Flow::On) };
            let numbers = segment.numbers;
            let payload = HEADER_BYTES_U64;
            let field = |offset: u64, name: &str, expected: u64, found: u64| {
                (expected != found)
                    .then(|| Fault::new(DamageKind::SegmentHeader, offset, format!("{name} {expected}"), found.to_string()))
            };
            let mut faults: Vec<Fault> = [
                field(payload, "format version", self.description.format.into(), found.version.into()),
                field(payload + 4, "segment number", numbers.first.into(), found.number.into()),
                field(payload + 56, "page size", 4096, found.page_size.into()),
                field(payload + 48, "generation", 0, found.generation),
                field(payload + 60, "further numbers", (numbers.last - numbers.first).into(), found.more.into()),
            ]
            .into_iter()
            .flatten()
            .collect();
            if found.incarnation != 0 {
                let found = format!("{:032x}", found.incarnation);
                faults.push(Fault::new(DamageKind::SegmentHeader, payload + 64, "incarnation 0", found));
            }
            if found.chain != self.description.chain {
                let (expected, found) = (hex(&self.description.chain), hex(&found.chain));
                faults.push(Fault::new(DamageKind::SegmentHeader, payload + 8, expected, found));
            }
            let agrees = (found.epoch, found.hash) == (self.last.epoch, self.last.hash);
            if self.last.certain && !agrees {
                let expected = format!("epoch {}, hash {:032x} before this segment", self.last.epoch, self.last.hash);
                let found = format!("epoch {}, hash {:032x}", found.epoch, found.hash);
                faults.push(Fault::new(DamageKind::SegmentHeader, payload + 24, expected, found));
            }
            self.before_segment = found.epoch;
            if faults.is_empty() {
                if found.epoch >= self.last.epoch {
                    self.last = Last { epoch: found.epoch, hash: found.hash, certain: true };
                }
                self.read_index(segment, &first_frame)?;
            } else if self.judge(place, None, faults)? == Flow::Torn {
                return Ok(Flow::Torn);
            } else {
                self.last.certain &= agrees;
            }
        }
        place.at = at + header.bytes();
        Ok(Flow::On)
    }

    /// A durable frame, or a close.
    fn synced(&mut self, place: &mut Place, pieces: &mut Pieces<'_>, header: &Header) -> Result<Flow, VerifyError> {
        let at = place.at;
        let lost = mem::take(&mut place.lost);
        if let Some(open) = &place.open {
            if !lost {
                let epoch = open.epoch;
                let fault =
                    Fault::new(DamageKind::Kind, at + 4, format!("more frames of epoch {epoch}"), format!("{:?}", header.kind));
                if self.judge(place, Some(epoch), vec![fault])? == Flow::Torn {
                    return Ok(Flow::Torn);
                }
            }
            self.abandon(place);
        }
        self.last.certain &= !lost;
        place.closed = header.kind == Kind::Close;
        let found = match pieces.payload(at, header)? {
            Ok(payload) => Synced::parse(payload),
            Err(fault) => return self.broken(place, pieces, header, None, fault),
        };
        let mut faults = Vec::new();
        if header.epoch != found.epoch {
            faults.push(Fault::new(DamageKind::Epoch, at + 8, format!("epoch {}", found.epoch), header.epoch.to_string()));
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
        if faults.is_empty() {
            self.last = Last { epoch: found.epoch, hash: found.hash, certain: true };
        } else if self.judge(place, None, faults)? == Flow::Torn {
            return Ok(Flow::Torn);
        } else {
            self.last.certain = false;
        }
        self.durable = self.durable.max(found.epoch);
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
            // Its length is intact, so the file has lost something: frames may follow before its
            // end.
            self.resynchronise(place, pieces)?;
        } else {
            place.at += header.bytes();
            if header.kind == Kind::Commit {
                self.abandon(place);
            }
        }
        Ok(Flow::On)
    }

    /// A frame of an epoch: finds out whether it is the one that should come, and checks what is in
    /// it.
    fn epoch_frame(
        &mut self,
        place: &mut Place,
        pieces: &mut Pieces<'_>,
        blocks: &mut Blocks,
        header: &Header,
    ) -> Result<Flow, VerifyError> {
        place.closed = false;
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
            let identity = commit.identity(header, payload);
            return self.commit(place, header, &commit, identity);
        }
        if open.states > 0 {
            let fault =
                Fault::new(DamageKind::Kind, at + 4, "the commit frame behind the state frame", format!("{:?}", header.kind));
            open.note(fault, self.options.damage_max);
        }
        open.count(header);
        let here = At { segment: self.first_segment + place.index, offset, length: header.length };
        let index = &mut self.index;
        let checked = match header.kind {
            Kind::Pages if payload.first() == Some(&2) => {
                open.changes_at.get_or_insert(offset);
                let given = (self.description, self.options);
                changes(open, &mut self.versions, &mut self.memory, payload, here, given)?.map(|gfns| {
                    if let Some(index) = index {
                        index.frame(at, 2, true, runs(gfns));
                    }
                })
            }
            Kind::Pages => blocks.decode(payload, offset, self.description).map(|pages| {
                let mut gfns = Vec::new();
                for (gfn, bytes) in pages {
                    open.stored += 1;
                    open.distinct += u64::from(!self.versions.is_of_epoch(gfn));
                    gfns.push(gfn);
                    self.versions.whole(gfn, here, bytes);
                    if self.options.audits {
                        self.memory.set(gfn, bytes);
                    }
                }
                if let Some(index) = index {
                    index.frame(at, 2, false, runs(gfns));
                }
            }),
            Kind::Zeros => content::zero_runs(payload, offset, self.description).map(|runs| {
                if let Some(index) = index {
                    index.frame(at, 3, false, runs.iter().copied());
                }
                for run in runs {
                    open.zero = open.zero.saturating_add(run.count);
                    self.memory.clear(run);
                    self.versions.zero(run);
                }
            }),
            Kind::State => {
                if let Some(index) = index {
                    index.state(at);
                }
                content::check_state(payload, offset).map(|_| ())
            }
            _ => Ok(()),
        };
        if let Err(fault) = checked {
            open.spoiled |= header.kind != Kind::State;
            open.note(fault, self.options.damage_max);
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
            && self.judge(place, Some(epoch), vec![fault])? == Flow::Torn
        {
            return Ok(Flow::Torn);
        }
        // Any number of epochs may have been in what could not be read.
        self.last.certain &= !lost;
        self.seen = self.seen.max(epoch);
        self.memory.begin_epoch();
        self.versions.begin_epoch();
        place.open = Some(Open::new(epoch, at, !rises || sequence != 0, self.memory_of.take()));
        Ok(Flow::On)
    }

    fn commit(&mut self, place: &mut Place, header: &Header, commit: &Commit, hash: u128) -> Result<Flow, VerifyError> {
        let Some(open) = &place.open else { return Ok(Flow::On) };
        let epoch = open.epoch;
        let parent = self.last.certain.then_some((self.last.epoch, self.last.hash));
        let faults = open.contradictions(place.at, header, commit, parent);
        let contradicted = !faults.is_empty();
        if contradicted && self.judge(place, Some(epoch), faults)? == Flow::Torn {
            return Ok(Flow::Torn);
        }
        let Some(mut open) = place.open.take() else { return Ok(Flow::On) };
        for fault in open.breaches(place.at, commit) {
            open.note(fault, self.options.damage_max);
        }
        // What an index that fits says is compared with its segment, as all of it.
        let own = self.segments.get(place.index).and_then(|segment| segment.index.as_ref()).filter(|_| self.has_index);
        let differs =
            |proof: &&Proof| proof.epoch == epoch && proof.identity != hash && (own.is_none() || proof.index.as_ref() != own);
        if let Some(proof) = self.chain.proofs.iter().find(differs) {
            let expected = format!("the epoch of identity {:032x}, which was durable", proof.identity);
            open.note(Fault::new(DamageKind::ReplacedEpoch, place.at, expected, format!("{hash:032x}")), self.options.damage_max);
        }
        if let Some(index) = &mut self.index {
            index.commit(epoch, open.start, place.at, commit.has(Commit::BASE));
        }
        let whole = !contradicted && !open.gap && !open.spoiled && open.findings.is_empty() && open.findings_omitted == 0;
        self.flush(place.index, &mut open);
        if whole && self.sound {
            self.own.epochs += 1;
            self.own.newest = Some(EpochId(epoch));
            self.own.newest_end = Some(End { file: self.name(place.index), offset: place.at + header.bytes(), identity: hash });
        } else if whole {
            self.own.epochs_behind_damage += 1;
        } else {
            self.sound = false;
        }

        self.memory_of = None;
        if !open.gap && !open.spoiled && !contradicted {
            if commit.has(Commit::BASE) {
                self.memory.keep_epoch_only();
                self.versions.keep_epoch_only();
                self.audit_difference = 0;
                self.memory_of = Some(hash);
            } else if open.memory_before == Some(commit.parent_hash) {
                self.memory_of = Some(hash);
            }
        }
        if commit.has(Commit::AUDITED) {
            self.audit(place, epoch, commit.audit);
        }

        if epoch > self.last.epoch {
            // Without the identity that its flags promise, what the next epoch must name is not
            // known.
            let certain = commit.has(Commit::REWRITTEN) == commit.identity.is_some();
            self.last = Last { epoch, hash, certain };
            self.last_in_segment = Some((epoch, hash));
        }
        self.tally.epochs += 1;
        self.completed = Some(epoch);
        place.at += header.bytes();
        Ok(Flow::On)
    }

    fn audit(&mut self, place: &Place, epoch: u64, expected: u128) {
        if self.memory_of.is_none() || !self.options.audits {
            self.tally.report.audits_unchecked += 1;
            return;
        }
        self.tally.report.audits_checked += 1;
        let found = self.memory.sum();
        let difference = expected.wrapping_sub(found);
        if difference != 0 {
            self.tally.report.audits_failed += 1;
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
            self.last.certain = false;
        }
    }

    /// Whether a fault at `place`, in `epoch` if that is known, is damage: something behind the
    /// last epoch was durable.
    fn is_damage(&mut self, place: &Place, epoch: Option<u64>) -> Result<bool, VerifyError> {
        let behind = match self.durable_behind {
            Some(behind) => behind,
            None => {
                let segments = self.segments.get(place.index..).unwrap_or_default();
                let offset = place.open.as_ref().map_or(place.at, |open| open.start);
                segment_file::durable(segments, offset, self.description)?
            }
        };
        self.durable_behind = Some(behind);
        let durable = self.durable.max(behind);
        let compacted = self.is_compacted(place);
        if self.unbroken {
            self.unbroken = durable <= self.last.epoch && !compacted;
            return Ok(!self.unbroken);
        }
        if compacted {
            return Ok(true);
        }
        // Behind damage, no epoch is accepted any more, but what is above all that was durable is
        // still a torn tail.
        Ok(durable >= self.epoch_at(place, epoch))
    }

    /// The epoch that a fault at `place` is in: one more than the newest that is known, if its
    /// number can't be read.
    fn epoch_at(&self, place: &Place, epoch: Option<u64>) -> u64 {
        let open = place.open.as_ref().map(|open| open.epoch);
        open.or(epoch).unwrap_or_else(|| self.seen.max(self.last.epoch).saturating_add(1))
    }

    /// Reports `faults`, which all have the same cause: as damage, or as the torn tail that ends
    /// the chain.
    fn judge(&mut self, place: &mut Place, epoch: Option<u64>, faults: Vec<Fault>) -> Result<Flow, VerifyError> {
        if !self.is_damage(place, epoch)? {
            return Ok(self.tear(place, epoch));
        }
        self.report_damage(place, epoch, faults);
        Ok(Flow::On)
    }

    fn report_damage(&mut self, place: &mut Place, epoch: Option<u64>, faults: Vec<Fault>) {
        self.sound = false;
        if let Some(open) = &mut place.open {
            self.flush(place.index, open);
        }
        for fault in faults {
            self.push(self.name(place.index), epoch, fault);
        }
    }

    fn tear(&mut self, place: &Place, epoch: Option<u64>) -> Flow {
        let offset = place.open.as_ref().map_or(place.at, |open| open.start);
        let segments = self.segments.get(place.index..).unwrap_or_default();
        let bytes = segments.iter().map(|segment| segment.bytes).fold(0, u64::saturating_add);
        self.own.torn_tail = Some(TornTail {
            file: self.name(place.index),
            offset,
            bytes: bytes.saturating_sub(offset),
            epoch: self.epoch_at(place, epoch),
        });
        Flow::Torn
    }

    fn name(&self, index: usize) -> String {
        self.segments.get(index).map(|segment| segment.name.clone()).unwrap_or_default()
    }

    /// Moves what was found in an epoch into the report.
    fn flush(&mut self, index: usize, open: &mut Open) {
        self.tally.report.damage_omitted += mem::take(&mut open.findings_omitted);
        for fault in mem::take(&mut open.findings) {
            self.sound = false;
            self.push(self.name(index), Some(open.epoch), fault);
        }
    }

    fn push(&mut self, file: String, epoch: Option<u64>, fault: Fault) {
        if !matches!(fault.kind, DamageKind::Index | DamageKind::AuditMismatch) {
            self.own.damaged += 1;
            // It says nothing about what is damaged.
            self.tally.report.indexes_unchecked += u64::from(self.index.take().is_some());
        }
        self.tally.damage(fault.at(file, epoch));
    }
}

/// Makes the changes that the payload of a pages frame of `open` holds.
fn changes(
    open: &mut Open,
    versions: &mut Versions<'_>,
    memory: &mut MemoryDigest,
    payload: &[u8],
    here: At,
    (description, options): (&Description, &VerifyOptions),
) -> Result<Result<Vec<Gfn>, Fault>, VerifyError> {
    let changes = match content::changes(payload, here.offset, description) {
        Ok(changes) => changes,
        Err(fault) => return Ok(Err(fault)),
    };
    let gfns = changes.iter().map(|change| change.gfn).collect();
    for change in changes {
        open.stored += 1;
        let lacks = open.gap || open.spoiled;
        if !lacks && !versions.is_of_epoch(change.gfn) {
            open.distinct += 1;
            open.leans_at.get_or_insert(change.offset);
        }
        if lacks {
            continue; // this epoch's memory is not known, nor is any after it before the next base
        }
        match versions.change(&change, here, open.memory_before.is_some())? {
            Ok(Changed::Page(page)) if options.audits => memory.set(change.gfn, &page),
            Ok(Changed::Page(_)) => {}
            Ok(Changed::Unknown) => {} // as above; in a base, the change leans on what the base lacks
            Err(fault) => return Ok(Err(fault)),
        }
    }
    Ok(Ok(gfns))
}
