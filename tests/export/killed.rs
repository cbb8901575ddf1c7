//! What an export leaves that does not come to its end, and who may read one that does.
#![expect(unsafe_code, reason = "sets the umask of a child process")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use slackwater::page::{Gfn, PageRun};
use slackwater::store::{NewChain, Writer};

use crate::support::chain::noise;
use crate::support::command::{Running, finish, slackwater};
use crate::support::copy::checkpoints;
use crate::support::store::{SEGMENT_EACH, append_pages, new_chain};

/// Guest memory is private whatever the umask; and the owner may always read what he exported.
#[test]
fn only_the_owner_may_read_it() {
    let store = checkpoints().join("golden/churn");
    for umask in [0, 0o022, 0o277, 0o777] {
        let dir = tempfile::tempdir().unwrap();
        for (number, format) in ["raw", "elf-core"].into_iter().enumerate() {
            let out = dir.path().join(number.to_string());
            for force in [&[][..], &["--force"]] {
                let mut command = slackwater(["export", "--store", store.to_str().unwrap(), "--format", format]);
                command.arg("--out").arg(&out).args(force);
                let set = move || {
                    // SAFETY: takes a number, and may be called between fork and exec.
                    unsafe { libc::umask(umask) };
                    Ok(())
                };
                // SAFETY: the closure only sets the umask.
                unsafe { command.pre_exec(set) };
                finish(&mut command).expect(0);
                assert_eq!(out.metadata().unwrap().permissions().mode() & 0o7777, 0o600, "{umask:o} {format}");
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

/// Whether the process has a file in `dir` open, with a name or without.
fn has_open_in(process: u32, dir: &Path) -> bool {
    let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.starts_with(dir))
}

#[test]
fn a_killed_export_leaves_nothing() {
    const PAGES: u64 = 8192;
    let place = tempfile::tempdir().unwrap();
    let store = place.path().join("store");
    let memory = vec![PageRun { first: Gfn(0), count: PAGES }];
    let mut writer = Writer::create(&store, &NewChain { memory, ..new_chain() }, SEGMENT_EACH).unwrap();
    let pages: Vec<_> = (0..PAGES).map(|gfn| (gfn, noise(gfn))).collect();
    append_pages(&mut writer, 1, &pages, &[]);
    writer.close(true).unwrap();

    let out_dir = place.path().join("out");
    fs::create_dir(&out_dir).unwrap();
    for force in [false, true] {
        let mut command = slackwater(["export", "--format", "raw"]);
        command.arg("--store").arg(&store).arg("--out").arg(out_dir.join("file"));
        if force {
            command.arg("--force");
        }
        // One that is quicker than this test is tried again.
        let is_killed = (0..200).any(|_| {
            let mut running = Running::start(&mut command);
            while !has_open_in(running.id(), &out_dir) && !running.has_ended() {
                std::thread::yield_now();
            }
            if running.has_ended() {
                running.wait().expect(0);
                fs::remove_file(out_dir.join("file")).unwrap();
                return false;
            }
            running.signal(libc::SIGKILL);
            let run = running.wait();
            if run.code() == 0 {
                fs::remove_file(out_dir.join("file")).unwrap();
            }
            run.code() != 0
        });
        assert!(is_killed, "every export ended before it could be killed");
        let left: Vec<_> = fs::read_dir(&out_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
