//! A register that a program keeps: anything that can compare and swap.
//!
//! # Protocol
//! The program is started anew for each call, with one or two arguments: what to do, and the name
//! of the machine where the operator gave one.
//!
//! | arguments | standard input | standard output |
//! | --- | --- | --- |
//! | `read [NAME]` | nothing | the register's line, or nothing |
//! | `swap [NAME]` | two lines: the expected register, the new one | the same, as it is then |
//!
//! Where nobody has written the register, nothing is printed, and the expected line is empty.
//!
//! A register is one line of JSON. The program keeps it to the byte and need not understand it:
//! `swap` writes the second line where the first one is what it keeps, and else writes nothing.
//! Nothing may come in between, from whichever host. What is printed must stay through crashes.
//!
//! | exit status | what it means |
//! | --- | --- |
//! | 0 | it was answered, by what was printed |
//! | 3 | nothing was done and nothing will be |
//! | any other, a signal | nobody knows: the same call may come again |
//!
//! What the program says on standard error becomes part of the error. When its time is up, it is
//! killed, with everything that it started in its group of processes; then nobody knows either. It
//! is also killed when it prints more than a register can have.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::answer::{REGISTER_BYTES_MAX, check_step, register, settle};
use super::fault::{WitnessFault, excerpt};
use super::{Swapped, Witness, WitnessError};
use crate::replica::register::Register;

/// The exit status that says that nothing was done and nothing will be.
const NOTHING_DONE: i32 = 3;

/// How much of standard error is kept; the rest is read and dropped.
const STDERR_BYTES_MAX: usize = 4096;

/// A register that a program keeps.
#[derive(Debug)]
pub struct ExecWitness {
    program: PathBuf,
    name: Option<String>,
    limit: Duration,
}

/// What a program did.
#[derive(Debug)]
struct Outcome {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl ExecWitness {
    /// A register that `program` keeps for the machine `name`. Nothing is started yet. Every call
    /// ends within `limit`.
    #[must_use]
    pub fn new(program: &Path, name: Option<&str>, limit: Duration) -> Self {
        Self { program: program.to_owned(), name: name.map(str::to_owned), limit }
    }

    fn place(&self) -> String {
        self.program.display().to_string()
    }

    /// The register that the program printed.
    fn call(&self, action: &str, input: &str) -> Result<Option<Register>, WitnessError> {
        let outcome = self.run(action, input)?;
        let ended = match (outcome.status.code(), outcome.status.signal()) {
            (Some(0), _) => {
                let line = outcome.stdout.trim_ascii_end();
                let found = (!line.is_empty()).then(|| register(&self.place(), line)).transpose();
                return found.map_err(|fault| if action == "read" { fault.refused() } else { fault.unknown() });
            }
            (Some(status), _) => format!("{action}: exit status {status}"),
            (None, signal) => format!("{action}: ended by signal {}", signal.unwrap_or_default()),
        };
        let fault = WitnessFault::Program { program: self.place(), ended, stderr: excerpt(&outcome.stderr) };
        Err(if outcome.status.code() == Some(NOTHING_DONE) { fault.refused() } else { fault.unknown() })
    }

    fn run(&self, action: &str, input: &str) -> Result<Outcome, WitnessError> {
        let deadline = Instant::now() + self.limit;
        let mut command = Command::new(&self.program);
        command.arg(action).args(&self.name).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| WitnessFault::Start { what: self.place(), source }.refused())?;
        let mut program = Program { child: Some(child) };
        self.attend(&mut program, input, deadline).map_err(WitnessFault::unknown)
    }

    /// Gives the program its input and takes its output, until it has ended.
    fn attend(&self, program: &mut Program, input: &str, deadline: Instant) -> Result<Outcome, WitnessFault> {
        let failed = |source| WitnessFault::Start { what: self.place(), source };
        let (end, stdin, mut out, mut err) = program.opened().map_err(failed)?;
        if let Some(stdin) = stdin {
            // Two lines are less than a pipe takes without anybody who reads. Who does not want
            // them is free not to read them.
            let _ = File::from(stdin).write_all(input.as_bytes());
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = wait(&end, &out, &err, left).map_err(failed)?;
            out.take(REGISTER_BYTES_MAX + 1).map_err(failed)?;
            err.take(STDERR_BYTES_MAX).map_err(failed)?;
            if out.bytes.len() > REGISTER_BYTES_MAX {
                let ended = format!("prints more than {REGISTER_BYTES_MAX} bytes");
                return Err(WitnessFault::Program { program: self.place(), ended, stderr: excerpt(&err.bytes) });
            }
            // What it wrote before it ended was there to be read. Whoever else holds the pipe open
            // is not waited for.
            if ended {
                let status = program.wait().map_err(failed)?;
                return Ok(Outcome { status, stdout: out.bytes, stderr: err.bytes });
            }
            if left.is_zero() {
                let ended = format!("gave no answer within {:?}", self.limit);
                return Err(WitnessFault::Program { program: self.place(), ended, stderr: excerpt(&err.bytes) });
            }
        }
    }
}

impl Witness for ExecWitness {
    fn read(&mut self) -> Result<Option<Register>, WitnessError> {
        self.call("read", "")
    }

    fn swap(&mut self, expected: Option<&Register>, new: &Register) -> Result<Swapped, WitnessError> {
        check_step(expected, new)?;
        let before = expected.map(Register::to_json).unwrap_or_default();
        let found = self.call("swap", &format!("{before}\n{}\n", new.to_json()))?;
        settle(&self.place(), expected, new, found)
    }
}

/// A program that runs. Where nobody has waited for it when this is dropped, it is killed with its
/// group.
struct Program {
    /// None once it was waited for.
    child: Option<Child>,
}

impl Program {
    /// A descriptor that can be read when the program has ended, and its pipes.
    fn opened(&mut self) -> io::Result<(OwnedFd, Option<OwnedFd>, Output, Output)> {
        let child = self.child.as_mut().ok_or(Errno::CHILD)?;
        let end = pidfd_open(pid_of(child).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let out = Output::new(child.stdout.take().map(OwnedFd::from))?;
        Ok((end, stdin, out, Output::new(child.stderr.take().map(OwnedFd::from))?))
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.take().ok_or(Errno::CHILD)?.wait()
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

impl Drop for Program {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Nobody has waited for it, so its number is still its own, and that of its group.
        if let Some(pid) = pid_of(&child) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = child.kill();
        if matches!(child.try_wait(), Ok(None)) {
            // One that hangs in the kernel takes its time to die, and the caller has none.
            let _ = Builder::new().name("slackwater-witness".to_owned()).spawn(move || child.wait());
        }
    }
}

/// What comes out of a pipe.
struct Output {
    /// None at its end.
    pipe: Option<File>,
    bytes: Vec<u8>,
}

impl Output {
    fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(Self { pipe: pipe.map(File::from), bytes: Vec::new() })
    }

    /// Takes what is there, keeps at most so many bytes of it in all, and stops taking for now when
    /// it is more.
    fn take(&mut self, bytes_max: usize) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut taken = 0;
        while let Some(pipe) = self.pipe.as_mut().filter(|_| taken <= bytes_max) {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(read) => {
                    taken += read;
                    let room = bytes_max.saturating_sub(self.bytes.len());
                    self.bytes.extend(buffer.iter().take(read.min(room)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Waits until something was written or the program has ended; whether it has.
fn wait(end: &OwnedFd, out: &Output, err: &Output, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
    let mut fds = vec![PollFd::new(end, PollFlags::IN)];
    let pipes = [&out.pipe, &err.pipe].into_iter().flatten();
    fds.extend(pipes.map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
    match poll(&mut fds, Some(&limit)) {
        Ok(_) => Ok(fds.first().is_some_and(|end| !end.revents().is_empty())),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
