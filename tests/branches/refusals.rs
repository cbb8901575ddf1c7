//! Options of branches and rules that can't be.

use slackwater::store::Writer;

use super::{store, verb};
use crate::support::command::run;
use crate::support::store::SEGMENT_EACH;

const NO_KVM: &str = "--kvm /nonexistent";

#[test]
fn names() {
    for name in ["", ".", "..", "a/b", ".x", "-x", "\u{e4}"] {
        let verbs = [
            "log",
            "digest",
            "compact",
            "prune --keep-last 1",
            "restore",
            "restore --from main",
            "verify",
            "repair --truncate-after 1",
        ];
        for verb in verbs {
            run(&format!("{verb} --store /nonexistent --branch={name}")).refused(2, &["--branch <NAME>"]);
        }
    }
    run("log --store /nonexistent --branch b --branches").refused(2, &["--branches"]);
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for line in ["log", "digest", "diff 1 2", "compact", "prune --keep-last 1", "restore"] {
        verb(line, &store, "--branch typo").refused(1, &["has no branch typo", "log --branches", "--epoch N --branch NAME"]);
    }
    verb("restore", &store, "--from typo").refused(1, &["has no branch typo"]);
    verb("restore", &store, "--from typo --branch new").refused(1, &["has no branch typo"]);
    assert!(!store.join("branches/new").exists() && !store.join("branches/typo").exists());
}

#[test]
fn rules() {
    for verb in ["prune", "checkpoint --kvm /nonexistent", "restore --continue"] {
        let line = |rule: &str| format!("{verb} --store /nonexistent {rule}");
        run(&line("--keep-last 0")).refused(2, &["--keep-last <N>"]);
        for option in ["--keep-every", "--keep-within"] {
            for time in ["", "0s", "5", "1d", "-1s"] {
                run(&line(&format!("{option}={time}"))).refused(2, &[option]);
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    verb("prune", &store, "").refused(2, &["which epochs stay", "--keep-last"]);
    verb("prune", &store, "--dry-run").refused(2, &["which epochs stay"]);
    verb("restore", &store, "--keep-last 3").refused(2, &["--continue", "slackwater prune"]);
}

#[test]
fn going_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let restore = |options: &str| verb("restore", &store, &format!("{NO_KVM} {options}"));
    restore("--continue --epoch 5").refused(2, &["epoch 5 is not the newest of main, which is 12", "--epoch 5 --branch NAME"]);
    restore("--branch main --epoch 5").refused(2, &["not the newest of main"]);
    restore("--branch b --epoch 5").refused(2, &["epoch 5 is not the newest of b, which is 8", "`--branch b` without `--epoch`"]);
    restore("--from b --continue --epoch 5").refused(2, &["not the newest of b"]);
    restore("--branch b --from main").refused(2, &["there is a branch b"]);
    restore("--branch new --epoch 99").refused(1, &["the store holds no epoch 99: the newest is 12"]);
    restore("--branch new --from b --epoch 10").refused(1, &["the store holds no epoch 10: the newest is 8"]);
    // The store has no machine that could be built, which shows before a branch is made.
    restore("--branch new --epoch 5").refused(3, &["can't be built"]);
    assert!(!store.join("branches/new").exists());
    // One writer for each chain.
    let (main, _) = Writer::open(&store, SEGMENT_EACH).unwrap();
    restore("--continue").refused(4, &["in use by another writer"]);
    restore("--branch b").refused(3, &["can't be built"]);
    let (b, _) = Writer::open_branch(&store, "b", SEGMENT_EACH).unwrap();
    restore("--branch b").refused(4, &["in use by another writer", "branches/b"]);
    drop((main, b));
}
