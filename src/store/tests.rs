//! Crashes, faults and damage on a simulated disk; the rest on a real one.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use super::names::DESCRIPTION;
use super::testing::{Cut, Disk, Model, Random, new_chain};
use super::*;
use crate::epoch::SinkError;
use crate::format::{Commit, Compression, EpochWriter, FormatError, FrameHeader, FrameKind, Head, Line, MemoryDigest};
use crate::page::EpochId;
use crate::restore;

/// Small segments, so that there are many.
const SMALL: WriterOptions = WriterOptions {
    segment_bytes: 60_000,
    segment_mentions: 1 << 20,
    preallocate_bytes: 1 << 16,
    retention: None,
    background: false,
};

fn epochs(chain: &Chain) -> Vec<Epoch> {
    chain.epochs().collect::<Result<_, _>>().unwrap()
}

/// A guest's whole life on `disk`: epochs, syncs, an orderly end, another writer, no end.
fn life(disk: &Disk, model: &mut Model) -> Result<(), StoreError> {
    let mut writer = disk.create(&new_chain(), SMALL)?;
    model.run(&mut writer, 7);
    if let Ok(durable) = writer.close(true) {
        model.durable = durable;
    }
    drop(writer);
    let mut writer = disk.writer(SMALL)?;
    model.durable = model.durable.max(writer.head().epoch);
    model.run(&mut writer, 6);
    Ok(())
}

/// Opens what a crash left, checks it, goes on with it, and checks again. `judged` says whether
/// `verify` is asked, too.
fn survives(disk: &Disk, model: &Model, seed: u64, judged: bool) {
    let mut guest = Model::new(seed, Compression::None);
    guest.offered = model.offered.clone();
    guest.memory = model.memory.clone();
    guest.durable = model.durable;
    guest.skip_to(EpochId(1000));
    let mut writer = match disk.chain() {
        Ok(chain) => {
            guest.check(&chain);
            // It was written from the format's page alone, and no crash leaves what it calls
            // damage.
            if judged {
                let report = disk.verified();
                assert!(report.is_sound(), "{report:#?}");
                assert_eq!(report.newest.unwrap_or_default(), chain.newest());
            }
            disk.writer(SMALL).unwrap()
        }
        Err(StoreError::Empty { .. } | StoreError::NotAStore { .. }) => {
            assert_eq!(model.durable, EpochId::NONE);
            disk.create(&new_chain(), SMALL).unwrap()
        }
        Err(error) => panic!("a crash left something that cannot be opened: {error}"),
    };
    guest.durable = writer.head().epoch;
    guest.run(&mut writer, 2);
    guest.durable = writer.close(true).unwrap();
    let chain = disk.chain().unwrap();
    assert!(chain.tail().is_none());
    assert_eq!(chain.is_closed(), chain.newest() != EpochId::NONE);
    guest.check(&chain);
}

#[test]
fn every_power_cut_leaves_what_was_durable() {
    for seed in 0..4 {
        // Odd seeds: operations fail as well.
        let disk = || if seed % 2 == 1 { Disk::new().with_faults(seed, 12) } else { Disk::new() };
        let whole = disk();
        let _ = life(&whole, &mut Model::new(seed, Compression::None));
        let operations = whole.operations();
        assert!(operations > 40, "seed {seed}: the life is too short: {operations} operations");
        for at in 0..operations {
            let mut model = Model::new(seed, Compression::None);
            let disk = disk().cutting_at(at);
            let _ = life(&disk, &mut model);
            let mut cuts = vec![Cut::Kept, Cut::Dropped];
            cuts.extend((0..2).map(|torn| Cut::Torn(seed * 1_000_003 + at * 101 + torn)));
            for cut in cuts {
                let _context = Context(format!("seed {seed}, cut at operation {at}, {cut:?}"));
                let left = disk.after(cut);
                // The power goes again while the chain is being opened.
                let again = left.after(Cut::Kept).cutting_at(at % 7);
                let _ = again.writer(SMALL);
                survives(&again.after(Cut::Torn(at)), &model, seed, at % 4 == 0);
                survives(&left, &model, seed, true);
            }
        }
    }
}

/// Says in which case a test failed.
struct Context(String);

impl Drop for Context {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with {}", self.0);
        }
    }
}

/// A reader, `verify` and a writer agree that a chain whose epochs were durable up to `durable` is
/// sound and has them all, or is damaged and stays what it is. Returns which.
fn is_whole_or_damaged(files: &Files, durable: EpochId) -> bool {
    let disk = Disk::holding(files);
    let chain = disk.chain().unwrap();
    let is_sound = chain.damage().is_empty();
    assert!(!is_sound || chain.newest() >= durable, "{durable} was durable, and {} is all there is", chain.newest());
    let report = disk.verified();
    assert_eq!(report.is_sound(), is_sound, "{:?}\n{report:#?}", chain.damage());
    match disk.writer(SMALL) {
        Ok(_) => assert!(is_sound),
        Err(error) => {
            assert!(error.is_damage() && !is_sound, "{error}");
            assert!(disk.files() == *files, "a writer changes nothing where there is damage");
        }
    }
    is_sound
}

#[test]
fn what_is_lost_is_said_to_be_lost() {
    let (mut whole, mut damaged) = (0, 0);
    for seed in 0..6 {
        let disk = Disk::new();
        let mut model = Model::new(seed, Compression::None);
        life(&disk, &mut model).unwrap();
        let files = disk.files();
        let names: Vec<_> = files.keys().filter(|name| !["description.json", "lock"].contains(&name.as_str())).collect();
        assert!(names.iter().any(|name| name.starts_with("index")), "{names:?}");
        let mut random = Random(seed);
        let mut lose = |files: &mut Files, name: &str| {
            let bytes = files[name].clone();
            match random.below(4) {
                0 => drop(files.insert(name.to_owned(), Vec::new())),
                1 => {
                    let len = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                    files.insert(name.to_owned(), bytes[..len].to_vec());
                }
                2 => drop(files.insert(name.to_owned(), vec![0; bytes.len()])),
                _ => drop(files.remove(name)),
            }
        };
        for (at, name) in names.iter().enumerate() {
            for other in &names[at..] {
                let _context = Context(format!("seed {seed}, {name} and {other}"));
                let mut left = files.clone();
                lose(&mut left, name);
                if other != name {
                    lose(&mut left, other);
                }
                if is_whole_or_damaged(&left, model.durable) { whole += 1 } else { damaged += 1 }
            }
            // And all from here on, as a copy leaves that ended early: files come by their names.
            let mut left = files.clone();
            names[at..].iter().for_each(|name| drop(left.remove(*name)));
            if left.contains_key(DESCRIPTION) {
                is_whole_or_damaged(&left, model.durable);
            }
        }
    }
    assert!(whole > 20 && damaged > 100, "{whole}, {damaged}");
}

/// What is durable is proven at once, and by more than the segment that it is in.
#[test]
fn the_mark_goes_with_every_sync() {
    let disk = Disk::new();
    let mut model = Model::new(4, Compression::None);
    model.quiet();
    let mut writer = disk.create(&new_chain(), WriterOptions::default()).unwrap();
    assert_eq!(disk.chain().unwrap().durable(), EpochId::NONE);
    for _ in 0..5 {
        model.epoch(&mut writer).unwrap();
        model.epoch(&mut writer).unwrap();
        model.sync(&mut writer).unwrap();
        // A process that is killed now leaves it.
        assert_eq!(disk.chain().unwrap().durable(), writer.head().epoch);
        let mut files = disk.files();
        let segment = files.get_mut("segment-00000001").unwrap();
        segment.truncate(segment.len() - 8);
        assert!(!is_whole_or_damaged(&files, model.durable));
    }
    let syncs = disk.operations();
    model.epoch(&mut writer).unwrap();
    model.sync(&mut writer).unwrap();
    assert!(disk.operations() - syncs <= 5, "one small write a sync");
    // An orderly end survives a power cut.
    model.durable = writer.close(true).unwrap();
    let left = disk.after(Cut::Dropped);
    assert_eq!(left.chain().unwrap().durable(), model.durable);
    let mut files = left.files();
    files.insert("segment-00000001".to_owned(), Vec::new());
    assert!(!is_whole_or_damaged(&files, model.durable));
    files.remove("segment-00000001");
    assert!(!is_whole_or_damaged(&files, model.durable));
}

#[test]
fn a_killed_process_loses_nothing_that_was_appended() {
    let disk = Disk::new();
    let mut model = Model::new(5, Compression::default());
    let mut writer = disk.create(&new_chain(), SMALL).unwrap();
    model.run(&mut writer, 12);
    let tip = writer.head().epoch;
    drop(writer);
    let mut writer = disk.writer(SMALL).unwrap();
    assert_eq!(writer.head().epoch, tip);
    // It is durable before anything builds on it.
    model.durable = tip;
    model.check(&disk.after(Cut::Dropped).chain().unwrap());
    model.run(&mut writer, 3);
    model.check(&disk.chain().unwrap());
}

#[test]
fn a_full_disk_rejects_the_epoch_and_only_that() {
    let disk = Disk::new();
    let mut model = Model::new(9, Compression::None);
    model.quiet();
    let mut writer = disk.create(&new_chain(), WriterOptions { preallocate_bytes: 0, ..WriterOptions::default() }).unwrap();
    model.run(&mut writer, 4);
    model.sync(&mut writer).unwrap();
    let (tip, files) = (writer.head().epoch, disk.files());
    let used: usize = files.values().map(Vec::len).sum();
    for room in [0, 1, 47, 48, 49, 300] {
        disk.set_capacity(Some((used + room) as u64));
        assert!(matches!(model.epoch(&mut writer), Err(SinkError::Rejected(_))));
        assert_eq!(writer.head().epoch, tip);
        assert_eq!(disk.files(), files, "the chain is as it was");
    }
    disk.set_capacity(None);
    model.run(&mut writer, 3);
    model.sync(&mut writer).unwrap();
    assert!(writer.head().epoch > tip);
    model.check(&disk.chain().unwrap());
}

#[test]
fn nothing_is_taken_after_a_failed_sync() {
    for seed in 0..40 {
        let _context = Context(format!("seed {seed}"));
        let disk = Disk::new();
        let mut model = Model::new(seed, Compression::None);
        let mut writer = disk.create(&new_chain(), SMALL).unwrap();
        model.run(&mut writer, 3);
        let broken = disk.clone().with_faults(seed, 1);
        assert!(matches!(writer.sync(), Err(SinkError::Latched(_))) || writer.durable() == writer.head().epoch);
        drop(broken.without_faults());
        if writer.durable() < writer.head().epoch {
            assert!(matches!(model.epoch(&mut writer), Err(SinkError::Latched(_))));
            assert!(matches!(writer.sync(), Err(SinkError::Latched(_))));
            // What reopening finds is what the medium has, and not what the system kept of it.
            model.durable = writer.reopen().unwrap().epoch;
            model.check(&disk.after(Cut::Dropped).chain().unwrap());
        }
        model.run(&mut writer, 2);
        model.sync(&mut writer).unwrap();
        model.check(&disk.after(Cut::Dropped).chain().unwrap());
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// A small chain of several segments, closed in order, and what its epochs hold.
fn small_chain(closed: bool) -> (Files, Vec<(EpochId, MemoryDigest)>) {
    let disk = Disk::new();
    let mut model = Model::new(3, Compression::Zstd { level: 3 });
    model.quiet();
    let mut writer = disk.create(&new_chain(), WriterOptions { segment_bytes: 900, ..SMALL }).unwrap();
    for _ in 0..5 {
        model.epoch(&mut writer).unwrap();
    }
    if closed {
        writer.close(true).unwrap();
    }
    let digests = epochs(&disk.chain().unwrap()).iter().map(|epoch| (epoch.commit.epoch, epoch.commit.audit.unwrap())).collect();
    (disk.files(), digests)
}

/// Everything a reader gives of damaged files is what was there, and a writer changes nothing that
/// is damaged. Returns whether the damage was noticed, or else all is given as it was: damage in
/// what no restore needs is `verify`'s to find.
fn gives_nothing_wrong(files: &Files, digests: &[(EpochId, MemoryDigest)]) -> bool {
    let disk = Disk::holding(files);
    let Ok(chain) = disk.chain() else { return true };
    let mut noticed = chain.tail().is_some() || !chain.damage().is_empty();
    let found: Vec<_> = chain.epochs().collect();
    assert!(found.len() <= digests.len());
    for (epoch, expected) in found.iter().zip(digests) {
        let epoch = match epoch {
            Ok(epoch) => epoch,
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                noticed = true;
                continue;
            }
        };
        assert_eq!(epoch.commit.epoch, expected.0);
        match restore::digest(&chain, epoch.commit.epoch) {
            Ok(digest) => assert_eq!(digest.memory, expected.1),
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                noticed = true;
            }
        }
    }
    let before = disk.files();
    match disk.writer(SMALL) {
        Ok(_) => assert!(chain.damage().is_empty()),
        Err(error) => {
            assert!(error.is_damage(), "{error}");
            assert_eq!(disk.files(), before, "a writer changes nothing where there is damage");
        }
    }
    noticed || found.len() == digests.len()
}

/// The places in a file that are worth a try: zeros behind a slot of the mark, or behind the
/// entries of an index, are alike.
fn places<'a>(name: &str, bytes: &'a [u8]) -> impl Iterator<Item = usize> + use<'a> {
    let in_blocks = !name.starts_with("segment");
    let is_worth = move |at: &usize| !in_blocks || at % 4096 < 60 || bytes[*at] != 0 || at.is_multiple_of(61);
    (0..bytes.len()).filter(is_worth)
}

#[test]
fn every_flipped_byte_is_noticed_or_harmless() {
    for closed in [false, true] {
        let (files, digests) = small_chain(closed);
        assert!(files.len() >= 3 && digests.len() == 5, "{:?}", files.keys());
        let mut random = Random(u64::from(closed));
        for (name, bytes) in &files {
            for at in places(name, bytes) {
                let _context = Context(format!("closed {closed}, {name} at {at}"));
                let mut damaged = files.clone();
                damaged.get_mut(name).unwrap()[at] ^= 1 << random.below(8);
                assert!(gives_nothing_wrong(&damaged, &digests));
            }
        }
    }
}

#[test]
fn every_truncation_and_lost_file_is_noticed_or_harmless() {
    let (files, digests) = small_chain(true);
    for (name, bytes) in files.iter().filter(|(name, _)| *name != DESCRIPTION) {
        for len in places(name, bytes) {
            let _context = Context(format!("{name} cut to {len}"));
            let mut damaged = files.clone();
            damaged.get_mut(name).unwrap().truncate(len);
            assert!(gives_nothing_wrong(&damaged, &digests));
        }
        let mut damaged = files.clone();
        damaged.remove(name);
        assert!(gives_nothing_wrong(&damaged, &digests), "{name}");
    }
}

#[test]
fn damage_is_told_from_a_torn_tail() {
    for (closed, is_damage) in [(true, true), (false, false)] {
        let (mut files, _) = small_chain(closed);
        let (name, bytes) = files.iter_mut().next_back().unwrap();
        let name = name.clone();
        // The first byte of the last segment's first epoch.
        bytes[SEGMENT_FRAME] ^= 1;
        let disk = Disk::holding(&files);
        let chain = disk.chain().unwrap();
        let (file, offset) = match (chain.damage(), chain.tail()) {
            ([damage], None) if is_damage => (&damage.file, damage.offset),
            ([], Some(tail)) if !is_damage => (&tail.file, tail.offset),
            other => panic!("closed {closed}: {other:?}"),
        };
        assert_eq!((file.file_name().unwrap().to_str().unwrap(), offset), (name.as_str(), SEGMENT_FRAME as u64));
        assert_eq!(disk.writer(SMALL).is_err(), is_damage);
    }
}

const SEGMENT_FRAME: usize = crate::format::SEGMENT_HEADER_FRAME_BYTES;

#[test]
fn damage_before_the_last_segment_is_damage_even_without_a_later_commit() {
    // The last segment has only its header: that alone proves that the segment before was synced.
    let disk = Disk::new();
    let mut model = Model::new(3, Compression::None);
    model.quiet();
    let mut writer = disk.create(&new_chain(), WriterOptions { segment_bytes: 1, ..SMALL }).unwrap();
    model.epoch(&mut writer).unwrap();
    model.epoch(&mut writer).unwrap();
    let mut files = disk.files();
    files.get_mut(&SegmentNumbers::one(2).file_name()).unwrap().truncate(SEGMENT_FRAME);
    // A sealed segment is taken at its index's word.
    files.retain(|name, _| !name.starts_with("index"));
    let state = usize::try_from(epochs(&disk.chain().unwrap())[0].state_offset).unwrap();
    files.get_mut(&SegmentNumbers::one(1).file_name()).unwrap()[state + 60] ^= 4;
    let chain = Disk::holding(&files).chain().unwrap();
    assert_eq!(chain.durable(), EpochId(1));
    // A payload of a durable epoch is checked when it is needed.
    assert_eq!(epochs(&chain).len(), 1);
    assert!(restore::digest(&chain, EpochId(1)).unwrap_err().is_damage());
    files.get_mut(&SegmentNumbers::one(1).file_name()).unwrap()[SEGMENT_FRAME + 10] ^= 4;
    assert_eq!(Disk::holding(&files).chain().unwrap().damage().len(), 1);
}

#[test]
fn an_epoch_that_was_exchanged_is_noticed_by_the_next() {
    let (mut files, _) = small_chain(true);
    // A sealed segment is taken at its index's word; what else may be wrong in it is `verify`'s to
    // find.
    files.retain(|name, _| !name.starts_with("index"));
    let chain = Disk::holding(&files).chain().unwrap();
    // Two of one segment, so that the hash in the next segment's header is not what tells.
    let epochs = epochs(&chain);
    let pair = epochs.windows(2).find(|pair| pair[0].segment == pair[1].segment).unwrap();
    let commit = Commit { run_ns: 12345, ..pair[0].commit };
    let at = usize::try_from(pair[0].commit_offset).unwrap();
    let frame = commit.encode_frame(chain.description().chain);
    files.get_mut(&pair[0].segment.file_name()).unwrap()[at..at + frame.len()].copy_from_slice(&frame);
    let chain = Disk::holding(&files).chain().unwrap();
    assert_eq!(chain.newest(), commit.epoch);
    assert!(
        matches!(chain.damage(), [damage] if damage.epoch == pair[1].commit.epoch && damage.expected.contains("parent hash"))
    );
}

#[test]
fn readers_see_whole_epochs_while_a_writer_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut model = Model::new(21, Compression::None);
    let mut writer = Writer::create(&path, &new_chain(), SMALL).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut newest, mut opened) = (EpochId::NONE, 0);
            while !done.load(Ordering::Relaxed) || opened == 0 {
                let chain = Chain::open(&path).unwrap();
                assert_eq!(chain.damage(), []);
                assert!(chain.newest() >= newest);
                newest = chain.newest();
                if newest != EpochId::NONE {
                    let digest = restore::digest(&chain, newest).unwrap();
                    assert_eq!(Some(digest.memory), chain.epoch(newest).unwrap().commit.audit);
                }
                opened += 1;
            }
        });
        model.run(&mut writer, 120);
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    model.check(&Chain::open(&path).unwrap());
}

#[test]
fn a_walk_over_noise_is_linear() {
    let disk = Disk::new();
    let mut writer = disk.create(&new_chain(), SMALL).unwrap();
    Model::new(1, Compression::None).epoch(&mut writer).unwrap();
    let mut files = disk.files();
    let chain = disk.chain().unwrap().description().chain;
    // Sound headers one behind the other, each of which claims more than there is, and magics
    // everywhere else.
    let header = FrameHeader { kind: FrameKind::State, epoch: EpochId(9), sequence: 0, length: 60 << 20, payload_hash: 0 };
    let bytes = files.get_mut(&SegmentNumbers::one(1).file_name()).unwrap();
    for _ in 0..20_000 {
        bytes.extend(header.encode(chain));
        bytes.extend(crate::format::FRAME_MAGIC.repeat(20));
    }
    let chain = Disk::holding(&files).chain().unwrap();
    assert!(chain.tail().is_some() && chain.damage().is_empty());
}

/// Whether it fits or not: nobody could tell what it is an index of.
#[test]
fn nothing_is_appended_to_a_segment_with_an_index() {
    let disk = Disk::new();
    let mut model = Model::new(7, Compression::None);
    model.quiet();
    let options = WriterOptions { segment_bytes: 2000, ..SMALL };
    let mut writer = disk.create(&new_chain(), options).unwrap();
    model.run(&mut writer, 4);
    model.durable = writer.close(true).unwrap();
    drop(writer);
    // The last segment is short: give it an index, as a compaction does.
    let description = std::sync::Arc::new(disk.chain().unwrap().description().clone());
    let last = disk.files().into_keys().rfind(|name| name.starts_with("segment")).unwrap();
    let numbers = SegmentNumbers::one(last["segment-".len()..].parse().unwrap());
    keep::make_index::make(std::path::Path::new("disk"), disk.medium().as_ref(), &description, numbers).unwrap();
    let (files, index) = (disk.files(), format!("index-{numbers}"));
    type Change = fn(&mut Vec<u8>, &mut Vec<u8>);
    let changes: [(&str, Change); 6] = [
        ("nothing", |_, _| {}),
        ("a tail", |segment, _| segment.extend([0xD7; 5000])),
        ("a flipped byte of the first block", |_, index| index[100] ^= 1),
        ("a flipped byte of the last block", |_, index| *index.last_mut().unwrap() ^= 1),
        ("an index cut short", |_, index| index.truncate(5000)),
        ("an empty index", |_, index| index.clear()),
    ];
    for (what, change) in changes {
        let _context = Context(what.to_owned());
        let mut changed = files.clone();
        let mut of_index = changed.remove(&index).unwrap();
        change(changed.get_mut(&last).unwrap(), &mut of_index);
        changed.insert(index.clone(), of_index);
        let disk = Disk::holding(&changed);
        let before = disk.verified();
        assert!(before.is_sound(), "{before:#?}");
        let mut guest = Model::new(8, Compression::None);
        guest.offered = model.offered.clone();
        let mut writer = disk.writer(options).unwrap();
        guest.continue_from(writer.head().epoch);
        guest.skip_to(EpochId(100));
        guest.run(&mut writer, 3);
        // Killed.
        drop(writer);
        let after = disk.files();
        assert!(after[&last] == files[&last], "the segment is what it was");
        assert!(after.contains_key(&SegmentNumbers::one(numbers.first + 1).file_name()));
        let report = disk.verified();
        assert!(report.is_sound(), "{report:#?}");
        guest.check(&disk.chain().unwrap());
    }
}

#[test]
fn a_commit_that_does_not_fit_is_refused() {
    let disk = Disk::new();
    let mut writer = disk.create(&new_chain(), SMALL).unwrap();
    let mut model = Model::new(1, Compression::None);
    model.quiet();
    model.epoch(&mut writer).unwrap();
    let (tip, files) = (writer.head().epoch, disk.files());
    let frames = |epoch| {
        let mut out = Vec::new();
        let mut epoch = EpochWriter::new(writer.description().chain, epoch);
        epoch.state(&mut out, &[]).unwrap();
        (out, epoch.totals())
    };
    let (next, totals) = frames(EpochId(50));
    let (chain, head) = (writer.description().chain, writer.head());
    let end = |epoch, head| Line::behind(chain, head).complete(Commit { epoch, totals, ..Commit::default() });
    assert!(matches!(writer.complete(&next, &end(tip, head)), Err(SinkError::Rejected(_))));
    assert!(matches!(writer.complete(&next[8..], &end(EpochId(50), head)), Err(SinkError::Rejected(_))));
    let another = Head { identity: head.identity ^ 1, ..head };
    assert!(matches!(writer.complete(&next, &end(EpochId(50), another)), Err(SinkError::Rejected(_))));
    writer.append(EpochId(50), &next).unwrap();
    assert!(matches!(writer.append(EpochId(51), &next), Err(SinkError::Rejected(_))));
    assert_eq!(disk.files(), files);
    writer.complete(&next, &end(EpochId(50), head)).unwrap();
    assert_eq!(disk.chain().unwrap().newest(), EpochId(50));
}

#[test]
fn a_chain_in_a_real_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut model = Model::new(11, Compression::default());
    let options = WriterOptions { segment_bytes: 100_000, ..WriterOptions::default() };
    let mut writer = Writer::create(&path, &new_chain(), options).unwrap();
    model.run(&mut writer, 20);

    // Readers need no lock; another writer gets none.
    model.check(&Chain::open(&path).unwrap());
    let error = Writer::open(&path, options).unwrap_err();
    assert!(error.is_in_use() && error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    let error = Writer::create(&path, &new_chain(), options).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");

    // A killed writer leaves a tail.
    let (tip, segments) = (writer.head().epoch, Chain::open(&path).unwrap().segments());
    assert!(segments > 1);
    drop(writer);
    let last = path.join(SegmentNumbers::one(u32::try_from(segments).unwrap()).file_name());
    let whole = fs::read(&last).unwrap();
    fs::write(&last, [&whole[..], &[0xD7, 0x53, 0x57, 0x1A, 1, 2, 3]].concat()).unwrap();
    let chain = Chain::open(&path).unwrap();
    assert_eq!((chain.tail().unwrap().bytes, chain.tail().unwrap().offset), (7, whole.len() as u64));
    let (mut writer, recovered) = Writer::open(&path, options).unwrap();
    assert_eq!((recovered.tip, recovered.torn.unwrap().bytes, recovered.closed), (tip, 7, false));
    assert_eq!(fs::read(&last).unwrap(), whole);
    model.run(&mut writer, 5);
    model.durable = writer.close(true).unwrap();
    drop(writer);
    let chain = Chain::open(&path).unwrap();
    model.check(&chain);
    assert!(chain.is_closed() && chain.tail().is_none());
    let (writer, recovered) = Writer::open(&path, options).unwrap();
    assert!(recovered.closed && writer.durable() == chain.newest());
}

#[test]
fn without_sync_nothing_claims_to_be_durable() {
    let disk = Disk::new();
    let mut model = Model::new(2, Compression::None);
    model.quiet();
    let mut writer = disk.create(&new_chain(), WriterOptions::default()).unwrap();
    model.epoch(&mut writer).unwrap();
    model.epoch(&mut writer).unwrap();
    assert_eq!(writer.close(false).unwrap(), EpochId::NONE);
    let chain = disk.chain().unwrap();
    assert_eq!((chain.durable(), chain.newest(), chain.is_closed()), (EpochId::NONE, EpochId(2), false));
}

#[test]
fn what_is_no_store_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "x").unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other/notes.txt"), "x").unwrap();
    let both = |name: &str| {
        let (reader, writer) = (Chain::open(at(name)).unwrap_err(), Writer::open(at(name), SMALL).unwrap_err());
        assert_eq!(reader.to_string(), writer.to_string());
        assert!(!reader.is_damage() && !reader.is_in_use());
        reader
    };
    assert!(matches!(both("missing"), StoreError::Missing { .. }));
    assert!(matches!(both("file"), StoreError::NotADirectory { .. }));
    assert!(matches!(both("empty"), StoreError::Empty { .. }));
    assert!(matches!(both("other"), StoreError::NotAStore { .. }));
    assert!(
        matches!(Writer::create(at("other"), &new_chain(), SMALL).unwrap_err(), StoreError::NotEmpty { name, .. } if name == "notes.txt")
    );
    assert!(matches!(Writer::create(at("file"), &new_chain(), SMALL).unwrap_err(), StoreError::NotADirectory { .. }));

    drop(Writer::create(at("store"), &new_chain(), SMALL).unwrap());
    let description = fs::read_to_string(at("store/description.json")).unwrap();
    fs::write(at("store/description.json"), description.replace("\"format\":1", "\"format\":5")).unwrap();
    assert!(matches!(both("store"), StoreError::Version { found: 5, .. }));
    let chain = Chain::open(at("store"));
    assert!(chain.unwrap_err().to_string().contains("description.json"));
    fs::write(at("store/description.json"), description.replace("\"vcpus\":1", "\"vcpus\":2")).unwrap();
    let error = Chain::open(at("store")).unwrap_err();
    assert!(error.is_damage(), "{error}");

    let mut new = new_chain();
    new.vcpus = 0;
    let error = Writer::create(at("none"), &new, SMALL).unwrap_err();
    assert!(matches!(error, StoreError::Input(FormatError::Input { what: "vcpus", .. })), "{error}");
}

#[test]
fn a_store_that_is_in_no_directory_is_verified_and_repaired() {
    let (disk, mut model) = (Disk::new(), Model::new(21, Compression::None));
    let mut writer = disk.create(&new_chain(), SMALL).unwrap();
    model.run(&mut writer, 6);
    model.durable = writer.close(true).unwrap();
    drop(writer);
    let mut files = disk.files();
    let last = files.keys().rfind(|name| name.starts_with("segment")).unwrap().clone();
    files.get_mut(&last).unwrap().extend([0xD7; 100]);
    files.insert("index-00000099.tmp".to_owned(), Vec::new());
    let disk = Disk::holding(&files);
    let before = disk.verified();
    assert_eq!((before.is_sound(), before.torn_tail.unwrap().bytes), (true, 100));
    let options = repair::RepairOptions::default();
    let repair = |disk: &Disk| {
        let plan = repair::RepairPlan::new_on(std::path::Path::new("disk"), disk.medium(), &options, &mut |_| {}).unwrap();
        plan.apply().unwrap();
        plan.steps().len()
    };
    assert_eq!(repair(&disk), 2);
    // Each step is durable.
    let disk = disk.after(Cut::Dropped);
    let after = disk.verified();
    assert!(after.is_sound() && after.torn_tail.is_none() && after.leftovers.is_empty(), "{after:#?}");
    model.check(&disk.chain().unwrap());
    assert_eq!(repair(&disk), 0);
}

#[test]
fn parts_begin_their_way_to_the_medium_once_there_is_enough_of_them() {
    const PART: usize = 600 << 10;
    let disk = Disk::new();
    let mut writer = disk.create(&new_chain(), WriterOptions { background: false, ..WriterOptions::default() }).unwrap();
    let at = disk.files().iter().find_map(|(name, bytes)| name.starts_with("segment").then_some(bytes.len() as u64)).unwrap();
    let part = PART as u64;
    let mut append = |parts| {
        for _ in 0..parts {
            writer.append(EpochId(1), &[7; PART]).unwrap();
            writer.begin_sync();
        }
        writer.abort().unwrap();
    };
    append(5);
    let expected = [at..at + 2 * part, at + 2 * part..at + 4 * part];
    assert_eq!(disk.syncs_begun(), expected);
    // What was cut off is written anew.
    append(2);
    assert_eq!(disk.syncs_begun(), [&expected[..], &expected[..1]].concat());
}
