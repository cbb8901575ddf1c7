//! What limits of the process, and readers of its output that are gone, do to verbs that need no
//! KVM.

use std::io::{Read, pipe};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use slackwater::format::Compression;
use slackwater::page::{EpochId, Gfn, PageRun};
use slackwater::store::verify::{VerifyOptions, verify};
use slackwater::store::{Chain, Writer};

use crate::support::chain::{Builder, NewEpoch, Part, text};
use crate::support::command::{Run, finish, run, slackwater};
use crate::support::copy;
use crate::support::epochs;
use crate::support::store::{SEGMENT_EACH, append_all, new_chain};

/// Every verb that reads or changes a store and needs no KVM. `OUT` is a file that is not there.
const VERBS: [&str; 13] = [
    "log",
    "log --json",
    "verify",
    "verify --json",
    "repair",
    "repair --json --dry-run",
    "digest",
    "diff 1 2",
    "export --format raw --out OUT",
    "prune --keep-last 3",
    "prune --keep-last 3 --json",
    "compact",
    "compact --json",
];

/// A store of `epochs` epochs, each in a segment of its own.
fn store(dir: &Path, epochs: u64) -> PathBuf {
    let store = dir.join("store");
    append_all(Writer::create(&store, &new_chain(), SEGMENT_EACH).unwrap(), 1..=epochs, 0);
    store
}

/// The arguments of a verb on `store`.
fn args(verb: &str, store: &Path) -> Vec<String> {
    let out = store.with_file_name("out").display().to_string();
    let mut args: Vec<_> = verb.split(' ').map(|word| if word == "OUT" { out.clone() } else { word.to_owned() }).collect();
    args.splice(1..1, ["--store".to_owned(), store.display().to_string()]);
    args
}

/// The command with these arguments, under limits that a shell sets: of the size of files, in units
/// of 512 bytes.
pub(crate) fn limited(limits: &str, args: impl IntoIterator<Item = impl AsRef<str>>) -> Command {
    let command = slackwater(args);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{limits} && exec \"$0\" \"$@\"")).arg(command.get_program()).args(command.get_args());
    shell.env_remove("SLACKWATER_LOG");
    shell
}

/// Runs `verb` on a copy of `store`.
fn on_a_copy(store: &Path, limits: &str, verb: &str) -> (Run, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("store");
    copy::write(&copy, &copy::read(store));
    (finish(&mut limited(limits, args(verb, &copy))), dir)
}

fn newest(store: &Path) -> EpochId {
    Chain::open(store).unwrap().newest()
}

/// SIGXFSZ would end the process, and with it a guest.
#[test]
fn a_limit_on_the_size_of_files_is_an_error_as_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 12);
    let mut refused = Vec::new();
    // In KiB.
    for (verb, limit) in VERBS.into_iter().flat_map(|verb| [0, 1, 4].map(|limit| (verb, limit))) {
        let (run, dir) = on_a_copy(&store, &format!("ulimit -f {}", limit * 2), verb);
        match run.code() {
            0 => {}
            1 => {
                run.expect(1).says(&["File too large"]);
                refused.push(verb);
            }
            _ => panic!("{verb} with {limit} KiB: {run}"),
        }
        let copy = dir.path().join("store");
        let report = verify(&copy, &VerifyOptions::default(), &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{verb} with {limit} KiB: {:?}", report.damage);
        assert_eq!(newest(&copy), EpochId(12));
        assert!(!dir.path().join("out").exists() || limit == 4, "{verb} left a part of a file");
    }
    for verb in ["diff 1 2", "export --format raw --out OUT", "compact", "prune --keep-last 3"] {
        assert!(refused.contains(&verb), "{verb} writes no file? {refused:?}");
    }
}

/// The soft limit is there for programs that use `select`: it is raised to the hard one.
#[test]
fn the_soft_limit_on_open_files_is_no_limit() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 60);
    for verb in VERBS {
        let (run, _dir) = on_a_copy(&store, "ulimit -Sn 24 && ulimit -Hn 512", verb);
        run.expect(0);
    }
    for verb in VERBS {
        let (run, dir) = on_a_copy(&store, "ulimit -n 24", verb);
        match run.code() {
            0 => {}
            _ => drop(run.expect(1).says(&["Too many open files"])),
        }
        assert_eq!(newest(&dir.path().join("store")), EpochId(60));
    }
}

/// How many files a verb has open is no matter of how many there are.
#[test]
fn a_long_chain_needs_no_more_files_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    // Made without a writer, which would put segments together.
    let mut chain = Builder::new([3; 16], vec![PageRun { first: Gfn(0), count: 1024 }], 1, serde_json::Value::Null);
    for number in 1..=400 {
        chain.segment();
        let parts = vec![Part::Pages(Compression::default(), vec![(number, text(number))])];
        chain.epoch(&NewEpoch { number, base: number == 1, parts, ..NewEpoch::default() });
    }
    chain.close();
    copy::write(&store, &chain.files);
    for verb in VERBS {
        on_a_copy(&store, "ulimit -n 64", verb).0.expect(0);
    }
    // More than a pipe takes: the command is still there when its first byte is read.
    let mut log = limited("ulimit -Sn 24 && ulimit -Hn 512", args("log --json", &store)).stdout(Stdio::piped()).spawn().unwrap();
    log.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", log.id())).unwrap();
    let files: Vec<_> = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3..5], ["512", "512"], "{limits}");
    drop(log.stdout.take());
    log.wait().unwrap();
}

/// What nobody reads.
fn gone() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// The exit code with this standard output and error.
fn code(args: &[String], stdout: Stdio, stderr: Stdio) -> Option<i32> {
    slackwater(args).stdin(Stdio::null()).stdout(stdout).stderr(stderr).status().unwrap().code()
}

#[test]
fn a_reader_that_is_gone_is_no_failure_and_stops_no_work() {
    let origin = tempfile::tempdir().unwrap();
    let store = store(origin.path(), 12);
    for verb in VERBS {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("store");
        copy::write(&copy, &copy::read(&store));
        assert_eq!(code(&args(verb, &copy), gone(), gone()), Some(0), "{verb}");
        let left = epochs(&Chain::open(&copy).unwrap()).len();
        assert_eq!(left, if verb.starts_with("prune") { 3 } else { 12 }, "{verb} was to do its work");
        assert_eq!(dir.path().join("out").exists(), verb.starts_with("export"), "{verb}");
    }
    for line in
        [&["--help"][..], &["--version"], &["checkpoint", "--help"], &["host", "--json", "--no-checks", "--kvm", "/dev/null"]]
    {
        let line: Vec<_> = line.iter().map(|word| (*word).to_owned()).collect();
        assert!(code(&line, gone(), gone()).is_some_and(|code| code < 2), "{line:?}");
    }
}

/// What was found is what the exit code says, whoever listens.
#[test]
fn an_exit_code_is_the_same_where_nobody_reads() {
    let origin = tempfile::tempdir().unwrap();
    let missing = origin.path().join("missing");
    for verb in VERBS {
        assert_eq!(code(&args(verb, &missing), gone(), gone()), Some(1), "{verb}");
        assert_eq!(code(&args(verb, &missing), full(), full()), Some(1), "{verb}");
    }
    let usage = ["verify".to_owned(), "--nonsense".to_owned()];
    assert_eq!(code(&usage, gone(), gone()), Some(2));
    let store = store(origin.path(), 12);
    // The newest epoch is in the last of them, whatever a compaction has made of the others.
    let files = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
    let segments = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("segment-"));
    let segment = segments.max().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    for verb in ["verify", "verify --json", "repair", "digest"] {
        let read = run(&args(verb, &store).join(" ")).code();
        assert_eq!((read, code(&args(verb, &store), gone(), gone())), (3, Some(3)), "{verb}");
    }
    // Output that can't be written is a failure, as for every program.
    std::fs::create_dir(origin.path().join("sound")).unwrap();
    let sound = self::store(&origin.path().join("sound"), 3);
    for verb in ["log", "verify", "digest", "compact"] {
        assert_eq!(code(&args(verb, &sound), full(), full()), Some(1), "{verb}");
    }
}
