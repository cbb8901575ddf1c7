//! What only says what would be done takes no lock: it works beside a writer, and on a store that
//! can't be written to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use slackwater::store::Writer;

use super::{store, verb};
use crate::support::store::{SEGMENT_EACH, append};

const DRY_RUNS: [&str; 4] = [
    "prune --keep-last 2 --dry-run",
    "prune --branch b --keep-last 1 --dry-run",
    "repair --dry-run",
    "repair --dry-run --truncate-after 8 --branch b",
];

/// All files and directories of a store.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
            found.insert(path, Vec::new());
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn beside_writers_and_a_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    // Something to put right, in a branch that nobody writes to.
    fs::write(store.join("branches/c/description.tmp"), "draft").unwrap();
    let rests: Vec<_> = DRY_RUNS.map(|line| verb(line, &store, "").expect(0).stdout).into();
    let (mut main, _) = Writer::open(&store, SEGMENT_EACH).unwrap();
    let (b, _) = Writer::open_branch(&store, "b", SEGMENT_EACH).unwrap();
    let maintenance = fs::File::create(store.join("maintenance")).unwrap();
    maintenance.lock().unwrap();
    append(&mut main, 40, 5);
    let before = tree(&store);
    for (line, rests) in DRY_RUNS.into_iter().zip(rests) {
        let run = verb(line, &store, "").expect(0);
        if line.starts_with("repair") {
            assert!(run.stdout == rests && run.stderr.contains("somebody writes to main: nothing is said of it"), "{run}");
            assert!(run.stderr.contains("somebody writes to b"), "{run}");
        } else {
            assert_eq!(run.stdout.lines().count(), rests.lines().count(), "{run}");
        }
    }
    assert!(tree(&store) == before);
    let steps = verb("repair --dry-run", &store, "").expect(0).stdout;
    assert!(steps.contains("remove branches/c/description.tmp") && steps.contains("1 steps to take"), "{steps}");
    // Without `--dry-run` the lock is asked for.
    verb("repair", &store, "").refused(4, &["in use by another writer"]);
    verb("prune --keep-last 2", &store, "").expect(4);
    drop((main, b, maintenance));
}

/// Where no lock file can be made or opened for writing.
#[test]
fn on_a_store_that_can_only_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for chain in [store.clone(), store.join("branches/b")] {
        for lock in ["lock", "maintenance"] {
            let lock = chain.join(lock);
            if lock.exists() {
                fs::remove_file(&lock).unwrap();
            }
            fs::create_dir(lock).unwrap();
        }
    }
    let before = tree(&store);
    for line in DRY_RUNS {
        verb(line, &store, "").expect(0);
    }
    assert!(tree(&store) == before);
    verb("repair", &store, "").refused(1, &["could not lock"]);
}
