//! The sockets of the host, with the thread that serves them.
//!
//! The thread reads from a socket only what its connection has room for, and keeps of the guest's
//! bytes what the socket does not take: at most the connection's credit. It holds no lock while it
//! waits, or while it tells its owner something.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::error::VsockError;
use super::handshake::{Asked, Handshake, LINE_BYTES_MAX};
use super::host_socket::{HostSocket, Read};
use super::inbox::{Inbox, Todo};
use super::listener::{Listener, connect_to_port};
use super::output::{ConnectionId, Output};
use crate::lock::lock;

/// Host programs that have not said yet what they want. More wait until the system takes them.
const ASKING_MAX: usize = 64;
/// The time that a host program has to say what it wants.
const ASKING_LIMIT: Duration = Duration::from_secs(2);
/// How long nobody is taken where the system has no socket left.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);
/// What is read from a socket at once.
const READ_BYTES: usize = 16 << 10;

/// What the sockets tell their owner, on their thread. Each has a method of the same name in
/// [`Connections`](super::Connections).
pub trait HostEvents: fmt::Debug + Send + Sync {
    /// A host program wants a connection to a port of the guest. None refuses.
    fn host_opens(&self, guest_port: u32) -> Option<ConnectionId>;

    /// The host program that the guest wanted is connected. Returns whether anybody still knows the
    /// connection.
    fn accepted(&self, id: ConnectionId) -> bool;

    /// Bytes of the host that are wanted now. Only the sockets make them fewer.
    fn host_room(&self, id: ConnectionId) -> usize;

    /// Bytes of the host, no more than there was room for.
    fn host_bytes(&self, id: ConnectionId, bytes: &[u8]);

    /// The host program sends no more.
    fn host_sends_no_more(&self, id: ConnectionId);

    /// The host program receives no more.
    fn host_receives_no_more(&self, id: ConnectionId);

    /// So many bytes of the guest were written.
    fn delivered(&self, id: ConnectionId, bytes: usize);

    /// There is no socket for this connection, or no more.
    fn host_gone(&self, id: ConnectionId);
}

/// The sockets of one guest. They close, and the file goes, when this is dropped; nobody may then
/// hold a lock that [`HostEvents`] needs.
#[derive(Debug)]
pub struct HostSockets {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
    /// Somebody waits for room. Set before the rooms are asked for, so that no room is missed.
    wants_room: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        // It fails only where the counter is full: then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_le_bytes());
    }
}

impl HostSockets {
    /// Listens at `path`. A socket's file that nobody listens on is replaced.
    ///
    /// # Errors
    /// [`VsockError`].
    pub fn start(path: &Path, events: Arc<dyn HostEvents>) -> Result<Self, VsockError> {
        Self::start_with(path, events, ASKING_LIMIT)
    }

    fn start_with(path: &Path, events: Arc<dyn HostEvents>, asking_limit: Duration) -> Result<Self, VsockError> {
        let failed = |step| {
            let path = path.to_owned();
            move |source| VsockError::System { step, path, source }
        };
        let listener = Listener::bind(path)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from);
        let wake = wake.map_err(failed("making an event"))?;
        let shared = Arc::new(Shared { inbox: Mutex::default(), wake, wants_room: AtomicBool::new(false) });
        let mut sockets = Sockets {
            events,
            path: path.into(),
            listener,
            shared: shared.clone(),
            asking_limit,
            asking: Vec::new(),
            open: BTreeMap::new(),
            accepts_from: None,
            buffer: vec![0; READ_BYTES].into(),
        };
        let run = move || {
            if let Err(error) = sockets.run() {
                tracing::warn!(%error, "no more sockets for the guest");
            }
        };
        let thread = Builder::new().name("slackwater-vsock".to_owned()).spawn(run).map_err(failed("starting a thread"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Outputs that were released, in their order.
    pub fn give(&self, outputs: impl IntoIterator<Item = Output>) {
        let mut inbox = lock(&self.shared.inbox);
        outputs.into_iter().for_each(|output| inbox.add(output));
        drop(inbox);
        self.shared.wake();
    }

    /// A connection has room for bytes of the host, or may have: the guest took some.
    pub fn note_room(&self) {
        if self.shared.wants_room.swap(false, Ordering::SeqCst) {
            self.shared.wake();
        }
    }

    /// Closes all connections: the machine is another one. First
    /// [`reset_all`](super::Connections::reset_all) forgets them.
    pub fn reset(&self) {
        lock(&self.shared.inbox).reset();
        self.shared.wake();
    }
}

impl Drop for HostSockets {
    fn drop(&mut self) {
        lock(&self.shared.inbox).ends = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A host program that has not said yet what it wants.
#[derive(Debug)]
struct Asking {
    socket: OwnedFd,
    handshake: Handshake,
    until: Instant,
}

/// Whom something happened to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Wake,
    Listener,
    Asking(usize),
    Open(ConnectionId),
}

/// What the thread has.
#[derive(Debug)]
struct Sockets {
    events: Arc<dyn HostEvents>,
    path: Box<Path>,
    listener: Listener,
    shared: Arc<Shared>,
    asking_limit: Duration,
    asking: Vec<Asking>,
    open: BTreeMap<ConnectionId, HostSocket>,
    /// Nobody is taken before, for there was a shortage.
    accepts_from: Option<Instant>,
    buffer: Box<[u8]>,
}

impl Sockets {
    fn run(&mut self) -> Result<(), Errno> {
        loop {
            let inbox = std::mem::take(&mut *lock(&self.shared.inbox));
            if inbox.ends {
                return Ok(());
            }
            if inbox.resets {
                // None is forgotten that the owner made after it forgot all others.
                let ids: Vec<ConnectionId> = self.open.keys().copied().collect();
                ids.into_iter().for_each(|id| self.drop_socket(id));
            }
            for (id, todo) in inbox.todo {
                self.act(id, todo);
            }
            let ready = self.wait()?;
            let mut said = Vec::new();
            for (source, flags) in ready {
                match source {
                    Source::Wake => self.clear_wake(),
                    Source::Listener => self.accept(),
                    Source::Asking(at) => said.push(at),
                    Source::Open(id) => self.serve(id, flags),
                }
            }
            self.hear(&said);
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Result<Vec<(Source, PollFlags)>, Errno> {
        let now = Instant::now();
        self.accepts_from = self.accepts_from.filter(|from| *from > now);
        let accepts = self.accepts_from.is_none() && self.asking.len() < ASKING_MAX;
        self.shared.wants_room.store(true, Ordering::SeqCst);
        let wake = (Source::Wake, PollFd::new(&self.shared.wake, PollFlags::IN));
        let listener = accepts.then(|| (Source::Listener, PollFd::new(&self.listener, PollFlags::IN)));
        let asking =
            self.asking.iter().enumerate().map(|(at, asking)| (Source::Asking(at), PollFd::new(&asking.socket, PollFlags::IN)));
        let mut wants_room = false;
        let open = self.open.iter().filter_map(|(id, socket)| {
            let has_room = socket.is_readable() && self.events.host_room(*id) > 0;
            wants_room |= socket.is_readable() && !has_room;
            Some((Source::Open(*id), PollFd::new(socket, socket.interest(has_room)?)))
        });
        let (sources, mut fds): (Vec<_>, Vec<_>) = [wake].into_iter().chain(listener).chain(asking).chain(open).unzip();
        if !wants_room {
            self.shared.wants_room.store(false, Ordering::SeqCst);
        }
        let until = self.asking.iter().map(|asking| asking.until).chain(self.accepts_from).min();
        let left = until.and_then(|until| Timespec::try_from(until.saturating_duration_since(now)).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let ready = sources.into_iter().zip(fds).map(|(source, fd)| (source, fd.revents()));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn clear_wake(&self) {
        // Nothing is there to be read if another wake-up was read with this one.
        let _ = rustix::io::read(self.shared.wake.as_fd(), &mut [0; 8]);
    }

    /// Does what the guest did.
    fn act(&mut self, id: ConnectionId, todo: Todo) {
        if let Some(port) = todo.connect {
            match connect_to_port(&self.path, port) {
                Ok(socket) if self.events.accepted(id) => drop(self.open.insert(id, HostSocket::open(socket))),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, port, "a guest reaches nobody");
                    self.events.host_gone(id);
                }
            }
        }
        // What is not there is gone, and its owner knows.
        let Some(socket) = self.open.get_mut(&id) else { return };
        if let Some(host_port) = todo.accept {
            socket.accept(host_port);
        }
        let lost = socket.add(todo.bytes);
        if todo.no_more_sent {
            socket.send_no_more();
        }
        if todo.no_more_received {
            socket.receive_no_more();
        }
        if todo.close {
            socket.close();
        }
        self.note_delivered(id, lost);
        self.write(id);
        self.drop_finished(id);
    }

    fn write(&mut self, id: ConnectionId) {
        let Some(socket) = self.open.get_mut(&id) else { return };
        let (delivered, is_refused) = socket.write();
        if is_refused {
            self.events.host_receives_no_more(id);
        }
        self.note_delivered(id, delivered);
    }

    fn note_delivered(&self, id: ConnectionId, bytes: usize) {
        if bytes > 0 {
            self.events.delivered(id, bytes);
        }
    }

    /// A socket is ready.
    fn serve(&mut self, id: ConnectionId, flags: PollFlags) {
        let Some(socket) = self.open.get_mut(&id) else { return };
        let hung_up = flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        if socket.gave_up(hung_up) {
            self.drop_socket(id);
            return;
        }
        if hung_up {
            let lost = socket.end_writing();
            self.note_delivered(id, lost);
        } else if flags.contains(PollFlags::OUT) {
            self.write(id);
        }
        self.read(id);
        self.drop_finished(id);
    }

    /// Reads what is there and wanted.
    fn read(&mut self, id: ConnectionId) {
        let Some(socket) = self.open.get_mut(&id).filter(|socket| socket.is_readable()) else { return };
        let room = self.events.host_room(id).min(self.buffer.len());
        let Some(buffer) = self.buffer.get_mut(..room).filter(|buffer| !buffer.is_empty()) else { return };
        match socket.read(buffer) {
            Read::Bytes(count) => self.events.host_bytes(id, buffer.get(..count).unwrap_or_default()),
            Read::Nothing => {}
            Read::End => self.events.host_sends_no_more(id),
        }
    }

    fn drop_finished(&mut self, id: ConnectionId) {
        if self.open.get(&id).is_some_and(HostSocket::is_finished) {
            self.drop_socket(id);
        }
    }

    fn drop_socket(&mut self, id: ConnectionId) {
        if self.open.remove(&id).is_some() {
            self.events.host_gone(id);
        }
    }

    /// Takes the host programs that wait.
    fn accept(&mut self) {
        while self.asking.len() < ASKING_MAX {
            match self.listener.accept() {
                Ok(socket) => {
                    let until = Instant::now() + self.asking_limit;
                    self.asking.push(Asking { socket, handshake: Handshake::default(), until });
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::debug!(%error, "a host program has to wait");
                    self.accepts_from = Some(Instant::now() + SHORTAGE_PAUSE);
                    return;
                }
            }
        }
    }

    /// Hears what those who are ready want, and lets those go whose time is over.
    fn hear(&mut self, ready: &[usize]) {
        let now = Instant::now();
        for (at, mut asking) in std::mem::take(&mut self.asking).into_iter().enumerate() {
            let asked = if ready.contains(&at) { hear_one(&mut asking) } else { Asked::Unfinished };
            match asked {
                Asked::Unfinished if asking.until > now => self.asking.push(asking),
                Asked::Unfinished | Asked::Nothing => {}
                Asked::Port(port) => {
                    if let Some(id) = self.events.host_opens(port) {
                        self.open.insert(id, HostSocket::waiting(asking.socket));
                    }
                }
            }
        }
    }
}

/// Takes from a socket what belongs to the line and nothing that is behind it.
fn hear_one(asking: &mut Asking) -> Asked {
    let mut bytes = [0; LINE_BYTES_MAX];
    let seen = match recv(&asking.socket, &mut bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => return Asked::Nothing,
        Ok((_, seen)) => seen,
        Err(Errno::AGAIN | Errno::INTR) => return Asked::Unfinished,
        Err(_) => return Asked::Nothing,
    };
    let (taken, asked) = asking.handshake.take(bytes.get(..seen).unwrap_or_default());
    match recv(&asking.socket, bytes.get_mut(..taken).unwrap_or_default(), RecvFlags::DONTWAIT) {
        Ok((_, count)) if count == taken => asked,
        // It was there a moment ago.
        _ => Asked::Nothing,
    }
}

#[cfg(test)]
mod tests;
