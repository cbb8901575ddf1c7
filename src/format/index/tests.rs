//! An index says of every page at every epoch what a walk over the frames says.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::format::{ChainId, FRAME_HEADER_BYTES, FormatError, SEGMENT_HEADER_FRAME_BYTES, SegmentHeader};
use crate::page::Gfn;

const HEADER: [u8; FRAME_HEADER_BYTES] = [7; FRAME_HEADER_BYTES];
const FIRST_FRAME: [u8; SEGMENT_HEADER_FRAME_BYTES] = [7; SEGMENT_HEADER_FRAME_BYTES];

/// The frames of some epochs: for each frame, what it is and the runs of pages that it mentions.
type Epochs = Vec<Vec<(Mention, Vec<PageRun>)>>;

fn build(epochs: &Epochs) -> Vec<u8> {
    let mut builder = IndexBuilder::new();
    let mut offset = 128;
    for (number, frames) in (1u64..).zip(epochs) {
        let first = offset;
        for (mention, runs) in frames {
            builder.frame(offset, *mention, runs.iter().copied()).unwrap();
            offset += 64;
        }
        let (state_offset, commit_offset) = (offset, offset + 8);
        let base = number % 5 == 1;
        builder.epoch(IndexedEpoch {
            epoch: EpochId(number * 2),
            offset: first,
            state_offset,
            commit_offset,
            first_frame: 0,
            base,
        });
        offset += 200;
    }
    builder.finish(&FIRST_FRAME, offset, EpochId(1), 42).unwrap()
}

fn open(bytes: Vec<u8>, segment_bytes: u64) -> Result<Index, IndexError> {
    Index::open(Box::new(bytes), &HEADER, segment_bytes)
}

fn segment_bytes(epochs: &Epochs) -> u64 {
    128 + epochs.iter().map(|frames| 64 * frames.len() as u64 + 200).sum::<u64>()
}

/// For each page the offsets of the frames that mention it, in order.
fn walk(epochs: &Epochs) -> BTreeMap<u64, Vec<u64>> {
    let mut pages: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut offset = 128;
    for frames in epochs {
        for (_, runs) in frames {
            for gfn in runs.iter().flat_map(|run| run.first.0..run.first.0 + run.count) {
                pages.entry(gfn).or_default().push(offset);
            }
            offset += 64;
        }
        offset += 200;
    }
    pages
}

fn frames() -> impl Strategy<Value = (Mention, Vec<PageRun>)> {
    let mention = prop_oneof![Just(Mention::Whole), Just(Mention::Changes), Just(Mention::Zeros)];
    (mention, prop::collection::btree_map(0u64..60, 1u64..9, 0..6)).prop_map(|(mention, runs)| {
        let mut least = 0;
        let runs = runs.into_iter().filter_map(|(first, count)| {
            let fits = first >= least;
            least = if fits { first + count } else { least };
            fits.then_some(PageRun { first: Gfn(first), count })
        });
        (mention, runs.collect())
    })
}

proptest! {
    #[test]
    fn every_page_has_the_mentions_of_a_walk(epochs in prop::collection::vec(prop::collection::vec(frames(), 0..5), 0..12)) {
        let index = open(build(&epochs), segment_bytes(&epochs)).unwrap();
        prop_assert_eq!((index.previous(), index.identity(), index.epochs()), (EpochId(1), 42, epochs.len() as u64));
        let walked = walk(&epochs);
        for gfn in 0..80 {
            let expected = walked.get(&gfn).cloned().unwrap_or_default();
            let found = index.find_run(Gfn(gfn)).unwrap();
            let offsets = |range: std::ops::Range<u64>| {
                range.map(|number| index.frame(index.mention(number).unwrap().into()).unwrap().offset).collect::<Vec<_>>()
            };
            prop_assert_eq!(&found.as_ref().map_or(Vec::new(), |run| offsets(run.mentions.clone())), &expected);
            for frame in 0..u32::try_from(index.frames()).unwrap() {
                let below = found.as_ref().map_or(0, |run| index.mentions_below(run, frame).unwrap());
                let limit = index.frame(frame.into()).unwrap().offset;
                prop_assert_eq!(below, expected.iter().filter(|offset| **offset < limit).count() as u64);
            }
        }
        // Rising, disjoint and as few as there can be.
        let runs: Vec<_> = (0..index.runs()).map(|number| index.run(number).unwrap()).collect();
        for pair in runs.windows(2) {
            let (one, next) = (&pair[0], &pair[1]);
            prop_assert!(one.run.end().unwrap() <= next.run.first && one.mentions.end == next.mentions.start);
            let numbers = |run: &IndexedRun| run.mentions.clone().map(|number| index.mention(number).unwrap()).collect::<Vec<_>>();
            prop_assert!(one.run.end().unwrap() < next.run.first || numbers(one) != numbers(next));
        }
        let mut frame = 0;
        for (number, frames) in (0u64..).zip(&epochs) {
            let epoch = index.epoch(number).unwrap();
            prop_assert_eq!((epoch.epoch, u64::from(epoch.first_frame), epoch.base), (EpochId(2 * number + 2), frame, number % 5 == 0));
            prop_assert_eq!(index.find_epoch(epoch.epoch).unwrap(), Ok(number));
            prop_assert_eq!(index.find_epoch(EpochId(epoch.epoch.0 - 1)).unwrap(), Err(number));
            frame += frames.len() as u64;
        }
    }
}

fn some_epochs() -> Epochs {
    let run = |first, count| PageRun { first: Gfn(first), count };
    (0..300)
        .map(|number| {
            vec![
                (Mention::Whole, vec![run(number % 50, 16)]),
                (Mention::Zeros, vec![run(1000 + number, 7)]),
                (Mention::Changes, vec![run(9, 2)]),
            ]
        })
        .collect()
}

#[test]
fn a_flipped_byte_never_goes_unnoticed() {
    let epochs = some_epochs();
    let (bytes, segment) = (build(&epochs), segment_bytes(&epochs));
    let read = |index: &Index| -> Result<(), IndexError> {
        (0..index.epochs()).try_for_each(|number| index.epoch(number).map(drop))?;
        (0..index.frames()).try_for_each(|number| index.frame(number).map(drop))?;
        (0..index.runs()).try_for_each(|number| index.run(number).map(drop))?;
        (0..index.mentions()).try_for_each(|number| index.mention(number).map(drop))
    };
    read(&open(bytes.clone(), segment).unwrap()).unwrap();
    assert!(bytes.len() > 12 * BLOCK_BYTES);
    for at in (0..bytes.len()).step_by(61) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let error = open(flipped, segment).and_then(|index| read(&index)).unwrap_err();
        assert!(
            matches!(&error, IndexError::Format(FormatError::Checksum { offset, .. }) if offset / 4096 == at as u64 / 4096),
            "{at}: {error}"
        );
    }
}

#[test]
fn an_index_fits_one_segment() {
    let epochs = some_epochs();
    let (bytes, segment) = (build(&epochs), segment_bytes(&epochs));
    assert!(open(bytes.clone(), segment + 8).unwrap_err().to_string().contains("bytes of the segment"));
    assert!(Index::open(Box::new(bytes.clone()), &[8; FRAME_HEADER_BYTES], segment).is_err());
    for cut in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, bytes.len() - BLOCK_BYTES] {
        assert!(open(bytes[..cut].to_vec(), segment).is_err(), "{cut}");
    }
    assert!(open([bytes.clone(), vec![0; BLOCK_BYTES]].concat(), segment).is_err());
    let swapped = [
        &bytes[..BLOCK_BYTES],
        &bytes[2 * BLOCK_BYTES..3 * BLOCK_BYTES],
        &bytes[BLOCK_BYTES..2 * BLOCK_BYTES],
        &bytes[3 * BLOCK_BYTES..],
    ]
    .concat();
    assert!(open(swapped, segment).unwrap().epoch(0).is_err());
}

#[test]
fn frames_of_no_complete_epoch_are_forgotten() {
    let run = |first, count| PageRun { first: Gfn(first), count };
    let mut builder = IndexBuilder::new();
    builder.frame(128, Mention::Whole, [run(1, 2)]).unwrap();
    let epoch =
        IndexedEpoch { epoch: EpochId(1), offset: 128, state_offset: 200, commit_offset: 300, first_frame: 0, base: true };
    builder.epoch(epoch);
    let expected = builder.clone().finish(&FIRST_FRAME, 400, EpochId::NONE, 1).unwrap();
    builder.frame(400, Mention::Zeros, [run(1, 20)]).unwrap();
    builder.forget_frames();
    assert_eq!(builder.mentions(), 2);
    builder.frame(400, Mention::Zeros, [run(3, 20)]).unwrap();
    builder.epoch(IndexedEpoch { epoch: EpochId(2), offset: 400, ..epoch });
    builder.truncate(1);
    assert_eq!(builder.finish(&FIRST_FRAME, 400, EpochId::NONE, 1).unwrap(), expected);
}

#[test]
fn overlaps_beyond_any_guest_are_refused() {
    let mut builder = IndexBuilder::new();
    for frame in 0..20_000 {
        builder.frame(128 + frame, Mention::Zeros, [PageRun { first: Gfn(frame), count: 1 << 39 }]).unwrap();
    }
    let error = builder.finish(&FIRST_FRAME, 1 << 20, EpochId::NONE, 1).unwrap_err();
    assert!(error.to_string().contains("mentions of an index"), "{error}");
}

#[test]
fn the_first_block_proves_what_its_segment_held() {
    let chain = ChainId(*b"of this segment!");
    let segment = SegmentHeader {
        format: crate::format::FORMAT_VERSION,
        number: 4,
        more: 2,
        chain,
        previous_hash: 7,
        previous: EpochId(9),
    };
    let frame: [u8; SEGMENT_HEADER_FRAME_BYTES] = segment.encode_frame().try_into().unwrap();
    let mut builder = IndexBuilder::new();
    builder.frame(128, Mention::Whole, [PageRun { first: Gfn(3), count: 1 }]).unwrap();
    let epoch =
        IndexedEpoch { epoch: EpochId(12), offset: 128, state_offset: 300, commit_offset: 400, first_frame: 0, base: true };
    builder.epoch(epoch);
    let bytes = builder.finish(&frame, 640, EpochId(9), 0xABCD).unwrap();
    let proof = IndexProof::parse(&bytes).unwrap();
    assert_eq!(proof, IndexProof { chain, first: 4, last: 6, epoch: EpochId(12), identity: 0xABCD });
    assert_eq!(IndexProof::parse(&bytes[..IndexProof::BYTES]).unwrap(), proof);
    for length in [0, 100, IndexProof::BYTES - 1] {
        IndexProof::parse(&bytes[..length]).unwrap_err();
    }
    for at in 0..IndexProof::BYTES {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(IndexProof::parse(&changed).is_err(), "byte {at}");
    }
    // No segment's header, under a checksum that is right.
    let bytes = IndexBuilder::new().finish(&FIRST_FRAME, 640, EpochId(9), 0xABCD).unwrap();
    IndexProof::parse(&bytes).unwrap_err();
}
