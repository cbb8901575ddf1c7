//! Who writes to a store stays with what was opened: what somebody does to it meanwhile is noticed,
//! said, and nothing is called durable that others do not find.
#![expect(unsafe_code, reason = "mounts, and a working directory for one thread")]

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use slackwater::epoch::SinkError;
use slackwater::page::EpochId;
use slackwater::store::verify::{VerifyOptions, verify};
use slackwater::store::{Chain, StoreError, Writer, WriterOptions};

use crate::support::command::{Running, number, run, slackwater};
use crate::support::store::{append_all, new_chain, offer};
use crate::support::{epochs, kvm_or_skip, skip};

const OPTIONS: WriterOptions = WriterOptions {
    segment_bytes: 4 << 10,
    segment_mentions: 1 << 20,
    preallocate_bytes: 1 << 20,
    retention: None,
    background: false,
};

/// A store with epochs 1 to 4 and a branch that begins at 2.
struct Place {
    _dir: tempfile::TempDir,
    store: PathBuf,
    branch: &'static str,
}

impl Place {
    fn new(branch: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        append_all(Writer::create(&store, &new_chain(), OPTIONS).unwrap(), 1..=4, 0);
        append_all(Writer::create_branch(&store, "b", "main", EpochId(2), OPTIONS).unwrap(), 3..=4, 1);
        Self { _dir: dir, store, branch }
    }

    fn writer(&self) -> Writer {
        Writer::open_branch(&self.store, self.branch, OPTIONS).unwrap().0
    }

    /// A path beside the store.
    fn beside(&self, name: &str) -> PathBuf {
        self.store.with_file_name(name)
    }

    /// The chain's own directory.
    fn chain(&self) -> PathBuf {
        if self.branch == "main" { self.store.clone() } else { self.store.join("branches").join(self.branch) }
    }

    fn segment(&self) -> PathBuf {
        let names = fs::read_dir(self.chain()).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("segment-")).max().unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// What is done to a store, and what makes that undone, where anything does.
struct Fault {
    name: &'static str,
    /// Only of a branch.
    branch: bool,
    inflict: fn(&Place),
    undo: Option<fn(&Place)>,
    /// What the message must hold.
    says: &'static str,
}

const fn fault(name: &'static str, inflict: fn(&Place), undo: Option<fn(&Place)>, says: &'static str) -> Fault {
    Fault { name, branch: false, inflict, undo, says }
}

fn back(place: &Place) {
    fs::rename(place.beside("away"), &place.store).unwrap();
}

fn set_aside(path: &Path) {
    fs::rename(path, path.with_extension("aside")).unwrap();
}

fn put_back(path: &Path) {
    fs::rename(path.with_extension("aside"), path).unwrap();
}

fn length(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Everything but mounts.
const FAULTS: [Fault; 14] = [
    fault("renamed", |place| fs::rename(&place.store, place.beside("away")).unwrap(), Some(back), "no such directory"),
    fault(
        "another in its place",
        |place| {
            fs::rename(&place.store, place.beside("away")).unwrap();
            fs::create_dir(&place.store).unwrap();
        },
        Some(|place| {
            fs::remove_dir(&place.store).unwrap();
            back(place);
        }),
        "the directory that was opened",
    ),
    fault(
        "a copy in its place",
        |place| {
            fs::rename(&place.store, place.beside("away")).unwrap();
            copy(&place.beside("away"), &place.store);
        },
        None,
        "the directory that was opened",
    ),
    fault(
        "a file in its place",
        |place| {
            fs::rename(&place.store, place.beside("away")).unwrap();
            fs::write(&place.store, "x").unwrap();
        },
        Some(|place| {
            fs::remove_file(&place.store).unwrap();
            back(place);
        }),
        "the directory that was opened",
    ),
    fault("removed", |place| fs::remove_dir_all(&place.store).unwrap(), None, "no such directory"),
    fault("its lock removed", |place| fs::remove_file(place.chain().join("lock")).unwrap(), None, "no such file"),
    fault(
        "its lock replaced",
        |place| {
            set_aside(&place.chain().join("lock"));
            fs::write(place.chain().join("lock"), "").unwrap();
        },
        Some(|place| put_back(&place.chain().join("lock"))),
        "the lock that is held",
    ),
    fault(
        "its segment grown",
        |place| length(&place.segment(), |bytes| bytes.push(0)),
        Some(|place| length(&place.segment(), |bytes| bytes.truncate(bytes.len() - 1))),
        "bytes",
    ),
    fault("its segment shrunk", |place| length(&place.segment(), |bytes| bytes.truncate(bytes.len() - 8)), None, "bytes"),
    fault("its segment emptied", |place| length(&place.segment(), Vec::clear), None, "bytes"),
    fault("its segment removed", |place| fs::remove_file(place.segment()).unwrap(), None, "no such file"),
    fault(
        "its segment replaced",
        |place| {
            let segment = place.segment();
            set_aside(&segment);
            fs::copy(segment.with_extension("aside"), segment).unwrap();
        },
        Some(|place| {
            let copied = place.segment().with_extension("");
            put_back(&copied);
        }),
        "the segment that is written",
    ),
    Fault {
        name: "its branch renamed",
        branch: true,
        inflict: |place| fs::rename(place.chain(), place.chain().with_file_name("c")).unwrap(),
        undo: Some(|place| fs::rename(place.chain().with_file_name("c"), place.chain()).unwrap()),
        says: "no such directory",
    },
    Fault {
        name: "its branches replaced",
        branch: true,
        inflict: |place| {
            let branches = place.store.join("branches");
            set_aside(&branches);
            copy(&branches.with_extension("aside"), &branches);
        },
        undo: Some(|place| {
            let branches = place.store.join("branches");
            fs::remove_dir_all(&branches).unwrap();
            put_back(&branches);
        }),
        says: "the directory that was opened",
    },
];

/// That it was refused for what somebody did, in words that hold `says`.
#[track_caller]
fn displaced<T: std::fmt::Debug>(result: Result<T, SinkError>, fault: &Fault) {
    let Err(SinkError::Latched(error)) = result else { panic!("{}: {result:?}", fault.name) };
    assert!(matches!(error.downcast_ref(), Some(StoreError::Displaced { .. })), "{}: {error}", fault.name);
    assert!(error.to_string().contains(fault.says), "{}: {error}", fault.name);
}

/// Inflicts `fault` before an epoch or before its sync, and undoes it.
fn suffer(fault: &Fault, branch: &'static str, at_sync: bool) {
    let place = Place::new(branch);
    let mut writer = place.writer();
    let durable = writer.durable();
    assert!(durable > EpochId(2));
    if at_sync {
        offer(&mut writer, 5, 2).unwrap();
    }
    (fault.inflict)(&place);
    match at_sync {
        true => displaced(writer.sync(), fault),
        false => displaced(offer(&mut writer, 5, 2), fault),
    }
    assert_eq!(writer.durable(), durable, "{}", fault.name);
    // It stays so, whatever is asked.
    assert!(matches!(offer(&mut writer, 6, 2), Err(SinkError::Latched(_))));
    assert!(matches!(writer.sync(), Err(SinkError::Latched(_))));
    displaced(writer.reopen(), fault);
    displaced(writer.reopen(), fault);
    assert!(matches!(writer.close(true), Err(SinkError::Latched(_))));
    assert_eq!(writer.durable(), durable, "{}", fault.name);
    let Some(undo) = fault.undo else { return };
    undo(&place);
    let tip = writer.reopen().unwrap_or_else(|error| panic!("{}: {error:?}", fault.name)).epoch;
    assert!(tip >= durable && writer.durable() == tip, "{}", fault.name);
    offer(&mut writer, 7, 3).unwrap();
    let tip = writer.close(true).unwrap();
    drop(writer);
    let chain = Chain::open_branch(&place.store, branch).unwrap();
    assert_eq!((chain.newest(), chain.damage()), (tip, &[][..]), "{}", fault.name);
    let report = verify(&place.store, &VerifyOptions::default(), &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{}: {:?}", fault.name, report.damage);
}

#[test]
fn whatever_happens_to_a_store_is_noticed() {
    for fault in &FAULTS {
        for branch in ["main", "b"] {
            if fault.branch && branch == "main" {
                continue;
            }
            for at_sync in [false, true] {
                suffer(fault, branch, at_sync);
            }
        }
    }
}

/// Without its lock a store can be opened by another. The first one writes nothing more, and all
/// that either calls durable is there.
#[test]
fn of_two_writers_one_goes_on() {
    for branch in ["main", "b"] {
        for epochs_between in 0..3 {
            let place = Place::new(branch);
            let mut first = place.writer();
            offer(&mut first, 5, 2).unwrap();
            first.sync().unwrap();
            offer(&mut first, 6, 2).unwrap();
            fs::remove_file(place.chain().join("lock")).unwrap();
            let mut second = place.writer();
            assert_eq!(second.durable(), first.head().epoch);
            for minute in 0..epochs_between {
                offer(&mut second, 10 + minute, 4).unwrap();
                second.sync().unwrap();
            }
            assert!(matches!(offer(&mut first, 7, 2), Err(SinkError::Latched(_))));
            assert!(matches!(first.sync(), Err(SinkError::Latched(_))));
            assert!(matches!(first.reopen(), Err(SinkError::Latched(_))));
            drop(first);
            offer(&mut second, 20, 4).unwrap();
            let tip = second.close(true).unwrap();
            drop(second);
            let report = verify(&place.store, &VerifyOptions::default(), &mut |_| {}).unwrap();
            assert!(report.is_sound(), "{:?}", report.damage);
            assert_eq!(Chain::open_branch(&place.store, branch).unwrap().newest(), tip);
        }
    }
}

/// Where the process goes does not matter, nor that it came by a link; but where the link leads
/// then does.
#[test]
fn a_path_means_what_it_meant() {
    let place = Place::new("main");
    let link = place.beside("link");
    std::os::unix::fs::symlink(&place.store, &link).unwrap();
    let base = place.store.parent().unwrap().to_owned();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: takes a flag. From here on this thread has a working directory of its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FS) }, 0);
            std::env::set_current_dir(&base).unwrap();
            let mut writer = Writer::open("link", OPTIONS).unwrap().0;
            std::env::set_current_dir("/").unwrap();
            offer(&mut writer, 5, 2).unwrap();
            writer.sync().unwrap();
            fs::remove_file(&link).unwrap();
            copy(&place.store, &place.beside("copy"));
            std::os::unix::fs::symlink(place.beside("copy"), &link).unwrap();
            assert!(matches!(offer(&mut writer, 6, 2), Err(SinkError::Latched(_))));
        });
    });
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn mount_tmpfs(place: &Path) -> std::io::Result<()> {
    let place = text(place);
    // SAFETY: all are texts that end in a zero byte, as tmpfs takes them.
    let result = unsafe { libc::mount(c"tmpfs".as_ptr(), place.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=8M".as_ptr().cast()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn mount_bind(from: &Path, to: &Path) {
    let (from, to) = (text(from), text(to));
    // SAFETY: all are texts that end in a zero byte; a bind mount takes no options.
    let result = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), std::ptr::null(), libc::MS_BIND, std::ptr::null()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn unmount(place: &Path) {
    let place = text(place);
    // SAFETY: a path that ends in a zero byte.
    unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
}

/// Unmounts a place at the end.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

#[test]
fn mounts_over_and_under_a_store_are_noticed() {
    let test = "place::stays::mounts_over_and_under_a_store_are_noticed";
    let tmpfs = |place: &Place| mount_tmpfs(&place.store).unwrap();
    let away = |place: &Place| unmount(&place.store);
    let over = [
        fault("another file system over it", tmpfs, Some(away), "the directory that was opened"),
        fault(
            "another directory over it",
            |place| {
                fs::create_dir(place.beside("other")).unwrap();
                mount_bind(&place.beside("other"), &place.store);
            },
            Some(away),
            "the directory that was opened",
        ),
        fault(
            "another file over its lock",
            |place| {
                fs::write(place.beside("other"), "").unwrap();
                mount_bind(&place.beside("other"), &place.chain().join("lock"));
            },
            Some(|place| unmount(&place.chain().join("lock"))),
            "the lock that is held",
        ),
    ];
    let probe = tempfile::tempdir().unwrap();
    match mount_tmpfs(probe.path()) {
        Ok(()) => unmount(probe.path()),
        Err(error) => return skip(test, &format!("mounting a tmpfs: {error}")),
    }
    for fault in &over {
        for at_sync in [false, true] {
            suffer(fault, "main", at_sync);
            suffer(fault, "b", at_sync);
        }
    }
    // The file system that a store is on goes away, as far as paths lead.
    for at_sync in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        mount_tmpfs(dir.path()).unwrap();
        let mounted = Mounted(dir.path().to_owned());
        let store = dir.path().join("store");
        let mut writer = Writer::create(&store, &new_chain(), OPTIONS).unwrap();
        offer(&mut writer, 1, 0).unwrap();
        writer.sync().unwrap();
        if at_sync {
            offer(&mut writer, 2, 0).unwrap();
        }
        drop(mounted);
        let gone = fault("unmounted", |_| {}, None, "no such directory");
        match at_sync {
            true => displaced(writer.sync(), &gone),
            false => displaced(offer(&mut writer, 2, 0), &gone),
        }
        displaced(writer.reopen(), &gone);
        assert_eq!(writer.durable(), EpochId(1));
    }
}

const RUN: &str = "--budget 512 --interval 5ms";

/// A run that goes on until it is told to end.
fn start(store: &Path, more: &str) -> Running {
    let line = format!("checkpoint --store {} --memory 32M {RUN} {more} --json", store.display());
    Running::start(&mut slackwater(line.split_whitespace()))
}

#[test]
fn native_the_command_stops_when_its_store_is_moved() {
    if !kvm_or_skip("place::stays::native_the_command_stops_when_its_store_is_moved") {
        return;
    }
    for more in ["", "--durability epoch", "--on-storage-error continue"] {
        let dir = tempfile::tempdir().unwrap();
        let (store, away) = (dir.path().join("store"), dir.path().join("away"));
        let running = start(&store, more);
        crate::native::follow::wait_for_epochs(&store, 5);
        fs::rename(&store, &away).unwrap();
        fs::create_dir(&store).unwrap();
        if more.contains("continue") {
            running.signal(libc::SIGINT);
        }
        let ended = running.wait().expect(1).says(&["is not what was opened", &store.display().to_string(), "expected", "found"]);
        assert_eq!(fs::read_dir(&store).unwrap().count(), 0, "{ended}");
        let chain = Chain::open(&away).unwrap();
        assert_eq!(chain.damage(), []);
        let report = ended.json();
        let found = epochs(&chain).len() as u64;
        // What was seen before need not have been durable.
        assert!((1..=found).contains(&number(&report, "/durable_epochs")), "{found} epochs, and {report}");
        run(&format!("verify --store {}", away.display())).expect(0);
        run(&format!("restore --store {} --continue {RUN} --epochs 3", away.display())).expect(0);
    }
}

#[test]
fn native_of_two_commands_one_goes_on() {
    if !kvm_or_skip("place::stays::native_of_two_commands_one_goes_on") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let first = start(&store, "");
    crate::native::follow::wait_for_epochs(&store, 5);
    fs::remove_file(store.join("lock")).unwrap();
    let second = run(&format!("restore --store {} --continue {RUN} --epochs 20", store.display()));
    second.expect(0);
    first.wait().expect(1).says(&["is not what was opened", "lock"]);
    run(&format!("verify --store {}", store.display())).expect(0);
}
