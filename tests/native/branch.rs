//! Branches of a guest's past, on real KVM.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use slackwater::store::Chain;

use crate::native::follow;
use crate::support::command::{Running, guest_is_ok, number, run, slackwater};
use crate::support::{kvm_or_skip, nested, patience};

/// So small that an epoch ends many times a second under emulation as well.
const PROTECT: &str = "--budget 256 --interval 20ms";

fn start(line: &str) -> Running {
    Running::start(&mut slackwater(line.split_whitespace()))
}

fn newest(store: &Path, branch: &str) -> u64 {
    Chain::open_branch(store, branch).map_or(0, |chain| chain.newest().0)
}

/// Polls until a branch has an epoch above `epoch`.
#[track_caller]
fn wait_above(store: &Path, branch: &str, epoch: u64) {
    let begun = Instant::now();
    while newest(store, branch) <= epoch {
        assert!(begun.elapsed() < patience(Duration::from_secs(60)), "{branch} has no epoch above {epoch}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn digest(store: &Path, branch: &str, epoch: u64) -> String {
    run(&format!("digest --store {} --branch {branch} --epoch {epoch}", store.display())).expect(0).stdout
}

/// Restores and goes on for a few epochs. Gives the report.
#[track_caller]
fn go_on(store: &Path, options: &str) -> Value {
    let report = run(&format!("restore --store {} {options} {PROTECT} --epochs 60 --json", store.display())).expect(0).json();
    assert!(guest_is_ok(&report) && number(&report, "/guest/checks") >= 1, "{report}");
    assert!(number(&report, "/checkpoint/durable_epochs") >= 4, "{report}");
    report
}

#[test]
fn the_past_goes_on_beside_the_original() {
    if !kvm_or_skip("native::branch::the_past_goes_on_beside_the_original") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let path = store.display();
    let running = start(&format!("checkpoint --store {path} --memory 8M --vcpus 1 --guest churn:pages=600 {PROTECT}"));
    follow::wait_for_epochs(&store, 8);
    running.kill();
    let at = newest(&store, "main");
    let main = [5, at].map(|epoch| digest(&store, "main", epoch));

    let report = go_on(&store, "--epoch 5 --branch b1");
    assert_eq!((number(&report, "/epoch"), &report["branch"]), (5, &Value::from("b1")), "{report}");
    assert_eq!(newest(&store, "main"), at, "main went on with the branch");
    assert_eq!(main, [5, at].map(|epoch| digest(&store, "main", epoch)));
    assert_eq!(digest(&store, "b1", 5), main[0]);
    let end = newest(&store, "b1");
    assert!(end >= 9);
    let b1 = digest(&store, "b1", end);

    // A branch goes on; what was there stays. One of a branch begins in its own part, or in what it
    // has from main.
    assert_eq!(number(&go_on(&store, "--branch b1"), "/epoch"), end);
    assert!(newest(&store, "b1") > end && digest(&store, "b1", end) == b1);
    let (at_b2, at_b3) = (format!("--from b1 --epoch {end} --branch b2"), "--from b1 --epoch 3 --branch b3");
    assert_eq!((number(&go_on(&store, &at_b2), "/epoch"), number(&go_on(&store, at_b3), "/epoch")), (end, 3));
    let listed = run(&format!("log --store {path} --branches")).expect(0).stdout;
    assert_eq!(listed, format!("branch b1 from main at 5\nbranch b2 from b1 at {end}\nbranch b3 from main at 3\n"));
    run(&format!("restore --store {path} --epoch 5 --branch b1")).refused(2, &["not the newest of b1"]);

    // Main and a branch at once, each with one writer.
    let both = [
        start(&format!("restore --store {path} --continue {PROTECT}")),
        start(&format!("restore --store {path} --branch b2 {PROTECT}")),
    ];
    let ends = ["main", "b2"].map(|branch| (branch, newest(&store, branch)));
    ends.into_iter().for_each(|(branch, epoch)| wait_above(&store, branch, epoch + 2));
    run(&format!("restore --store {path} --branch b2 {PROTECT}")).refused(4, &["in use by another writer"]);
    both.into_iter().for_each(|running| drop(running.kill()));
    for (branch, _) in ends {
        let report = run(&format!("restore --store {path} --from {branch} --for 20ms --json")).expect(0).json();
        assert!(guest_is_ok(&report) && number(&report, "/epoch") == newest(&store, branch), "{report}");
    }
    assert_eq!(main, [5, at].map(|epoch| digest(&store, "main", epoch)));
    assert_eq!(digest(&store, "b1", end), b1);
}

#[test]
fn one_point_goes_on_many_times_at_once() {
    if !kvm_or_skip("native::branch::one_point_goes_on_many_times_at_once") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let path = store.display();
    run(&format!("checkpoint --store {path} --memory 8M --guest churn:pages=300 {PROTECT} --epochs 6")).expect(0);
    let many = if nested() { 2 } else { 8 };
    let line = |number: usize| format!("restore --store {path} --epoch 4 --branch try-{number} {PROTECT} --epochs 2 --json");
    let running: Vec<_> = (0..many).map(|number| start(&line(number))).collect();
    for running in running {
        let report = running.wait().expect(0).json();
        assert!(guest_is_ok(&report) && number(&report, "/epoch") == 4, "{report}");
    }
    assert_eq!(run(&format!("log --store {path} --branches")).expect(0).stdout.lines().count(), many);
    let digests: Vec<_> = (0..many).map(|number| digest(&store, &format!("try-{number}"), 4)).collect();
    assert!(digests.iter().all(|of| *of == digest(&store, "main", 4)));
    (0..many).for_each(|number| assert!(newest(&store, &format!("try-{number}")) >= 6));
    // All but what it and they begin at.
    let plan = run(&format!("prune --store {path} --keep-last 1 --json")).expect(0);
    assert_eq!(number(&plan.json(), "/epochs_after"), 2);
    for number in 0..many {
        assert_eq!(digest(&store, &format!("try-{number}"), 4), digests[0]);
    }
}
