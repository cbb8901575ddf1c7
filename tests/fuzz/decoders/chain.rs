//! Whole chains: what the reader, `verify`, a restore and a writer make of the same files must
//! agree.
//!
//! An input is which segments stand for two numbers (bits 2 to 5 of 1 byte) and what the mark says
//! (the highest two), the number of segments (1 byte), their lengths (4 bytes each) and their
//! bytes. Too short an input has empty segments.

use std::collections::BTreeMap;
use std::path::Path;

use slackwater::format::{
    BlockEncoder, ChainId, Commit, Compression, Description, EpochWriter, FORMAT_VERSION, Line, MemoryDigest, is_zero,
};
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageBytes, PageRun};
use slackwater::restore::{PageTarget, Plan, RestoreError, TargetError};
use slackwater::store::verify::{VerifyOptions, VerifyReport, verify};
use slackwater::store::{Chain, Epoch, SegmentNumbers, StoreError, Writer, WriterOptions};
use twox_hash::XxHash3_64;

use super::frames::{
    CLOSE, COMMIT, COMMIT_BYTES, DURABLE, Frame, PAGES, Piece, SEGMENT_HEADER, STATE, ZEROS, block, cut, join, list, put, u32_at,
};
use super::repair::{Repair, repair};
use super::{Bytes, Files, Random, fixtures, scratch};

/// The chain of every input.
pub(super) const CHAIN: ChainId = ChainId(*b"slackwater fuzz.");

/// Its memory: what the chains under `checkpoints/` use, and a run far away.
const MEMORY: [PageRun; 2] = [PageRun { first: Gfn(0), count: 2048 }, PageRun { first: Gfn(1 << 39), count: 64 }];

const SEGMENTS_MAX: usize = 4;

/// The first and the last number of each segment.
fn numbers(wide: u8, segments: usize) -> Vec<(u32, u32)> {
    let mut next = 1;
    let one = |at: usize| {
        let (first, last) = (next, next + u32::from(wide >> at & 1));
        next = last + 1;
        (first, last)
    };
    (0..segments.min(SEGMENTS_MAX)).map(one).collect()
}

/// A chain's segments.
#[derive(Clone, Debug)]
struct Input {
    /// One bit a segment, set where it stands for two numbers.
    wide: u8,
    /// What the mark says: that nothing was durable, the last epoch of the segments, a later one,
    /// or nothing, for there is none.
    mark: u8,
    segments: Vec<Vec<u8>>,
}

impl Input {
    fn parse(data: &[u8]) -> Self {
        let byte = |at: usize| data.get(at).copied().unwrap_or_default();
        let count = usize::from(byte(1)).min(SEGMENTS_MAX);
        let mut rest = data.get(2 + 4 * count..).unwrap_or_default();
        let segments = (0..count).map(|number| {
            let length = u32_at(data, 2 + 4 * number) as usize;
            let (segment, behind) = rest.split_at(length.min(rest.len()));
            rest = behind;
            segment.to_vec()
        });
        Self { wide: byte(0) >> 2 & 15, mark: byte(0) >> 6, segments: segments.collect() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.wide << 2 | self.mark << 6, self.segments.len().to_le_bytes()[0]];
        bytes.extend(self.segments.iter().flat_map(|segment| segment.len().to_le_bytes()[..4].to_vec()));
        bytes.extend(self.segments.concat());
        bytes
    }

    fn files(&self) -> Files {
        let description = Description {
            format: FORMAT_VERSION,
            chain: CHAIN,
            page_size: PAGE_SIZE_U64,
            created_unix_ns: 0,
            created_by: "fuzz".to_owned(),
            memory: MEMORY.to_vec(),
            device_runs: 0,
            vcpus: 1,
            machine: serde_json::Value::Null,
            branch_of: None,
        };
        let numbers = numbers(self.wide, self.segments.len()).into_iter().map(|(first, last)| SegmentNumbers { first, last });
        let segments = numbers.zip(&self.segments).map(|(numbers, bytes)| (numbers.file_name(), bytes.clone()));
        let mark = self.mark().map(|mark| ("durable".to_owned(), mark));
        segments.chain(mark).chain([("description.json".to_owned(), description.encode().unwrap())]).collect()
    }

    /// The bytes of the mark.
    fn mark(&self) -> Option<Vec<u8>> {
        if self.mark == 3 {
            return None;
        }
        let pieces = self.pieces();
        let mut frames = pieces.iter().flatten().filter_map(|piece| match piece {
            Piece::Frame(frame) if frame.kind() == COMMIT => Some((frame.epoch(), frame.identity())),
            _ => None,
        });
        let last = frames.next_back();
        let (epoch, identity) = match self.mark {
            0 => (0, 0),
            1 => last.unwrap_or_default(),
            _ => last.map_or((1, 1), |(epoch, identity)| (epoch.saturating_add(1), identity)),
        };
        let mut slot = vec![0xD7, 0x53, 0x57, 0x44, 1, 0, 0, 0];
        slot.extend(CHAIN.0);
        slot.extend(epoch.to_le_bytes());
        slot.extend(identity.to_le_bytes());
        slot.extend(XxHash3_64::oneshot(&slot).to_le_bytes());
        slot.resize(4096, 0);
        Some(slot.repeat(3))
    }

    fn pieces(&self) -> Vec<Vec<Piece>> {
        self.segments.iter().map(|segment| cut(segment)).collect()
    }

    fn repaired(wide: u8, mark: u8, mut segments: Vec<Vec<Piece>>, how: Repair) -> Self {
        let numbers = numbers(wide, segments.len());
        // A compacted segment ends in a close.
        let is = |piece: &Piece, kind: u8| matches!(piece, Piece::Frame(frame) if frame.kind() == kind);
        let mut any = false;
        for ((first, last), segment) in numbers.iter().zip(&mut segments) {
            any |= segment.iter().any(|piece| is(piece, COMMIT));
            if how.order && any && first < last && !segment.last().is_some_and(|piece| is(piece, CLOSE)) {
                segment.push(Piece::Frame(Frame::new(CLOSE, 1, vec![0; 24])));
            }
        }
        repair(&mut segments, &numbers, CHAIN, how);
        Self { wide, mark, segments: segments.iter().map(|pieces| join(pieces)).collect() }
    }
}

/// What a restore gives: pages that lie in memory, once each, and not zero.
#[derive(Debug, Default)]
pub(super) struct Memory(pub(super) BTreeMap<Gfn, u128>);

impl PageTarget for Memory {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        assert!(MEMORY.iter().any(|run| run.contains(gfn)), "{gfn} is not in memory");
        assert!(!is_zero(page), "{gfn} is zero");
        assert!(self.0.insert(gfn, MemoryDigest::of_page(gfn, page).0).is_none(), "{gfn} came twice");
        Ok(())
    }
}

impl Memory {
    pub(super) const RUNS: [PageRun; 2] = MEMORY;

    pub(super) fn digest(&self) -> MemoryDigest {
        MemoryDigest(self.0.values().fold(0, |sum, term| sum.wrapping_add(*term)))
    }
}

/// Restores an epoch in full; `None` where it is damaged.
pub(super) fn restore(chain: &Chain, epoch: EpochId) -> Option<Memory> {
    let plan = match Plan::new(chain, epoch) {
        Ok(plan) => plan,
        Err(error) => return refused(epoch, &error),
    };
    let mut memory = Memory::default();
    let filled = match plan.fill(&mut memory, &mut |done, total| assert!(done <= total)) {
        Ok(filled) => filled,
        Err(error) => return refused(epoch, &error),
    };
    assert_eq!(filled.pages, memory.0.len() as u64, "epoch {epoch}");
    if epoch == chain.newest() {
        let digest = plan.digest().expect("what filled once does so again");
        assert_eq!(digest.memory, memory.digest(), "epoch {epoch}");
    }
    assert_eq!(chain.state(epoch).expect("the plan has read it"), plan.state(), "epoch {epoch}");
    Some(memory)
}

/// A chain gives damage as its only reason.
fn refused(epoch: EpochId, error: &RestoreError) -> Option<Memory> {
    assert!(error.is_damage(), "epoch {epoch}: {error:?}");
    None
}

fn verified(dir: &Path) -> Result<VerifyReport, slackwater::store::verify::VerifyError> {
    let report = verify(dir, &VerifyOptions::default(), &mut |_| {});
    // The number that is listed bounds memory and changes nothing else.
    let brief = verify(dir, &VerifyOptions { damage_max: 1, audits: false, ..VerifyOptions::default() }, &mut |_| {});
    if let (Ok(report), Ok(brief)) = (&report, &brief) {
        assert_eq!((report.epochs, &report.torn_tail), (brief.epochs, &brief.torn_tail));
        assert!(brief.is_sound() || !report.is_sound());
    } else {
        assert_eq!(report.is_ok(), brief.is_ok());
    }
    report
}

/// What each epoch restores to, or `None`.
type Restored = BTreeMap<EpochId, Option<MemoryDigest>>;

pub(super) fn check(data: &[u8]) {
    let input = Input::parse(data);
    let files = input.files();
    scratch::with(&files, |dir| {
        let report = verified(dir).expect("the description is sound");
        let chain = match Chain::open(dir) {
            Ok(chain) => chain,
            Err(StoreError::Version { .. }) => {
                assert!(!report.is_sound() || report.torn_tail.is_some());
                return;
            }
            Err(error) => panic!("{error:?}"),
        };
        let restored = read(&chain);
        compare(&chain, &report, &restored);
        write(dir, &files, &chain, &report, &restored);
    });
}

fn epochs(chain: &Chain) -> Vec<Epoch> {
    chain.epochs().collect::<Result<_, _>>().expect("what was walked can be read")
}

/// What the reader makes of it.
fn read(chain: &Chain) -> Restored {
    let restored: Restored = epochs(chain)
        .iter()
        .map(|epoch| (epoch.commit.epoch, restore(chain, epoch.commit.epoch).map(|memory| memory.digest())))
        .collect();
    assert_eq!(chain.epochs_len().expect("nothing is read for it"), restored.len() as u64);
    restored
}

/// The reader against `verify`.
fn compare(chain: &Chain, report: &VerifyReport, restored: &Restored) {
    let epochs = epochs(chain);
    assert!(chain.damage().is_empty() || !report.is_sound(), "verify found no damage: {:#?}", chain.damage());
    // Whatever is whole before the first damage restores.
    let newest = report.newest.unwrap_or(EpochId::NONE);
    let whole: Vec<_> = epochs.iter().filter(|epoch| epoch.commit.epoch <= newest).collect();
    assert_eq!(whole.len() as u64, report.epochs, "{report:#?}");
    for epoch in &whole {
        let number = epoch.commit.epoch;
        let memory = restored[&number].unwrap_or_else(|| panic!("epoch {number} does not restore: {report:#?}"));
        if let Some(audit) = epoch.commit.audit.filter(|_| report.is_sound()) {
            assert_eq!(memory, audit, "epoch {number} against its audit");
        }
    }
    if report.is_sound() {
        assert_eq!(epochs.len(), whole.len(), "{report:#?}");
        let tail = chain.tail().map(|tail| {
            let file = tail.file.file_name().and_then(|name| name.to_str()).expect("a segment's name");
            (file.to_owned(), tail.offset, tail.bytes)
        });
        assert_eq!(tail, report.torn_tail.as_ref().map(|tail| (tail.file.clone(), tail.offset, tail.bytes)), "the torn tail");
    }
}

/// A writer goes on, and changes nothing of what was there; or refuses, and changes nothing at all.
fn write(dir: &Path, files: &Files, chain: &Chain, report: &VerifyReport, restored: &Restored) {
    let options = WriterOptions { segment_bytes: 4096, preallocate_bytes: 0, background: false, ..WriterOptions::default() };
    let (mut writer, recovered) = match Writer::open(dir, options) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(error.is_damage() && !chain.damage().is_empty(), "{error:?}");
            let mut left = scratch::read(dir);
            left.retain(|name, _| !["lock", "maintenance"].contains(&name.as_str()));
            assert!(left == *files, "a writer that refused changed files");
            return;
        }
    };
    assert!(chain.damage().is_empty());
    assert_eq!((recovered.tip, recovered.epochs), (chain.newest(), restored.len()));
    assert_eq!(recovered.torn.as_ref(), chain.tail());
    let epoch = recovered.tip.next();
    if epoch == recovered.tip {
        return;
    }
    let (gfn, page) = (Gfn(7), [0x5A; PAGE_SIZE]);
    let mut frames = Vec::new();
    let mut new = EpochWriter::new(CHAIN, epoch);
    new.pages(&mut frames, &mut BlockEncoder::new(Compression::default()), &[(gfn, &page)]).unwrap();
    new.state(&mut frames, &[]).unwrap();
    let commit = Commit { epoch, totals: new.totals(), captured_pages: 1, ..Commit::default() };
    let complete = Line::behind(CHAIN, writer.head()).complete(commit);
    writer.complete(&frames, &complete).unwrap();
    writer.close(true).unwrap();
    drop(writer);

    let chain = Chain::open(dir).unwrap();
    assert!(chain.damage().is_empty() && chain.tail().is_none() && chain.is_closed(), "{chain:#?}");
    assert_eq!((chain.newest(), chain.durable()), (epoch, epoch));
    let after = verify(dir, &VerifyOptions::default(), &mut |_| {}).unwrap();
    assert!(after.torn_tail.is_none(), "{after:#?}");
    if report.is_sound() {
        assert!(after.is_sound() && after.epochs == report.epochs + 1, "{after:#?}");
    }
    for (before, digest) in restored {
        assert_eq!(restore(&chain, *before).map(|memory| memory.digest()), *digest, "epoch {before} after a writer went on");
    }
    let memory = restore(&chain, epoch);
    if restored.values().all(Option::is_some) {
        assert_eq!(memory.unwrap().0.get(&gfn), Some(&MemoryDigest::of_page(gfn, &page).0));
    }
}

/// The files of a small chain that is sound: `epochs` of them in each segment.
pub(super) fn sound(random: &mut Random, epochs: &[usize]) -> Files {
    let mut segments = Vec::new();
    for count in epochs {
        let mut segment = vec![segment_header()];
        for number in 0..*count {
            let base = number == 5;
            let mut frames: Vec<_> = (0..1 + random.below(3)).map(|_| content(random)).filter(|piece| !is_state(piece)).collect();
            // A base changes nothing that was there before it.
            frames
                .retain(|piece| !base || !matches!(piece, Piece::Frame(frame) if frame.kind() == PAGES && frame.payload[0] == 2));
            frames.push(Piece::Frame(Frame::new(STATE, 1, super::state::payload(random))));
            let mut commit = Frame::new(COMMIT, 1, vec![0; COMMIT_BYTES]);
            commit.payload[168] = 1;
            commit.payload[169] = u8::from(base);
            if number > 0 && random.one_in(3) {
                segment.push(Piece::Frame(Frame::new(DURABLE, 1, vec![0; 24])));
            }
            segment.extend(frames);
            segment.push(Piece::Frame(commit));
        }
        segment.push(Piece::Frame(Frame::new(CLOSE, 1, vec![0; 24])));
        segments.push(segment);
    }
    Input::repaired(0, 0, segments, Repair { order: true, content: true }).files()
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    let input = Input::parse(data);
    let (mut wide, mut mark, mut segments) = (input.wide, input.mark, input.pieces());
    if segments.is_empty() {
        segments.push(vec![segment_header()]);
    }
    for _ in 0..=random.below(4) {
        step(&mut segments, random, bytes);
    }
    if random.one_in(16) {
        wide ^= 1 << random.below(SEGMENTS_MAX);
    }
    if random.one_in(8) {
        mark = random.below(4).to_le_bytes()[0];
    }
    let how = Repair { order: !random.one_in(6), content: !random.one_in(6) };
    let mut changed = if random.one_in(16) {
        Input { wide, mark, segments: segments.iter().map(|pieces| join(pieces)).collect() }
    } else {
        Input::repaired(wide, mark, segments, how)
    };
    if random.one_in(12) && !changed.segments.is_empty() {
        let index = random.below(changed.segments.len());
        let segment = &mut changed.segments[index];
        match random.below(3) {
            0 => segment.truncate(random.below(segment.len() + 1)),
            1 => bytes(segment),
            _ => {
                let from = random.below(segment.len());
                let to = (from + random.below(300)).min(segment.len());
                segment[from..to].fill(0);
            }
        }
    }
    *data = changed.bytes();
}

fn segment_header() -> Piece {
    Piece::Frame(Frame::new(SEGMENT_HEADER, 0, Vec::new()))
}

/// One change of a chain's structure.
fn step(segments: &mut Vec<Vec<Piece>>, random: &mut Random, bytes: Bytes<'_>) {
    let index = random.below(segments.len());
    let at = random.below(segments[index].len());
    let to = random.below(segments[index].len() + 1);
    let is_empty = segments[index].is_empty();
    match random.below(16) {
        0..=2 if !is_empty => match &mut segments[index][at] {
            Piece::Frame(frame) => bytes(&mut frame.payload),
            Piece::Other(other) => bytes(other),
        },
        3 if !is_empty => {
            if let Some(frame) = segments[index][at].frame() {
                match random.below(3) {
                    0 => frame.header[4] = random.below(8).to_le_bytes()[0],
                    1 => frame.set_epoch(random.number()),
                    _ => frame.set_sequence(u32_at(&random.number().to_le_bytes(), 0)),
                }
            }
        }
        4 if !is_empty => drop(segments[index].remove(at)),
        5 if !is_empty => {
            let piece = segments[index][at].clone();
            segments[index].insert(to, piece);
        }
        6 if !is_empty => {
            let other = to.min(segments[index].len() - 1);
            segments[index].swap(at, other);
        }
        7 if !is_empty && segments.len() < SEGMENTS_MAX => {
            let mut behind = segments[index].split_off(at);
            if !random.one_in(8) {
                behind.insert(0, segment_header());
            }
            segments.insert(index + 1, behind);
        }
        8 if segments.len() > 1 && random.one_in(3) => drop(segments.remove(index)),
        9 if !is_empty => commit(segments[index][at].frame(), random),
        10 if !is_empty => recode(segments[index][at].frame(), random),
        11 | 12 => {
            let mut epoch: Vec<_> = (0..random.below(4)).map(|_| content(random)).collect();
            epoch.push(Piece::Frame(Frame::new(STATE, 1, vec![0; 8])));
            let mut end = Frame::new(COMMIT, 1, vec![0; COMMIT_BYTES]);
            end.payload[168] = 1;
            commit(Some(&mut end), random);
            epoch.push(Piece::Frame(end));
            segments[index].splice(to..to, epoch);
        }
        13 => {
            let kind = if random.one_in(2) { CLOSE } else { DURABLE };
            segments[index].insert(to, Piece::Frame(Frame::new(kind, 1, vec![0; 24])));
        }
        _ => segments[index].insert(to, content(random)),
    }
}

/// Changes what a commit frame says of itself.
fn commit(frame: Option<&mut Frame>, random: &mut Random) {
    let Some(frame) = frame.filter(|frame| frame.kind() == COMMIT && frame.payload.len() >= COMMIT_BYTES) else { return };
    match random.below(4) {
        0 => frame.payload[168] = random.below(6).to_le_bytes()[0],
        1 => put(&mut frame.payload, [160, 192][random.below(2)], &random.number().to_le_bytes()),
        2 => put(&mut frame.payload, 8 * random.below(26), &random.number().to_le_bytes()),
        _ => frame.payload[169] = random.below(16).to_le_bytes()[0],
    }
}

/// A page that compresses well.
fn page(random: &mut Random) -> Box<PageBytes> {
    let mut page = Box::new([random.below(3).to_le_bytes()[0]; PAGE_SIZE]);
    for _ in 0..random.below(4) {
        page[random.below(PAGE_SIZE)] = random.next().to_le_bytes()[0];
    }
    page
}

fn gfns(random: &mut Random) -> Vec<u64> {
    let first = match random.below(8) {
        0 => 1 << 39,
        1 => 2040,
        _ => random.below(12) as u64,
    };
    let mut gfns = vec![first];
    while gfns.len() < 16 && !random.one_in(3) {
        gfns.push(gfns[gfns.len() - 1] + 1 + random.below(3) as u64);
    }
    gfns
}

/// A frame with content that may well be sound.
fn content(random: &mut Random) -> Piece {
    let gfns = gfns(random);
    let encode = |random: &mut Random, compression| {
        let pages: Vec<_> = gfns.iter().map(|gfn| (Gfn(*gfn), page(random))).collect();
        let pages: Vec<_> = pages.iter().map(|(gfn, page)| (*gfn, &**page)).collect();
        let mut payload = Vec::new();
        BlockEncoder::new(compression).encode(&mut payload, &pages).unwrap();
        Piece::Frame(Frame::new(PAGES, 1, payload))
    };
    match random.below(16) {
        0 if gfns.len() < 3 => encode(random, Compression::None),
        0..=6 => encode(random, Compression::Zstd { level: 1 }),
        7..=11 => {
            let mut data = Vec::new();
            for _ in &gfns {
                let mut bits = [0; 64];
                (0..=random.below(3)).for_each(|_| bits[random.below(64)] |= 1 << random.below(8));
                let words = bits.iter().map(|bits: &u8| bits.count_ones()).sum::<u32>();
                data.extend([0; 8]);
                data.extend(bits);
                data.extend((0..words).flat_map(|_| (random.next() & 0x0101).to_le_bytes()));
            }
            Piece::Frame(Frame::new(PAGES, 1, block(2, &gfns, &data)))
        }
        12..=14 => {
            let (mut payload, mut first) = (Vec::new(), gfns[0]);
            for _ in 0..=random.below(3) {
                let count = 1 + random.below(6) as u64;
                payload.extend([first.to_le_bytes(), count.to_le_bytes()].concat());
                first += count + random.below(3) as u64;
            }
            Piece::Frame(Frame::new(ZEROS, 1, payload))
        }
        _ => Piece::Frame(Frame::new(STATE, 1, super::state::payload(random))),
    }
}

/// Stores a block's pages in another way, or one of its pages more or less.
fn recode(frame: Option<&mut Frame>, random: &mut Random) {
    let Some(frame) = frame.filter(|frame| frame.kind() == PAGES) else { return };
    let Some((list, at)) = list(&frame.payload) else { return };
    let mut gfns: Vec<u64> = list.gfns().iter().map(|gfn| gfn.0).collect();
    let data = frame.payload[at..].to_vec();
    match random.below(4) {
        0 => drop(gfns.pop()),
        1 => gfns.push(gfns[gfns.len() - 1] + 1 + random.below(2) as u64),
        2 => gfns.iter_mut().for_each(|gfn| *gfn += 1),
        _ => {
            if let Piece::Frame(other) = content(random) {
                *frame = other;
            }
            return;
        }
    }
    frame.payload = block(frame.payload[0], &gfns, &data);
}

pub(super) fn seeds(checkpoints: &Path) -> Vec<Vec<u8>> {
    let whole = Repair { order: true, content: true };
    let mut seeds = Vec::new();
    for files in fixtures(checkpoints) {
        let segments: Vec<_> =
            files.iter().filter(|(name, _)| name.starts_with("segment-")).map(|(_, bytes)| bytes.clone()).collect();
        let input = Input { wide: 0, mark: 1, segments };
        // Frames of other chains become this chain's, and what is damaged stays so in all but its
        // checksums' way.
        for how in [Repair { order: false, content: false }, whole] {
            let mut segments = input.pieces();
            for frame in segments.iter_mut().flatten().filter_map(Piece::frame) {
                slim(frame);
            }
            seeds.push(Input::repaired(0, 1, segments, how).bytes());
        }
    }
    // Small ones, which mutations reach deeper into.
    for seed in 0..24 {
        let random = &mut Random::new(seed);
        let mut segments = vec![vec![segment_header()]];
        for _ in 0..=seed % 6 {
            let end = segments.len() - 1;
            let mut epoch: Vec<_> = (0..random.below(4)).map(|_| content(random)).filter(|piece| !is_state(piece)).collect();
            epoch.push(Piece::Frame(Frame::new(STATE, 1, super::state::payload(random))));
            let mut commit = Frame::new(COMMIT, 1, vec![0; COMMIT_BYTES]);
            commit.payload[168] = 1;
            commit.payload[169] = if segments.len() + segments[0].len() == 2 { 5 } else { 4 + 8 * u8::from(random.one_in(3)) };
            epoch.push(Piece::Frame(commit));
            segments[end].extend(epoch);
            if segments.len() < 3 && random.one_in(3) {
                segments.push(vec![segment_header()]);
            }
        }
        let wide = seed.to_le_bytes()[0] >> 2 & 15;
        seeds.push(Input::repaired(wide, seed.to_le_bytes()[0] % 3, segments, whole).bytes());
    }
    seeds.sort();
    seeds.dedup();
    seeds
}

fn is_state(piece: &Piece) -> bool {
    matches!(piece, Piece::Frame(frame) if frame.kind() == STATE)
}

/// Raw pages and whole machines make inputs large and mutations aimless: the pages become some that
/// compress, the state a record.
fn slim(frame: &mut Frame) {
    if frame.kind() == STATE && frame.payload.len() > 2000 {
        frame.payload = super::state::payload(&mut Random::new(frame.epoch()));
    }
    if frame.kind() != PAGES || frame.payload.len() < 2000 {
        return;
    }
    let Some((list, _)) = list(&frame.payload) else { return };
    let pages: Vec<_> = list.gfns().iter().map(|gfn| (*gfn, page(&mut Random::new(gfn.0)))).collect();
    let pages: Vec<_> = pages.iter().map(|(gfn, page)| (*gfn, &**page)).collect();
    frame.payload.clear();
    BlockEncoder::new(Compression::Zstd { level: 1 }).encode(&mut frame.payload, &pages).unwrap();
}
