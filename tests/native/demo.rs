//! The demos, as somebody new runs them.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::command::{Running, finish, number, run, slackwater};
use crate::support::{kvm_or_skip, nested, patience, skip};

/// Where a demo has what it removes: nothing is left there.
struct Temporary(tempfile::TempDir);

impl Temporary {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn demo(&self, options: &str) -> std::process::Command {
        let mut command = slackwater(format!("demo {options}").split_whitespace());
        command.env("TMPDIR", self.0.path());
        command
    }

    #[track_caller]
    fn is_empty(&self) {
        let left: Vec<_> = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Whether the pair's own times hold here.
fn failover_or_skip(test: &str) -> bool {
    let can = kvm_or_skip(test);
    if can && nested() {
        skip(test, "there nobody is heard of within 25 ms");
    }
    can && !nested()
}

/// The keys are those that the schema requires.
#[track_caller]
fn has_keys_of(report: &Value, form: &str) {
    let schema: Value = serde_json::from_str(include_str!("../../docs/schema/demo.schema.json")).unwrap();
    let mut required: Vec<_> =
        schema["$defs"][form]["required"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    let mut keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    required.sort_unstable();
    keys.sort_unstable();
    assert_eq!(keys, required);
}

#[test]
fn the_demo_restores_what_was_killed() {
    if !kvm_or_skip("native::demo::the_demo_restores_what_was_killed") {
        return;
    }
    let temporary = Temporary::new();
    let report = finish(&mut temporary.demo("--json")).expect(0).json();
    has_keys_of(&report, "report");
    assert_eq!(report["ok"], true, "{report}");
    assert!(number(&report, "/epochs") >= 250 && number(&report, "/passes") > number(&report, "/passes_at_restore"), "{report}");
    temporary.is_empty();
}

#[test]
fn the_demo_of_a_failover_tells_what_happens() {
    if !failover_or_skip("native::demo::the_demo_of_a_failover_tells_what_happens") {
        return;
    }
    let temporary = Temporary::new();
    let text = finish(&mut temporary.demo("--failover")).expect(0);
    assert!(text.stderr.is_empty(), "{text}");
    for said in ["1. Process ", "is killed by SIGKILL, with 4 requests under way", "takes over", "forgot nothing"] {
        assert!(text.stdout.contains(said), "no `{said}` in {text}");
    }
    assert!(text.stdout.lines().all(|line| line.len() <= 100), "{text}");
    temporary.is_empty();
}

#[test]
fn the_demo_of_a_failover_in_numbers() {
    if !failover_or_skip("native::demo::the_demo_of_a_failover_in_numbers") {
        return;
    }
    let (temporary, kept) = (Temporary::new(), tempfile::tempdir().unwrap());
    let stores = kept.path().join("stores");
    let line = format!("--failover --json --store {}", stores.display());
    let report = finish(&mut temporary.demo(&line)).expect(0).json();
    has_keys_of(&report, "failover");
    has_keys_of(&report["before"], "served");
    assert_eq!(report["ok"], true, "{report}");
    let of = |path: &str| number(&report, path);
    assert!(of("/before/answered") > 0 && of("/after/answered") > 0, "{report}");
    assert!(of("/before/answered") + of("/after/answered") <= of("/answered"), "{report}");
    assert!(of("/silence_us") > 0 && of("/longest_silence_us") > 0, "{report}");
    let parts = ["detect", "witness", "apply", "first_run"].map(|part| of(&format!("/failover_us/{part}")));
    assert_eq!(parts.iter().sum::<u64>(), of("/failover_us/total"), "{report}");
    for store in ["primary", "standby"] {
        let verified = run(&format!("verify --store {} --json", stores.join(store).display())).expect(0).json();
        assert_eq!(verified["damage"].as_array().map(Vec::len), Some(0), "{verified}");
        assert!(store == "primary" || number(&verified, "/epochs") == of("/epochs"), "{verified}");
    }
    temporary.is_empty();
    // It replaces nothing.
    finish(&mut temporary.demo(&line)).refused(1, &["primary"]);
    temporary.is_empty();
}

/// The processes whose arguments name `path`, but for this one.
fn processes(path: &Path) -> Vec<String> {
    let names = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pids = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != std::process::id().to_string());
    let is_named = |pid: &String| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(path.to_str().unwrap())
    };
    pids.filter(is_named).collect()
}

#[track_caller]
fn wait_for_processes(path: &Path, demo: &mut Running, is_it: impl Fn(usize) -> bool) {
    let begun = Instant::now();
    while !is_it(processes(path).len()) {
        let _ = demo.has_ended();
        assert!(begun.elapsed() < patience(Duration::from_secs(60)), "{:?}", processes(path));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A signal ends the demo, and both processes with it.
#[test]
fn no_process_outlives_a_demo() {
    if !kvm_or_skip("native::demo::no_process_outlives_a_demo") {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let (temporary, stores) = (Temporary::new(), tempfile::tempdir().unwrap());
        let path = stores.path();
        let mut demo = Running::start(&mut temporary.demo(&format!("--failover --store {}", path.display())));
        // Itself, the standby and the primary.
        wait_for_processes(path, &mut demo, |count| count == 3);
        demo.signal(signal);
        if signal == libc::SIGINT {
            demo.wait().expect(1).says(&["a signal ended"]);
            assert_eq!(processes(path), Vec::<String>::new());
            temporary.is_empty();
        } else {
            wait_for_processes(path, &mut demo, |count| count == 0);
            demo.wait();
        }
    }
}

#[test]
fn without_kvm_the_demos_say_so() {
    let temporary = Temporary::new();
    for demo in ["", "--failover"] {
        finish(&mut temporary.demo(&format!("{demo} --kvm /nonexistent"))).expect(1).says(&["/nonexistent"]);
        temporary.is_empty();
    }
}
