//! What one epoch needs, and nothing else: from its commit frame back to a base, the lists of
//! pages; then those blocks alone that hold a page's newest version, or what that was made of.

use std::collections::{BTreeMap, HashMap};

use super::content::{self, Blocks, LIST_BYTES_MAX};
use super::damage::{Damage, DamageKind, Fault};
use super::digest::MemoryDigest;
use super::epoch::Open;
use super::frame::{Commit, HEADER_BYTES_U64, Header, Kind, SEGMENT_BYTES, SegmentHeader};
use super::listing::{Chain, Store};
use super::report::{EpochReport, Progress, VerifyError, VerifyOptions, VerifyReport};
use super::segment_file::{self, Look, Pieces};
use crate::page::{EpochId, Gfn};

/// The most blocks that a page is made of.
const BLOCKS_MAX: usize = 16;

/// Bytes between two calls of the progress callback.
const PROGRESS_BYTES: u64 = 4 << 20;

/// Where a frame is: which of the store's segments, and the offset. Older frames of a path come
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FrameAt {
    /// How many segments were looked at before its own, from the newest back; so that older ones
    /// come first, this is negative.
    order: i64,
    at: u64,
    segment: usize,
    epoch: u64,
}

/// An epoch as its frames' headers and its commit frame show it.
struct Seen {
    epoch: u64,
    frames: Vec<(u64, Kind)>,
    commit: Commit,
    commit_at: u64,
}

/// A segment up to an epoch.
struct Scan {
    /// From the newest base on, if there is one.
    epochs: Vec<Seen>,
    /// The epoch that its header names, and the identity of that.
    before: Option<(u64, u128)>,
    /// The newest epoch, and its identity.
    last: Option<(u64, u128)>,
    faults: Vec<(Option<u64>, Fault)>,
}

/// Checks `epoch` of chain `asked`, or of one that it builds on.
pub(super) fn verify(
    store: &Store,
    asked: usize,
    epoch: EpochId,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport, VerifyError> {
    let name = store.chains.get(asked).map_or("", |chain| chain.name.as_str());
    let path = store.path_to(name)?;
    // A branch has the epochs up to the one that it begins at as well.
    let begins_before =
        |number: &&usize| store.chains.get(**number).and_then(Chain::begins_at).is_none_or(|begins| begins < epoch.0);
    let number = path.iter().find(begins_before).copied().unwrap_or(asked);
    let Some(chain) = store.chains.get(number) else {
        return Err(VerifyError::NoEpoch { epoch, branch: name.to_owned() });
    };
    let mut one = One {
        store,
        options,
        progress,
        report: VerifyReport::default(),
        progress_due: 0,
        newest: None,
        covered: Covered::default(),
        blocks: BTreeMap::new(),
        changed: BTreeMap::new(),
        found: EpochReport { epoch, branch: chain.name.clone(), ..EpochReport::default() },
    };
    let Some(audit) = one.gather(number, epoch.0)? else {
        return Err(VerifyError::NoEpoch { epoch, branch: chain.name.clone() });
    };
    if one.report.is_sound() {
        one.decode(audit)?;
    }
    // What is above all that was durable is a torn tail, and no epoch.
    let first = one.report.damage.iter().filter(|damage| damage.kind != DamageKind::AuditMismatch).map(|damage| damage.epoch);
    if let (Some(Some(first)), Some((number, index))) = (first.min(), one.newest)
        && let Some(chain) = store.chains.get(number)
        && durable(chain, store.segments_of(number).0.get(index..).unwrap_or_default())? < first
    {
        return Err(VerifyError::NoEpoch { epoch, branch: chain.name.clone() });
    }
    let mut report = one.report;
    report.epochs = u64::from(report.is_sound());
    report.newest = report.is_sound().then_some(epoch);
    report.epoch = Some(one.found);
    Ok(report)
}

/// What the epoch's commit frame says of its audit, and where.
#[derive(Default)]
struct Audit {
    file: String,
    offset: u64,
    digest: Option<u128>,
}

struct One<'a, 'p> {
    store: &'a Store,
    options: &'a VerifyOptions,
    progress: &'p mut dyn FnMut(Progress),
    report: VerifyReport,
    progress_due: u64,
    /// The chain and the segment that the epoch is in.
    newest: Option<(usize, usize)>,
    covered: Covered,
    /// Blocks that hold newest versions whole: which of their pages.
    blocks: BTreeMap<FrameAt, u16>,
    /// Pages whose newest version is a change: the blocks that they are made of, newest first.
    changed: BTreeMap<u64, Vec<FrameAt>>,
    found: EpochReport,
}

impl One<'_, '_> {
    /// Goes from the epoch `wanted` of chain `number` back to its base, and notes which blocks it
    /// needs. `None` where there is no such epoch.
    fn gather(&mut self, number: usize, wanted: u64) -> Result<Option<Audit>, VerifyError> {
        let (mut number, mut limit) = (number, wanted);
        let mut audit = None;
        let mut order = 0;
        // What the segment behind names as the epoch before it, and where.
        let mut expected: Option<((u64, u128), String, u64)> = None;
        'chains: loop {
            let store = self.store;
            let Some(chain) = store.chains.get(number) else { return Ok(None) };
            let (segments, first) = store.segments_of(number);
            let mut newest_of_chain = true;
            // Whether something behind it names a later epoch.
            let mut skipped = false;
            let mut next_first: Option<u32> = None;
            // A segment in which the epoch may have been, and what can't be read there.
            let mut suspect = None;
            for (index, segment) in segments.iter().enumerate().rev() {
                if segment.stray.is_some() {
                    continue;
                }
                let pieces = Pieces::open(segment, &chain.description)?;
                if newest_of_chain {
                    let before = header(&mut Pieces::open(segment, &chain.description)?)?;
                    if before.is_some_and(|before| before.epoch >= limit) {
                        skipped = true;
                        continue;
                    }
                }
                if let Some(next) = next_first.filter(|next| u64::from(segment.numbers.last) + 1 != u64::from(*next)) {
                    self.damage(chain.segment_name(next - 1), None, missing(&segment.name));
                    return Ok(audit);
                }
                let scan = scan(pieces, segment.numbers, chain, limit)?;
                if newest_of_chain && audit.is_none() && scan.last.is_none_or(|last| last.0 != limit) {
                    if scan.faults.is_empty() {
                        // A number that no epoch has, unless a later segment has it.
                        break;
                    }
                    let knows = scan.before.is_some();
                    suspect.get_or_insert((index, segment.name.clone(), scan.faults));
                    if knows {
                        break;
                    }
                    // It does not say where it begins: the epoch may be before it.
                    continue;
                }
                newest_of_chain = false;
                self.newest.get_or_insert((number, index));
                self.report.segments += 1;
                order -= 1;
                if let Some((want, file, offset)) =
                    expected.take().filter(|(want, ..)| scan.faults.is_empty() && scan.last != Some(*want))
                {
                    let text = |(epoch, identity): (u64, u128)| format!("epoch {epoch}, {identity:032x}");
                    let found = text(scan.last.unwrap_or_default());
                    self.damage(file, None, Fault::new(DamageKind::SegmentHeader, offset, found, text(want)));
                }
                let has_faults = !scan.faults.is_empty();
                for (epoch, fault) in scan.faults {
                    self.damage(segment.name.clone(), epoch, fault);
                }
                if let (None, Some(seen)) = (&audit, scan.epochs.last()) {
                    audit = Some(Audit {
                        file: segment.name.clone(),
                        offset: seen.commit_at + HEADER_BYTES_U64 + 176,
                        digest: seen.commit.has(Commit::AUDITED).then_some(seen.commit.audit),
                    });
                }
                let mut pieces = Pieces::open(segment, &chain.description)?;
                for seen in scan.epochs.iter().rev() {
                    let place = FrameAt { order, at: 0, segment: first + index, epoch: seen.epoch };
                    self.epoch(&mut pieces, chain, &segment.name, place, seen, seen.epoch == wanted)?;
                    if seen.commit.has(Commit::BASE) {
                        break 'chains;
                    }
                }
                if has_faults {
                    // What came before can't change that.
                    return Ok(audit.or(Some(Audit::default())));
                }
                // Where nothing is before the first, a segment names epoch 0.
                expected =
                    scan.before.filter(|before| before.0 > 0).map(|before| (before, segment.name.clone(), HEADER_BYTES_U64 + 24));
                next_first = Some(segment.numbers.first).filter(|first| *first > 1);
                self.tell(segment.numbers.first);
            }
            if let Some(next) = next_first {
                self.damage(chain.segment_name(next - 1), None, missing("nothing"));
                return Ok(audit);
            }
            if newest_of_chain {
                let Some((index, name, faults)) = suspect else {
                    if skipped || chain.proven() < limit {
                        return Ok(None);
                    }
                    let file = segments.last().map_or_else(|| chain.segment_name(1), |segment| segment.name.clone());
                    let expected = format!("epochs up to {}, which were durable", chain.proven());
                    self.damage(file, Some(limit), Fault::new(DamageKind::LostEpochs, 0, expected, "fewer"));
                    return Ok(audit.or(Some(Audit::default())));
                };
                if durable(chain, segments.get(index..).unwrap_or_default())? < limit {
                    return Ok(None);
                }
                for (epoch, fault) in faults {
                    self.damage(name.clone(), epoch, fault);
                }
                return Ok(audit.or(Some(Audit::default())));
            }
            match &chain.description.branch_of {
                None => break,
                Some(of) => {
                    let place = (chain.description_name(), 0);
                    let Some(parent) = store.chain(&of.branch).filter(|_| of.epoch < limit) else {
                        let fault = Fault::new(DamageKind::Branch, 0, format!("the branch {:?}", of.branch), "none");
                        self.damage(place.0, Some(of.epoch), fault);
                        return Ok(audit);
                    };
                    (number, limit) = (parent, of.epoch);
                    expected = Some(((of.epoch, of.identity), place.0, place.1));
                }
            }
        }
        let leans = self.changed.iter().find(|(gfn, _)| !self.covered.contains(**gfn));
        if let Some((place, gfn)) = leans.and_then(|(gfn, blocks)| Some((*blocks.last()?, *gfn))) {
            let expected = format!("a version of page {gfn:#x} that the change was made from");
            self.damage_at(place, Fault::new(DamageKind::Changes, place.at + HEADER_BYTES_U64, expected, "none"));
        }
        Ok(audit)
    }

    /// Notes what `seen` has that is newest, and, where it is the epoch that is asked for, checks
    /// its state.
    fn epoch(
        &mut self,
        pieces: &mut Pieces<'_>,
        chain: &Chain,
        file: &str,
        place: FrameAt,
        seen: &Seen,
        wanted: bool,
    ) -> Result<(), VerifyError> {
        let mut gfns = Vec::new();
        let mut head = [0; LIST_BYTES_MAX];
        for (at, kind) in seen.frames.iter().rev() {
            let (offset, place) = (at + HEADER_BYTES_U64, FrameAt { at: *at, ..place });
            let Look::Frame(header) = pieces.glance(*at)? else { continue };
            match kind {
                Kind::State if wanted => {
                    let checked = pieces.payload(*at, &header)?;
                    match checked.and_then(|payload| content::check_state(payload, offset)) {
                        Ok(hash) => self.found.state = Some(format!("{hash:032x}")),
                        Err(fault) => self.damage(file.to_owned(), Some(seen.epoch), fault),
                    }
                    self.report.bytes += header.bytes();
                }
                Kind::Zeros => {
                    let runs =
                        pieces.payload(*at, &header)?.and_then(|payload| content::zero_runs(payload, offset, &chain.description));
                    match runs {
                        Ok(runs) => runs.iter().for_each(|run| self.zero(run.first.0, run.first.0 + run.count)),
                        Err(fault) => self.damage(file.to_owned(), Some(seen.epoch), fault),
                    }
                    self.report.bytes += header.bytes();
                }
                Kind::Pages => {
                    let room = usize::try_from(header.length).unwrap_or(usize::MAX).min(head.len());
                    let got = pieces.read_at(offset, head.get_mut(..room).unwrap_or_default())?;
                    let head = head.get(..got).unwrap_or_default();
                    self.report.bytes += got as u64;
                    match content::list(head, offset, &chain.description, &mut gfns) {
                        Ok(_) => {
                            let changes = head.first() == Some(&2);
                            self.pages(&gfns, changes, place);
                        }
                        Err(fault) => self.damage(file.to_owned(), Some(seen.epoch), fault),
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The pages `gfns` stand in the block at `place`. Blocks come newest first.
    fn pages(&mut self, gfns: &[Gfn], changes: bool, place: FrameAt) {
        for (index, Gfn(gfn)) in gfns.iter().enumerate().filter(|(_, gfn)| !self.covered.contains(gfn.0)).collect::<Vec<_>>() {
            if let Some(blocks) = self.changed.get_mut(gfn) {
                blocks.push(place);
                if blocks.len() > BLOCKS_MAX {
                    let offset = place.at + HEADER_BYTES_U64;
                    self.covered.add(*gfn, gfn + 1);
                    let found = format!("one more of page {gfn:#x}");
                    let fault = Fault::new(DamageKind::Changes, offset, "at most 15 changes of a page behind each other", found);
                    self.damage_at(place, fault);
                    continue;
                }
            } else if changes {
                self.changed.insert(*gfn, vec![place]);
            } else {
                *self.blocks.entry(place).or_default() |= 1 << index;
            }
            if !changes {
                self.covered.add(*gfn, gfn + 1);
            }
        }
    }

    /// The pages from `first` up to `end` are zero, as far as nothing newer says otherwise.
    fn zero(&mut self, first: u64, end: u64) {
        let leans = self.changed.range(first..end).find(|(gfn, _)| !self.covered.contains(**gfn));
        if let Some((gfn, place)) = leans.and_then(|(gfn, blocks)| Some((*gfn, *blocks.last()?))) {
            let expected = format!("a page {gfn:#x} that is there and not zero");
            self.damage_at(
                place,
                Fault::new(DamageKind::Changes, place.at + HEADER_BYTES_U64, expected, "a change of one that is not"),
            );
        }
        self.covered.add(first, end);
    }

    /// Decodes the blocks that were noted, and compares the memory that they give with the audit.
    fn decode(&mut self, audit: Audit) -> Result<(), VerifyError> {
        let mut memory = MemoryDigest::default();
        let mut reader = BlockReader::default();
        let whole = std::mem::take(&mut self.blocks);
        let changed: Vec<_> = std::mem::take(&mut self.changed).into_iter().collect();
        for (place, pages) in whole {
            let mut number = 0;
            let read = reader.whole(self, place, |gfn, page| {
                if pages & 1 << number != 0 {
                    memory.set(gfn, page);
                }
                number += 1;
            })?;
            if let Err(fault) = read {
                self.damage_at(place, fault);
            }
        }
        for pages in changed.chunks(self.store.pages_kept) {
            self.change(pages, &mut reader, &mut memory)?;
        }
        self.found.blocks = reader.blocks;
        if !self.report.is_sound() {
            return Ok(());
        }
        let found = memory.sum();
        self.found.pages = memory.pages();
        self.found.memory = Some(format!("{found:032x}"));
        match audit.digest {
            Some(expected) if self.options.audits => {
                self.report.audits_checked = 1;
                if expected != found {
                    self.report.audits_failed = 1;
                    let found = format!("{found:032x} from the chain");
                    let fault = Fault::new(DamageKind::AuditMismatch, audit.offset, format!("{expected:032x}"), found);
                    self.damage(audit.file, Some(self.found.epoch.0), fault);
                }
            }
            Some(_) => self.report.audits_unchecked = 1,
            None => {}
        }
        Ok(())
    }

    /// Makes `pages`, each with the blocks that it is made of, newest first.
    fn change(
        &mut self,
        pages: &[(u64, Vec<FrameAt>)],
        reader: &mut BlockReader,
        memory: &mut MemoryDigest,
    ) -> Result<(), VerifyError> {
        let mut blocks: BTreeMap<FrameAt, Vec<(u64, bool)>> = BTreeMap::new();
        for (gfn, places) in pages {
            let whole = places.len() - 1;
            for (number, place) in places.iter().enumerate() {
                blocks.entry(*place).or_default().push((*gfn, number == whole));
            }
        }
        let mut made: HashMap<u64, Vec<u8>> = HashMap::new();
        for (place, needed) in blocks {
            let read = if needed.iter().any(|(_, whole)| *whole) {
                reader.whole(self, place, |gfn, page| {
                    if needed.contains(&(gfn.0, true)) {
                        made.insert(gfn.0, page.to_vec());
                    }
                })?
            } else {
                reader.changes(self, place, &needed, &mut made)?
            };
            if let Err(fault) = read {
                self.damage_at(place, fault);
                return Ok(());
            }
        }
        made.iter().for_each(|(gfn, page)| memory.set(Gfn(*gfn), page));
        Ok(())
    }

    fn tell(&mut self, segment: u32) {
        self.progress_due = self.report.bytes.saturating_add(PROGRESS_BYTES);
        let (bytes, epoch) = (self.report.bytes, self.found.epoch);
        (self.progress)(Progress { segment, bytes, bytes_total: 0, epoch, epochs: 0 });
    }

    fn damage_at(&mut self, place: FrameAt, fault: Fault) {
        let file = self.store.segments.get(place.segment).map(|segment| segment.name.clone()).unwrap_or_default();
        self.damage(file, Some(place.epoch), fault);
    }

    fn damage(&mut self, file: String, epoch: Option<u64>, fault: Fault) {
        if self.report.damage.len() < self.options.damage_max {
            let damage: Damage = fault.at(file, epoch);
            self.report.damage.push(damage);
        } else {
            self.report.damage_omitted += 1;
        }
    }
}

/// The newest epoch that is known to have been durable, by the chain's mark and indexes and by what
/// is in `segments`. A compacted segment, which comes first if it is one of them, was durable as a
/// whole.
fn durable(chain: &Chain, segments: &[super::listing::Segment]) -> Result<u64, VerifyError> {
    if segments.first().is_some_and(|segment| segment.numbers.is_compacted()) {
        return Ok(u64::MAX);
    }
    Ok(chain.may_be_durable().max(segment_file::durable(segments, 0, &chain.description)?))
}

fn missing(found: &str) -> Fault {
    Fault::new(DamageKind::MissingSegment, 0, "a segment of this number", format!("{found} comes before"))
}

/// The payload of the segment's header, where it is sound.
fn header(pieces: &mut Pieces<'_>) -> Result<Option<SegmentHeader>, VerifyError> {
    let Look::Frame(header) = pieces.glance(0)? else { return Ok(None) };
    if header.kind != Kind::Segment {
        return Ok(None);
    }
    Ok(pieces.payload(0, &header)?.ok().map(SegmentHeader::parse))
}

/// Reads the headers of a segment's frames, up to the commit frame of the epoch `limit`, and its
/// commit frames.
fn scan(mut pieces: Pieces<'_>, numbers: super::names::Numbers, chain: &Chain, limit: u64) -> Result<Scan, VerifyError> {
    let mut scan = Scan { epochs: Vec::new(), before: None, last: None, faults: Vec::new() };
    let mut open: Option<(Open, Vec<(u64, Kind)>)> = None;
    let mut at = 0;
    match header(&mut pieces)? {
        Some(found) => {
            scan.before = Some((found.epoch, found.hash));
            scan.last = scan.before;
            let is_ours = (found.version, found.number, found.chain, found.page_size, found.more)
                == (chain.description.format, numbers.first, chain.description.chain, 4096, numbers.last - numbers.first);
            if !is_ours {
                let fault =
                    Fault::new(DamageKind::SegmentHeader, HEADER_BYTES_U64, "the header of this segment", format!("{found:?}"));
                scan.faults.push((None, fault));
                // Nor does it say what comes before this segment.
                (scan.before, scan.last) = (None, None);
            }
            at = HEADER_BYTES_U64 + u64::from(SEGMENT_BYTES);
        }
        None => {
            scan.faults.push((None, Fault::new(DamageKind::SegmentHeader, 0, "a segment header", "none that is sound")));
        }
    }
    loop {
        let newest = scan.last.map_or(0, |last| last.0);
        let epoch = open.as_ref().map_or(newest.saturating_add(1), |(open, _)| open.epoch);
        let frame = match pieces.glance(at)? {
            Look::Frame(frame) => frame,
            Look::End => {
                if open.is_some() {
                    let fault =
                        Fault::new(DamageKind::Truncated, at, format!("more frames of epoch {epoch}"), "the end of the file");
                    scan.faults.push((Some(epoch), fault));
                }
                return Ok(scan);
            }
            Look::Fault(fault) => {
                scan.faults.push((Some(epoch), fault));
                return Ok(scan);
            }
        };
        let bytes = frame.bytes();
        match frame.kind {
            Kind::Segment if at == 0 => {}
            kind if kind.is_between_epochs() && kind != Kind::Segment && open.is_none() => {}
            kind if kind.is_between_epochs() => {
                let fault =
                    Fault::new(DamageKind::Kind, at + 4, format!("a frame of epoch {epoch}"), format!("{:?}", frame.kind));
                scan.faults.push((Some(epoch), fault));
                return Ok(scan);
            }
            _ => {
                let (open_now, frames) = open.get_or_insert_with(|| (Open::new(frame.epoch, at, false, None), Vec::new()));
                let next = open_now.next.unwrap_or(u32::MAX);
                let follows = (frame.epoch, frame.sequence) == (open_now.epoch, next) && frame.epoch > newest;
                if !follows {
                    let expected = format!("frame {next} of epoch {epoch}");
                    let found = format!("frame {} of epoch {}", frame.sequence, frame.epoch);
                    scan.faults.push((Some(open_now.epoch), Fault::new(DamageKind::Sequence, at + 8, expected, found)));
                    return Ok(scan);
                }
                if frame.epoch > limit {
                    return Ok(scan);
                }
                if frame.kind != Kind::Commit {
                    open_now.count(&frame);
                    frames.push((at, frame.kind));
                } else if let Some((open, frames)) = open.take() {
                    commit(&mut scan, &mut pieces, at, &frame, open, frames)?;
                    if frame.epoch >= limit {
                        return Ok(scan);
                    }
                }
            }
        }
        at += bytes;
    }
}

/// Reads the commit frame at `at`, which ends the epoch `open` with its `frames`.
fn commit(
    scan: &mut Scan,
    pieces: &mut Pieces<'_>,
    at: u64,
    frame: &Header,
    mut open: Open,
    frames: Vec<(u64, Kind)>,
) -> Result<(), VerifyError> {
    let epoch = open.epoch;
    // How many pages there are shows only where blocks are decoded.
    open.spoiled = true;
    let (commit, identity) = match pieces.payload(at, frame)? {
        Ok(payload) => {
            let commit = Commit::parse(payload);
            let identity = commit.identity(frame, payload);
            (commit, identity)
        }
        Err(fault) => {
            scan.faults.push((Some(epoch), fault));
            return Ok(());
        }
    };
    let mut faults = open.contradictions(at, frame, &commit, scan.last);
    faults.extend(open.breaches(at, &commit));
    if commit.has(Commit::BASE) {
        // What is wrong before it is nothing to what leans on it alone.
        scan.epochs.clear();
        scan.faults.clear();
    }
    scan.faults.extend(faults.into_iter().map(|fault| (Some(epoch), fault)));
    scan.last = Some((epoch, identity));
    scan.epochs.push(Seen { epoch, frames, commit, commit_at: at });
    Ok(())
}

/// Reads blocks.
#[derive(Default)]
struct BlockReader {
    decoder: Blocks,
    blocks: u64,
}

impl BlockReader {
    /// Gives each page of the block at `place`, which has whole pages, to `take`.
    fn whole(
        &mut self,
        one: &mut One<'_, '_>,
        place: FrameAt,
        mut take: impl FnMut(Gfn, &[u8]),
    ) -> Result<Result<(), Fault>, VerifyError> {
        let decoder = &mut self.decoder;
        self.blocks += 1;
        one.payload(place, |payload, offset, chain| {
            decoder.decode(payload, offset, &chain.description).map(|pages| pages.for_each(|(gfn, page)| take(gfn, page)))
        })
    }

    /// Makes the changes of `needed` pages that stand in the block at `place`.
    fn changes(
        &mut self,
        one: &mut One<'_, '_>,
        place: FrameAt,
        needed: &[(u64, bool)],
        made: &mut HashMap<u64, Vec<u8>>,
    ) -> Result<Result<(), Fault>, VerifyError> {
        self.blocks += 1;
        one.payload(place, |payload, offset, chain| {
            for change in content::changes(payload, offset, &chain.description)? {
                if let Some(page) = made.get_mut(&change.gfn.0).filter(|_| needed.contains(&(change.gfn.0, false))) {
                    change.apply(page)?;
                }
            }
            Ok(())
        })
    }
}

impl One<'_, '_> {
    /// Gives the payload of the frame at `place` to `read`.
    fn payload(
        &mut self,
        place: FrameAt,
        read: impl FnOnce(&[u8], u64, &Chain) -> Result<(), Fault>,
    ) -> Result<Result<(), Fault>, VerifyError> {
        let store = self.store;
        let Some((segment, chain)) = store
            .segments
            .get(place.segment)
            .and_then(|segment| Some((segment, store.chains.iter().find(|chain| chain.segments.contains(&place.segment))?)))
        else {
            return Ok(Ok(()));
        };
        let mut pieces = Pieces::open(segment, &chain.description)?;
        let Look::Frame(header) = pieces.glance(place.at)? else {
            return Ok(Err(Fault::new(DamageKind::Magic, place.at, "the frame that was there", "none")));
        };
        self.report.bytes += header.bytes();
        let read = pieces.payload_only(place.at, &header)?.and_then(|payload| read(payload, place.at + HEADER_BYTES_U64, chain));
        if self.report.bytes >= self.progress_due {
            self.tell(segment.numbers.first);
        }
        Ok(read)
    }
}

/// Pages that are accounted for: disjoint, not adjoining ranges, first and end.
#[derive(Debug, Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    fn contains(&self, gfn: u64) -> bool {
        self.0.range(..=gfn).next_back().is_some_and(|(_, end)| gfn < *end)
    }

    fn add(&mut self, mut first: u64, mut end: u64) {
        if let Some((before, before_end)) = self.0.range(..=first).next_back().map(|(first, end)| (*first, *end))
            && before_end >= first
        {
            (first, end) = (before, end.max(before_end));
        }
        while let Some((within, within_end)) = self.0.range(first..=end).next().map(|(first, end)| (*first, *end)) {
            self.0.remove(&within);
            end = end.max(within_end);
        }
        self.0.insert(first, end);
    }
}
