//! An index beside a segment that is sound: whatever it says, the chain opens, and an epoch
//! restores or is refused. Where it does not say anything wrong, or names mentions that are not
//! there, an epoch that restores is the right one. One that hides a mention is sound by itself:
//! only `verify` sees that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use slackwater::format::{
    BlockList, FRAME_HEADER_BYTES, Index, IndexBuilder, IndexError, IndexProof, IndexedEpoch, MemoryDigest, Mention,
    SEGMENT_HEADER_FRAME_BYTES, decode_zeros,
};
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PageBytes, PageRun};
use slackwater::store::{Chain, FoundPages, PageReader};
use twox_hash::XxHash3_64;

use super::chain::{Memory, restore, sound};
use super::frames::{COMMIT, Frame, PAGES, Piece, STATE, ZEROS, cut, put, u64_at};
use super::{Bytes, Files, Random, scratch};

const SEGMENT: &str = "segment-00000001";
const INDEX: &str = "index-00000001";

const BLOCK: usize = 4096;
const CONTENT: usize = BLOCK - 8;

/// The chain that every input is an index of, or of its first segment. The epochs of the second
/// build on those of the first.
struct Fixed {
    files: Files,
    header: [u8; FRAME_HEADER_BYTES],
    /// What the index should be.
    index: Vec<u8>,
    /// What each epoch holds: no page that is zero.
    epochs: BTreeMap<EpochId, BTreeMap<Gfn, u128>>,
}

fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    // What is drawn need not be sound.
    FIXED.get_or_init(|| (0..10_000).find_map(draw).expect("some chain is sound"))
}

fn draw(seed: u64) -> Option<Fixed> {
    let files = sound(&mut Random::new(seed), &[9, 3]);
    let mut epochs = BTreeMap::new();
    scratch::with(&files, |dir| {
        let chain = Chain::open(dir).unwrap();
        assert!(chain.damage().is_empty() && chain.is_closed(), "{chain:#?}");
        for epoch in chain.epochs() {
            let epoch = epoch.unwrap().commit.epoch;
            let Some(memory) = restore(&chain, epoch) else { break };
            epochs.insert(epoch, memory.0);
        }
    });
    if epochs.len() < 12 {
        return None;
    }
    let segment = &files[SEGMENT];
    let header = segment[..FRAME_HEADER_BYTES].try_into().expect("a header's length");
    Some(Fixed { index: walk(segment, |_, _| {}), header, epochs, files })
}

/// An index of what the frames of a segment mention, after `change` has had a look at each frame's
/// pages.
fn walk(segment: &[u8], mut change: impl FnMut(usize, &mut Vec<PageRun>)) -> Vec<u8> {
    let mut builder = IndexBuilder::new();
    let (mut offset, mut identity, mut number) = (0, 0, 0);
    let (mut begin, mut state) = (None, 0);
    for piece in cut(segment) {
        let Piece::Frame(frame) = piece else { panic!("the segment is sound") };
        if matches!(frame.kind(), PAGES | ZEROS | STATE) {
            begin.get_or_insert(offset);
        }
        let mut add = |mention, mut runs: Vec<PageRun>| {
            change(number, &mut runs);
            number += 1;
            builder.frame(offset, mention, runs).unwrap();
        };
        match frame.kind() {
            PAGES => {
                let list = BlockList::parse(&frame.payload).unwrap();
                let runs = list.gfns().iter().map(|gfn| PageRun { first: *gfn, count: 1 }).collect();
                add(if list.is_changes() { Mention::Changes } else { Mention::Whole }, runs);
            }
            ZEROS => add(Mention::Zeros, decode_zeros(&frame.payload).unwrap()),
            STATE => state = offset,
            COMMIT => {
                let begin = begin.take().expect("an epoch has state");
                builder.epoch(epoch_at(&frame, [begin, state, offset]));
                identity = frame.identity();
            }
            _ => {}
        }
        offset += frame.bytes().len() as u64;
    }
    let first = segment[..SEGMENT_HEADER_FRAME_BYTES].try_into().expect("a segment's first frame");
    builder.finish(&first, segment.len() as u64, EpochId::NONE, identity).unwrap()
}

fn epoch_at(commit: &Frame, [offset, state_offset, commit_offset]: [u64; 3]) -> IndexedEpoch {
    let base = commit.payload[169] & 1 != 0;
    IndexedEpoch { epoch: EpochId(commit.epoch()), offset, state_offset, commit_offset, first_frame: 0, base }
}

/// What an index says that concerns a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Says {
    /// What the segment says, as far as it can be read.
    Right,
    /// That too, and that blocks mention pages that they do not.
    More,
    /// Something else.
    Wrong,
}

fn says(bytes: &[u8]) -> Says {
    let fixed = fixed();
    let length = fixed.files[SEGMENT].len() as u64;
    let open = |bytes: &[u8]| Index::open(Box::new(bytes.to_vec()), &fixed.header, length);
    let right = open(&fixed.index).unwrap();
    // Its first block proves something, whatever else it is good for.
    let proves = |bytes: &[u8]| IndexProof::parse(bytes.get(..IndexProof::BYTES).unwrap_or_default());
    if proves(bytes).is_ok_and(|proof| Ok(proof) != proves(&fixed.index)) {
        return Says::Wrong;
    }
    // One that does not open is no index.
    let Ok(index) = open(bytes) else { return Says::Right };
    let head = |index: &Index| (index.previous(), index.last(), index.identity(), index.epochs(), index.frames());
    let last = right.epochs() - 1;
    if head(&index) != head(&right) || !same(index.base_up_to(last), right.base_up_to(last)) {
        return Says::Wrong;
    }
    let epochs = (0..right.epochs()).all(|number| same(index.epoch(number), right.epoch(number)));
    let frames = (0..right.frames()).all(|number| same(index.frame(number), right.frame(number)));
    if !epochs || !frames {
        return Says::Wrong;
    }
    let runs = index.runs() == right.runs() && (0..right.runs()).all(|number| same(index.run(number), right.run(number)));
    let mentions = || (0..right.mentions()).all(|number| same(index.mention(number), right.mention(number)));
    if runs && index.mentions() == right.mentions() && mentions() {
        return Says::Right;
    }
    let (Some(found), Some(expected)) = (pages(&index), pages(&right)) else { return Says::Wrong };
    if found == expected {
        return Says::Right;
    }
    let nothing = BTreeSet::new();
    let hides = expected.iter().any(|(gfn, frames)| !frames.is_subset(found.get(gfn).unwrap_or(&nothing)));
    let adds_zeros = found.iter().any(|(gfn, frames)| {
        let known = expected.get(gfn).unwrap_or(&nothing);
        frames.difference(known).any(|frame| right.frame((*frame).into()).unwrap().mention == Mention::Zeros)
    });
    if hides || adds_zeros { Says::Wrong } else { Says::More }
}

/// Whether an entry that can be read is the right one.
fn same<T: PartialEq>(found: Result<T, IndexError>, right: Result<T, IndexError>) -> bool {
    found.is_err() || found.ok() == right.ok()
}

/// The frames that mention each page, where that can be read, is in order and of a size that is
/// worth it.
fn pages(index: &Index) -> Option<BTreeMap<u64, BTreeSet<u32>>> {
    let mut pages: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    let mut end = (0, 0);
    for number in 0..index.runs() {
        let run = index.run(number).ok()?;
        if run.run.first.0 < end.0 || run.run.count > 4096 || run.mentions.start != end.1 {
            return None;
        }
        end = (run.run.end()?.0, run.mentions.end);
        let frames: Vec<u32> = run.mentions.clone().map(|mention| index.mention(mention)).collect::<Result<_, _>>().ok()?;
        if !frames.is_sorted_by(|one, next| one < next) {
            return None;
        }
        pages.extend((run.run.first.0..end.0).map(|gfn| (gfn, frames.iter().copied().collect())));
    }
    (end.1 == index.mentions()).then_some(pages)
}

pub(super) fn check(data: &[u8]) {
    let fixed = fixed();
    let says = says(data);
    let mut files = fixed.files.clone();
    files.insert(INDEX.to_owned(), data.to_vec());
    scratch::with(&files, |dir| {
        let chain = Chain::open(dir).expect("the description is sound");
        if says != Says::Wrong {
            assert!(chain.damage().is_empty() && chain.tail().is_none() && chain.is_closed(), "{says:?}: {chain:#?}");
            assert_eq!(chain.epochs_len().unwrap(), fixed.epochs.len() as u64);
        }
        for (epoch, expected) in &fixed.epochs {
            // What it says of a segment is found out as it is asked: a chain asked before may know
            // better.
            let chain = Chain::open(dir).expect("as before");
            let found = match chain.epoch(*epoch) {
                Ok(_) => restore(&chain, *epoch),
                Err(error) => {
                    assert!(says != Says::Right, "epoch {epoch}: {error}");
                    None
                }
            };
            match (says, found) {
                (Says::Right, None) => panic!("epoch {epoch} does not restore, although the index is right"),
                (Says::Right | Says::More, Some(found)) => {
                    assert!(found.0 == *expected, "epoch {epoch}, the index says {says:?}")
                }
                _ => {}
            }
        }
        for epoch in fixed.epochs.keys().rev().step_by(5) {
            single_pages(dir, *epoch, says);
        }
    });
}

/// The pages of an epoch, one by one.
fn single_pages(dir: &Path, epoch: EpochId, says: Says) {
    let expected = &fixed().epochs[&epoch];
    let chain = Arc::new(Chain::open(dir).expect("as before"));
    let mut reader = match PageReader::new(chain, epoch) {
        Ok(reader) => reader,
        Err(error) => {
            assert!(says != Says::Right, "epoch {epoch}: {error}");
            return;
        }
    };
    let zero = Memory::RUNS.iter().flat_map(|run| [run.first, Gfn(run.first.0 + run.count - 1)]);
    for gfn in expected.keys().copied().chain(zero) {
        let mut given = BTreeMap::new();
        let found = reader.read(gfn, &mut |gfn, page: &PageBytes| {
            given.insert(gfn, if *page == [0; PAGE_SIZE] { 0 } else { MemoryDigest::of_page(gfn, page).0 });
        });
        let right = |gfn: &Gfn| expected.get(gfn).copied().unwrap_or_default();
        match found {
            Err(error) => assert!(error.is_damage() && says != Says::Right, "page {gfn} of epoch {epoch}: {error}"),
            Ok(FoundPages::Given) => {
                assert!(given.contains_key(&gfn));
                let sound = given.iter().all(|(gfn, page)| right(gfn) == *page);
                assert!(sound || says == Says::Wrong, "page {gfn} of epoch {epoch}, the index says {says:?}");
            }
            Ok(FoundPages::Zeros(run)) => {
                assert!(run.contains(gfn) && given.is_empty());
                let sound = expected.keys().all(|gfn| !run.contains(*gfn));
                assert!(sound || says == Says::Wrong, "page {gfn} of epoch {epoch}, the index says {says:?}");
            }
        }
    }
}

/// Makes the checksums of all blocks right.
fn seal(index: &mut [u8]) {
    let key = XxHash3_64::oneshot(&fixed().header);
    for (number, block) in (0..).zip(index.chunks_exact_mut(BLOCK)) {
        let sum = XxHash3_64::oneshot_with_seed(key.wrapping_add(number), &block[..CONTENT]);
        put(block, CONTENT, &sum.to_le_bytes());
    }
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    if random.one_in(6) {
        *data = rebuilt(random);
        return;
    }
    for _ in 0..=random.below(3) {
        step(data, random, bytes);
    }
    if !random.one_in(16) {
        seal(data);
    }
}

fn step(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    let blocks = data.len() / BLOCK;
    if blocks == 0 {
        data.clone_from(&fixed().index);
        return;
    }
    let block = random.below(blocks) * BLOCK;
    // Tables are not full.
    let used = CONTENT - data[block..block + CONTENT].iter().rev().take_while(|byte| **byte == 0).count();
    let at = block + random.below(if block == 0 { 200 } else { used + 40 }).min(CONTENT - 8);
    match random.below(12) {
        0..=3 => {
            let at = at & !3;
            let number = u64_at(data, at);
            let number = match random.below(4) {
                0 => random.number(),
                1 => number.wrapping_sub(1),
                _ => number.wrapping_add(1 + random.below(3) as u64),
            };
            put(data, at, &number.to_le_bytes()[..if random.one_in(2) { 4 } else { 8 }]);
        }
        4 | 5 => data[at] = random.next().to_le_bytes()[0],
        6 => {
            let from = block + random.below(used.max(1)) / 8 * 8;
            let entry = data[from..(from + 24).min(block + CONTENT)].to_vec();
            put(data, at & !7, &entry);
        }
        7 => {
            let other = random.below(blocks) * BLOCK;
            let content = data[other..other + BLOCK].to_vec();
            put(data, block, &content);
        }
        8 => drop(data.drain(block..block + BLOCK)),
        9 if blocks < 12 => {
            let content = data[block..block + BLOCK].to_vec();
            data.splice(block..block, content);
        }
        _ => {
            let mut content = data[block..block + used].to_vec();
            bytes(&mut content);
            content.resize(CONTENT, 0);
            put(data, block, &content);
        }
    }
}

/// An index of which some frames say that they mention more or fewer pages than they do.
fn rebuilt(random: &mut Random) -> Vec<u8> {
    let wrong = random.below(12);
    let adds = random.one_in(2);
    walk(&fixed().files[SEGMENT], |number, runs| {
        if number % 12 != wrong {
            return;
        }
        let end = runs.last().and_then(|run| run.end()).unwrap_or_default();
        if adds {
            runs.push(PageRun { first: Gfn(end.0 + random.below(9) as u64), count: 1 + random.number() % (1 << 24) });
        } else {
            runs.pop();
        }
    })
}

pub(super) fn seeds(_: &Path) -> Vec<Vec<u8>> {
    let right = fixed().index.clone();
    let mut seeds = vec![Vec::new(), right[..right.len() - BLOCK].to_vec(), right];
    seeds.extend((0..12).map(|seed| rebuilt(&mut Random::new(seed))));
    seeds
}
