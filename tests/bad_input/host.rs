//! Hosts that do not have what is asked for.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use crate::support::command::{self, finish, run, slackwater};
use crate::support::copy::checkpoints;
use crate::support::{as_time_allows, kvm_or_skip, skip};

#[test]
fn no_kvm() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let text = dir.path().join("text");
    fs::write(&text, "text").unwrap();
    for (kvm, says) in [
        ("/nonexistent", "/nonexistent does not exist"),
        ("/dev/null", "/dev/null is not a KVM device"),
        (text.to_str().unwrap(), "is not a KVM device"),
        (dir.path().to_str().unwrap(), dir.path().to_str().unwrap()),
    ] {
        run(&format!("host --kvm {kvm}")).refused(1, &[says, "hint: "]);
        run(&format!("checkpoint --store {} --memory 64M --kvm {kvm}", store.display())).refused(1, &[says, "hint: "]);
        run(&format!("restore --store {} --kvm {kvm}", checkpoints().join("golden/churn").display()))
            .refused(1, &[says, "hint: "]);
    }
    assert!(!store.exists(), "a store without a machine");
}

/// Any device will do that belongs to root alone.
#[test]
fn no_permission_for_the_device() {
    let closed = |path: &&str| {
        fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device() && found.permissions().mode() & 0o007 == 0)
    };
    let Some(device) = ["/dev/kvm", "/dev/mem", "/dev/port", "/dev/console"].iter().find(|path| closed(path)) else {
        return skip("bad_input::host::no_permission_for_the_device", "no device is closed to others");
    };
    let dir = command::open_to_all();
    let says = format!("no permission to open {device}");
    finish(&mut command::unprivileged(dir.path(), ["host", "--kvm", device])).refused(1, &[&says, "group"]);
    let store = dir.path().join("store");
    let args = ["checkpoint", "--memory", "64M", "--kvm", device, "--store", store.to_str().unwrap()];
    finish(&mut command::unprivileged(dir.path(), args)).refused(1, &[&says, "group"]);
    assert!(!store.exists());
}

/// A ring that this kernel does not take, and budgets below its smallest.
#[test]
fn native_rings_and_budgets() {
    if !kvm_or_skip("bad_input::host::native_rings_and_budgets") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let line = |options: &str| format!("checkpoint --store {} --memory 16M --guest churn:pages=1500 {options}", store.display());
    let host = run("host --json").expect(0).json();
    let most = host["ring"]["entries_max"].as_u64().unwrap();
    run(&line(&format!("--ring {} --budget 10000000", most * 2)))
        .refused(2, &[&format!("a ring of {} entries: this KVM takes at most {most}", most * 2), "slackwater host"]);
    run(&line("--ring 1024 --budget 1023")).refused(2, &["1024", "do not fit in a budget of 1023 pages"]);
    for vcpus in as_time_allows(&[2, 1, 3], 1) {
        let refused = run(&line(&format!("--vcpus {vcpus} --budget 100")))
            .refused(2, &["a budget of 100 pages", "the smallest that works is"]);
        let smallest: u64 =
            refused.stderr.split("smallest that works is ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        for too_small in [0, smallest - 1] {
            run(&line(&format!("--vcpus {vcpus} --budget {too_small}")))
                .refused(2, &[&format!("the smallest that works is {smallest}")]);
        }
        assert!(!store.exists(), "a store without a machine");
        let report = run(&line(&format!("--vcpus {vcpus} --budget {smallest} --epochs 4 --json"))).expect(0).json();
        assert!(report["max_epoch_pages"].as_u64().unwrap() <= smallest, "{report}");
        fs::remove_dir_all(&store).unwrap();
    }
}

/// A place where a store can't be made is said before any guest runs.
#[test]
fn native_places_that_take_no_store() {
    if !kvm_or_skip("bad_input::host::native_places_that_take_no_store") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "text").unwrap();
    let filled = dir.path().join("filled");
    fs::create_dir(&filled).unwrap();
    fs::write(filled.join("letter"), "text").unwrap();
    let golden = checkpoints().join("golden/plain");
    for (store, says) in [
        (file.as_path(), "a store is a directory"),
        (filled.as_path(), "is not empty: it holds \"letter\""),
        (golden.as_path(), "already holds a store"),
        (std::path::Path::new("/proc/store"), "/proc/store"),
        (&file.join("store"), "file/store"),
    ] {
        let run = finish(&mut slackwater([
            "checkpoint",
            "--memory=16M",
            "--guest=churn:pages=500",
            "--for=1s",
            "--store",
            store.to_str().unwrap(),
        ]));
        run.refused(1, &[says]);
    }
    assert_eq!(fs::read(&file).unwrap(), b"text");
    assert_eq!(fs::read_dir(&filled).unwrap().count(), 1);
    assert!(!golden.join("lock").exists());
}

/// Two at once: the second says who has the store.
#[test]
fn native_a_store_in_use() {
    if !kvm_or_skip("bad_input::host::native_a_store_in_use") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let store = store.to_str().unwrap();
    let first = command::Running::start(&mut slackwater([
        "checkpoint",
        "--memory=16M",
        "--guest=churn:pages=500",
        "--interval=5ms",
        "--store",
        store,
    ]));
    crate::native::follow::wait_for_epochs(std::path::Path::new(store), 2);
    let says = ["is in use by another writer", &format!("pid {}", first.id())];
    finish(&mut slackwater(["restore", "--continue", "--store", store])).refused(4, &says);
    finish(&mut slackwater(["checkpoint", "--memory=16M", "--guest=churn:pages=500", "--interval=5ms", "--store", store]))
        .refused(1, &["already holds a store"]);
    finish(&mut slackwater(["log", "--store", store]));
    first.signal(libc::SIGINT);
    first.wait().expect(0);
    finish(&mut slackwater(["verify", "--store", store])).expect(0);
}
