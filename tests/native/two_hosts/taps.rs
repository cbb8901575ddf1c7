//! What the guest's machines let out: answers of the ledger, at the taps of both hosts.
#![expect(unsafe_code, reason = "packet sockets")]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use slackwater::ledger::Answer;
use slackwater::ledger::frames::{Frame, parse};

use crate::support::netns::{TAP, TwoHosts, checked};

/// So many bytes of frames may wait to be read.
const WAITING_BYTES: libc::c_int = 64 << 20;

/// The one history that all answers of both hosts are of.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The hash at each count, and which host said so first.
    hashes: BTreeMap<u64, (u64, usize)>,
    /// The answer to each request.
    answers: HashMap<(u64, u64), Answer>,
    /// What can't be of one history.
    broken: Vec<String>,
    /// Answers of each host, and when its newest count came.
    pub(super) answered: [u64; 2],
    newest: [Option<(u64, Instant)>; 2],
}

impl Line {
    pub(super) fn note(&mut self, host: usize, answer: Answer, at: Instant) {
        self.answered[host] += 1;
        let count = answer.after.count;
        if self.newest[host].is_none_or(|(newest, _)| newest < count) {
            self.newest[host] = Some((count, at));
        }
        for tally in [answer.before, answer.after] {
            let (hash, said) = *self.hashes.entry(tally.count).or_insert((tally.hash, host));
            if hash != tally.hash {
                let text = format!("count {} has hash {hash:#x} at host {said}, and at host {host} {answer:x?}", tally.count);
                self.broken.push(text);
            }
        }
        let first = *self.answers.entry((answer.client, answer.number)).or_insert(answer);
        if first != answer {
            self.broken.push(format!("host {host} answered {answer:x?} to what was answered {first:x?}"));
        }
    }

    /// The count of the newest answer.
    pub(super) fn count(&self) -> u64 {
        self.hashes.last_key_value().map_or(0, |(count, _)| *count)
    }

    /// How many counts were seen, if all answers are of one history.
    pub(super) fn one(&self) -> Result<usize, String> {
        match self.broken.first() {
            None => Ok(self.hashes.len()),
            Some(first) => Err(format!("{} answers are of another history; the first: {first}", self.broken.len())),
        }
    }

    /// When `host` last answered something new.
    pub(super) fn newest_at(&self, host: usize) -> Option<Instant> {
        self.newest[host].map(|(_, at)| at)
    }
}

/// Listens at both taps.
#[derive(Debug)]
pub(super) struct Taps {
    line: Arc<Mutex<Line>>,
    end: Arc<AtomicBool>,
    listening: Vec<JoinHandle<()>>,
}

impl Taps {
    pub(super) fn listen(net: &TwoHosts) -> Self {
        let (line, end) = (Arc::new(Mutex::new(Line::default())), Arc::new(AtomicBool::new(false)));
        let listen = |host: usize| {
            let socket = net.hosts[host].within(|| packets_of(TAP)).unwrap();
            let (line, end) = (line.clone(), end.clone());
            std::thread::spawn(move || listen(&socket, host, &line, &end))
        };
        let listening = [0, 1].map(listen).into();
        Self { line, end, listening }
    }

    pub(super) fn look<T>(&self, what: impl FnOnce(&Line) -> T) -> T {
        what(&self.line.lock().unwrap())
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.listening.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread that listens panicked");
        }
    }
}

fn listen(socket: &OwnedFd, host: usize, line: &Mutex<Line>, end: &AtomicBool) {
    let mut bytes = [0_u8; 4096];
    while !end.load(Ordering::Relaxed) {
        // SAFETY: the buffer is as long as is said.
        let length = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // Nothing in a while, or the tap is down.
        let Ok(length) = usize::try_from(length) else { continue };
        let at = Instant::now();
        let Ok(Frame::Udp { payload, .. }) = parse(&bytes[..length.min(bytes.len())]) else { continue };
        if let Ok(answer) = Answer::decode(payload) {
            line.lock().unwrap().note(host, answer, at);
        }
    }
}

/// A socket with every packet that a user of the tap sends into this network, as it comes from
/// there: whatever becomes of it later.
fn packets_of(tap: &str) -> io::Result<OwnedFd> {
    const ALL: u16 = libc::ETH_P_ALL as u16;
    // SAFETY: takes numbers.
    let socket = checked(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &WAITING_BYTES)?;
    let look = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &look)?;
    let name = std::ffi::CString::new(tap)?;
    // SAFETY: a string that ends.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ALL.to_be(),
        sll_ifindex: libc::c_int::try_from(index).unwrap(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    // SAFETY: an address of the kind that the socket takes, as long as is said.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap();
    // SAFETY: the value is as long as is said.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) }).map(drop)
}
