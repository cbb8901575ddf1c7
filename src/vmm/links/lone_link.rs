//! A link over a Unix stream socket without a machine: for whoever tests it from outside, fuzzers
//! and the tests that replay what they found.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::link::{HEADER_BYTES, Link};
use super::unix_link;

/// The link. Packets have a header of virtio's in front of the frame.
#[derive(Debug)]
pub struct LoneLink {
    link: Link,
    /// Is never written to.
    _end: Arc<OwnedFd>,
}

impl LoneLink {
    /// Bytes of the header in front of a packet's frame.
    pub const HEADER_BYTES: usize = HEADER_BYTES;

    /// A link, and the socket of the backend at its other end.
    ///
    /// # Errors
    /// The system has no sockets.
    pub fn pair() -> io::Result<(Self, UnixStream)> {
        let (own, backend) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        Ok((Self { link: unix_link::link(own.into(), &end), _end: end }, backend))
    }

    /// Waits for a packet of the backend, and returns its bytes, which are in `buffer`.
    ///
    /// # Errors
    /// The link is gone.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.link.receiver.receive(buffer)
    }

    /// Sends a packet to the backend, and waits until the socket has taken it.
    ///
    /// # Errors
    /// The link is gone.
    pub fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.link.sender.send(packet)
    }

    /// Packets that were dropped: received ones, and sent ones.
    #[must_use]
    pub fn dropped(&self) -> (u64, u64) {
        (self.link.receiver.dropped(), self.link.sender.dropped())
    }
}
