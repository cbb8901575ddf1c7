//! Options that can't be. Nothing here gets as far as KVM.

use std::path::Path;

use crate::support::command::{Run, finish, slackwater};

/// Runs a verb that needs a store that it never gets to make.
fn refused(line: &str, code: i32, texts: &[&str]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut args = vec![verb, "--store", store.to_str().unwrap()];
    args.extend(rest.split_whitespace());
    let run = finish(&mut slackwater(args)).refused(code, texts);
    assert!(!store.exists(), "{run} made a store");
    run
}

/// With a KVM that does not exist, so that what is refused is refused before.
fn checkpoint(options: &str, texts: &[&str]) {
    refused(&format!("checkpoint --kvm /nonexistent {options}"), 2, texts);
}

#[test]
fn no_verb_or_another() {
    for args in [
        &[][..],
        &["frobnicate"],
        &["checkpoint", "--frobnicate"],
        &["log"],
        &["restore"],
        &["verify"],
        &["digest"],
        &["export"],
        &["prune"],
        &["compact"],
        &["diff"],
        &["diff", "--store", "x", "1"],
        &["checkpoint"],
        &["ledger-client"],
        &["ledger-client", "--unix", "x", "--udp", "127.0.0.1:1"],
    ] {
        finish(&mut slackwater(args)).refused(2, &["Usage: slackwater"]);
    }
    finish(&mut slackwater(["log"])).refused(2, &["--store <DIR>"]);
}

/// What can't be written is known before minutes have passed.
#[test]
fn places_that_nothing_can_be_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    std::fs::write(&file, "mine").unwrap();
    std::os::unix::fs::symlink("nothing", &link).unwrap();
    let bench = |options: &str| finish(&mut slackwater(format!("bench --extent tiny --kvm /nonexistent {options}").split(' ')));
    let (file, link, place) = (file.display(), link.display(), dir.path().display());
    for option in ["--store", "--out"] {
        bench(&format!("{option} {file}")).refused(2, &["file is not a directory"]);
        bench(&format!("{option} {link}")).refused(1, &["link is a symbolic link to nothing, which does not exist"]);
    }
    bench(&format!("--store {place} --html {place}/no/where")).refused(1, &["no/where", "No such file"]);
    bench(&format!("--store {place} --html {place}")).refused(2, &["is a directory"]);
    bench(&format!("--store {place} --html {link}")).refused(1, &["link is a symbolic link to nothing, which does not exist"]);
    // Nothing is made or changed by looking.
    bench(&format!("--store {place} --html {file}")).refused(1, &["/nonexistent does not exist"]);
    assert!(std::fs::read(dir.path().join("file")).unwrap() == b"mine" && std::fs::read_dir(dir.path()).unwrap().count() == 2);
}

/// Where nobody reads what is said, the exit code is what it is.
#[test]
fn nobody_reads_standard_error() {
    for line in
        ["log --store /nonexistent", "restore --store /nonexistent", "frobnicate", "bench --kvm /nonexistent --store /dev/null"]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = slackwater(line.split(' '));
        let status =
            command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(writer).status().unwrap();
        assert!(matches!(status.code(), Some(1 | 2)), "{line}: {status}");
    }
}

#[test]
fn help_and_version_are_data() {
    for args in [&["--help"][..], &["--version"], &["checkpoint", "--help"], &["help", "restore"]] {
        let run = finish(&mut slackwater(args)).expect(0);
        assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{run}");
    }
}

#[test]
fn memory() {
    for memory in ["4097", "5000000", "1023K"] {
        checkpoint(&format!("--memory {memory}"), &["--memory", "whole pages of 4096 bytes"]);
    }
    for memory in ["0", "4K", "4092K", "65G", "4096T", "15000000T"] {
        checkpoint(&format!("--memory {memory}"), &["4194304 to 68719476736 bytes of memory"]);
    }
    for memory in ["", "M", "-1", "1.5G", "12Q", "0x1000", "99999999999T"] {
        checkpoint(&format!("--memory={memory}"), &["--memory <SIZE>"]);
    }
    // Enough for the guest itself, and not for its working set: the message has what would do.
    checkpoint("--memory 4M --guest churn:pages=4096", &["4096", "needs"]);
}

#[test]
fn vcpus() {
    for vcpus in ["0", "65", "100000", "4294967295"] {
        checkpoint(&format!("--vcpus {vcpus}"), &["1 to 64", vcpus]);
    }
    for vcpus in ["-1", "two", "4294967296"] {
        checkpoint(&format!("--vcpus={vcpus}"), &["--vcpus <N>", vcpus]);
    }
}

#[test]
fn guests() {
    for (guest, text) in [
        ("linux", "there is no guest `linux`: expected `churn`, `touch` or `ledger`"),
        ("touch:hot=4", "`hot` is not an option of `touch`: there are pages, pattern, lists, words, cut, every, seed"),
        ("touch:pages=0", "1 to 1048576 pages"),
        ("churn:page=4", "`page` is not an option of `churn`: there are pages, pattern, hot, content, burst, every, seed"),
        ("churn:pages", "`pages` is not `key=value`"),
        ("churn:pages=0", "1 to 16777216 pages"),
        ("churn:pages=99999999999999999999", "1 to 16777216 pages"),
        ("churn:pattern=spiral", "sequential, uniform, zipf or hotcold"),
        ("churn:content=music", "text, random, zero, counter or words"),
        ("churn:every=5", "every=5"),
        ("churn:burst=0", "burst=0"),
        ("churn:hot=5", "`pattern=hotcold`"),
        ("churn:pattern=hotcold,hot=5000", "hot=5000"),
        ("churn:seed=1,seed=2", "given twice"),
    ] {
        checkpoint(&format!("--guest {guest}"), &["--guest <GUEST>", text]);
    }
}

#[test]
fn times_and_counts() {
    for option in ["--interval", "--for"] {
        for time in ["", "5", "ms", "5d", "1.5s", "-5s", "99999999999999h"] {
            checkpoint(&format!("{option}={time}"), &[option]);
        }
    }
    checkpoint("--interval 0ms", &["--interval", "more than nothing"]);
    checkpoint("--audit 0", &["--audit"]);
    checkpoint("--in-flight 1", &["--in-flight", "2..=256"]);
    checkpoint("--epochs 3 --for 1s", &["--epochs", "--for"]);
    for durability in ["always", "group:0", "group:x", "epoch:5"] {
        checkpoint(&format!("--durability {durability}"), &["--durability <MODE>"]);
    }
    for compression in ["lz4", "zstd:99", "zstd:x"] {
        checkpoint(&format!("--compression {compression}"), &["--compression <CODEC>"]);
    }
    checkpoint("--tracker guess", &["--tracker", "ring, bitmap"]);
}

#[test]
fn rings_and_budgets_that_no_kernel_takes() {
    for ring in ["0", "1", "255", "1000", "65535"] {
        checkpoint(&format!("--ring {ring}"), &[&format!("a ring of {ring} entries"), "a power of two"]);
    }
    checkpoint("--ring -1", &[]);
    checkpoint("--ring 512 --tracker bitmap", &["--ring", "--tracker ring"]);
    checkpoint("--budget 268435457", &["--budget <PAGES>", "268435456"]);
    checkpoint("--budget 0 --tracker bitmap", &["--budget 0", "smallest", "1"]);
}

#[test]
fn restore_takes_no_other_machine() {
    let golden = crate::support::copy::checkpoints().join("golden/plain");
    for option in ["--memory 64M", "--vcpus 1", "--guest churn"] {
        crate::support::command::run(&format!("restore --store {} {option}", golden.display()))
            .refused(2, &["unexpected argument"]);
    }
    assert!(!Path::new("/nonexistent").exists());
}
