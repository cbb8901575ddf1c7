//! Blocks of changes.

use super::*;

/// The page with some words changed: others than with a neighbouring seed.
pub(super) fn touched((gfn, page): &PageOf, seed: u8) -> PageOf {
    let mut page = page.clone();
    for word in 0..usize::from(seed % 5) + 1 {
        page[word * 700 + usize::from(seed) * 8] ^= seed | 1;
    }
    (*gfn, page)
}

/// A base, then `epochs` epochs that change its pages; every fourth has a segment of its own.
fn changed(epochs: u64) -> Writer {
    let mut writer = Writer::new();
    let mut pages = many(0, 5, 3);
    writer.epoch(1, Plan { blocks: vec![(1, pages.clone())], flags: 1 | 4, ..Plan::default() });
    for epoch in 2..epochs + 2 {
        if epoch % 4 == 0 {
            writer.segment();
        }
        pages.iter_mut().for_each(|page| *page = touched(page, u8::try_from(epoch).unwrap()));
        writer.epoch(epoch, Plan { blocks: vec![(2, pages.clone())], ..audited() });
    }
    writer.close();
    writer
}

#[test]
fn changes_are_made_and_their_audits_agree() {
    for epochs in [1, 15] {
        let report = changed(epochs).verify();
        assert_eq!(report.damage, []);
        assert_eq!((report.epochs, report.audits_checked, report.audits_failed), (epochs + 1, epochs + 1, 0));
    }
    let report = changed(16).verify();
    assert_eq!(kinds(&report), [DamageKind::Changes], "the sixteenth in a row");
    assert_eq!((report.epochs, report.damage[0].epoch), (16, Some(17)));
}

#[test]
fn a_whole_page_begins_anew_and_a_zero_one_has_no_changes() {
    let mut writer = Writer::new();
    let mut pages = many(0, 5, 3);
    writer.epoch(1, Plan { blocks: vec![(1, pages.clone())], flags: 1 | 4, ..Plan::default() });
    for epoch in 2..60 {
        pages.iter_mut().for_each(|page| *page = touched(page, u8::try_from(epoch).unwrap()));
        // Page 3 comes whole at another time than the others.
        let whole = |(gfn, _): &&PageOf| (gfn / 3 * 5 + epoch) % 16 == 0;
        let (whole, changed): (Vec<_>, Vec<_>) = pages.iter().partition(whole);
        let blocks = [(0, whole), (2, changed)].into_iter().filter(|(_, pages)| !pages.is_empty());
        let blocks = blocks.map(|(encoding, pages)| (encoding, pages.into_iter().cloned().collect()));
        writer.epoch(epoch, Plan { blocks: blocks.collect(), ..audited() });
    }
    let report = writer.verify();
    assert_eq!((report.damage, report.audits_checked), (vec![], 59));

    writer.epoch(60, Plan { zeros: vec![(2, 1)], ..audited() });
    assert_eq!(writer.verify().damage, []);
    writer.memory.insert(2, vec![0; 4096]);
    writer.epoch(61, Plan { blocks: vec![(2, vec![touched(&(2, vec![0; 4096]), 9)])], ..audited() });
    writer.close();
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::Changes]);
    assert!(report.damage[0].found.contains("one that is not"), "{:?}", report.damage);
}

#[test]
fn a_change_of_another_version_is_damage() {
    let mut writer = changed(3);
    let lost = touched(&(2, writer.memory[&2].clone()), 77);
    writer.memory.insert(2, lost.1);
    let next = touched(&(2, writer.memory[&2].clone()), 120);
    writer.epoch(5, Plan { blocks: vec![(2, vec![next])], ..audited() });
    writer.epoch(6, Plan { blocks: vec![(2, vec![touched(&(1, writer.memory[&1].clone()), 4)])], ..audited() });
    writer.close();
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::Changes], "{:?}", report.damage);
    assert_eq!((report.epochs, report.epochs_behind_damage, report.damage[0].epoch), (4, 1, Some(5)));
    assert!(report.damage[0].expected.contains("0x2"), "{:?}", report.damage);
}

#[test]
fn a_base_leans_on_nothing() {
    let mut writer = changed(2);
    let mut page = touched(&(1, writer.memory[&1].clone()), 50);
    writer.memory.retain(|gfn, _| *gfn == 1);
    let whole = (0, vec![page.clone()]);
    page = touched(&page, 51);
    writer.epoch(5, Plan { blocks: vec![whole, (2, vec![page.clone()])], flags: 1 | 4, ..Plan::default() });
    assert_eq!(writer.verify().damage, [], "within a base, one may");
    let mut gone = changed(2);
    let other = gone.memory[&2].clone();
    gone.memory.retain(|gfn, _| *gfn == 1);
    gone.epoch(5, Plan { blocks: vec![(0, vec![page.clone()])], flags: 1 | 4, ..Plan::default() });
    gone.memory.insert(2, other.clone());
    gone.epoch(6, Plan { blocks: vec![(2, vec![touched(&(2, other), 9)])], ..Plan::default() });
    gone.close();
    let report = gone.verify();
    assert_eq!((kinds(&report), report.damage[0].epoch), (vec![DamageKind::Changes], Some(6)), "what it leaves out is zero");
    writer.epoch(6, Plan { blocks: vec![(2, vec![touched(&page, 52)])], flags: 1, ..Plan::default() });
    writer.close();
    let report = writer.verify();
    assert_eq!((kinds(&report), report.epochs), (vec![DamageKind::Changes], 4));
    assert!(report.damage[0].expected.contains("the base"), "{:?}", report.damage);
}

#[test]
fn behind_what_cannot_be_read_only_a_base_is_known() {
    let mut writer = changed(2);
    let (segment, at) = writer.find(PAGES, 2, 0);
    writer.segments[segment][at + 60] ^= 1;
    let whole = (1, many(0, 5, 60));
    let next = whole.1.iter().map(|page| touched(page, 61)).collect();
    writer.memory.clear();
    writer.epoch(5, Plan { blocks: vec![whole], flags: 1 | 4, ..Plan::default() });
    writer.epoch(6, Plan { blocks: vec![(2, next)], ..audited() });
    writer.close();
    let report = writer.verify();
    assert_eq!(kinds(&report), [DamageKind::PayloadChecksum], "{:?}", report.damage);
    assert_eq!((report.audits_checked, report.audits_failed, report.audits_unchecked), (3, 0, 2));
}

#[test]
fn changes_are_laid_out_as_documented() {
    type Breaks = fn(&mut Vec<u8>);
    // The payload: 16 + 4 bytes of list, then checksum, bits and words.
    let cases: [(Breaks, u64); 5] = [
        (|payload| payload[20] ^= 1, 20),
        (|payload| payload[28..92].fill(0), 28),
        (|payload| payload[28..92].fill(0xFF), 28),
        (|payload| payload.truncate(payload.len() - 8), 92),
        (|payload| payload.extend([0; 8]), 100),
    ];
    for (case, (breaks, offset)) in cases.into_iter().enumerate() {
        let mut writer = changed(1);
        let page = (1, {
            let mut page = writer.memory[&1].clone();
            page[5] ^= 1;
            page
        });
        let plan = Plan { blocks: vec![(2, vec![page])], tweak: Some((0, Box::new(breaks))), ..Plan::default() };
        writer.epoch(3, plan);
        writer.close();
        let report = writer.verify();
        let (_, at) = writer.find(PAGES, 3, 0);
        assert_eq!(kinds(&report), [DamageKind::Changes], "case {case}: {:?}", report.damage);
        assert_eq!(report.damage[0].offset, at as u64 + 48 + offset, "case {case}");
    }
}

/// `state`, packed.
fn packed(state: &[u8]) -> Vec<u8> {
    let (head, records) = state.split_at(8);
    let words: Vec<_> = records.chunks(8).collect();
    let mut packed = head[..4].to_vec();
    packed.extend(u32::try_from(records.len()).unwrap().to_le_bytes());
    let set = |word: usize| words.get(word).is_some_and(|word| word.iter().any(|byte| *byte != 0));
    for byte in 0..words.len().div_ceil(64) * 8 {
        packed.push((0..8).filter(|bit| set(byte * 8 + bit)).fold(0, |bits, bit| bits | 1 << bit));
    }
    (0..words.len()).filter(|word| set(*word)).for_each(|word| packed.extend(words[word]));
    packed
}

#[test]
fn packed_state_is_unpacked() {
    type Breaks = fn(&mut Vec<u8>);
    let plain = || state(&[("vcpu.xsave", 0, 1, &[0; 900][..]), ("vm.clock", 0, 2, b"12345678")]);
    let sound = Plan { states: Some(vec![packed(&plain())]), ..Plan::default() };
    let mut writer = changed(1);
    writer.epoch(3, sound);
    assert_eq!(writer.verify().damage, []);
    let breaks: [Breaks; 7] = [
        |state| state[4] ^= 1,
        |state| state[4] ^= 8,
        |state| state[7] = 0xFF,
        |state| state.truncate(state.len() - 8),
        |state| state.extend([0; 8]),
        |state| state[8 + 15] |= 0x80,
        |state| state[0] = 3,
    ];
    for (case, breaks) in breaks.into_iter().enumerate() {
        let mut writer = changed(1);
        let mut state = packed(&plain());
        breaks(&mut state);
        writer.epoch(3, Plan { states: Some(vec![state]), ..Plan::default() });
        writer.close();
        assert_eq!(kinds(&writer.verify()), [DamageKind::StateRecords], "case {case}");
    }
}
