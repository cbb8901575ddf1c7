//! A driver and its sockets as simple as there can be, for tests. It keeps to the specification,
//! and panics where the device does not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::connections::Connections;
use super::output::Output;
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

pub(super) const GUEST_CID: u32 = 3;

/// The ports of the guest and of the host.
pub(super) type Key = (u32, u32);

/// A socket of the guest.
#[derive(Debug, Default)]
pub(super) struct GuestSocket {
    pub(super) is_connected: bool,
    /// It was reset: nothing more comes.
    pub(super) is_over: bool,
    /// What came, and was not read.
    pub(super) unread: VecDeque<u8>,
    /// What the host will not do any more.
    pub(super) host_shut: u32,
    shut: u32,
    room: u32,
    received: u32,
    forwarded: u32,
    told: u32,
    sent: u32,
    host_room: u32,
    host_forwarded: u32,
}

#[derive(Debug)]
pub(super) struct ModelGuest {
    /// Room of each new socket.
    pub(super) room: u32,
    pub(super) listens: BTreeSet<u32>,
    pub(super) sockets: BTreeMap<Key, GuestSocket>,
    /// Packets that wait in the driver's queue.
    queue: VecDeque<(Header, Vec<u8>)>,
}

impl ModelGuest {
    pub(super) fn new(room: u32) -> Self {
        Self { room, listens: BTreeSet::new(), sockets: BTreeMap::new(), queue: VecDeque::new() }
    }

    /// Packets that wait for the device.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    fn put(&mut self, key: Key, op: Op, flags: u32, payload: &[u8]) {
        let header = Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID,
            src_port: key.0,
            dst_port: key.1,
            length: payload.len().try_into().unwrap(),
            kind: TYPE_STREAM,
            op: op.number(),
            flags,
            ..Header::default()
        };
        let credit = self.sockets.get_mut(&key).map(|socket| {
            socket.told = socket.forwarded;
            (socket.room, socket.told)
        });
        let (buf_alloc, fwd_cnt) = credit.unwrap_or_default();
        self.queue.push_back((Header { buf_alloc, fwd_cnt, ..header }, payload.to_vec()));
    }

    fn add(&mut self, key: Key) -> &mut GuestSocket {
        let socket = GuestSocket { room: self.room, ..GuestSocket::default() };
        assert!(self.sockets.insert(key, socket).is_none_or(|old| old.is_over), "{key:?} is in use");
        self.sockets.get_mut(&key).unwrap()
    }

    pub(super) fn connect(&mut self, key: Key) {
        self.add(key);
        self.put(key, Op::Request, 0, &[]);
    }

    /// Sends as much as the device has room for, in packets of at most `packet` bytes: how much.
    pub(super) fn send(&mut self, key: Key, bytes: &[u8], packet: usize) -> usize {
        let socket = self.sockets.get_mut(&key).unwrap();
        if !socket.is_connected || socket.is_over || socket.shut & SHUTDOWN_SEND != 0 {
            return 0;
        }
        let room = socket.host_room - socket.sent.wrapping_sub(socket.host_forwarded);
        let taken = bytes.len().min(room as usize);
        socket.sent = socket.sent.wrapping_add(u32::try_from(taken).unwrap());
        for part in bytes[..taken].chunks(packet) {
            self.put(key, Op::Data, 0, part);
        }
        taken
    }

    /// Reads at most `count` bytes, and tells the device once half of the room is new.
    pub(super) fn read(&mut self, key: Key, count: usize) -> Vec<u8> {
        let socket = self.sockets.get_mut(&key).unwrap();
        let bytes: Vec<u8> = socket.unread.drain(..count.min(socket.unread.len())).collect();
        socket.forwarded = socket.forwarded.wrapping_add(u32::try_from(bytes.len()).unwrap());
        let is_news = socket.forwarded.wrapping_sub(socket.told) * 2 > socket.room;
        if is_news && !socket.is_over && socket.shut & SHUTDOWN_RECEIVE == 0 {
            self.put(key, Op::CreditUpdate, 0, &[]);
        }
        self.end_if_closed(key);
        bytes
    }

    pub(super) fn shut_down(&mut self, key: Key, flags: u32) {
        let socket = self.sockets.get_mut(&key).unwrap();
        if socket.is_connected && !socket.is_over && socket.shut | flags != socket.shut {
            socket.shut |= flags;
            let flags = socket.shut;
            self.put(key, Op::Shutdown, flags, &[]);
        }
    }

    /// A host that does nothing any more is answered once all was read.
    fn end_if_closed(&mut self, key: Key) {
        let socket = self.sockets.get_mut(&key).unwrap();
        if !socket.is_over && socket.host_shut == SHUTDOWN_BOTH && socket.unread.is_empty() {
            socket.is_over = true;
            self.put(key, Op::Reset, 0, &[]);
        }
    }

    /// Takes a packet of the device.
    pub(super) fn receive(&mut self, header: &Header, payload: &[u8]) {
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, u64::from(GUEST_CID), TYPE_STREAM));
        assert_eq!(header.check_length(payload), Ok(()));
        let key = (header.dst_port, header.src_port);
        let op = header.op().unwrap();
        let live = self.sockets.get(&key).is_some_and(|socket| !socket.is_over);
        if op == Op::Request {
            assert!(!live, "{key:?} is connected already");
            if self.listens.contains(&key.0) {
                self.add(key).is_connected = true;
                self.put(key, Op::Response, 0, &[]);
            } else {
                self.put(key, Op::Reset, 0, &[]);
            }
        }
        let Some(socket) = self.sockets.get_mut(&key).filter(|socket| !socket.is_over) else {
            // It crossed a reset.
            return;
        };
        (socket.host_room, socket.host_forwarded) = (header.buf_alloc, header.fwd_cnt);
        assert!(socket.sent.wrapping_sub(socket.host_forwarded) <= socket.host_room, "credit that the guest never had");
        match op {
            Op::Request => {}
            Op::Response => {
                assert!(!std::mem::replace(&mut socket.is_connected, true), "accepted twice");
            }
            Op::Reset => socket.is_over = true,
            Op::Shutdown => {
                assert!(header.flags & SHUTDOWN_BOTH == header.flags && header.flags & !socket.host_shut != 0);
                socket.host_shut |= header.flags;
                self.end_if_closed(key);
            }
            Op::Data => {
                assert!(socket.is_connected && socket.host_shut & SHUTDOWN_SEND == 0, "bytes behind the end");
                socket.received = socket.received.wrapping_add(header.length);
                assert!(socket.received.wrapping_sub(socket.forwarded) <= socket.room, "more bytes than there is room for");
                if socket.shut & SHUTDOWN_RECEIVE == 0 {
                    socket.unread.extend(payload);
                }
            }
            Op::CreditUpdate => {}
            Op::CreditRequest => self.put(key, Op::CreditUpdate, 0, &[]),
        }
    }

    /// Gives the device a packet, if it takes one.
    pub(super) fn transmit(&mut self, device: &mut Connections) -> Option<Output> {
        if !device.takes_packets() {
            return None;
        }
        let (header, payload) = self.queue.pop_front()?;
        device.from_guest(&header, &payload)
    }
}
