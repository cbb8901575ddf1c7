//! `verify` against chains made by a second writer, which is written from `docs/format.md` alone
//! too: byte by byte, and able to break every promise on purpose.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod branches;
mod changes;
mod clean;
mod compacted;
mod damage;
mod hostile;
mod index;
mod mark;
mod one_epoch;
mod real;
mod repair;
mod torn;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::page::EpochId;
use crate::xxh3::{xxh3_64, xxh3_128};

/// As [`super::verify`], with so few pages kept that small stores need more.
fn verify(dir: &Path, options: &VerifyOptions, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport, VerifyError> {
    verify_with(&Place::of_store(Arc::new(open_directory(dir)?), dir), options, 2, progress)
}

const CHAIN: [u8; 16] = [0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF];
const FORMAT: u32 = 1;
const SEGMENT: u8 = 1;
const PAGES: u8 = 2;
const ZEROS: u8 = 3;
const STATE: u8 = 4;
const COMMIT: u8 = 5;
const CLOSE: u8 = 6;
const DURABLE: u8 = 7;
/// The first number that no kind has.
const NO_KIND: u8 = 8;

fn frame(kind: u8, epoch: u64, sequence: u32, payload: &[u8]) -> Vec<u8> {
    frame_of(&CHAIN, kind, epoch, sequence, payload)
}

fn frame_of(chain: &[u8; 16], kind: u8, epoch: u64, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xD7, 0x53, 0x57, 0x1A, kind, 0, 0, 0];
    frame.extend(epoch.to_le_bytes());
    frame.extend(sequence.to_le_bytes());
    frame.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    frame.extend(&chain[..8]);
    frame.extend(xxh3_64(payload).to_le_bytes());
    frame.extend(xxh3_64(&frame).to_le_bytes());
    frame.extend(payload);
    frame.resize(frame.len().next_multiple_of(8), 0);
    frame
}

/// Makes a frame's checksums right again after its bytes were changed.
fn reseal(frame: &mut [u8]) {
    let length = usize::try_from(u32::from_le_bytes(frame[20..24].try_into().unwrap())).unwrap();
    if let Some(payload) = frame.get(48..48 + length) {
        let checksum = xxh3_64(payload);
        frame[32..40].copy_from_slice(&checksum.to_le_bytes());
    }
    let checksum = xxh3_64(&frame[..40]);
    frame[40..48].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes the checksum of a block's list right.
fn relist(block: &mut [u8]) {
    let checksum = xxh3_64(&block[8..16 + 4 * usize::from(block[1])]);
    block[4..8].copy_from_slice(&checksum.to_le_bytes()[..4]);
}

fn block(encoding: u8, pages: &[PageOf]) -> Vec<u8> {
    let first = pages[0].0;
    let mut block = vec![encoding, u8::try_from(pages.len()).unwrap(), 0, 0, 0, 0, 0, 0];
    block.extend(first.to_le_bytes());
    for (gfn, _) in pages {
        block.extend(u32::try_from(gfn - first).unwrap().to_le_bytes());
    }
    relist(&mut block);
    // With encoding 2 the pages' bytes are changes already.
    let bytes: Vec<u8> = pages.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    if encoding == 1 {
        block.extend(zstd::bulk::compress(&bytes, 1).unwrap())
    } else {
        block.extend(bytes)
    }
    block
}

fn zeros(runs: &[(u64, u64)]) -> Vec<u8> {
    runs.iter().flat_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()].concat()).collect()
}

fn state(records: &[(&str, u32, u16, &[u8])]) -> Vec<u8> {
    let mut list = u32::try_from(records.len()).unwrap().to_le_bytes().to_vec();
    list.extend([0; 4]);
    for (name, index, version, data) in records {
        list.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        list.extend(version.to_le_bytes());
        list.extend(index.to_le_bytes());
        list.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        list.extend([0; 4]);
        list.extend(name.as_bytes());
        list.extend(*data);
        list.resize(list.len().next_multiple_of(8), 0);
    }
    list
}

fn text_page(seed: u8) -> Vec<u8> {
    (0..4096u32).map(|at| seed.wrapping_add(u8::try_from(at / 256).unwrap())).collect()
}

fn memory_digest(memory: &BTreeMap<u64, Vec<u8>>) -> u128 {
    memory.iter().filter(|(_, page)| page.iter().any(|byte| *byte != 0)).fold(0, |sum, (gfn, page)| {
        let text = [gfn.to_le_bytes().to_vec(), xxh3_128(page).to_le_bytes().to_vec()].concat();
        sum.wrapping_add(xxh3_128(&text))
    })
}

/// A page's gfn and its bytes.
type PageOf = (u64, Vec<u8>);

/// What makes `now` of `before`.
fn change(before: &[u8], now: &[u8]) -> Vec<u8> {
    let differs = |word: usize| before[word * 8..word * 8 + 8] != now[word * 8..word * 8 + 8];
    let mut bytes = xxh3_64(now).to_le_bytes().to_vec();
    bytes.extend((0..64).map(|byte| (0..8).filter(|bit| differs(byte * 8 + bit)).fold(0u8, |bits, bit| bits | 1 << bit)));
    (0..512).filter(|word| differs(*word)).for_each(|word| bytes.extend(&now[word * 8..word * 8 + 8]));
    bytes
}

/// Breaks something on purpose.
type Tweak<T> = Box<dyn Fn(&mut T)>;

/// What the writer does with an epoch.
#[derive(Default)]
struct Plan {
    /// Blocks: encoding and pages as they are then, with encoding 2 as well.
    blocks: Vec<(u8, Vec<PageOf>)>,
    zeros: Vec<(u64, u64)>,
    flags: u8,
    unchanged: u64,
    /// A frame (by sequence) and what to do with its payload before it is hashed.
    tweak: Option<(usize, Tweak<Vec<u8>>)>,
    /// What to do with the commit frame's payload.
    tweak_commit: Option<Tweak<Vec<u8>>>,
    /// Further frames before the state frame.
    extra: Vec<(u8, Vec<u8>)>,
    /// State frames; one by default.
    states: Option<Vec<Vec<u8>>>,
    /// What to do with the frames, made one by one, before they are counted.
    tweak_frames: Option<Tweak<Vec<Vec<u8>>>>,
}

/// An epoch as it was written.
#[derive(Clone, Default)]
struct Written {
    memory: BTreeMap<u64, Vec<u8>>,
    /// Pages that it mentions.
    mentions: BTreeSet<u64>,
    state: Vec<u8>,
    commit: Vec<u8>,
    identity: u128,
}

#[derive(Clone)]
struct Writer {
    chain: [u8; 16],
    /// What the description says besides.
    branch_of: Option<(String, u64, u128)>,
    segments: Vec<Vec<u8>>,
    /// The numbers in each segment's name.
    numbers: Vec<(u32, u32)>,
    /// Segments that have an index, with something else in it than what it should have.
    indexes: BTreeMap<usize, Option<Vec<u8>>>,
    written: BTreeMap<u64, Written>,
    last: (u64, u128),
    durable: u64,
    /// What a durable or close frame or a segment header said of that.
    told: u64,
    /// Whether the mark says what is durable. Otherwise it says that nothing is, and only the
    /// frames prove anything.
    marks: bool,
    /// The mark, where it is another: none, or these bytes.
    mark: Option<Option<Vec<u8>>>,
    memory: BTreeMap<u64, Vec<u8>>,
    /// Where each epoch begins and ends: segment, first byte, commit frame, end.
    places: BTreeMap<u64, (usize, usize, usize, usize)>,
    /// Every frame: segment, first byte, kind, epoch.
    frames: Vec<(usize, usize, u8, u64)>,
}

impl Writer {
    fn new() -> Self {
        let mut writer = Self {
            chain: CHAIN,
            branch_of: None,
            segments: Vec::new(),
            numbers: Vec::new(),
            indexes: BTreeMap::new(),
            written: BTreeMap::new(),
            last: (0, 0),
            durable: 0,
            told: 0,
            marks: false,
            mark: None,
            memory: BTreeMap::new(),
            places: BTreeMap::new(),
            frames: Vec::new(),
        };
        writer.segment();
        writer
    }

    fn append(&mut self, kind: u8, epoch: u64, bytes: &[u8]) {
        let segment = self.segments.len() - 1;
        self.frames.push((segment, self.segments[segment].len(), kind, epoch));
        self.segments[segment].extend(bytes);
    }

    fn segment(&mut self) {
        (self.durable, self.told) = (self.last.0, self.last.0);
        let number = self.numbers.last().map_or(1, |numbers| numbers.1 + 1);
        self.numbers.push((number, number));
        self.segments.push(Vec::new());
        let header = self.segment_header(number, number, self.last);
        self.append(SEGMENT, 0, &header);
    }

    fn segment_header(&self, first: u32, last: u32, before: (u64, u128)) -> Vec<u8> {
        let mut payload = FORMAT.to_le_bytes().to_vec();
        payload.extend(first.to_le_bytes());
        payload.extend(self.chain);
        payload.extend(before.1.to_le_bytes());
        payload.extend(before.0.to_le_bytes());
        payload.extend(0u64.to_le_bytes());
        payload.extend(4096u32.to_le_bytes());
        payload.extend((last - first).to_le_bytes());
        payload.extend(0u128.to_le_bytes());
        self.frame(SEGMENT, 0, 0, &payload)
    }

    fn frame(&self, kind: u8, epoch: u64, sequence: u32, payload: &[u8]) -> Vec<u8> {
        frame_of(&self.chain, kind, epoch, sequence, payload)
    }

    /// Gives every segment an index.
    fn index(&mut self) {
        self.indexes = (0..self.segments.len()).map(|segment| (segment, None)).collect();
    }

    fn epoch(&mut self, epoch: u64, plan: Plan) {
        let mut payloads = Vec::new();
        let (mut stored, mut zero) = (0u64, 0u64);
        for (encoding, pages) in &plan.blocks {
            stored += pages.len() as u64;
            if *encoding == 2 {
                let changed = |(gfn, now): &PageOf| (*gfn, change(&self.memory[gfn], now));
                payloads.push((PAGES, block(2, &pages.iter().map(changed).collect::<Vec<_>>())));
            } else {
                payloads.push((PAGES, block(*encoding, pages)));
            }
            self.memory.extend(pages.iter().cloned());
        }
        if !plan.zeros.is_empty() {
            payloads.push((ZEROS, zeros(&plan.zeros)));
            for (first, count) in &plan.zeros {
                zero += count;
                self.memory.retain(|gfn, _| !(*first..first + count).contains(gfn));
            }
        }
        let blocks = plan.blocks.len();
        let mentions = plan.blocks.iter().flat_map(|(_, pages)| pages.iter().map(|(gfn, _)| *gfn));
        let mut written = Written { mentions: mentions.collect(), memory: self.memory.clone(), ..Written::default() };
        written.mentions.extend(plan.zeros.iter().flat_map(|(first, count)| *first..first + count));
        payloads.extend(plan.extra);
        let usual = state(&[("vcpu.regs", 0, 1, &[7; 19]), ("vcpu.regs", 1, 1, &[8; 19]), ("vm.clock", 0, 2, b"")]);
        payloads.extend(plan.states.unwrap_or_else(|| vec![usual]).into_iter().map(|state| (STATE, state)));
        if let Some((index, tweak)) = plan.tweak {
            tweak(&mut payloads[index].1);
        }
        let mut frames: Vec<Vec<u8>> =
            payloads.iter().zip(0..).map(|((kind, payload), sequence)| self.frame(*kind, epoch, sequence, payload)).collect();
        if let Some(tweak) = plan.tweak_frames {
            tweak(&mut frames);
        }
        if self.durable > self.told {
            self.synced(DURABLE);
        }
        let segment = self.segments.len() - 1;
        let start = self.segments[segment].len();
        for frame in &frames {
            self.append(frame[4], epoch, frame);
        }
        let headers: Vec<u8> = frames.iter().flat_map(|frame| frame[..48].to_vec()).collect();
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let mut commit = self.last.0.to_le_bytes().to_vec();
        commit.extend(self.last.1.to_le_bytes());
        commit.extend(u32::try_from(frames.len()).unwrap().to_le_bytes());
        commit.extend(u32::try_from(blocks).unwrap().to_le_bytes());
        commit.extend(bytes.to_le_bytes());
        commit.extend(xxh3_128(&headers).to_le_bytes());
        commit.extend((1_700_000_000_000_000_000 + epoch).to_le_bytes());
        commit.extend((0..7u64).flat_map(u64::to_le_bytes));
        for count in [zero + stored + plan.unchanged, zero, plan.unchanged, stored, bytes + 256, 0] {
            commit.extend(count.to_le_bytes());
        }
        commit.extend([1, plan.flags, 0, 0, 0, 0, 0, 0]);
        let audit = if plan.flags & 4 == 0 { 0 } else { memory_digest(&self.memory) };
        commit.extend(audit.to_le_bytes());
        commit.extend(0u128.to_le_bytes());
        assert_eq!(commit.len(), 208);
        if let Some(tweak) = plan.tweak_commit {
            tweak(&mut commit);
        }
        let frame = self.frame(COMMIT, epoch, u32::try_from(frames.len()).unwrap(), &commit);
        let state = payloads.iter().rfind(|(kind, _)| *kind == STATE).map(|(_, state)| state.clone());
        written = Written { state: state.unwrap_or_default(), commit, identity: xxh3_128(&frame), ..written };
        self.written.insert(epoch, written);
        let at = self.segments[segment].len();
        self.append(COMMIT, epoch, &frame);
        self.last = (epoch, xxh3_128(&frame));
        self.places.insert(epoch, (segment, start, at, self.segments[segment].len()));
    }

    fn sync(&mut self) {
        self.durable = self.last.0;
    }

    fn close(&mut self) {
        self.synced(CLOSE);
        self.sync();
    }

    /// A durable frame, or a close.
    fn synced(&mut self, kind: u8) {
        let payload = [self.last.0.to_le_bytes().to_vec(), self.last.1.to_le_bytes().to_vec()].concat();
        let frame = self.frame(kind, self.last.0, 0, &payload);
        self.append(kind, self.last.0, &frame);
        self.told = self.last.0;
    }

    /// Where the frame number `number` of those of `kind` and `epoch` begins.
    fn find(&self, kind: u8, epoch: u64, number: usize) -> (usize, usize) {
        let mut found = self.frames.iter().filter(|frame| (frame.2, frame.3) == (kind, epoch));
        found.nth(number).map(|frame| (frame.0, frame.1)).unwrap()
    }

    /// Cuts the chain where `epoch`'s commit frame ends, plus `more` bytes.
    fn cut(&mut self, epoch: u64, more: usize) {
        let (segment, _, _, end) = self.places[&epoch];
        self.segments.truncate(segment + 1);
        self.segments[segment].truncate(end + more);
    }

    fn save(&self) -> TempDir {
        let dir = TempDir::new().unwrap();
        self.save_to(dir.path());
        dir
    }

    fn save_to(&self, dir: &Path) {
        let hex: String = self.chain.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut line = description_line().replace("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", &hex);
        if let Some((branch, epoch, identity)) = &self.branch_of {
            let of =
                format!("\"branch_of\": {{\"branch\": \"{branch}\", \"epoch\": {epoch}, \"identity\": \"{identity:032x}\"}}}}");
            line = line.replace("\"later\": null}", &of);
        }
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("description.json"), description_text(&line)).unwrap();
        fs::write(dir.join("lock"), "writer").unwrap();
        if let Some(mark) =
            self.mark.clone().unwrap_or_else(|| Some(mark::slots(self, [if self.marks { self.durable } else { 0 }; 3])))
        {
            fs::write(dir.join("durable"), mark).unwrap();
        }
        for (segment, bytes) in self.segments.iter().enumerate() {
            fs::write(dir.join(self.name("segment", segment)), bytes).unwrap();
            if let Some(index) = self.indexes.get(&segment) {
                let index = index.clone().unwrap_or_else(|| index::Tables::of(bytes).sealed());
                fs::write(dir.join(self.name("index", segment)), index).unwrap();
            }
        }
    }

    fn name(&self, kind: &str, segment: usize) -> String {
        match self.numbers.get(segment) {
            Some((first, last)) if first != last => format!("{kind}-{first:08}-{last:08}"),
            Some((first, _)) => format!("{kind}-{first:08}"),
            None => format!("{kind}-{:08}", segment + 1),
        }
    }

    fn verify(&self) -> VerifyReport {
        run(self.save().path())
    }
}

fn description_line() -> String {
    let memory = r#"[{"first": 0, "count": 160}, {"first": 1048576, "count": 256}]"#;
    format!(
        r#"{{"format": 1, "chain": "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", "page_size": 4096, "created_unix_ns": 1700000000000000000, "created_by": "test 1", "memory": {memory}, "vcpus": 2, "machine": {{"any": [1]}}, "later": null}}"#
    )
}

fn description_text(line: &str) -> String {
    format!("{line}\nxxh3-64 {:016x}\n", xxh3_64(line.as_bytes()))
}

fn run(dir: &Path) -> VerifyReport {
    try_run(dir).unwrap()
}

fn try_run(dir: &Path) -> Result<VerifyReport, VerifyError> {
    verify(dir, &VerifyOptions::default(), &mut |_| {})
}

fn page(gfn: u64, seed: u8) -> PageOf {
    (gfn, text_page(seed))
}

fn many(first: u64, count: u64, seed: u8) -> Vec<PageOf> {
    (first..first + count).map(|gfn| page(gfn, seed.wrapping_add(u8::try_from(gfn % 200).unwrap()))).collect()
}

/// A second segment with epochs 4 and 5 after a first with 1 and 2; epoch 3 could not be appended.
fn writer() -> Writer {
    let mut writer = Writer::new();
    writer.epoch(
        1,
        Plan {
            blocks: vec![(1, many(0, 16, 3)), (0, vec![page(0x10_0000, 9)])],
            zeros: vec![(20, 3), (0x10_0080, 128)],
            flags: 1 | 4,
            ..Plan::default()
        },
    );
    writer.sync();
    writer.epoch(2, Plan { blocks: vec![(1, many(4, 8, 90)), (1, many(100, 3, 1))], zeros: vec![(0, 2)], ..audited() });
    writer.segment();
    writer.epoch(4, Plan { blocks: vec![(0, vec![page(1, 200)])], unchanged: 5, ..audited() });
    writer.sync();
    writer.epoch(5, Plan { blocks: vec![(1, many(8, 4, 17))], ..audited() });
    writer
}

fn closed() -> Writer {
    let mut writer = writer();
    writer.close();
    writer
}

fn audited() -> Plan {
    Plan { flags: 4, ..Plan::default() }
}

fn kinds(report: &VerifyReport) -> Vec<DamageKind> {
    report.damage.iter().map(|damage| damage.kind).collect()
}
