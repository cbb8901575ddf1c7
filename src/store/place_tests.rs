//! Somebody moves, replaces, unlocks or changes a store at any moment while it is written.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::error::causes;
use super::testing::{Cut, Disk, Meddling, Model, Random, is_full, new_chain};
use super::{Chain, Retention, StoreError, Writer, WriterOptions};
use crate::epoch::SinkError;
use crate::format::Compression;
use crate::page::EpochId;

const OPTIONS: WriterOptions = WriterOptions {
    segment_bytes: 12 << 10,
    segment_mentions: 1 << 20,
    preallocate_bytes: 0,
    retention: None,
    background: false,
};

fn open(disk: &Disk, branch: &str, options: WriterOptions) -> Result<Writer, StoreError> {
    if branch == "main" { disk.writer(options) } else { disk.branch_writer(branch, options) }
}

fn chain(disk: &Disk, branch: &str) -> Chain {
    disk.branch(branch).unwrap()
}

/// Runs until the writer takes nothing more or some epochs are through. From the moment on that
/// somebody was at the store, nothing is taken that begins then, and no sync says that anything is
/// durable. `durable` is the newest that was before.
fn run_watched(disk: &Disk, model: &mut Model, writer: &mut Writer, seed: &str) {
    for _ in 0..30 {
        let (before, durable, was) = (disk.is_meddled_with(), model.durable, writer.durable());
        let result = if model.random.one_in(3) { model.sync(writer) } else { model.epoch(writer) };
        match result {
            Ok(()) => assert!(!before, "{seed}: taken by a store that is not what it was"),
            Err(SinkError::Latched(error)) => {
                assert!(disk.is_meddled_with(), "{seed}: {}", causes(error.as_ref()));
                assert!(matches!(error.downcast_ref(), Some(StoreError::Displaced { .. })), "{seed}: {}", causes(error.as_ref()));
                assert_eq!(model.durable, durable, "{seed}");
                // What a rotation synced before somebody came counts, and is looked for below.
                assert!(!before || writer.durable() == was, "{seed}");
                model.durable = writer.durable();
                return;
            }
            Err(error) => panic!("{seed}: {}", causes(&error)),
        }
        assert!(model.durable == durable || !disk.is_meddled_with(), "{seed}: durable in a store that is not what it was");
    }
    // Somebody who comes behind the last step is noticed by the next. What a rotation synced before
    // counts.
    model.durable = writer.durable();
}

/// One run in which somebody is at the store at the operation with this number. Whether that was
/// reached.
fn meddled(seed: u64, at: u64) -> bool {
    let mut random = Random(seed);
    let branch = if random.one_in(2) { "main" } else { "b" };
    let place = if branch == "main" { "" } else { "branches/b/" };
    let retention = random.one_in(2).then(|| Retention { last: Some(3), ..Retention::default() });
    let options = WriterOptions { retention, ..OPTIONS };
    let disk = Disk::new();
    let mut model = Model::new(seed, Compression::Zstd { level: 1 });
    let mut writer = disk.create(&new_chain(), options).unwrap();
    // The model gives an epoch up now and then.
    while writer.head().epoch == EpochId::NONE {
        model.epoch(&mut writer).unwrap();
    }
    model.sync(&mut writer).unwrap();
    if branch == "b" {
        let (of, tip) = ("main", writer.close(true).unwrap());
        drop(writer);
        writer = disk.create_branch("b", of, tip, options).unwrap();
    }
    let what = match random.below(6) {
        0 => Meddling::Move,
        1 => Meddling::Replace,
        2 => Meddling::Unlock(place.to_owned()),
        3 => Meddling::Unlock(place.to_owned()),
        4 => Meddling::Resize(place.to_owned(), 1 + random.below(9000).cast_signed()),
        _ => Meddling::Resize(place.to_owned(), -1 - random.below(200).cast_signed()),
    };
    let told = format!("seed {seed}, operation {at}, {branch}, {what:?}");
    let first = disk.operations();
    let disk = disk.meddling_at(first + at, what.clone());
    run_watched(&disk, &mut model, &mut writer, &told);
    if !disk.is_meddled_with() {
        return false;
    }
    // Nobody goes on elsewhere.
    for _ in 0..2 {
        assert!(matches!(writer.reopen(), Err(SinkError::Latched(_))), "{told}");
        assert_eq!(writer.durable(), model.durable, "{told}");
    }
    match what {
        Meddling::Move => {
            assert!(disk.chain().is_err(), "{told}: nothing is made in its place");
            model.check(&disk.moved_chain(branch).unwrap());
            // Where it was again, it goes on.
            disk.put_back();
            goes_on(&disk, &mut model, &mut writer, &told);
        }
        Meddling::Replace => {
            model.check(&disk.moved_chain(branch).unwrap());
            model.check(&chain(&disk, branch));
        }
        Meddling::Unlock(_) => {
            // Another opens it, at whatever point the first one is, and goes on.
            let mut second = open(&disk, branch, options).unwrap();
            assert!(second.durable() >= model.durable, "{told}");
            model.durable = second.durable();
            model.continue_from(model.durable);
            model.skip_to(EpochId(1000));
            for _ in 0..6 {
                model.epoch(&mut second).unwrap();
                model.sync(&mut second).unwrap();
                assert!(matches!(writer.sync(), Err(SinkError::Latched(_))), "{told}");
            }
            drop(writer);
            second.close(true).unwrap();
        }
        // What was cut off is gone, and what was added is nothing.
        Meddling::Resize(_, bytes) if bytes > 0 => {
            drop(writer);
            let cut = disk.after(Cut::Torn(seed));
            drop(open(&cut, branch, options).unwrap());
            model.check(&chain(&cut, branch));
        }
        Meddling::Resize(..) | Meddling::Join => return true,
    }
    if !matches!(what, Meddling::Replace) {
        model.check(&chain(&disk, branch));
        let cut = disk.after(Cut::Dropped);
        model.check(&chain(&cut, branch));
    }
    true
}

fn goes_on(disk: &Disk, model: &mut Model, writer: &mut Writer, told: &str) {
    let tip = writer.reopen().unwrap_or_else(|error| panic!("{told}: {}", causes(&error))).epoch;
    assert!(tip >= model.durable, "{told}");
    model.durable = tip;
    model.continue_from(tip);
    model.skip_to(EpochId(1000));
    for _ in 0..6 {
        model.epoch(writer).unwrap();
        model.sync(writer).unwrap();
    }
    writer.close(true).unwrap();
    assert!(disk.is_meddled_with());
}

#[test]
fn nothing_is_durable_elsewhere() {
    // Each operation of each life takes minutes.
    let step = if is_full() { 1 } else { 11 };
    for seed in 0..24 {
        let mut at = seed % step;
        while meddled(seed, at) {
            at += step;
        }
        assert!(at > step, "seed {seed}");
    }
}

/// A compaction may have the segment that a writer leaves as soon as there is a next one, and the
/// writer looks at the one that it leaves once more.
#[test]
fn a_segment_that_was_left_and_compacted_is_no_displacement() {
    let disk = Disk::new().meddling_at(0, Meddling::Join);
    let mut model = Model::new(0, Compression::None);
    let mut writer = disk.create(&new_chain(), OPTIONS).unwrap();
    while !disk.is_meddled_with() {
        model.epoch(&mut writer).unwrap();
    }
    model.epoch(&mut writer).unwrap();
    model.sync(&mut writer).unwrap();
}
