//! A connection to a Unix stream socket, with a length before each frame. Frames have no header:
//! nothing is left to the other end.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, sendmsg, socket_with,
};

use super::frame_stream::{FrameDecoder, prefix};
use super::link::{HEADER_BYTES, Link, LinkError, LinkReceiver, LinkSender, Offloads, check_buffer, put_buffers};
use super::ready;

/// The most bytes of a socket's path. A zero stands behind it.
const PATH_BYTES_MAX: usize = 107;

/// Connects to the socket at `path`. Does not wait for it to be accepted.
pub(super) fn open(path: &Path, end: &Arc<OwnedFd>) -> Result<Link, LinkError> {
    let owned = || path.to_owned();
    let failed = |source: Errno| LinkError::Socket { path: owned(), source: source.into() };
    let found = path.as_os_str().as_bytes().len();
    if found > PATH_BYTES_MAX {
        return Err(LinkError::SocketPath { path: owned(), found, most: PATH_BYTES_MAX });
    }
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    connect(&socket, &address).map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => LinkError::NoSocket { path: owned() },
        Errno::CONNREFUSED => LinkError::NobodyListens { path: owned() },
        Errno::AGAIN => LinkError::NobodyAccepts { path: owned() },
        Errno::ACCESS | Errno::PERM => LinkError::SocketPermission { path: owned() },
        error => failed(error),
    })?;
    Ok(link(socket, end))
}

/// The link over a connected socket that does not wait.
pub(super) fn link(socket: OwnedFd, end: &Arc<OwnedFd>) -> Link {
    let socket = Arc::new(socket);
    let sender = UnixSender { socket: socket.clone(), end: end.clone(), is_ended: false, dropped: 0 };
    let receiver = UnixReceiver { socket, end: end.clone(), decoder: FrameDecoder::new(), dropped: 0 };
    Link { sender: Box::new(sender), receiver: Box::new(receiver), mtu: None, has_offloads: false }
}

#[derive(Debug)]
struct UnixSender {
    socket: Arc<OwnedFd>,
    end: Arc<OwnedFd>,
    /// A part of a frame may be gone: nothing may come behind it.
    is_ended: bool,
    dropped: u64,
}

impl LinkSender for UnixSender {
    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let mut frame = packet.get(HEADER_BYTES..).unwrap_or_default();
        let Some(prefix) = prefix(frame.len()) else {
            self.dropped += 1;
            return Ok(());
        };
        let mut prefix = &prefix[..];
        while !(self.is_ended || prefix.is_empty() && frame.is_empty()) {
            let parts = [IoSlice::new(prefix), IoSlice::new(frame)];
            match sendmsg(&*self.socket, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(count) => {
                    let of_prefix = count.min(prefix.len());
                    prefix = prefix.get(of_prefix..).unwrap_or_default();
                    frame = frame.get(count - of_prefix..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.is_ended = !ready::wait(&self.socket, PollFlags::OUT, &self.end)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        // What comes leaves nothing to the guest.
        Ok(())
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[derive(Debug)]
struct UnixReceiver {
    socket: Arc<OwnedFd>,
    end: Arc<OwnedFd>,
    decoder: FrameDecoder,
    dropped: u64,
}

impl LinkReceiver for UnixReceiver {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        check_buffer(buffer)?;
        loop {
            let next = self.decoder.next_frame().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if let Some(frame) = next {
                let bytes = HEADER_BYTES + frame.len();
                let Some((header, body)) = buffer.get_mut(..bytes).and_then(|packet| packet.split_at_mut_checked(HEADER_BYTES))
                else {
                    self.dropped += 1;
                    continue;
                };
                header.fill(0);
                put_buffers(header);
                body.copy_from_slice(frame);
                return Ok(Some(bytes));
            }
            if !ready::wait(&self.socket, PollFlags::IN, &self.end)? {
                return Ok(None);
            }
            match rustix::io::read(&*self.socket, self.decoder.room()) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed the connection")),
                Ok(count) => self.decoder.came(count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;
    use std::thread;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::*;

    fn eventfd_of_end() -> Arc<OwnedFd> {
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap())
    }

    fn ask(end: &OwnedFd) {
        rustix::io::write(end, &1_u64.to_le_bytes()).unwrap();
    }

    fn connected() -> (Link, UnixStream, Arc<OwnedFd>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let end = eventfd_of_end();
        let link = open(&path, &end).unwrap();
        (link, listener.accept().unwrap().0, end)
    }

    fn packet(frame_bytes: usize, salt: u8) -> Vec<u8> {
        let frame = (0..frame_bytes).map(|at| u8::try_from(at % 251).unwrap() ^ salt);
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0].into_iter().chain(frame).collect()
    }

    fn framed(packet: &[u8]) -> Vec<u8> {
        let frame = &packet[HEADER_BYTES..];
        [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
    }

    #[test]
    fn frames_go_both_ways() {
        let (mut link, mut peer, _end) = connected();
        assert_eq!((link.mtu, link.has_offloads), (None, false));
        link.sender.set_offloads(Offloads { checksum: true, ..Offloads::default() }).unwrap();
        let packets = [packet(14, 1), packet(1514, 2), packet(65_550, 3)];
        for sent in &packets {
            thread::scope(|scope| {
                scope.spawn(|| link.sender.send(sent).unwrap());
                let mut came = vec![0; sent.len() - HEADER_BYTES + 4];
                peer.read_exact(&mut came).unwrap();
                assert!(came == framed(sent));
            });
        }
        let mut buffer = vec![0xff; 70_000];
        for sent in &packets {
            thread::scope(|scope| {
                scope.spawn(|| peer.write_all(&framed(sent)).unwrap());
                assert_eq!(link.receiver.receive(&mut buffer).unwrap(), Some(sent.len()));
                assert!(buffer[..sent.len()] == sent[..]);
            });
        }
    }

    /// A sender whose socket takes only a few kilobytes at once.
    fn narrow() -> (UnixSender, UnixStream, Arc<OwnedFd>) {
        let (socket, peer) = UnixStream::pair().unwrap();
        set_socket_send_buffer_size(&socket, 0).unwrap();
        socket.set_nonblocking(true).unwrap();
        let end = eventfd_of_end();
        (UnixSender { socket: Arc::new(socket.into()), end: end.clone(), is_ended: false, dropped: 0 }, peer, end)
    }

    #[test]
    fn a_frame_that_goes_in_parts_is_finished() {
        let (mut sender, mut peer, _end) = narrow();
        let sent: Vec<_> = (0..20).map(|salt| packet(60_000, salt)).collect();
        thread::scope(|scope| {
            scope.spawn(|| sent.iter().for_each(|packet| sender.send(packet).unwrap()));
            for packet in &sent {
                let mut came = vec![0; 60_004];
                peer.read_exact(&mut came).unwrap();
                assert!(came == framed(packet));
            }
        });
    }

    #[test]
    fn nothing_comes_behind_a_frame_that_the_end_has_cut() {
        let (mut sender, mut peer, end) = narrow();
        ask(&end);
        sender.send(&packet(60_000, 1)).unwrap();
        let mut came = vec![0; 60_004];
        let count = peer.read(&mut came).unwrap();
        assert!((1..60_004).contains(&count));
        // There is room again.
        peer.set_nonblocking(true).unwrap();
        while peer.read(&mut came).is_ok() {}
        peer.set_nonblocking(false).unwrap();
        sender.send(&packet(20, 2)).unwrap();
        drop(sender);
        assert_eq!(peer.read(&mut came).unwrap(), 0);
    }

    #[test]
    fn what_is_no_frame_is_dropped() {
        let (mut link, mut peer, _end) = connected();
        for dropped in [&packet(13, 1)[..], &packet(65_551, 1), &packet(0, 1), &[0; 5], &[]] {
            link.sender.send(dropped).unwrap();
        }
        link.sender.send(&packet(14, 1)).unwrap();
        let mut came = [0; 18];
        peer.read_exact(&mut came).unwrap();
        assert_eq!(came, *framed(&packet(14, 1)));
        assert_eq!(link.sender.dropped(), 5);
        // A frame that is a byte too large, and one that just fits.
        peer.write_all(&[framed(&packet(61, 1)), framed(&packet(60, 2))].concat()).unwrap();
        let mut buffer = [0; 72];
        assert_eq!(link.receiver.receive(&mut buffer).unwrap(), Some(72));
        assert_eq!(buffer, *packet(60, 2));
        assert_eq!(link.receiver.dropped(), 1);
        assert_eq!(link.receiver.receive(&mut [0; 11]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        let (mut link, mut peer, _end) = connected();
        peer.write_all(&framed(&packet(20, 1))[..10]).unwrap();
        drop(peer);
        assert_eq!(link.receiver.receive(&mut [0; 2000]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(link.sender.send(&packet(20, 1)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_peer_that_sends_no_frames_is_an_error() {
        let (mut link, mut peer, _end) = connected();
        peer.write_all(&framed(&packet(20, 1))).unwrap();
        peer.write_all(b"GET / HTTP/1.1").unwrap();
        assert_eq!(link.receiver.receive(&mut [0; 2000]).unwrap(), Some(32));
        for _ in 0..2 {
            let error = link.receiver.receive(&mut [0; 2000]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains("at offset 24 of the stream"), "{error}");
        }
    }

    #[test]
    fn the_end_wakes_both_sides() {
        let (mut link, _peer, end) = connected();
        thread::scope(|scope| {
            let receiver = scope.spawn(|| link.receiver.receive(&mut [0; 2000]).unwrap());
            // More than the socket holds: nobody reads.
            let sender = scope.spawn(|| {
                for _ in 0..1000 {
                    link.sender.send(&packet(60_000, 1)).unwrap();
                }
            });
            ask(&end);
            assert_eq!(receiver.join().unwrap(), None);
            sender.join().unwrap();
        });
    }

    #[test]
    fn an_error_says_what_is_at_the_path() {
        let end = eventfd_of_end();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(matches!(open(&path, &end), Err(LinkError::NoSocket { .. })));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(open(&path, &end), Err(LinkError::NobodyListens { .. })));
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting: Vec<_> = (0..4).map(|_| open(&path, &end)).collect();
        assert!(matches!(waiting.pop().unwrap(), Err(LinkError::NobodyAccepts { .. })));
        assert!(waiting[0].is_ok());
        drop(listener);
        assert!(matches!(open(&path, &end), Err(LinkError::NobodyListens { .. })));
        let error = open(&PathBuf::from("x".repeat(108)), &end).unwrap_err();
        assert!(error.to_string().ends_with("x has 108 bytes: the path of a socket has at most 107"), "{error}");
        assert!(matches!(open(&PathBuf::from("x".repeat(107)), &end), Err(LinkError::NoSocket { .. })));
    }
}
