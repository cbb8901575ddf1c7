//! A moment of the harness, through the command: every tracker, the whole engine, and every form of
//! report.

use serde_json::Value;

use crate::support::command::{number, run};
use crate::support::{kvm_or_skip, nested};

#[test]
fn a_moment_of_every_kind_of_measurement() {
    if nested() || !kvm_or_skip("native::bench::a_moment_of_every_kind_of_measurement") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (out, store) = (dir.path().join("out"), dir.path().join("store"));
    let line = format!("bench --extent tiny --json --out {} --store {}", out.display(), store.display());
    let output = run(&line).expect(0).stdout;
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    let trackers: Vec<&str> = of("cuts").iter().map(|row| row["tracker"].as_str().unwrap()).collect();
    assert_eq!(trackers, ["ring", "ring+hot", "bitmap", "bitmap+clear"], "{output}");
    for row in of("cuts") {
        // The pages of a pass and the control page.
        assert_eq!((number(row, "/dirty_pages"), row["epoch_pages"].as_f64()), (60, Some(61.0)), "{row}");
        for positive in [
            "/run_us",
            "/state_us",
            "/copy_us",
            "/tracking_us",
            "/pause_us/p50",
            "/floor_copy_us",
            "/untracked_run_us",
            "/slowdown",
        ] {
            assert!(row.pointer(positive).and_then(Value::as_f64).unwrap() > 0.0, "{positive} of {row}");
        }
        assert_eq!(number(row, "/cuts"), 24, "{row}");
    }
    let streams: Vec<_> =
        of("early").iter().map(|row| (row["tracker"].as_str().unwrap(), row["early"].as_str().unwrap())).collect();
    assert_eq!(streams, [("ring", "off"), ("ring", "auto"), ("bitmap+clear", "off")], "{output}");
    for row in of("early") {
        assert!(row["epochs"].as_u64() > Some(0) && row["pause_us"]["p50"].as_f64() > Some(0.0), "{row}");
        // Of two epochs on a busy machine either way may be the slower one.
        assert!(row["durable_after_us"]["p50"].as_f64() > Some(0.0) && row["stretch_percent"].is_f64(), "{row}");
    }
    let hot = of("hot")[0];
    assert!(number(hot, "/epochs") > 0 && hot["over_least"].as_f64() >= Some(0.9), "{hot}");
    let rate = of("rate")[0];
    assert!(number(rate, "/epochs") > 0 && rate["bytes_per_page"].as_f64().unwrap() > 0.0, "{rate}");
    assert!(rate["burst_us"].as_f64().unwrap() > 0.0 && rate["unprotected_burst_us"].as_f64().unwrap() > 0.0, "{rate}");
    let last = lines.last().unwrap();
    assert!(last["kind"] == "summary" && last["floors"]["exit_us"]["p50"].as_f64().unwrap() > 0.0, "{last}");
    assert_eq!(std::fs::read_to_string(out.join("bench.json")).unwrap(), output);
    assert_eq!(std::fs::read_to_string(out.join("bench.csv")).unwrap().lines().count(), lines.len());
    assert!(std::fs::read_to_string(out.join("bench.html")).unwrap().contains("<svg"));
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0, "the chains are removed");
}

/// The two that take processes of their own.
#[test]
fn a_moment_with_a_standby_and_of_a_migration() {
    if nested() || !kvm_or_skip("native::bench::a_moment_with_a_standby_and_of_a_migration") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let line = format!("bench --axis standby --axis migrate --extent tiny --json --store {}", store.display());
    // A process that is taken for dead on a busy machine is no fault: it is said, and the run ends.
    let output = (0..3).map(|_| run(&line)).find(|run| run.code() == 0 || !run.stderr.contains("too busy")).unwrap();
    let output = output.expect(0).stdout;
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    let standby = of("standby")[0];
    let us = |pointer: &str| standby.pointer(pointer).and_then(Value::as_f64).unwrap();
    assert!(us("/alone_us/p50") > 0.0 && us("/paired_us/p99") >= us("/paired_us/p50"), "{standby}");
    assert!(us("/round_trip_us") > 0.0 && us("/floor_us") > us("/alone_us/p50"), "{standby}");
    assert!(us("/paired_per_s") > 0.0 && us("/epoch_bytes") > 0.0, "{standby}");
    let parts: f64 = ["detect", "witness", "apply", "first_run"].iter().map(|part| us(&format!("/failover_us/{part}"))).sum();
    assert!(number(standby, "/failovers") == 1 && (us("/failover_us/total") - parts).abs() < 1.0, "{standby}");
    let trackers: Vec<_> = of("migrate").iter().map(|row| row["tracker"].as_str().unwrap()).collect();
    assert_eq!(trackers, ["ring", "bitmap"], "{output}");
    for row in of("migrate") {
        assert!(row["parked_us"].as_f64() > Some(0.0) && row["downtime_us"].as_f64() > row["parked_us"].as_f64(), "{row}");
    }
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0, "all that was made is removed");
}
