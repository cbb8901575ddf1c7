//! A wire that machines plug into: a Unix socket that their network devices connect to.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::client::{Received, Wire, WireError};
use super::frame_stream::{FrameStream, on_stream};
use super::frames::{self, Endpoint, Frame, Host, Mac};

/// The clients' side of the wire.
const CLIENT: Endpoint =
    Endpoint { host: Host { mac: Mac([0x02, b's', b'l', b'k', b'w', 0x01]), ip: Ipv4Addr::new(10, 77, 0, 1) }, port: 7078 };
/// Machines that are plugged in at once. One more takes the place of the first.
const PEERS_MAX: usize = 8;
/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;
/// Datagrams that wait to be taken. What comes then is lost.
const DATAGRAMS_MAX: usize = 1024;

/// A hub: each frame goes to all machines that are plugged in, and any of them may answer. So a
/// machine that goes away and one that takes its place are one server.
#[derive(Debug)]
pub struct UnixWire {
    path: PathBuf,
    listener: UnixListener,
    peers: Vec<Peer>,
    server: SocketAddrV4,
    /// The server's Ethernet address, once it has told it.
    server_mac: Option<Mac>,
    received: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    incoming: FrameStream,
    /// The rest of a frame of which a part was sent.
    outgoing: Vec<u8>,
}

impl UnixWire {
    /// Listens at `path`, for machines with a server at `server`. A socket that nobody listens at
    /// any more is removed first.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn new(path: &Path, server: SocketAddrV4) -> Result<Self, WireError> {
        let is_left_over = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
            && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        if is_left_over {
            std::fs::remove_file(path).map_err(of("removing a socket that nobody listens at"))?;
        }
        let listener = UnixListener::bind(path).map_err(of("listening at a Unix socket"))?;
        listener.set_nonblocking(true).map_err(of("listening at a Unix socket"))?;
        let path = path.to_owned();
        Ok(Self { path, listener, peers: Vec::new(), server, server_mac: None, received: VecDeque::new() })
    }

    /// Sends a frame to all machines. One that takes no more at the moment loses it.
    fn send_frame(&mut self, frame: &[u8]) {
        let Some(bytes) = on_stream(frame) else { return };
        self.peers.iter_mut().for_each(|peer| peer.send(&bytes));
    }

    /// Takes what a machine sent.
    fn take_frame(&mut self, frame: &[u8]) {
        match frames::parse(frame) {
            Ok(Frame::ArpRequest { from, target }) => {
                self.learn(from);
                if target == CLIENT.host.ip {
                    self.send_frame(&frames::arp_reply(CLIENT.host, from));
                }
            }
            Ok(Frame::ArpReply { from }) => self.learn(from),
            Ok(Frame::Udp { from, to, payload }) if to == CLIENT => {
                let is_server = (from.host.ip, from.port) == (*self.server.ip(), self.server.port());
                if is_server && self.received.len() < DATAGRAMS_MAX {
                    self.received.push_back(payload.to_vec());
                }
            }
            Ok(Frame::Udp { .. }) => {}
            Err(error) => tracing::debug!(%error, "a frame is ignored"),
        }
    }

    fn learn(&mut self, host: Host) {
        if host.ip == *self.server.ip() {
            self.server_mac = Some(host.mac);
        }
    }

    /// Waits until something can be done, so long at the most. Returns whether a machine waits to
    /// be plugged in, and the places of those that have sent something.
    fn wait(&self, wait: Duration) -> Result<(bool, Vec<usize>), WireError> {
        let to_peer = |peer: &Peer| if peer.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.peers.iter().map(|peer| PollFd::new(&peer.stream, to_peer(peer))));
        let wait = Timespec::try_from(wait).map_err(|_| of("waiting for a frame")(ErrorKind::InvalidInput.into()))?;
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(of("waiting for a frame")(error.into())),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let ready = fds.iter().skip(1).zip(0..).filter(|(fd, _)| is_ready(fd)).map(|(_, at)| at).collect();
        Ok((fds.first().is_some_and(is_ready), ready))
    }

    /// Plugs a machine in. False where there is none after all.
    fn accept(&mut self) -> Result<bool, WireError> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).map_err(of("accepting a machine"))?;
                if self.peers.len() >= PEERS_MAX {
                    self.peers.remove(0);
                }
                self.peers.push(Peer { stream, incoming: FrameStream::default(), outgoing: Vec::new() });
                Ok(true)
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted | ErrorKind::Interrupted) =>
            {
                Ok(false)
            }
            Err(error) => Err(of("accepting a machine")(error)),
        }
    }

    /// Takes what the machines at these places have sent, and forgets those that are gone.
    fn read(&mut self, ready: &[usize]) {
        let mut frames = Vec::new();
        let mut at = 0..;
        self.peers.retain_mut(|peer| !at.next().is_some_and(|at| ready.contains(&at)) || peer.work(&mut frames).is_ok());
        frames.iter().for_each(|frame| self.take_frame(frame));
    }
}

impl Drop for UnixWire {
    fn drop(&mut self) {
        // Another may be there by now, or none.
        drop(std::fs::remove_file(&self.path));
    }
}

impl Peer {
    /// Sends what is left of an earlier frame, and then this one; or nothing of it, where the
    /// stream takes no more. One that is gone may have left something to read, and that is where it
    /// shows.
    fn send(&mut self, bytes: &[u8]) {
        self.flush();
        if self.outgoing.is_empty() {
            self.outgoing.extend_from_slice(bytes);
            self.flush();
            if self.outgoing.len() == bytes.len() {
                self.outgoing.clear();
            }
        }
    }

    fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.outgoing.clear(),
            }
        }
    }

    /// Goes on with what was sent in part, and reads what came.
    fn work(&mut self, frames: &mut Vec<Vec<u8>>) -> io::Result<()> {
        self.flush();
        let mut bytes = vec![0; READ_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.incoming.push(bytes.get(..length).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        loop {
            match self.incoming.next_frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "a machine is unplugged");
                    return Err(ErrorKind::InvalidData.into());
                }
            }
        }
    }
}

impl Wire for UnixWire {
    fn reach(&mut self) -> Result<bool, WireError> {
        if self.server_mac.is_none() {
            self.send_frame(&frames::arp_request(CLIENT.host, *self.server.ip()));
        }
        Ok(self.server_mac.is_some())
    }

    fn send(&mut self, datagram: &[u8]) -> Result<(), WireError> {
        if let Some(mac) = self.server_mac {
            let to = Endpoint { host: Host { mac, ip: *self.server.ip() }, port: self.server.port() };
            if let Some(frame) = frames::udp(CLIENT, to, datagram) {
                self.send_frame(&frame);
            }
        }
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Received, WireError> {
        let start = Instant::now();
        loop {
            if let Some(datagram) = self.received.pop_front() {
                return Ok(Received::Datagram(datagram));
            }
            let left = wait.saturating_sub(start.elapsed());
            let (is_new, ready) = self.wait(left)?;
            self.read(&ready);
            if is_new && self.accept()? {
                return Ok(Received::Open);
            }
            if left.is_zero() && self.received.is_empty() {
                return Ok(Received::Nothing);
            }
        }
    }
}

fn of(step: &'static str) -> impl Fn(io::Error) -> WireError {
    move |source| WireError { step, source }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::ledger::{Load, LoadOptions, Request, Server, Verdict, run};

    const GUEST: Endpoint = Endpoint { host: Host { mac: Mac([2, 0, 0, 0, 0, 2]), ip: Ipv4Addr::new(10, 77, 0, 2) }, port: 7077 };

    fn server() -> SocketAddrV4 {
        SocketAddrV4::new(GUEST.host.ip, GUEST.port)
    }

    /// Plugs a machine in that serves until it has taken `count` requests in all, and is gone then.
    fn serve(path: &Path, mut server: Server, count: u64) -> Server {
        let mut stream = UnixStream::connect(path).unwrap();
        let mut incoming = FrameStream::default();
        let mut bytes = vec![0; 4096];
        // It asks for the client's address, as any host may.
        stream.write_all(&on_stream(&frames::arp_request(GUEST.host, CLIENT.host.ip)).unwrap()).unwrap();
        loop {
            let length = stream.read(&mut bytes).unwrap();
            incoming.push(&bytes[..length]);
            while let Some(frame) = incoming.next_frame().unwrap() {
                let reply = match frames::parse(frame).unwrap() {
                    Frame::ArpRequest { from: CLIENT_HOST, target } if target == GUEST.host.ip => {
                        Some(frames::arp_reply(GUEST.host, CLIENT_HOST))
                    }
                    Frame::ArpReply { from: CLIENT_HOST } => None,
                    Frame::Udp { from: CLIENT, to: GUEST, payload } => {
                        let answer = server.take(&Request::decode(payload).unwrap());
                        answer.and_then(|answer| frames::udp(GUEST, CLIENT, &answer.encode()))
                    }
                    other => panic!("{other:?}"),
                };
                if let Some(reply) = reply {
                    stream.write_all(&on_stream(&reply).unwrap()).unwrap();
                }
            }
            if server.tally().count >= count {
                return server;
            }
        }
    }

    const CLIENT_HOST: Host = CLIENT.host;

    #[test]
    fn machines_come_and_go_and_the_requests_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let mut wire = UnixWire::new(&path, server()).unwrap();
        let serving = thread::spawn({
            let path = path.clone();
            move || [100, 150, 200].into_iter().fold(Server::default(), |server, count| serve(&path, server, count))
        });
        let options = LoadOptions { clients: 4, requests: Some(200), ..LoadOptions::default() };
        let outcome = run(&mut Load::new(options).unwrap(), &mut wire, &|| false).unwrap();
        assert_eq!((outcome.verdict, outcome.report.answered), (Verdict::Done, 200));
        assert_eq!(serving.join().unwrap().tally().count, 200);
        drop(wire);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_nobody_listens_at_is_replaced_and_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        drop(UnixListener::bind(&path).unwrap());
        let wire = UnixWire::new(&path, server()).unwrap();
        assert_eq!(UnixWire::new(&path, server()).unwrap_err().source.kind(), ErrorKind::AddrInUse);
        drop(wire);
        std::fs::write(&path, "mine").unwrap();
        assert!(UnixWire::new(&path, server()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_machine_that_sends_nonsense_is_unplugged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let mut wire = UnixWire::new(&path, server()).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        assert_eq!(wire.receive(Duration::from_secs(60)).unwrap(), Received::Open);
        stream.write_all(&on_stream(&[1; 13]).unwrap()).unwrap();
        stream.write_all(&[0xff; 8]).unwrap();
        while !wire.peers.is_empty() {
            wire.receive(Duration::from_millis(10)).unwrap();
        }
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_machine_that_takes_nothing_loses_frames_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let mut wire = UnixWire::new(&path, server()).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        assert_eq!(wire.receive(Duration::from_secs(60)).unwrap(), Received::Open);
        let frame = vec![3; 60_000];
        for _ in 0..10_000 {
            wire.send_frame(&frame);
        }
        // All that arrives is whole, the one too of which only a part had room at first.
        let (last, mut incoming, mut bytes) = (vec![4; 60], FrameStream::default(), vec![0; 4096]);
        stream.set_nonblocking(true).unwrap();
        let mut whole = 0;
        'all: loop {
            match stream.read(&mut bytes) {
                Ok(length) => incoming.push(&bytes[..length]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    wire.send_frame(&last);
                }
            }
            while let Some(found) = incoming.next_frame().unwrap() {
                if found == last {
                    break 'all;
                }
                assert_eq!(found, frame);
                whole += 1;
            }
        }
        assert!((1..10_000).contains(&whole), "{whole}");
        assert_eq!(wire.peers.len(), 1);
    }
}
