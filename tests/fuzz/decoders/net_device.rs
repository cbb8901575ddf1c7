//! The network device: its queues for receiving, transmitting and control, as
//! [`device`](super::device) has it. What leaves is a frame with its header, and no larger than
//! there can be.

use std::path::Path;

use slackwater::vmm::devices::{Left, LoneDevice};

use super::device::{self, Kind, host_step, memory_step, narrow_work_step, plain_steps, request_step, table_steps, work_step};
use super::{Bytes, Random};

const RX: u8 = 0;
const TX: u8 = 1;
const CONTROL: u8 = 2;
const HEADER_BYTES: usize = 12;
const FRAME_BYTES: std::ops::RangeInclusive<usize> = 14..=65_550;
/// `VERSION_1`, and `MAC`.
const PLAIN: u64 = 1 << 32 | 1 << 5;
/// Buffers that share a packet, the control queue, the driver's own announcements.
const MORE: u64 = PLAIN | 1 << 15 | 1 << 17 | 1 << 21;

const KIND: Kind = Kind {
    make: |how| LoneDevice::net("52:54:00:12:34:56".parse().unwrap(), how & 4 != 0, how & 8 == 0).unwrap(),
    features: |how| if how & 2 == 0 { MORE } else { PLAIN },
    queues: 3,
    host,
    left,
};

/// Packets come in, or the link goes or comes. The content is what a packet begins with.
fn host(device: &mut LoneDevice, step: &[u8; 6], content: &[u8]) {
    let [what, low, high, times, ..] = *step;
    if what % 8 == 0 {
        return device.set_link(low & 1 == 0);
    }
    let bytes = usize::from(u16::from_le_bytes([low, high]));
    for _ in 0..=times % 4 {
        let mut packet = vec![0; HEADER_BYTES];
        packet.extend(content);
        packet.resize(HEADER_BYTES + bytes.max(*FRAME_BYTES.start()), 1);
        packet.truncate(HEADER_BYTES + FRAME_BYTES.end());
        device.come(packet);
    }
}

fn left(_: &mut LoneDevice, left: &Left) {
    let Left::Packet(packet) = left else { panic!("{left:?}") };
    assert!(FRAME_BYTES.contains(&(packet.len() - HEADER_BYTES)), "{} bytes", packet.len());
}

pub(super) fn check(data: &[u8]) {
    device::check(data, &KIND);
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    device::mutate(data, random, bytes, likely);
}

fn command(content: &[u8], first: u8) -> Vec<u8> {
    let bytes = content.len() as u32;
    [memory_step(0x20000, content), request_step(CONTROL, first, &[(0x20000, bytes, false), (0x21000, 1, true)])].concat()
}

fn comes(bytes: u16, times: u8) -> Vec<u8> {
    let [low, high] = bytes.to_le_bytes();
    host_step([1, low, high, times, 0, 0], &[0xff; 14])
}

/// An ARP frame of the guest's, behind a header: its address is learnt.
fn arp() -> Vec<u8> {
    let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let kinds = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    [&[0; HEADER_BYTES][..], &[0xff; 6], &mac, &kinds, &mac, &[10, 0, 0, 9], &[0; 6], &[10, 0, 0, 1]].concat()
}

fn likely(random: &mut Random) -> Vec<u8> {
    let first = random.below(8) as u8;
    match random.below(7) {
        0 => comes(*random.pick(&[14, 60, 1514, 9000, u16::MAX]), 0),
        1 => host_step([0, random.below(2) as u8, 0, 0, 0, 0], &[]),
        2 => command(&[1, 1, 2, 0, 0, 0, 0, 9], first),
        3 => command(&[3, 0], first),
        4 => request_step(RX, first, &[(0x40000 + 0x1000 * u32::from(first), *random.pick(&[100, 2048, 66_000]), true)]),
        5 => [memory_step(0x20000, &arp()), request_step(TX, first, &[(0x20000, 54, false)])].concat(),
        _ => request_step(TX, first, &[(0x20000, *random.pick(&[25, 26, 1526, 65_562]), false)]),
    }
}

pub(super) fn seeds(_: &Path) -> Vec<Vec<u8>> {
    let [cut, release, go_back, resume, work] = plain_steps();
    let out = [memory_step(0x20000, &arp()), request_step(TX, 0, &[(0x20000, 54, false)]), work_step()].concat();
    let leaves = [out.clone(), cut.clone(), release.clone()].concat();
    let come = [request_step(RX, 0, &[(0x40000, 2048, true)]), comes(60, 0), work_step()].concat();
    let several = [
        request_step(RX, 0, &[(0x40000, 1000, true)]),
        request_step(RX, 1, &[(0x42000, 600, true), (0x43ff0, 600, true)]),
        comes(2000, 1),
        work_step(),
        request_step(RX, 3, &[(0x46000, 4096, true)]),
        work_step(),
    ]
    .concat();
    let commands = [command(&[1, 1, 2, 0, 0, 0, 0, 9], 0), work_step(), command(&[3, 0], 2), work.clone()].concat();
    let back = [go_back.clone(), resume, work, cut, release].concat();
    let tables = [
        [table_steps(RX, 0, 300, false), request_step(RX, 1, &[(0x40000, 2048, true)]), comes(1514, 0), narrow_work_step()]
            .concat(),
        [table_steps(CONTROL, 0, 4000, true), work_step()].concat(),
    ];
    [0, 2, 8, 4]
        .into_iter()
        .flat_map(|how| {
            [&leaves, &come, &several, &commands, &[out.clone(), back.clone()].concat(), &tables[0], &tables[1]]
                .map(|steps| [&[how][..], steps].concat())
        })
        .chain([vec![1], [&[0][..], &several, &commands, &leaves, &back, &come].concat()])
        .collect()
}
