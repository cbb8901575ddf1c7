//! What is written reads back; what is not so is refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::format::StateRecord;
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes, PageRun};

const CHAIN: ChainId = ChainId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);

/// A page that is zero, text-like or noise.
fn page(kind: u8, seed: u64) -> Box<PageBytes> {
    let mut page = Box::new([0; PAGE_SIZE]);
    let mut x = seed | 1;
    for chunk in page.chunks_exact_mut(8) {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match kind % 3 {
            0 => {}
            1 => chunk.copy_from_slice(&(seed % 100 + 1).to_le_bytes()),
            _ => chunk.copy_from_slice(&(x ^ (x >> 29)).to_le_bytes()),
        }
    }
    page
}

#[test]
fn the_header_is_laid_out_as_documented() {
    let header = FrameHeader { kind: FrameKind::Zeros, epoch: EpochId(0x0102), sequence: 3, length: 16, payload_hash: 0x1122 };
    let bytes = header.encode(CHAIN);
    assert_eq!(bytes[..8], [0xD7, 0x53, 0x57, 0x1A, 3, 0, 0, 0]);
    assert_eq!(bytes[8..24], [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 16, 0, 0, 0]);
    assert_eq!(bytes[24..40], [1, 2, 3, 4, 5, 6, 7, 8, 0x22, 0x11, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[40..], crate::xxh3::xxh3_64(&bytes[..40]).to_le_bytes());
    assert_eq!(FrameHeader::parse(&bytes, CHAIN), Ok(header));
}

#[test]
fn every_flipped_bit_of_a_header_is_refused() {
    let bytes = FrameHeader { kind: FrameKind::State, epoch: EpochId(7), sequence: 3, length: 8, payload_hash: 5 }.encode(CHAIN);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        FrameHeader::parse(&flipped, CHAIN).unwrap_err();
    }
    for len in 0..bytes.len() {
        assert!(matches!(FrameHeader::parse(&bytes[..len], CHAIN), Err(FormatError::Short { .. })));
    }
}

#[test]
fn a_header_with_a_sound_checksum_is_checked_all_the_same() {
    let sound = FrameHeader { kind: FrameKind::State, epoch: EpochId(7), sequence: 3, length: 8, payload_hash: 5 };
    let field = |header: FrameHeader, chain| match FrameHeader::parse(&header.encode(chain), CHAIN) {
        Err(FormatError::Field { field, offset, .. }) => (field, offset),
        other => panic!("{other:?}"),
    };
    assert_eq!(field(sound, ChainId([9; 16])), ("chain", 24));
    assert_eq!(field(FrameHeader { epoch: EpochId::NONE, ..sound }, CHAIN), ("epoch", 8));
    assert_eq!(field(FrameHeader { length: FRAME_PAYLOAD_BYTES_MAX + 1, ..sound }, CHAIN), ("length", 20));
    assert_eq!(field(FrameHeader { kind: FrameKind::Commit, length: 207, ..sound }, CHAIN), ("length", 20));
    assert_eq!(field(FrameHeader { kind: FrameKind::Close, length: 24, ..sound }, CHAIN), ("sequence", 16));
    assert_eq!(field(FrameHeader { kind: FrameKind::SegmentHeader, length: 80, ..sound }, CHAIN), ("epoch", 8));
    let unknown = (1..).find(|number| FrameKind::from_number(*number).is_none()).unwrap();
    for kind in [0, unknown, 0x85] {
        let mut bytes = sound.encode(CHAIN);
        bytes[4] = kind;
        let checksum = crate::xxh3::xxh3_64(&bytes[..40]).to_le_bytes();
        bytes[40..].copy_from_slice(&checksum);
        assert!(matches!(FrameHeader::parse(&bytes, CHAIN), Err(FormatError::Field { field: "kind", offset: 4, .. })));
    }
}

#[test]
fn what_stands_between_epochs_reads_back() {
    let segment =
        SegmentHeader { format: FORMAT_VERSION, number: 3, more: 4, chain: CHAIN, previous_hash: 1 << 100, previous: EpochId(9) };
    let frame = segment.encode_frame();
    assert_eq!(frame.len(), SEGMENT_HEADER_FRAME_BYTES);
    let header = FrameHeader::parse(&frame, CHAIN).unwrap();
    let payload = header.check_body(&frame[FRAME_HEADER_BYTES..]).unwrap();
    assert_eq!(SegmentHeader::decode(payload), Ok(segment));
    let mut other = payload.to_vec();
    other[0] = 5;
    assert_eq!(SegmentHeader::decode(&other), Err(FormatError::Version { offset: 48, found: 5 }));

    for (at, name) in [(48, "generation 0"), (64, "incarnation 0")] {
        let mut other = payload.to_vec();
        other[at] = 1;
        assert_eq!(SegmentHeader::decode(&other).unwrap_err().expected(), name);
    }

    let synced = Synced { epoch: EpochId(9), identity: 5 };
    let frames = [(FrameKind::Durable, synced.durable_frame(CHAIN)), (FrameKind::Close, synced.close_frame(CHAIN))];
    for (kind, frame) in frames {
        assert_eq!(frame.len(), SYNCED_FRAME_BYTES);
        let header = FrameHeader::parse(&frame, CHAIN).unwrap();
        assert_eq!(header.kind, kind);
        let payload = header.check_body(&frame[FRAME_HEADER_BYTES..]).unwrap();
        assert_eq!(Synced::decode(&header, payload), Ok(synced));
        let other = FrameHeader { epoch: EpochId(8), ..header };
        assert_eq!(Synced::decode(&other, payload).unwrap_err().expected(), "newest epoch 8");
    }
}

#[test]
fn a_commit_reads_back_and_lies_are_refused() {
    let commit = Commit {
        epoch: EpochId(12),
        parent: EpochId(10),
        parent_hash: 11,
        totals: EpochTotals { frames: 4, blocks: 2, frames_bytes: 500, frames_hash: 6, stored_pages: 20 },
        time_unix_ns: 1,
        own_ns: 3 * OWN_TIME_UNIT_NS,
        run_ns: 2,
        phases: Phases { kick_ns: 1, state_ns: 2, harvest_ns: 3, copy_ns: 4, reset_ns: 5, stall_ns: 6 },
        captured_pages: 30,
        zero_pages: 7,
        unchanged_pages: 3,
        bytes_written: 740,
        trigger: Trigger::RingFull,
        base: true,
        recovery: true,
        audit: Some(MemoryDigest(0)),
        rewritten: None,
    };
    let others =
        [Commit { audit: None, base: false, trigger: Trigger::Final, ..commit }, Commit { rewritten: Some(77), ..commit }];
    for commit in [commit, others[0], others[1]] {
        let frame = commit.encode_frame(CHAIN);
        assert_eq!(frame.len(), if commit.rewritten.is_some() { REWRITTEN_COMMIT_FRAME_BYTES } else { COMMIT_FRAME_BYTES });
        assert_eq!(commit.identity(&frame), commit.rewritten.unwrap_or_else(|| hash_bytes(&frame)));
        let header = FrameHeader::parse(&frame, CHAIN).unwrap();
        assert_eq!(Commit::decode(&header, header.check_body(&frame[FRAME_HEADER_BYTES..]).unwrap()), Ok(commit));
    }
    let field = |commit: Commit| {
        let frame = commit.encode_frame(CHAIN);
        let header = FrameHeader::parse(&frame, CHAIN).unwrap();
        Commit::decode(&header, &frame[FRAME_HEADER_BYTES..]).unwrap_err().expected()
    };
    assert_eq!(field(Commit { parent: EpochId(12), ..commit }), "parent below 12");
    // Where a generation and an incarnation will be, there is nothing yet.
    for (at, name) in [(160, "generation 0"), (192, "incarnation 0"), (207, "incarnation 0")] {
        let frame = commit.encode_frame(CHAIN);
        let header = FrameHeader::parse(&frame, CHAIN).unwrap();
        let mut payload = frame[FRAME_HEADER_BYTES..].to_vec();
        payload[at] = 1;
        assert_eq!(Commit::decode(&header, &payload).unwrap_err().expected(), name);
    }
    assert_eq!(field(Commit { parent: EpochId::NONE, ..commit }), "parent hash 0");
}

#[test]
fn compression_is_parsed_and_bounded() {
    for (text, expected) in [
        ("none", Compression::None),
        ("zstd", Compression::Zstd { level: 1 }),
        ("zstd:-7", Compression::Zstd { level: -7 }),
        ("zstd:19", Compression::Zstd { level: 19 }),
    ] {
        assert_eq!(text.parse::<Compression>(), Ok(expected));
        assert_eq!(expected.to_string().parse::<Compression>(), Ok(expected));
    }
    for text in ["", "zstd:", "zstd:20", "zstd:-8", "zstd:x", "none:1", "lz4", "ZSTD"] {
        let error = text.parse::<Compression>().unwrap_err().to_string();
        assert!(error.contains("-7 to 19"), "{error}");
    }
}

#[test]
fn the_writer_keeps_the_order_of_an_epoch() {
    let mut writer = EpochWriter::new(CHAIN, EpochId(1));
    let mut encoder = BlockEncoder::new(Compression::None);
    let mut out = Vec::new();
    let page = page(2, 1);
    let block: Vec<_> = (0..17).map(|gfn| (Gfn(gfn), &*page)).collect();
    writer.pages(&mut out, &mut encoder, &block).unwrap_err();
    writer.pages(&mut out, &mut encoder, &[]).unwrap_err();
    writer.pages(&mut out, &mut encoder, &[block[1], block[1]]).unwrap_err();
    writer.pages(&mut out, &mut encoder, &[block[1], (Gfn(1 << 32 | 2), &*page)]).unwrap_err();
    writer.zeros(&mut out, &[PageRun { first: Gfn(3), count: 0 }]).unwrap_err();
    writer.zeros(&mut out, &[PageRun { first: Gfn(3), count: 2 }, PageRun { first: Gfn(4), count: 1 }]).unwrap_err();
    assert!(out.is_empty());
    assert_eq!(writer.totals(), EpochWriter::new(CHAIN, EpochId(1)).totals());

    let runs: Vec<_> = (0..70_000).map(|run| PageRun { first: Gfn(run * 2), count: 1 }).collect();
    writer.zeros(&mut out, &runs).unwrap();
    writer.pages(&mut out, &mut encoder, &block[..16]).unwrap();
    writer.state(&mut out, &[]).unwrap();
    let totals = writer.totals();
    assert_eq!((totals.frames, totals.blocks, totals.stored_pages), (4, 1, 16));
    assert_eq!(totals.frames_bytes, out.len() as u64);
    writer.state(&mut out, &[]).unwrap_err();
    writer.pages(&mut out, &mut encoder, &block[..1]).unwrap_err();
    assert_eq!(writer.totals(), totals);

    let (mut at, mut found, mut headers) = (0, Vec::new(), Vec::new());
    for sequence in 0..totals.frames {
        let header = FrameHeader::parse(&out[at..], CHAIN).unwrap();
        assert_eq!((header.sequence, header.epoch), (sequence, EpochId(1)));
        headers.extend(&out[at..at + FRAME_HEADER_BYTES]);
        let end = at + usize::try_from(header.frame_bytes()).unwrap();
        let payload = header.check_body(&out[at + FRAME_HEADER_BYTES..end]).unwrap();
        if header.kind == FrameKind::Zeros {
            found.extend(decode_zeros(payload).unwrap());
        }
        at = end;
    }
    assert_eq!((at, found), (out.len(), runs));
    assert_eq!(hash_bytes(&headers), totals.frames_hash);
}

#[test]
fn state_records_have_limits() {
    let record = StateRecord { name: "vcpu.regs".to_owned(), index: 0, version: 1, data: vec![1] };
    let write = |records: &[StateRecord]| EpochWriter::new(CHAIN, EpochId(1)).state(&mut Vec::new(), records);
    write(std::slice::from_ref(&record)).unwrap();
    for name in ["", "A", "a b", "ä", &"x".repeat(65)] {
        write(&[StateRecord { name: name.to_owned(), ..record.clone() }]).unwrap_err();
    }
    write(&[StateRecord { version: 0, ..record.clone() }]).unwrap_err();
    write(&[StateRecord { data: vec![0; STATE_DATA_BYTES_MAX + 1], ..record.clone() }]).unwrap_err();
    write(&[record.clone(), record.clone()]).unwrap_err();
    let five = |data: usize| (0..5).map(|index| StateRecord { index, data: vec![0; data], ..record.clone() }).collect::<Vec<_>>();
    write(&five(12 << 20)).unwrap();
    // What can't be unpacked is not packed either, however small it would be.
    write(&five(14 << 20)).unwrap_err();
}

#[test]
fn description_reads_back_and_its_version_comes_first() {
    let run = |first, count| PageRun { first: Gfn(first), count };
    let description = Description {
        format: FORMAT_VERSION,
        chain: CHAIN,
        page_size: 4096,
        created_unix_ns: u64::MAX,
        created_by: "a test\n".to_owned(),
        memory: vec![run(0, 10), run(10, 5), run(100, 1)],
        device_runs: 1,
        vcpus: 2,
        machine: serde_json::json!({"guest": "churn", "list": [1, 2.5, null]}),
        branch_of: None,
    };
    let point = BranchPoint { branch: "a-B.7_".to_owned(), epoch: EpochId(3), identity: 5 << 100 };
    let branch = Description { branch_of: Some(point.clone()), ..description.clone() };
    assert_eq!(Description::parse(&branch.encode().unwrap()), Ok(branch.clone()));
    Description { format: 2, ..branch.clone() }.encode().unwrap_err();
    for name in ["", "../x", ".x", "-x", "a/b", "a b", &"x".repeat(65)] {
        let point = BranchPoint { branch: name.to_owned(), ..point.clone() };
        Description { branch_of: Some(point), ..description.clone() }.encode().unwrap_err();
    }
    Description { branch_of: Some(BranchPoint { epoch: EpochId::NONE, ..point }), ..description.clone() }.encode().unwrap_err();
    let bytes = description.encode().unwrap();
    assert_eq!(Description::parse(&bytes), Ok(description.clone()));
    assert!(
        description.contains(Gfn(14))
            && !description.contains(Gfn(15))
            && description.contains(Gfn(100))
            && !description.contains(Gfn(101))
    );
    assert!(
        description.contains_run(run(8, 7)) && !description.contains_run(run(8, 8)) && !description.contains_run(run(14, 87))
    );
    assert!(!description.contains_run(run(u64::MAX, 2)) && !description.contains_run(run(0, u64::MAX)));

    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            Description::parse(&flipped).unwrap_err();
        }
        Description::parse(&bytes[..at]).unwrap_err();
    }
    Description::parse(&[&bytes[..], b"x"].concat()).unwrap_err();
    // Whatever else a later version holds.
    for text in ["{\"format\":5}", "{\"format\":5, \"new\": [}", "{\"format\":5,\"chain\":5}\nabc"] {
        let expected_version = serde_json::from_str::<serde_json::Value>(text.lines().next().unwrap()).is_ok();
        let error = Description::parse(text.as_bytes()).unwrap_err();
        assert_eq!(matches!(error, FormatError::Version { found: 5, .. }), expected_version, "{error}");
    }
    assert!(Description::parse(&vec![b'['; DESCRIPTION_BYTES_MAX]).is_err());
    assert!(Description::parse(&vec![b' '; DESCRIPTION_BYTES_MAX + 1]).is_err());

    for memory in [
        vec![],
        vec![run(0, 0)],
        vec![run(5, 1), run(4, 1)],
        vec![run(0, 2), run(1, 1)],
        vec![run(0, (1 << 40) + 1)],
        vec![run(u64::MAX, 1)],
        (0..65).map(|at| run(at * 2, 1)).collect(),
    ] {
        Description { memory, ..description.clone() }.encode().unwrap_err();
    }
    Description { vcpus: 4097, ..description.clone() }.encode().unwrap_err();
    Description { device_runs: 3, ..description.clone() }.encode().unwrap_err();
    assert_eq!(description.guest_memory(), [run(0, 10), run(10, 5)]);
    Description { machine: "x".repeat(DESCRIPTION_BYTES_MAX).into(), ..description }.encode().unwrap_err();
}

#[test]
fn a_chain_is_hexadecimal() {
    assert_eq!(CHAIN.to_string(), "0102030405060708090a0b0c0d0e0f10");
    assert_eq!(CHAIN.to_string().parse(), Ok(CHAIN));
    assert_eq!(CHAIN.tag().to_le_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
    for text in ["", "0102", "+102030405060708090a0b0c0d0e0f10", "0102030405060708090A0B0C0D0E0F10"] {
        text.parse::<ChainId>().unwrap_err();
    }
}

#[test]
fn the_digest_follows_pages() {
    assert!(is_zero(&[0; PAGE_SIZE]));
    for at in [0, 1, 255, 256, 2048, PAGE_SIZE - 1] {
        let mut page = [0; PAGE_SIZE];
        page[at] = 1;
        assert!(!is_zero(&page), "{at}");
    }
    let pages: Vec<_> = (0..6).map(|n| page(n, n.into())).collect();
    let mut digest = MemoryDigest::default();
    digest.add_page(Gfn(1), &pages[0]);
    assert_eq!(digest, MemoryDigest::default());
    digest.add_page(Gfn(1), &pages[1]);
    digest.add_page(Gfn(2), &pages[2]);
    let mut other = MemoryDigest::of_page(Gfn(2), &pages[2]);
    other.add_page(Gfn(1), &pages[4]);
    assert_ne!(digest, other);
    other.remove_page(Gfn(1), &pages[4]);
    other.add_page(Gfn(1), &pages[1]);
    assert_eq!(digest, other);
    assert_ne!(MemoryDigest::of_page(Gfn(1), &pages[1]), MemoryDigest::of_page(Gfn(2), &pages[1]));
    // By the definition.
    let term = [&1u64.to_le_bytes()[..], &hash_bytes(&pages[1][..]).to_le_bytes()].concat();
    assert_eq!(MemoryDigest::of_page(Gfn(1), &pages[1]).0, hash_bytes(&term));
}

#[test]
fn packed_state_has_limits() {
    let record = |data| StateRecord { name: "vcpu.xsave".to_owned(), index: 0, version: 1, data };
    let mut data = vec![0; 5000];
    data[77] = 1;
    data[4999] = 2;
    let mut out = Vec::new();
    EpochWriter::new(CHAIN, EpochId(1)).state(&mut out, &[record(data.clone())]).unwrap();
    let packed = out[FRAME_HEADER_BYTES..].to_vec();
    // The record's head and name: 26 bytes, of which the last 10 are the name; 5,032 bytes in all,
    // so 10 groups of 64 words.
    assert_eq!(packed.len(), 8 + 10 * 8 + (3 + 1 + 1 + 1) * 8);
    assert_eq!(u32::from_le_bytes(packed[4..8].try_into().unwrap()), 5032);
    assert_eq!(decode_state(&packed).unwrap(), [record(data)]);

    let refused = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut payload = packed.clone();
        change(&mut payload);
        let error = unpack_state(&payload).unwrap_err();
        assert!(error.expected().contains(expected), "{error}");
    };
    refused(&|payload| payload[4] += 1, "a multiple of 8");
    refused(&|payload| payload[4..8].copy_from_slice(&(64u32 << 20).to_le_bytes()), "a multiple of 8, at most");
    refused(&|payload| payload[4..8].copy_from_slice(&((64u32 << 20) - 8).to_le_bytes()), "bits of words");
    refused(&|payload| payload[8 + 79] |= 0x80, "none behind the last word");
    refused(&|payload| payload[8 + 10] |= 1, "words");
    refused(&|payload| payload.truncate(payload.len() - 8), "words");
    refused(&|payload| payload.extend([0; 8]), "no more bytes");

    // What does not become smaller stays as it is.
    let mut plain = Vec::new();
    EpochWriter::new(CHAIN, EpochId(1)).state(&mut plain, &[record(vec![1; 5000])]).unwrap();
    assert_eq!(plain[FRAME_HEADER_BYTES + 4..FRAME_HEADER_BYTES + 8], [0; 4]);
    assert_eq!(decode_state(&plain[FRAME_HEADER_BYTES..]).unwrap(), [record(vec![1; 5000])]);
}

#[test]
fn a_change_has_1_to_256_words() {
    let before = page(4, 1);
    for words in [0, 1, 256, 257, 512] {
        let mut now = before.clone();
        now.chunks_exact_mut(8).take(words).for_each(|word| word[7] ^= 0x80);
        let changed = ChangedWords::between(&before, &now);
        let mut out = vec![9];
        let result = EpochWriter::new(CHAIN, EpochId(1)).changes(&mut out, &[(Gfn(5), &now, changed)]);
        assert_eq!(result.is_ok(), (1..=256).contains(&words), "{words}");
        assert!(result.is_ok() || out == [9], "nothing is left of what failed");
    }
    let block = vec![(Gfn(5), &*before, ChangedWords::between(&before, &[0; PAGE_SIZE])); 17];
    EpochWriter::new(CHAIN, EpochId(1)).changes(&mut Vec::new(), &block).unwrap_err();
    EpochWriter::new(CHAIN, EpochId(1)).changes(&mut Vec::new(), &block[..2]).unwrap_err();
    EpochWriter::new(CHAIN, EpochId(1)).changes(&mut Vec::new(), &[]).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_block_reads_back(first in 0u64..1 << 40, steps in prop::collection::vec((1u64..1000, any::<u8>(), any::<u64>()), 1..=16), level in -7i32..=19, zstd: bool) {
        let mut gfn = first;
        let pages: Vec<_> = steps.iter().map(|(step, kind, seed)| { gfn += step; (Gfn(gfn), page(*kind, *seed)) }).collect();
        let block: Vec<_> = pages.iter().map(|(gfn, page)| (*gfn, &**page)).collect();
        let compression = if zstd { Compression::Zstd { level: level.min(6) } } else { Compression::None };
        let mut out = vec![1, 2, 3];
        let mut encoder = BlockEncoder::new(compression);
        encoder.encode(&mut out, &block).unwrap();
        // The encoder is used again.
        let first = out.split_off(3);
        encoder.encode(&mut out, &block).unwrap();
        prop_assert_eq!(&out[3..], &first[..]);
        prop_assert!(first.len() <= 16 + 4 * block.len() + PAGE_SIZE * block.len());
        let mut decoded = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
        let list = BlockDecoder::new().decode(&first, &mut decoded).unwrap();
        prop_assert_eq!(list, BlockList::parse(&first[..list.bytes()]).unwrap());
        let gfns: Vec<_> = block.iter().map(|(gfn, _)| *gfn).collect();
        prop_assert_eq!(list.gfns(), &gfns[..]);
        prop_assert!(block.iter().zip(decoded.iter()).all(|((_, page), decoded)| *page == decoded));
    }

    #[test]
    fn a_block_of_changes_reads_back(
        first in 0u64..1 << 40,
        steps in prop::collection::vec((1u64..1000, any::<u8>(), any::<u64>(), prop::collection::btree_set(0usize..512, 1..=256)), 1..=16),
        flip: usize
    ) {
        let mut gfn = first;
        let mut pages = Vec::new();
        for (step, kind, seed, words) in &steps {
            gfn += step;
            let before = page(*kind, *seed);
            let mut now = before.clone();
            words.iter().for_each(|word| now[word * 8 + word % 8] ^= 1 << (seed % 8));
            let changed = ChangedWords::between(&before, &now);
            prop_assert_eq!(usize::try_from(changed.count()).unwrap(), words.len());
            let mut patched = before.clone();
            changed.patch(&mut patched, &now);
            prop_assert!(patched == now);
            pages.push((Gfn(gfn), before, now, changed));
        }
        let block: Vec<_> = pages.iter().map(|(gfn, _, now, changed)| (*gfn, &**now, *changed)).collect();
        let mut out = Vec::new();
        let mut writer = EpochWriter::new(CHAIN, EpochId(1));
        writer.changes(&mut out, &block).unwrap();
        prop_assert_eq!((writer.totals().blocks, writer.totals().stored_pages), (1, block.len() as u64));
        let payload = FrameHeader::parse(&out, CHAIN).unwrap().check_body(&out[FRAME_HEADER_BYTES..]).unwrap().to_vec();
        let (list, changes) = decode_changes(&payload).unwrap();
        prop_assert_eq!((list, list.is_changes()), (BlockList::parse(&payload[..list.bytes()]).unwrap(), true));
        prop_assert_eq!((list.gfns().len(), changes.len()), (block.len(), block.len()));
        for ((found, change), (gfn, before, now, _)) in list.gfns().iter().zip(&changes).zip(&pages) {
            prop_assert_eq!(found, gfn);
            let mut read = before.clone();
            change.apply(&mut read).unwrap();
            prop_assert!(read == *now);
            // Of another version nothing comes that is taken for the page, unless it differs only
            // where all changed.
            let mut other = before.clone();
            other[flip % PAGE_SIZE] ^= 1;
            prop_assert_eq!(change.apply(&mut other).is_ok(), other == *now);
        }
        BlockDecoder::new().decode(&payload, &mut Box::new([[0; PAGE_SIZE]; BLOCK_PAGES])).unwrap_err();
        // Whatever bit flips, checksums of the frame aside, somebody notices.
        let mut flipped = payload.clone();
        let at = flip % payload.len();
        flipped[at] ^= 1 << (flip / payload.len() % 8);
        let noticed = decode_changes(&flipped).is_err_and(|error| error.offset() >= FRAME_HEADER_BYTES as u64)
            || decode_changes(&flipped).is_ok_and(|(_, changes)| {
                changes.iter().zip(&pages).any(|(change, (_, before, _, _))| change.apply(&mut before.clone()).is_err())
            });
        prop_assert!(noticed, "byte {} of {}", at, payload.len());
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut pages = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
        let _ = BlockDecoder::new().decode(&bytes, &mut pages);
        let _ = decode_state(&bytes);
        let _ = decode_zeros(&bytes);
        let _ = decode_changes(&bytes);
        let _ = SegmentHeader::decode(&bytes);
        let _ = Description::parse(&bytes);
        let _ = FrameHeader::parse(&bytes, CHAIN);
        let header = FrameHeader { kind: FrameKind::Commit, epoch: EpochId(1), sequence: 0, length: 192, payload_hash: 0 };
        let _ = Commit::decode(&header, &bytes);
        let _ = Synced::decode(&header, &bytes);
    }

    #[test]
    fn state_reads_back(records in prop::collection::btree_map(("[a-z0-9._-]{1,64}", any::<u32>()), (1u16.., prop::collection::vec(any::<u8>(), 0..40)), 0..20), flip: usize) {
        let records: Vec<_> = records.into_iter().map(|((name, index), (version, data))| StateRecord { name, index, version, data }).collect();
        let mut payload = Vec::new();
        super::state::encode_state(&mut payload, &records).unwrap();
        prop_assert_eq!(&decode_state(&payload).unwrap(), &records);
        let mut packed = Vec::new();
        EpochWriter::new(CHAIN, EpochId(1)).state(&mut packed, &records).unwrap();
        let packed = FrameHeader::parse(&packed, CHAIN).unwrap().check_body(&packed[FRAME_HEADER_BYTES..]).unwrap().to_vec();
        prop_assert!(packed.len() <= payload.len());
        prop_assert_eq!(&*unpack_state(&packed).unwrap(), &payload[..]);
        prop_assert_eq!(decode_state(&packed).unwrap(), records);
        let flip = flip % payload.len();
        payload[flip] ^= 1;
        let _ = decode_state(&payload);
        let mut packed = packed;
        let at = flip % packed.len();
        packed[at] ^= 1;
        let _ = decode_state(&packed);
    }
}
