//! Single bytes flipped anywhere in a small chain: readers report, or give what was appended.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use slackwater::page::{EpochId, Gfn, PageBytes};
use slackwater::restore::{PageTarget, Plan, TargetError};
use slackwater::store::verify::{VerifyOptions, verify};
use slackwater::store::{Chain, Writer, WriterOptions};

use crate::support::chain::{Builder, Truth, sample};
use crate::support::command::run;
use crate::support::copy::{Files, write};
use crate::support::{Random, rounds};

/// One reader may take so long for a chain of 24 KB.
const LIMIT: Duration = Duration::from_secs(60);

/// What became of the flips.
#[derive(Debug, Default)]
struct Tally {
    unreadable: u64,
    damage: u64,
    tail: u64,
    refused: u64,
    restored: u64,
}

#[derive(Default)]
struct Memory(BTreeMap<u64, Box<PageBytes>>);

impl PageTarget for Memory {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        assert!(self.0.insert(gfn.0, Box::new(*page)).is_none(), "{gfn} came twice");
        Ok(())
    }
}

/// A byte of one of the files.
fn place(files: &Files, random: &mut Random) -> (String, u64) {
    let bytes: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
    let mut at = random.below(bytes);
    for (name, bytes) in files {
        match at.checked_sub(bytes.len() as u64) {
            None => return (name.clone(), at),
            Some(rest) => at = rest,
        }
    }
    unreachable!("`at` is below the sum")
}

/// The epochs of a chain; none for one whose commit frame is damaged.
fn listed(chain: &Chain) -> Vec<Option<EpochId>> {
    let listed = chain.epochs().map(|epoch| match epoch {
        Ok(epoch) => Some(epoch.commit.epoch),
        Err(error) => {
            assert!(error.is_damage(), "{error}");
            None
        }
    });
    listed.collect()
}

/// What the chain in `dir` gives of the `wanted` epochs is true; says whether anything is missing.
fn reads(dir: &Path, truth: &BTreeMap<u64, Truth>, wanted: impl Fn(EpochId) -> bool, tally: &mut Tally) -> bool {
    let Ok(chain) = Chain::open(dir) else {
        tally.unreadable += 1;
        return true;
    };
    let listed = listed(&chain);
    let mut missing = listed.len() < truth.len();
    tally.damage += u64::from(!chain.damage().is_empty());
    tally.tail += u64::from(chain.tail().is_some());
    for epoch in listed {
        // Where an index says that there is one, its commit frame is read only now.
        let Some(epoch) = epoch else {
            tally.refused += 1;
            missing = true;
            continue;
        };
        if !wanted(epoch) {
            continue;
        }
        let truth = truth.get(&epoch.0).expect("only what was appended is listed");
        let mut memory = Memory::default();
        match Plan::new(&chain, epoch).and_then(|plan| plan.fill(&mut memory, &mut |_, _| {}).map(|_| plan)) {
            Ok(plan) => {
                assert!(memory.0 == truth.memory, "memory of epoch {epoch}");
                assert!(plan.state() == truth.state, "state of epoch {epoch}");
                tally.restored += 1;
            }
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                tally.refused += 1;
                missing = true;
            }
        }
    }
    missing
}

/// An index says what its segment says, and the mark everything three times.
fn is_said_twice(name: &str) -> bool {
    name == "durable" || name.starts_with("index-")
}

/// `verify` sees whatever a reader misses, and every flip in what nothing else says.
fn verifies(dir: &Path, missing: bool, twice: bool, at: &str) {
    match verify(dir, &VerifyOptions::default(), &mut |_| {}) {
        Ok(report) => {
            let silent = report.is_sound() && report.torn_tail.is_none();
            assert!(!(missing && silent), "{at}: a reader misses something, and verify nothing");
            assert!(twice || !silent, "{at}: verify sees nothing");
        }
        Err(error) => assert!(error.to_string().contains("description.json"), "{at}: {error}"),
    }
}

/// A writer refuses, or what it leaves is whole and was appended.
fn goes_on(files: &Files, truth: &BTreeMap<u64, Truth>, at: &str) {
    let copy = tempfile::tempdir().unwrap();
    write(copy.path(), files);
    let Ok((writer, recovered)) = Writer::open(copy.path(), WriterOptions::default()) else { return };
    drop(writer);
    let chain = Chain::open(copy.path()).unwrap();
    assert!(chain.tail().is_none() && chain.damage().is_empty(), "{at}");
    assert_eq!(chain.newest(), recovered.tip, "{at}");
    for (listed, expected) in listed(&chain).into_iter().zip(truth.keys()) {
        assert!(listed.is_none_or(|epoch| epoch.0 == *expected), "{at}: {listed:?} in the place of {expected}");
    }
}

fn flips(chain: &Builder, count: u64, random: &mut Random) -> Tally {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &chain.files);
    let mut tally = Tally::default();
    assert!(!reads(dir.path(), &chain.truth, |_| true, &mut tally), "the sound chain gives everything");
    let newest = EpochId(*chain.truth.keys().next_back().unwrap());
    for round in 0..count {
        let (name, offset) = place(&chain.files, random);
        let old = chain.files[&name][usize::try_from(offset).unwrap()];
        let new = old ^ (1 + random.below(255)).to_le_bytes()[0];
        let at = format!("round {round}: {name} at offset {offset}, {old:#04x} to {new:#04x}");
        let file = OpenOptions::new().write(true).open(dir.path().join(&name)).unwrap();
        file.write_all_at(&[new], offset).unwrap();
        let start = Instant::now();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let missing = reads(dir.path(), &chain.truth, |epoch| epoch == newest || epoch.0 == round % 8, &mut tally);
            verifies(dir.path(), missing, is_said_twice(&name), &at);
        }));
        if let Err(panic) = caught {
            eprintln!("{at}");
            std::panic::resume_unwind(panic);
        }
        if round % 10 == 0 {
            let mut files = chain.files.clone();
            files.get_mut(&name).unwrap()[usize::try_from(offset).unwrap()] = new;
            goes_on(&files, &chain.truth, &at);
        }
        assert!(start.elapsed() < LIMIT, "{at} took {:?}", start.elapsed());
        file.write_all_at(&[old], offset).unwrap();
    }
    println!("{tally:?}");
    tally
}

/// Every epoch is proven durable by the close frame.
#[test]
fn five_thousand_flips_of_a_closed_chain() {
    let tally = flips(&sample(true), 5000, &mut Random::seeded("bad_input::flips::closed", 1));
    // Most bytes are those of indexes and of the mark, which say what is said elsewhere.
    assert!(tally.unreadable > 5 && tally.damage > 30 && tally.refused > 1000 && tally.restored > 1000, "{tally:?}");
}

/// Nothing proves the last three epochs: a flip there is a torn tail.
#[test]
fn five_thousand_flips_of_an_open_chain() {
    let tally = flips(&sample(false), 5000, &mut Random::seeded("bad_input::flips::open", 2));
    assert!(tally.tail > 100 && tally.damage > 5 && tally.refused > 1000 && tally.restored > 1000, "{tally:?}");
}

/// The same through the command.
#[test]
fn flips_seen_by_the_command() {
    let mut random = Random::seeded("bad_input::flips_seen_by_the_command", 2);
    let chain = sample(true);
    let dir = tempfile::tempdir().unwrap();
    let digests: BTreeMap<u64, String> = chain
        .truth
        .keys()
        .map(|epoch| {
            write(dir.path(), &chain.files);
            (*epoch, run(&format!("digest --store {} --epoch {epoch}", dir.path().display())).expect(0).stdout)
        })
        .collect();
    let store = dir.path().display();
    for _ in 0..rounds(10, 60, 500) {
        let (name, offset) = place(&chain.files, &mut random);
        let mut files = chain.files.clone();
        files.get_mut(&name).unwrap()[usize::try_from(offset).unwrap()] ^= 1 + random.byte() % 255;
        write(dir.path(), &files);
        let verified = run(&format!("verify --store {store} --json"));
        assert!([0, 1, 3].contains(&verified.code()) && !verified.stderr.contains("panicked"), "{name} {offset}: {verified}");
        if verified.code() == 0 && !is_said_twice(&name) {
            assert!(!verified.json()["torn_tail"].is_null(), "{name} {offset}: {verified}");
        }
        let restored = run(&format!("restore --store {store} --kvm /nonexistent"));
        assert!([1, 3].contains(&restored.code()) && !restored.stderr.contains("panicked"), "{name} {offset}: {restored}");
        for (epoch, digest) in &digests {
            let found = run(&format!("digest --store {store} --epoch {epoch}"));
            match found.code() {
                0 => assert_eq!(found.stdout, *digest, "{name} {offset}"),
                1 | 3 => assert!(found.stdout.is_empty() && !found.stderr.contains("panicked"), "{name} {offset}: {found}"),
                _ => panic!("{name} {offset}: {found}"),
            }
        }
    }
}
