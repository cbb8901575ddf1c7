//! A stock Linux kernel under checkpoints, to a shell on its console: what the tests with such a
//! guest have in common. They run only where KVM runs kernels and somebody gives one: in the nested
//! lane, and natively by `scripts/test.sh`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use slackwater::kvm::host::KVM_PATH;
use slackwater::kvm::probe::runs_kernels;
use slackwater::store::Chain;

use crate::native::linux_report::report;
use crate::support::command::{finish, number, run, send, slackwater};
use crate::support::{kvm_or_skip, skip};

/// The folder with a guest's `vmlinuz`, the same kernel as `vmlinux`, and `initrd`.
const FILES: &str = "SLACKWATER_LINUX";
/// A bound for what never comes. Even under emulation on a busy machine nothing that a test waits
/// for takes a fifth of it.
const LIMIT: Duration = Duration::from_secs(600);

pub(super) fn files_or_skip(test: &str) -> Option<PathBuf> {
    if !kvm_or_skip(test) {
        return None;
    }
    if let Err(refused) = runs_kernels(Path::new(KVM_PATH)) {
        // For whoever reads the output: only the nested lane runs this here.
        skip(test, &format!("this KVM runs no kernels: {refused}"));
        return None;
    }
    let files = std::env::var_os(FILES).map(PathBuf::from);
    if files.is_none() {
        // scripts/test.sh gives one wherever it can run.
        assert!(std::env::var_os("SLACKWATER_REQUIRE_KVM").is_none(), "{test}: this KVM runs kernels, and {FILES} gives none");
        skip(test, &format!("no Linux guest is given by {FILES}"));
    }
    files
}

/// The command with a guest on its standard input and output.
pub(super) struct Guest {
    child: Child,
    input: ChildStdin,
    console: PathBuf,
    messages: PathBuf,
    store: PathBuf,
}

impl Guest {
    pub(super) fn start(mut command: Command, dir: &Path, name: &str) -> Self {
        let store = command.get_args().skip_while(|argument| *argument != "--store").nth(1).map(PathBuf::from).unwrap();
        let (console, messages) = (dir.join(format!("{name}.console")), dir.join(format!("{name}.messages")));
        command.stdin(Stdio::piped()).stdout(File::create(&console).unwrap()).stderr(File::create(&messages).unwrap());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        Self { child, input, console, messages, store }
    }

    pub(super) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap()).into_owned()
    }

    /// What the command said besides.
    pub(super) fn messages(&self) -> String {
        fs::read_to_string(&self.messages).unwrap()
    }

    /// Waits until the console has what `find` looks for.
    pub(super) fn wait_for<T>(&mut self, what: &str, mut find: impl FnMut(&str) -> Option<T>) -> T {
        // The nested lane takes a machine that says nothing for one that hangs.
        const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
        let begun = Instant::now();
        let mut said = begun;
        loop {
            // Asked first: what is on the console when it has ended is all that will be.
            let ended = self.child.try_wait().unwrap();
            let console = self.console();
            if let Some(found) = find(&console) {
                let _ = writeln!(std::io::stderr(), "native::linux: {what} after {:?}", begun.elapsed());
                return found;
            }
            let tail = || console.get(console.len().saturating_sub(3000)..).unwrap_or(&console).to_owned();
            assert!(ended.is_none(), "ended ({ended:?}) before {what}: {}\n{}", tail(), self.messages());
            if begun.elapsed() >= LIMIT {
                let known = report(self.child.id(), &self.store);
                panic!("gave up: no {what} within {LIMIT:?}: {}\n{}\n{known}", tail(), self.messages());
            }
            if said.elapsed() > SIGN_OF_LIFE {
                said = Instant::now();
                let _ = writeln!(std::io::stderr(), "native::linux: waiting for {what}: {:?}", tail().lines().last());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until it has said `text` besides.
    pub(super) fn wait_for_message(&mut self, text: &str) {
        let messages = self.messages.clone();
        self.wait_for(text, |_| fs::read_to_string(&messages).unwrap().contains(text).then_some(()));
    }

    /// Waits until there is an epoch that was cut after all that the console has said by now, and
    /// returns its number. Whatever happens to the process then, a guest that is restored from
    /// there has said it.
    pub(super) fn wait_for_epoch(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let store = self.store.clone();
        self.wait_for("an epoch with all that", |_| {
            let chain = Chain::open(&store).ok()?;
            let newest = chain.epoch(chain.newest()).ok()?;
            (Duration::from_nanos(newest.commit.time_unix_ns) > now).then_some(newest.commit.epoch.0)
        })
    }

    pub(super) fn enter(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(super) fn signal(&self, signal: i32) {
        send(self.child.id(), signal);
    }

    /// Whether each of its threads has been stopped by a signal.
    pub(super) fn is_frozen(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let mut states = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default());
        // Behind the name.
        states.all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    }

    /// Ends it by SIGKILL, and returns all that was on its console.
    pub(super) fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.console()
    }

    /// Waits for its own end, and returns what the command says last.
    pub(super) fn end(mut self) -> serde_json::Value {
        // The guest may have left its last line open.
        let find = |console: &str| console.match_indices("{\"").find_map(|(at, _)| serde_json::from_str(&console[at..]).ok());
        let report = self.wait_for("the report", find);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.messages());
        report
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The numbers that the guest counted, in the order of the console. A line that was cut off counts
/// for nothing.
pub(super) fn counted(console: &str) -> Vec<u64> {
    console.lines().filter_map(|line| line.trim_end().strip_prefix("count ")?.strip_suffix('.')?.parse().ok()).collect()
}

/// Once the shell waits for a line: what comes before may be dropped as the shell sets its terminal
/// up. It may ask the terminal where the cursor is.
pub(super) fn at_prompt(console: &str) -> Option<()> {
    console.trim_end_matches("\u{1b}[6n").ends_with("# ").then_some(())
}

pub(super) fn last_from(numbers: u64) -> impl Fn(&str) -> Option<u64> {
    move |console| counted(console).last().copied().filter(|last| *last >= numbers)
}

/// No device does DMA: a large guest's bounce buffers would only be 64 MiB of zeros to write.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 swiotlb=noforce";

/// `checkpoint` of a guest whose kernel is the file `kernel` in the folder `files`.
pub(super) fn boot(files: &Path, store: &Path, kernel: &str, options: &str) -> Command {
    boot_with(files, store, kernel, "", options)
}

/// The same with more `words` on the kernel's command line.
pub(super) fn boot_with(files: &Path, store: &Path, kernel: &str, words: &str, options: &str) -> Command {
    let line = format!("--cmdline={COMMAND_LINE} {words}");
    let mut command = slackwater(["checkpoint", &line, "--json"].into_iter().chain(options.split_whitespace()));
    command.arg("--kernel").arg(files.join(kernel)).arg("--initrd").arg(files.join("initrd")).arg("--store").arg(store);
    command
}

/// `restore` with `options`.
pub(super) fn restore(store: &Path, options: &str) -> Command {
    let mut command = slackwater(["restore", "--json"].into_iter().chain(options.split_whitespace()));
    command.arg("--store").arg(store);
    command
}

/// Epochs long enough that a boot under emulation takes hardly longer with them than without. An
/// audit reads all memory.
pub(super) const OFTEN: &str = "--budget 16384 --interval 1s";

/// The number of the newest epoch.
pub(super) fn newest(store: &Path) -> u64 {
    Chain::open(store).unwrap().newest().0
}

/// Every byte, every epoch, every audit of all branches, at least one.
pub(super) fn all_is_sound(store: &Path) {
    let report = run(&format!("verify --store {} --json", store.display())).expect(0).json();
    assert_eq!((number(&report, "/audits_failed"), number(&report, "/audits_unchecked")), (0, 0), "{report}");
    assert!(number(&report, "/audits_checked") > 0, "{report}");
    assert_eq!(report["damage"].as_array().map(Vec::len), Some(0), "{report}");
}

/// A file that looks like a kernel is all it takes to be told.
#[test]
fn a_kvm_that_runs_no_kernels_says_so() {
    const TEST: &str = "native::linux::a_kvm_that_runs_no_kernels_says_so";
    if !kvm_or_skip(TEST) {
        return;
    }
    let host = run("host --json").expect(0).json();
    assert_eq!(host["runs_kernels"]["ok"], host["flavour"] != "pvm", "{host}");
    if host["runs_kernels"]["ok"] == true {
        // What it does instead is in the other tests with a Linux guest.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (kernel, store) = (dir.path().join("vmlinuz"), dir.path().join("store"));
    fs::write(&kernel, crate::bad_input::linux::kernel()).unwrap();
    let mut command = slackwater(["checkpoint", "--memory=64M"]);
    command.arg("--kernel").arg(&kernel).arg("--store").arg(&store);
    finish(&mut command).refused(1, &["KVM can't run a stock kernel", "at CPL 0", "at CPL 3", "hint: ", "VT-x", "SVM"]);
    assert!(!store.exists());
}
