//! However long a chain is, no more files are open than the options say, and too few are no fault
//! for ever.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::bounds::Bounds;
use super::error::FileReplaced;
use super::keep::compaction::Scope;
use super::testing::{Cut, Disk, Model, memory_digest, new_chain};
use super::verify::{VerifyOptions, verify};
use super::*;
use crate::epoch::SinkError;
use crate::format::{Compression, CutTime, MAIN_BRANCH};
use crate::page::EpochId;
use crate::restore::{self, ExportFormat, PageMap, PageSources};

/// A segment for each epoch.
const TINY: WriterOptions =
    WriterOptions { segment_bytes: 1, segment_mentions: 1 << 20, preallocate_bytes: 0, retention: None, background: false };

/// A chain with so many segments.
fn long(segments: u64) -> (Disk, Model) {
    let (disk, mut model) = (Disk::new(), Model::new(segments, Compression::Zstd { level: 1 }));
    model.quiet();
    let mut writer = disk.create(&new_chain(), TINY).unwrap();
    let kept = writer.keep_segments();
    for _ in 0..segments {
        model.epoch(&mut writer).unwrap();
        let newest = writer.head().epoch;
        model.offered.retain(|epoch, _| *epoch == newest || epoch.0 % 100 == 0);
    }
    model.sync(&mut writer).unwrap();
    writer.close(true).unwrap();
    drop(kept);
    (disk, model)
}

fn all(disk: &Disk, scope: Scope, newest: EpochId) -> Result<Compacted, StoreError> {
    let keep = |_: &[CutTime], _: &BTreeSet<EpochId>| BTreeSet::from([newest]);
    disk.compact(MAIN_BRANCH, &keep, scope)
}

/// Threads that read for a restore, each of which has one file in hand.
fn readers() -> u64 {
    std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64).min(8)
}

fn is_newest_whole(chain: &Chain, model: &Model) {
    let newest = chain.newest();
    assert_eq!(restore::digest(chain, newest).unwrap().memory, memory_digest(&model.offered[&newest].1));
}

#[test]
fn as_few_files_are_open_as_the_options_say() {
    let (disk, model) = long(700);
    for most in [1, 2, 5, 64] {
        disk.take_open_most();
        let options = ReadOptions { bounds: Bounds::SMALL, ..ReadOptions::open_files(most) };
        let chain = Chain::open_on_with(Path::new("disk"), &disk.to_read(), MAIN_BRANCH, options).unwrap();
        assert_eq!((chain.segments(), chain.epochs_len().unwrap()), (700, 700));
        assert_eq!(chain.epochs().map(Result::unwrap).count(), 700);
        is_newest_whole(&chain, &model);
        let (found, now) = disk.take_open_most();
        // One more while a file takes the place of another; a file that is read stays open until it
        // was.
        assert!(found <= most as u64 + 1 + readers() && now <= most as u64, "{found} were open and {now} are, of {most}");
        drop(chain);
        assert_eq!(disk.take_open_most().1, 0);
    }
    let newest = disk.chain().unwrap().newest();
    disk.take_open_most();
    all(&disk, Scope::WhatIsDropped, newest).unwrap();
    let (found, now) = disk.take_open_most();
    assert!(found < 16 && now == 0, "{found} were open for a compaction");
    is_newest_whole(&disk.chain().unwrap(), &model);
    assert_eq!(disk.chain().unwrap().epochs_len().unwrap(), 1);
}

#[test]
fn where_there_are_fewer_descriptors_fewer_do() {
    let (disk, model) = long(300);
    disk.set_open_most(Some(3));
    let chain = disk.chain().unwrap();
    is_newest_whole(&chain, &model);
    assert_eq!(chain.epochs().map(Result::unwrap).count(), 300);
    // One of three is the new segment's.
    drop(chain);
    all(&disk, Scope::All, EpochId(1)).unwrap();
    is_newest_whole(&disk.chain().unwrap(), &model);
    disk.set_open_most(Some(0));
    let refused = disk.chain().unwrap_err();
    assert!(matches!(&refused, StoreError::Io { source, .. } if source.raw_os_error() == Some(libc::EMFILE)), "{refused}");
}

#[test]
fn branches_behind_each_other_take_no_more_files() {
    let (disk, mut model) = (Disk::new(), Model::new(5, Compression::Zstd { level: 1 }));
    model.quiet();
    disk.set_open_most(Some(16));
    let mut writer = disk.create(&new_chain(), TINY).unwrap();
    model.run(&mut writer, 3);
    let mut of = MAIN_BRANCH.to_owned();
    for depth in 0..64 {
        let tip = writer.head().epoch;
        drop(writer);
        let name = format!("b{depth}");
        writer = disk.create_branch(&name, &of, tip, TINY).unwrap();
        model.run(&mut writer, 3);
        of = name;
    }
    let options = ReadOptions { bounds: Bounds::SMALL, ..ReadOptions::open_files(4) };
    disk.take_open_most();
    let chain = Chain::open_on_with(Path::new("disk"), &disk.to_read(), &of, options).unwrap();
    assert_eq!(chain.epochs_len().unwrap(), 65 * 3);
    is_newest_whole(&chain, &model);
    // The writer has its segment, its mark, and a spare.
    assert!(disk.take_open_most().0 <= 4 + 1 + readers() + 3);
}

/// A chain of some segments, and what is put in their place.
fn opened_and_compacted(open_files: usize) -> (Disk, Model, Arc<Chain>) {
    let (disk, model) = long(20);
    let options = ReadOptions { bounds: Bounds::SMALL, ..ReadOptions::open_files(open_files) };
    let chain = Chain::open_on_with(Path::new("disk"), &disk.to_read(), MAIN_BRANCH, options).unwrap();
    (disk, model, Arc::new(chain))
}

#[test]
fn a_file_that_was_taken_away_is_an_error_that_says_so() {
    let (disk, model, chain) = opened_and_compacted(2);
    all(&disk, Scope::All, chain.newest()).unwrap();
    let refused = restore::digest(&chain, chain.newest()).unwrap_err();
    assert!(refused.is_replaced() && !refused.is_damage(), "{refused}");
    assert!(refused.to_string().contains("was taken away while the chain was read"), "{refused}");
    is_newest_whole(&disk.chain().unwrap(), &model);
    // With all files open there is nothing to miss.
    let (disk, model, chain) = opened_and_compacted(64);
    all(&disk, Scope::All, chain.newest()).unwrap();
    is_newest_whole(&chain, &model);
}

#[test]
fn another_file_of_the_same_name_or_number_is_not_the_same() {
    let (disk, _, chain) = opened_and_compacted(1);
    let medium = disk.medium();
    let first = chain.all_segments().first().unwrap();
    let read = |segment: &Segment| segment.file().read(0, &mut [0; 8]);
    let replaced = |result: io::Result<usize>| result.is_err_and(|error| FileReplaced::is_cause(&error));
    assert_eq!(read(first).unwrap(), 8);
    // The last segment of the chain drives it out, and meanwhile its inode is another's.
    read(chain.all_segments().last().unwrap()).unwrap();
    medium.open_to_write("segment-00000001").unwrap().write(16, &[&[1]]).unwrap();
    assert!(replaced(read(first)));
    // A copy of it has another inode.
    let (disk, _, chain) = opened_and_compacted(1);
    let medium = disk.medium();
    let bytes = disk.files()["segment-00000001"].clone();
    medium.create("copy").unwrap().write(0, &[&bytes]).unwrap();
    medium.rename("copy", "segment-00000001").unwrap();
    assert!(replaced(read(chain.all_segments().first().unwrap())));
}

#[test]
fn what_a_restore_on_demand_needs_stays() {
    // Its segments are held where there is room for them.
    let (disk, model, chain) = opened_and_compacted(64);
    let newest = chain.newest();
    let map = PageMap::new(chain.clone(), newest).unwrap();
    assert!(map.is_held());
    let read = |map: &PageMap| {
        let mut source = map.open();
        model.offered[&newest].1.iter().try_for_each(|(gfn, page)| {
            source.read(*gfn, &mut |found, content| {
                assert!(found != *gfn || content.map_or([0; 4096], |content| *content) == **page);
            })
        })
    };
    all(&disk, Scope::All, newest).unwrap();
    read(&map).unwrap();
    disk.take_open_most();
    map.filled();
    assert!(disk.take_open_most().1 <= 64);
    drop((map, chain));
    assert_eq!(disk.take_open_most().1, 0);
    // Where there is not, nobody else may compact. This one's own writer does not.
    let (disk, mut guest, chain) = opened_and_compacted(4);
    let newest = chain.newest();
    let map = PageMap::new(chain, newest).unwrap();
    assert!(!map.is_held());
    let retention = Some(Retention { last: Some(1), ..Retention::default() });
    let mut writer = disk.writer(WriterOptions { retention, ..TINY }).unwrap();
    map.until_filled(writer.keep_segments());
    guest.run(&mut writer, 40);
    let segments = || disk.files().keys().filter(|name| name.starts_with("segment-")).count();
    assert_eq!(segments(), 60);
    map.open().next(&mut 0).unwrap();
    map.filled();
    guest.run(&mut writer, 40);
    assert!(segments() < 60, "{}", segments());
    all(&disk, Scope::All, newest).unwrap();
    let mut source = map.open();
    let lost = guest.offered[&newest].1.keys().find_map(|gfn| source.read(*gfn, &mut |_, _| {}).err());
    assert!(lost.unwrap().is_replaced());
}

/// No descriptor for the next segment: the last one grows, and nothing fails.
#[test]
fn a_segment_goes_on_where_there_is_no_descriptor_for_the_next() {
    let (disk, mut model) = (Disk::new(), Model::new(3, Compression::None));
    model.quiet();
    let mut writer = disk.create(&new_chain(), TINY).unwrap();
    let kept = writer.keep_segments();
    (0..5).for_each(|_| model.epoch(&mut writer).unwrap());
    // The spare one is there for the next segment.
    let (_, now) = disk.take_open_most();
    disk.set_open_most(Some(now));
    model.epoch(&mut writer).unwrap();
    disk.set_open_most(Some(now - 1));
    let before = disk.files().len();
    (0..20).for_each(|_| model.epoch(&mut writer).unwrap());
    assert!(disk.files().len() <= before + 1, "no new segments");
    disk.set_open_most(None);
    (0..20).for_each(|_| model.epoch(&mut writer).unwrap());
    assert!(disk.files().len() > before + 5);
    model.sync(&mut writer).unwrap();
    writer.close(true).unwrap();
    drop(kept);
    model.check(&disk.chain().unwrap());
}

/// Descriptors run out by chance, for the writer and its upkeep, and then the power fails.
#[test]
fn running_out_of_descriptors_latches_nothing_and_loses_nothing() {
    let mut refused = 0;
    for seed in 0..24 {
        let (disk, mut model) = (Disk::new(), Model::new(seed, Compression::Zstd { level: 1 }));
        let retention = Some(Retention { last: Some(3), ..Retention::default() }).filter(|_| seed % 2 == 0);
        let options = WriterOptions { segment_bytes: 9000, retention, ..TINY };
        let mut writer = disk.create(&new_chain(), options).unwrap();
        let disk = disk.with_opening_faults(seed, 1 + seed % 4);
        for _ in 0..60 {
            let result = model.epoch(&mut writer).and_then(|()| if seed % 3 == 0 { model.sync(&mut writer) } else { Ok(()) });
            match result {
                Ok(()) => {}
                Err(SinkError::Rejected(_)) => refused += 1,
                Err(SinkError::Latched(error)) => panic!("seed {seed}: {error}"),
            }
        }
        drop(writer);
        let after = disk.after(if seed % 2 == 0 { Cut::Dropped } else { Cut::Torn(seed) });
        let chain = after.chain().unwrap();
        assert!(chain.damage().is_empty() && chain.newest() >= model.durable, "seed {seed}");
        let newest = chain.newest();
        if newest != EpochId::NONE {
            assert_eq!(restore::digest(&chain, newest).unwrap().memory, memory_digest(&model.offered[&newest].1));
        }
    }
    println!("{refused} epochs were refused");
}

/// Writes what a disk holds to a directory.
fn write(files: &BTreeMap<String, Vec<u8>>, dir: &Path) {
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn entries(of: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{of}")).unwrap().count()
}

/// The process that is limited, where this is it.
const LIMITED: &str = "SLACKWATER_LIMITED_STORE";

/// Every verb of the library on a chain of a thousand segments, in a process that may have 32 files
/// open.
#[test]
fn every_verb_does_with_thirty_two_descriptors() {
    if let Some(dir) = std::env::var_os(LIMITED) {
        return every_verb(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let (disk, _) = long(1000);
    write(&disk.files(), dir.path());
    let name = "store::bounds_tests::every_verb_does_with_thirty_two_descriptors";
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 32 && exec \"$0\" --exact \"$1\" --nocapture"]);
    limited.arg(std::env::current_exe().unwrap()).arg(name).env(LIMITED, dir.path()).process_group(0);
    let ended = limited.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));
}

fn every_verb(dir: &Path) {
    let begun = (entries("fd"), entries("task"));
    let mut most = begun;
    let mut look = || most = (most.0.max(entries("fd")), most.1.max(entries("task")));
    let chain = Chain::open(dir).unwrap();
    look();
    assert_eq!(chain.segments(), 1000);
    for epoch in chain.epochs() {
        epoch.unwrap();
        look();
    }
    let newest = chain.newest();
    let digest = restore::digest(&chain, newest).unwrap();
    let out = tempfile::tempfile().unwrap();
    restore::export(&chain, newest, ExportFormat::Raw, &out, &mut |_, _| look()).unwrap();
    restore::diff((&chain, EpochId(10)), (&chain, newest), &tempfile::tempfile().unwrap(), &mut |_, _| look()).unwrap();
    drop((chain, out));
    let report = verify(dir, &VerifyOptions::default(), &mut |_| look()).unwrap();
    assert!(report.is_sound() && report.epochs == 1000);
    let one = VerifyOptions { epoch: Some(newest), ..VerifyOptions::default() };
    assert!(verify(dir, &one, &mut |_| look()).unwrap().is_sound());
    let repair = repair::RepairPlan::new(dir, &repair::RepairOptions::default(), &mut |_| look()).unwrap();
    assert_eq!(repair.steps(), []);
    drop(repair);
    let rules = Retention { last: Some(10), ..Retention::default() };
    assert_eq!(plan_prune(dir, MAIN_BRANCH, &rules).unwrap().kept.len(), 10);
    let (mut writer, recovered) = Writer::open(dir, WriterOptions { background: true, ..TINY }).unwrap();
    assert_eq!(recovered.tip, newest);
    look();
    let mut model = Model::new(7, Compression::None);
    model.skip_to(newest.next());
    model.offered.insert(newest, (EpochId::NONE, super::testing::empty_memory()));
    for _ in 0..50 {
        model.epoch(&mut writer).unwrap();
        look();
    }
    writer.close(true).unwrap();
    drop(writer);
    compact(dir, MAIN_BRANCH, Some(&rules), &mut |_, _| look()).unwrap();
    let chain = Chain::open(dir).unwrap();
    assert!(chain.epochs_len().unwrap() >= 10 && chain.segments() < 1000);
    drop(chain);
    assert!(most.0 <= 32 && most.1 <= begun.1 + 10, "from {begun:?} to {most:?}");
    assert_eq!(entries("fd"), begun.0, "{digest:?}");
}
