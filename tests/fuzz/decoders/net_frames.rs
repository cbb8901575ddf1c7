//! The link over a Unix stream socket, under a backend that sends anything: each frame behind its
//! length comes as it was sent, a length that no frame has ends the link, and so does the
//! backend's end in the middle of one. What the link sends is such frames again.
//!
//! An input is the backend's stream in pieces, each of two bytes with its length and the bytes. A
//! length with the highest bit set is a packet that the link sends.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use slackwater::vmm::LoneLink;

use super::{Bytes, Random};

const FRAME_BYTES: std::ops::RangeInclusive<usize> = 14..=65_550;
const HEADER_BYTES: usize = LoneLink::HEADER_BYTES;
const SENT: u16 = 1 << 15;

/// What a stream is: frames, and what is behind the last whole one.
enum Behind {
    /// The begin of a frame, or nothing.
    Part,
    /// A length that there can't be.
    Wrong,
}

/// Takes the frames from the front of `stream`, from `at` on.
fn frames<'s>(stream: &'s [u8], at: &mut usize) -> (Vec<&'s [u8]>, Behind) {
    let mut found = Vec::new();
    while let Some(prefix) = stream.get(*at..*at + 4) {
        let length = u32::from_be_bytes(prefix.try_into().unwrap()) as usize;
        if !FRAME_BYTES.contains(&length) {
            return (found, Behind::Wrong);
        }
        let Some(frame) = stream.get(*at + 4..*at + 4 + length) else { break };
        found.push(frame);
        *at += 4 + length;
    }
    (found, Behind::Part)
}

/// The next piece, and what is behind it.
fn cut(data: &[u8]) -> Option<(bool, &[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk()?;
    let length = u16::from_le_bytes(*length);
    let (piece, behind) = rest.split_at(usize::from(length & !SENT).min(rest.len()));
    Some((length & SENT != 0, piece, behind))
}

pub(super) fn check(data: &[u8]) {
    let (mut link, mut backend) = LoneLink::pair().unwrap();
    let mut buffer = vec![0; HEADER_BYTES + FRAME_BYTES.end()];
    let (mut stream, mut at) = (Vec::new(), 0);
    let mut rest = data;
    while let Some((is_sent, piece, behind)) = cut(rest) {
        rest = behind;
        if is_sent {
            send(&mut link, &mut backend, piece);
            continue;
        }
        backend.write_all(piece).unwrap();
        stream.extend_from_slice(piece);
        let (whole, behind) = frames(&stream, &mut at);
        for frame in whole {
            let length = link.receive(&mut buffer).unwrap().unwrap();
            assert_eq!(&buffer[HEADER_BYTES..length], frame);
            assert_eq!(buffer[..HEADER_BYTES], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        }
        if matches!(behind, Behind::Wrong) {
            // Who would wait for more finds the end.
            drop(backend);
            for _ in 0..2 {
                assert_eq!(link.receive(&mut buffer).unwrap_err().kind(), ErrorKind::InvalidData);
            }
            return;
        }
    }
    assert_eq!(link.dropped().0, 0);
    drop(backend);
    // A socket that is closed with something unread says so in its own way.
    let kind = link.receive(&mut buffer).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{kind:?}");
}

/// A packet that is no frame is dropped, and counted.
fn send(link: &mut LoneLink, backend: &mut UnixStream, packet: &[u8]) {
    let dropped = link.dropped().1;
    link.send(packet).unwrap();
    let frame = packet.get(HEADER_BYTES..).unwrap_or_default();
    if !FRAME_BYTES.contains(&frame.len()) {
        assert_eq!(link.dropped().1, dropped + 1);
        return;
    }
    let mut came = vec![0; 4 + frame.len()];
    backend.read_exact(&mut came).unwrap();
    let (prefix, body) = came.split_first_chunk().unwrap();
    assert_eq!((u32::from_be_bytes(*prefix) as usize, body), (frame.len(), frame));
}

fn piece(bytes: &[u8]) -> Vec<u8> {
    let bytes = &bytes[..bytes.len().min(usize::from(!SENT))];
    [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat()
}

fn frame(length: u32, bytes: usize) -> Vec<u8> {
    [&length.to_be_bytes()[..], &vec![7; bytes]].concat()
}

fn sent(bytes: usize) -> Vec<u8> {
    [&(bytes as u16 | SENT).to_le_bytes()[..], &vec![3; bytes]].concat()
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    if random.one_in(3) {
        return bytes(data);
    }
    let (mut pieces, mut rest) = (Vec::new(), &data[..]);
    while let Some((_, _, behind)) = cut(rest) {
        pieces.push(rest[..rest.len() - behind.len()].to_vec());
        rest = behind;
    }
    let at = random.below(pieces.len() + 1);
    let length = *random.pick(&[0, 13, 14, 15, 60, 1514, 20_000, 65_550, 65_551, u32::MAX]);
    match random.below(6) {
        0 if at < pieces.len() => drop(pieces.remove(at)),
        1 if at < pieces.len() => pieces.insert(at, pieces[at].clone()),
        // One piece becomes two.
        2 if at < pieces.len() && pieces[at].len() > 3 && pieces[at][1] & 0x80 == 0 => {
            let whole = pieces.remove(at)[2..].to_vec();
            let (first, second) = whole.split_at(random.below(whole.len()));
            pieces.insert(at, [piece(first), piece(second)].concat());
        }
        3 => pieces.insert(at, sent(random.below(80))),
        4 => pieces.insert(at, piece(&frame(length, random.below(100)))),
        _ => pieces.insert(at, piece(&frame(length, (length as usize).min(40_000)))),
    }
    *data = pieces.concat();
}

pub(super) fn seeds(_: &Path) -> Vec<Vec<u8>> {
    let long = frame(65_550, 65_550);
    let whole: Vec<u8> = [14, 60, 1514].into_iter().flat_map(|length| frame(length, length as usize)).collect();
    let (first, rest) = long.split_at(30_000);
    let (second, third) = rest.split_at(30_000);
    vec![
        piece(&whole),
        whole.chunks(1).take(80).flat_map(piece).collect(),
        [piece(first), piece(second), piece(third), piece(&whole)].concat(),
        [piece(&whole), piece(&frame(u32::MAX, 20))].concat(),
        piece(&frame(13, 13)),
        piece(&frame(65_551, 100)),
        piece(&whole[..whole.len() - 1]),
        [sent(26), sent(25), sent(0), piece(&whole), sent(1526)].concat(),
    ]
}
