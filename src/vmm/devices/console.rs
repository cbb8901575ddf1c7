//! Standard input as the serial port's: on a terminal every key goes to the guest.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

use super::set::Devices;
use crate::vmm::stop::Stop;

/// Ctrl-A: with an `x` behind it the run ends, with another Ctrl-A the guest gets one.
const ESCAPE: u8 = 1;

/// Standard input goes to the guest until this is dropped.
#[derive(Debug)]
pub struct Console {
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    _terminal: Option<RawTerminal>,
}

impl Console {
    /// Begins to give standard input to the serial port of `devices`. Where it is a terminal, every
    /// key goes to the guest, and Ctrl-A x asks `stop`.
    ///
    /// # Errors
    /// Of the terminal, or no thread can be started.
    pub fn attach(devices: Arc<Devices>, stop: Stop) -> io::Result<Self> {
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let terminal = if io::stdin().is_terminal() { Some(RawTerminal::new()?) } else { None };
        let keys = terminal.is_some().then_some(stop);
        let ended = end.clone();
        let thread = Builder::new().name("slackwater-console".to_owned()).spawn(move || {
            if let Err(error) = forward(&devices, &ended, keys.as_ref()) {
                tracing::warn!(%error, "no more input for the guest's console");
            }
        })?;
        Ok(Self { end, thread: Some(thread), _terminal: terminal })
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It fails only where the counter is full: then the thread is awake.
        let _ = rustix::io::write(&*self.end, &1_u64.to_le_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until the end of the input, or of the console.
fn forward(devices: &Devices, end: &OwnedFd, keys: Option<&Stop>) -> io::Result<()> {
    let stdin = io::stdin();
    let mut escape = Escape::default();
    let mut bytes = [0; 256];
    loop {
        let mut ready = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let [_, ended] = &ready;
        if !ended.revents().is_empty() {
            return Ok(());
        }
        let count = match rustix::io::read(stdin.as_fd(), &mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(error.into()),
        };
        let read = bytes.get(..count).unwrap_or_default();
        let input = match keys {
            Some(stop) => {
                let (input, is_end) = escape.filter(read);
                if is_end {
                    stop.ask();
                }
                input
            }
            None => read.to_vec(),
        };
        let mut left = &*input;
        while !left.is_empty() {
            let taken = devices.receive(left)?;
            left = left.get(taken..).unwrap_or_default();
            let mut ended = [PollFd::new(end, PollFlags::IN)];
            if matches!(poll(&mut ended, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..)) {
                return Ok(());
            }
        }
    }
}

/// Finds the keys that are not for the guest.
#[derive(Debug, Default)]
struct Escape {
    begun: bool,
}

impl Escape {
    /// What is for the guest, and whether the run is to end.
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut input = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match (std::mem::take(&mut self.begun), *byte) {
                (false, ESCAPE) => self.begun = true,
                (true, b'x') => return (input, true),
                (true, ESCAPE) | (false, _) => input.push(*byte),
                (true, other) => input.extend([ESCAPE, other]),
            }
        }
        (input, false)
    }
}

/// A terminal that gives every key as it is pressed and shows none, until this is dropped.
#[derive(Debug)]
struct RawTerminal(Termios);

impl RawTerminal {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // Lines that the command itself writes still begin at the left.
        raw.output_modes |= OutputModes::OPOST;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_end_the_run_and_all_others_are_the_guests() {
        let filter = |parts: &[&[u8]]| {
            let mut escape = Escape::default();
            let mut input = Vec::new();
            for part in parts {
                let (more, is_end) = escape.filter(part);
                input.extend(more);
                if is_end {
                    return (input, true);
                }
            }
            (input, false)
        };
        assert_eq!(filter(&[b"ls\r\x03"]), (b"ls\r\x03".to_vec(), false));
        assert_eq!(filter(&[b"ls\x01xmore"]), (b"ls".to_vec(), true));
        assert_eq!(filter(&[b"a\x01", b"x"]), (b"a".to_vec(), true));
        assert_eq!(filter(&[b"\x01\x01x\x01c"]), (b"\x01x\x01c".to_vec(), false));
    }
}
