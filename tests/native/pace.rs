//! A paced guest keeps its pace under checkpoints.

use crate::support::command::{number, run};
use crate::support::{kvm_or_skip, nested};

#[test]
fn a_cut_does_not_end_a_guests_rest() {
    if !kvm_or_skip("native::pace::a_cut_does_not_end_a_guests_rest") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (period_ms, interval, epochs) = if nested() { (500, "100ms", 60) } else { (50, "2ms", 300) };
    for guest in ["churn:pages=64,burst=16", "touch:pages=16,cut=0"] {
        let line = format!("--guest {guest},every={period_ms}ms --interval {interval} --epochs {epochs}");
        let report = run(&format!("checkpoint --store {} --memory 32M {line} --json", store.display())).expect(0).json();
        std::fs::remove_dir_all(&store).unwrap();
        assert!(number(&report, "/triggers/interval") > epochs / 2, "{line}: {report}");
        // A pass in each period, and one before the first; however long that took.
        let elapsed_ms = report["elapsed_s"].as_f64().unwrap() * 1000.0;
        let most = elapsed_ms / f64::from(period_ms) + 3.0;
        assert!(report["guest"]["passes"].as_f64().unwrap() <= most, "{line}: at most {most}: {report}");
    }
}
