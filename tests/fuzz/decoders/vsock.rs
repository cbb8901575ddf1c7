//! The sockets of a guest: whatever it sends, and whatever the host does meanwhile, connections and
//! bytes stay within their bounds, an output belongs to a connection that has room for it, and the
//! end of both sides leaves nothing.
//!
//! An input is steps, each of a byte and what it takes: a packet (a header, which says how many
//! bytes of payload there are, if it is right), or something that the host does with a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use slackwater::vmm::vsock::{
    CONNECTIONS_MAX, ConnectionId, Connections, HEADER_BYTES, HOST_CID, Header, Op, OutputKind, TYPE_STREAM, WAITING_BYTES_MAX,
};

use super::{Bytes, Random};

const GUEST_CID: u32 = 3;
const HOST_PORT: u32 = 1 << 30;
/// Of a connection, in each direction.
const BUFFER_BYTES: usize = 64 << 10;
/// Bytes of a step of the host's.
const HOST_STEP_BYTES: usize = 4;

/// The first byte of a step, and how many bytes it takes.
fn cut(data: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (first, rest) = data.split_first()?;
    let length = if first % 2 == 0 { HEADER_BYTES } else { HOST_STEP_BYTES - 1 };
    let (step, behind) = rest.split_at_checked(length)?;
    Some((*first, step, behind))
}

#[derive(Default)]
struct Seen {
    /// Every connection that there was, with the bytes of it that no host took.
    held: BTreeMap<ConnectionId, usize>,
    ids: Vec<ConnectionId>,
    /// Of the guest and the host, for all connections that the guest knows.
    ports: BTreeSet<(u32, u32)>,
}

impl Seen {
    fn add(&mut self, id: ConnectionId) {
        assert!(self.held.insert(id, 0).is_none(), "an id came twice");
        self.ids.push(id);
    }
}

pub(super) fn check(data: &[u8]) {
    let mut device = Connections::new(GUEST_CID, HOST_PORT);
    let mut seen = Seen::default();
    let payload = vec![0; BUFFER_BYTES];
    let mut rest = data;
    while let Some((first, step, behind)) = cut(rest) {
        rest = behind;
        if first % 2 == 0 {
            let header = Header::decode(step).unwrap();
            assert_eq!(header.encode(), step);
            // Some packets have another payload than they say.
            let said = usize::try_from(header.length).unwrap_or(usize::MAX).min(payload.len());
            let length = if first & 2 == 0 { said } else { usize::from(first) };
            packet(&mut device, &mut seen, &header, &payload[..length]);
        } else {
            host(&mut device, &mut seen, first, step, &payload);
        }
        assert!(device.len() <= CONNECTIONS_MAX && device.waiting_bytes() <= WAITING_BYTES_MAX);
        assert!(device.held_bytes() <= (device.len() * BUFFER_BYTES) as u64);
    }
    // Both sides end.
    seen.ids.iter().for_each(|id| device.host_gone(*id));
    while let Some((header, _)) = device.next_for_guest(BUFFER_BYTES) {
        seen.ports.insert((header.dst_port, header.src_port));
    }
    for (src_port, dst_port) in seen.ports {
        device.from_guest(&header(Op::Reset, src_port, dst_port), &[]);
    }
    assert!(device.is_empty() && device.next_for_guest(BUFFER_BYTES).is_none(), "{device:?}");
}

fn packet(device: &mut Connections, seen: &mut Seen, header: &Header, payload: &[u8]) {
    let Some(output) = device.from_guest(header, payload) else { return };
    assert!(header.src_cid == u64::from(GUEST_CID) && header.dst_cid == HOST_CID && header.kind == TYPE_STREAM);
    match output.kind {
        OutputKind::Connect { port } => {
            assert!(header.op() == Ok(Op::Request) && port == header.dst_port);
            seen.add(output.id);
            seen.ports.insert((header.src_port, header.dst_port));
        }
        OutputKind::Bytes(bytes) => {
            assert!(header.op() == Ok(Op::Data) && bytes == payload && !bytes.is_empty());
            let held = seen.held.get_mut(&output.id).unwrap();
            *held += bytes.len();
            assert!(*held <= BUFFER_BYTES, "more than its credit");
        }
        _ => assert!(seen.held.contains_key(&output.id)),
    }
}

fn host(device: &mut Connections, seen: &mut Seen, first: u8, step: &[u8], payload: &[u8]) {
    let [at, low, high] = step else { return };
    let number = usize::from(u16::from_le_bytes([*low, *high]));
    let id = seen.ids.get(usize::from(*at) % seen.ids.len().max(1)).copied();
    match (first >> 1 & 7, id) {
        (0, _) => {
            if let Ok(id) = device.host_opens(number as u32) {
                seen.add(id);
            }
        }
        (1, _) => {
            if let Some((header, payload)) = device.next_for_guest(number) {
                assert!(header.check_length(&payload).is_ok() && payload.len() <= number);
                assert!(header.src_cid == HOST_CID && header.dst_cid == u64::from(GUEST_CID));
                assert_eq!(Header::decode(&header.encode()), Ok(header));
                seen.ports.insert((header.dst_port, header.src_port));
            }
        }
        (_, None) => {}
        (2, Some(id)) => drop(device.accepted(id)),
        (3, Some(id)) => {
            // A fuzzer's input may allocate only so many times its size: few connections get much.
            let count = if seen.ids.iter().take(8).any(|large| *large == id) { number } else { number % 200 };
            let room = device.host_room(id);
            assert_eq!(device.host_bytes(id, &payload[..count]), count.min(room));
        }
        (4, Some(id)) => device.host_sends_no_more(id),
        (5, Some(id)) => device.host_receives_no_more(id),
        (6, Some(id)) => {
            let held = seen.held.get_mut(&id).unwrap();
            let bytes = number.min(*held);
            *held -= bytes;
            device.delivered(id, bytes);
        }
        (_, Some(id)) => device.host_gone(id),
    }
}

fn header(op: Op, src_port: u32, dst_port: u32) -> Header {
    Header {
        src_cid: GUEST_CID.into(),
        dst_cid: HOST_CID,
        src_port,
        dst_port,
        kind: TYPE_STREAM,
        op: op.number(),
        buf_alloc: 1 << 16,
        ..Header::default()
    }
}

fn packet_step(header: &Header) -> Vec<u8> {
    [&[0][..], &header.encode()].concat()
}

fn host_step(kind: u8, at: u8, number: u16) -> Vec<u8> {
    let [low, high] = number.to_le_bytes();
    vec![kind << 1 | 1, at, low, high]
}

/// A step that means something where a guest and a host do what they should.
fn likely(random: &mut Random) -> Vec<u8> {
    if random.one_in(2) {
        let number = *random.pick(&[0, 1, 22, 1000, 60_000, u16::MAX]);
        return host_step(random.below(8) as u8, random.below(4) as u8, number);
    }
    let ops = [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::Data, Op::Data, Op::CreditUpdate, Op::CreditRequest];
    let host_port = if random.one_in(2) { 5 } else { HOST_PORT + random.below(3) as u32 };
    let guest_port = *random.pick(&[22, 0, 1, 1000]);
    let mut header = header(*random.pick(&ops), guest_port, host_port);
    header.length = if header.op() == Ok(Op::Data) { *random.pick(&[0, 1, 1000, 65_536, 65_537, u32::MAX]) } else { 0 };
    header.flags = random.below(4) as u32;
    header.fwd_cnt = if random.one_in(2) { random.number() as u32 } else { 0 };
    packet_step(&header)
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    if random.one_in(4) {
        return bytes(data);
    }
    let mut steps = Vec::new();
    let mut rest = &data[..];
    while let Some((_, _, behind)) = cut(rest) {
        steps.push(rest[..rest.len() - behind.len()].to_vec());
        rest = behind;
    }
    let at = random.below(steps.len() + 1);
    match random.below(4) {
        0 if at < steps.len() => drop(steps.remove(at)),
        1 if at < steps.len() => steps.insert(at, steps[at].clone()),
        2 if at < steps.len() => bytes(&mut steps[at]),
        _ => steps.insert(at, likely(random)),
    }
    *data = steps.concat();
}

pub(super) fn seeds(_: &Path) -> Vec<Vec<u8>> {
    let sized = |length, op| Header { length, ..header(op, 1000, 5) };
    let shutdown = |flags| packet_step(&Header { flags, ..header(Op::Shutdown, 1000, 5) });
    let connect = [packet_step(&header(Op::Request, 1000, 5)), host_step(2, 0, 0), host_step(1, 0, 0)].concat();
    let exchange =
        [packet_step(&sized(1000, Op::Data)), host_step(6, 0, 1000), host_step(3, 0, 500), host_step(1, 0, 200)].concat();
    let accept = [host_step(0, 0, 22), host_step(1, 0, 0), packet_step(&header(Op::Response, 22, HOST_PORT))].concat();
    vec![
        connect.clone(),
        accept.clone(),
        [connect.clone(), exchange.clone()].concat(),
        [connect.clone(), exchange.clone(), shutdown(2), host_step(4, 0, 0), host_step(7, 0, 0), host_step(1, 0, 0)].concat(),
        [connect.clone(), exchange, shutdown(3), host_step(7, 0, 0), host_step(1, 0, 0)].concat(),
        [connect, packet_step(&sized(65_536, Op::Data)), packet_step(&sized(1, Op::Data))].concat(),
        [accept, host_step(7, 0, 0), host_step(1, 0, 0), packet_step(&header(Op::Reset, 22, HOST_PORT))].concat(),
        packet_step(&header(Op::Data, 1, 2)),
    ]
}
