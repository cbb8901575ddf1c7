//! One frame: what decodes must encode to the same bytes again, or where a format has several
//! spellings, to bytes that decode to the same.

use std::path::Path;

use slackwater::format::{
    BLOCK_PAGES, BlockDecoder, BlockEncoder, BlockList, BlockPages, CHANGED_WORDS_MAX, ChainId, ChangedWords, Commit,
    Compression, EpochWriter, FRAME_HEADER_BYTES, FrameHeader, FrameKind, SegmentHeader, Synced, ZERO_RUNS_MAX, decode_changes,
    decode_state, decode_zeros, unpack_state,
};
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PageBytes};

use super::frames::{Frame, Piece, cut, join, put};
use super::{Bytes, Random, fixtures};

const CHAIN: ChainId = ChainId(*b"slackwater fuzz.");

pub(super) fn check(data: &[u8]) {
    let Ok(header) = FrameHeader::parse(data, CHAIN) else { return };
    assert_eq!(header.encode(CHAIN), data[..FRAME_HEADER_BYTES]);
    let whole = usize::try_from(header.frame_bytes()).unwrap();
    let Some(body) = data.get(FRAME_HEADER_BYTES..whole) else { return };
    let Ok(payload) = header.check_body(body) else { return };
    match header.kind {
        FrameKind::SegmentHeader => {
            if let Ok(segment) = SegmentHeader::decode(payload) {
                let frame = segment.encode_frame();
                assert_eq!(frame[FRAME_HEADER_BYTES..], *payload);
            }
        }
        FrameKind::Pages => pages(payload),
        FrameKind::Zeros => zeros(payload),
        FrameKind::State => state(payload),
        FrameKind::Commit => {
            if let Ok(commit) = Commit::decode(&header, payload) {
                assert_eq!(commit.encode_frame(CHAIN), data[..whole]);
            }
        }
        FrameKind::Close => {
            if let Ok(synced) = Synced::decode(&header, payload) {
                assert_eq!(synced.close_frame(CHAIN), data[..whole]);
            }
        }
        FrameKind::Durable => {
            if let Ok(synced) = Synced::decode(&header, payload) {
                assert_eq!(synced.durable_frame(CHAIN), data[..whole]);
            }
        }
        other => panic!("{other:?} has no check"),
    }
}

/// The payload of the one frame that `write` makes.
fn encoded(write: impl FnOnce(&mut EpochWriter, &mut Vec<u8>)) -> Vec<u8> {
    let (mut writer, mut frame) = (EpochWriter::new(CHAIN, EpochId(1)), Vec::new());
    write(&mut writer, &mut frame);
    let header = FrameHeader::parse(&frame, CHAIN).unwrap();
    assert_eq!(header.frame_bytes(), frame.len() as u64);
    header.check_body(&frame[FRAME_HEADER_BYTES..]).unwrap().to_vec()
}

fn pages(payload: &[u8]) {
    let Ok(list) = BlockList::parse(payload) else { return };
    let gfns = list.gfns();
    assert!((1..=BLOCK_PAGES).contains(&gfns.len()) && gfns.is_sorted_by(|one, next| one < next));
    assert_eq!(BlockList::parse(&payload[..list.bytes()]), Ok(list));
    let mut decoder = BlockDecoder::new();
    if list.is_changes() {
        assert!(decoder.decode(payload, &mut Box::new([[0; PAGE_SIZE]; BLOCK_PAGES])).is_err());
        changes(payload);
        return;
    }
    assert!(decode_changes(payload).is_err());
    let mut found: Box<BlockPages> = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
    if decoder.decode(payload, &mut found) != Ok(list) {
        return;
    }
    let block: Vec<(Gfn, &PageBytes)> = gfns.iter().copied().zip(found.iter()).collect();
    let raw = encoded(|writer, out| writer.pages(out, &mut BlockEncoder::new(Compression::None), &block).unwrap());
    assert_eq!(raw[list.bytes()..], *found[..gfns.len()].as_flattened());
    if payload[0] == 0 {
        assert_eq!(raw, payload);
    }
    let packed = encoded(|writer, out| writer.pages(out, &mut BlockEncoder::new(Compression::default()), &block).unwrap());
    let mut again: Box<BlockPages> = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
    decoder.decode(&packed, &mut again).unwrap();
    assert!(packed.len() <= raw.len() && again[..gfns.len()] == found[..gfns.len()]);
}

fn changes(payload: &[u8]) {
    let Ok((list, changes)) = decode_changes(payload) else { return };
    assert_eq!(list.gfns().len(), changes.len());
    let before = [0; PAGE_SIZE];
    for (gfn, change) in list.gfns().iter().zip(changes) {
        let mut now = before;
        if change.apply(&mut now).is_err() {
            continue;
        }
        // A change may name words that are as they were; the encoder does not.
        let changed = ChangedWords::between(&before, &now);
        if !(1..=CHANGED_WORDS_MAX).contains(&changed.count()) {
            assert_eq!(changed.count(), 0);
            continue;
        }
        let payload = encoded(|writer, out| writer.changes(out, &[(*gfn, &now, changed)]).unwrap());
        let (list, changes) = decode_changes(&payload).unwrap();
        let mut again = before;
        changes[0].apply(&mut again).unwrap();
        assert!(list.gfns() == [*gfn] && again == now);
    }
}

fn zeros(payload: &[u8]) {
    let Ok(runs) = decode_zeros(payload) else { return };
    assert!(runs.len() <= ZERO_RUNS_MAX && runs.is_sorted_by(|one, next| one.end().unwrap() <= next.first));
    assert_eq!(encoded(|writer, out| writer.zeros(out, &runs).unwrap()), payload);
}

fn state(payload: &[u8]) {
    let (Ok(plain), Ok(records)) = (unpack_state(payload), decode_state(payload)) else { return };
    let again = encoded(|writer, out| writer.state(out, &records).unwrap());
    // Unpacked, state has one spelling.
    assert!(again.len() <= plain.len() && unpack_state(&again).unwrap() == plain);
}

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    let mut pieces = cut(data);
    let Some(frame) = pieces.iter_mut().find_map(Piece::frame) else {
        super::bytes_then(data, random, bytes, |_| {});
        return;
    };
    match random.below(8) {
        0 => frame.header[4] = 1 + random.below(7).to_le_bytes()[0],
        1 => frame.set_epoch(random.number()),
        2 if !frame.payload.is_empty() => {
            let at = random.below(frame.payload.len().min(200)) & !3;
            put(&mut frame.payload, at, &random.number().to_le_bytes());
        }
        3 => frame.payload = super::state::payload(random),
        _ => bytes(&mut frame.payload),
    }
    if !random.one_in(16) {
        frame.seal(CHAIN);
    }
    *data = join(&pieces);
}

pub(super) fn seeds(checkpoints: &Path) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for files in fixtures(checkpoints) {
        for (_, bytes) in files.iter().filter(|(name, _)| name.starts_with("segment-")) {
            for mut piece in cut(bytes) {
                if let Some(frame) = piece.frame().filter(|frame| frame.payload.len() < 5000) {
                    frame.seal(CHAIN);
                    seeds.push(join(&[Piece::Frame(Frame::clone(frame))]));
                }
            }
        }
    }
    seeds.sort();
    seeds.dedup();
    // Enough of each kind; most commits look alike.
    let mut of_kind = [0; 256];
    seeds.retain(|seed| {
        of_kind[usize::from(seed[4])] += 1;
        of_kind[usize::from(seed[4])] <= 40
    });
    seeds
}
