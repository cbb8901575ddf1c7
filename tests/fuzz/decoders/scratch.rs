//! A directory for one chain, in memory where the system has such a place.

use std::path::{Path, PathBuf};

use super::Files;

/// Files of a directory.
pub(super) fn read(dir: &Path) -> Files {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    names.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())).collect()
}

/// Runs `check` in a directory that holds `files` and nothing else.
pub(super) fn with(files: &Files, check: impl FnOnce(&Path)) {
    thread_local! {
        static DIR: tempfile::TempDir = make();
    }
    DIR.with(|dir| {
        for old in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::remove_file(old.unwrap().path()).unwrap();
        }
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        check(dir.path());
    });
}

fn make() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    if std::env::var_os("TMPDIR").is_none() && memory.is_dir() {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}
