//! A Linux guest that is restored from any moment of its run, and one with memory above 4 GiB.

use crate::native::follow;
use crate::native::linux::{Guest, OFTEN, all_is_sound, at_prompt, boot, counted, files_or_skip, last_from, newest, restore};
use crate::support::full;

/// Two processes that write, copy and compare files in memory for ever. Each pass is counted once
/// for both.
const LOAD: &str = "work() { while dd if=/dev/urandom of=/$1 bs=64k count=8 2>/dev/null && cp /$1 /$1.copy && cmp /$1 /$1.copy; do \
                    [ $1 != a ] || { i=$((i+1)); echo \"count $i.\"; }; done; echo \"DIFFERENT: $1\"; }; i=0; work a & work b &\n";

/// That the shell takes a line, and that nothing the guest checks has changed and its kernel is
/// content.
fn is_well(guest: &mut Guest) {
    guest.enter("echo \"sum $((6*7)), complaints: $(dmesg | grep -cE 'soft lockup|rcu.*stall|BUG:|Oops')\"\n");
    guest.wait_for("an answer", |console| console.contains("sum 42, complaints: 0\r").then_some(()));
    assert!(!["DIFFERENT: a", "DIFFERENT: b"].iter().any(|text| guest.console().contains(text)), "{}", guest.console());
}

/// Some of the epochs from `first` to before `end`.
fn moments(first: u64, end: u64) -> impl Iterator<Item = u64> {
    (first.max(1)..end).step_by(3)
}

#[test]
fn every_moment_of_a_run_restores() {
    const TEST: &str = "native::linux_restore::every_moment_of_a_run_restores";
    // `linux_disk` shows the same of three moments, in the time that there is.
    if !full() {
        return;
    }
    let Some(files) = files_or_skip(TEST) else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut guest =
        Guest::start(boot(&files, &store, "vmlinux", &format!("--memory 128M --vcpus 2 --audit 5 {OFTEN}")), dir.path(), "boot");
    guest.wait_for("the shell", at_prompt);
    let booted = guest.wait_for_epoch();
    follow::wait_until(&store, |seen| seen.keys().any(|epoch| *epoch > booted + 2));
    let idle = newest(&store);
    guest.enter(LOAD);
    guest.wait_for("work", last_from(3));
    guest.wait_for_epoch();
    guest.kill();
    all_is_sound(&store);
    let loaded = newest(&store);

    let modes = ["", "--lazy"];
    // The guest has something to say only at the very end of its boot.
    for epoch in moments(booted / 4, booted * 3 / 4) {
        for mode in modes {
            let mut guest = Guest::start(restore(&store, &format!("{mode} --epoch {epoch}")), dir.path(), "booting");
            guest.wait_for("the shell", at_prompt);
            assert!(guest.console().contains("guest: 2 processors"), "{}", guest.console());
            is_well(&mut guest);
        }
    }
    for epoch in moments(booted, idle + 1) {
        for mode in modes {
            let mut guest = Guest::start(restore(&store, &format!("{mode} --epoch {epoch}")), dir.path(), "idle");
            is_well(&mut guest);
        }
    }
    // By a bitmap, on a branch, and under load; what is kept of it goes on once more.
    let protected = "--continue --tracker bitmap --interval 1s --audit 5";
    let mut guest = Guest::start(restore(&store, &format!("--epoch {loaded} --branch bitmap {protected}")), dir.path(), "bitmap");
    guest.wait_for("work by a bitmap", last_from(6));
    let reached = *counted(&guest.kill()).last().unwrap();
    all_is_sound(&store);
    for mode in modes {
        let mut guest = Guest::start(restore(&store, &format!("--from bitmap {mode}")), dir.path(), "loaded");
        let first = guest.wait_for("work after a restore", |console| counted(console).first().copied());
        assert!(first > 1 && first <= reached + 1, "went on with {first} after {reached}");
        is_well(&mut guest);
    }
}

#[test]
fn memory_above_4_gib_goes_on_too() {
    let Some(files) = files_or_skip("native::linux_restore::memory_above_4_gib_goes_on_too") else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    // From 3 GiB on it lies above 4 GiB. A boot writes to a page for each 64 of them, a fault each.
    let memory_mib = if full() { 6144 } else { 3328 };
    let options = format!("--memory {memory_mib}M --vcpus 2 {OFTEN}");
    let mut guest = Guest::start(boot(&files, &store, "vmlinux", &options), dir.path(), "large");
    guest.wait_for("the shell", at_prompt);
    guest.enter(LOAD);
    guest.wait_for("work", last_from(2));
    // Without the line that was typed the guest would wait for the rest of it.
    guest.wait_for_epoch();
    let reached = *counted(&guest.kill()).last().unwrap();
    let mut guest = Guest::start(restore(&store, &format!("--lazy --continue {OFTEN}")), dir.path(), "goes-on");
    guest.wait_for("work after a restore", last_from(reached + 2));
    is_well(&mut guest);
    // All of it, less what the kernel keeps for itself. Files in memory come from the upper end.
    guest.enter("echo \"$(sed -n 's/MemTotal: *//p' /proc/meminfo) of memory\"\n");
    let total_kib: u64 = guest.wait_for("what memory it has", |console| {
        console.lines().find_map(|line| line.split_once(" kB of memory")?.0.trim().parse().ok())
    });
    guest.enter("reboot -f\n");
    let whole_kib = memory_mib << 10;
    assert!((whole_kib - whole_kib / 16..whole_kib).contains(&total_kib), "{total_kib} of {whole_kib} KiB");
    let report = guest.end();
    assert_eq!(report["checkpoint"]["guest_end"], "reset", "{report}");
}
