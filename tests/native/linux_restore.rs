//! A Linux guest that is restored from any moment of its run, and one with memory above 4 GiB.

use std::path::Path;

use slackwater::store::Chain;

use crate::native::follow;
use crate::native::linux::{Guest, at_prompt, boot, counted, files_or_skip, last_from, restore};
use crate::support::command::{number, run};
use crate::support::full;

/// Two processes that write, copy and compare files in memory for ever. Each pass is counted once for both.
const LOAD: &str = "work() { while dd if=/dev/urandom of=/$1 bs=64k count=8 2>/dev/null && cp /$1 /$1.copy && cmp /$1 /$1.copy; do \
                    [ $1 != a ] || { i=$((i+1)); echo \"count $i.\"; }; done; echo \"DIFFERENT: $1\"; }; i=0; work a & work b &\n";

fn newest(store: &Path) -> u64 {
    Chain::open(store).unwrap().newest().0
}

/// Every byte, every epoch, every audit of all branches, at least one.
fn all_is_sound(store: &Path) {
    let report = run(&format!("verify --store {} --json", store.display())).expect(0).json();
    assert_eq!((number(&report, "/audits_failed"), number(&report, "/audits_unchecked")), (0, 0), "{report}");
    assert!(number(&report, "/audits_checked") > 0, "{report}");
    assert_eq!(report["damage"].as_array().map(Vec::len), Some(0), "{report}");
}

/// That the shell takes a line, and that nothing the guest checks has changed and its kernel is content.
fn is_well(guest: &mut Guest) {
    guest.enter("echo \"sum $((6*7)), complaints: $(dmesg | grep -cE 'soft lockup|rcu.*stall|BUG:|Oops')\"\n");
    guest.wait_for("an answer", |console| console.contains("sum 42, complaints: 0\r").then_some(()));
    assert!(!["DIFFERENT: a", "DIFFERENT: b"].iter().any(|text| guest.console().contains(text)), "{}", guest.console());
}

/// Some of the epochs from `first` to before `end`.
fn moments(first: u64, end: u64) -> Vec<u64> {
    let step = if full() { 4 } else { (end - first).max(2) / 2 };
    (first..end)
        .skip(usize::try_from(step / 2).unwrap())
        .step_by(usize::try_from(step.max(1)).unwrap())
        .take(if full() { 40 } else { 1 })
        .collect()
}

#[test]
fn every_moment_of_a_run_restores() {
    const TEST: &str = "native::linux_restore::every_moment_of_a_run_restores";
    let Some(files) = files_or_skip(TEST) else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut guest =
        Guest::start(boot(&files, &store, "vmlinuz", "--memory 128M --vcpus 2 --interval 200ms --audit 5"), dir.path(), "boot");
    // What is committed now was before the guest had anything to say.
    let in_boot = follow::wait_for_epochs(&store, 12).into_keys().next_back().unwrap();
    guest.wait_for("the shell", at_prompt);
    let booted = newest(&store) + 1;
    follow::wait_until(&store, |seen| seen.keys().any(|epoch| *epoch > booted + 4));
    let idle = newest(&store);
    guest.enter(LOAD);
    guest.wait_for("work", last_from(3));
    guest.kill();
    all_is_sound(&store);
    let loaded = newest(&store);

    let modes: &[&str] = if full() { &["", "--lazy"] } else { &["--lazy"] };
    for epoch in moments(1, in_boot.max(booted / 2)) {
        for mode in modes {
            let mut guest = Guest::start(restore(&store, &format!("{mode} --epoch {epoch}")), dir.path(), "booting");
            guest.wait_for("the shell", at_prompt);
            assert!(guest.console().contains("guest: 2 processors"), "{}", guest.console());
            is_well(&mut guest);
        }
    }
    for epoch in moments(booted + 1, idle + 1) {
        for mode in ["", "--lazy"] {
            let mut guest = Guest::start(restore(&store, &format!("{mode} --epoch {epoch}")), dir.path(), "idle");
            is_well(&mut guest);
        }
    }
    // By a bitmap, on a branch, and under load; what is kept of it goes on once more.
    let protected = "--continue --tracker bitmap --interval 200ms --audit 5";
    let mut guest = Guest::start(restore(&store, &format!("--epoch {loaded} --branch bitmap {protected}")), dir.path(), "bitmap");
    let reached = guest.wait_for("work by a bitmap", last_from(6));
    guest.kill();
    all_is_sound(&store);
    for mode in ["", "--lazy"] {
        let mut guest = Guest::start(restore(&store, &format!("--branch bitmap {mode}")), dir.path(), "loaded");
        guest.wait_for("work after a restore", last_from(reached + 2));
        assert!(counted(&guest.console())[0] <= reached + 1, "{}", guest.console());
        is_well(&mut guest);
    }
}

#[test]
fn memory_above_4_gib_goes_on_too() {
    let Some(files) = files_or_skip("native::linux_restore::memory_above_4_gib_goes_on_too") else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut guest = Guest::start(boot(&files, &store, "vmlinuz", "--memory 6G --vcpus 2 --interval 500ms"), dir.path(), "large");
    guest.wait_for("the shell", at_prompt);
    guest.enter(LOAD);
    let reached = guest.wait_for("work", last_from(2));
    guest.kill();
    let mut guest = Guest::start(restore(&store, "--lazy --continue --interval 500ms"), dir.path(), "goes-on");
    guest.wait_for("work after a restore", last_from(reached + 2));
    is_well(&mut guest);
    // 6 GiB less what the kernel keeps for itself. Files in memory come from the upper end.
    guest.enter("echo \"$(sed -n 's/MemTotal: *//p' /proc/meminfo) of memory\"; poweroff -f\n");
    let total_kib: u64 = guest.wait_for("what memory it has", |console| {
        console.lines().find_map(|line| line.split_once(" kB of memory")?.0.trim().parse().ok())
    });
    assert!((5_900_000..6 << 20).contains(&total_kib), "{total_kib} KiB");
    let report = guest.end();
    assert_eq!(report["checkpoint"]["guest_end"], "poweroff", "{report}");
}
