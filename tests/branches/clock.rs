//! A clock that is set while a chain is written: what is dropped follows from the time that passed.

use std::path::{Path, PathBuf};

use serde_json::json;
use slackwater::format::{Commit, EpochWriter, Line, StateRecord};
use slackwater::store::{Retention, Writer, plan_prune};

use super::{lines, listed, verb};
use crate::support::store::{SEGMENT_EACH, new_chain};

const MINUTE: u64 = 60_000_000_000;
const YEAR: u64 = 365 * 24 * 60 * MINUTE;

/// Appends an epoch that was cut at `unix_ns` by the clock, and at `engine_ns` by the engine's
/// time.
fn append((writer, line): (&mut Writer, &mut Line), unix_ns: u64, engine_ns: u64) {
    let epoch = writer.head().epoch.next();
    let mut frames = EpochWriter::new(writer.description().chain, epoch);
    let mut out = Vec::new();
    let state = StateRecord { name: "test".to_owned(), index: 0, version: 1, data: epoch.0.to_le_bytes().to_vec() };
    frames.state(&mut out, &[state]).unwrap();
    let commit = Commit { epoch, totals: frames.totals(), time_unix_ns: unix_ns, own_ns: engine_ns, ..Commit::default() };
    writer.complete(&out, &line.complete(commit)).unwrap();
    writer.sync().unwrap();
}

/// An epoch each minute: 1 to 10 by a machine whose clock stands at 1970 when it starts and learns
/// the time after the fifth; 11 to 15 by another life, two hours later, whose clock is set a year
/// ahead before the 13th and right again before the 14th; 16 and 17 by a third, whose clock has
/// gone back by a day.
fn store(dir: &Path) -> PathBuf {
    let store = dir.join("store");
    let mut writer = Writer::create(&store, &new_chain(), SEGMENT_EACH).unwrap();
    let mut line = Line::behind(writer.description().chain, writer.head());
    for minute in 1..=10 {
        append((&mut writer, &mut line), minute * MINUTE + if minute > 5 { 50 * YEAR } else { 0 }, minute * MINUTE);
    }
    writer.close(true).unwrap();
    drop(writer);
    let (mut writer, _) = Writer::open(&store, SEGMENT_EACH).unwrap();
    let mut line = Line::behind(writer.description().chain, writer.head());
    let begun = 50 * YEAR + 130 * MINUTE;
    for minute in 0..5 {
        append((&mut writer, &mut line), begun + minute * MINUTE + if minute == 2 { YEAR } else { 0 }, begun + minute * MINUTE);
    }
    writer.close(true).unwrap();
    drop(writer);
    let (mut writer, _) = Writer::open(&store, SEGMENT_EACH).unwrap();
    let mut line = Line::behind(writer.description().chain, writer.head());
    let begun = 50 * YEAR + 135 * MINUTE - 24 * 60 * MINUTE;
    for minute in 0..2 {
        append((&mut writer, &mut line), begun + minute * MINUTE, begun + minute * MINUTE);
    }
    writer.close(true).unwrap();
    store
}

#[test]
fn rules_go_by_the_time_that_passed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let kept = |rule: &str| {
        let plan = lines(&verb("prune", &store, &format!("{rule} --dry-run --json")).expect(0)).remove(0);
        (plan["kept"].as_array().unwrap().len(), plan["clock_jumps"].clone())
    };
    let seconds = |ns: u64| ns / 1_000_000_000;
    let jumps = json!([
        {"epoch": 6, "by_s": seconds(50 * YEAR) as f64},
        {"epoch": 13, "by_s": seconds(YEAR) as f64},
        {"epoch": 14, "by_s": -(seconds(YEAR) as f64)},
        {"epoch": 16, "by_s": -(seconds(24 * 60 * MINUTE - MINUTE) as f64)},
    ]);
    // The newest is at 135 minutes and the 15th at 134: nothing passed where the clock went back.
    // The tenth is at 10, and two hours were none of anybody's.
    for (rule, count) in [
        ("--keep-within 1m", 3),
        ("--keep-within 5m", 7),
        ("--keep-within 2h", 7),
        ("--keep-within 126m", 9),
        ("--keep-within 3h", 17),
        ("--keep-within 60000h", 17),
        ("--keep-every 5m", 5),
        ("--keep-every 1m", 16),
    ] {
        assert_eq!(kept(rule), (count, jumps.clone()), "{rule}");
    }
    let told = verb("prune", &store, "--keep-within 2h").expect(0);
    told.says(&[
        "the clock was set forward by 18250 days before epoch 6: how old epochs are is counted without it",
        "the clock was set back by 365 days before epoch 14",
    ]);
    assert_eq!(listed(&store, "main"), [11, 12, 13, 14, 15, 16, 17]);
    // What was dropped on the way makes no difference; and a compacted epoch has the time that it
    // had.
    let (mut writer, _) = Writer::open(&store, SEGMENT_EACH).unwrap();
    let mut line = Line::behind(writer.description().chain, writer.head());
    let begun = 50 * YEAR + 140 * MINUTE;
    append((&mut writer, &mut line), begun, begun);
    writer.close(true).unwrap();
    drop(writer);
    let rule = Retention { within: Some(std::time::Duration::from_secs(24 * 3600)), ..Retention::default() };
    let plan = plan_prune(&store, "main", &rule).unwrap();
    assert!(
        plan.dropped == (11..=17).map(slackwater::page::EpochId).collect::<Vec<_>>(),
        "a day has passed since the last: {plan:?}"
    );
}
