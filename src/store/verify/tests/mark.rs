//! The mark, and what indexes prove: what was durable and is lost is said to be lost.

use super::branches::{branch, grow};
use super::compacted::long;
use super::*;

/// A mark whose slots name these epochs.
pub(super) fn slots(writer: &Writer, epochs: [u64; 3]) -> Vec<u8> {
    let blocks = epochs.map(|epoch| {
        let began = writer.branch_of.as_ref().filter(|of| of.1 == epoch).map(|of| of.2);
        let identity = writer.written.get(&epoch).map(|written| written.identity).or(began).unwrap_or_default();
        slot(&writer.chain, epoch, identity)
    });
    blocks.concat()
}

fn slot(chain: &[u8; 16], epoch: u64, identity: u128) -> Vec<u8> {
    let mut slot = vec![0xD7, 0x53, 0x57, 0x44, 1, 0, 0, 0];
    slot.extend(chain);
    slot.extend(epoch.to_le_bytes());
    slot.extend(identity.to_le_bytes());
    slot.extend(xxh3_64(&slot).to_le_bytes());
    slot.resize(4096, 0);
    slot
}

/// Four segments with twelve epochs, closed, with the mark that it should have; without indexes.
pub(super) fn marked() -> Writer {
    Writer { marks: true, ..long() }
}

/// The first segment of this chain, without an epoch, or of another.
fn first_segment(chain: u8) -> Vec<u8> {
    let mut writer = Writer { chain: [CHAIN[0] ^ chain; 16], ..Writer::new() };
    writer.chain[1..].copy_from_slice(&CHAIN[1..]);
    writer.segments.clear();
    writer.numbers.clear();
    writer.segment();
    writer.segments.remove(0)
}

fn one(dir: &Path, epoch: u64) -> Result<VerifyReport, VerifyError> {
    verify(dir, &VerifyOptions { epoch: Some(EpochId(epoch)), ..VerifyOptions::default() }, &mut |_| {})
}

#[track_caller]
fn is_lost(writer: &Writer, epochs: u64, proven: u64) {
    let dir = writer.save();
    let report = run(dir.path());
    assert!(report.torn_tail.is_none() && !report.is_sound(), "{report:#?}");
    assert_eq!(report.epochs, epochs, "{report:#?}");
    let lost = report.damage.iter().find(|damage| damage.kind == DamageKind::LostEpochs);
    let expected = format!("epochs up to {proven}, which were durable");
    let said = lost.is_some_and(|lost| lost.expected == expected) || kinds(&report)[0] != DamageKind::LostEpochs;
    assert!(said, "{report:#?}");
    for epoch in 1..=proven {
        let report = one(dir.path(), epoch).unwrap();
        assert_eq!(report.is_sound(), epoch <= epochs, "epoch {epoch}: {report:#?}");
    }
    assert!(matches!(one(dir.path(), proven + 1).unwrap_err(), VerifyError::NoEpoch { .. }));
}

#[test]
fn a_marked_chain_is_sound() {
    let mut writer = marked();
    writer.index();
    let report = writer.verify();
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!((report.epochs, report.leftovers.len()), (12, 0));
    // Whichever slot says it, and however little: it is no more than a lower bound.
    for epochs in [[12, 0, 0], [0, 12, 0], [0, 0, 12], [3, 9, 1], [0; 3]] {
        writer.mark = Some(Some(slots(&writer, epochs)));
        assert!(writer.verify().is_sound(), "{epochs:?}");
    }
    // Torn slots.
    for torn in 0..7usize {
        let mut mark = slots(&writer, [12, 11, 10]);
        for slot in (0..3).filter(|slot| torn & 1 << slot != 0) {
            mark[slot * 4096 + 30] ^= 1;
        }
        writer.mark = Some(Some(mark));
        assert!(writer.verify().is_sound(), "{torn}");
    }
}

#[test]
fn without_a_whole_mark_nobody_knows() {
    let whole = marked();
    let sound = slots(&whole, [12; 3]);
    let mut other = whole.clone();
    other.chain[3] ^= 1;
    let cases = [
        None,
        Some(Vec::new()),
        Some(vec![0; 12288]),
        Some(sound[..12287].to_vec()),
        Some(sound[..4096].to_vec()),
        Some([&sound[..], &[0]].concat()),
        Some(slots(&other, [12; 3])),
    ];
    for (number, mark) in cases.into_iter().enumerate() {
        for tail in [false, true] {
            let mut writer = whole.clone();
            writer.mark = Some(mark.clone());
            if tail {
                writer.segments[3].extend([1; 200]);
            }
            let report = writer.verify();
            assert_eq!(kinds(&report)[0], DamageKind::Mark, "case {number}: {report:#?}");
            assert!(report.damage[0].found.contains("what was durable is not known"), "{report:#?}");
            // The epochs are what they were.
            assert_eq!(
                (report.epochs, report.damage.len(), report.torn_tail),
                (12, 1 + usize::from(tail), None),
                "case {number}"
            );
        }
    }
    // Older chains have none.
    assert!(long().verify().is_sound());
    let dir = marked().save();
    fs::remove_file(dir.path().join("durable")).unwrap();
    fs::create_dir(dir.path().join("durable")).unwrap();
    assert_eq!(kinds(&run(dir.path())), [DamageKind::Mark]);
}

#[test]
fn what_the_mark_says_is_there_or_lost() {
    // Whole segments at the end.
    for count in 1..4usize {
        let mut writer = marked();
        writer.segments.truncate(count);
        is_lost(&writer, 3 * count as u64, 12);
    }
    // Epochs at the end of the last, whole or not.
    for (epoch, more) in [(11, 0), (11, 60), (10, 0), (10, 1)] {
        let mut writer = marked();
        writer.cut(epoch, more);
        is_lost(&writer, epoch, 12);
    }
    // The last segment is empty, or another's.
    let mut writer = marked();
    writer.segments[3].clear();
    is_lost(&writer, 9, 12);
    let mut writer = marked();
    for chain in [0, 1] {
        writer.segments[3] = first_segment(chain);
        is_lost(&writer, 9, 12);
    }
    // Only what is above it may be torn.
    let mut writer = marked();
    writer.mark = Some(Some(slots(&writer, [10, 4, 9])));
    writer.cut(10, 40);
    let report = writer.verify();
    assert!(report.is_sound() && report.torn_tail.is_some(), "{report:#?}");
    assert_eq!(report.epochs, 10);
}

#[test]
fn an_index_proves_what_its_segment_held() {
    // Here the mark says nothing.
    let mut whole = long();
    whole.index();
    let indexes: BTreeMap<usize, Option<Vec<u8>>> =
        whole.segments.iter().map(|segment| Some(index::Tables::of(segment).sealed())).enumerate().collect();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut writer = whole.clone();
        writer.indexes = indexes.clone();
        change(&mut writer.segments[3]);
        writer
    };
    let (another, first) = (first_segment(1), first_segment(0));
    let half = whole.places[&11].3;
    for (what, change) in [
        ("empty", &(|segment: &mut Vec<u8>| segment.clear()) as &dyn Fn(&mut Vec<u8>)),
        ("cut", &|segment| segment.truncate(half + 9)),
        ("cut where an epoch ends", &|segment| segment.truncate(half)),
        ("another's", &|segment| segment.clone_from(&another)),
        ("the chain's first", &|segment| segment.clone_from(&first)),
    ] {
        println!("{what}");
        is_lost(&with(change), if what.starts_with("cut") { 11 } else { 9 }, 12);
    }
    // It is gone, and so is another.
    let mut writer = whole.clone();
    writer.indexes = indexes.clone();
    let dir = writer.save();
    for (number, left) in [(4, 9), (3, 6)] {
        fs::remove_file(dir.path().join(format!("segment-{number:08}"))).unwrap();
        let report = run(dir.path());
        assert_eq!((kinds(&report), report.epochs), (vec![DamageKind::LostEpochs], left), "{report:#?}");
        assert!(!one(dir.path(), 12).unwrap().is_sound());
    }
    // One that proves nothing: it is of another chain, has another name, or is damaged.
    let bytes = fs::read(dir.path().join("index-00000004")).unwrap();
    fs::rename(dir.path().join("index-00000004"), dir.path().join("index-00000009")).unwrap();
    fs::remove_file(dir.path().join("index-00000003")).unwrap();
    assert!(run(dir.path()).is_sound());
    let mut damaged = bytes.clone();
    damaged[60] ^= 1;
    fs::write(dir.path().join("index-00000004"), damaged).unwrap();
    assert!(run(dir.path()).is_sound());
    fs::write(dir.path().join("index-00000004"), &bytes[..4095]).unwrap();
    assert!(run(dir.path()).is_sound());
    // Its first block is enough.
    fs::write(dir.path().join("index-00000004"), &bytes[..4096]).unwrap();
    assert!(!run(dir.path()).is_sound());
    // A tail behind a segment with an index is as any other.
    let report = with(&|segment| segment.extend([1; 100])).verify();
    assert!(report.is_sound() && report.torn_tail.is_some(), "{report:#?}");
}

#[test]
fn another_line_in_the_place_of_what_was_durable() {
    // The same numbers, other content from epoch 10 on.
    let mut whole = marked();
    let mut other = whole.clone();
    other.segments.truncate(3);
    other.numbers.truncate(3);
    other.last = (9, whole.written[&9].identity);
    other.memory.clone_from(&whole.written[&9].memory);
    other.frames.retain(|frame| frame.0 < 3);
    other.segment();
    grow(&mut other, 10, 14, 7);
    other.close();
    assert!(other.verify().is_sound());
    whole.index();
    for by_index in [false, true] {
        let dir = other.save();
        fs::write(dir.path().join("durable"), slots(&whole, [if by_index { 0 } else { 12 }; 3])).unwrap();
        if by_index {
            fs::write(dir.path().join("index-00000004"), index::Tables::of(&whole.segments[3]).sealed()).unwrap();
        }
        let report = run(dir.path());
        assert_eq!(kinds(&report), [DamageKind::ReplacedEpoch], "{report:#?}");
        assert_eq!((report.epochs, report.epochs_behind_damage, report.damage[0].epoch), (11, 2, Some(12)));
    }
}

#[test]
fn a_compacted_segment_has_no_torn_tail() {
    let whole = marked().compacted(2, 3, &[9, 12]);
    let whole = Writer { mark: Some(Some(slots(&whole, [0; 3]))), ..whole };
    assert!(whole.verify().is_sound());
    let last = whole.segments.len() - 1;
    let bytes = whole.segments[last].clone();
    for length in [0, 40, 128, 200, bytes.len() / 2, whole.places[&9].3, whole.places[&12].3, bytes.len() - 1] {
        let mut writer = whole.clone();
        writer.segments[last].truncate(length);
        let report = writer.verify();
        assert!(!report.is_sound() && report.torn_tail.is_none(), "{length}: {report:#?}");
    }
    for at in (0..bytes.len()).step_by(13) {
        let mut writer = whole.clone();
        writer.segments[last][at] ^= 4;
        let report = writer.verify();
        assert!(!report.is_sound() && report.torn_tail.is_none(), "{at}: {report:#?}");
    }
    let mut writer = whole;
    writer.segments[last].extend([7; 50]);
    assert!(!writer.verify().is_sound());
}

#[test]
fn a_branch_has_a_mark_of_its_own() {
    let main = marked();
    let mut side = Writer { marks: true, ..branch(&main, "main", 5, 1) };
    let dir = main.save();
    side.save_to(&dir.path().join("branches/a"));
    let report = run(dir.path());
    assert!(report.is_sound(), "{report:#?}");
    grow(&mut side, 6, 8, 60);
    side.close();
    side.cut(7, 0);
    side.save_to(&dir.path().join("branches/a"));
    let report = run(dir.path());
    assert_eq!((kinds(&report), report.branches[1].epochs), (vec![DamageKind::LostEpochs], 2), "{report:#?}");
    assert!(report.damage[0].file.starts_with("branches/a/"));
    // Main has what it had.
    assert_eq!((report.branches[0].epochs, report.branches[0].damaged), (12, 0));
}
