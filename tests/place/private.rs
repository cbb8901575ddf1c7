//! Guest memory is for its owner alone, whatever the umask says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use slackwater::page::EpochId;
use slackwater::store::{Retention, Writer, compact};

use crate::support::command::run;
use crate::support::kvm_or_skip;
use crate::support::store::{SEGMENT_EACH, append_all, new_chain};

/// The modes of everything below `dir`, and of `dir`, that others may read or write.
fn open_to_others(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = vec![dir.to_owned()];
    while let Some(path) = next.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        if mode != if metadata.is_dir() { 0o700 } else { 0o600 } {
            found.push(format!("{} has {mode:o}", path.display()));
        }
        if metadata.is_dir() {
            next.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// The names of files below `dir`.
fn has(dir: &Path, name: &str) -> bool {
    let mut next = vec![dir.to_owned()];
    while let Some(path) = next.pop() {
        if path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(name)) {
            return true;
        }
        if path.is_dir() {
            next.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    false
}

/// Runs the commands that a test runs without a umask, as some services have it.
fn without_umask() {
    rustix::process::umask(rustix::fs::Mode::empty());
}

#[test]
fn every_file_of_a_store_is_private() {
    without_umask();
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let path = store.display();
    let writer = Writer::create(&store, &new_chain(), SEGMENT_EACH).unwrap();
    assert_eq!(open_to_others(&store), [""; 0]);
    append_all(writer, 1..=12, 0);
    append_all(Writer::create_branch(&store, "b", "main", EpochId(5), SEGMENT_EACH).unwrap(), 20..23, 1);
    run(&format!("prune --store {path} --keep-last 6")).expect(0);
    run(&format!("compact --store {path} --branch b")).expect(0);
    compact(&store, "main", Some(&Retention { last: Some(3), ..Retention::default() }), &mut |_, _| {}).unwrap();
    assert!(["index-", "maintenance", "branches", "segment-00000001-"].iter().all(|name| has(&store, name)));
    assert_eq!(open_to_others(&store), [""; 0]);
    // What a repair cuts off is kept.
    let branch = store.join("branches/b");
    let last = fs::read_dir(&branch).unwrap().map(|entry| entry.unwrap().path());
    let last = last.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-"))).max();
    let (last, mut bytes) = last.map(|path| (path.clone(), fs::read(path).unwrap())).unwrap();
    let at = bytes.len() - 300;
    bytes[at] ^= 1;
    fs::write(&last, bytes).unwrap();
    let text = run(&format!("verify --store {path} --json")).expect(3).json();
    let found = text["branches"].as_array().unwrap().iter().find(|found| found["name"] == "b").unwrap();
    let newest = found["newest"].as_u64().unwrap();
    run(&format!("repair --store {path} --branch b --truncate-after {newest}")).expect(0);
    assert!(has(&store, "lost-001"));
    assert_eq!(open_to_others(&store), [""; 0]);
    // A directory that was there is its maker's.
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o750)).unwrap();
    append_all(Writer::create(&own, &new_chain(), SEGMENT_EACH).unwrap(), 1..=2, 0);
    assert_eq!(open_to_others(&own), [format!("{} has 750", own.display())]);
}

#[test]
fn native_what_the_command_makes_is_private() {
    if !kvm_or_skip("place::private::native_what_the_command_makes_is_private") {
        return;
    }
    without_umask();
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let path = store.display();
    run(&format!("checkpoint --store {path} --memory 32M --budget 512 --epochs 3")).expect(0);
    run(&format!("restore --store {path} --continue --budget 512 --epochs 3")).expect(0);
    // Not every host brings memory on demand.
    let lazy = run(&format!("restore --store {path} --lazy --for 200ms")).code() == 0;
    run(&format!("restore --store {path} --epoch 2 --branch b --budget 512 --epochs 3")).expect(0);
    assert!(!lazy || has(&store, "touched"));
    assert_eq!(open_to_others(&store), [""; 0]);
}
