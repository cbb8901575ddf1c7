//! Branches, `slackwater prune` and `slackwater compact`, as far as no KVM is needed.

mod clock;
mod dry_runs;
mod prune;
mod refusals;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use slackwater::page::EpochId;
use slackwater::store::{StoreError, Writer};

use crate::support::command::{Run, number, run};
use crate::support::store::{SEGMENT_EACH, append_all, new_chain};

/// A store with epochs 1 to 12 in `main`, cut in minutes 1 to 12, and branches: `b` from main's 5
/// with 6 to 8, `c` from b's 7 with 8 and 9, `d` from the 3 that b has from main, with none.
fn store(dir: &Path) -> PathBuf {
    let store = dir.join("store");
    append_all(Writer::create(&store, &new_chain(), SEGMENT_EACH).unwrap(), 1..=12, 0);
    let branch = |name, of, epoch| Writer::create_branch(&store, name, of, EpochId(epoch), SEGMENT_EACH).unwrap();
    append_all(branch("b", "main", 5), 20..23, 1);
    append_all(branch("c", "b", 7), 30..32, 2);
    append_all(branch("d", "b", 3), [], 3);
    store
}

/// Runs `slackwater VERB --store STORE MORE`.
fn verb(verb: &str, store: &Path, more: &str) -> Run {
    run(&format!("{verb} --store {} {more}", store.display()))
}

fn lines(run: &Run) -> Vec<Value> {
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The epochs that `log` lists of a branch.
fn listed(store: &Path, branch: &str) -> Vec<u64> {
    lines(&verb("log", store, &format!("--branch {branch} --json")).expect(0)).iter().map(|line| number(line, "/epoch")).collect()
}

/// The digest of each epoch of a branch.
fn digests(store: &Path, branch: &str) -> BTreeMap<u64, String> {
    let digest = |epoch: &u64| verb("digest", store, &format!("--branch {branch} --epoch {epoch}")).expect(0).stdout;
    listed(store, branch).into_iter().map(|epoch| (epoch, digest(&epoch))).collect()
}

#[test]
fn branches_behind_each_other_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    append_all(Writer::create(&store, &new_chain(), SEGMENT_EACH).unwrap(), 1..=1, 0);
    let mut of = "main".to_owned();
    for depth in 1..=64 {
        let name = format!("b{depth}");
        append_all(Writer::create_branch(&store, &name, &of, EpochId(depth), SEGMENT_EACH).unwrap(), depth..=depth, 0);
        of = name;
    }
    let refused = Writer::create_branch(&store, "more", &of, EpochId(65), SEGMENT_EACH);
    assert!(matches!(&refused, Err(StoreError::BranchDepth { most: 64, .. })), "{refused:?}");
    assert!(!store.join("branches/more").exists());
    assert_eq!(listed(&store, &of), (1..=65).collect::<Vec<_>>());
}

/// Two epochs of different branches, both behind the fork, are compared as their files are.
#[test]
fn difference_across_a_fork() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let memory = |branch: &str, epoch: u64| {
        let file = dir.path().join(format!("{branch}-{epoch}"));
        let more = format!("--branch {branch} --epoch {epoch} --format raw --force --out {}", file.display());
        verb("export", &store, &more).expect(0);
        std::fs::read(file).unwrap()
    };
    let epochs = [("main", 3), ("main", 5), ("main", 8), ("b", 5), ("b", 8), ("c", 7), ("c", 9), ("d", 3)];
    for (a, epoch_a) in epochs {
        for (b, epoch_b) in epochs {
            let (one, other) = (memory(a, epoch_a), memory(b, epoch_b));
            let bytes = one.iter().zip(&other).filter(|(one, other)| one != other).count() as u64;
            let report = verb(&format!("diff {a}:{epoch_a} {b}:{epoch_b} --json"), &store, "").expect(0).json();
            assert_eq!(number(&report, "/bytes_changed"), bytes, "{a}:{epoch_a} {b}:{epoch_b}");
            assert_eq!((&report["a_branch"], &report["b_branch"]), (&a.into(), &b.into()));
        }
    }
    // One that is given without a branch is of that of `--branch`.
    let text = verb("diff 8 b:8", &store, "").expect(0).stdout;
    assert!(text.starts_with("epochs main:8 and b:8 differ in"), "{text}");
    let same = verb("diff b:5 main:5", &store, "").expect(0).stdout;
    assert!(same.contains("differ in 0 pages") && same.contains("the same"), "{same}");
    let text = verb("diff main:8 8 --branch b", &store, "").expect(0).stdout;
    assert!(text.starts_with("epochs main:8 and b:8 differ in"), "{text}");
    verb("diff 8 typo:8", &store, "").refused(1, &["has no branch typo"]);
    verb("diff 8 b:9", &store, "").refused(1, &["no epoch 9: the newest is 8"]);
    verb("diff 8 a/b:9", &store, "").refused(2, &["the name of a branch is 1 to 64 of"]);
    verb("diff 0 8", &store, "").refused(2, &["epochs are numbered from 1"]);
}

#[test]
fn log_and_readers() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    assert_eq!(listed(&store, "main"), (1..=12).collect::<Vec<_>>());
    assert_eq!(listed(&store, "b"), (1..=8).collect::<Vec<_>>());
    assert_eq!(listed(&store, "c"), (1..=9).collect::<Vec<_>>());
    assert_eq!(listed(&store, "d"), [1, 2, 3]);
    let names = "branch b from main at 5\nbranch c from b at 7\nbranch d from main at 3\n";
    let text = verb("log", &store, "").expect(0).stdout;
    assert!(text.lines().count() == 15 && text.ends_with(names), "{text}");
    assert_eq!(verb("log", &store, "--branches").expect(0).stdout, names);
    let branches = lines(&verb("log", &store, "--branches --json").expect(0));
    assert_eq!(branches[1], serde_json::json!({"branch": "c", "of": "b", "epoch": 7}));

    let (main, b, c) = (digests(&store, "main"), digests(&store, "b"), digests(&store, "c"));
    assert!((1..=5).all(|epoch| main[&epoch] == b[&epoch]) && (1..=7).all(|epoch| b[&epoch] == c[&epoch]));
    assert!((6..=8).all(|epoch| main[&epoch] != b[&epoch]) && b[&8] != c[&8]);
    // Each reader takes what it is told.
    let changed =
        |branch| number(&verb("diff", &store, &format!("5 8 --branch {branch} --json")).expect(0).json(), "/pages_changed");
    assert!(changed("b") > 0 && changed("main") > 0);
    let out = dir.path().join("out");
    let export = format!("--branch c --format raw --out {} --json", out.display());
    assert_eq!(number(&verb("export", &store, &export).expect(0).json(), "/epoch"), 9);
}
