//! Torn tails: the cases of `docs/format.md`, by their numbers.

use std::fs::File;

use super::*;

fn torn(writer: &Writer) -> (TornTail, VerifyReport) {
    let report = writer.verify();
    assert!(report.is_sound(), "{report:#?}");
    (report.torn_tail.clone().unwrap(), report)
}

fn tail_of(writer: &Writer, epoch: u64) -> TornTail {
    let (segment, start, ..) = writer.places[&epoch];
    let bytes: usize = writer.segments[segment..].iter().map(Vec::len).sum();
    TornTail { file: format!("segment-{:08}", segment + 1), offset: start as u64, bytes: (bytes - start) as u64, epoch }
}

#[test]
fn case_1_while_the_chain_is_created() {
    for length in [0, 1, 47, 48, 111] {
        let mut writer = Writer::new();
        writer.segments[0].truncate(length);
        let (tail, report) = torn(&writer);
        assert_eq!((tail.offset, tail.bytes, tail.epoch, report.epochs), (0, length as u64, 1, 0));
    }
}

#[test]
fn case_2_while_a_segment_is_made() {
    for (length, fill) in [(0, 0), (1, 1), (47, 1), (127, 1), (128, 0)] {
        let mut writer = writer();
        writer.segment();
        let segment = writer.segments.last_mut().unwrap();
        segment.truncate(length);
        if fill == 0 {
            segment.fill(0);
        }
        let (tail, report) = torn(&writer);
        assert_eq!(tail, TornTail { file: "segment-00000003".to_owned(), offset: 0, bytes: length as u64, epoch: 6 });
        assert_eq!(report.epochs, 4);
    }
}

#[test]
fn case_3_while_frames_are_appended() {
    let whole = writer();
    let (segment, start, _, end) = whole.places[&5];
    for length in start + 1..end {
        let mut writer = writer();
        writer.segments[segment].truncate(length);
        let (tail, report) = torn(&writer);
        assert_eq!((&tail, report.epochs, report.newest), (&tail_of(&writer, 5), 3, Some(EpochId(4))));
        if whole.segments[segment][length..end].iter().all(|byte| *byte == 0) {
            continue;
        }
        // The length is there, the bytes are not.
        writer.segments[segment].resize(end + 512, 0);
        assert_eq!(torn(&writer).0, tail_of(&writer, 5));
    }
    let mut writer = writer();
    writer.segments[segment].truncate(start);
    assert_eq!(writer.verify().torn_tail, None);
}

#[test]
fn case_4_after_the_commit_frame_before_its_sync() {
    let whole = writer();
    let (segment, start, _, end) = whole.places[&5];
    for hole in (start..end).step_by(64) {
        let mut writer = writer();
        let bytes = &mut writer.segments[segment][hole..(hole + 64).min(end)];
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        bytes.fill(0);
        assert_eq!(torn(&writer).0, tail_of(&writer, 5));
    }
}

#[test]
fn case_5_several_epochs_since_the_last_sync() {
    let mut whole = writer();
    for epoch in 6..10 {
        whole.epoch(epoch, Plan { blocks: vec![(1, many(epoch, 2, 1))], ..audited() });
    }
    assert!(whole.verify().torn_tail.is_none());
    // The later ones are intact and count as torn all the same.
    for (kind, offset) in [(PAGES, 0), (PAGES, 60), (STATE, 20), (COMMIT, 47), (COMMIT, 100)] {
        for epoch in 6..10 {
            let (segment, at) = whole.find(kind, epoch, 0);
            whole.segments[segment][at + offset] ^= 2;
            let (tail, report) = torn(&whole);
            assert_eq!((tail, report.newest), (tail_of(&whole, epoch), Some(EpochId(epoch - 1))));
            whole.segments[segment][at + offset] ^= 2;
        }
    }
    // The same place is damage as soon as a later frame says that it was durable.
    whole.sync();
    whole.epoch(10, Plan::default());
    let (segment, at) = whole.find(PAGES, 7, 0);
    whole.segments[segment][at] ^= 2;
    let report = whole.verify();
    assert_eq!((kinds(&report), report.torn_tail), (vec![DamageKind::Magic], None));
    // Only an intact frame proves it.
    let (segment, at) = whole.find(DURABLE, 9, 0);
    whole.segments[segment][at + 48 + 10] ^= 2;
    assert_eq!(torn(&whole).0, tail_of(&whole, 7));
}

#[test]
fn case_6_what_was_durable_is_not_torn() {
    // Epoch 4 is durable by the frame between it and epoch 5, wherever the damage is.
    let whole = writer();
    let (segment, start, _, end) = whole.places[&4];
    for at in (start..end).step_by(7) {
        let mut writer = writer();
        writer.segments[segment][at] ^= 0x10;
        let report = writer.verify();
        assert!(!report.is_sound() && report.torn_tail.is_none() && report.epochs == 2, "{at}: {report:#?}");
    }
}

#[test]
fn case_7_and_8_a_cut_may_be_half_done() {
    let mut writer = writer();
    writer.cut(4, 0);
    let report = writer.verify();
    assert!(report.is_sound() && report.torn_tail.is_none() && report.epochs == 3);
    let (segment, ..) = writer.places[&4];
    writer.segments[segment].extend([0xD7, 0x53, 0x57]);
    let (tail, _) = torn(&writer);
    assert_eq!((tail.bytes, tail.epoch), (3, 5));
    // In the segment before an empty one.
    let mut writer = self::writer();
    writer.cut(2, 0);
    writer.segments.push(Vec::new());
    let (tail, _) = torn(&writer);
    assert_eq!((tail.file.as_str(), tail.bytes), ("segment-00000002", 0));
}

#[test]
fn a_torn_tail_behind_a_close_frame_keeps_it() {
    let mut writer = closed();
    let end = writer.segments[1].len() as u64;
    writer.segments[1].extend(frame(PAGES, 6, 0, &block(0, &[page(1, 1)])));
    let (tail, report) = torn(&writer);
    assert_eq!((tail.offset, tail.epoch, report.epochs), (end, 6, 4));
}

#[test]
fn a_torn_tail_takes_the_segments_behind_it() {
    let mut writer = writer();
    writer.segment();
    writer.cut(5, 0);
    let (segment, at) = writer.find(STATE, 5, 0);
    writer.segments[segment][at + 50] ^= 1;
    writer.segments.push(vec![0; 1000]);
    assert_eq!(torn(&writer).0, tail_of(&writer, 5));
}

#[test]
fn a_chain_that_grows_is_read_up_to_its_last_commit() {
    let whole = writer();
    let dir = Writer::new().save();
    for length in (128..whole.segments[0].len()).step_by(113) {
        fs::write(dir.path().join("segment-00000001"), &whole.segments[0][..length]).unwrap();
        let report = run(dir.path());
        let epochs = whole.places.values().filter(|place| place.0 == 0 && place.3 <= length).count() as u64;
        assert_eq!((report.epochs, report.is_sound()), (epochs, true), "{length}: {report:#?}");
    }
}

#[test]
fn what_a_writer_appends_meanwhile_is_not_looked_at() {
    // The segment's length is taken at the start: here it is one epoch short of what the file holds
    // when it is read.
    let writer = writer();
    let dir = writer.save();
    let mut store = Store::list(&Place::of_store(Arc::new(open_directory(dir.path()).unwrap()), dir.path()), 64).unwrap();
    let (_, start, ..) = writer.places[&5];
    store.segments[1].bytes = start as u64 + 100;
    let report = listed(&store, &VerifyOptions::default(), &mut |_| {}).unwrap();
    assert_eq!((report.epochs, report.is_sound()), (3, true));
    assert_eq!(report.torn_tail.unwrap().bytes, 100);
    // And a file that is cut back meanwhile ends where it ends.
    File::options().write(true).open(dir.path().join("segment-00000002")).unwrap().set_len(start as u64 + 50).unwrap();
    let report = listed(&store, &VerifyOptions::default(), &mut |_| {}).unwrap();
    assert_eq!((report.epochs, report.is_sound(), report.torn_tail.unwrap().offset), (3, true, start as u64));
}

#[test]
fn what_a_guest_has_in_its_memory_is_no_frame() {
    // A guest that knows the chain's identifier holds a commit frame in its memory that calls epoch
    // 900 durable.
    let mut writer = writer();
    let mut claim = vec![0; 192];
    claim[160..168].copy_from_slice(&900u64.to_le_bytes());
    let mut bytes = text_page(1);
    bytes[2048 - 16 - 4 - 48..][..240].copy_from_slice(&frame(COMMIT, 901, 0, &claim));
    writer.epoch(6, Plan { blocks: vec![(0, vec![page(9, 1)]), (0, vec![(2, bytes)])], ..audited() });
    writer.epoch(7, audited());
    let (segment, at) = writer.find(PAGES, 6, 0);
    writer.segments[segment][at + 70] ^= 1;
    assert_eq!(torn(&writer).0, tail_of(&writer, 6));
}
