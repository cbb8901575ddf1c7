//! What can't be exported or compared is said, and leaves nothing behind.

use std::fs;
use std::path::Path;

use crate::support::chain::{Builder, NewEpoch};
use crate::support::command::{Run, run};
use crate::support::copy::{checkpoints, read, write};

const BOTH: [&str; 2] = ["raw", "elf-core"];

/// Exports to `dir/out`.
fn export(store: &Path, dir: &Path, format: &str, more: &str) -> Run {
    let out = dir.join("out");
    run(&format!("export --store {} --format {format} --out {} {more}", store.display(), out.display()))
}

#[test]
fn a_file_that_exists() {
    let dir = tempfile::tempdir().unwrap();
    let store = checkpoints().join("golden/churn");
    let out = dir.path().join("out");
    fs::write(&out, "mine").unwrap();
    for format in BOTH {
        export(&store, dir.path(), format, "").refused(1, &["exists", "--force"]);
        assert_eq!(read(dir.path()).into_values().collect::<Vec<_>>(), [b"mine"]);
    }
    // Through a link, the file that it leads to.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("out", &link).unwrap();
    run(&format!("export --store {} --format raw --out {} --force", store.display(), link.display())).expect(0);
    assert!(link.is_symlink() && out.metadata().unwrap().len() == 8 << 20);
    export(&store, dir.path(), "elf-core", "--force").expect(0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    for (out, code, text) in
        [("/dev/full", 2, "no regular file"), ("/dev/full --force", 2, "no regular file"), ("/tmp --force", 2, "no regular file")]
    {
        run(&format!("export --store {} --format raw --out {out}", store.display())).refused(code, &[text]);
    }
    // A link to nothing is not made something.
    let dangling = dir.path().join("dangling");
    std::os::unix::fs::symlink("nothing", &dangling).unwrap();
    let line = format!("export --store {} --format raw --out {}", store.display(), dangling.display());
    run(&line).refused(1, &["dangling exists"]);
    run(&format!("{line} --force")).refused(1, &["dangling is a symbolic link to nothing, which does not exist"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    run(&format!("export --store {} --format raw --out {}/no/where", store.display(), dir.path().display()))
        .refused(1, &["no/where", "No such file"]);
}

/// Not even with `--force`.
#[test]
fn files_of_the_store_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let files = read(&checkpoints().join("golden/churn"));
    write(&store, &files);
    std::os::unix::fs::symlink("store/description.json", dir.path().join("link")).unwrap();
    for out in ["store/description.json", "store/new", "link"] {
        let line = format!("export --store {} --format raw --force --out {}", store.display(), dir.path().join(out).display());
        run(&line).refused(2, &["is in the store itself"]);
    }
    assert!(read(&store) == files);
}

#[test]
fn options_that_say_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = checkpoints().join("golden/churn");
    for format in BOTH {
        export(&store, dir.path(), format, "--disk 0").refused(2, &["`--disk` goes with `--format disk`"]);
        export(&store, dir.path(), format, "--image x").refused(2, &["`--image` goes with `--format disk`"]);
    }
    export(&store, dir.path(), "disk", "").refused(2, &["the machine has no disks"]);
    for option in ["--interval 50ms", "--audit 2", "--ring 1024"] {
        run(&format!("restore --store {} {option}", store.display())).refused(2, &["goes with `--continue` or `--branch`"]);
    }
    for (line, text) in
        [("checkpoint --audit 0", "at least 1"), ("checkpoint --epochs 0", "at least 1"), ("prune --keep-last 0", "at least 1")]
    {
        run(&format!("{line} --store {}/none", dir.path().display())).refused(2, &[text]);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn epochs_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = checkpoints().join("golden/plain");
    for format in BOTH {
        export(&store, dir.path(), format, "--epoch 0").refused(2, &["epochs are numbered from 1"]);
    }
    for epoch in [4, 9, u64::MAX] {
        for format in BOTH {
            export(&store, dir.path(), format, &format!("--epoch {epoch}")).refused(1, &[&epoch.to_string()]);
        }
        run(&format!("diff --store {} 1 {epoch}", store.display())).refused(1, &[&epoch.to_string()]);
        run(&format!("diff --store {} {epoch} 1", store.display())).refused(1, &[&epoch.to_string()]);
    }
    // Its state is not that of a machine.
    export(&store, dir.path(), "elf-core", "").refused(3, &["state of epoch 8", "sample.vm"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn damage() {
    let mut refused = 0;
    for kind in fs::read_dir(checkpoints().join("damaged")).unwrap() {
        let store = kind.unwrap().path();
        let dir = tempfile::tempdir().unwrap();
        // What `digest` makes of it, for it reads the same.
        for epoch in ["", "--epoch 1", "--epoch 5", "--epoch 8"] {
            let digest = run(&format!("digest --store {} {epoch}", store.display()));
            let export = export(&store, dir.path(), "raw", epoch).expect(digest.code());
            let made = fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(made, usize::from(export.code() == 0), "{export}");
            if made == 1 {
                fs::remove_file(dir.path().join("out")).unwrap();
            }
            refused += usize::from(export.code() == 3);
            let number = epoch.split(' ').nth(1);
            if let (Some(number), 3) = (number, digest.code()) {
                run(&format!("diff --store {} 1 {number}", store.display())).refused(3, &[store.to_str().unwrap()]);
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

/// Memory that no file system has room for, as a store may claim.
#[test]
fn memory_that_no_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let run_of = slackwater::page::PageRun { first: slackwater::page::Gfn((1 << 40) - 1), count: 1 };
    let mut chain = Builder::new([8; 16], vec![run_of], 1, serde_json::Value::Null);
    chain.segment();
    chain.epoch(&NewEpoch { number: 1, base: true, ..NewEpoch::default() });
    chain.close();
    write(&dir.path().join("store"), &chain.files);
    let tried = export(&dir.path().join("store"), dir.path(), "raw", "");
    // 4 PiB: some file systems take it, for it is a hole.
    assert!(tried.code() == 0 || tried.code() == 1 && tried.stderr.contains("too large"), "{tried}");
}
