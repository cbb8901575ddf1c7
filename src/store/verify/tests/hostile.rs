//! Every flipped byte, every reason for an error, and bytes that nobody would write.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;

// every byte

/// Flips each byte of each file of `writer`'s chain in turn.
fn flip_each(writer: &Writer, check: impl Fn(usize, usize, Result<VerifyReport, VerifyError>)) {
    let dir = writer.save();
    for (segment, bytes) in writer.segments.iter().enumerate() {
        let path = dir.path().join(format!("segment-{:08}", segment + 1));
        let file = OpenOptions::new().write(true).open(path).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            let mask = if at % 3 == 0 { 0xFF } else { 1 << (at % 8) };
            file.write_all_at(&[byte ^ mask], at as u64).unwrap();
            check(segment, at, try_run(dir.path()));
            file.write_all_at(&[*byte], at as u64).unwrap();
        }
    }
}

#[test]
fn no_flipped_byte_goes_unnoticed() {
    let writer = closed();
    let size: usize = writer.segments.iter().map(Vec::len).sum();
    assert!((6_000..20_000).contains(&size), "{size}");
    let close = writer.find(CLOSE, 5, 0);
    flip_each(&writer, |segment, at, report| {
        let report = report.unwrap();
        let epoch = writer.places.iter().find(|(_, place)| place.0 == segment && (place.1..place.3).contains(&at));
        let case = format!("segment {segment} at {at}: {report:#?}");
        if (segment, close.1) <= (close.0, at) && segment == close.0 && at >= close.1 {
            assert!(report.is_sound() && report.torn_tail.is_some() && report.epochs == 4, "{case}");
            return;
        }
        assert!(report.torn_tail.is_none(), "{case}");
        assert_eq!(report.damage.len(), 1, "{case}");
        assert_eq!(report.damage[0].file, format!("segment-{:08}", segment + 1), "{case}");
        assert!(report.damage[0].offset.abs_diff(at as u64) < 5000, "{case}");
        if let Some((epoch, _)) = epoch {
            // Where the first header of epoch 4 cannot be read, its number can't be known: 3 should
            // come next.
            let unread = *epoch == 4 && at < writer.places[epoch].1 + 48;
            assert_eq!(report.damage[0].epoch, Some(if unread { 3 } else { *epoch }), "{case}");
            assert!(report.newest.is_none_or(|newest| newest.0 < *epoch), "{case}");
            assert_eq!(report.epochs, writer.places.keys().filter(|other| *other < epoch).count() as u64, "{case}");
        }
    });
}

#[test]
fn no_flipped_byte_goes_unnoticed_without_a_close_frame() {
    let writer = writer();
    flip_each(&writer, |segment, at, report| {
        let report = report.unwrap();
        // The durable frame is all that proves something of epoch 4.
        let last = (segment, at >= writer.find(DURABLE, 4, 0).1) == (1, true);
        assert_eq!((report.is_sound(), report.torn_tail.is_some()), (last, last), "segment {segment} at {at}: {report:#?}");
    });
}

#[test]
fn no_flipped_bit_of_the_description_goes_unnoticed() {
    let dir = closed().save();
    let path = dir.path().join("description.json");
    let bytes = fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            fs::write(&path, &changed).unwrap();
            let error = try_run(dir.path()).unwrap_err();
            assert!(matches!(error, VerifyError::Description { .. } | VerifyError::Version { .. }), "{at}.{bit}: {error:?}");
        }
    }
}

// nothing to verify

#[test]
fn each_reason_for_an_error_is_told_apart() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    let at = |line: &str| {
        fs::write(path.join("description.json"), description_text(line)).unwrap();
        try_run(path).unwrap_err()
    };
    assert!(matches!(try_run(&path.join("none")).unwrap_err(), VerifyError::NoDirectory { .. }));
    fs::write(path.join("file"), "").unwrap();
    assert!(matches!(try_run(&path.join("file")).unwrap_err(), VerifyError::NotADirectory { .. }));
    assert!(matches!(try_run(&path.join("file/more")).unwrap_err(), VerifyError::NotADirectory { .. }));
    assert!(matches!(try_run(path).unwrap_err(), VerifyError::NoDescription { .. }));
    fs::write(path.join("description.tmp"), description_text(&description_line())).unwrap();
    assert!(matches!(try_run(path).unwrap_err(), VerifyError::NoDescription { .. }));
    fs::create_dir(path.join("description.json")).unwrap();
    assert!(matches!(try_run(path).unwrap_err(), VerifyError::NotAFile { .. }));
    fs::remove_dir(path.join("description.json")).unwrap();

    // The version counts before all else, even before the hash.
    fs::write(path.join("description.json"), "{\"format\": 5}\nsomething else\n").unwrap();
    let error = try_run(path).unwrap_err();
    assert!(matches!(&error, VerifyError::Version { found, .. } if found == "5"), "{error:?}");
    assert_eq!(error.to_string(), format!("{}: expected format 1, found format 5", path.join("description.json").display()));
    assert!(matches!(at(&description_line().replace("\"format\": 1", "\"format\": \"1\"")), VerifyError::Version { .. }));

    let line = description_line();
    for (from, to) in [
        ("\"format\": 1, ", ""),
        ("{", "["),
        ("a0a1", "A0g1"),
        ("a0a1", "A0A1"),
        ("a0a1", "a0"),
        ("a0a1", "a0a1a2"),
        ("4096", "8192"),
        ("\"vcpus\": 2", "\"vcpus\": 0"),
        ("\"vcpus\": 2", "\"vcpus\": 4097"),
        ("\"vcpus\": 2", "\"vcpus\": -1"),
        ("\"machine\"", "\"engine\""),
        ("\"count\": 160", "\"count\": 0"),
        ("\"count\": 160", "\"count\": 1048577"),
        ("\"count\": 256", "\"count\": 1099511627776"),
        ("\"count\": 256", "\"count\": 18446744073709551615"),
        ("\"vcpus\": 2", "\"vcpus\": 2, \"vcpus\": 2"),
    ] {
        assert_ne!(line, line.replacen(from, to, 1), "{from}");
        let error = at(&line.replacen(from, to, 1));
        assert!(matches!(error, VerifyError::Description { .. }), "{from} as {to}: {error:?}");
    }
    let text = description_text(&line);
    let deep = format!("{{\"format\": 1, \"machine\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let unended = text.trim_end().to_owned();
    let texts = [
        String::new(),
        "\n\n".to_owned(),
        line.clone(),
        format!("{text}\n"),
        unended,
        text.replace(' ', ""),
        description_text(&deep),
    ];
    for text in texts {
        fs::write(path.join("description.json"), text).unwrap();
        assert!(matches!(try_run(path).unwrap_err(), VerifyError::Description { .. }));
    }
    fs::write(path.join("description.json"), &text).unwrap();
    assert_eq!(run(path).segments, 0);
    fs::write(path.join("description.json"), format!("{text}{}", " ".repeat(1 << 20))).unwrap();
    assert!(matches!(try_run(path).unwrap_err(), VerifyError::Description { .. }));

    fs::write(path.join("description.json"), text).unwrap();
    fs::create_dir(path.join("segment-00000001")).unwrap();
    let error = try_run(path).unwrap_err();
    assert!(matches!(&error, VerifyError::NotAFile { path } if path.ends_with("segment-00000001")), "{error:?}");
}

#[test]
fn memory_of_the_description() {
    let parse = |memory: &str| {
        description::parse(description_text(&description_line().replace("160}, {\"first\": 1048576", memory)).as_bytes())
    };
    // Neighbours are one piece of memory: a run of zeros may lie in both.
    let description = parse("160}, {\"first\": 160").unwrap();
    let run = |first, count| crate::page::PageRun { first: crate::page::Gfn(first), count };
    assert!(description.holds(run(0, 416)) && description.holds(run(150, 20)) && description.holds(run(415, 1)));
    assert!(!description.holds(run(415, 2)) && !description.holds(run(416, 1)) && !description.holds(run(3, u64::MAX)));
    assert!(parse("160}, {\"first\": 159").is_err());
}

// hostile bytes

/// Bytes that are all frame headers, each intact and each with a payload that covers many others.
#[test]
fn resynchronising_takes_linear_time() {
    let mut writer = closed();
    let (segment, _, commit, _) = writer.places[&5];
    let mut tail = writer.segments[segment].split_off(commit);
    for length in [4 << 20, 64 << 20, 100] {
        let mut hostile = frame(PAGES, 5, 3, &[]);
        hostile[20..24].copy_from_slice(&u32::to_le_bytes(length));
        let checksum = xxh3_64(&hostile[..40]);
        hostile[40..48].copy_from_slice(&checksum.to_le_bytes());
        writer.segments[segment].extend(hostile.repeat(40_000));
        // No header, so that nothing follows anything.
        writer.segments[segment].extend([0xD7, 0x53, 0x57, 0x1A, 0, 0, 0, 0].repeat(100_000));
    }
    writer.segments[segment].append(&mut tail);
    let dir = writer.save();
    let store = Store::list(&Place::of_store(Arc::new(open_directory(dir.path()).unwrap()), dir.path()), 64).unwrap();
    let segments = &store.segments;
    let mut pieces = segment_file::Pieces::open(&segments[1], &store.chains[0].description).unwrap();
    assert_eq!(pieces.durable(0).unwrap(), 5);
    assert!(pieces.bytes_read < 2 * segments[1].bytes, "{} of {}", pieces.bytes_read, segments[1].bytes);
    let report = verify(dir.path(), &VerifyOptions { damage_max: 3, ..VerifyOptions::default() }, &mut |_| {}).unwrap();
    assert_eq!((report.epochs, report.damage.len()), (3, 3));
}

#[test]
fn zeros_cost_what_is_there() {
    let dir = TempDir::new().unwrap();
    let line = description_line().replace("\"count\": 256", "\"count\": 1099510579200");
    fs::write(dir.path().join("description.json"), description_text(&line)).unwrap();
    let mut writer = Writer::new();
    writer.epoch(
        1,
        Plan { blocks: vec![(1, many(0, 16, 1)), (0, vec![((1 << 40) - 1, text_page(1))])], flags: 5, ..Plan::default() },
    );
    let runs = vec![ZEROS; 3].into_iter().map(|kind| (kind, zeros(&[(0, 160), (1 << 20, (1 << 40) - (1 << 20))]))).collect();
    let plan = Plan { extra: runs, ..audited() };
    writer.memory.clear();
    let zero = 3 * (160 + (1u64 << 40) - (1 << 20));
    writer.epoch(
        2,
        Plan {
            tweak_commit: Some(Box::new(move |commit| {
                commit[120..136].copy_from_slice(&[zero.to_le_bytes(), zero.to_le_bytes()].concat());
            })),
            ..plan
        },
    );
    fs::write(dir.path().join("segment-00000001"), &writer.segments[0]).unwrap();
    fs::write(dir.path().join("durable"), mark::slots(&writer, [0; 3])).unwrap();
    let report = run(dir.path());
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!(report.audits_checked, 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_as_segments(segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..3)) {
        let dir = Writer { segments, ..Writer::new() }.save();
        let report = run(dir.path());
        prop_assert!(report.is_sound() && report.epochs == 0);
    }

    /// Pieces of a chain in any order, cut anywhere and with checksums that are right: the walk
    /// sees real frames in wrong places.
    #[test]
    fn frames_in_any_order(picks in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, any::<u16>(), any::<u8>()), 0..40), split in any::<bool>()) {
        let whole = closed();
        let mut frames = Vec::new();
        for (at, (segment, start, ..)) in whole.frames.iter().enumerate() {
            let end = whole.frames.get(at + 1).filter(|next| next.0 == *segment).map_or(whole.segments[*segment].len(), |next| next.1);
            frames.push(&whole.segments[*segment][*start..end]);
        }
        let mut segments = vec![whole.segments[0].clone(), Vec::new()];
        for (pick, action, at, value) in picks {
            let mut frame = pick.get(&frames).to_vec();
            match action {
                0 => frame.truncate(usize::from(at) % (frame.len() + 1)),
                1 | 2 => { let at = usize::from(at) % frame.len(); frame[at] ^= value; }
                3 | 4 => { let at = usize::from(at) % frame.len().min(300); frame[at] ^= value; reseal(&mut frame); }
                5 => { frame[16] = value; reseal(&mut frame); }
                6 => { frame[8] = value % 8; reseal(&mut frame); }
                _ => {}
            }
            segments[usize::from(split && at % 2 == 1)].extend(frame);
        }
        let dir = Writer { segments, ..Writer::new() }.save();
        let report = run(dir.path());
        prop_assert!(report.epochs >= 2 || !report.is_sound() || report.torn_tail.is_some());
    }

    /// The digest kept page by page is the digest of the whole.
    #[test]
    fn digest_is_incremental(steps in prop::collection::vec((0u64..40, 0u64..6, any::<u8>(), 0u8..10), 0..60)) {
        use crate::page::{Gfn, PageRun};
        let mut digest = digest::MemoryDigest::default();
        let (mut model, mut epoch) = (BTreeMap::new(), BTreeMap::new());
        for (gfn, count, seed, action) in steps {
            match action {
                0 => { digest.begin_epoch(); epoch.clear(); }
                1 => { digest.keep_epoch_only(); model = epoch.clone(); }
                2 | 3 => {
                    digest.clear(PageRun { first: Gfn(gfn), count: count + 1 });
                    model.retain(|other, _| !(gfn..=gfn + count).contains(other));
                    epoch.retain(|other, _| !(gfn..=gfn + count).contains(other));
                }
                4 => { digest.set(Gfn(gfn), &[0; 4096]); model.remove(&gfn); epoch.remove(&gfn); }
                _ => { digest.set(Gfn(gfn), &text_page(seed)); model.insert(gfn, text_page(seed)); epoch.insert(gfn, text_page(seed)); }
            }
            prop_assert_eq!(digest.sum(), memory_digest(&model));
        }
    }
}
