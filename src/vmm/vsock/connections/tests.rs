//! One packet after the other, and a simulation of two ends.

use std::collections::BTreeSet;

use super::*;
use crate::store::testing::{Random, seeds};
use crate::vmm::vsock::model_guest::{GUEST_CID, Key, ModelGuest};
use crate::vmm::vsock::packet::SHUTDOWN_BOTH;

const HOST_PORT: u32 = 1 << 30;
const BUFFER: usize = TO_GUEST_BYTES_MAX;

fn connections() -> Connections {
    Connections::new(GUEST_CID, HOST_PORT)
}

fn packet(op: Op, guest: u32, host: u32) -> Header {
    Header {
        src_cid: GUEST_CID.into(),
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: TYPE_STREAM,
        op: op.number(),
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn data(device: &mut Connections, guest: u32, host: u32, bytes: &[u8]) -> Option<OutputKind> {
    let length = bytes.len().try_into().unwrap();
    device.from_guest(&Header { length, ..packet(Op::Data, guest, host) }, bytes).map(|output| output.kind)
}

fn shut(device: &mut Connections, guest: u32, host: u32, flags: u32) -> Option<OutputKind> {
    device.from_guest(&Header { flags, ..packet(Op::Shutdown, guest, host) }, &[]).map(|output| output.kind)
}

/// What the guest is given next, with all the room that it may have.
fn next(device: &mut Connections) -> Option<(Op, u32, Vec<u8>)> {
    device.next_for_guest(1 << 20).map(|(header, payload)| (header.op().unwrap(), header.flags, payload))
}

fn plain(op: Op) -> Option<(Op, u32, Vec<u8>)> {
    Some((op, 0, Vec::new()))
}

/// Connected by the guest, from its port to the host's port 5.
fn from_guest(device: &mut Connections, guest: u32) -> ConnectionId {
    let output = device.from_guest(&packet(Op::Request, guest, 5), &[]).unwrap();
    assert_eq!(output.kind, OutputKind::Connect { port: 5 });
    assert!(device.accepted(output.id));
    assert_eq!(next(device), plain(Op::Response));
    output.id
}

#[test]
fn a_guest_reaches_a_port_of_the_host() {
    let mut device = connections();
    let id = from_guest(&mut device, 1000);
    assert_eq!(data(&mut device, 1000, 5, b"hello"), Some(OutputKind::Bytes(b"hello".to_vec())));
    assert_eq!(device.held_bytes(), 5);
    device.delivered(id, 5);
    assert_eq!(device.held_bytes(), 0);
    assert_eq!(device.host_bytes(id, b"world"), 5);
    let (header, payload) = device.next_for_guest(3).unwrap();
    assert_eq!((payload, header.fwd_cnt, header.buf_alloc), (b"wor".to_vec(), 5, 64 << 10));
    assert_eq!(next(&mut device), Some((Op::Data, 0, b"ld".to_vec())));
    assert_eq!(next(&mut device), None);
}

#[test]
fn a_host_reaches_a_port_of_the_guest() {
    let mut device = connections();
    let id = device.host_opens(22).unwrap();
    // No answer can come before the question.
    let header = device.next_for_guest(0).unwrap().0;
    assert_eq!((header.op(), header.src_port, header.dst_port), (Ok(Op::Request), HOST_PORT, 22));
    assert_eq!(device.host_room(id), 0);
    let output = device.from_guest(&packet(Op::Response, 22, HOST_PORT), &[]);
    assert_eq!(output, Some(Output { id, kind: OutputKind::Accept { host_port: HOST_PORT } }));
    assert_eq!(device.host_room(id), BUFFER);
    // A second one is refused, with all that was connected.
    let output = device.from_guest(&packet(Op::Response, 22, HOST_PORT), &[]);
    assert_eq!(output, Some(Output { id, kind: OutputKind::Close }));
    assert_eq!(next(&mut device), plain(Op::Reset));
    device.host_gone(id);
    assert!(device.is_empty());
    assert_eq!(device.host_opens(22).unwrap(), ConnectionId(2));
    assert_eq!(device.next_for_guest(0).unwrap().0.src_port, HOST_PORT + 1);
}

#[test]
fn whoever_is_refused_gets_a_reset_and_the_slot_is_free() {
    let mut device = connections();
    let output = device.from_guest(&packet(Op::Request, 1000, 5), &[]).unwrap();
    device.host_gone(output.id);
    assert_eq!(next(&mut device), plain(Op::Reset));
    assert!(device.is_empty());
    let id = device.host_opens(22).unwrap();
    assert_eq!(next(&mut device), plain(Op::Request));
    let output = device.from_guest(&packet(Op::Reset, 22, HOST_PORT), &[]);
    assert_eq!(output, Some(Output { id, kind: OutputKind::Close }));
    assert_eq!(next(&mut device), None);
    device.host_gone(id);
    assert!(device.is_empty());
    // A host that gives up: what the guest does not know of needs no reset.
    let id = device.host_opens(22).unwrap();
    device.host_gone(id);
    assert!(device.is_empty() && next(&mut device).is_none());
    let id = device.host_opens(22).unwrap();
    assert_eq!(next(&mut device), plain(Op::Request));
    device.host_gone(id);
    assert_eq!(device.from_guest(&packet(Op::Response, 22, HOST_PORT + 2), &[]), None);
    assert_eq!(next(&mut device), plain(Op::Reset));
    assert!(device.is_empty() && next(&mut device).is_none());
}

#[test]
fn each_half_is_closed_by_itself() {
    let mut device = connections();
    let id = from_guest(&mut device, 1000);
    assert_eq!(device.host_bytes(id, b"last"), 4);
    device.host_sends_no_more(id);
    assert_eq!(device.host_bytes(id, b"more"), 0);
    assert_eq!(next(&mut device), Some((Op::Data, 0, b"last".to_vec())));
    assert_eq!(next(&mut device), Some((Op::Shutdown, SHUTDOWN_SEND, Vec::new())));
    assert_eq!(next(&mut device), None);
    assert_eq!(data(&mut device, 1000, 5, b"on"), Some(OutputKind::Bytes(b"on".to_vec())));
    assert_eq!(shut(&mut device, 1000, 5, SHUTDOWN_SEND), Some(OutputKind::NoMoreSent));
    assert_eq!(shut(&mut device, 1000, 5, SHUTDOWN_SEND), None);
    // The host's socket is closed both ways now, so the host closes it. The guest answers.
    device.delivered(id, 2);
    device.host_gone(id);
    assert_eq!(next(&mut device), Some((Op::Shutdown, SHUTDOWN_BOTH, Vec::new())));
    assert_eq!(device.from_guest(&packet(Op::Reset, 1000, 5), &[]), None);
    assert!(device.is_empty());
}

#[test]
fn a_guest_that_closes_gets_its_reset_when_the_host_has_everything() {
    let mut device = connections();
    let id = from_guest(&mut device, 1000);
    device.host_bytes(id, b"nobody reads this");
    assert_eq!(data(&mut device, 1000, 5, b"bye"), Some(OutputKind::Bytes(b"bye".to_vec())));
    assert_eq!(shut(&mut device, 1000, 5, SHUTDOWN_RECEIVE), Some(OutputKind::NoMoreReceived));
    assert_eq!((device.waiting_bytes(), device.host_room(id)), (0, 0));
    assert_eq!(shut(&mut device, 1000, 5, SHUTDOWN_SEND), Some(OutputKind::Close));
    assert_eq!(next(&mut device), None);
    device.host_gone(id);
    assert_eq!(next(&mut device), plain(Op::Reset));
    assert!(device.is_empty());
}

#[test]
fn what_a_host_wrote_before_it_closed_comes_before_the_end() {
    let mut device = connections();
    let id = from_guest(&mut device, 1000);
    device.host_bytes(id, b"bye");
    device.host_gone(id);
    // It crossed the end: nobody takes it, and the guest is not blamed.
    assert_eq!(data(&mut device, 1000, 5, &[0; 60_000]), None);
    assert_eq!(data(&mut device, 1000, 5, &[0; 60_000]), None);
    assert_eq!(next(&mut device), plain(Op::CreditUpdate));
    assert_eq!(next(&mut device), Some((Op::Data, 0, b"bye".to_vec())));
    assert_eq!(next(&mut device), Some((Op::Shutdown, SHUTDOWN_BOTH, Vec::new())));
    assert_eq!(shut(&mut device, 1000, 5, SHUTDOWN_BOTH), None);
    assert_eq!(next(&mut device), plain(Op::Reset));
    assert!(device.is_empty());
}

#[test]
fn a_guest_is_sent_no_more_than_it_has_room_for() {
    let mut device = connections();
    let request = Header { buf_alloc: 10, ..packet(Op::Request, 1000, 5) };
    let id = device.from_guest(&request, &[]).unwrap().id;
    device.accepted(id);
    assert_eq!(next(&mut device), plain(Op::Response));
    assert_eq!(device.host_bytes(id, &vec![7; BUFFER + 1]), BUFFER);
    assert_eq!(device.host_room(id), 0);
    assert_eq!(next(&mut device), Some((Op::Data, 0, vec![7; 10])));
    assert_eq!(next(&mut device), plain(Op::CreditRequest));
    assert_eq!(next(&mut device), None);
    let update = Header { buf_alloc: 10, fwd_cnt: 4, ..packet(Op::CreditUpdate, 1000, 5) };
    assert_eq!(device.from_guest(&update, &[]), None);
    assert_eq!(next(&mut device), Some((Op::Data, 0, vec![7; 4])));
    assert_eq!(next(&mut device), plain(Op::CreditRequest));
    assert_eq!(device.from_guest(&packet(Op::CreditRequest, 1000, 5), &[]), None);
    assert_eq!(next(&mut device), plain(Op::CreditUpdate));
    // No room in its buffer is no reason to keep an answer back.
    assert_eq!(device.next_for_guest(0), None);
    assert_eq!(device.host_room(id), 14);
}

#[test]
fn connections_take_turns() {
    let mut device = connections();
    let ids: Vec<_> = (0..3).map(|at| from_guest(&mut device, 1000 + at)).collect();
    for id in &ids {
        device.host_bytes(*id, &[1; 30]);
    }
    let mut served = Vec::new();
    while let Some((header, _)) = device.next_for_guest(10) {
        served.push(header.dst_port);
    }
    assert_eq!(served, [1000, 1001, 1002, 1000, 1001, 1002, 1000, 1001, 1002]);
}

/// What each of these gets a connection reset for.
#[test]
fn a_guest_that_does_what_it_must_not_is_reset() {
    let good = |op| Header { ..packet(op, 1000, 5) };
    let full = vec![0; BUFFER + 1];
    let cases: [(&str, Header, &[u8]); 8] = [
        ("more than its credit", Header { length: 65_537, ..good(Op::Data) }, &full),
        ("less than it says", Header { length: 9, ..good(Op::Data) }, b"12345678"),
        ("more than it says", Header { length: 7, ..good(Op::Data) }, b"12345678"),
        ("much more than it says", Header { length: u32::MAX, ..good(Op::Data) }, b""),
        ("a second request", good(Op::Request), b""),
        ("an answer to nothing", good(Op::Response), b""),
        ("no operation", Header { op: 0, ..good(Op::Data) }, b""),
        ("an operation that there is not", Header { op: 8, ..good(Op::Data) }, b""),
    ];
    for (case, header, payload) in cases {
        let mut device = connections();
        let id = from_guest(&mut device, 1000);
        let output = device.from_guest(&header, payload);
        assert_eq!(output, Some(Output { id, kind: OutputKind::Close }), "{case}");
        // What crosses the reset is nothing.
        assert_eq!(data(&mut device, 1000, 5, b"x"), None, "{case}");
        assert_eq!(next(&mut device), plain(Op::Reset), "{case}");
        assert_eq!(next(&mut device), None, "{case}");
        assert_eq!((device.len(), device.waiting_bytes()), (1, 0), "{case}");
        device.host_gone(id);
        assert!(device.is_empty(), "{case}");
    }
    // Before the host has answered, and behind its own end.
    let mut device = connections();
    let id = device.from_guest(&good(Op::Request), &[]).unwrap().id;
    assert_eq!(data(&mut device, 1000, 5, b"x"), Some(OutputKind::Close));
    device.accepted(id);
    assert_eq!(next(&mut device), plain(Op::Reset));
    from_guest(&mut device, 1001);
    assert_eq!(shut(&mut device, 1001, 5, SHUTDOWN_SEND), Some(OutputKind::NoMoreSent));
    assert_eq!(data(&mut device, 1001, 5, b"x"), Some(OutputKind::Close));
}

#[test]
fn a_packet_of_no_connection_is_answered_with_a_reset() {
    let mut device = connections();
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        assert_eq!(device.from_guest(&packet(op, 1000, 5), &[]), None);
        let (header, payload) = device.next_for_guest(0).unwrap();
        assert_eq!((header.op(), header.src_port, header.dst_port, payload.len()), (Ok(Op::Reset), 5, 1000, 0));
        assert_eq!(header.dst_cid, u64::from(GUEST_CID));
    }
    // Of another type: with that type, and no connection is harmed.
    from_guest(&mut device, 1000);
    assert_eq!(device.from_guest(&Header { kind: 2, ..packet(Op::Data, 1000, 5) }, &[]), None);
    let (header, _) = device.next_for_guest(0).unwrap();
    assert_eq!((header.op(), header.kind), (Ok(Op::Reset), 2));
    assert_eq!(device.len(), 1);
    // A reset is not answered, and other addresses are not this guest's.
    device.from_guest(&packet(Op::Reset, 1, 5), &[]);
    for port in [1, 1000] {
        let request = packet(Op::Request, port, 5);
        assert_eq!(device.from_guest(&Header { src_cid: 4, ..request }, &[]), None);
        assert_eq!(device.from_guest(&Header { dst_cid: 1, ..request }, &[]), None);
        assert_eq!(device.from_guest(&Header { dst_cid: HOST_CID | 1 << 32, ..request }, &[]), None);
    }
    assert_eq!(device.next_for_guest(0), None);
    assert_eq!(device.len(), 1);
}

#[test]
fn there_are_so_many_connections_and_no_more() {
    let mut device = connections();
    let max = u32::try_from(CONNECTIONS_MAX).unwrap();
    for guest in 0..max {
        assert!(device.from_guest(&packet(Op::Request, guest, 5), &[]).is_some());
    }
    assert_eq!(device.from_guest(&packet(Op::Request, max, 5), &[]), None);
    assert_eq!(device.host_opens(1), Err(TooManyConnections));
    assert_eq!(device.next_for_guest(0).unwrap().0.dst_port, max);
    // What the guest gives up counts until the host has nothing more of it.
    let output = device.from_guest(&packet(Op::Reset, 0, 5), &[]).unwrap();
    assert_eq!(output.kind, OutputKind::Close);
    assert_eq!(device.from_guest(&packet(Op::Request, 0, 5), &[]), None);
    assert_eq!(next(&mut device), plain(Op::Reset));
    device.host_gone(output.id);
    assert!(device.from_guest(&packet(Op::Request, 0, 5), &[]).is_some());
    // As many strangers as there is room for answers.
    for guest in max..2 * max {
        assert!(device.takes_packets());
        device.from_guest(&packet(Op::Data, guest, 5), &[]);
    }
    assert!(!device.takes_packets());
    device.from_guest(&packet(Op::Data, 3 * max, 5), &[]);
    assert_eq!((next(&mut device), device.takes_packets()), (plain(Op::Reset), true));
    device.reset_all();
    assert!(device.is_empty() && device.next_for_guest(0).is_none());
}

#[test]
fn nothing_of_before_a_reset_reaches_what_is_behind_it() {
    let mut device = connections();
    let old = device.host_opens(22).unwrap();
    let old_port = device.next_for_guest(0).unwrap().0.src_port;
    device.reset_all();
    let new = device.host_opens(22).unwrap();
    let new_port = device.next_for_guest(0).unwrap().0.src_port;
    assert!(old != new && old_port != new_port);
    assert_eq!(device.from_guest(&packet(Op::Response, 22, old_port), &[]), None);
    assert_eq!(next(&mut device), plain(Op::Reset));
    for id in [old, ConnectionId(99)] {
        assert!(!device.accepted(id));
        device.host_sends_no_more(id);
        device.delivered(id, 1);
        device.host_gone(id);
        assert_eq!((device.host_bytes(id, b"x"), device.host_room(id)), (0, 0));
    }
    assert_eq!(device.len(), 1);
}

/// The byte at a place of a stream.
fn byte(stream: u64, at: usize) -> u8 {
    (stream.wrapping_mul(31) ^ at as u64 ^ (at as u64 >> 8)).to_le_bytes()[0]
}

fn bytes(stream: u64, from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| byte(stream, at)).collect()
}

/// The host's end of a connection: a socket which takes bytes as it likes.
#[derive(Debug)]
struct HostEnd {
    stream: u64,
    key: Option<Key>,
    /// What it sends and sent, and whether it will then close both halves.
    to_send: usize,
    sent: usize,
    closes_at_end: bool,
    has_ended: bool,
    got: usize,
    unread: Vec<u8>,
    guest_ended: bool,
    closed: bool,
    gone: bool,
}

/// Both ends, and everything that is between them.
struct Simulation {
    random: Random,
    device: Connections,
    guest: ModelGuest,
    to_guest: VecDeque<(Header, Vec<u8>)>,
    held: VecDeque<Output>,
    ends: BTreeMap<ConnectionId, HostEnd>,
    /// What the guest sends, sent and got.
    guests: BTreeMap<Key, (usize, usize, usize)>,
    next_port: u32,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut guest = ModelGuest::new([1, 100, 4096, 70_000][usize::try_from(random.below(4)).unwrap()]);
        guest.listens.insert(22);
        Self {
            random,
            device: connections(),
            guest,
            to_guest: VecDeque::new(),
            held: VecDeque::new(),
            ends: BTreeMap::new(),
            guests: BTreeMap::new(),
            next_port: 1000,
        }
    }

    fn size(&mut self) -> usize {
        let most = [0, 3, 500, 10_000, 200_000][usize::try_from(self.random.below(5)).unwrap()];
        let most = if self.guest.room < 100 { most / 100 } else { most };
        usize::try_from(self.random.below(most + 1)).unwrap()
    }

    fn end(&mut self, id: ConnectionId, key: Option<Key>) {
        let (stream, to_send, closes_at_end) = (id.0, self.size(), self.random.one_in(3));
        let end = HostEnd {
            stream,
            key,
            to_send,
            sent: 0,
            closes_at_end,
            has_ended: false,
            got: 0,
            unread: Vec::new(),
            guest_ended: false,
            closed: false,
            gone: false,
        };
        assert!(self.ends.insert(id, end).is_none(), "an id came twice");
    }

    /// A released output at its socket.
    fn give(&mut self, output: Output) {
        if let OutputKind::Connect { port } = output.kind {
            self.end(output.id, None);
            if port == 5 {
                assert!(self.device.accepted(output.id));
            } else {
                self.device.host_gone(output.id);
                self.ends.get_mut(&output.id).unwrap().gone = true;
            }
            return;
        }
        let end = self.ends.get_mut(&output.id).unwrap();
        if end.gone {
            return;
        }
        match output.kind {
            OutputKind::Connect { .. } => {}
            OutputKind::Accept { host_port } => end.key = Some((22, host_port)),
            OutputKind::Bytes(bytes) => {
                assert!(!end.guest_ended && !end.closed, "bytes behind the end");
                end.unread.extend(bytes);
                assert!(end.unread.len() <= BUFFER);
            }
            OutputKind::NoMoreSent => end.guest_ended = true,
            OutputKind::NoMoreReceived => {}
            OutputKind::Close => assert!(!std::mem::replace(&mut end.closed, true), "closed twice"),
        }
    }

    fn host_step(&mut self, id: ConnectionId) {
        let wanted = usize::try_from(self.random.below(5000)).unwrap();
        let end = self.ends.get_mut(&id).unwrap();
        if end.gone {
            return;
        }
        // It reads what it has.
        let read: Vec<u8> = end.unread.drain(..wanted.min(end.unread.len())).collect();
        assert_eq!(read, bytes(!end.stream, end.got, read.len()), "bytes are whole and in order");
        end.got += read.len();
        self.device.delivered(id, read.len());
        // It sends what it may.
        if end.sent < end.to_send {
            let room = self.device.host_room(id);
            let part = bytes(end.stream, end.sent, wanted.min(end.to_send - end.sent));
            let taken = self.device.host_bytes(id, &part);
            assert_eq!(taken, part.len().min(room));
            end.sent += taken;
        } else if end.key.is_some() && !end.has_ended {
            end.has_ended = true;
            self.device.host_sends_no_more(id);
        }
        let is_finished = end.has_ended && end.unread.is_empty() && (end.closes_at_end || end.guest_ended);
        if is_finished || end.closed && end.unread.is_empty() {
            end.gone = true;
            self.device.host_gone(id);
        }
    }

    fn guest_step(&mut self, key: Key) {
        let (most, wanted) = (1 + self.random.below(3000), self.random.below(5000));
        let (most, wanted) = (usize::try_from(most).unwrap(), usize::try_from(wanted).unwrap());
        let Some(end) = self.ends.values().find(|end| end.key == Some(key)) else { return };
        let stream = end.stream;
        // The host closed before the guest looked at it.
        let Some(progress) = self.guests.get_mut(&key) else { return };
        let read = self.guest.read(key, wanted);
        assert_eq!(read, bytes(stream, progress.2, read.len()), "bytes are whole and in order");
        progress.2 += read.len();
        if progress.1 < progress.0 {
            let part = bytes(!stream, progress.1, wanted.min(progress.0 - progress.1));
            progress.1 += self.guest.send(key, &part, most);
            return;
        }
        let socket = &self.guest.sockets[&key];
        let everything = socket.host_shut & SHUTDOWN_SEND != 0 && socket.unread.is_empty();
        self.guest.shut_down(key, if everything { SHUTDOWN_BOTH } else { SHUTDOWN_SEND });
    }

    fn step(&mut self, opens: bool) {
        if self.random.one_in(16) {
            self.bounds();
        }
        match self.random.below(9) {
            0 if opens && self.random.one_in(4) => {
                if let Ok(id) = self.device.host_opens(if self.random.one_in(4) { 23 } else { 22 }) {
                    self.end(id, None);
                }
            }
            1 if opens && self.random.one_in(4) => {
                let key = (self.next_port, if self.random.one_in(4) { 6 } else { 5 });
                self.next_port += 1;
                self.guest.connect(key);
            }
            2 => {
                if let Some(output) = self.held.pop_front() {
                    self.give(output);
                }
            }
            3 | 4 => {
                let output = self.guest.transmit(&mut self.device);
                self.held.extend(output);
            }
            5 => {
                let room = usize::try_from(self.random.below(6000)).unwrap();
                let packet = self.device.next_for_guest(room);
                assert!(packet.as_ref().is_none_or(|(_, payload)| payload.len() <= room));
                self.to_guest.extend(packet);
            }
            6 => {
                if let Some((header, payload)) = self.to_guest.pop_front() {
                    self.guest.receive(&header, &payload);
                }
            }
            7 => {
                let ids: Vec<_> = self.ends.keys().copied().collect();
                if let Some(id) = self.pick(&ids) {
                    self.host_step(id);
                }
            }
            _ => {
                let keys: Vec<_> = self.guest.sockets.keys().copied().collect();
                if let Some(key) = self.pick(&keys) {
                    self.meet(key);
                    self.guest_step(key);
                }
            }
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(usize::try_from(self.random.below(from.len().max(1) as u64)).unwrap()).copied()
    }

    /// The guest's end of a connection, which it has known since it is connected. One that it asked
    /// for has the stream of the output with the same ports.
    fn meet(&mut self, key: Key) {
        if self.guests.contains_key(&key) {
            return;
        }
        let to_send = self.size();
        self.guests.insert(key, (to_send, 0, 0));
        if let Some(id) = self.device.by_ports.get(&Ports { host: key.1, guest: key.0 })
            && let Some(end) = self.ends.get_mut(id)
        {
            end.key.get_or_insert(key);
        } else {
            self.guests.remove(&key);
        }
    }

    fn bounds(&self) {
        assert!(self.device.len() <= CONNECTIONS_MAX);
        assert!(self.device.waiting_bytes() <= WAITING_BYTES_MAX);
        assert!(self.device.held_bytes() <= (CONNECTIONS_MAX * BUFFER) as u64);
    }

    fn is_quiet(&self) -> bool {
        let guest_over = self.guest.sockets.values().all(|socket| socket.is_over);
        guest_over && self.held.is_empty() && self.to_guest.is_empty() && self.guest.queued() == 0 && self.device.is_empty()
    }
}

#[test]
fn two_ends_get_everything_in_order_and_close() {
    for seed in seeds(12, 1000) {
        println!("SLACKWATER_SEED={seed}");
        let mut simulation = Simulation::new(seed);
        for _ in 0..1500 {
            simulation.step(true);
        }
        let mut steps = 0;
        while !simulation.is_quiet() {
            simulation.step(false);
            steps += 1;
            assert!(steps < 4_000_000, "it comes to an end: {:?}", simulation.device);
        }
        let mut moved = 0;
        for end in simulation.ends.values().filter(|end| end.key.is_some()) {
            let (_, sent, got) = simulation.guests.get(&end.key.unwrap()).copied().unwrap_or_default();
            assert!(end.gone && end.unread.is_empty());
            assert_eq!(got, end.sent, "{end:?}");
            assert!(end.closes_at_end || end.got == sent, "{end:?}");
            moved += got + end.got;
        }
        println!("{} connections, {moved} bytes", simulation.ends.len());
    }
}

#[test]
fn no_packet_breaks_a_bound() {
    for seed in seeds(10, 1000) {
        println!("SLACKWATER_SEED={seed}");
        let mut random = Random(seed);
        let mut device = connections();
        let mut held: VecDeque<Output> = VecDeque::new();
        let mut seen = BTreeSet::new();
        let payload = vec![0; BUFFER + 100];
        let few = 1 + random.below(400);
        for _ in 0..10_000 {
            let port = |random: &mut Random| u32::try_from(random.below(few)).unwrap();
            match random.below(6) {
                0..=2 => {
                    let count = [0, 1, 100, 5000, BUFFER, BUFFER + 100][usize::try_from(random.below(6)).unwrap()];
                    let length =
                        if random.one_in(20) { random.next().to_le_bytes()[0].into() } else { count.try_into().unwrap() };
                    let header = Header {
                        src_cid: if random.one_in(50) { random.below(5) } else { GUEST_CID.into() },
                        dst_cid: if random.one_in(50) { random.below(5) } else { HOST_CID },
                        src_port: port(&mut random),
                        dst_port: if random.one_in(2) { HOST_PORT + port(&mut random) } else { 5 },
                        length,
                        kind: u16::from(!random.one_in(50)),
                        op: u16::try_from(random.below(9)).unwrap(),
                        flags: u32::try_from(random.below(6)).unwrap(),
                        buf_alloc: u32::MAX >> random.below(33).min(31),
                        fwd_cnt: u32::MAX >> random.below(33).min(31),
                    };
                    held.extend(device.from_guest(&header, &payload[..count]));
                }
                3 => drop(device.next_for_guest(usize::try_from(random.below(70_000)).unwrap())),
                4 => seen.extend(device.host_opens(port(&mut random))),
                _ => {
                    if let Some(output) = held.pop_front() {
                        seen.insert(output.id);
                        match output.kind {
                            OutputKind::Connect { .. } if random.one_in(2) => {
                                device.accepted(output.id);
                            }
                            OutputKind::Bytes(bytes) => device.delivered(output.id, bytes.len()),
                            OutputKind::Close | OutputKind::Connect { .. } => device.host_gone(output.id),
                            _ => {}
                        }
                    }
                    let at = usize::try_from(random.below(seen.len().max(1) as u64)).unwrap();
                    if let Some(id) = seen.iter().nth(at).copied() {
                        match random.below(6) {
                            3 => device.host_receives_no_more(id),
                            0 => device.host_sends_no_more(id),
                            1 => device.host_gone(id),
                            2 => device.delivered(id, usize::MAX),
                            _ => assert!(device.host_bytes(id, &payload) <= BUFFER),
                        }
                    }
                }
            }
            assert!(device.len() <= CONNECTIONS_MAX && device.resets.len() <= RESETS_MAX);
            assert!(device.waiting_bytes() <= WAITING_BYTES_MAX);
            assert!(device.held_bytes() <= (device.len() * BUFFER) as u64);
            assert!(device.by_ports.values().all(|id| device.slots.contains_key(id)));
            assert!(device.slots.values().all(|slot| !slot.connection.is_done()));
        }
        // Whatever it did, the device is empty once both sides are done.
        seen.iter().for_each(|id| device.host_gone(*id));
        held.iter().for_each(|output| device.host_gone(output.id));
        while device.next_for_guest(BUFFER).is_some() {}
        let known: Vec<Ports> = device.by_ports.keys().copied().collect();
        for ports in known {
            device.from_guest(&packet(Op::Reset, ports.guest, ports.host), &[]);
        }
        assert!(device.is_empty(), "{device:?}");
    }
}
