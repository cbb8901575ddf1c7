//! The socket device: its queues for both directions and for events, as
//! [`device`](super::device) has it, with a host that opens connections, answers those of the
//! guest and sends. The packets' core is [`vsock`](super::vsock).

use std::path::Path;

use slackwater::vmm::devices::{Left, LoneDevice};
use slackwater::vmm::vsock::{CONNECTIONS_MAX, HOST_CID, Header, Op, OutputKind, TYPE_STREAM, WAITING_BYTES_MAX};

use super::device::{self, Kind, host_step, memory_step, plain_steps, request_step, table_steps, work_step};
use super::{Bytes, Random};

const RX: u8 = 0;
const TX: u8 = 1;
const EVENT: u8 = 2;
const CID: u64 = 3;
/// The first port of the host.
const HOST_PORT: u32 = 1 << 30;
const PAYLOAD_BYTES_MAX: usize = 64 << 10;

const KIND: Kind = Kind {
    make: |how| LoneDevice::vsock(format!("cid={CID},path=x").parse().unwrap(), how & 8 == 0).unwrap(),
    features: |_| 1 << 32,
    queues: 3,
    host,
    left,
};

/// The host opens a connection, or does something with the one that it opened last. Those of
/// another opening are not known to it: their ids are not given away.
fn host(device: &mut LoneDevice, step: &[u8; 6], content: &[u8]) {
    let [what, low, high, ..] = *step;
    let number = u32::from(u16::from_le_bytes([low, high]));
    let done = device.connections(|connections| {
        if let Ok(id) = connections.host_opens(number) {
            match what % 4 {
                0 => connections.host_gone(id),
                1 => drop(connections.host_bytes(id, content)),
                2 => connections.host_sends_no_more(id),
                _ => {}
            }
        }
        assert!(connections.len() <= CONNECTIONS_MAX && connections.waiting_bytes() <= WAITING_BYTES_MAX);
    });
    assert!(done.is_some());
}

/// The host answers what the guest asks for, and takes and gives back bytes.
fn left(device: &mut LoneDevice, left: &Left) {
    let Left::Socket(output) = left else { panic!("{left:?}") };
    let id = output.id;
    device.connections(|connections| match &output.kind {
        OutputKind::Connect { port } if port % 3 == 0 => connections.host_gone(id),
        OutputKind::Connect { .. } => drop(connections.accepted(id)),
        OutputKind::Bytes(bytes) => {
            assert!((1..=PAYLOAD_BYTES_MAX).contains(&bytes.len()));
            connections.delivered(id, bytes.len());
            connections.host_bytes(id, &bytes[..bytes.len().min(512)]);
        }
        OutputKind::Close => connections.host_gone(id),
        _ => {}
    });
}

pub(super) fn check(data: &[u8]) {
    device::check(data, &KIND);
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    device::mutate(data, random, bytes, likely);
}

/// A packet of the guest's, of so many bytes of payload.
fn sends(op: Op, host_port: u32, length: u32, first: u8) -> Vec<u8> {
    let header = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 1000,
        dst_port: host_port,
        length,
        kind: TYPE_STREAM,
        op: op.number(),
        buf_alloc: 1 << 16,
        ..Header::default()
    };
    let packet = header.encode();
    let bytes = packet.len() as u32;
    [memory_step(0x20000, &packet), request_step(TX, first, &[(0x20000, bytes, false), (0x50000, length, false)])].concat()
}

fn room(first: u8) -> Vec<u8> {
    request_step(RX, first, &[(0x40000 + 0x1000 * u32::from(first), 2048, true)])
}

fn event(first: u8) -> Vec<u8> {
    request_step(EVENT, first, &[(0x60000, 4, true)])
}

fn likely(random: &mut Random) -> Vec<u8> {
    let first = random.below(8) as u8;
    match random.below(5) {
        0 => room(first),
        1 => event(first),
        2 => host_step([random.below(4) as u8, *random.pick(&[0, 1, 22]), 0, 0, 0, 0], b"from the host"),
        _ => {
            let ops =
                [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::Data, Op::Data, Op::CreditUpdate, Op::CreditRequest];
            let length = *random.pick(&[0, 0, 1, 1000, 65_536, 65_537]);
            sends(*random.pick(&ops), *random.pick(&[5, 6, HOST_PORT, HOST_PORT + 1]), length, first)
        }
    }
}

pub(super) fn seeds(_: &Path) -> Vec<Vec<u8>> {
    let [cut, release, go_back, resume, work] = plain_steps();
    let leaves = [cut.clone(), release.clone()].concat();
    let rooms: Vec<u8> = (0..4).flat_map(room).collect();
    let asked = [rooms.clone(), sends(Op::Request, 5, 0, 0), work.clone(), leaves.clone(), work_step()].concat();
    let sent = [sends(Op::Data, 5, 1000, 0), work.clone(), leaves.clone(), work.clone()].concat();
    let opened = [rooms.clone(), host_step([3, 22, 0, 0, 0, 0], &[]), work.clone(), rooms.clone()].concat();
    let accepted = [sends(Op::Response, HOST_PORT, 0, 0), work.clone(), leaves.clone()].concat();
    let back = [go_back, resume, work.clone(), event(0), work.clone(), event(1), work.clone()].concat();
    let told = [back.clone(), opened.clone(), work].concat();
    vec![
        [&[0][..], &asked].concat(),
        [&[0][..], &asked, &sent].concat(),
        [&[8][..], &asked, &sent, &sends(Op::Shutdown, 5, 0, 0)].concat(),
        [&[0][..], &opened].concat(),
        [&[0][..], &opened, &accepted].concat(),
        [&[0][..], &asked, &back].concat(),
        [&[0][..], &told].concat(),
        [&[0][..], &asked, &sent, &back, &asked].concat(),
        [&[0][..], &table_steps(TX, 0, 4000, true), &work_step()].concat(),
        vec![1],
    ]
}
