//! A connected socket of the host, and what the guest did that it is still to see.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The end: there will be no more.
    End,
}

/// The socket of one connection.
#[derive(Debug)]
pub(super) struct HostSocket {
    socket: OwnedFd,
    /// Whether bytes flow. Before, the host program waits for the guest's answer.
    is_open: bool,
    to_write: VecDeque<u8>,
    /// Bytes at the front of `to_write` that are not the guest's.
    own_bytes: usize,
    /// The guest will not send more than `to_write`.
    no_more_to_write: bool,
    is_write_over: bool,
    is_read_over: bool,
    /// Once everything is written, the socket is not needed any more.
    closes: bool,
}

impl HostSocket {
    /// That of a host program which waits for the guest.
    pub(super) fn waiting(socket: OwnedFd) -> Self {
        Self {
            socket,
            is_open: false,
            to_write: VecDeque::new(),
            own_bytes: 0,
            no_more_to_write: false,
            is_write_over: false,
            is_read_over: false,
            closes: false,
        }
    }

    /// That of a host program which the guest wanted.
    pub(super) fn open(socket: OwnedFd) -> Self {
        Self { is_open: true, ..Self::waiting(socket) }
    }

    /// The guest accepted: the host program reads which port it has.
    pub(super) fn accept(&mut self, host_port: u32) {
        let answer = format!("OK {host_port}\n");
        self.is_open = true;
        self.own_bytes = answer.len();
        self.to_write.extend(answer.bytes());
    }

    /// Bytes of the guest. Returns how many of them are for nobody.
    pub(super) fn add(&mut self, bytes: Vec<u8>) -> usize {
        if self.is_write_over {
            return bytes.len();
        }
        self.to_write.extend(bytes);
        0
    }

    pub(super) fn send_no_more(&mut self) {
        self.no_more_to_write = true;
    }

    pub(super) fn close(&mut self) {
        self.closes = true;
    }

    /// The guest receives no more: the host program can't send, and is told when it tries.
    pub(super) fn receive_no_more(&mut self) {
        self.is_read_over = true;
        // It fails only where the other side is gone.
        let _ = shutdown(&self.socket, Shutdown::Read);
    }

    /// Whether it can be read from.
    pub(super) fn is_readable(&self) -> bool {
        self.is_open && !self.is_read_over
    }

    /// What to wait for, if bytes are `wanted`. None where there is nothing: a socket whose other
    /// side is gone would otherwise be ready for ever.
    pub(super) fn interest(&self, wanted: bool) -> Option<PollFlags> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, wanted && self.is_readable());
        flags.set(PollFlags::OUT, !self.to_write.is_empty());
        (!flags.is_empty() || !self.is_write_over).then_some(flags)
    }

    /// Whether the host program went away before the guest answered, if `hung_up`.
    pub(super) fn gave_up(&self, hung_up: bool) -> bool {
        hung_up && !self.is_open
    }

    /// Nothing can be written any more. Returns how many of the guest's bytes are for nobody.
    pub(super) fn end_writing(&mut self) -> usize {
        self.is_write_over = true;
        let lost = self.to_write.len() - std::mem::take(&mut self.own_bytes).min(self.to_write.len());
        self.to_write = VecDeque::new();
        lost
    }

    /// Writes what the socket takes. Returns how many of the guest's bytes are out of the way, and
    /// whether the host program receives no more.
    pub(super) fn write(&mut self) -> (usize, bool) {
        let mut delivered = 0;
        let mut is_refused = false;
        while !self.to_write.is_empty() {
            let (front, _) = self.to_write.as_slices();
            match send(&self.socket, front, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => {
                    self.to_write.drain(..sent.min(self.to_write.len()));
                    let own = sent.min(self.own_bytes);
                    self.own_bytes -= own;
                    delivered += sent - own;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    is_refused = true;
                    delivered += self.end_writing();
                }
            }
        }
        if self.no_more_to_write && self.to_write.is_empty() && !self.is_write_over {
            self.is_write_over = true;
            // It fails only where the other side is gone.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
        (delivered, is_refused)
    }

    /// Reads into `bytes`, which is not empty.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> Read {
        match recv(&self.socket, &mut *bytes, RecvFlags::DONTWAIT) {
            Ok((1.., count)) => Read::Bytes(count),
            Err(Errno::AGAIN | Errno::INTR) => Read::Nothing,
            Ok(_) | Err(_) => {
                self.is_read_over = true;
                Read::End
            }
        }
    }

    /// Whether it is not needed any more.
    pub(super) fn is_finished(&self) -> bool {
        self.to_write.is_empty() && (self.closes || self.is_write_over && self.is_read_over)
    }
}

impl AsFd for HostSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    /// A socket, and the program's end, which does not wait for ever.
    fn pair(make: fn(OwnedFd) -> HostSocket) -> (HostSocket, UnixStream) {
        let (own, program) = UnixStream::pair().unwrap();
        program.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (make(own.into()), program)
    }

    #[test]
    fn only_the_guests_bytes_are_counted() {
        let (mut socket, mut program) = pair(HostSocket::waiting);
        assert!(!socket.is_readable());
        socket.accept(7);
        assert!(socket.is_readable());
        assert_eq!(socket.add(b"abc".to_vec()), 0);
        assert_eq!(socket.write(), (3, false));
        let mut got = [0; 8];
        program.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"OK 7\nabc");
    }

    #[test]
    fn a_half_is_closed_behind_its_bytes_and_the_other_stays_open() {
        let (mut socket, mut program) = pair(HostSocket::open);
        socket.send_no_more();
        socket.add(b"last".to_vec());
        assert_eq!(socket.write(), (4, false));
        let mut got = Vec::new();
        program.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"last");
        assert!(!socket.is_finished());
        program.write_all(b"on").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(socket.read(&mut bytes), Read::Bytes(2));
        assert_eq!(socket.read(&mut bytes), Read::Nothing);
        drop(program);
        assert_eq!(socket.read(&mut bytes), Read::End);
        assert!(socket.is_finished());
    }

    #[test]
    fn a_socket_that_closes_first_gives_what_it_has() {
        let (mut socket, mut program) = pair(HostSocket::open);
        let mut given = 0;
        while socket.interest(false) == Some(PollFlags::empty()) {
            given += 1 << 16;
            socket.add(vec![1; 1 << 16]);
            socket.write();
        }
        socket.close();
        assert!(!socket.is_finished());
        let mut got = 0;
        while !socket.is_finished() {
            got += program.read(&mut [0; 1 << 16]).unwrap();
            socket.write();
        }
        drop(socket);
        let mut rest = Vec::new();
        program.read_to_end(&mut rest).unwrap();
        assert_eq!(got + rest.len(), given);
    }

    #[test]
    fn a_socket_whose_program_is_gone_is_not_waited_for() {
        let (mut socket, program) = pair(HostSocket::waiting);
        socket.accept(7);
        drop(program);
        assert_eq!(socket.interest(false), Some(PollFlags::OUT));
        assert_eq!(socket.add(b"abc".to_vec()), 0);
        assert_eq!(socket.write(), (3, true));
        assert_eq!(socket.add(b"de".to_vec()), 2);
        assert_eq!((socket.interest(false), socket.interest(true)), (None, Some(PollFlags::IN)));
        assert_eq!(socket.read(&mut [0; 8]), Read::End);
        assert_eq!(socket.interest(true), None);
    }
}
