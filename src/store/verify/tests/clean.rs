//! Chains without damage, and audits.

use super::*;

// clean chains

#[test]
fn a_clean_chain_is_sound() {
    let writer = closed();
    let report = writer.verify();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.epochs, report.segments, report.audits_checked, report.audits_failed), (4, 2, 4, 0));
    assert_eq!(report.bytes, writer.segments.iter().map(|segment| segment.len() as u64).sum::<u64>());
    assert_eq!((report.newest, &report.torn_tail, report.audits_unchecked), (Some(EpochId(5)), &None, 0));
}

#[test]
fn the_report_reads_well_as_json() {
    let mut writer = closed();
    let (segment, at) = writer.find(PAGES, 4, 0);
    writer.segments[segment][at + 3000] ^= 1;
    let json = serde_json::to_value(writer.verify()).unwrap();
    assert_eq!(json["newest"], 2);
    assert_eq!(json["damage"][0]["kind"], "payload_checksum");
    assert_eq!(json["damage"][0]["file"], "segment-00000002");
    assert_eq!(json["damage"][0]["epoch"], 4);
    assert_eq!(json["torn_tail"], serde_json::Value::Null);
}

#[test]
fn a_chain_goes_on_after_a_close_and_after_a_second_base() {
    let mut writer = closed();
    writer.epoch(6, Plan { blocks: vec![(1, many(30, 2, 5))], ..audited() });
    writer.sync();
    // A base says all: pages that it does not mention are zero, whatever they were.
    writer.memory.clear();
    writer.epoch(9, Plan { blocks: vec![(1, many(0, 3, 44)), (0, vec![page(1, 45)])], flags: 1 | 4, ..Plan::default() });
    writer.epoch(10, Plan { blocks: vec![(1, many(2, 4, 71))], ..audited() });
    let report = writer.verify();
    assert!(report.is_sound() && report.torn_tail.is_none(), "{report:?}");
    assert_eq!((report.epochs, report.audits_checked), (7, 7));
}

#[test]
fn a_chain_without_epochs_is_sound() {
    let mut writer = Writer::new();
    assert_eq!(writer.verify().newest, None);
    writer.segment();
    let report = writer.verify();
    assert!(report.is_sound() && report.torn_tail.is_none() && report.epochs == 0, "{report:?}");
    // Nothing is there to be closed.
    writer.close();
    let report = writer.verify();
    assert!(report.is_sound() && report.torn_tail.is_some() && report.epochs == 0, "{report:?}");
    writer.segments.clear();
    let report = writer.verify();
    assert!(report.is_sound() && report.torn_tail.is_none() && report.segments == 0, "{report:?}");
}

#[test]
fn the_newest_mention_in_an_epoch_counts() {
    let mut writer = Writer::new();
    let blocks = vec![(1, many(0, 16, 1)), (0, vec![page(3, 99)]), (1, many(3, 2, 50))];
    writer.epoch(1, Plan { blocks, zeros: vec![(4, 1)], flags: 1 | 4, ..Plan::default() });
    // Zeros that are written over later in the same epoch.
    let again = block(0, &[page(5, 77)]);
    writer.memory.insert(5, text_page(77));
    let plan = Plan { extra: vec![(ZEROS, zeros(&[(5, 2)])), (PAGES, again)], ..Plan::default() };
    writer.memory.remove(&6);
    let digest = memory_digest(&writer.memory);
    writer.epoch(
        2,
        Plan {
            flags: 2 | 4,
            tweak_commit: Some(Box::new(move |commit| {
                commit[28..32].copy_from_slice(&1u32.to_le_bytes());
                commit[144..152].copy_from_slice(&1u64.to_le_bytes());
                commit[176..192].copy_from_slice(&digest.to_le_bytes());
            })),
            ..plan
        },
    );
    let report = writer.verify();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.audits_checked, 2);
}

#[test]
fn kinds_with_bit_7_are_passed_over() {
    let mut writer = Writer::new();
    writer.epoch(1, Plan { blocks: vec![(1, many(0, 2, 1))], extra: vec![(0x85, vec![1, 2, 3])], ..audited() });
    assert!(writer.verify().is_sound());
}

#[test]
fn progress_ends_at_the_whole() {
    let writer = closed();
    let dir = writer.save();
    let mut calls = Vec::new();
    let report = verify(dir.path(), &VerifyOptions::default(), &mut |progress| calls.push(progress)).unwrap();
    let last = calls.last().unwrap();
    assert_eq!((last.bytes, last.bytes_total, last.segment, last.epoch), (report.bytes, report.bytes, 2, EpochId(5)));
    assert!(calls.is_sorted_by_key(|progress| progress.bytes));
}

#[test]
fn without_audits_nothing_is_compared() {
    let dir = closed().save();
    let report = verify(dir.path(), &VerifyOptions { audits: false, ..VerifyOptions::default() }, &mut |_| {}).unwrap();
    assert_eq!((report.epochs, report.audits_checked, report.audits_unchecked), (4, 0, 4));
}

// audits

#[test]
fn a_page_that_was_missed_fails_the_audit_once() {
    for dropped in [100, 101, 102] {
        let mut writer = Writer::new();
        writer.epoch(1, Plan { blocks: vec![(1, many(0, 16, 3))], flags: 5, ..Plan::default() });
        // The machine wrote the page, and the epoch does not have it.
        writer.memory.insert(dropped, text_page(7));
        let want = memory_digest(&writer.memory);
        writer.epoch(2, Plan { blocks: vec![(1, many(4, 8, 90))], ..audited() });
        assert_ne!(want, memory_digest(&writer.memory));
        writer.epoch(3, Plan { blocks: vec![(1, many(5, 2, 91))], ..audited() });
        writer.epoch(4, Plan { blocks: vec![(0, vec![page(dropped, 1)])], ..audited() });
        writer.epoch(5, audited());
        let report = writer.verify();
        assert_eq!(kinds(&report), [DamageKind::AuditMismatch], "{report:?}");
        assert_eq!((report.audits_checked, report.audits_failed, report.epochs), (5, 2, 5));
        assert_eq!(report.damage[0].epoch, Some(2));
        assert_ne!(report.damage[0].expected, report.damage[0].found);
    }
}

#[test]
fn an_epoch_without_its_block_fails_the_audit() {
    let mut writer = Writer::new();
    writer.epoch(1, Plan { blocks: vec![(1, many(0, 16, 3))], flags: 5, ..Plan::default() });
    let before = memory_digest(&writer.memory);
    writer.memory.insert(2, text_page(250));
    writer.epoch(2, audited());
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::AuditMismatch]);
    assert!(report.damage[0].found.starts_with(&format!("{before:032x}")), "{report:?}");
    assert!(report.damage[0].expected.starts_with(&format!("{:032x}", memory_digest(&writer.memory))), "{report:?}");
}

#[test]
fn audits_behind_damage_are_counted_and_not_compared_until_a_base() {
    let mut writer = writer();
    writer.memory.clear();
    writer.epoch(6, Plan { blocks: vec![(1, many(0, 5, 61))], flags: 5, ..Plan::default() });
    writer.epoch(7, Plan { blocks: vec![(1, many(2, 5, 62))], ..audited() });
    writer.close();
    let (segment, at) = writer.find(PAGES, 2, 0);
    writer.segments[segment][at + 60] ^= 4;
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::PayloadChecksum], "{report:?}");
    assert_eq!((report.audits_checked, report.audits_unchecked, report.audits_failed), (3, 3, 0));
    assert_eq!((report.epochs, report.newest, report.epochs_behind_damage), (1, Some(EpochId(1)), 4));
}
