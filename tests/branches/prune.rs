//! What `prune` and `compact` drop, keep and say.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use slackwater::store::{Chain, Writer};

use super::{digests, lines, listed, store, verb};
use crate::support::command::number;
use crate::support::store::{SEGMENT_EACH, append};

fn segments(store: &Path, branch: &str) -> usize {
    Chain::open_branch(store, branch).unwrap().segments()
}

/// Prunes, and checks that what is left is as it was. Gives the plan and the report.
fn prune(store: &Path, branch: &str, rules: &str) -> (Value, Option<Value>) {
    let before = digests(store, branch);
    let dry = lines(&verb("prune", store, &format!("--branch {branch} {rules} --dry-run --json")).expect(0));
    assert_eq!(digests(store, branch), before);
    let mut run = lines(&verb("prune", store, &format!("--branch {branch} {rules} --json")).expect(0)).into_iter();
    let (plan, report) = (run.next().unwrap(), run.next());
    assert!(run.next().is_none() && dry == [plan.clone()], "{dry:?} {plan}");
    let left = digests(store, branch);
    assert!(left.iter().all(|(epoch, digest)| before[epoch] == *digest));
    let gone: Vec<_> = before.keys().filter(|epoch| !left.contains_key(epoch)).collect();
    assert_eq!(json!(gone), plan["dropped"]);
    (plan, report)
}

#[test]
fn rules_and_branches_keep() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (b, c) = (digests(&store, "b"), digests(&store, "c"));
    let (plan, report) = prune(&store, "main", "--keep-last 2 --keep-every 5m");
    // 4 and 9 are the last of their five minutes, 3 and 5 have branches.
    assert_eq!((&plan["kept"], &plan["branch"]), (&json!([3, 4, 5, 9, 11, 12]), &json!("main")));
    let report = report.unwrap();
    assert_eq!((number(&report, "/epochs_before"), number(&report, "/epochs_after")), (12, 6), "{report}");
    assert_eq!(number(&report, "/bytes_before"), number(&plan, "/bytes"), "{report}");
    let (expected, found) = (number(&plan, "/bytes_expected"), number(&report, "/bytes_after"));
    assert!(found < number(&plan, "/bytes") && expected.abs_diff(found) < found / 2, "{plan} {report}");
    // Branches have lost what main has, and nothing of their own.
    let rest = |mut all: BTreeMap<u64, String>| all.split_off(&3);
    assert_eq!((digests(&store, "b"), digests(&store, "c")), (rest(b), rest(c)));
    // Once more, there is nothing to do.
    let (plan, report) = prune(&store, "main", "--keep-last 2 --keep-every 5m");
    assert_eq!((&plan["dropped"], report), (&json!([]), None));

    // A branch drops of its own: not 7, at which another begins.
    let (plan, report) = prune(&store, "b", "--keep-last 1");
    assert_eq!((&plan["kept"], &plan["dropped"]), (&json!([7, 8]), &json!([6])));
    assert!(report.is_some());
    assert_eq!((listed(&store, "b"), listed(&store, "c")), (vec![3, 4, 5, 7, 8], vec![3, 4, 5, 7, 8, 9]));
    // One without epochs of its own has nothing to drop.
    assert_eq!(prune(&store, "d", "--keep-within 1h").0["kept"], json!([]));
    let text = verb("prune", &store, "--keep-last 1").expect(0).stdout;
    assert!(text.starts_with("keep          3 epochs: 3, 5, 12\ndrop          3 epochs: 4, 9 to 11\nbytes "), "{text}");
    assert!(text.contains("epochs        6 before, 3 now"), "{text}");
}

#[test]
fn compact_drops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let all = ["main", "b", "c", "d"].map(|branch| digests(&store, branch));
    for branch in ["main", "b"] {
        let before = segments(&store, branch);
        let report = verb("compact", &store, &format!("--branch {branch} --json")).expect(0).json();
        assert_eq!(number(&report, "/segments_before"), before as u64, "{report}");
        assert_eq!((number(&report, "/segments_after"), segments(&store, branch)), (1, 1), "{report}");
        assert_eq!(number(&report, "/epochs_before"), number(&report, "/epochs_after"));
    }
    assert_eq!(all, ["main", "b", "c", "d"].map(|branch| digests(&store, branch)));
    assert!(verb("compact", &store, "--branch c").expect(0).stdout.contains("segments      2 before, 1 now"));
}

#[test]
fn a_chain_that_is_written_is_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (mut writer, _) = Writer::open(&store, SEGMENT_EACH).unwrap();
    for minute in 13..20 {
        append(&mut writer, minute, 0);
    }
    let before = digests(&store, "main");
    verb("prune", &store, "--keep-within 2m").expect(0);
    append(&mut writer, 20, 0);
    drop(writer);
    let left = digests(&store, "main");
    assert_eq!(left.keys().copied().collect::<Vec<_>>(), [3, 5, 17, 18, 19, 20]);
    assert!(left.iter().all(|(epoch, digest)| *epoch == 20 || before[epoch] == *digest));
}

#[test]
fn what_cannot_be_pruned_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    std::fs::write(store.join("branches/d/description.json"), "{}\n").unwrap();
    let files = || {
        let names = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        names.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let before = files();
    // What that branch leans on is not known.
    verb("prune", &store, "--keep-last 1").refused(3, &["branches/d/description.json"]);
    assert!(files() == before);
}
