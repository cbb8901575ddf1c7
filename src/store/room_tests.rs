//! A disk that is full, and free again: nothing durable is lost, and it is no fault for ever.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

use super::keep::compaction::Scope;
use super::testing::{Cut, Disk, Model, Random, new_chain, seeds};
use super::*;
use crate::epoch::SinkError;
use crate::format::{Compression, CutTime, MAIN_BRANCH};
use crate::page::EpochId;

const LAST: u64 = 3;

fn options(seed: u64) -> WriterOptions {
    WriterOptions {
        segment_bytes: 20_000,
        segment_mentions: 1 << 20,
        preallocate_bytes: if seed.is_multiple_of(2) { 0 } else { 480_000 },
        retention: Some(Retention { last: Some(LAST), ..Retention::default() }),
        background: seed.is_multiple_of(5),
    }
}

/// A new chain on a disk of so many bytes.
fn begun(seed: u64, capacity: u64) -> (Disk, Model, Writer) {
    let disk = Disk::new();
    let writer = disk.create(&new_chain(), options(seed)).unwrap();
    disk.set_capacity(Some(capacity));
    (disk, Model::new(seed, Compression::None), writer)
}

/// Offers an epoch. Says whether it was taken.
fn offer(model: &mut Model, writer: &mut Writer, syncs: bool) -> bool {
    match model.epoch(writer).and_then(|()| if syncs { model.sync(writer) } else { Ok(()) }) {
        Ok(()) => true,
        Err(SinkError::Rejected(error)) => {
            println!("refused: {error:?}");
            false
        }
        Err(SinkError::Latched(error)) => panic!("{error}"),
    }
}

/// Checks what is there, after the power failed.
fn check(disk: &Disk, model: &Model, seed: u64) {
    let cut = if seed.is_multiple_of(2) { Cut::Dropped } else { Cut::Torn(seed) };
    for disk in [disk.clone(), disk.after(cut)] {
        let chain = disk.chain().unwrap();
        assert!(chain.damage().is_empty() && chain.newest() >= model.durable, "seed {seed}");
        for epoch in chain.epochs() {
            let epoch = epoch.unwrap().commit.epoch;
            let digest = crate::restore::digest(&chain, epoch).unwrap();
            assert_eq!(digest.memory, super::testing::memory_digest(&model.offered[&epoch].1), "seed {seed}, epoch {epoch}");
        }
    }
}

/// On a disk that has never room for more than the chain, what dropping writes beside it and the
/// spare bytes, every epoch is taken.
#[test]
fn a_small_disk_is_enough() {
    for seed in seeds(6, 300) {
        let (disk, mut model, mut writer) = begun(seed, 900_000);
        for at in 0..250 {
            assert!(
                offer(&mut model, &mut writer, at % 3 == 0),
                "seed {seed}: epoch {at} of 250, {} bytes are used",
                disk.used()
            );
        }
        drop(writer);
        check(&disk, &model, seed);
    }
}

/// Where it has less, the writer refuses and says how much is needed, but takes nothing of what
/// dropping needs: with so much, it goes on at once.
#[test]
fn what_is_needed_is_said_and_is_enough() {
    for seed in seeds(10, 500) {
        let (disk, mut model, mut writer) = begun(seed, 280_000);
        let refused = (0..250).find_map(|at| match model.epoch(&mut writer) {
            Ok(()) => None,
            Err(SinkError::Rejected(error)) => Some((at, error)),
            Err(SinkError::Latched(error)) => panic!("seed {seed}: {error}"),
        });
        let Some((at, error)) = refused else { panic!("seed {seed}: 280,000 bytes were enough") };
        let Some(StoreError::Room { needed, free, .. }) = error.downcast_ref() else {
            panic!("seed {seed}, epoch {at}: {error}")
        };
        assert!(needed > free && *free == 280_000 - disk.used(), "seed {seed}: {needed}, {free}");
        // Others give back so much.
        disk.set_capacity(Some(disk.used() + needed));
        assert!(offer(&mut model, &mut writer, true), "seed {seed}: {needed} are free, and not enough");
        drop(writer);
        check(&disk, &model, seed);
    }
}

/// Others fill the disk and free it, by seed.
#[test]
fn a_disk_that_was_full_for_a_moment_is_no_fault_for_ever() {
    for seed in seeds(8, 400) {
        let most = 900_000;
        let (disk, mut model, mut writer) = begun(seed, most);
        let mut random = Random(seed);
        for round in 0..8 {
            (0..random.below(60))
                .for_each(|at| assert!(offer(&mut model, &mut writer, at % 3 == 0), "seed {seed}, round {round}"));
            // All but a little is somebody else's.
            disk.set_capacity(Some(disk.used() + random.below(3) * random.below(30_000)));
            (0..random.below(20)).for_each(|at| _ = offer(&mut model, &mut writer, at % 3 == 0));
            // What dropping takes is there as soon as it is given back: not one more epoch is
            // refused.
            disk.set_capacity(Some(most));
            assert!(offer(&mut model, &mut writer, true), "seed {seed}, round {round}: {} of {most} bytes are used", disk.used());
        }
        writer.close(true).unwrap();
        drop(writer);
        assert!(!disk.files().keys().any(|name| name == "compact.tmp"), "seed {seed}");
        check(&disk, &model, seed);
    }
}

/// A chain of many segments on a disk without a limit.
fn written(seed: u64, epochs: u64) -> (Disk, Model) {
    let (disk, mut model) = (Disk::new(), Model::new(seed, Compression::None));
    let options = WriterOptions { retention: None, segment_bytes: 1, background: false, ..options(0) };
    let mut writer = disk.create(&new_chain(), options).unwrap();
    let kept = writer.keep_segments();
    model.run(&mut writer, epochs);
    writer.close(true).unwrap();
    drop(kept);
    (disk, model)
}

fn drop_all_but_the_newest(disk: &Disk) -> Result<Compacted, StoreError> {
    let keep = |_: &[CutTime], _: &BTreeSet<EpochId>| BTreeSet::new();
    disk.compact(MAIN_BRANCH, &keep, Scope::WhatIsDropped)
}

#[test]
fn a_prune_goes_on_in_steps_where_there_is_little_room() {
    for seed in 0..10 {
        let (disk, model) = written(seed, 60);
        let before = disk.used();
        // Not enough for an image.
        let room = 130_000;
        disk.set_capacity(Some(before + room));
        let came = drop_all_but_the_newest(&disk);
        let used = disk.used();
        assert!(used < before / 2, "seed {seed}: {before} bytes before, {used} now, {came:?}");
        if let Err(error) = &came {
            assert!(matches!(error, StoreError::Room { needed, free, .. } if needed > free), "{error}");
        }
        check(&disk, &model, seed);
        assert!(!disk.files().contains_key("compact.tmp"));
        // With as much as is asked for it ends.
        disk.set_capacity(None);
        drop_all_but_the_newest(&disk).unwrap();
        assert_eq!(disk.chain().unwrap().epochs_len().unwrap(), 1);
        check(&disk, &model, seed);
    }
}

#[test]
fn what_there_is_no_room_for_says_how_much_it_needs() {
    let (disk, model) = written(1, 40);
    disk.set_capacity(Some(disk.used() + 2000));
    let segments = |disk: &Disk| disk.files().into_iter().filter(|(name, _)| name.starts_with("segment")).collect::<Vec<_>>();
    let before = segments(&disk);
    let refused = drop_all_but_the_newest(&disk).unwrap_err();
    let StoreError::Room { needed, free, .. } = refused else { panic!("{refused}") };
    assert!(free == 2000 && needed > free, "{needed}, {free}");
    let text = refused.to_string();
    assert!(text.contains("needs") && text.contains("free, and 2 KiB are"), "{text}");
    assert!(segments(&disk) == before, "refusing has changed a segment");
    // So much is enough for a step.
    disk.set_capacity(Some(disk.used() + needed));
    let used = disk.used();
    let _ = drop_all_but_the_newest(&disk);
    assert!(disk.used() < used);
    check(&disk, &model, 1);
    let all = |disk: &Disk| {
        let keep = |epochs: &[CutTime], _: &BTreeSet<EpochId>| epochs.iter().map(|cut| cut.epoch).collect();
        disk.compact(MAIN_BRANCH, &keep, Scope::All)
    };
    // Segments are joined as far as there is room.
    let (disk, model) = written(2, 40);
    let segments = disk.chain().unwrap().segments();
    disk.set_capacity(Some(disk.used() + 120_000));
    let came = all(&disk);
    assert!(matches!(came, Ok(_) | Err(StoreError::Room { .. })), "{came:?}");
    assert!(disk.chain().unwrap().segments() < segments / 2);
    check(&disk, &model, 2);
}

#[test]
fn a_limit_on_the_length_of_files_ends_a_segment() {
    for seed in 0..6 {
        let (disk, mut model) = (Disk::new(), Model::new(seed, Compression::None));
        let options = WriterOptions { segment_bytes: 1 << 20, retention: None, background: false, ..options(seed) };
        let mut writer = disk.create(&new_chain(), options).unwrap();
        disk.set_file_most(Some(200_000));
        let taken = (0..100).filter(|at| offer(&mut model, &mut writer, at % 3 == 0)).count();
        assert!(taken > 60, "seed {seed}: {taken}");
        writer.close(true).unwrap();
        assert!(disk.chain().unwrap().segments() > 5);
        model.check(&disk.chain().unwrap());
    }
}

#[test]
fn a_branch_that_found_no_room_can_be_made_again() {
    let (disk, _) = written(3, 5);
    let newest = disk.chain().unwrap().newest();
    for room in [0, 100, 300, 500, 700] {
        disk.set_capacity(Some(disk.used() + room));
        if let Ok(writer) = disk.create_branch("b", MAIN_BRANCH, newest, options(0)) {
            assert!(room > 300, "{room}");
            drop(writer);
            return;
        }
        assert!(keep::branches::branches_on(Path::new("disk"), disk.medium().as_ref()).unwrap().is_empty(), "room for {room}");
    }
    disk.set_capacity(None);
    drop(disk.create_branch("b", MAIN_BRANCH, newest, options(0)).unwrap());
}
