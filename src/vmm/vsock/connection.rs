//! One connection between the guest and a socket of the host.

use std::collections::VecDeque;

use super::credit::{BUFFER_BYTES, Credit};
use super::output::OutputKind;
use super::packet::{Header, Op, PAYLOAD_BYTES_MAX, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// The most bytes of a connection that wait for the guest. Widening; `From` is not const.
pub(super) const TO_GUEST_BYTES_MAX: usize = BUFFER_BYTES as usize;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The guest asked; the host's answer is not known.
    GuestAsked,
    /// The host asks; the guest was not told.
    HostAsks,
    /// The guest was told, and has not answered.
    HostAsked,
    /// Bytes flow, as far as neither side has shut them down.
    Established,
    /// For the guest it is over, or will be with the reset that it is to get.
    Over {
        /// Whether it is to get one.
        reset: bool,
    },
}

/// A packet to the guest, before it has its addresses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) op: Op,
    pub(super) flags: u32,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    const fn plain(op: Op) -> Self {
        Self { op, flags: 0, payload: Vec::new() }
    }
}

/// Both sides of it. Each half that is shut down is a flag of virtio's: what a side will not do any
/// more.
#[derive(Debug)]
pub(super) struct Connection {
    stage: Stage,
    credit: Credit,
    guest_shut: u32,
    host_shut: u32,
    /// What the guest was told of `host_shut`.
    told_shut: u32,
    /// The host has no socket any more: nothing is put out.
    host_gone: bool,
    /// That the guest closed it was put out.
    close_is_out: bool,
    owes_response: bool,
    owes_credit: bool,
    /// The guest was asked for room since it was last sent bytes.
    asked_for_credit: bool,
    to_guest: VecDeque<u8>,
}

impl Connection {
    fn new(stage: Stage) -> Self {
        Self {
            stage,
            credit: Credit::default(),
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            host_gone: false,
            close_is_out: false,
            owes_response: false,
            owes_credit: false,
            asked_for_credit: false,
            to_guest: VecDeque::new(),
        }
    }

    /// The guest asks for it with this header.
    pub(super) fn of_guest(request: &Header) -> Self {
        let mut connection = Self::new(Stage::GuestAsked);
        connection.credit.note_guest(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// The host asks for it.
    pub(super) fn of_host() -> Self {
        Self::new(Stage::HostAsks)
    }

    /// Whether the guest may use the same ports for another.
    pub(super) fn has_left_guest(&self) -> bool {
        self.stage == Stage::Over { reset: false }
    }

    /// Whether nobody has anything more to do with it.
    pub(super) fn is_done(&self) -> bool {
        self.has_left_guest() && self.host_gone
    }

    /// Bytes that wait for the guest.
    pub(super) fn to_guest_bytes(&self) -> usize {
        self.to_guest.len()
    }

    /// Bytes of the guest that no host socket took.
    pub(super) const fn held_bytes(&self) -> u32 {
        self.credit.held()
    }

    /// Takes a packet of the guest, and says what it means for the host.
    pub(super) fn receive(&mut self, header: &Header, payload: &[u8]) -> Option<OutputKind> {
        if matches!(self.stage, Stage::Over { .. }) {
            // The reset is on its way: the packet crossed it.
            return None;
        }
        let (Ok(op), Ok(())) = (header.op(), header.check_length(payload)) else { return self.abort() };
        self.credit.note_guest(header.buf_alloc, header.fwd_cnt);
        match (op, self.stage) {
            (Op::Reset, _) => self.end(false),
            (Op::Response, Stage::HostAsked) => {
                self.stage = Stage::Established;
                Some(OutputKind::Accept { host_port: header.dst_port })
            }
            (Op::Data, Stage::Established) if self.guest_shut & SHUTDOWN_SEND == 0 => self.receive_bytes(header.length, payload),
            (Op::Shutdown, Stage::Established) => self.shut_by_guest(header.flags),
            (Op::CreditUpdate, Stage::Established) => None,
            (Op::CreditRequest, Stage::Established) => {
                self.owes_credit = true;
                None
            }
            _ => self.abort(),
        }
    }

    fn receive_bytes(&mut self, length: u32, payload: &[u8]) -> Option<OutputKind> {
        if !self.credit.receive(length) {
            return self.abort();
        }
        if self.host_gone {
            // Nobody will read them. The guest learns that behind the bytes which wait for it.
            self.credit.forward(length);
        }
        (!self.host_gone && !payload.is_empty()).then(|| OutputKind::Bytes(payload.to_vec()))
    }

    fn shut_by_guest(&mut self, flags: u32) -> Option<OutputKind> {
        let before = self.guest_shut;
        self.guest_shut |= flags & SHUTDOWN_BOTH;
        if self.guest_shut & SHUTDOWN_RECEIVE != 0 {
            self.to_guest = VecDeque::new();
        }
        if self.guest_shut == before {
            return None;
        }
        match (self.host_gone, self.guest_shut) {
            (true, SHUTDOWN_BOTH) => self.end(true),
            (true, _) => None,
            (false, SHUTDOWN_BOTH) => self.close(),
            (false, SHUTDOWN_SEND) => Some(OutputKind::NoMoreSent),
            (false, _) => Some(OutputKind::NoMoreReceived),
        }
    }

    /// The guest did what it must not do.
    fn abort(&mut self) -> Option<OutputKind> {
        self.end(true)
    }

    /// It is over for the guest, which may have to be told.
    fn end(&mut self, reset: bool) -> Option<OutputKind> {
        self.stage = Stage::Over { reset };
        self.to_guest = VecDeque::new();
        self.close()
    }

    fn close(&mut self) -> Option<OutputKind> {
        let is_new = !self.host_gone && !self.close_is_out;
        self.close_is_out |= is_new;
        is_new.then_some(OutputKind::Close)
    }

    /// The host has a socket for what the guest asked for.
    pub(super) fn accept(&mut self) {
        if self.stage == Stage::GuestAsked {
            self.stage = Stage::Established;
            self.owes_response = true;
        }
    }

    /// Bytes of the host that are taken now.
    pub(super) fn host_room(&self) -> usize {
        let flows = self.stage == Stage::Established && self.guest_shut & SHUTDOWN_RECEIVE == 0;
        if flows && self.host_shut & SHUTDOWN_SEND == 0 { TO_GUEST_BYTES_MAX.saturating_sub(self.to_guest.len()) } else { 0 }
    }

    /// Takes bytes of the host, as many as there is room for.
    pub(super) fn take_from_host(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.host_room());
        self.to_guest.extend(bytes.iter().take(taken));
        taken
    }

    /// The host will not do any more what the flags say.
    pub(super) const fn shut_by_host(&mut self, flags: u32) {
        self.host_shut |= flags;
    }

    /// So many bytes of the guest were given to the host's socket.
    pub(super) fn delivered(&mut self, bytes: u32) {
        self.credit.forward(bytes);
    }

    /// The host has no socket any more, or never had one.
    pub(super) fn host_is_gone(&mut self) {
        self.host_gone = true;
        self.host_shut = SHUTDOWN_BOTH;
        self.credit.forward(u32::MAX);
        match self.stage {
            Stage::HostAsks => self.stage = Stage::Over { reset: false },
            Stage::GuestAsked | Stage::HostAsked => self.stage = Stage::Over { reset: true },
            Stage::Established if self.guest_shut == SHUTDOWN_BOTH => self.stage = Stage::Over { reset: true },
            Stage::Established | Stage::Over { .. } => {}
        }
    }

    /// The next packet for a guest with room for so many bytes of payload.
    pub(super) fn next(&mut self, room_bytes: usize) -> Option<Packet> {
        match self.stage {
            Stage::GuestAsked | Stage::HostAsked | Stage::Over { reset: false } => None,
            Stage::HostAsks => {
                self.stage = Stage::HostAsked;
                Some(Packet::plain(Op::Request))
            }
            Stage::Over { reset: true } => {
                self.stage = Stage::Over { reset: false };
                Some(Packet::plain(Op::Reset))
            }
            Stage::Established => self.next_established(room_bytes),
        }
    }

    fn next_established(&mut self, room_bytes: usize) -> Option<Packet> {
        if std::mem::take(&mut self.owes_response) {
            return Some(Packet::plain(Op::Response));
        }
        if std::mem::take(&mut self.owes_credit) || self.credit.has_news() {
            return Some(Packet::plain(Op::CreditUpdate));
        }
        if self.to_guest.is_empty() {
            let is_news = self.host_shut != self.told_shut;
            self.told_shut = self.host_shut;
            return is_news.then(|| Packet { flags: self.told_shut, ..Packet::plain(Op::Shutdown) });
        }
        let credit = self.credit.guest_has_room();
        if credit == 0 {
            let is_asked = std::mem::replace(&mut self.asked_for_credit, true);
            return (!is_asked).then(|| Packet::plain(Op::CreditRequest));
        }
        let waiting = u32::try_from(self.to_guest.len().min(room_bytes)).unwrap_or(u32::MAX);
        let bytes = waiting.min(credit).min(PAYLOAD_BYTES_MAX);
        if bytes == 0 {
            return None;
        }
        self.asked_for_credit = false;
        self.credit.note_sent(bytes);
        let payload = self.to_guest.drain(..usize::try_from(bytes).unwrap_or(usize::MAX).min(self.to_guest.len())).collect();
        Some(Packet { payload, ..Packet::plain(Op::Data) })
    }

    /// What the header of a packet to the guest says of our room.
    pub(super) const fn tell_credit(&mut self) -> (u32, u32) {
        (BUFFER_BYTES, self.credit.tell())
    }
}
