//! What a run is said to have come to, for people: nothing is called well that nobody looked at.

use crate::support::command::run;
use crate::support::kvm_or_skip;

#[test]
fn a_guest_that_checks_nothing_and_a_run_that_syncs_nothing() {
    if !kvm_or_skip("native::outcome::a_guest_that_checks_nothing_and_a_run_that_syncs_nothing") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let machine = "--memory 16M --budget 512 --interval 20ms --epochs 6";
    for (guest, checks) in [("touch:pages=100", false), ("churn:pages=64", true)] {
        let store = dir.path().join(if checks { "churn" } else { "touch" });
        let checkpoint = format!("checkpoint --store {} --guest {guest} {machine} --durability none", store.display());
        let text = run(&checkpoint).expect(0).stdout;
        assert!(text.contains("none synced, as `--durability none` says") && !text.contains(" durable"), "{text}");
        assert_eq!(text.contains("no inconsistency"), checks, "{text}");
        assert_eq!(text.contains("it does not check itself"), !checks, "{text}");
        // What was not synced is there all the same.
        let text = run(&format!("restore --store {} --for 20ms", store.display())).expect(0).stdout;
        assert_eq!(text.contains("found nothing wrong"), checks, "{text}");
        assert_eq!(text.contains("does not check itself: nothing is known of it"), !checks, "{text}");
        let report = run(&format!("restore --store {} --for 20ms --json", store.display())).expect(0).json();
        assert_eq!((&report["guest"]["checks_itself"], &report["guest"]["ok"]), (&checks.into(), &true.into()), "{report}");
    }
}
