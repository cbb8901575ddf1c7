//! No epoch holds more pages than the budget allows.

use crate::support::command::{guest_is_ok, number, run};
use crate::support::{as_time_allows, full, kvm_or_skip, nested};

const PATTERNS: [&str; 4] = ["sequential", "uniform", "zipf", "hotcold"];
const CONTENTS: [&str; 5] = ["text", "random", "zero", "counter", "words"];

/// `pages` of working set fill the largest rings that `budget` has room for.
fn check(budget: u64, pages: u64, memory: &str, epochs: u64) {
    let mut contents = CONTENTS.iter().cycle();
    for vcpus in as_time_allows(&[2, 1], 1) {
        for pattern in as_time_allows(&PATTERNS, 2) {
            let all = if full() { &CONTENTS[..] } else { std::slice::from_ref(contents.next().unwrap()) };
            for content in all {
                let dir = tempfile::tempdir().unwrap();
                let store = dir.path().join("store");
                let guest = format!("churn:pages={pages},pattern={pattern},content={content}");
                let line = format!(
                    "--vcpus {vcpus} --memory {memory} --guest {guest} --budget {budget} --interval off --epochs {epochs}"
                );
                let report = run(&format!("checkpoint --store {} {line} --json", store.display())).expect(0).json();
                assert!(guest_is_ok(&report), "{line}: {report}");
                assert_eq!(
                    (number(&report, "/budget_pages"), number(&report, "/tracking_lost")),
                    (budget, 0),
                    "{line}: {report}"
                );
                assert!(number(&report, "/max_epoch_pages") <= budget, "{line}: {report}");
                assert_eq!(number(&report, "/over_budget_epochs"), 0, "{line}: {report}");
                // The base and the last one end otherwise.
                assert!(number(&report, "/triggers/ring_full") + 2 >= number(&report, "/epochs"), "{line}: {report}");
                assert_eq!(number(&report, "/epochs"), epochs, "{line}: {report}");
                let verified = run(&format!("verify --store {} --json", store.display())).expect(0).json();
                assert_eq!(number(&verified, "/epochs"), number(&report, "/epochs"), "{line}: {verified}");
                // What the chain says itself, parts of the base aside.
                let log = run(&format!("log --store {} --json", store.display())).expect(0).stdout;
                for entry in log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
                    assert!(entry["base"] == true || number(&entry, "/pages") <= budget, "{line}: {entry}");
                }
            }
        }
    }
}

#[test]
fn a_budget_of_512_pages() {
    if kvm_or_skip("native::bound::a_budget_of_512_pages") {
        check(512, 3000, "32M", if nested() { 5 } else { 40 });
    }
}

#[test]
fn a_budget_of_2000_pages() {
    if !nested() && kvm_or_skip("native::bound::a_budget_of_2000_pages") {
        check(2000, 6000, "64M", 15);
    }
}

#[test]
fn a_budget_of_20000_pages() {
    if !nested() && kvm_or_skip("native::bound::a_budget_of_20000_pages") {
        check(20_000, 60_000, "300M", if full() { 8 } else { 3 });
    }
}
