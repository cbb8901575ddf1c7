//! All connections of a guest: a packet goes in, what it means for the host comes out, and the
//! other way round. No I/O and no clock.
//!
//! Bounded whatever the guest does: connections in number, and the bytes of each in both
//! directions. A connection counts until the guest and the host's socket are done with it, so what
//! it put out counts too. Where there is no room for an answer the guest's queue has to wait
//! ([`Connections::takes_packets`]).
//!
//! Connections do not survive a restore or a rollback. The device tells the driver, and begins with
//! none: a packet of an old one is answered with a reset.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::connection::{Connection, Packet, TO_GUEST_BYTES_MAX};
use super::output::{ConnectionId, Output, OutputKind};
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// The most connections.
pub const CONNECTIONS_MAX: usize = 256;
/// The most bytes that wait for the guest, of all connections.
pub const WAITING_BYTES_MAX: usize = CONNECTIONS_MAX * TO_GUEST_BYTES_MAX;
/// The most resets of what is no connection that wait for the guest.
const RESETS_MAX: usize = 256;

/// The ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ports {
    host: u32,
    guest: u32,
}

/// There are as many connections as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest has {CONNECTIONS_MAX} connections, and there can't be more")]
pub struct TooManyConnections;

#[derive(Debug)]
struct Slot {
    ports: Ports,
    connection: Connection,
}

/// The connections of one guest.
#[derive(Debug)]
pub struct Connections {
    guest_cid: u64,
    next_id: u64,
    next_host_port: u32,
    slots: BTreeMap<ConnectionId, Slot>,
    /// Those that the guest knows, or is to know.
    by_ports: BTreeMap<Ports, ConnectionId>,
    /// Resets of what is no connection, with the type of its packet.
    resets: VecDeque<(Ports, u16)>,
    /// The connection that the guest got a packet of last.
    last_served: ConnectionId,
}

impl Connections {
    /// For the guest with this address. The host's side of a connection that the host asks for has
    /// a port from `first_host_port` on. Let that be another after each restore: a packet that the
    /// guest sent before must not fit a new connection.
    #[must_use]
    pub fn new(guest_cid: u32, first_host_port: u32) -> Self {
        Self {
            guest_cid: guest_cid.into(),
            next_id: 1,
            next_host_port: first_host_port,
            slots: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            resets: VecDeque::new(),
            last_served: ConnectionId(0),
        }
    }

    /// Connections that there are, those included that only one side knows any more.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes that wait for the guest, at most [`WAITING_BYTES_MAX`].
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.slots.values().map(|slot| slot.connection.to_guest_bytes()).sum()
    }

    /// Bytes of the guest which are in outputs, or before a socket of the host that did not take
    /// them.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.slots.values().map(|slot| u64::from(slot.connection.held_bytes())).sum()
    }

    /// Whether there is room for the answer to a packet of the guest. Where there is none, its
    /// queue has to wait until it has taken packets.
    #[must_use]
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Takes a packet of the guest, and says what it means for the host. Whatever is wrong with it
    /// is answered to the guest with a reset; a packet with other addresses than the guest's and
    /// the host's is ignored.
    pub fn from_guest(&mut self, header: &Header, payload: &[u8]) -> Option<Output> {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return None;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let known = self.by_ports.get(&ports).copied().filter(|_| header.kind == TYPE_STREAM);
        let Some(id) = known else { return self.receive_stray(ports, header, payload) };
        let slot = self.slots.get_mut(&id)?;
        let kind = slot.connection.receive(header, payload);
        self.tidy(id);
        kind.map(|kind| Output { id, kind })
    }

    /// A packet of no connection.
    fn receive_stray(&mut self, ports: Ports, header: &Header, payload: &[u8]) -> Option<Output> {
        let is_request = header.kind == TYPE_STREAM && header.op() == Ok(Op::Request) && header.check_length(payload).is_ok();
        if is_request && self.slots.len() < CONNECTIONS_MAX {
            let id = self.add(ports, Connection::of_guest(header));
            return Some(Output { id, kind: OutputKind::Connect { port: ports.host } });
        }
        // A reset is never answered with another.
        let reset = (ports, header.kind);
        if header.op() != Ok(Op::Reset) && self.takes_packets() && !self.resets.contains(&reset) {
            self.resets.push_back(reset);
        }
        None
    }

    /// The next packet for the guest, whose buffer has room for so many bytes of payload.
    /// Connections take turns.
    pub fn next_for_guest(&mut self, room_bytes: usize) -> Option<(Header, Vec<u8>)> {
        if let Some((ports, kind)) = self.resets.pop_front() {
            return Some((Header { kind, ..self.header(ports, Op::Reset) }, Vec::new()));
        }
        let behind = (Bound::Excluded(self.last_served), Bound::Unbounded);
        let next = |(id, slot): (&ConnectionId, &mut Slot)| Some((*id, slot.ports, slot.connection.next(room_bytes)?));
        let found = self.slots.range_mut(behind).find_map(next);
        let (id, ports, packet) = match found {
            Some(found) => found,
            None => self.slots.range_mut(..=self.last_served).find_map(next)?,
        };
        self.last_served = id;
        let Packet { op, flags, payload } = packet;
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let (buf_alloc, fwd_cnt) = self.slots.get_mut(&id)?.connection.tell_credit();
        self.tidy(id);
        Some((Header { length, flags, buf_alloc, fwd_cnt, ..self.header(ports, op) }, payload))
    }

    fn header(&self, ports: Ports, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            op: op.number(),
            ..Header::default()
        }
    }

    /// The host asks for a connection to a port of the guest. Whether the guest accepts comes as an
    /// output.
    ///
    /// # Errors
    /// [`TooManyConnections`].
    pub fn host_opens(&mut self, guest_port: u32) -> Result<ConnectionId, TooManyConnections> {
        if self.slots.len() >= CONNECTIONS_MAX {
            return Err(TooManyConnections);
        }
        loop {
            let ports = Ports { host: self.next_host_port, guest: guest_port };
            self.next_host_port = self.next_host_port.wrapping_add(1);
            // Fewer ports are taken than there are connections.
            if !self.by_ports.contains_key(&ports) {
                return Ok(self.add(ports, Connection::of_host()));
            }
        }
    }

    fn add(&mut self, ports: Ports, connection: Connection) -> ConnectionId {
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        self.slots.insert(id, Slot { ports, connection });
        self.by_ports.insert(ports, id);
        id
    }

    /// The host has a socket for a connection that the guest asked for. Returns whether anybody
    /// still knows the connection; if not, the socket is to be closed.
    pub fn accepted(&mut self, id: ConnectionId) -> bool {
        self.change(id, Connection::accept);
        self.slots.contains_key(&id)
    }

    /// Bytes of the host that the connection takes now.
    #[must_use]
    pub fn host_room(&self, id: ConnectionId) -> usize {
        self.slots.get(&id).map_or(0, |slot| slot.connection.host_room())
    }

    /// Takes bytes of the host for the guest: how many is returned.
    pub fn host_bytes(&mut self, id: ConnectionId, bytes: &[u8]) -> usize {
        self.slots.get_mut(&id).map_or(0, |slot| slot.connection.take_from_host(bytes))
    }

    /// The host will not send any more.
    pub fn host_sends_no_more(&mut self, id: ConnectionId) {
        self.change(id, |connection| connection.shut_by_host(SHUTDOWN_SEND));
    }

    /// The host will not receive any more. What the guest sends until it knows is still put out.
    pub fn host_receives_no_more(&mut self, id: ConnectionId) {
        self.change(id, |connection| connection.shut_by_host(SHUTDOWN_RECEIVE));
    }

    /// So many bytes of the guest were given to the host's socket: it may send as many more.
    pub fn delivered(&mut self, id: ConnectionId, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.change(id, |connection| connection.delivered(bytes));
    }

    /// The host has no socket for the connection, or has it no more: it refused, it closed, or it
    /// did what [`OutputKind::Close`] says.
    pub fn host_gone(&mut self, id: ConnectionId) {
        self.change(id, Connection::host_is_gone);
    }

    /// Forgets all connections: the machine is another one, and the driver is told so. Ids and the
    /// host's ports go on from where they were.
    pub fn reset_all(&mut self) {
        self.slots.clear();
        self.by_ports.clear();
        self.resets.clear();
    }

    fn change(&mut self, id: ConnectionId, change: impl FnOnce(&mut Connection)) {
        if let Some(slot) = self.slots.get_mut(&id) {
            change(&mut slot.connection);
            self.tidy(id);
        }
    }

    /// Forgets what is over: for the guest its ports, for both everything.
    fn tidy(&mut self, id: ConnectionId) {
        let Some(slot) = self.slots.get(&id) else { return };
        if slot.connection.has_left_guest() && self.by_ports.get(&slot.ports) == Some(&id) {
            self.by_ports.remove(&slot.ports);
        }
        if slot.connection.is_done() {
            self.slots.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests;
