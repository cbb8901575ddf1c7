//! What the store itself writes: compacted, branched, and cut at every step.

use super::*;
use crate::format::{Compression, CutTime, MAIN_BRANCH};
use crate::store::keep::compaction::Scope;
use crate::store::repair::{RepairOptions, RepairPlan};
use crate::store::testing::{Cut, Disk, Model, Random, new_chain};
use crate::store::{Writer, WriterOptions};

const SMALL: WriterOptions =
    WriterOptions { segment_bytes: 40_000, segment_mentions: 1 << 20, preallocate_bytes: 0, retention: None, background: false };

fn written(seed: u64, epochs: u64) -> (Disk, Model) {
    let (disk, mut model) = (Disk::new(), Model::new(seed, Compression::Zstd { level: 1 }));
    let mut writer: Writer = disk.create(&new_chain(), SMALL).unwrap();
    model.run(&mut writer, epochs);
    writer.close(true).unwrap();
    (disk, model)
}

/// Keeps about one epoch of `sparse`.
fn compacted(disk: &Disk, seed: u64, sparse: u64) -> bool {
    let keep = |epochs: &[CutTime], _: &BTreeSet<EpochId>| {
        let mut random = Random(seed);
        epochs.iter().map(|cut| cut.epoch).filter(|_| random.one_in(sparse)).collect()
    };
    let scope = if seed.is_multiple_of(2) { Scope::All } else { Scope::WhatIsDropped };
    disk.compact(MAIN_BRANCH, &keep, scope).is_ok()
}

fn saved(disk: &Disk) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in disk.files() {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

#[test]
fn compacted_chains_are_sound() {
    for seed in 0..24 {
        let (disk, mut model) = written(seed, 30);
        let epochs: Vec<EpochId> = disk.chain().unwrap().epochs().map(|epoch| epoch.unwrap().commit.epoch).collect();
        model.continue_from(epochs[4]);
        let mut side = disk.create_branch("side", MAIN_BRANCH, epochs[4], SMALL).unwrap();
        model.run(&mut side, 4);
        drop(side);
        model.continue_from(*epochs.last().unwrap());
        for round in 0..3 {
            assert!(compacted(&disk, seed * 10 + round, 1 + seed % 5));
            let dir = saved(&disk);
            let report = run(dir.path());
            assert!(report.is_sound() && report.torn_tail.is_none(), "seed {seed}: {report:#?}");
            assert!(report.branches.len() == 2 && report.branches[1].epochs > 0, "seed {seed}: {report:#?}");
            assert_eq!((report.audits_checked, report.indexes_missing), (report.epochs, 0), "seed {seed}");
            assert_eq!(report.leftovers, [], "seed {seed}");
            let options = VerifyOptions { epoch: report.newest, ..VerifyOptions::default() };
            let one = verify(dir.path(), &options, &mut |_| {}).unwrap();
            assert!(one.is_sound() && one.audits_checked == 1, "seed {seed}: {one:#?}");
            let mut writer = disk.writer(SMALL).unwrap();
            model.run(&mut writer, 8);
            writer.close(true).unwrap();
        }
    }
}

#[test]
fn a_cut_at_every_step_leaves_what_a_repair_tidies() {
    let (disk, _) = written(5, 14);
    let whole = Disk::holding(&disk.files());
    assert!(compacted(&whole, 4, 3));
    let counts = [run(saved(&disk).path()).epochs, run(saved(&whole).path()).epochs];
    for step in 0..whole.operations() {
        let cut = Disk::holding(&disk.files()).cutting_at(step);
        compacted(&cut, 4, 3);
        for kind in [Cut::Kept, Cut::Dropped, Cut::Torn(step)] {
            let dir = saved(&cut.after(kind));
            let report = run(dir.path());
            assert!(report.is_readable() && counts.contains(&report.epochs), "step {step}: {report:#?}");
            RepairPlan::new(dir.path(), &RepairOptions::default(), &mut |_| {}).unwrap().apply().unwrap();
            let after = run(dir.path());
            assert!(after.is_sound() && after.leftovers.is_empty(), "step {step}: {after:#?}");
            assert_eq!(after.epochs, report.epochs, "step {step}");
        }
    }
}
