//! Running the `slackwater` command, bounded in time.
#![expect(unsafe_code, reason = "signals a child process")]

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::patience;

/// No command of a test may take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) line: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The exit code; -1 for a process that a signal ended.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// The last line of its output, as JSON.
    pub(crate) fn json(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_else(|| panic!("no output of {self}"));
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    /// That it ended with `code` and did not panic.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert!(!self.stderr.contains("panicked"), "a panic of {self}");
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// That it was refused: nothing on standard output, and a message that holds all of `texts`.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, texts: &[&str]) -> Self {
        let run = self.expect(code);
        assert!(run.stdout.is_empty(), "output of {run}");
        run.says(texts)
    }

    /// That the message holds all of `texts`.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "no `{text}` in the message of {self}");
        }
        self
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, status, stdout, stderr } = self;
        let tail = |text: &str| text.get(text.len().saturating_sub(4000)..).unwrap_or(text).to_owned();
        write!(f, "`{line}` ({status})\n--- stdout\n{}\n--- stderr\n{}", tail(stdout), tail(stderr))
    }
}

/// The command with these arguments.
pub(crate) fn slackwater(args: impl IntoIterator<Item = impl AsRef<str>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slackwater"));
    command.env_remove("SLACKWATER_LOG");
    for arg in args {
        command.arg(arg.as_ref());
    }
    command
}

/// Splits a line at its spaces and runs it to its end.
pub(crate) fn run(line: &str) -> Run {
    finish(&mut slackwater(line.split_whitespace()))
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Run {
    Running::start(command).wait()
}

/// A command that runs.
#[derive(Debug)]
pub(crate) struct Running {
    line: String,
    child: Child,
    output: Option<[Reader; 2]>,
    watchdog: Option<(mpsc::Sender<()>, JoinHandle<bool>)>,
    limit: Duration,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_within(command, LIMIT)
    }

    /// One that may take so long.
    pub(crate) fn start_within(command: &mut Command, limit: Duration) -> Self {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let line = format!("slackwater {}", args.join(" "));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let output = [reader(child.stdout.take().unwrap()), reader(child.stderr.take().unwrap())];
        let pid = child.id();
        let (ended, end) = mpsc::channel();
        let watchdog = thread::spawn(move || {
            let late = end.recv_timeout(patience(limit)) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                send(pid, libc::SIGKILL);
            }
            late
        });
        Self { line, child, output: Some(output), watchdog: Some((ended, watchdog)), limit }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has said `text`, on standard error.
    #[track_caller]
    pub(crate) fn wait_for_message(&mut self, text: &str) {
        self.wait_for_messages(text, 1);
    }

    /// How often it has said `text` by now.
    pub(crate) fn messages(&self, text: &str) -> usize {
        let [_, messages] = self.output.as_ref().unwrap();
        messages.so_far().matches(text).count()
    }

    /// The last line of what it has said with `text` in it.
    pub(crate) fn last_message(&self, text: &str) -> String {
        let [_, messages] = self.output.as_ref().unwrap();
        messages.so_far().lines().rfind(|line| line.contains(text)).unwrap_or_default().to_owned()
    }

    /// Waits until it has said `text` so often, on standard error.
    #[track_caller]
    pub(crate) fn wait_for_messages(&mut self, text: &str, times: usize) {
        let start = Instant::now();
        loop {
            let ended = self.has_ended();
            let [_, messages] = self.output.as_ref().unwrap();
            let said = messages.so_far();
            if said.matches(text).count() >= times {
                return;
            }
            assert!(!ended, "ended without `{text}`: {said}");
            assert!(start.elapsed() < patience(LIMIT), "no `{text}` within {LIMIT:?}: {said}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        send(self.id(), signal);
    }

    pub(crate) fn wait(mut self) -> Run {
        let status = self.child.wait().unwrap();
        let (ended, watchdog) = self.watchdog.take().unwrap();
        drop(ended);
        let late = watchdog.join().unwrap();
        let [stdout, stderr] = self.output.take().unwrap().map(Reader::finish);
        let run = Run { line: self.line.clone(), status, stdout, stderr };
        assert!(!late, "still running after {:?}: {run}", self.limit);
        run
    }

    /// Ends it by SIGKILL.
    pub(crate) fn kill(mut self) -> Run {
        let _ = self.child.kill();
        let run = self.wait();
        assert!(matches!(run.status.signal(), Some(libc::SIGKILL)), "ended before it was killed: {run}");
        run
    }
}

impl Running {
    /// What it has said, and what its threads are at.
    fn tell(&self) {
        let [stdout, stderr] = self.output.as_ref().unwrap();
        println!("{}\n--- stdout\n{}\n--- stderr\n{}", self.line, stdout.so_far(), stderr.so_far());
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        for thread in threads.map(|thread| thread.path()) {
            let of = |name: &str| std::fs::read_to_string(thread.join(name)).unwrap_or_default();
            println!(
                "--- {}, {}, in {}, {}",
                of("comm").trim(),
                of("syscall").trim(),
                of("wchan"),
                of("stack").replace('\n', " ")
            );
        }
    }
}

impl Drop for Running {
    /// A test that failed in between leaves nothing behind.
    fn drop(&mut self) {
        if self.watchdog.is_some() {
            if thread::panicking() {
                self.tell();
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Reads a stream of the command's as it comes.
#[derive(Debug)]
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn finish(self) -> String {
        self.thread.join().unwrap();
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }
}

fn reader(mut stream: impl Read + Send + 'static) -> Reader {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let into = bytes.clone();
    let thread = thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut part) {
            into.lock().unwrap().extend_from_slice(&part[..count]);
        }
    });
    Reader { bytes, thread }
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn send(pid: u32, signal: i32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    // SAFETY: takes numbers. The child has not been waited for, so the number is still its own.
    unsafe { libc::kill(pid, signal) };
}

/// A number in a JSON object, by its path.
#[track_caller]
pub(crate) fn number(value: &Value, path: &str) -> u64 {
    let field = value.pointer(path).unwrap_or_else(|| panic!("no {path} in {value}"));
    field.as_u64().unwrap_or_else(|| panic!("{path} of {value} is no number"))
}

/// Whether the guest of a report found nothing wrong.
#[track_caller]
pub(crate) fn guest_is_ok(value: &Value) -> bool {
    value.pointer("/guest/ok").and_then(Value::as_bool).unwrap_or_else(|| panic!("no guest.ok in {value}"))
}

/// A new directory that every user may enter and write to.
pub(crate) fn open_to_all() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

/// The command for a user without privileges: as `nobody` where this test is root. `dir` is where
/// such a user can run it from.
pub(crate) fn unprivileged(dir: &Path, args: impl IntoIterator<Item = impl AsRef<str>>) -> Command {
    const NOBODY: u32 = 65534;
    // SAFETY: takes nothing and can't fail.
    let root = unsafe { libc::geteuid() } == 0;
    let mut command = slackwater(args);
    if root {
        // The build's own directory may be closed to others.
        let program = dir.join("slackwater");
        if !program.exists() {
            // By another process: a descriptor for writing that a child of another test inherits
            // would make the file busy.
            let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_slackwater")).arg(&program).status();
            assert!(copied.unwrap().success());
        }
        let mut copy = Command::new(&program);
        copy.args(command.get_args()).uid(NOBODY).gid(NOBODY).current_dir("/");
        command = copy;
    }
    command
}
