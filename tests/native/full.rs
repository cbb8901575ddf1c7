//! A full disk: said clearly, nothing appended is lost, and the chain goes on when there is space
//! again.
#![expect(unsafe_code, reason = "mounts a small tmpfs")]

use std::ffi::CString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::native::follow;
use crate::support::command::{Running, guest_is_ok, number, run, slackwater};
use crate::support::{as_time_allows, kvm_or_skip, patience, skip};

/// Nothing here is waited for longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A tmpfs of a fixed size, unmounted at the end.
struct Small {
    place: PathBuf,
    _dir: tempfile::TempDir,
}

impl Small {
    /// None, loudly, where this user may not mount.
    fn mount(test: &str, megabytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("disk");
        std::fs::create_dir(&place).unwrap();
        match mount(&place, megabytes, 0) {
            Ok(()) => Some(Self { place, _dir: dir }),
            Err(error) => {
                skip(test, &format!("mounting a tmpfs: {error}"));
                None
            }
        }
    }

    fn resize(&self, megabytes: u32) {
        mount(&self.place, megabytes, libc::MS_REMOUNT).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let place = CString::new(self.place.as_os_str().as_bytes()).unwrap();
        // SAFETY: a path that ends in a zero byte.
        unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
    }
}

fn mount(place: &Path, megabytes: u32, flags: libc::c_ulong) -> std::io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes()).unwrap();
    let options = CString::new(format!("size={megabytes}M")).unwrap();
    let kind = c"tmpfs".as_ptr();
    // SAFETY: all are texts that end in a zero byte, as tmpfs takes them.
    let result = unsafe { libc::mount(kind, place.as_ptr(), kind, flags, options.as_ptr().cast()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

const GUEST: &str = "--memory 16M --vcpus 2 --guest churn:pages=1500,content=random --budget 512 --audit 1";

#[test]
fn the_guest_stops_and_goes_on_later() {
    let test = "native::full::the_guest_stops_and_goes_on_later";
    if !kvm_or_skip(test) {
        return;
    }
    for durability in as_time_allows(&["group:10", "epoch", "none"], 1) {
        let Some(disk) = Small::mount(test, 12) else { return };
        let store = disk.place.join("store");
        let path = store.display();
        let stopped = run(&format!("checkpoint --store {path} {GUEST} --durability {durability} --on-storage-error stop --json"));
        let stopped = stopped.expect(1).says(&[
            "could not be stored",
            "segment-00000001",
            "No space left on device",
            "--on-storage-error continue",
        ]);
        let report = stopped.json();
        assert!(guest_is_ok(&report) && number(&report, "/failed_epochs") >= 1, "{report}");

        let seen = follow::appended(&store);
        assert!(seen.len() > 2, "{} epochs fit", seen.len());
        // The epoch that the message names is there.
        let newest = stopped.stderr.split("epochs behind ").nth(1).unwrap().split_whitespace().next().unwrap();
        assert!(seen.contains_key(&newest.parse().unwrap()), "{stopped}");
        let verified = run(&format!("verify --store {path} --json")).expect(0).json();
        assert_eq!((number(&verified, "/audits_failed"), number(&verified, "/epochs")), (0, seen.len() as u64), "{verified}");
        let restored = run(&format!("restore --store {path} --for 50ms --json")).expect(0).json();
        assert!(guest_is_ok(&restored), "{restored}");
        // Still no space: the same message, and nothing lost.
        run(&format!("restore --continue --store {path} --budget 512 --json")).expect(1).says(&["No space left on device"]);
        follow::nothing_is_missing(&store, &seen);

        disk.resize(200);
        let restored =
            run(&format!("restore --continue --store {path} --budget 512 --audit 1 --epochs 8 --json")).expect(0).json();
        assert!(guest_is_ok(&restored), "{restored}");
        assert!(number(&restored, "/checkpoint/epochs") >= 8, "{restored}");
        follow::nothing_is_missing(&store, &seen);
        let verified = run(&format!("verify --store {path} --json")).expect(0).json();
        assert_eq!(number(&verified, "/audits_failed"), 0, "{verified}");
        assert!(number(&verified, "/epochs") >= seen.len() as u64 + 8, "{verified}");
    }
}

#[test]
fn the_guest_runs_on_and_is_stored_when_there_is_space() {
    let test = "native::full::the_guest_runs_on_and_is_stored_when_there_is_space";
    if !kvm_or_skip(test) {
        return;
    }
    for durability in as_time_allows(&["group:10", "none"], 1) {
        let Some(disk) = Small::mount(test, 12) else { return };
        let store = disk.place.join("store");
        let path = store.display();
        let line = format!("checkpoint --store {path} {GUEST} --durability {durability} --on-storage-error continue --json");
        let mut running = Running::start(&mut slackwater(line.split_whitespace()));
        // Full: an epoch did not fit.
        running.wait_for_message("could not be stored");
        let seen = follow::appended(&store);
        assert!(seen.len() > 2, "{} epochs fit", seen.len());
        assert!(!running.has_ended(), "the guest was to run on");
        disk.resize(400);
        follow::wait_for_epochs(&store, seen.len() + 6);
        running.signal(libc::SIGTERM);
        let ended = running.wait().expect(0).says(&["could not be stored"]);
        let report = ended.json();
        assert!(guest_is_ok(&report) && number(&report, "/failed_epochs") >= 1, "{report}");
        assert!(number(&report, "/max_epoch_pages") <= 512, "{report}");
        follow::nothing_is_missing(&store, &seen);
        let verified = run(&format!("verify --store {path} --json")).expect(0).json();
        assert_eq!((number(&verified, "/audits_failed"), &verified["torn_tail"]), (0, &serde_json::Value::Null), "{verified}");
        assert_eq!(number(&verified, "/audits_checked"), number(&verified, "/epochs"), "{verified}");
        let restored = run(&format!("restore --store {path} --for 50ms --json")).expect(0).json();
        assert!(guest_is_ok(&restored), "{restored}");
    }
}

/// An export that does not fit is said to be so and leaves nothing, and one that fits only because
/// it is sparse is made.
#[test]
fn an_export_leaves_nothing() {
    let test = "native::full::an_export_leaves_nothing";
    if !kvm_or_skip(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    run(&format!("checkpoint --store {} {GUEST} --epochs 6", store.display())).expect(0);
    let Some(disk) = Small::mount(test, 1) else { return };
    for format in ["raw", "elf-core"] {
        let out = disk.place.join("out");
        let line = format!("export --store {} --format {format} --out {}", store.display(), out.display());
        run(&line).refused(1, &[out.to_str().unwrap(), "No space left on device"]);
        assert_eq!(std::fs::read_dir(&disk.place).unwrap().count(), 0);
        disk.resize(12);
        run(&line).expect(0);
        assert_eq!(std::fs::metadata(&out).unwrap().len().next_multiple_of(1 << 20) >> 20, if format == "raw" { 16 } else { 17 });
        std::fs::remove_file(&out).unwrap();
        disk.resize(1);
    }
}

/// Bytes that are used of the file system that `place` is on.
fn used(place: &Path) -> u64 {
    let found = rustix::fs::statvfs(place).unwrap();
    (found.f_blocks - found.f_bfree) * found.f_frsize
}

/// The newest epoch, and how many there are.
fn newest(store: &Path) -> (u64, usize) {
    let log = run(&format!("log --store {} --json", store.display())).expect(0);
    let epochs: Vec<serde_json::Value> = log.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (epochs.last().map_or(0, |epoch| number(epoch, "/epoch")), epochs.len())
}

/// Dropping writes before it frees. Somebody else fills the disk and frees it again: the chain is
/// as small as before then, and nothing has to be done by hand. Where there is no room for it, the
/// message says how much it takes.
#[test]
fn a_chain_is_small_again_when_a_disk_was_full() {
    let test = "native::full::a_chain_is_small_again_when_a_disk_was_full";
    if !kvm_or_skip(test) {
        return;
    }
    let Some(disk) = Small::mount(test, 40) else { return };
    let store = disk.place.join("store");
    let path = store.display();
    let line = format!("checkpoint --store {path} --memory 32M --budget 512 --keep-last 5 --on-storage-error continue --json");
    let mut running = Running::start(&mut slackwater(line.split_whitespace()));
    // Waits until the chain has dropped what it does not keep and goes on: with three images and
    // what is kept it is below 36 MB.
    let settled = |running: &mut Running, from: u64| {
        let start = Instant::now();
        loop {
            let (newest, epochs) = if store.join("description.json").exists() { newest(&store) } else { (0, 0) };
            if newest > from + 60 && newest > 60 + epochs as u64 && used(&disk.place) < 36 << 20 {
                return newest;
            }
            assert!(!running.has_ended(), "it has ended, with epoch {newest} as the newest");
            assert!(
                start.elapsed() < patience(LIMIT),
                "{newest} is the newest of {epochs} epochs, {from} was, {} bytes",
                used(&disk.place)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut newest = settled(&mut running, 0);
    // Twice: what was taken of the room for it the first time would be missing the second time.
    for _ in 0..2 {
        let refused = "an epoch could not be stored";
        let said = running.messages(refused);
        let fill = disk.place.join("fill");
        let mut file = std::fs::File::create(&fill).unwrap();
        // What the chain drops meanwhile would be room again.
        while running.messages(refused) == said {
            let full = (0..=40 << 4).find_map(|_| file.write_all(&[1; 64 << 10]).err());
            assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
            assert!(!running.has_ended(), "it has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::remove_file(&fill).unwrap();
        drop(file);
        newest = settled(&mut running, newest);
    }
    running.signal(libc::SIGTERM);
    let report = running.wait().expect(0).says(&["compacting ", " needs ", " free, and "]).json();
    assert!(guest_is_ok(&report) && number(&report, "/failed_epochs") >= 1, "{report}");
    let verified = run(&format!("verify --store {path} --json")).expect(0).json();
    assert!(number(&verified, "/newest") > newest, "{verified}");
    run(&format!("prune --store {path} --keep-last 5")).expect(0);
    let restored = run(&format!("restore --store {path} --for 50ms --json")).expect(0).json();
    assert!(guest_is_ok(&restored), "{restored}");
}
