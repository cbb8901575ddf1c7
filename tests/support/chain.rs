//! A small chain made frame by frame from what `docs/format.md` says of them, with all that its
//! epochs hold. No clock, no chance, no writer.

use std::collections::BTreeMap;

use slackwater::format::StateRecord;
use slackwater::format::{
    BlockEncoder, ChainId, ChangedWords, Commit, Compression, Description, EpochWriter, FORMAT_VERSION, FRAME_HEADER_BYTES,
    FrameHeader, FrameKind, IndexBuilder, IndexedEpoch, MemoryDigest, Mention, Phases, SEGMENT_HEADER_FRAME_BYTES, SegmentHeader,
    Synced, Trigger,
};
use slackwater::page::{EpochId, Gfn, PAGE_SIZE_U64, PageBytes, PageRun};
use twox_hash::XxHash3_64;

use super::Random;
use super::copy::Files;

/// A part of an epoch.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// A pages frame.
    Pages(Compression, Vec<(u64, Box<PageBytes>)>),
    /// A zeros frame of runs.
    Zeros(Vec<(u64, u64)>),
    /// A pages frame of changes: pages as they are then.
    Changes(Vec<(u64, Box<PageBytes>)>),
}

/// What an epoch is to hold and to say of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewEpoch {
    pub(crate) number: u64,
    pub(crate) trigger: Trigger,
    pub(crate) base: bool,
    pub(crate) recovery: bool,
    pub(crate) audited: bool,
    pub(crate) unchanged: u64,
    pub(crate) parts: Vec<Part>,
}

/// All memory, without pages of zeros, and all state of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Truth {
    pub(crate) memory: BTreeMap<u64, Box<PageBytes>>,
    pub(crate) state: Vec<StateRecord>,
}

impl Truth {
    pub(crate) fn digest(&self) -> MemoryDigest {
        let mut digest = MemoryDigest::default();
        self.memory.iter().for_each(|(gfn, page)| digest.add_page(Gfn(*gfn), page));
        digest
    }
}

/// A chain in the making.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) files: Files,
    /// What each complete epoch holds.
    pub(crate) truth: BTreeMap<u64, Truth>,
    chain: ChainId,
    segment: u32,
    tip: EpochId,
    tip_hash: u128,
    durable: EpochId,
    /// What a durable or close frame or a segment header said of that.
    told: EpochId,
    memory: BTreeMap<u64, Box<PageBytes>>,
    clock_ns: u64,
    /// Whether state has records that are mostly zeros.
    sparse_state: bool,
    /// Of the segment in hand.
    index: IndexBuilder,
}

impl Builder {
    /// A chain with its description, its mark and no segment.
    pub(crate) fn new(chain: [u8; 16], memory: Vec<PageRun>, vcpus: u32, machine: serde_json::Value) -> Self {
        let clock_ns = 1_790_000_000_000_000_000;
        let description = Description {
            format: FORMAT_VERSION,
            chain: ChainId(chain),
            page_size: PAGE_SIZE_U64,
            created_unix_ns: clock_ns,
            created_by: "slackwater tests".to_owned(),
            memory,
            device_runs: 0,
            vcpus,
            machine,
            branch_of: None,
        };
        let mut builder = Self {
            files: Files::from([("description.json".to_owned(), description.encode().unwrap())]),
            truth: BTreeMap::new(),
            chain: ChainId(chain),
            segment: 0,
            tip: EpochId::NONE,
            tip_hash: 0,
            durable: EpochId::NONE,
            told: EpochId::NONE,
            memory: BTreeMap::new(),
            clock_ns,
            sparse_state: false,
            index: IndexBuilder::new(),
        };
        builder.mark();
        builder
    }

    /// Puts an index beside the segment in hand, which gets no more epochs.
    fn end_segment(&mut self) {
        let index = std::mem::take(&mut self.index);
        let segment = self.file();
        let first: [u8; SEGMENT_HEADER_FRAME_BYTES] = segment[..SEGMENT_HEADER_FRAME_BYTES].try_into().unwrap();
        let previous = EpochId(u64::from_le_bytes(first[88..96].try_into().unwrap()));
        let bytes = segment.len() as u64;
        let index = index.finish(&first, bytes, previous, self.tip_hash).unwrap();
        self.files.insert(format!("index-{:08}", self.segment), index);
    }

    /// Says in all slots of the mark which epoch is durable.
    fn mark(&mut self) {
        let mark = mark_of(self.chain, self.durable.0, self.tip_hash);
        self.files.insert("durable".to_owned(), mark);
    }

    fn file(&mut self) -> &mut Vec<u8> {
        self.files.get_mut(&format!("segment-{:08}", self.segment)).expect("a segment was begun")
    }

    /// Begins the next segment. The one before was synced.
    pub(crate) fn segment(&mut self) {
        if self.segment > 0 {
            self.end_segment();
        }
        self.segment += 1;
        self.synced();
        self.told = self.tip;
        let header = SegmentHeader {
            format: FORMAT_VERSION,
            number: self.segment,
            chain: self.chain,
            previous_hash: self.tip_hash,
            previous: self.tip,
            more: 0,
        };
        self.files.insert(format!("segment-{:08}", self.segment), header.encode_frame());
    }

    /// Says that all epochs so far are durable.
    pub(crate) fn synced(&mut self) {
        self.durable = self.tip;
        self.mark();
    }

    /// Appends a whole epoch.
    pub(crate) fn epoch(&mut self, new: &NewEpoch) {
        let epoch = EpochId(new.number);
        if self.durable > self.told {
            let frame = Synced { epoch: self.tip, identity: self.tip_hash }.durable_frame(self.chain);
            self.file().extend(frame);
            self.told = self.tip;
        }
        let mut writer = EpochWriter::new(self.chain, epoch);
        let mut out = Vec::new();
        let mut zero_pages = 0;
        let begin = self.file().len() as u64;
        for part in &new.parts {
            let at = begin + out.len() as u64;
            match part {
                Part::Pages(compression, pages) => {
                    let block: Vec<_> = pages.iter().map(|(gfn, page)| (Gfn(*gfn), &**page)).collect();
                    writer.pages(&mut out, &mut BlockEncoder::new(*compression), &block).unwrap();
                    self.index.block(at, false, &block.iter().map(|(gfn, _)| *gfn).collect::<Vec<_>>()).unwrap();
                    self.memory.extend(pages.iter().cloned());
                }
                Part::Changes(pages) => {
                    let changed = |gfn, page| ChangedWords::between(&self.memory[gfn], page);
                    let block: Vec<_> = pages.iter().map(|(gfn, page)| (Gfn(*gfn), &**page, changed(gfn, page))).collect();
                    writer.changes(&mut out, &block).unwrap();
                    self.index.block(at, true, &block.iter().map(|(gfn, ..)| *gfn).collect::<Vec<_>>()).unwrap();
                    self.memory.extend(pages.iter().cloned());
                }
                Part::Zeros(runs) => {
                    let runs: Vec<_> = runs.iter().map(|(first, count)| PageRun { first: Gfn(*first), count: *count }).collect();
                    writer.zeros(&mut out, &runs).unwrap();
                    self.index.frame(at, Mention::Zeros, runs.iter().copied()).unwrap();
                    for run in runs {
                        zero_pages += run.count;
                        self.memory.retain(|gfn, _| !run.contains(Gfn(*gfn)));
                    }
                }
            }
        }
        let mut state = state_of(new.number);
        let state_offset = begin + out.len() as u64;
        if self.sparse_state {
            // So that it is packed.
            state.push(StateRecord { name: "sample.sparse".to_owned(), index: 0, version: 1, data: vec![0; 1000] });
            state.extend(state_of(new.number + 1000).into_iter().map(|record| StateRecord { index: record.index + 7, ..record }));
        }
        writer.state(&mut out, &state).unwrap();
        let truth = Truth { memory: self.memory.clone(), state };
        let totals = writer.totals();
        self.clock_ns += 50_000_000;
        let commit = Commit {
            epoch,
            parent: self.tip,
            parent_hash: self.tip_hash,
            totals,
            time_unix_ns: self.clock_ns,
            own_ns: 0,
            run_ns: 49_000_000,
            phases: Phases { kick_ns: 1_000, state_ns: 2_000, harvest_ns: 300, copy_ns: 4_000, reset_ns: 500, stall_ns: 0 },
            captured_pages: totals.stored_pages + zero_pages + new.unchanged,
            zero_pages,
            unchanged_pages: new.unchanged,
            bytes_written: totals.frames_bytes + slackwater::format::COMMIT_FRAME_BYTES as u64,
            trigger: new.trigger,
            base: new.base,
            recovery: new.recovery,
            audit: new.audited.then(|| truth.digest()),
            rewritten: None,
        };
        let frame = commit.encode_frame(self.chain);
        self.tip = epoch;
        self.tip_hash = commit.identity(&frame);
        let commit_offset = begin + out.len() as u64;
        self.index.epoch(IndexedEpoch { epoch, offset: begin, state_offset, commit_offset, first_frame: 0, base: new.base });
        out.extend(frame);
        self.file().extend(out);
        self.truth.insert(new.number, truth);
    }

    /// Ends the chain in order.
    pub(crate) fn close(&mut self) {
        self.synced();
        let frame = Synced { epoch: self.tip, identity: self.tip_hash }.close_frame(self.chain);
        self.file().extend(frame);
        self.told = self.tip;
    }
}

/// The file that says that this epoch is durable.
pub(crate) fn mark_of(chain: ChainId, epoch: u64, identity: u128) -> Vec<u8> {
    let mut slot = vec![0xD7, b'S', b'W', b'D', 1, 0, 0, 0];
    slot.extend(chain.0);
    slot.extend(epoch.to_le_bytes());
    slot.extend(identity.to_le_bytes());
    slot.extend(XxHash3_64::oneshot(&slot).to_le_bytes());
    slot.resize(4096, 0);
    slot.repeat(3)
}

/// State that only the epoch `number` has.
fn state_of(number: u64) -> Vec<StateRecord> {
    let record = |name: &str, index: u32, version, bytes: usize| {
        let mut random = Random::new(number << 8 | u64::from(index));
        StateRecord { name: name.to_owned(), index, version, data: (0..bytes).map(|_| random.byte()).collect() }
    };
    vec![
        record("sample.vm", 0, 1, 40),
        record("sample.vcpu", 0, 2, 31),
        record("sample.vcpu", 1, 2, 31),
        record("empty", 0, 1, 0),
    ]
}

/// Content that zstd makes small.
pub(crate) fn text(seed: u64) -> Box<PageBytes> {
    let mut page = Box::new([0; 4096]);
    for (index, byte) in page.iter_mut().enumerate() {
        *byte = (seed as usize + index / 64 * 7).to_le_bytes()[0];
    }
    page
}

/// Content that zstd can't make smaller.
pub(crate) fn noise(seed: u64) -> Box<PageBytes> {
    let mut random = Random::new(seed);
    let mut page = Box::new([0; 4096]);
    page.iter_mut().for_each(|byte| *byte = random.byte());
    page
}

/// The chain of `checkpoints/golden/plain`: every kind of frame, three segments, a gap, a chain
/// that went on behind a close. With `closed` it ends with a close frame, and every epoch is
/// durable; without, the last three are not.
pub(crate) fn sample(closed: bool) -> Builder {
    let zstd = Compression::Zstd { level: 3 };
    let texts = |range: std::ops::Range<u64>, seed: u64| range.map(|gfn| (gfn, text(seed + gfn))).collect::<Vec<_>>();
    let machine = serde_json::json!({ "memory_bytes": 4 << 20, "vcpus": 2, "guest": { "churn": "churn:pages=64" } });
    let mut chain = Builder::new(*b"slackwater plain", vec![PageRun { first: Gfn(0), count: 1024 }], 2, machine);
    chain.segment();
    chain.epoch(&NewEpoch {
        number: 1,
        trigger: Trigger::Request,
        base: true,
        audited: true,
        parts: vec![
            Part::Pages(zstd, texts(0..16, 1)),
            Part::Pages(Compression::None, vec![(1000, noise(1))]),
            Part::Pages(zstd, texts(16..20, 1)),
        ],
        ..NewEpoch::default()
    });
    chain.epoch(&NewEpoch {
        number: 2,
        trigger: Trigger::RingFull,
        unchanged: 3,
        parts: vec![
            Part::Zeros(vec![(2, 3), (10, 1)]),
            Part::Pages(zstd, vec![(0, text(100)), (7, text(101)), (1023, text(102))]),
            Part::Pages(zstd, vec![(0, text(103)), (8, text(104)), (900, text(105))]),
        ],
        ..NewEpoch::default()
    });
    chain.close();
    chain.epoch(&NewEpoch {
        number: 3,
        trigger: Trigger::Interval,
        recovery: true,
        parts: vec![Part::Pages(zstd, texts(30..40, 7)), Part::Zeros(vec![(0, 1), (1020, 2)])],
        ..NewEpoch::default()
    });
    chain.segment();
    // The epoch 4 could not be stored.
    chain.epoch(&NewEpoch {
        number: 5,
        trigger: Trigger::RingFull,
        audited: true,
        parts: vec![Part::Pages(zstd, texts(10..26, 50)), Part::Pages(Compression::None, vec![(500, text(9)), (1000, text(10))])],
        ..NewEpoch::default()
    });
    chain.segment();
    chain.epoch(&NewEpoch { number: 6, trigger: Trigger::Interval, ..NewEpoch::default() });
    chain.epoch(&NewEpoch {
        number: 7,
        trigger: Trigger::RingFull,
        audited: true,
        parts: vec![Part::Pages(zstd, texts(0..12, 200)), Part::Zeros(vec![(12, 4), (100, 1)])],
        ..NewEpoch::default()
    });
    if closed {
        chain.synced();
    }
    chain.epoch(&NewEpoch {
        number: 8,
        trigger: Trigger::Final,
        parts: vec![Part::Pages(zstd, texts(60..63, 300))],
        ..NewEpoch::default()
    });
    if closed {
        chain.close();
    }
    chain
}

/// `page` with some words changed.
fn touched(page: &PageBytes, seed: u64) -> Box<PageBytes> {
    let mut random = Random::new(seed);
    let mut page = Box::new(*page);
    for _ in 0..=seed % 40 {
        page[random.below(4096) as usize] ^= random.byte() | 1;
    }
    page
}

/// The chain of `checkpoints/golden/changes`: blocks of changes up to 15 deep beside whole pages,
/// across segments, after zeros and within an epoch, and packed state.
pub(crate) fn sample_of_changes() -> Builder {
    let zstd = Compression::Zstd { level: 3 };
    let machine = serde_json::json!({ "memory_bytes": 4 << 20, "vcpus": 2, "guest": { "churn": "churn:pages=64" } });
    let mut chain = Builder::new(*b"slackwater delta", vec![PageRun { first: Gfn(0), count: 1024 }], 2, machine);
    chain.sparse_state = true;
    chain.segment();
    let texts = (0..6).map(|gfn| (gfn, text(gfn))).collect();
    let noises = (40..42).map(|gfn| (gfn, noise(gfn))).collect();
    let again = vec![(40, touched(&noise(40), 3))];
    let parts = vec![Part::Pages(zstd, texts), Part::Pages(Compression::None, noises), Part::Changes(again)];
    chain.epoch(&NewEpoch { number: 1, base: true, audited: true, parts, ..NewEpoch::default() });
    for number in 2..20 {
        if number % 7 == 0 {
            chain.segment();
        }
        let changed = |gfn: u64| (gfn, touched(&chain.memory[&gfn], number * 100 + gfn));
        // Page 40 was changed in epoch 1 already.
        let is_whole = |gfn: &u64| (number + gfn / 40).is_multiple_of(18);
        let (whole, deep): (Vec<_>, Vec<_>) = [0, 1, 3, 40, 41].into_iter().filter(|_| number != 6).partition(is_whole);
        let [whole, deep] = [whole, deep].map(|gfns| gfns.into_iter().map(changed).collect::<Vec<_>>());
        let mut parts = vec![Part::Pages(zstd, whole), Part::Changes(deep)];
        parts.retain(|part| !matches!(part, Part::Pages(_, pages) | Part::Changes(pages) if pages.is_empty()));
        match number {
            5 => parts.push(Part::Zeros(vec![(2, 1), (41, 2)])),
            6 => parts.push(Part::Pages(zstd, vec![(2, text(77)), (41, noise(5))])),
            _ => {}
        }
        chain.epoch(&NewEpoch { number, trigger: Trigger::RingFull, audited: number % 3 == 0, parts, ..NewEpoch::default() });
    }
    chain.synced();
    chain.close();
    chain
}

/// A frame of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameOf {
    pub(crate) offset: usize,
    pub(crate) kind: FrameKind,
    pub(crate) epoch: u64,
    pub(crate) payload: usize,
    /// With header and padding.
    pub(crate) bytes: usize,
}

/// The frames of a sound segment.
pub(crate) fn frames(segment: &[u8], chain: ChainId) -> Vec<FrameOf> {
    let mut frames = Vec::new();
    let mut offset = 0;
    while offset < segment.len() {
        let header = FrameHeader::parse(&segment[offset..], chain).unwrap();
        let bytes = usize::try_from(header.frame_bytes()).unwrap();
        frames.push(FrameOf { offset, kind: header.kind, epoch: header.epoch.0, payload: offset + FRAME_HEADER_BYTES, bytes });
        offset += bytes;
    }
    frames
}
