//! Stores that are none, or are not what they say.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use slackwater::page::{EpochId, Gfn, PageRun};
use slackwater::store::{Writer, WriterOptions};

use crate::support::chain::Builder;
use crate::support::command::{self, finish, run, slackwater};
use crate::support::copy::{checkpoints, read, write};

const READERS: [&str; 4] = ["log", "verify", "digest", "restore --kvm /nonexistent"];

fn all(store: &Path, verbs: &[&str], code: i32, texts: &[&str]) {
    for verb in verbs {
        run(&format!("{verb} --store {}", store.display())).refused(code, texts);
    }
}

const CONTINUE: &str = "restore --continue --kvm /nonexistent";

#[test]
fn nothing_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("not/there");
    all(&store, &READERS, 1, &[store.to_str().unwrap()]);
    all(&store, &[CONTINUE], 1, &["there is no store at", store.to_str().unwrap()]);
    assert!(!store.exists());
}

/// In every verb that takes a store, whether it reads or makes one.
#[test]
fn a_link_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("no/where", &link).unwrap();
    let out = dir.path().join("out");
    let export = format!("export --format raw --out {}", out.display());
    let others = [
        "log --branches",
        "repair",
        "repair --dry-run",
        "prune --keep-last 1",
        "prune --keep-last 1 --dry-run",
        "compact",
        "diff 1 2",
        "advise --pause 1ms",
        "restore --lazy --kvm /nonexistent",
        "restore --branch b --epoch 1 --kvm /nonexistent",
        "checkpoint --kvm /nonexistent",
        "demo --kvm /nonexistent",
        "bench --extent tiny --kvm /nonexistent",
        CONTINUE,
        &export,
    ];
    for verb in READERS.into_iter().chain(others) {
        let run = run(&format!("{verb} --store {}", link.display()));
        run.refused(1, &[&format!("{} is a symbolic link to no/where, which does not exist", link.display())]);
    }
    assert!(link.is_symlink() && fs::read_dir(dir.path()).unwrap().count() == 1);
    let made = Writer::create(&link, &crate::support::store::new_chain(), WriterOptions::default());
    assert!(matches!(made, Err(slackwater::store::StoreError::DanglingLink { .. })), "{made:?}");
    // Below one.
    let below = link.join("store");
    all(&below, &READERS, 1, &[below.to_str().unwrap()]);
}

#[test]
fn a_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("file");
    fs::write(&store, "text").unwrap();
    all(&store, &READERS, 1, &[store.to_str().unwrap(), "directory"]);
    all(&store, &[CONTINUE], 1, &["a store is a directory", store.to_str().unwrap()]);
    assert_eq!(fs::read(&store).unwrap(), b"text");
    // Below a file.
    all(&store.join("store"), &READERS, 1, &[store.to_str().unwrap()]);
}

#[test]
fn an_empty_directory_and_one_of_other_things() {
    let dir = tempfile::tempdir().unwrap();
    all(dir.path(), &READERS, 1, &[dir.path().to_str().unwrap()]);
    all(dir.path(), &[CONTINUE], 1, &["is empty: it holds no store"]);
    assert!(read(dir.path()).is_empty());
    fs::write(dir.path().join("letter"), "text").unwrap();
    all(dir.path(), &READERS, 1, &["description.json"]);
    all(dir.path(), &[CONTINUE], 1, &["description.json"]);
    assert_eq!(read(dir.path()).len(), 1);
}

#[test]
fn a_chain_without_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let mut chain = Builder::new([7; 16], vec![PageRun { first: Gfn(0), count: 1024 }], 1, serde_json::Value::Null);
    chain.segment();
    write(dir.path(), &chain.files);
    run(&format!("log --store {}", dir.path().display())).refused(0, &["the store holds no epoch yet"]);
    let verified = run(&format!("verify --store {}", dir.path().display())).expect(0).stdout;
    assert!(verified.starts_with("no epoch yet, in 1 segments"), "{verified}");
    let out = dir.path().join("out");
    let export = format!("export --format raw --out {}", out.display());
    for verb in [READERS[2], READERS[3], CONTINUE, "restore --branch new --from main --kvm /nonexistent", &export] {
        // Whoever asked for the newest is not told of an epoch 0.
        let run = run(&format!("{verb} --store {}", dir.path().display())).refused(1, &["holds no epoch yet"]);
        assert!(!run.stderr.contains("epoch 0"), "{run}");
    }
    all(dir.path(), &["digest --epoch 3", "diff 3 4"], 1, &["the store holds no epoch 3: it holds none"]);
    all(dir.path(), &["advise --pause 1ms"], 1, &["holds no epoch yet"]);
    fs::remove_file(dir.path().join("lock")).unwrap();
    assert!(read(dir.path()) == chain.files);
}

#[test]
fn epochs_that_do_not_exist() {
    let golden = checkpoints().join("golden/plain");
    for epoch in ["4", "9", "18446744073709551615"] {
        for verb in ["digest", "restore --kvm /nonexistent"] {
            let line = format!("{verb} --store {} --epoch {epoch}", golden.display());
            run(&line).refused(1, &[&format!("the store holds no epoch {epoch}: the newest is 8")]);
        }
    }
    for epoch in ["0", "-1", "x", "18446744073709551616", ""] {
        for verb in ["digest", "restore", "verify", "export --format raw --out /nonexistent/out"] {
            run(&format!("{verb} --store {} --epoch={epoch}", golden.display())).refused(2, &["--epoch <N>", "from 1"]);
        }
        run(&format!("repair --store {} --truncate-after={epoch}", golden.display())).refused(2, &["from 1"]);
        if !epoch.is_empty() {
            run(&format!("diff --store {} -- {epoch} 8", golden.display())).refused(2, &["from 1"]);
        }
    }
}

#[test]
fn going_on_from_an_older_epoch() {
    let copy = tempfile::tempdir().unwrap();
    let golden = read(&checkpoints().join("golden/plain"));
    write(copy.path(), &golden);
    let line = format!("restore --store {} --continue --epoch 5 --kvm /nonexistent", copy.path().display());
    run(&line).refused(2, &["epoch 5 is not the newest of main, which is 8"]);
    let mut left = read(copy.path());
    left.remove("lock");
    assert!(left == golden);
}

#[test]
fn another_writer() {
    let copy = tempfile::tempdir().unwrap();
    write(copy.path(), &read(&checkpoints().join("golden/plain")));
    let (writer, recovered) = Writer::open(copy.path(), WriterOptions::default()).unwrap();
    assert_eq!(recovered.tip, EpochId(8));
    let me = format!("pid {}", std::process::id());
    all(copy.path(), &[CONTINUE], 4, &["is in use by another writer", &me, copy.path().to_str().unwrap(), "hint"]);
    // Readers are welcome meanwhile.
    run(&format!("log --store {}", copy.path().display())).expect(0);
    run(&format!("verify --store {}", copy.path().display())).expect(0);
    drop(writer);
    all(copy.path(), &[CONTINUE], 1, &["/nonexistent does not exist"]);
}

/// A machine that can't be built is refused before anything is: no allocation follows these
/// numbers.
#[test]
fn hostile_machines() {
    let machine = |memory: u64, vcpus: u64, guest: &str| serde_json::json!({ "memory_bytes": memory, "vcpus": vcpus, "guest": { "churn": guest } });
    let run_of = |count| vec![PageRun { first: Gfn(0), count }];
    let split =
        vec![PageRun { first: Gfn(0), count: (3 << 30) / 4096 }, PageRun { first: Gfn(1 << 20), count: (1 << 40) - (1 << 20) }];
    let most = (3 << 30) + ((1u64 << 40) - (1 << 20)) * 4096;
    let cases = [
        ("does not fit", run_of(1024), 2, machine(1 << 63, 1_000_000_000, "churn"), "is not the one whose memory it lists"),
        ("as much as the format takes", split, 4096, machine(most, 4096, "churn"), "can't be built"),
        ("too many vCPUs", run_of(1024), 4096, machine(4 << 20, 4096, "churn:pages=64"), "can't be built"),
        ("too small for the guest", run_of(1024), 1, machine(4 << 20, 1, "churn:pages=16777216"), "can't be built"),
        ("odd", run_of(1024), 1, machine((4 << 20) + 1, 1, "churn:pages=64"), "can't be built"),
        ("another guest", run_of(1024), 1, machine(4 << 20, 1, "minix"), "can't be built"),
        ("a guest's bad options", run_of(1024), 1, machine(4 << 20, 1, "churn:pages=0"), "can't be built"),
        ("no machine", run_of(1024), 1, serde_json::Value::Null, "can't be built"),
        ("text", run_of(1024), 1, "x".repeat(1000).into(), "can't be built"),
        (
            "unknown fields",
            run_of(1024),
            1,
            serde_json::json!({ "memory_bytes": 4 << 20, "vcpus": 1, "guest": {}, "disk": 1 }),
            "can't be built",
        ),
    ];
    for (name, memory, vcpus, machine, text) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut chain = Builder::new([9; 16], memory, vcpus, machine);
        chain.segment();
        chain.epoch(&crate::support::chain::NewEpoch { number: 1, ..Default::default() });
        chain.close();
        write(dir.path(), &chain.files);
        run(&format!("verify --store {}", dir.path().display())).expect(0);
        for verb in ["restore", "restore --continue"] {
            let run = run(&format!("{verb} --kvm /nonexistent --store {}", dir.path().display())).expect(3);
            assert!(
                run.stdout.is_empty() && run.stderr.contains(text) && run.stderr.contains("description.json"),
                "{name}: {run}"
            );
        }
    }
}

/// Identities that are sound JSON with a sound checksum, and break a limit of the format.
#[test]
fn hostile_identities() {
    let golden = read(&checkpoints().join("golden/plain"));
    let text = String::from_utf8(golden["description.json"].clone()).unwrap();
    let line = text.lines().next().unwrap();
    for (from, to) in [
        (r#""count":1024"#, r#""count":0"#),
        (r#""count":1024"#, r#""count":18446744073709551615"#),
        (r#""count":1024"#, r#""count":1099511627777"#),
        (r#""memory":[{"first":0,"count":1024}]"#, r#""memory":[{"first":5,"count":5},{"first":0,"count":5}]"#),
        (r#""page_size":4096"#, r#""page_size":16384"#),
        (r#""vcpus":2,"machine""#, r#""vcpus":0,"machine""#),
        (r#""vcpus":2,"machine""#, r#""vcpus":1000000000,"machine""#),
        (r#""chain":""#, r#""chain":"x"#),
        (r#""created_by":"#, r#""x":"#),
    ] {
        let line = line.replace(from, to);
        assert_ne!(line, text.lines().next().unwrap(), "{from}");
        let sealed = format!("{line}\nxxh3-64 {:016x}\n", twox_hash::XxHash3_64::oneshot(line.as_bytes()));
        refuses_description(sealed.as_bytes(), to);
    }
    refuses_description(b"", "empty");
    refuses_description(b"\n", "a line feed");
    refuses_description(&[0; 4096], "zeros");
    refuses_description(&[b'['; 1 << 20], "as deep as it is long");
    refuses_description(&vec![b' '; (1 << 20) + 1], "too long");
    refuses_description(text.trim_end().replace('\n', "\r\n").as_bytes(), "copied as text");
}

fn refuses_description(bytes: &[u8], name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut files = read(&checkpoints().join("golden/plain"));
    files.insert("description.json".to_owned(), bytes.to_vec());
    write(dir.path(), &files);
    for verb in READERS.iter().chain(&[CONTINUE]) {
        let run = run(&format!("{verb} --store {}", dir.path().display())).expect(3);
        assert!(run.stdout.is_empty() && run.stderr.contains("description.json"), "{name}: {run}");
    }
    files.remove("lock");
    assert!(read(dir.path()) == files, "{name}");
}

#[test]
fn pipes_and_directories_in_place_of_files() {
    for name in ["description.json", "segment-00000002"] {
        let dir = tempfile::tempdir().unwrap();
        let mut files = read(&checkpoints().join("golden/plain"));
        files.remove(name);
        write(dir.path(), &files);
        fs::create_dir(dir.path().join(name)).unwrap();
        for verb in READERS.iter().chain(&[CONTINUE]) {
            let run = run(&format!("{verb} --store {}", dir.path().display()));
            assert!(run.code() == 1 || run.code() == 3, "{run}");
            assert!(run.stderr.contains(name) && !run.stderr.contains("panicked"), "{run}");
        }
        fs::remove_dir(dir.path().join(name)).unwrap();
        // A pipe that nobody writes to must not be waited for.
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join(name), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        for verb in READERS.iter().chain(&[CONTINUE]) {
            let run = run(&format!("{verb} --store {}", dir.path().display()));
            assert!(run.code() == 1 || run.code() == 3, "{run}");
            assert!(run.stderr.contains(name) && !run.stderr.contains("panicked"), "{run}");
        }
    }
}

/// What this user may not read is said to be so, and is not damage.
#[test]
fn no_permission() {
    let dir = command::open_to_all();
    let store = dir.path().join("store");
    write(&store, &read(&checkpoints().join("golden/plain")));
    let segment = store.join("segment-00000002");
    fs::set_permissions(&segment, fs::Permissions::from_mode(0o000)).unwrap();
    for verb in READERS {
        let mut args: Vec<_> = verb.split(' ').collect();
        args.extend(["--store", store.to_str().unwrap()]);
        let run = finish(&mut command::unprivileged(dir.path(), args));
        run.refused(1, &["segment-00000002", "ermission denied"]);
    }
    fs::set_permissions(&segment, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o555)).unwrap();
    let args = ["restore", "--continue", "--kvm", "/nonexistent", "--store", store.to_str().unwrap()];
    finish(&mut command::unprivileged(dir.path(), args)).refused(1, &["lock", "ermission denied"]);
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Output that nobody reads any more ends the command quietly.
#[test]
fn a_closed_pipe_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let golden = checkpoints().join("golden/plain");
    let mut command = slackwater(["log", "--store", golden.to_str().unwrap()]);
    let child = command.stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
