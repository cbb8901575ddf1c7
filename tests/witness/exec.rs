//! The witness that is a program.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use slackwater::replica::witness::exec::ExecWitness;
use slackwater::replica::witness::manual::Permission;
use slackwater::replica::witness::{Witness, WitnessSpec};

use super::conformance::{LIMIT, PATIENCE, after, conforms, refused, unknown};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/witness").join(name)
}

#[test]
fn it_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("witness");
    symlink(script("register.sh"), &program).unwrap();
    let spec: WitnessSpec = format!("exec:{}?name=web", program.display()).parse().unwrap();
    conforms(&|| spec.open(std::path::Path::new("store"), &Permission::default(), LIMIT).unwrap());
    assert!(dir.path().join("web").exists());
}

/// One that does what its machine's name says.
fn faulty(what: &str, limit: Duration) -> ExecWitness {
    ExecWitness::new(&script("faulty.sh"), Some(what), limit)
}

#[test]
fn what_a_status_means_is_as_documented() {
    let first = after(None);
    let second = after(Some(&first));
    for (what, says) in [("3", "exit status 3: it said why"), ("absent", "cannot start")] {
        let mut witness = faulty(what, LIMIT);
        if what == "absent" {
            witness = ExecWitness::new(&script("absent.sh"), None, LIMIT);
        }
        assert!(refused(witness.swap(Some(&first), &second)).contains(says), "{what}");
        assert!(refused(witness.read()).contains(says), "{what}");
    }
    for (what, says) in [("1", "exit status 1: it said why"), ("4", "exit status 4"), ("killed", "signal 9")] {
        let said = unknown(faulty(what, LIMIT).swap(Some(&first), &second));
        assert!(said.contains(says), "{said}");
        assert!(unknown(faulty(what, LIMIT).read()).contains(says));
    }
}

#[test]
fn what_is_no_answer_is_none() {
    let first = after(None);
    let second = after(Some(&first));
    // What it prints is no register, or the very value that was expected.
    assert!(unknown(faulty("garbage", LIMIT).swap(Some(&first), &second)).contains("no register"));
    assert!(refused(faulty("garbage", LIMIT).read()).contains("no register"));
    assert!(unknown(faulty("expected", LIMIT).swap(Some(&first), &second)).contains("still has"));
    assert!(unknown(faulty("nothing", LIMIT).swap(None, &first)).contains("still has"));
    assert!(unknown(faulty("flood", LIMIT).swap(None, &first)).contains("more than"));
    assert!(unknown(faulty("flood", LIMIT).read()).contains("more than"));
    // A lot on standard error is only cut.
    assert_eq!(faulty("talkative", LIMIT).read().unwrap(), None);
}

#[test]
fn when_its_time_is_up_it_is_killed_with_what_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let program = dir.path().join("witness");
    symlink(script("faulty.sh"), &program).unwrap();
    let mut witness = ExecWitness::new(&program, Some("hang"), Duration::from_millis(500));
    let first = after(None);
    assert!(unknown(witness.swap(None, &first)).contains("within"));
    assert!(unknown(witness.read()).contains("within"));
    let began = Instant::now();
    let pids = std::fs::read_to_string(pids).unwrap_or_default();
    let runs = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    while pids.lines().any(runs) {
        assert!(began.elapsed() < PATIENCE, "still there: {pids}");
        std::thread::yield_now();
    }
}

#[test]
fn who_keeps_its_pipes_open_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("witness");
    symlink(script("faulty.sh"), &program).unwrap();
    let read = ExecWitness::new(&program, Some("daemon"), PATIENCE).read();
    let pid = std::fs::read_to_string(dir.path().join("pids")).unwrap();
    assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success(), "it was still there");
    assert_eq!(read.unwrap(), None);
}
