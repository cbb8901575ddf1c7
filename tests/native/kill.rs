//! A process that is killed at any moment loses nothing that was appended.

use std::time::Duration;

use slackwater::store::Chain;

use crate::native::follow::{self, Seen};
use crate::support::command::{Running, guest_is_ok, number, run, slackwater};
use crate::support::{Random, full, kvm_or_skip, rounds};

/// Modes of durability: a killed process loses nothing in any of them.
const DURABILITIES: [&str; 4] = ["epoch", "group:10", "none", "group:1"];

#[test]
fn a_killed_guest_goes_on_from_the_last_checkpoint() {
    if !kvm_or_skip("native::kill::a_killed_guest_goes_on_from_the_last_checkpoint") {
        return;
    }
    let mut random = Random::seeded("native::kill", 3);
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let path = store.display();
    let mut seen = Seen::new();
    let (mut passes, mut torn) = (0, 0);
    for round in 0..rounds(2, 8, 50) {
        // Every mode meets every way of tracking.
        let durability = DURABILITIES[usize::try_from(round + round / 4).unwrap() % DURABILITIES.len()];
        let verb = match round {
            0 => "checkpoint --memory 32M --vcpus 2 --guest churn:pages=2000,content=words",
            _ => "restore --continue",
        };
        // Most rounds append so much at once that a kill tears it.
        let (budget, most) = match round % 4 {
            0 => ("512", 20),
            1 => ("4096 --compression none --interval 4ms --hot off --early always", 6),
            2 => ("4096 --compression none --interval 4ms --hot auto --early always", 6),
            _ => ("4096 --compression none --interval 4ms --tracker bitmap", 6),
        };
        let line = format!("{verb} --store {path} --budget {budget} --durability {durability} --audit 5");
        let running = Running::start(&mut slackwater(line.split_whitespace()));
        let enough = seen.len() + 1 + usize::try_from(random.below(most)).unwrap();
        follow::wait_for_epochs(&store, enough);
        // Anywhere within an epoch: this is no wait for anything.
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        seen = follow::appended(&store);
        running.kill();

        follow::nothing_is_missing(&store, &seen);
        torn += u64::from(Chain::open(&store).unwrap().tail().is_some());
        seen = follow::appended(&store);
        let newest = *seen.keys().next_back().unwrap();
        let report = run(&format!("verify --store {path} --json")).expect(0).json();
        assert_eq!((number(&report, "/audits_failed"), number(&report, "/epochs")), (0, seen.len() as u64), "{report}");
        let report = run(&format!("restore --store {path} --for 200ms --json")).expect(0).json();
        assert!(guest_is_ok(&report) && number(&report, "/guest/checks") >= 2, "round {round}: {report}");
        assert_eq!(number(&report, "/epoch"), newest, "{report}");
        // The guest's own count never falls back behind what was appended before.
        let at_restore = number(&report, "/guest/passes_at_restore");
        assert!(at_restore >= passes, "round {round}: {at_restore} passes after {passes}");
        passes = at_restore;
    }
    println!("{torn} torn tails");
    assert!(!full() || torn > 0, "no kill tore an append");
    let report = run(&format!("restore --continue --store {path} --budget 512 --for 200ms --json")).expect(0).json();
    assert!(guest_is_ok(&report) && number(&report, "/checkpoint/epochs") >= 1, "{report}");
    follow::nothing_is_missing(&store, &seen);
    let report = run(&format!("verify --store {path} --json")).expect(0).json();
    assert!(report["torn_tail"].is_null() && number(&report, "/audits_failed") == 0, "{report}");
    assert!(number(&report, "/audits_checked") > 0, "{report}");
}
