//! One epoch, and what it needs.

use super::branches::family;
use super::compacted::long;
use super::*;

fn one(dir: &Path, branch: &str, epoch: u64) -> Result<VerifyReport, VerifyError> {
    let options = VerifyOptions { branch: Some(branch.to_owned()), epoch: Some(EpochId(epoch)), ..VerifyOptions::default() };
    verify(dir, &options, &mut |_| {})
}

#[track_caller]
fn is_whole(dir: &Path, branch: &str, epoch: u64, written: &Written) {
    let report = one(dir, branch, epoch).unwrap();
    assert!(report.is_sound(), "{branch} {epoch}: {report:#?}");
    assert_eq!((report.epochs, report.audits_checked), (1, 1), "{branch} {epoch}");
    let found = report.epoch.unwrap();
    assert_eq!(found.memory.unwrap(), format!("{:032x}", memory_digest(&written.memory)), "{branch} {epoch}");
    assert_eq!(found.state.unwrap(), format!("{:032x}", xxh3_128(&written.state)));
    assert_eq!(found.pages, written.memory.len() as u64);
}

#[test]
fn every_epoch_of_every_chain() {
    for writer in
        [long(), closed(), long().compacted(0, 1, &[2, 6]), long().compacted(1, 2, &[5, 9]), long().compacted(0, 3, &[4, 7, 12])]
    {
        let dir = writer.save();
        for epoch in 0..14 {
            match writer.places.contains_key(&epoch) {
                true => is_whole(dir.path(), "main", epoch, &writer.written[&epoch]),
                false => assert!(matches!(one(dir.path(), "main", epoch).unwrap_err(), VerifyError::NoEpoch { .. })),
            }
        }
    }
    let (dir, chains) = family();
    for (name, writer) in &chains {
        for (epoch, written) in &writer.written {
            is_whole(dir.path(), name, *epoch, written);
        }
    }
}

/// Each byte of the chain, at each epoch: what is found is what a restore of that epoch would trip
/// over, and no less.
#[test]
fn what_an_epoch_needs_is_checked() {
    let writer = long().compacted(1, 2, &[5, 9]);
    let dir = writer.save();
    let (mut found_needed, mut passed) = (0, 0);
    for (segment, bytes) in writer.segments.iter().enumerate() {
        let path = dir.path().join(writer.name("segment", segment));
        let frames = index::frames_of(bytes);
        for (at, kind, epoch, payload) in frames {
            let offsets = match kind {
                PAGES => [8, 48, 60, 48 + payload.len() - 1],
                _ => [8, 24, 48, 48 + payload.len() / 2],
            };
            for offset in offsets {
                let mut changed = bytes.clone();
                changed[at + offset] ^= 4;
                fs::write(&path, &changed).unwrap();
                let whole = run(dir.path());
                for wanted in [3, 5, 9, 12] {
                    let case = format!("segment {segment} at {at}+{offset} (kind {kind} of epoch {epoch}) for {wanted}");
                    let (segment_of, _, commit, _) = writer.places[&wanted];
                    let behind = (segment_of, commit) < (segment, at);
                    match one(dir.path(), "main", wanted) {
                        Ok(report) if report.is_sound() => {
                            // The memory that it gives is right nevertheless.
                            let memory = memory_digest(&writer.written[&wanted].memory);
                            assert_eq!(report.epoch.unwrap().memory.unwrap(), format!("{memory:032x}"), "{case}");
                            assert!(behind || (kind != COMMIT && offset >= 48) || kind == CLOSE, "{case}");
                            passed += u32::from(!behind && kind == PAGES);
                        }
                        Ok(report) => {
                            assert!(!behind, "{case}: {report:#?}");
                            assert!(!whole.is_sound(), "{case}");
                            assert_eq!(report.damage[0].file, writer.name("segment", segment), "{case}: {report:#?}");
                            found_needed += 1;
                        }
                        Err(error) => assert!(matches!(error, VerifyError::NoEpoch { .. }) && !behind, "{case}: {error:?}"),
                    }
                }
            }
        }
        fs::write(&path, bytes).unwrap();
    }
    assert!(found_needed > 50 && passed > 3, "{found_needed} {passed}");
}

#[test]
fn a_torn_epoch_is_none() {
    let mut writer = long();
    writer.segments[3].truncate(writer.places[&12].3);
    let (segment, at) = writer.find(PAGES, 12, 1);
    writer.segments[segment][at + 70] ^= 1;
    let dir = writer.save();
    assert!(matches!(one(dir.path(), "main", 12).unwrap_err(), VerifyError::NoEpoch { .. }));
    is_whole(dir.path(), "main", 11, &writer.written[&11]);
    fs::remove_file(dir.path().join("segment-00000002")).unwrap();
    let report = one(dir.path(), "main", 11).unwrap();
    assert_eq!(kinds(&report), [DamageKind::MissingSegment], "{report:#?}");
    assert_eq!(report.damage[0].file, "segment-00000002");
}

#[test]
fn changes_lean_on_what_is_there() {
    let mut writer = Writer::new();
    writer.epoch(1, Plan { blocks: vec![(1, many(0, 3, 1))], flags: 5, ..Plan::default() });
    writer.memory.insert(9, text_page(4));
    writer.epoch(
        2,
        Plan {
            blocks: vec![(
                2,
                vec![(9, {
                    let mut page = text_page(4);
                    page[9] ^= 1;
                    page
                })],
            )],
            ..Plan::default()
        },
    );
    writer.close();
    let report = one(writer.save().path(), "main", 2).unwrap();
    assert_eq!((kinds(&report), report.epochs), (vec![DamageKind::Changes], 0), "{report:#?}");
    assert!(one(writer.save().path(), "main", 1).unwrap().is_sound());
}
