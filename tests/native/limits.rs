//! What limits of the process, signals, and readers that are gone do to verbs that run a guest.

use std::io::pipe;
use std::path::Path;
use std::process::Stdio;

use crate::limits::limited;
use crate::native::follow;
use crate::support::command::{Running, finish, guest_is_ok, number, run, slackwater};
use crate::support::kvm_or_skip;

const GUEST: &str = "--memory 16M --vcpus 2 --guest churn:pages=300,content=random --budget 512 --interval 100ms --audit 1";

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace()
}

fn segments(store: &Path) -> usize {
    let names = std::fs::read_dir(store).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("segment-")).count()
}

/// A chain goes on in a new segment where a file may not be longer, and the guest was never
/// stopped.
#[test]
fn a_limit_on_the_size_of_files_is_no_end_of_a_guest() {
    if !kvm_or_skip("native::limits::a_limit_on_the_size_of_files_is_no_end_of_a_guest") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (stops, goes_on) = (dir.path().join("stops"), dir.path().join("goes_on"));
    let line = format!("checkpoint --store {} {GUEST} --epochs 400 --json", stops.display());
    let stopped = finish(&mut limited("ulimit -f 8192", words(&line))).expect(1);
    let stopped = stopped.says(&["could not be stored", "File too large", "segment-00000001"]);
    assert!(guest_is_ok(&stopped.json()), "{stopped}");
    let line = format!("checkpoint --store {} {GUEST} --on-storage-error continue --json", goes_on.display());
    let running = Running::start(&mut limited("ulimit -f 8192", words(&line)));
    follow::wait_until(&goes_on, |seen| seen.len() > 8 && segments(&goes_on) > 2);
    running.signal(libc::SIGTERM);
    let ended = running.wait();
    // The last epoch of all is not tried again, and that is said, where it is the one that meets
    // the limit.
    let ended = match ended.code() {
        0 => ended.says(&["could not be stored"]),
        _ => ended.expect(1).says(&["could not be stored", "File too large"]),
    };
    let report = ended.json();
    assert!(guest_is_ok(&report) && number(&report, "/failed_epochs") >= 2, "{report}");
    for store in [&stops, &goes_on] {
        let verified = run(&format!("verify --store {} --json", store.display())).expect(0).json();
        assert_eq!(number(&verified, "/audits_checked"), number(&verified, "/epochs"), "{verified}");
        let restored = run(&format!("restore --store {} --for 20ms --json", store.display())).expect(0).json();
        assert!(guest_is_ok(&restored), "{restored}");
    }
    // Nothing fits at all; and what is derived is left out.
    let line = format!("checkpoint --store {} {GUEST} --epochs 3", dir.path().join("none").display());
    finish(&mut limited("ulimit -f 0", words(&line))).expect(1).says(&["File too large"]);
    for how in ["", "--lazy"] {
        let line = format!("restore --store {} {how} --for 20ms --json", goes_on.display());
        assert!(guest_is_ok(&finish(&mut limited("ulimit -f 0", words(&line))).expect(0).json()));
    }
    for line in ["demo", "bench --extent tiny --axis rate"] {
        let line = format!("{line} --store {}", dir.path().join("other").display());
        finish(&mut limited("ulimit -f 0", words(&line))).expect(1);
    }
}

/// Standard error that is gone is no reason for a thread to panic; and the guest runs on, although
/// nobody hears that storage fails.
#[test]
fn nobody_needs_to_listen() {
    if !kvm_or_skip("native::limits::nobody_needs_to_listen") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let gone = || {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let code = |limits: &str, line: &str| {
        limited(limits, words(line)).stdin(Stdio::null()).stdout(gone()).stderr(gone()).status().unwrap().code()
    };
    let store = dir.path().join("store");
    let path = store.display();
    let line = format!("checkpoint --store {path} {GUEST} --on-storage-error continue --epochs 30 --tracker bitmap");
    assert_eq!(code("ulimit -f 8192", &line), Some(0));
    let verified = run(&format!("verify --store {path} --json")).expect(0).json();
    assert!(number(&verified, "/epochs") >= 8 && segments(&store) > 1, "{verified}");
    assert_eq!(code("true", &format!("restore --store {path} --for 20ms")), Some(0));
    assert_eq!(
        code("true", &format!("restore --continue --store {path} --budget 512 --interval 5ms --epochs 3 --json")),
        Some(0)
    );
    assert_eq!(code("true", &format!("advise --store {path} --slowdown 10%")), Some(0));
    assert_eq!(code("true", "host"), Some(0));
    assert_eq!(code("true", "bench --extent tiny --axis pages"), Some(0));
    // What failed is said by the exit code.
    let stops = dir.path().join("stops");
    assert_eq!(code("ulimit -f 8192", &format!("checkpoint --store {} {GUEST} --epochs 400", stops.display())), Some(1));
}

/// A run that is asked to end takes a last epoch, whichever signal asks.
#[test]
fn signals_end_a_run_in_order() {
    if !kvm_or_skip("native::limits::signals_end_a_run_in_order") {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let line = format!("checkpoint --store {} {GUEST} --json", store.display());
        let running = Running::start(&mut slackwater(words(&line)));
        follow::wait_for_epochs(&store, 2);
        // It is nobody's.
        running.signal(libc::SIGXFSZ);
        running.signal(libc::SIGPIPE);
        running.signal(signal);
        let report = running.wait().expect(0).json();
        assert!(guest_is_ok(&report) && number(&report, "/triggers/final") == 1, "{signal}: {report}");
        assert_eq!(number(&report, "/durable_epochs"), number(&report, "/epochs"), "{report}");
    }
}

/// Memory that the system refuses is an error that says what it was for.
#[test]
fn a_limit_on_memory_is_said() {
    if !kvm_or_skip("native::limits::a_limit_on_memory_is_said") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let line = format!("checkpoint --store {} --memory 1G --epochs 3", dir.path().join("store").display());
    let refused = finish(&mut limited("ulimit -v 600000", words(&line))).expect(1);
    refused.says(&["262144 pages of guest memory", "Cannot allocate memory"]);
    // No memory needs to be locked.
    let line = format!("checkpoint --store {} {GUEST} --epochs 3 --json", dir.path().join("locked").display());
    assert!(guest_is_ok(&finish(&mut limited("ulimit -l 0", words(&line))).expect(0).json()));
}
