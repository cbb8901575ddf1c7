//! Pages that change in few words, on a real chain: stored as changes, and restored as they were.

use std::num::NonZeroU64;

use slackwater::epoch::{Engine, EngineOptions, Start};
use slackwater::format::{Compression, Trigger};
use slackwater::memory::GuestMemory;
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PageBytes};
use slackwater::restore::Plan;
use slackwater::store::verify::{VerifyOptions, verify};
use slackwater::store::{Chain, NewChain, Writer, WriterOptions};

use super::harness::{Counter, REGIONS, World, gfn, options, snapshot};
use crate::support::Random;

/// Changes a few words of a page, or makes it zero or new.
fn touch(world: &mut World, random: &mut Random, gfn: Gfn) {
    let mut page = [0; PAGE_SIZE];
    world.memory.read_page(gfn, &mut page).unwrap();
    match random.below(20) {
        0 if gfn != super::harness::gfn(39) => page.fill(0),
        1 if gfn != super::harness::gfn(39) => page = noise(random),
        _ => (0..1 + random.below(8)).for_each(|_| page[random.below(PAGE_SIZE as u64) as usize] = random.byte()),
    }
    let _ = world.write_page(gfn, &page);
}

/// Content that zstd can't make smaller.
fn noise(random: &mut Random) -> PageBytes {
    std::array::from_fn(|_| random.byte())
}

/// Runs some epochs into the chain in `dir`, and returns the bytes of each and their numbers.
fn run(world: &mut World, dir: &std::path::Path, version_pages: usize, random: &mut Random) -> (Vec<EpochId>, u64) {
    let start = match Chain::open(dir) {
        Ok(chain) => Start::Restored(chain.newest()),
        Err(_) => Start::Fresh,
    };
    let small = WriterOptions { segment_bytes: 100_000, ..WriterOptions::default() };
    let writer = if start == Start::Fresh {
        let new = NewChain { memory: REGIONS.to_vec(), device_runs: 0, vcpus: 1, machine: serde_json::Value::Null };
        Writer::create(dir, &new, small).unwrap()
    } else {
        Writer::open(dir, small).unwrap().0
    };
    let audit_every = NonZeroU64::new(3);
    let options = EngineOptions { version_pages, audit_every, compression: Compression::default(), ..options() };
    let mut engine = Engine::<Counter>::new(world.memory.clone(), world.tracker(), Box::new(writer), start, options).unwrap();
    let mut epochs = Vec::new();
    (0..20).for_each(|index| world.vmm_write_page(gfn(index), &noise(random)));
    for _ in 0..60 {
        epochs.push(EpochId(world.take(&mut engine, Trigger::Request)));
        // One that changes each time.
        touch(world, random, gfn(39));
        for _ in 0..random.below(10) {
            let index = random.below(40) as usize;
            touch(world, random, gfn(index));
        }
    }
    let finished = engine.finish();
    assert!(finished.error.is_none(), "{:?}", finished.error);
    (epochs, finished.report.bytes_written)
}

/// A page whose version was dropped is known by what it was then, and not by what it was when it
/// was first kept.
#[test]
fn a_page_that_goes_back_to_what_it_was_is_stored() {
    for version_pages in [1, 2] {
        let mut world = World::new();
        let compression = Compression::default();
        let mut engine = world.engine(Start::Fresh, EngineOptions { version_pages, compression, ..options() });
        let [hot, other] = [gfn(3), gfn(50)];
        let mut random = Random::new(2);
        let [first, next] = [noise(&mut random), noise(&mut random)];
        let mut changed = next;
        changed[77] ^= 1;
        // Twice, so that its version is kept; then some words of it change, another page takes its
        // place, and it is what it was.
        for page in [first, next, changed] {
            let _ = world.write_page(hot, &page);
            world.take(&mut engine, Trigger::Request);
        }
        for _ in 0..2 * version_pages + 2 {
            for place in 0..version_pages as u64 {
                let _ = world.write_page(Gfn(other.0 + place), &noise(&mut random));
            }
            world.take(&mut engine, Trigger::Request);
        }
        let _ = world.write_page(hot, &next);
        world.take(&mut engine, Trigger::Final);
        world.finish(engine);
    }
}

#[test]
fn a_chain_of_changes_restores_at_every_epoch() {
    let mut written = Vec::new();
    for version_pages in [0, 5, 1000] {
        let mut random = Random::new(1);
        let mut world = World::new();
        let dir = tempfile::tempdir().unwrap();
        let (mut epochs, bytes) = run(&mut world, dir.path(), version_pages, &mut random);
        written.push(bytes);
        // The next engine knows no version.
        epochs.extend(run(&mut world, dir.path(), version_pages, &mut random).0);
        let report = verify(dir.path(), &VerifyOptions::default(), &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{:?}", report.damage);
        assert_eq!((report.epochs, report.audits_checked, report.audits_failed), (120, 40, 0));
        let chain = Chain::open(dir.path()).unwrap();
        for (epoch, expected) in epochs.iter().zip(world.guest.snapshots.values()) {
            let mut memory = GuestMemory::anonymous(&REGIONS, 0).unwrap();
            Plan::new(&chain, *epoch).unwrap().fill(&mut memory, &mut |_, _| {}).unwrap();
            assert!(snapshot(&memory) == *expected, "epoch {epoch} restores to something else, {version_pages} versions");
        }
    }
    assert!(written[2] * 2 < written[0] && written[2] < written[1] && written[1] < written[0], "changes take less: {written:?}");
}
