//! Host programs at the sockets, the core behind them, and a model guest at its end.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Condvar;
use std::thread;

use super::*;
use crate::vmm::vsock::connections::Connections;
use crate::vmm::vsock::model_guest::{GUEST_CID, Key, ModelGuest};
use crate::vmm::vsock::packet::{SHUTDOWN_BOTH, SHUTDOWN_SEND};

/// The bound of every wait: nothing that works comes near it.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

#[derive(Debug)]
struct Owner {
    connections: Mutex<(Connections, bool)>,
    changed: Condvar,
}

impl Owner {
    fn with<T>(&self, change: impl FnOnce(&mut Connections) -> T) -> T {
        let mut guard = lock(&self.connections);
        guard.1 = true;
        self.changed.notify_all();
        change(&mut guard.0)
    }
}

impl HostEvents for Owner {
    fn host_opens(&self, guest_port: u32) -> Option<ConnectionId> {
        self.with(|connections| connections.host_opens(guest_port).ok())
    }

    fn accepted(&self, id: ConnectionId) -> bool {
        self.with(|connections| connections.accepted(id))
    }

    fn host_room(&self, id: ConnectionId) -> usize {
        lock(&self.connections).0.host_room(id)
    }

    fn host_bytes(&self, id: ConnectionId, bytes: &[u8]) {
        let taken = self.with(|connections| connections.host_bytes(id, bytes));
        assert_eq!(taken, bytes.len(), "there was room");
    }

    fn host_sends_no_more(&self, id: ConnectionId) {
        self.with(|connections| connections.host_sends_no_more(id));
    }

    fn host_receives_no_more(&self, id: ConnectionId) {
        self.with(|connections| connections.host_receives_no_more(id));
    }

    fn delivered(&self, id: ConnectionId, bytes: usize) {
        self.with(|connections| connections.delivered(id, bytes));
    }

    fn host_gone(&self, id: ConnectionId) {
        self.with(|connections| connections.host_gone(id));
    }
}

/// A machine, as far as its sockets go.
struct Machine {
    dir: tempfile::TempDir,
    owner: Arc<Owner>,
    sockets: HostSockets,
    guest: ModelGuest,
    held: VecDeque<Output>,
    releases: bool,
}

impl Machine {
    fn new(room: u32, asking_limit: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let connections = Connections::new(GUEST_CID, 1 << 30);
        let owner = Arc::new(Owner { connections: Mutex::new((connections, false)), changed: Condvar::new() });
        let sockets = HostSockets::start_with(&dir.path().join("guest"), owner.clone(), asking_limit).unwrap();
        let mut guest = ModelGuest::new(room);
        guest.listens.insert(22);
        Self { dir, owner, sockets, guest, held: VecDeque::new(), releases: true }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("guest")
    }

    fn connect(&self) -> UnixStream {
        patient(UnixStream::connect(self.path()).unwrap())
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("guest_{port}"))).unwrap()
    }

    /// Moves what there is to be moved, in both directions.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        while self.guest.queued() > 0 {
            let output = self.owner.with(|connections| self.guest.transmit(connections));
            self.held.extend(output);
            moved = true;
        }
        if self.releases && !self.held.is_empty() {
            self.sockets.give(self.held.drain(..));
            moved = true;
        }
        while let Some((header, payload)) = self.owner.with(|connections| connections.next_for_guest(3000)) {
            self.sockets.note_room();
            self.guest.receive(&header, &payload);
            moved = true;
        }
        moved
    }

    /// Lets the guest do `step` until that says it is done.
    fn run(&mut self, what: &str, mut step: impl FnMut(&mut ModelGuest, &Connections) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            lock(&self.owner.connections).1 = false;
            let moved = self.turn();
            let mut connections = lock(&self.owner.connections);
            if step(&mut self.guest, &connections.0) {
                return;
            }
            if moved || self.guest.queued() > 0 {
                continue;
            }
            connections.1 = false;
            // Nothing moves before the sockets say something, or a host program does.
            let (guard, _) = self.owner.changed.wait_timeout_while(connections, Duration::from_millis(20), |it| !it.1).unwrap();
            drop(guard);
            assert!(Instant::now() < end, "{what}: {:?}", self.owner);
        }
    }

    fn run_until_closed(&mut self) {
        self.run("all is closed", |guest, connections| {
            connections.is_empty() && guest.sockets.values().all(|socket| socket.is_over)
        });
    }

    /// The guest's end of its only connection, once it is there and the device knows.
    fn connected(&mut self) -> Key {
        let mut key = None;
        self.run("connected", |guest, _| {
            key = guest.sockets.iter().find(|(_, socket)| socket.is_connected).map(|(key, _)| *key);
            key.is_some() && guest.queued() == 0
        });
        key.unwrap()
    }
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn stream_of(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + (at >> 8) * 13 + seed).to_le_bytes()[0]).collect()
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}

/// Nothing more comes: an end, or that the other side is gone with bytes unread.
fn assert_ended(stream: &mut UnixStream) {
    match stream.read(&mut [0; 16]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("not at its end: {other:?}"),
    }
}

/// Sends and reads, as far as there is credit, until both are through.
fn exchange(machine: &mut Machine, key: Key, to_send: &[u8], to_get: usize) -> Vec<u8> {
    let (mut sent, mut got) = (0, Vec::new());
    machine.run("exchange", |guest, _| {
        sent += guest.send(key, &to_send[sent..], 1500);
        got.extend(guest.read(key, 700));
        sent == to_send.len() && got.len() == to_get
    });
    got
}

#[test]
fn a_host_program_and_a_guest_exchange_a_mebibyte_each_way() {
    let mut machine = Machine::new(1000, PATIENCE);
    let mut stream = machine.connect();
    let program = thread::spawn(move || {
        // What stands behind the line is for the guest, whenever it comes.
        let bytes = stream_of(1, MIB);
        stream.write_all(b"CONNECT ").unwrap();
        stream.write_all(&[b"22\n", &bytes[..100]].concat()).unwrap();
        assert_eq!(line(&mut stream), "OK 1073741824\n");
        let mut writer = stream.try_clone().unwrap();
        let writes = thread::spawn(move || {
            writer.write_all(&bytes[100..]).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        writes.join().unwrap();
        got
    });
    let key = machine.connected();
    let got = exchange(&mut machine, key, &stream_of(2, MIB), MIB);
    assert!(got == stream_of(1, MIB));
    machine.run("the host's half is closed", |guest, _| guest.sockets[&key].host_shut & SHUTDOWN_SEND != 0);
    assert!(!machine.guest.sockets[&key].is_over, "the other half is open");
    machine.guest.shut_down(key, SHUTDOWN_SEND);
    machine.run_until_closed();
    assert!(program.join().unwrap() == stream_of(2, MIB));
    let path = machine.path();
    drop(machine.sockets);
    assert!(!path.exists());
}

#[test]
fn a_guest_reaches_the_program_that_listens() {
    let mut machine = Machine::new(5000, PATIENCE);
    let listener = machine.listen(5);
    let key = (1000, 5);
    machine.guest.connect(key);
    let program = thread::spawn(move || {
        let mut stream = patient(listener.accept().unwrap().0);
        let mut writer = stream.try_clone().unwrap();
        let writes = thread::spawn(move || writer.write_all(&stream_of(3, MIB)).unwrap());
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        writes.join().unwrap();
        got
    });
    assert_eq!(machine.connected(), key);
    let got = exchange(&mut machine, key, &stream_of(4, MIB), MIB);
    assert!(got == stream_of(3, MIB));
    machine.guest.shut_down(key, SHUTDOWN_BOTH);
    machine.run_until_closed();
    assert!(program.join().unwrap() == stream_of(4, MIB));
}

#[test]
fn where_nobody_listens_the_guest_gets_a_reset() {
    let mut machine = Machine::new(5000, PATIENCE);
    // Nothing is there, and a socket of a process that is gone.
    drop(machine.listen(6));
    for key in [(1000, 5), (1001, 6)] {
        machine.guest.connect(key);
        machine.run_until_closed();
        assert!(!machine.guest.sockets[&key].is_connected);
    }
}

#[test]
fn a_guest_that_refuses_closes_the_programs_socket() {
    let mut machine = Machine::new(5000, PATIENCE);
    let mut stream = machine.connect();
    stream.write_all(b"CONNECT 23\n").unwrap();
    let mut ended = false;
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        assert_ended(&mut stream);
        tell.send(()).unwrap();
    });
    machine.run("refused", |_, connections| {
        ended |= told.try_recv().is_ok();
        ended && connections.is_empty()
    });
}

#[test]
fn whoever_asks_for_nothing_is_let_go() {
    let machine = Machine::new(5000, PATIENCE);
    for text in ["GET / HTTP/1.1\r\n\r\n", "CONNECT x\n", &"0".repeat(40), "CONNECT 99999999999\n"] {
        let mut stream = machine.connect();
        stream.write_all(text.as_bytes()).unwrap();
        assert_ended(&mut stream);
    }
    let stream = machine.connect();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_ended(&mut { stream });
    // Whoever says nothing at all has its time.
    let machine = Machine::new(5000, Duration::from_millis(20));
    let mut streams: Vec<_> = (0..2 * ASKING_MAX).map(|_| machine.connect()).collect();
    streams.iter_mut().for_each(assert_ended);
    assert!(lock(&machine.owner.connections).0.is_empty());
}

#[test]
fn a_program_sees_nothing_before_it_is_released() {
    let mut machine = Machine::new(5000, PATIENCE);
    machine.releases = false;
    let mut stream = machine.connect();
    stream.write_all(b"CONNECT 22\n").unwrap();
    let _ = machine.connected();
    assert_eq!(machine.held.len(), 1);
    stream.set_nonblocking(true).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    machine.releases = true;
    machine.turn();
    assert_eq!(line(&mut stream), "OK 1073741824\n");
}

#[test]
fn a_program_that_dies_leaves_what_it_wrote() {
    let mut machine = Machine::new(1000, PATIENCE);
    let mut stream = machine.connect();
    stream.write_all(b"CONNECT 22\n").unwrap();
    let key = machine.connected();
    assert_eq!(line(&mut stream), "OK 1073741824\n");
    // More than the guest and the core have room for: the rest stays in the system's socket.
    let bytes = stream_of(5, 150_000);
    stream.write_all(&bytes).unwrap();
    drop(stream);
    machine.run("the core is full", |_, connections| connections.waiting_bytes() == 64 << 10);
    let mut got = Vec::new();
    machine.run("everything came", |guest, _| {
        got.extend(guest.read(key, 700));
        got.len() == bytes.len()
    });
    assert!(got == bytes);
    machine.run_until_closed();
}

#[test]
fn a_program_that_gives_up_before_the_guest_answers_is_forgotten() {
    let mut machine = Machine::new(1000, PATIENCE);
    let mut stream = machine.connect();
    stream.write_all(b"CONNECT 22\n").unwrap();
    let end = Instant::now() + PATIENCE;
    while lock(&machine.owner.connections).0.is_empty() {
        assert!(Instant::now() < end, "it asks");
        thread::yield_now();
    }
    drop(stream);
    while !lock(&machine.owner.connections).0.is_empty() {
        assert!(Instant::now() < end, "it is forgotten");
        thread::yield_now();
    }
    machine.turn();
    assert!(machine.guest.sockets.is_empty());
}

#[test]
fn a_reset_closes_every_socket_and_new_ones_come() {
    let mut machine = Machine::new(1000, PATIENCE);
    let mut old = machine.connect();
    old.write_all(b"CONNECT 22\n").unwrap();
    let _ = machine.connected();
    assert_eq!(line(&mut old), "OK 1073741824\n");
    // A connection to a port of the host that is released when it is no more.
    let listener = machine.listen(5);
    machine.releases = false;
    machine.guest.connect((1000, 5));
    machine.turn();
    assert_eq!(machine.held.len(), 1);
    machine.owner.with(Connections::reset_all);
    machine.sockets.reset();
    assert_ended(&mut old);
    machine.sockets.give(machine.held.drain(..));
    assert_ended(&mut patient(listener.accept().unwrap().0));
    machine.guest = ModelGuest::new(1000);
    machine.guest.listens.insert(22);
    machine.releases = true;
    let mut new = machine.connect();
    new.write_all(b"CONNECT 22\n").unwrap();
    let _ = machine.connected();
    assert_eq!(line(&mut new), "OK 1073741825\n");
}
