//! A Linux guest at work on its disk and in memory, which compares the two all the time, while it
//! is killed and restored over and over.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::native::linux::{Guest, OFTEN, all_is_sound, at_prompt, boot, files_or_skip, restore};
use crate::native::linux_core;
use crate::support::command::finish;
use crate::support::{Random, full};

/// What a kernel that is not well says.
pub(super) const COMPLAINTS: &str =
    "soft lockup|rcu.*stall|BUG:|I/O error|EXT4-fs (error|warning)|clocksource.*unstable|hung task|blocked for more";
/// Processes at work.
const WORKERS: u64 = 2;

/// The numbers that a process has counted, in the order of the console. A line that was cut off
/// counts for nothing.
fn counted(console: &str, worker: u64) -> Vec<u64> {
    let begin = format!("work {worker} ");
    console.lines().filter_map(|line| line.trim_end().strip_prefix(&begin)?.strip_suffix('.')?.parse().ok()).collect()
}

fn last(console: &str) -> Vec<u64> {
    (1..=WORKERS).map(|worker| counted(console, worker).last().copied().unwrap_or_default()).collect()
}

/// Waits until every process has counted `more` beyond `from`. None found anything wrong.
fn wait_for_work(guest: &mut Guest, from: &[u64], more: u64) {
    guest.wait_for("work", |console| {
        assert!(!console.contains("WRONG"), "{console}");
        last(console).iter().zip(from).all(|(now, from)| *now >= from + more).then_some(())
    });
}

/// What was counted, a number after the other: from what was last seen before a kill, for that was
/// durable before it was said, or the one behind.
fn nothing_is_lost(console: &str, reached: &[u64]) {
    for (worker, reached) in (1..=WORKERS).zip(reached) {
        let numbers = counted(console, worker);
        let first = numbers.first().copied().unwrap_or(*reached);
        assert!((*reached..=reached + 1).contains(&first), "{worker} went on with {first} after {reached}: {console}");
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{worker}: {numbers:?}");
    }
}

#[test]
fn disk_and_memory_are_of_one_instant_after_every_kill() {
    const TEST: &str = "native::linux_disk::disk_and_memory_are_of_one_instant_after_every_kill";
    let Some(files) = files_or_skip(TEST) else { return };
    let mut random = Random::seeded(TEST, 5);
    let dir = tempfile::tempdir().unwrap();
    let (store, image) = (dir.path().join("store"), dir.path().join("image"));
    fs::copy(files.join("disk"), &image).unwrap();
    let mut command = boot(&files, &store, "vmlinuz", &format!("--memory 128M --vcpus 2 --audit 20 {OFTEN}"));
    command.arg("--disk").arg(&image);
    let mut guest = Guest::start(command, dir.path(), "first");
    guest.wait_for("the shell", at_prompt);
    let booted = guest.wait_for_epoch();
    assert!(guest.console().contains("guest: 2 processors"), "{}", guest.console());
    let release = guest.wait_for("the kernel's release", |console| {
        let said = console.split_once("processors, Linux ")?.1;
        said.split_once(['\r', '\n']).map(|(release, _)| release.to_owned())
    });
    // Behind the shell's back, so that it takes lines all the while.
    guest.enter("(work 1 & work 2 &)\n");
    wait_for_work(&mut guest, &[0; 2], 2);
    guest.wait_for_epoch();
    let rounds = if full() { 24 } else { 2 };
    for round in 0..rounds {
        // At any moment of the work: this is no wait for anything.
        std::thread::sleep(Duration::from_millis(random.below(3_000)));
        let console = guest.kill();
        let reached = last(&console);
        assert!(!console.contains("WRONG"), "{console}");
        let how = ["--lazy --audit 20 --early always", "--tracker bitmap --audit 20", "--durability epoch"][round % 3];
        guest =
            Guest::start(restore(&store, &format!("--continue --interval 200ms {how}")), dir.path(), &format!("round{round}"));
        wait_for_work(&mut guest, &reached, 2);
        nothing_is_lost(&guest.console(), &reached);
    }
    // A process that is killed, and what it has started, are gone when they are gone.
    guest.enter(
        "until killall work dd md5sum 2> /dev/null; umount /mnt 2> /dev/null; do sleep 0.2; done; \
         e2fsck -fn /dev/vda && echo \"the disk is $((40+2))\"\n",
    );
    guest.wait_for("a sound file system", |console| console.contains("the disk is 42").then_some(()));
    guest.wait_for("the shell", at_prompt);
    // What it complains of is on the console, too.
    guest.enter(&format!("dmesg | grep -E '{COMPLAINTS}'; echo \"complaints: $(dmesg | grep -cE '{COMPLAINTS}')\"\n"));
    guest.wait_for("the kernel's opinion", |console| console.contains("complaints: 0\r").then_some(()));
    guest.wait_for("the shell", at_prompt);
    guest.enter("poweroff -f\n");
    let report = guest.end();
    assert_eq!(report["checkpoint"]["guest_end"], "poweroff", "{report}");
    all_is_sound(&store);
    linux_core::says_what_it_is(&store, dir.path(), booted, &release);
    // Any moment goes on: the middle of the boot, the idle shell.
    for (epoch, mode) in [((booted * 3 / 5).max(1), "--lazy"), (booted, "")] {
        let mut guest = Guest::start(restore(&store, &format!("--epoch {epoch} {mode}")), dir.path(), &format!("epoch{epoch}"));
        if epoch < booted {
            guest.wait_for("the shell", at_prompt);
        }
        guest.enter("echo \"it is $((40+2))\"; ls /mnt\n");
        guest.wait_for("an answer", |console| console.contains("it is 42").then_some(()));
        guest.wait_for("its disk", |console| console.contains("lost+found").then_some(()));
    }
    assert!(fs::read(&image).unwrap() == fs::read(files.join("disk")).unwrap(), "the base image was written");

    // The machine needs its disk's base image, wherever it is.
    let restore_with = |image: Option<&Path>| {
        let mut command = restore(&store, "");
        image.map(|image| command.arg("--disk").arg(image));
        finish(&mut command)
    };
    // A machine that is off stays off.
    let report = restore_with(Some(&files.join("disk"))).expect(0).json();
    assert_eq!(report["guest_end"], "poweroff", "{report}");
    let mut other = fs::read(&image).unwrap();
    other[5000] ^= 1;
    fs::write(&image, other).unwrap();
    restore_with(None).refused(1, &["image", "is not the disk's base image any more", "hint: "]);
    fs::remove_file(&image).unwrap();
    restore_with(None).refused(1, &["image", "No such file", "hint: "]);
}
