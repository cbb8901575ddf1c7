//! Each kind of damage by its name, and each broken promise of a writer.

use super::*;

// damage: bytes that changed

/// Changes bytes of a frame of the closed chain: kind, epoch, number, offset in it, and what to
/// xor. Then the kind of damage expected, the epoch that it names, and how many epochs come before
/// it.
#[test]
fn each_field_of_a_frame_is_named() {
    use DamageKind as K;
    let cases = [
        ((PAGES, 2, 0, 0), K::Magic, Some(2), 1),
        ((PAGES, 2, 0, 4), K::HeaderChecksum, Some(2), 1),
        ((PAGES, 2, 0, 21), K::HeaderChecksum, Some(2), 1),
        ((PAGES, 2, 0, 45), K::HeaderChecksum, Some(2), 1),
        ((PAGES, 2, 0, 48), K::PayloadChecksum, Some(2), 1),
        ((ZEROS, 1, 0, 50), K::PayloadChecksum, Some(1), 0),
        ((STATE, 1, 0, 80), K::PayloadChecksum, Some(1), 0),
        ((STATE, 4, 0, 90), K::PayloadChecksum, Some(4), 2),
        ((COMMIT, 2, 0, 3), K::Magic, Some(2), 1),
        ((COMMIT, 2, 0, 100), K::PayloadChecksum, Some(2), 1),
        ((COMMIT, 5, 0, 10), K::HeaderChecksum, Some(5), 3),
        ((SEGMENT, 0, 0, 8), K::HeaderChecksum, None, 0),
        ((SEGMENT, 0, 1, 60), K::PayloadChecksum, None, 2),
    ];
    for ((kind, epoch, number, offset), expected, named, before) in cases {
        let mut writer = closed();
        let (segment, at) = writer.find(kind, epoch, number);
        writer.segments[segment][at + offset] ^= 0x20;
        let report = writer.verify();
        let case = format!("kind {kind} of epoch {epoch} at {offset}: {report:#?}");
        assert_eq!(kinds(&report), [expected], "{case}");
        assert_eq!((report.damage[0].epoch, report.epochs), (named, before), "{case}");
        assert_eq!(report.damage[0].file, format!("segment-{:08}", segment + 1), "{case}");
        assert!((at as u64..=(at + offset) as u64).contains(&report.damage[0].offset), "{case}");
        assert_eq!(report.torn_tail, None, "{case}");
    }
}

#[test]
fn padding_is_checked() {
    let mut writer = Writer::new();
    // Compressed, blocks of different pages have different lengths: one of them is followed by
    // padding.
    let blocks: Vec<_> = (0..6).map(|block| (1, many(1, 1 + block, 5))).collect();
    writer.epoch(1, Plan { blocks, ..Plan::default() });
    writer.close();
    let length =
        |bytes: &[u8], at: usize| usize::try_from(u32::from_le_bytes(bytes[at + 20..at + 24].try_into().unwrap())).unwrap();
    let mut frames = (0..6).map(|block| writer.find(2, 1, block));
    let (segment, at) = frames.find(|(segment, at)| length(&writer.segments[*segment], *at) % 8 != 0).unwrap();
    let end = at + 48 + length(&writer.segments[segment], at);
    writer.segments[segment][end] = 1;
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::Padding]);
    assert_eq!(report.damage[0].offset, end as u64);
}

#[test]
fn independent_damages_are_all_reported_and_nothing_else() {
    let mut writer = writer();
    for epoch in 6..40 {
        if epoch % 10 == 0 {
            writer.segment();
        }
        writer.epoch(epoch, Plan { blocks: vec![(1, many(epoch, 3, 5)), (1, many(epoch + 3, 3, 5))], ..audited() });
        writer.sync();
    }
    writer.close();
    let (flips, kinds_expected) = (
        [(PAGES, 1, 0, 30), (STATE, 5, 0, 70), (COMMIT, 12, 0, 20), (PAGES, 12, 1, 0), (SEGMENT, 0, 3, 4), (PAGES, 31, 1, 55)],
        [
            DamageKind::HeaderChecksum,
            DamageKind::PayloadChecksum,
            DamageKind::Magic,
            DamageKind::HeaderChecksum,
            DamageKind::HeaderChecksum,
            DamageKind::PayloadChecksum,
        ],
    );
    for (kind, epoch, number, offset) in flips {
        let (segment, at) = writer.find(kind, epoch, number);
        writer.segments[segment][at + offset] ^= 0x80;
    }
    let report = writer.verify();
    assert_eq!(kinds(&report), kinds_expected, "{report:#?}");
    assert_eq!((report.epochs, report.newest), (0, None));
    assert_eq!(report.epochs_behind_damage, 38 - 4, "{report:#?}");
    assert_eq!(report.audits_checked, 0);
}

#[test]
fn a_listing_of_damage_is_bounded() {
    let mut writer = writer();
    for epoch in 6..30 {
        writer.epoch(epoch, Plan { blocks: vec![(1, many(epoch, 3, 5))], ..Plan::default() });
        writer.sync();
    }
    writer.close();
    for epoch in 6..30 {
        let (segment, at) = writer.find(PAGES, epoch, 0);
        writer.segments[segment][at + 60] ^= 1;
    }
    let report = verify(writer.save().path(), &VerifyOptions { damage_max: 5, ..VerifyOptions::default() }, &mut |_| {}).unwrap();
    assert_eq!((report.damage.len(), report.damage_omitted), (5, 19));
}

#[test]
fn bytes_that_are_missing_inside_are_damage() {
    // 8 bytes of a payload are gone, then a whole frame, then an epoch's end with the next one's
    // beginning.
    for (from, to) in [((PAGES, 2, 0, 64), 8), ((PAGES, 2, 1, 0), 0), ((STATE, 1, 0, 8), 0)] {
        let mut writer = closed();
        let ((kind, epoch, number, offset), count) = (from, to);
        let (segment, at) = writer.find(kind, epoch, number);
        let end = if count == 0 {
            let next = writer.frames.iter().find(|frame| (frame.0, frame.1 > at) == (segment, true)).unwrap().1;
            if offset == 0 { next } else { writer.find(PAGES, 2, 0).1 + 8 }
        } else {
            at + offset + count
        };
        writer.segments[segment].drain(at + offset..end);
        let report = writer.verify();
        assert!(!report.is_sound() && report.torn_tail.is_none(), "{report:#?}");
        assert!(report.damage.len() <= 2, "{report:#?}");
    }
}

// damage: a writer that breaks its promises, with right checksums

fn one(plan: Plan) -> VerifyReport {
    let mut writer = Writer::new();
    writer.epoch(1, Plan { blocks: vec![(1, many(0, 16, 3))], flags: 5, ..Plan::default() });
    writer.sync();
    writer.epoch(2, plan);
    writer.sync();
    writer.epoch(3, audited());
    writer.close();
    writer.verify()
}

fn payload(index: usize, tweak: impl Fn(&mut Vec<u8>) + 'static) -> Plan {
    Plan {
        blocks: vec![(1, many(4, 3, 9)), (0, vec![page(7, 1)])],
        zeros: vec![(40, 2), (50, 1)],
        tweak: Some((index, Box::new(tweak))),
        ..audited()
    }
}

fn commit(tweak: impl Fn(&mut Vec<u8>) + 'static) -> Plan {
    Plan { blocks: vec![(1, many(4, 3, 9))], zeros: vec![(40, 2)], tweak_commit: Some(Box::new(tweak)), ..Plan::default() }
}

fn put(at: usize, bytes: impl AsRef<[u8]> + 'static) -> impl Fn(&mut Vec<u8>) {
    move |payload| payload[at..at + bytes.as_ref().len()].copy_from_slice(bytes.as_ref())
}

fn frames(tweak: impl Fn(&mut Vec<Vec<u8>>) + 'static) -> Plan {
    Plan { blocks: vec![(1, many(4, 3, 9)), (0, vec![page(7, 1)])], tweak_frames: Some(Box::new(tweak)), ..Plan::default() }
}

fn header(index: usize, at: usize, bytes: &'static [u8]) -> Plan {
    frames(move |frames| {
        frames[index][at..at + bytes.len()].copy_from_slice(bytes);
        reseal(&mut frames[index]);
    })
}

fn records(records: Vec<u8>) -> Plan {
    Plan { states: Some(vec![records]), ..Plan::default() }
}

#[test]
fn each_broken_promise_is_named() {
    use DamageKind as K;
    let long_name = "n".repeat(65);
    let two_frames = move |payload: &mut Vec<u8>| {
        payload.truncate(16 + 12);
        payload.extend(zstd::bulk::compress(&[1; 4096], 1).unwrap());
        payload.extend(zstd::bulk::compress(&[1; 8192], 1).unwrap());
    };
    let unstated = move |payload: &mut Vec<u8>| {
        payload.truncate(16 + 12);
        let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
        compressor.include_contentsize(false).unwrap();
        payload.extend(compressor.compress(&[1; 3 * 4096]).unwrap());
    };
    let trailing = move |payload: &mut Vec<u8>| payload.extend([0; 8]);
    let cut = move |payload: &mut Vec<u8>| payload.truncate(payload.len() - 3);
    let record = |version: u16, name: &str| state(&[(name, 0, version, b"data")]);
    let tweaked = |at: usize, bytes: &[u8]| {
        let mut list = state(&[("name", 0, 1, b"datum")]);
        list[at..at + bytes.len()].copy_from_slice(bytes);
        records(list)
    };
    let cases: Vec<(&str, Plan, K)> = vec![
        ("encoding", payload(0, put(0, [3])), K::Block),
        ("no pages", payload(0, put(1, [0])), K::Block),
        ("17 pages", payload(0, put(1, [17])), K::Block),
        (
            "255 pages in a short block",
            payload(0, |payload| {
                payload.truncate(20);
                payload[1] = 255;
            }),
            K::Block,
        ),
        ("empty block", payload(0, Vec::clear), K::Block),
        ("block reserved", payload(0, put(3, [1])), K::Reserved),
        ("list checksum", payload(0, put(5, [1])), K::ListChecksum),
        ("another gfn of the list", payload(0, put(8, 101u64.to_le_bytes())), K::ListChecksum),
        ("first difference", payload(0, put(16, [1])), K::Block),
        ("equal gfns", payload(0, put(20, [0])), K::Block),
        ("falling gfns", payload(0, put(20, [3])), K::Block),
        ("gfn in a hole", payload(0, put(8, 158u64.to_le_bytes())), K::GfnOutOfMemory),
        ("gfn behind all", payload(0, put(8, 0x10_0100u64.to_le_bytes())), K::GfnOutOfMemory),
        ("gfn that overflows", payload(0, put(8, (u64::MAX - 1).to_le_bytes())), K::GfnOutOfMemory),
        ("gfn far away", payload(0, put(24, u32::MAX.to_le_bytes())), K::GfnOutOfMemory),
        ("short raw", payload(1, cut), K::Block),
        ("long raw", payload(1, trailing), K::Block),
        ("raw as zstd", payload(1, put(0, [1])), K::Zstd),
        ("zstd cut", payload(0, cut), K::Zstd),
        ("zstd trailing", payload(0, trailing), K::Zstd),
        (
            "skippable frame behind",
            payload(0, |payload| payload.extend([0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4])),
            K::Zstd,
        ),
        (
            "zstd of fewer pages",
            payload(0, |payload| {
                payload[1] = 2;
                payload.drain(24..28);
                relist(payload);
            }),
            K::Zstd,
        ),
        ("two zstd frames", payload(0, two_frames), K::Zstd),
        ("no content size", payload(0, unstated), K::Zstd),
        ("zstd garbage", payload(0, |payload| payload[36..].fill(0xFF)), K::Zstd),
        (
            "skippable frame",
            payload(0, |payload| {
                payload.truncate(28);
                payload.extend([0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]);
            }),
            K::Zstd,
        ),
        ("zeros of odd length", payload(2, cut), K::Zeros),
        ("no zeros", payload(2, Vec::clear), K::Zeros),
        ("no zero page", payload(2, put(8, 0u64.to_le_bytes())), K::Zeros),
        ("zeros overlap", payload(2, put(8, 11u64.to_le_bytes())), K::Zeros),
        ("zeros fall", payload(2, put(16, 3u64.to_le_bytes())), K::Zeros),
        ("zeros out of memory", payload(2, put(24, 111u64.to_le_bytes())), K::GfnOutOfMemory),
        ("zeros across a hole", payload(2, put(24, (1u64 << 40).to_le_bytes())), K::GfnOutOfMemory),
        ("zeros that overflow", payload(2, put(24, u64::MAX.to_le_bytes())), K::GfnOutOfMemory),
        ("65,537 zero runs", payload(2, |payload| *payload = vec![0; 16 * 65_537]), K::Zeros),
        ("empty state", records(Vec::new()), K::StateRecords),
        ("too few records", records(put_in(state(&[("a", 0, 1, b"x")]), 0, 2)), K::StateRecords),
        ("too many records", records(put_in(state(&[("a", 0, 1, b"x")]), 0, 0)), K::StateRecords),
        ("65,537 records", records(put_in(state(&[]), 0, 65_537)), K::StateRecords),
        ("state reserved", records(put_in(state(&[]), 4, 1)), K::StateRecords),
        ("no name", records(record(1, "")), K::StateRecords),
        ("long name", records(record(1, &long_name)), K::StateRecords),
        ("capital name", records(record(1, "Regs")), K::StateRecords),
        ("version 0", records(record(0, "regs")), K::StateRecords),
        ("record reserved", tweaked(20, &[1]), K::StateRecords),
        ("huge record", tweaked(16, &u32::MAX.to_le_bytes()), K::StateRecords),
        ("record behind the end", tweaked(16, &600u32.to_le_bytes()), K::StateRecords),
        ("record padding", tweaked(8 + 16 + 4 + 5, &[1]), K::StateRecords),
        ("same record twice", records(state(&[("a", 3, 1, b"x"), ("a", 3, 2, b"y")])), K::StateRecords),
        ("no state frame", Plan { states: Some(Vec::new()), ..Plan::default() }, K::Kind),
        ("two state frames", Plan { states: Some(vec![state(&[]), state(&[])]), ..Plan::default() }, K::Kind),
        ("parent", commit(put(0, 7u64.to_le_bytes())), K::Parent),
        ("parent hash", commit(put(9, [0xEE; 3])), K::Parent),
        ("frames", commit(put(24, 9u32.to_le_bytes())), K::Counts),
        ("blocks", commit(put(28, 9u32.to_le_bytes())), K::Counts),
        ("bytes", commit(|commit| commit[32..40].copy_from_slice(&8u64.to_le_bytes())), K::Counts),
        ("frames hash", commit(put(40, [0xEE; 16])), K::FramesHash),
        ("pages", commit(put(120, 99u64.to_le_bytes())), K::Counts),
        ("pages overflow", commit(put(128, [0xFF; 24])), K::Counts),
        ("zero", commit(put(128, 1u64.to_le_bytes())), K::Counts),
        ("stored", commit(put(144, 9u64.to_le_bytes())), K::Counts),
        ("written", commit(put(152, 9u64.to_le_bytes())), K::Counts),
        ("generation", commit(put(160, 2u64.to_le_bytes())), K::Reserved),
        ("incarnation", commit(put(207, [1])), K::Reserved),
        ("trigger 0", commit(put(168, [0])), K::Flags),
        ("trigger 5", commit(put(168, [5])), K::Flags),
        ("flags", commit(put(169, [8])), K::Flags),
        ("digest without audit", commit(put(176, [1])), K::Flags),
        ("frame reserved", header(1, 6, &[1]), K::Reserved),
        ("kind 0", header(1, 4, &[0]), K::Kind),
        ("no kind", header(1, 4, &[NO_KIND]), K::Kind),
        ("kind 127", header(1, 4, &[127]), K::Kind),
        ("segment header of an epoch", header(1, 4, &[1]), K::Epoch),
        ("another chain", header(1, 31, &[0]), K::Chain),
        ("another epoch", header(1, 8, &[3]), K::Sequence),
        ("sequence", header(1, 16, &[7]), K::Sequence),
        ("first sequence", header(0, 16, &[7]), K::Sequence),
        ("absurd length", header(1, 20, &[0xFF; 4]), K::Length),
        ("64 MiB and one", header(1, 20, &[1, 0, 0, 4]), K::Length),
        ("length behind the file's end", header(1, 20, &[0, 0, 0, 4]), K::Truncated),
        ("close in an epoch", frames(|frames| frames[1] = frame(CLOSE, 1, 0, &[0; 24])), K::Kind),
        ("commit of another length", frames(|frames| frames[1] = frame(COMMIT, 2, 1, &[0; 184])), K::Length),
        ("frames swapped", frames(|frames| frames.swap(0, 1)), K::Sequence),
        (
            "frame twice",
            frames(|frames| {
                let first = frames[0].clone();
                frames.insert(0, first);
            }),
            K::Sequence,
        ),
    ];
    for (name, plan, kind) in cases {
        let report = one(plan);
        assert_eq!(kinds(&report).first(), Some(&kind), "{name}: {report:#?}");
        assert_eq!((report.epochs, &report.torn_tail), (1, &None), "{name}: {report:#?}");
        assert!(report.audits_failed == 0, "{name}: {report:#?}");
    }
}

fn put_in(mut payload: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    put(at, value.to_le_bytes())(&mut payload);
    payload
}

#[test]
fn epochs_must_rise() {
    for epoch in [1, 2, 0] {
        let mut writer = writer();
        writer.epoch(epoch, Plan::default());
        writer.sync();
        let last = writer.last;
        writer.epoch(6, Plan::default());
        writer.durable = 7;
        writer.epoch(8, Plan::default());
        let report = writer.verify();
        assert_eq!(report.damage[0].kind, DamageKind::Epoch, "{last:?} {report:#?}");
        assert_eq!(report.epochs, 4);
    }
}

#[test]
fn a_durable_or_close_frame_must_name_the_newest_epoch() {
    for kind in [DURABLE, CLOSE] {
        let mut chain = writer();
        chain.last.1 ^= 1;
        chain.synced(kind);
        chain.epoch(6, Plan::default());
        chain.sync();
        chain.epoch(7, Plan::default());
        let report = chain.verify();
        assert_eq!(report.damage[0].kind, DamageKind::Close, "{report:#?}");

        // One that names an epoch which is not there proves that something was lost.
        let mut chain = writer();
        let last = chain.last;
        chain.last = (9, 9);
        chain.synced(kind);
        let report = chain.verify();
        assert_eq!((kinds(&report), report.epochs), (vec![DamageKind::Close], 4), "{last:?} {report:#?}");
    }
}

#[test]
fn segment_headers_are_checked() {
    for (offset, bytes) in [(0, 2u32), (4, 7), (8, 0), (24, 5), (40, 5), (56, 8192), (60, 1)] {
        let mut writer = closed();
        let (segment, at) = writer.find(SEGMENT, 0, 1);
        let header = &mut writer.segments[segment][at..at + 128];
        header[48 + offset..52 + offset].copy_from_slice(&bytes.to_le_bytes());
        reseal(header);
        let report = writer.verify();
        assert_eq!(kinds(&report), [DamageKind::SegmentHeader], "at {offset}: {report:#?}");
        assert_eq!((report.epochs, report.epochs_behind_damage), (2, 2), "at {offset}: {report:#?}");
    }
    let mut writer = closed();
    writer.segments[1].drain(..128);
    assert_eq!(kinds(&writer.verify()), [DamageKind::SegmentHeader]);
}

#[test]
fn a_missing_segment_is_named() {
    let mut writer = writer();
    writer.segment();
    writer.epoch(6, audited());
    writer.close();
    for (missing, epochs, behind) in [(1, 0, 3), (2, 2, 1)] {
        let dir = writer.save();
        let name = format!("segment-{missing:08}");
        fs::remove_file(dir.path().join(&name)).unwrap();
        let report = run(dir.path());
        assert_eq!(kinds(&report), [DamageKind::MissingSegment], "{report:#?}");
        assert_eq!(report.damage[0].file, name);
        assert_eq!((report.epochs, report.epochs_behind_damage, report.segments), (epochs, behind, 2), "{report:#?}");
    }
    // A gap of nearly all numbers there are costs nothing.
    let dir = writer.save();
    fs::rename(dir.path().join("segment-00000003"), dir.path().join("segment-99999999")).unwrap();
    let report = run(dir.path());
    assert_eq!(kinds(&report), [DamageKind::MissingSegment, DamageKind::SegmentHeader], "{report:#?}");
    assert_eq!(report.damage[0].file, "segment-00000003");
    // The last one: nothing that remains says that it was there.
    let dir = writer.save();
    fs::remove_file(dir.path().join("segment-00000003")).unwrap();
    assert!(run(dir.path()).is_sound());
}

#[test]
fn a_segment_cut_at_an_epoch_shows_in_the_next_one() {
    let mut writer = closed();
    let end = writer.places[&1].3;
    writer.segments[0].truncate(end);
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::SegmentHeader], "{report:#?}");
    assert_eq!((report.epochs, report.epochs_behind_damage, report.audits_unchecked), (1, 2, 2));
}

#[test]
fn an_empty_segment_before_others_is_damage() {
    let mut writer = closed();
    writer.segments[0].clear();
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::SegmentHeader], "{report:#?}");
    assert_eq!(report.epochs_behind_damage, 2);
}

#[test]
fn damage_and_a_torn_tail_are_told_apart() {
    let mut writer = closed();
    writer.epoch(6, audited());
    writer.epoch(7, audited());
    let (segment, at) = writer.find(PAGES, 1, 1);
    writer.segments[segment][at + 100] ^= 1;
    let (segment, at) = writer.find(STATE, 7, 0);
    writer.segments[segment][at + 60] ^= 1;
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::PayloadChecksum], "{report:#?}");
    assert_eq!(report.torn_tail.unwrap().epoch, 7);
    assert_eq!(report.epochs_behind_damage, 4);
}
