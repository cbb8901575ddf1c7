//! Restoring gives what was appended, and hostile content is refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::format::{
    BlockEncoder, CHANGES_DEPTH_MAX, ChainId, ChangedWords, Commit, Complete, Compression, EpochTotals, EpochWriter,
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, Line, MemoryDigest,
};
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes};
use crate::store::testing::{Disk, Memory, Model, Random, empty_memory, memory_digest, new_chain, state_of};
use crate::store::{Writer, WriterOptions};
use crate::xxh3::{Xxh3, xxh3_64};

/// Memory as zeros, which refuses pages that come twice, are zero or are not in it.
#[derive(Debug)]
struct Target {
    memory: Memory,
    seen: BTreeSet<Gfn>,
}

impl PageTarget for Target {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        assert!(self.seen.insert(gfn) && page != &[0; PAGE_SIZE], "{gfn}");
        **self.memory.get_mut(&gfn).ok_or("no such page")? = *page;
        Ok(())
    }
}

#[test]
fn every_epoch_restores_to_what_was_appended() {
    for seed in 0..25 {
        let compression = if seed % 3 == 0 { Compression::None } else { Compression::Zstd { level: 1 } };
        let disk = Disk::new();
        let mut model = Model::new(seed, compression);
        let mut writer = disk.create(&new_chain(), WriterOptions { segment_bytes: 50_000, ..Default::default() }).unwrap();
        model.run(&mut writer, 30);
        let chain = disk.chain().unwrap();
        assert!(chain.epochs_len().unwrap() > 15 && chain.segments() > 1);
        for epoch in chain.epochs() {
            let epoch = epoch.unwrap().commit.epoch;
            let plan = Plan::new(&chain, epoch).unwrap();
            let mut target = Target { memory: empty_memory(), seen: BTreeSet::new() };
            let mut last = 0;
            let filled = plan
                .fill(&mut target, &mut |done, total| {
                    assert!(done >= last && done <= total && total == plan.pages());
                    last = done;
                })
                .unwrap();
            assert_eq!(last, plan.pages());
            assert_eq!(filled.pages, target.seen.len() as u64);
            assert!(filled.blocks >= plan.blocks() as u64);
            assert!(target.memory == model.offered[&epoch].1, "seed {seed}, epoch {epoch}");
            assert_eq!(plan.state(), state_of(epoch));
            assert_eq!(digest(&chain, epoch).unwrap().memory, memory_digest(&target.memory));
        }
    }
}

/// By fault, as it were: any order, each page with what comes along.
#[test]
fn pages_in_any_order_are_those_of_the_epoch() {
    for seed in 0..12 {
        let disk = Disk::new();
        let mut model = Model::new(seed, if seed % 3 == 0 { Compression::None } else { Compression::Zstd { level: 1 } });
        let mut writer = disk.create(&new_chain(), WriterOptions { segment_bytes: 50_000, ..Default::default() }).unwrap();
        model.run(&mut writer, 30);
        let chain = std::sync::Arc::new(disk.chain().unwrap());
        let mut random = Random(seed);
        for epoch in chain.epochs() {
            let epoch = epoch.unwrap().commit.epoch;
            let map = PageMap::new(chain.clone(), epoch).unwrap();
            assert_eq!((map.state(), PageSources::epoch(&map)), (&state_of(epoch)[..], epoch));
            let expected = &model.offered[&epoch].1;
            let mut source = map.open();
            let gfns: Vec<_> = expected.keys().copied().collect();
            let mut along = 0;
            for _ in 0..2 * gfns.len() {
                let gfn = gfns[usize::try_from(random.below(gfns.len() as u64)).unwrap()];
                let mut came = false;
                let take = &mut |found: Gfn, page: Option<&PageBytes>| {
                    came |= found == gfn;
                    along += u32::from(found != gfn);
                    assert!(page.unwrap_or(&[0; PAGE_SIZE]) == &*expected[&found], "seed {seed}, epoch {epoch}, {found}");
                };
                source.read(gfn, take).unwrap();
                assert!(came, "{gfn}");
            }
            assert!(along > 0);
            // All that are not zeros come in the source's own order.
            let mut left: BTreeSet<_> = gfns.iter().filter(|gfn| *expected[*gfn] != [0; PAGE_SIZE]).copied().collect();
            let mut place = 0;
            while let Some(gfn) = source.next(&mut place).unwrap() {
                left.remove(&gfn);
            }
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

#[test]
fn a_plan_reads_nothing_older_than_a_base() {
    let disk = Disk::new();
    let mut writer = disk.create(&new_chain(), WriterOptions::default()).unwrap();
    let chain = writer.description().chain;
    let page = |byte: u8| [byte; PAGE_SIZE];
    let block = |gfn, page: &PageBytes| {
        let mut out = Vec::new();
        BlockEncoder::new(Compression::None).encode(&mut out, &[(Gfn(gfn), page)]).unwrap();
        (FrameKind::Pages, out)
    };
    append(&mut writer, chain, 1, false, &[block(1, &page(1)), block(2, &page(1)), state()]);
    append(&mut writer, chain, 2, true, &[block(2, &page(2)), state()]);
    append(&mut writer, chain, 3, false, &[block(3, &page(3)), state()]);
    let chain = disk.chain().unwrap();
    let expected = |pages: &[(u64, u8)]| {
        let mut digest = MemoryDigest::default();
        pages.iter().for_each(|(gfn, byte)| digest.add_page(Gfn(*gfn), &page(*byte)));
        digest
    };
    assert_eq!(digest(&chain, EpochId(1)).unwrap().memory, expected(&[(1, 1), (2, 1)]));
    assert_eq!(digest(&chain, EpochId(2)).unwrap().memory, expected(&[(2, 2)]));
    assert_eq!(digest(&chain, EpochId(3)).unwrap().memory, expected(&[(2, 2), (3, 3)]));
    let error = Plan::new(&chain, EpochId(4)).unwrap_err();
    assert!(error.to_string().contains("the newest is 3"), "{error}");
}

#[test]
fn a_target_that_fails_ends_the_fill() {
    struct Full;
    impl PageTarget for Full {
        fn write_page(&mut self, _: Gfn, _: &PageBytes) -> Result<(), TargetError> {
            Err("full".into())
        }
    }
    let disk = Disk::new();
    let mut writer = disk.create(&new_chain(), WriterOptions::default()).unwrap();
    let mut model = Model::new(1, Compression::None);
    model.run(&mut writer, 3);
    let chain = disk.chain().unwrap();
    let error = Plan::new(&chain, chain.newest()).unwrap().fill(&mut Full, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, RestoreError::Target { .. }) && !error.is_damage());
}

/// The payload of a state frame without records.
fn state() -> (FrameKind, Vec<u8>) {
    (FrameKind::State, vec![0; 8])
}

/// Appends an epoch of these payloads, whatever they are, with sound checksums.
fn append(sink: &mut Writer, chain: ChainId, epoch: u64, base: bool, payloads: &[(FrameKind, Vec<u8>)]) {
    let (mut frames, mut headers, mut totals) = (Vec::new(), Xxh3::new(), EpochTotals::default());
    for (kind, payload) in payloads {
        let length = u32::try_from(payload.len()).unwrap();
        let header =
            FrameHeader { kind: *kind, epoch: EpochId(epoch), sequence: totals.frames, length, payload_hash: xxh3_64(payload) };
        frames.extend(header.encode(chain));
        headers.update(&header.encode(chain));
        frames.extend(payload);
        frames.resize(frames.len().next_multiple_of(8), 0);
        totals.frames += 1;
        totals.blocks += u32::from(*kind == FrameKind::Pages);
    }
    totals.frames_bytes = frames.len() as u64;
    totals.frames_hash = headers.digest128();
    let commit = Commit { epoch: EpochId(epoch), totals, ..Commit::default() };
    let mut complete = Line::behind(chain, sink.head()).complete(commit);
    complete = Complete::new(chain, Commit { base, ..complete.commit });
    sink.complete(&frames, &complete).unwrap();
}

/// A block's list with a sound checksum, and data behind it.
fn block(encoding: u8, first: u64, more: &[u32], data: &[u8]) -> (FrameKind, Vec<u8>) {
    let mut list = first.to_le_bytes().to_vec();
    list.extend(more.iter().flat_map(|more| more.to_le_bytes()));
    let mut payload = vec![encoding, u8::try_from(more.len()).unwrap(), 0, 0];
    payload.extend(&xxh3_64(&list).to_le_bytes()[..4]);
    payload.extend(list);
    payload.extend(data);
    (FrameKind::Pages, payload)
}

#[test]
fn hostile_content_is_refused_by_name_and_place() {
    let page = [7; PAGE_SIZE];
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    // A frame that does not state how much it holds.
    let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
    compressor.include_contentsize(false).unwrap();
    let unstated = compressor.compress(&page[..]).unwrap();
    let bomb = zstd(&vec![0; 16 << 20]);
    let zeros = |runs: &[(u64, u64)]| {
        (
            FrameKind::Zeros,
            runs.iter().flat_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()]).flatten().collect::<Vec<_>>(),
        )
    };
    let record = |name: &[u8], version: u16, data: u32| {
        let mut payload = vec![1, 0, 0, 0, 0, 0, 0, 0];
        payload.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        payload.extend(version.to_le_bytes());
        payload.extend([0; 4]);
        payload.extend(data.to_le_bytes());
        payload.extend([0; 4]);
        payload.extend(name);
        payload.resize(payload.len().next_multiple_of(8) + 8, 0);
        vec![(FrameKind::State, payload)]
    };
    // A change of another page: its checksum, its bits and three words.
    let changes = [&[1; 8][..], &[7], &[0; 63], &[5; 24]].concat();
    let cases: Vec<(&str, Vec<_>)> = vec![
        ("gfn a page of guest memory", vec![block(0, 20, &[0], &page), state()]),
        ("gfn a page of guest memory", vec![block(0, u64::MAX, &[0], &page), state()]),
        ("gfn rising numbers from 0", vec![block(0, u64::MAX, &[0, 1], &page), state()]),
        ("gfn rising numbers from 0", vec![block(0, 1, &[1], &page), state()]),
        ("gfn rising numbers from 0", vec![block(0, 1, &[0, 2, 2], &page), state()]),
        ("number of pages 1 to 16", vec![block(0, 1, &[0; 17], &page), state()]),
        ("number of pages 1 to 16", vec![block(0, 1, &[], &page), state()]),
        ("encoding 0 to 2", vec![block(3, 1, &[0], &page), state()]),
        ("bits of changed words 1 to 256 set", vec![block(2, 1, &[0], &[0; 72]), state()]),
        ("bits of changed words 1 to 256 set", vec![block(2, 1, &[0], &[0xFF; PAGE_SIZE]), state()]),
        ("changed words", vec![block(2, 1, &[0], &changes[..changes.len() - 8]), state()]),
        ("changes no more bytes", vec![block(2, 1, &[0], &[&changes[..], &[0; 8]].concat()), state()]),
        ("page checksum", vec![block(2, 1, &[0], &changes), state()]),
        ("bytes of pages 4096", vec![block(0, 1, &[0], &page[1..]), state()]),
        ("content size of zstd data 4096", vec![block(1, 1, &[0], &bomb), state()]),
        ("content size of zstd data 4096", vec![block(1, 1, &[0], &unstated), state()]),
        ("content size of zstd data 8192", vec![block(1, 1, &[0, 1], &zstd(&page)), state()]),
        ("content size of zstd data 4096", vec![block(1, 1, &[0], &[]), state()]),
        ("bytes of zstd data", vec![block(1, 1, &[0], &[zstd(&page), vec![0; 8]].concat()), state()]),
        ("run pages of guest memory", vec![zeros(&[(0, 21)]), state()]),
        ("run pages of guest memory", vec![zeros(&[(0, 1 << 40)]), state()]),
        ("pages of a run", vec![zeros(&[(u64::MAX, 2)]), state()]),
        ("pages of a run", vec![zeros(&[(1, 0)]), state()]),
        ("first page of a run at least", vec![zeros(&[(3, 2), (4, 1)]), state()]),
        ("number of records up to 0", vec![(FrameKind::State, [u32::MAX.to_le_bytes(), [0; 4]].concat())]),
        ("name of a record", record(b"Name", 1, 0)),
        ("bytes of name", record(b"", 1, 3)),
        ("version of a record", record(b"name", 0, 0)),
        ("bytes of data up to", record(b"name", 1, u32::MAX)),
        ("data of a record", record(b"name", 1, 1 << 20)),
        ("no more bytes", vec![(FrameKind::State, vec![0; 16])]),
    ];
    for (expected, payloads) in cases {
        let disk = Disk::new();
        let mut writer = disk.create(&new_chain(), WriterOptions::default()).unwrap();
        let id = writer.description().chain;
        append(&mut writer, id, 1, false, &payloads);
        let chain = disk.chain().unwrap();
        assert_eq!(chain.epochs_len().unwrap(), 1);
        let error = digest(&chain, EpochId(1)).unwrap_err();
        let text = error.to_string();
        assert!(error.is_damage() && text.contains(expected) && text.contains("segment-00000001"), "{expected}: {text}");
    }
}

#[test]
fn any_content_with_sound_checksums_ends_in_an_answer() {
    let disk = Disk::new();
    let mut writer = disk.create(&new_chain(), WriterOptions::default()).unwrap();
    let id = writer.description().chain;
    let (mut memory, mut encoder) = (empty_memory(), BlockEncoder::new(Compression::default()));
    let mut answers = [0; 2];
    for seed in 0..1500 {
        let mut random = Random(seed);
        let (before, mut depths) = (empty_memory(), BTreeMap::new());
        for _ in 0..3 {
            crate::store::testing::run_guest(&mut memory, &mut random, false);
        }
        let epoch = EpochId(seed + 1);
        let (parts, _) =
            crate::store::testing::epoch_frames(id, epoch, (&before, &mut depths), &memory, &mut encoder, &mut random);
        let bytes = parts.concat();
        let (mut payloads, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let header = FrameHeader::parse(&bytes[at..], id).unwrap();
            let body = at + FRAME_HEADER_BYTES;
            payloads.push((header.kind, bytes[body..body + usize::try_from(header.length).unwrap()].to_vec()));
            at += usize::try_from(header.frame_bytes()).unwrap();
        }
        let frame = usize::try_from(random.below(payloads.len() as u64)).unwrap();
        let (kind, payload) = &mut payloads[frame];
        let at = usize::try_from(random.below(payload.len() as u64)).unwrap();
        payload[at] = random.next().to_le_bytes()[0];
        if *kind == FrameKind::Pages && random.one_in(2) {
            // The list's own checksum agrees too.
            let end = (16 + 4 * usize::from(payload[1])).min(payload.len());
            let hash = xxh3_64(&payload[8..end]).to_le_bytes();
            payload[4..8].copy_from_slice(&hash[..4]);
        }
        append(&mut writer, id, epoch.0, true, &payloads);
    }
    let chain = disk.chain().unwrap();
    assert_eq!(chain.epochs_len().unwrap(), 1500);
    for epoch in chain.epochs() {
        let result = digest(&chain, epoch.unwrap().commit.epoch);
        assert!(result.as_ref().map_or_else(RestoreError::is_damage, |_| true));
        answers[usize::from(result.is_ok())] += 1;
    }
    assert!(answers[0] > 100 && answers[1] > 10, "{answers:?}");
}

/// Chains of changes, one epoch each, over a whole page: 15 are read, 16 are one too many.
#[test]
fn changes_go_as_deep_as_the_format_says() {
    let disk = Disk::new();
    let mut writer = disk.create(&new_chain(), WriterOptions::default()).unwrap();
    let id = writer.description().chain;
    let mut encoder = BlockEncoder::new(Compression::None);
    let mut page = [9; PAGE_SIZE];
    for (epoch, place) in (1..=u64::from(CHANGES_DEPTH_MAX) + 3).zip(1..) {
        let before = page;
        page[place * 8] = 1;
        let (mut frames, mut epoch_writer) = (Vec::new(), EpochWriter::new(id, EpochId(epoch)));
        if epoch == 1 {
            epoch_writer.pages(&mut frames, &mut encoder, &[(Gfn(4), &page), (Gfn(5), &page)]).unwrap();
        } else if epoch < 18 {
            epoch_writer.changes(&mut frames, &[(Gfn(5), &page, ChangedWords::between(&before, &page))]).unwrap();
        } else {
            epoch_writer.pages(&mut frames, &mut encoder, &[(Gfn(5), &page)]).unwrap();
        }
        epoch_writer.state(&mut frames, &[]).unwrap();
        let (epoch, totals) = (EpochId(epoch), epoch_writer.totals());
        let complete = Line::behind(id, writer.head()).complete(Commit { epoch, totals, ..Commit::default() });
        writer.complete(&frames, &complete).unwrap();
    }
    let chain = disk.chain().unwrap();
    let mut first = [9; PAGE_SIZE];
    first[8] = 1;
    for (epoch, place) in (1..=18).zip(1..) {
        let plan = Plan::new(&chain, EpochId(epoch));
        if epoch == 17 {
            let error = plan.unwrap_err();
            assert!(error.is_damage() && error.to_string().contains("at most 15 changes"), "{error}");
            continue;
        }
        let plan = plan.unwrap();
        let mut target = Target { memory: empty_memory(), seen: BTreeSet::new() };
        plan.fill(&mut target, &mut |_, _| {}).unwrap();
        let mut expected = [9; PAGE_SIZE];
        (1..=place).for_each(|place| expected[place * 8] = 1);
        assert!(*target.memory[&Gfn(5)] == expected && *target.memory[&Gfn(4)] == first, "epoch {epoch}");
        assert_eq!(plan.blocks() as u64, if epoch == 18 { 2 } else { epoch });
    }
}
