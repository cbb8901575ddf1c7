//! What is kept stays what it was, whatever happens to a compaction.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::keep::compaction::Scope;
use super::testing::{Cut, Disk, Memory, Model, Random, is_full, memory_digest, new_chain, seeds, state_of};
use super::verify::LeftoverKind;
use super::*;
use crate::format::{Compression, CutTime, FrameHeader, FrameKind, MAIN_BRANCH, Mark};
use crate::page::{EpochId, Gfn, PAGE_SIZE};
use crate::restore;

const SMALL: WriterOptions =
    WriterOptions { segment_bytes: 40_000, segment_mentions: 1 << 20, preallocate_bytes: 0, retention: None, background: false };

fn epochs(chain: &Chain) -> Vec<EpochId> {
    chain.epochs().map(|epoch| epoch.unwrap().commit.epoch).collect()
}

fn compact(disk: &Disk, keep: &BTreeSet<EpochId>, scope: Scope) -> Result<Compacted, StoreError> {
    let keep = |_: &[CutTime], _: &BTreeSet<EpochId>| keep.clone();
    disk.compact(MAIN_BRANCH, &keep, scope)
}

/// Some of the epochs; the newest too, or not.
fn some(epochs: &[EpochId], random: &mut Random) -> BTreeSet<EpochId> {
    let sparse = 1 + random.below(6);
    epochs.iter().copied().filter(|_| random.one_in(sparse)).collect()
}

/// Every epoch of the chain is what it was; each names the one before it.
fn is_sound(chain: &Chain, model: &Model) {
    assert_eq!((chain.damage(), chain.tail()), (&[][..], None));
    let mut parent = (EpochId::NONE, 0);
    for epoch in chain.epochs() {
        let epoch = epoch.unwrap();
        let number = epoch.commit.epoch;
        let memory = &model.offered[&number].1;
        assert_eq!((epoch.commit.parent, epoch.commit.parent_hash), parent);
        assert_eq!(restore::digest(chain, number).unwrap().memory, memory_digest(memory), "epoch {number}");
        assert_eq!(epoch.commit.audit, Some(memory_digest(memory)));
        assert_eq!(chain.state(number).unwrap(), state_of(number));
        parent = (number, epoch.identity);
    }
}

/// Single pages are what they are in the whole.
fn pages_agree(chain: &Arc<Chain>, epoch: EpochId, memory: &Memory) {
    let mut reader = PageReader::new(chain.clone(), epoch).unwrap();
    for gfn in memory.keys() {
        let mut given = Vec::new();
        let found = reader.read(*gfn, &mut |gfn, page| given.push((gfn, Box::new(*page)))).unwrap();
        match found {
            FoundPages::Given => assert!(given.iter().any(|(found, _)| found == gfn)),
            FoundPages::Zeros(run) => {
                assert!(run.contains(*gfn) && given.is_empty());
                let zeros = memory.iter().filter(|(gfn, _)| run.contains(**gfn));
                assert!(zeros.into_iter().all(|(_, page)| **page == [0; PAGE_SIZE]), "{run:?}");
            }
        }
        given.iter().for_each(|(gfn, page)| assert!(*page == memory[gfn], "epoch {epoch}, page {gfn}"));
    }
    assert!(matches!(reader.read(Gfn(500), &mut |_, _| panic!("a page")).unwrap(), FoundPages::Zeros(_)));
}

fn written(seed: u64, epochs: u64) -> (Disk, Model) {
    let compression = if seed.is_multiple_of(3) { Compression::None } else { Compression::Zstd { level: 1 } };
    let (disk, mut model) = (Disk::new(), Model::new(seed, compression));
    let mut writer = disk.create(&new_chain(), SMALL).unwrap();
    model.run(&mut writer, epochs);
    if seed.is_multiple_of(2) {
        writer.close(true).unwrap();
    }
    (disk, model)
}

#[test]
fn what_is_kept_stays_what_it_was() {
    let mut dropped = 0;
    for seed in 0..60 {
        let (disk, mut model) = written(seed, 30);
        for round in 0..3 {
            let mut random = Random(seed * 10 + round);
            let chain = disk.chain().unwrap();
            let (all, newest) = (epochs(&chain), chain.newest());
            let keep = some(&all, &mut random);
            let scope = if random.one_in(2) { Scope::All } else { Scope::WhatIsDropped };
            // Whoever has the chain open keeps what there was.
            let compacted = compact(&disk, &keep, scope).unwrap();
            is_sound(&chain, &model);
            let chain = Arc::new(disk.chain().unwrap());
            is_sound(&chain, &model);
            let left = epochs(&chain);
            let expected: Vec<_> = all.iter().copied().filter(|epoch| keep.contains(epoch) || *epoch == newest).collect();
            assert_eq!(left, expected, "seed {seed}, round {round}");
            assert_eq!(compacted.epochs, (all.len() as u64, left.len() as u64));
            assert_eq!(compacted.segments.1, chain.segments() as u64);
            assert!(scope != Scope::All || chain.segments() == 1);
            dropped += all.len() - left.len();
            for epoch in left.iter().step_by(3) {
                pages_agree(&chain, *epoch, &model.offered[epoch].1);
            }
            let files = disk.files();
            assert!(!files.contains_key("compact.tmp"));
            assert_eq!(files.keys().filter(|name| name.starts_with("segment")).count(), chain.segments());
            // Without any index it is the same.
            let mut bare = files.clone();
            bare.retain(|name, _| !name.starts_with("index"));
            is_sound(&Disk::holding(&bare).chain().unwrap(), &model);
            // The chain goes on.
            let mut writer = disk.writer(SMALL).unwrap();
            assert_eq!(writer.head().epoch, newest);
            model.run(&mut writer, 8);
            let chain = disk.chain().unwrap();
            is_sound(&chain, &model);
            assert!(epochs(&chain).starts_with(&left));
        }
    }
    assert!(dropped > 500, "{dropped}");
}

#[test]
fn a_writer_and_a_compaction_do_not_disturb_each_other() {
    for seed in 0..20 {
        let (disk, mut model) = written(seed, 5);
        let mut writer = disk.writer(SMALL).unwrap();
        let mut random = Random(seed);
        let mut held = Vec::new();
        for _ in 0..5 {
            model.run(&mut writer, 12);
            let chain = disk.chain().unwrap();
            let keep = some(&epochs(&chain), &mut random);
            compact(&disk, &keep, Scope::WhatIsDropped).unwrap();
            held.push(chain);
        }
        model.run(&mut writer, 5);
        writer.close(true).unwrap();
        is_sound(&disk.chain().unwrap(), &model);
        held.iter().for_each(|chain| is_sound(chain, &model));
    }
}

#[test]
fn a_cut_at_every_step_of_a_compaction_loses_nothing() {
    let mut cuts = 0;
    for seed in 0..4 {
        let (disk, model) = written(seed, 14);
        let chain = disk.chain().unwrap();
        let all = epochs(&chain);
        let keep = some(&all, &mut Random(seed));
        let whole = Disk::holding(&disk.files());
        compact(&whole, &keep, Scope::All).unwrap();
        let left = epochs(&whole.chain().unwrap());
        for step in 0..whole.operations() {
            let cut = Disk::holding(&disk.files()).cutting_at(step);
            let result = compact(&cut, &keep, Scope::All);
            for kind in [Cut::Kept, Cut::Dropped, Cut::Torn(step), Cut::Torn(step + 1000)] {
                let after = cut.after(kind);
                let chain = after.chain().unwrap();
                is_sound(&chain, &model);
                let found = epochs(&chain);
                assert!(found == all || found == left, "seed {seed}, step {step}, {kind:?}: {found:?}");
                assert!(result.is_err() || found == left);
                // The next one finishes it.
                let mut writer = after.writer(SMALL).unwrap();
                Model::new(1, Compression::None).skip_to(EpochId(1000));
                assert_eq!(writer.head().epoch, *all.last().unwrap());
                writer.close(true).unwrap();
                drop(writer);
                compact(&after, &keep, Scope::All).unwrap();
                let chain = after.chain().unwrap();
                is_sound(&chain, &model);
                assert_eq!((epochs(&chain), chain.segments()), (left.clone(), 1));
                cuts += 1;
            }
        }
    }
    assert!(cuts > 100, "{cuts}");
}

/// The second segment has the name of the first, whose index is none of it.
#[test]
fn a_cut_at_every_step_of_a_second_compaction_leaves_nothing_damaged() {
    let mut cuts = 0;
    for seed in 0..4 {
        let (disk, model) = written(seed, 14);
        let all = epochs(&disk.chain().unwrap());
        compact(&disk, &all.iter().copied().collect(), Scope::All).unwrap();
        let once = Disk::holding(&disk.files());
        let keep = BTreeSet::from([all[2], all[5]]);
        let whole = Disk::holding(&once.files());
        compact(&whole, &keep, Scope::All).unwrap();
        let left = epochs(&whole.chain().unwrap());
        let names = |disk: &Disk| disk.files().into_keys().filter(|name| name.starts_with("segment")).collect::<Vec<_>>();
        assert_eq!(names(&whole), names(&once));
        for step in 0..whole.operations() {
            let cut = Disk::holding(&once.files()).cutting_at(step);
            let _ = compact(&cut, &keep, Scope::All);
            for kind in [Cut::Kept, Cut::Dropped, Cut::Torn(step), Cut::Torn(step + 1000)] {
                let after = cut.after(kind);
                let case = format!("seed {seed}, step {step}, {kind:?}");
                let report = after.verified();
                assert!(report.is_sound() && report.torn_tail.is_none(), "{case}: {report:#?}");
                let chain = after.chain().unwrap();
                is_sound(&chain, &model);
                let found = epochs(&chain);
                assert!(found == all || found == left, "{case}: {found:?}");
                // Whoever goes on leaves that segment as it is, and makes its index anew.
                let mut guest = Model::new(seed, Compression::None);
                guest.offered = model.offered.clone();
                let mut writer = after.writer(SMALL).unwrap();
                guest.continue_from(writer.head().epoch);
                guest.skip_to(EpochId(1000));
                guest.quiet();
                guest.run(&mut writer, 2);
                drop(writer);
                let report = after.verified();
                assert!(report.is_sound() && report.indexes_missing == 0, "{case}: {report:#?}");
                assert!(report.leftovers.iter().all(|left| left.kind != LeftoverKind::Index), "{case}: {report:#?}");
                is_sound(&after.chain().unwrap(), &guest);
                cuts += 1;
            }
        }
    }
    assert!(cuts > 100, "{cuts}");
}

/// It got its name when it was whole and synced.
#[test]
fn a_compacted_segment_has_no_torn_tail() {
    for seed in 0..4 {
        let (disk, _) = written(seed, 14);
        let before = disk.files();
        let all = epochs(&disk.chain().unwrap());
        let keep = BTreeSet::from([all[3], all[7], *all.last().unwrap()]);
        compact(&disk, &keep, Scope::All).unwrap();
        let mut files = disk.files();
        files.retain(|name, _| !name.starts_with("index"));
        let name = files.keys().find(|name| name.starts_with("segment")).unwrap().clone();
        assert!(!before.contains_key(&name));
        // As if nothing else said what was durable.
        let begins = Mark { epoch: EpochId::NONE, identity: 0 };
        files.insert("durable".to_owned(), begins.encode_whole(disk.chain().unwrap().description().chain));
        assert!(Disk::holding(&files).verified().is_sound());
        let bytes = files[&name].clone();
        for length in (0..bytes.len()).step_by(bytes.len() / 50) {
            let mut left = files.clone();
            left.insert(name.clone(), bytes[..length].to_vec());
            let disk = Disk::holding(&left);
            let chain = disk.chain().unwrap();
            assert!(chain.damage().len() == 1 && chain.tail().is_none(), "seed {seed}, {length}: {chain:?}");
            assert!(disk.writer(SMALL).unwrap_err().is_damage());
            assert!(compact(&disk, &keep, Scope::All).unwrap_err().is_damage());
            assert!(disk.files() == left && !disk.verified().is_sound());
        }
    }
}

/// The files of a disk that hold anything.
fn without_locks(disk: &Disk) -> BTreeMap<String, Vec<u8>> {
    disk.files().into_iter().filter(|(name, _)| name != "lock" && name != "maintenance").collect()
}

/// Whatever is wrong in what it keeps stops it.
#[test]
fn a_compaction_copies_no_damage() {
    let (mut stopped, mut tried) = (0, 0);
    for seed in 0..6 {
        let (disk, model) = written(seed, 14);
        let chain = disk.chain().unwrap();
        let (all, id) = (epochs(&chain), chain.description().chain);
        let keep: BTreeSet<_> = all.iter().copied().collect();
        let files = disk.files();
        for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("segment")) {
            // One byte of each frame's payload that a walk does not look at.
            let mut at = 0;
            while let Ok(header) = FrameHeader::parse(&bytes[at..], id) {
                let end = at + usize::try_from(header.frame_bytes()).unwrap();
                if matches!(header.kind, FrameKind::Pages | FrameKind::State) {
                    let mut damaged = files.clone();
                    damaged.get_mut(name).unwrap()[end - 9] ^= 1;
                    let damaged = Disk::holding(&damaged);
                    let before = without_locks(&damaged);
                    tried += 1;
                    match compact(&damaged, &keep, Scope::All) {
                        // One segment of which all is kept is left as it is.
                        Ok(_) if without_locks(&damaged) == before => {}
                        Ok(_) => {
                            // Nothing proved that the epoch had been durable: it was torn, and
                            // stays what it was.
                            let chain = damaged.chain().unwrap();
                            assert!(epochs(&chain).len() < all.len(), "seed {seed}, {name} at {at}");
                            is_sound_but_for_its_tail(&chain, &model);
                        }
                        Err(error) => {
                            assert!(error.is_damage(), "{error}");
                            assert!(without_locks(&damaged) == before, "seed {seed}, {name} at {at}");
                            stopped += 1;
                        }
                    }
                }
                at = end;
            }
        }
    }
    assert!(tried > 100 && stopped > 80, "{stopped} of {tried}");
}

fn is_sound_but_for_its_tail(chain: &Chain, model: &Model) {
    assert_eq!(chain.damage(), []);
    for epoch in epochs(chain) {
        assert_eq!(restore::digest(chain, epoch).unwrap().memory, memory_digest(&model.offered[&epoch].1));
    }
}

#[test]
fn a_compaction_that_fails_changes_nothing() {
    let mut failed = 0;
    for seed in 0..40 {
        let (disk, model) = written(seed, 14);
        let all = epochs(&disk.chain().unwrap());
        let keep = some(&all, &mut Random(seed));
        let faulty = Disk::holding(&disk.files()).with_faults(seed, 3);
        let result = compact(&faulty, &keep, Scope::All);
        let disk = faulty.without_faults();
        let chain = disk.chain().unwrap();
        is_sound(&chain, &model);
        if result.is_err() {
            failed += 1;
            assert_eq!(epochs(&chain), all, "seed {seed}");
        }
        compact(&disk, &keep, Scope::All).unwrap();
        is_sound(&disk.chain().unwrap(), &model);
    }
    assert!(failed > 5, "{failed}");
    // No room for a second copy.
    let (disk, model) = written(1, 14);
    disk.set_capacity(Some(disk.files().values().map(|bytes| bytes.len() as u64).sum::<u64>() + 5000));
    let (all, before) = (epochs(&disk.chain().unwrap()), disk.files());
    assert!(compact(&disk, &BTreeSet::from([all[3]]), Scope::All).is_err());
    assert_eq!(disk.files(), before);
    is_sound(&disk.chain().unwrap(), &model);
}

#[test]
fn a_chain_that_keeps_few_epochs_stays_small() {
    for seed in 0..6 {
        let (disk, mut model) = (Disk::new(), Model::new(seed, Compression::default()));
        let retention = Retention { last: Some(3 + seed), ..Retention::default() };
        let mut writer = disk.create(&new_chain(), WriterOptions { retention: Some(retention), ..SMALL }).unwrap();
        let (mut most, mut offered) = (0, Vec::new());
        for _ in 0..40 {
            model.run(&mut writer, 10);
            let chain = disk.chain().unwrap();
            is_sound(&chain, &model);
            let left = epochs(&chain);
            offered.extend(left.iter().copied());
            most = most.max(disk.files().values().map(Vec::len).sum::<usize>());
            assert!(left.len() >= usize::try_from(3 + seed).unwrap());
        }
        drop(writer);
        offered.sort_unstable();
        offered.dedup();
        assert!(offered.len() > 200, "{}", offered.len());
        // 400 epochs would be some 5 MB.
        assert!(most < 1_800_000, "seed {seed}: {most}");
    }
}

#[test]
fn branches_share_what_they_begin_at() {
    for seed in 0..20 {
        let (disk, mut trunk) = written(seed, 25);
        let mut random = Random(seed);
        let chain = disk.chain().unwrap();
        let all = epochs(&chain);
        let at = all[usize::try_from(random.below(all.len() as u64)).unwrap()];
        let mut branch = Model::new(seed + 100, Compression::default());
        branch.offered = trunk.offered.clone();
        branch.continue_from(at);
        let mut writer = disk.create_branch("try", MAIN_BRANCH, at, SMALL).unwrap();
        assert!(disk.create_branch("try", MAIN_BRANCH, at, SMALL).is_err());
        branch.run(&mut writer, 15);
        let mut main = disk.writer(SMALL).unwrap();
        trunk.run(&mut main, 10);
        main.close(true).unwrap();
        // A branch of the branch, at one of its own epochs or before.
        let own = disk.branch("try").unwrap();
        is_sound(&own, &branch);
        let of_branch = epochs(&own);
        assert!(of_branch.starts_with(&all[..=all.iter().position(|epoch| *epoch == at).unwrap()]));
        let deep = of_branch[usize::try_from(random.below(of_branch.len() as u64)).unwrap()];
        let mut deeper = Model::new(seed + 200, Compression::default());
        deeper.offered = branch.offered.clone();
        deeper.continue_from(deep);
        let mut deeper_writer = disk.create_branch("deeper", "try", deep, SMALL).unwrap();
        deeper.run(&mut deeper_writer, 10);
        drop((writer, main, deeper_writer));
        // Everything but what branches begin at goes.
        for name in [MAIN_BRANCH, "try", "deeper", MAIN_BRANCH] {
            let keep = |_: &[CutTime], _: &BTreeSet<EpochId>| BTreeSet::new();
            disk.compact(name, &keep, Scope::WhatIsDropped).unwrap();
            is_sound(&disk.branch("try").unwrap(), &branch);
            is_sound(&disk.branch("deeper").unwrap(), &deeper);
        }
        let left = epochs(&disk.chain().unwrap());
        assert!(left.len() <= 3 && left.contains(&at), "{left:?}");
        is_sound(&disk.chain().unwrap(), &trunk);
        let mut writer = disk.branch_writer("deeper", SMALL).unwrap();
        deeper.run(&mut writer, 5);
        is_sound(&disk.branch("deeper").unwrap(), &deeper);
    }
}

/// A life in which all happens: epochs are dropped while others are appended, a branch is made,
/// both go on.
fn busy_life(disk: &Disk, main: &mut Model, branch: &mut Model, made: &mut Option<EpochId>) -> Result<(), StoreError> {
    let options = WriterOptions { retention: Some(Retention { last: Some(2), ..Retention::default() }), ..SMALL };
    let options = WriterOptions { segment_bytes: 12_000, ..options };
    let mut writer = disk.create(&new_chain(), options)?;
    main.run(&mut writer, 60);
    let at = writer.sync().map_err(|_| StoreError::Latched { cause: String::new() })?;
    main.durable = at;
    branch.offered = main.offered.clone();
    branch.continue_from(at);
    let mut other = disk.create_branch("b", MAIN_BRANCH, at, options)?;
    *made = Some(at);
    branch.durable = at;
    branch.run(&mut other, 20);
    main.run(&mut writer, 60);
    for (writer, model) in [(&mut other, branch), (&mut writer, main)] {
        model.durable = writer.close(true).map_err(|_| StoreError::Latched { cause: String::new() })?;
    }
    Ok(())
}

/// Every epoch that exists is what it was, and the newest that was durable exists.
fn holds(chain: &Chain, model: &Model) {
    assert_eq!(chain.damage(), []);
    assert!(chain.newest() >= model.durable, "{} was durable, {} is the newest", model.durable, chain.newest());
    for epoch in chain.epochs() {
        let epoch = epoch.unwrap().commit.epoch;
        assert_eq!(restore::digest(chain, epoch).unwrap().memory, memory_digest(&model.offered[&epoch].1), "epoch {epoch}");
    }
}

#[test]
fn a_cut_at_any_step_of_a_busy_life_loses_nothing() {
    let models = |seed| (Model::new(seed, Compression::default()), Model::new(seed + 1000, Compression::default()));
    let (mut cuts, mut with_branch, mut compactions) = (0, 0, 0);
    // Each step of one life takes ten minutes.
    let stride = if is_full() { 1 } else { 13 };
    for seed in seeds(3, 1) {
        let disk = Disk::new();
        let (mut main, mut branch) = models(seed);
        busy_life(&disk, &mut main, &mut branch, &mut None).unwrap();
        compactions += disk.files().keys().filter(|name| name.starts_with("segment") && name.len() > 20).count();
        let steps = disk.operations();
        for step in (0..steps).filter(|step| step % stride == seed % stride) {
            let disk = Disk::new().cutting_at(step);
            let ((mut main, mut branch), mut made) = (models(seed), None);
            let result = busy_life(&disk, &mut main, &mut branch, &mut made);
            // A step of maintenance that fails is not told.
            assert!(result.is_err() || step + 40 > steps, "seed {seed}, step {step} of {steps}");
            for cut in [Cut::Kept, Cut::Dropped, Cut::Torn(step)] {
                let disk = disk.after(cut);
                let chain = match disk.chain() {
                    Ok(chain) => chain,
                    Err(StoreError::Empty { .. } | StoreError::NotAStore { .. }) if main.durable == EpochId::NONE => continue,
                    Err(error) => panic!("seed {seed}, step {step}, {cut:?}: {error}"),
                };
                holds(&chain, &main);
                // Now and then, for it takes as long as all the rest.
                if matches!(cut, Cut::Torn(_)) && (is_full() || step % 4 == 0) {
                    let report = disk.verified();
                    assert!(report.is_sound(), "seed {seed}, step {step}, {cut:?}: {report:#?}");
                }
                match disk.branch("b") {
                    Ok(chain) => {
                        branch.offered.extend(
                            main.offered
                                .iter()
                                .map(|(epoch, offered)| (*epoch, offered.clone()))
                                .filter(|(epoch, _)| made.is_none_or(|made| *epoch <= made)),
                        );
                        holds(&chain, &branch);
                        with_branch += 1;
                    }
                    Err(StoreError::NoBranch { .. }) => assert!(made.is_none(), "seed {seed}, step {step}, {cut:?}"),
                    Err(error) => panic!("seed {seed}, step {step}, {cut:?}: {error}"),
                }
                // Whoever comes next goes on.
                let mut guest = Model::new(seed, Compression::None);
                guest.offered = main.offered.clone();
                let mut writer = disk.writer(SMALL).unwrap();
                guest.continue_from(writer.head().epoch);
                guest.skip_to(EpochId(5000));
                guest.run(&mut writer, 2);
                drop(writer);
                compact(&disk, &BTreeSet::new(), Scope::WhatIsDropped).unwrap();
                holds(&disk.chain().unwrap(), &guest);
                cuts += 1;
            }
        }
    }
    assert!(cuts > 200 && with_branch > 40 && (is_full() || compactions > 2), "{cuts}, {with_branch}, {compactions}");
}
