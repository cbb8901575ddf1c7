//! Processes of this program that a verb starts. None of them outlives the verb.
#![expect(unsafe_code, reason = "has a child end with this process")]

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

use super::error::CliError;
use crate::lock::lock;

const POLL: Duration = Duration::from_millis(2);
/// The most bytes that are kept of what a process writes to one stream.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A process of this program.
pub(super) struct OwnProcess {
    verb: &'static str,
    child: Child,
    output: Written,
    messages: Written,
}

impl OwnProcess {
    /// Starts a verb. `options` adds what it is given.
    ///
    /// The child gets SIGKILL when the thread that calls this ends, so that is to be the main one.
    pub(super) fn start(verb: &'static str, options: impl FnOnce(&mut Command)) -> Result<Self, CliError> {
        let system = |step| move |source| CliError::System { step, source };
        let program = std::env::current_exe().map_err(system("finding this program"))?;
        let mut command = Command::new(program);
        command.arg(verb);
        options(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A Ctrl-C is for this process, which ends the child.
        command.process_group(0);
        let parent = getpid();
        let ends_with_parent = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have died before.
            if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
        };
        // SAFETY: between fork and exec it makes two system calls, and touches neither memory that
        // others use nor a lock.
        unsafe { command.pre_exec(ends_with_parent) };
        let mut child = command.spawn().map_err(system("starting a process of this program"))?;
        let (output, messages) = (Written::by(child.stdout.take()), Written::by(child.stderr.take()));
        Ok(Self { verb, child, output, messages })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on standard error by now.
    pub(super) fn messages(&self) -> String {
        self.messages.so_far()
    }

    /// How it has ended by itself, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, CliError> {
        self.child.try_wait().map_err(|source| CliError::System { step: "waiting for a process of this program", source })
    }

    /// An error if it has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), CliError> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(self.fault(format_args!("ended by itself, with {status}"))),
        }
    }

    /// Ends it by SIGKILL.
    pub(super) fn kill(mut self) -> Result<(), CliError> {
        let system = |step| move |source| CliError::System { step, source };
        self.child.kill().map_err(system("sending SIGKILL"))?;
        self.child.wait().map_err(system("waiting for a process of this program"))?;
        Ok(())
    }

    /// Ends it in order, within `limit`, and returns what it has written to standard output.
    pub(super) fn end(mut self, limit: Duration) -> Result<String, CliError> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // It was not waited for, so the number is still its own.
        if let (None, Some(pid)) = (self.ended()?, pid) {
            kill_process(pid, Signal::TERM)
                .map_err(|error| CliError::System { step: "sending SIGTERM", source: error.into() })?;
        }
        let deadline = Instant::now() + limit;
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(self.output.whole()),
                Some(status) => return Err(self.fault(format_args!("ended with {status}"))),
                None if Instant::now() > deadline => {
                    return Err(self.fault(format_args!("did not end within {} s of SIGTERM", limit.as_secs())));
                }
                None => std::thread::sleep(POLL),
            }
        }
    }

    fn fault(&mut self, what: std::fmt::Arguments<'_>) -> CliError {
        let _ = self.child.kill();
        let said = self.messages.whole();
        let said: String = said.lines().map(|line| format!("\n  {line}")).collect();
        CliError::Check { what: format!("`slackwater {}` {what}{said}", self.verb) }
    }
}

impl Drop for OwnProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process writes to a stream, as it comes.
struct Written {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Written {
    fn by(stream: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = bytes.clone();
        let thread = stream.map(|stream| std::thread::spawn(move || keep(stream, &into)));
        Self { bytes, thread }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&lock(&self.bytes)).into_owned()
    }

    /// All of it, for which the process has to end.
    fn whole(&mut self) -> String {
        // A thread that panicked has kept what came before.
        let _ = self.thread.take().map(JoinHandle::join);
        self.so_far()
    }
}

/// Reads to the end. What is too much is read, and not kept.
fn keep(mut stream: impl Read, into: &Mutex<Vec<u8>>) {
    let mut part = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut part) {
        let mut kept = lock(into);
        let room = KEPT_BYTES_MAX.saturating_sub(kept.len());
        kept.extend(part.iter().take(count.min(room)));
    }
}
