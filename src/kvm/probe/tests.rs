//! The check passes here, and fails when it must.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::guest::{self, Guest, LIMIT, PROGRAM};
use super::plan::{Plan, ROUNDS};
use super::stay_writable::{RING_ENTRIES, check};
use super::{PageState, Refused, pages_stay_writable};
use crate::kvm::host::{HostError, KVM_PATH};
use crate::kvm::ring::{DirtyPage, Harvest, Lost, Reset, RingError, RingSize};
use crate::kvm::test_guest::kvm_or_skip;
use crate::parked::Parked;

fn guest() -> Guest {
    Guest::new(KVM_PATH.as_ref(), RingSize::new(RING_ENTRIES).unwrap()).unwrap()
}

#[test]
fn native_pages_stay_writable_on_this_kernel() {
    if !kvm_or_skip("native_pages_stay_writable_on_this_kernel") {
        return;
    }
    let before = Instant::now();
    let outcome = pages_stay_writable(KVM_PATH.as_ref());
    println!("{:?}", before.elapsed());
    outcome.unwrap();
}

/// What a check says with another reset. `reset` is told the round, from 1 on.
fn refused(mut reset: impl for<'r> FnMut(u64, Harvest<'r>, &[DirtyPage]) -> Result<Reset<'r>, RingError>) -> Refused {
    let mut round = 0;
    check(&mut guest(), LIMIT, |harvest, named| {
        round += 1;
        reset(round, harvest, named)
    })
    .unwrap_err()
}

#[test]
fn native_a_reset_that_protects_all_is_refused() {
    if !kvm_or_skip("native_a_reset_that_protects_all_is_refused") {
        return;
    }
    let found = refused(|_, harvest, _| harvest.reset());
    assert!(matches!(found, Refused::Listed { round: 2, state: PageState::Writable, extra: 2.., .. }), "{found}");
    // Once is enough, in the last but one round too.
    let found = refused(|round, harvest, named| if round == ROUNDS - 1 { harvest.reset() } else { harvest.reset_instead(named) });
    assert!(matches!(found, Refused::Listed { round: ROUNDS, state: PageState::Writable, .. }), "{found}");
}

#[test]
fn native_a_reset_that_protects_nothing_is_refused() {
    if !kvm_or_skip("native_a_reset_that_protects_nothing_is_refused") {
        return;
    }
    let found = refused(|_, harvest, _| harvest.reset_instead(&[]));
    assert!(matches!(found, Refused::NotListed { round: 2, missing: 2.., .. }), "{found}");
}

#[test]
fn native_a_reset_that_acts_only_on_what_was_listed_is_refused() {
    if !kvm_or_skip("native_a_reset_that_acts_only_on_what_was_listed_is_refused") {
        return;
    }
    let found = refused(|_, harvest, named| {
        let mut parked = ();
        let listed = harvest.while_parked(&Parked::vouch(&mut parked)).to_vec();
        let named: Vec<_> = named.iter().copied().filter(|page| listed.contains(page)).collect();
        harvest.reset_instead(&named)
    });
    assert!(matches!(found, Refused::NotListed { round: 3, state: PageState::Rearmed, missing: 2.., .. }), "{found}");
}

/// Where a page is named that the harvest did not list.
#[derive(Clone, Copy, Debug)]
struct Place {
    round: u64,
    /// Index among the pages named.
    at: usize,
    page: DirtyPage,
    /// Entries of the harvest before this one, and in it all entries.
    before: usize,
    listed: usize,
}

/// All such places of a check that passes.
fn rearmed_places() -> Vec<Place> {
    let (mut places, mut round, mut before) = (Vec::new(), 0, 0);
    let outcome = check(&mut guest(), LIMIT, |harvest, named| {
        round += 1;
        let mut parked = ();
        let parked = Parked::vouch(&mut parked);
        let listed = harvest.while_parked(&parked);
        for (at, page) in named.iter().enumerate().filter(|(_, page)| !listed.contains(page)) {
            places.push(Place { round, at, page: *page, before, listed: listed.len() });
        }
        before += listed.len();
        harvest.reset_instead(named)
    });
    outcome.unwrap();
    places
}

/// The first and the last entry of a harvest, those around the ring's end, and one in the middle.
#[test]
fn native_a_single_page_that_is_not_protected_again_is_refused() {
    if !kvm_or_skip("native_a_single_page_that_is_not_protected_again_is_refused") {
        return;
    }
    let ring = RING_ENTRIES as usize;
    // What the last rounds name is not written again, or only by chance.
    let places: Vec<_> = rearmed_places().into_iter().filter(|place| place.round < ROUNDS - 1).collect();
    let wraps = |place: &&Place| place.before < ring && place.before + place.listed > ring;
    let around = |place: &&Place| (place.before + place.at).abs_diff(ring);
    let chosen = [
        places.iter().find(|place| place.at == 0),
        places.iter().find(|place| place.at == place.listed / 2),
        places.iter().find(|place| place.at + 1 == place.listed),
        places.iter().filter(wraps).filter(|place| place.before + place.at < ring).min_by_key(around),
        places.iter().filter(wraps).filter(|place| place.before + place.at >= ring).min_by_key(around),
    ];
    println!("{chosen:?}");
    for chosen in chosen {
        let Place { round: broken, at, page, .. } = *chosen.unwrap();
        let found = refused(|round, harvest, named| {
            let mut named = named.to_vec();
            if round == broken {
                assert_eq!(named[at], page);
                named[at].slot = u32::MAX;
            }
            harvest.reset_instead(&named)
        });
        assert!(
            matches!(found, Refused::NotListed { state: PageState::Rearmed, missing: 1, offset, .. } if offset == page.offset),
            "{chosen:?}: {found}"
        );
    }
}

/// The ring goes round, and whatever page a reset does not protect although it is named, some later
/// round finds out.
#[test]
fn every_name_matters() {
    let mut plan = Plan::new();
    let (mut entries, mut rearmed) = (0, 0);
    let mut unwritten = BTreeSet::new();
    for round in 1..=ROUNDS {
        let expected = plan.write(round);
        entries += expected.len();
        rearmed += expected.iter().filter(|page| plan.state(**page) == PageState::Rearmed).count();
        unwritten = &unwritten - &expected;
        if round < ROUNDS {
            unwritten.extend(plan.protect(round, &expected));
        }
    }
    println!("{entries} entries, {rearmed} for pages rearmed");
    assert!(entries > RING_ENTRIES as usize * 5 / 4 && rearmed > 300);
    assert_eq!(unwritten, BTreeSet::new());
}

#[test]
fn native_lost_tracking_and_foreign_writes_are_refused() {
    if !kvm_or_skip("native_lost_tracking_and_foreign_writes_are_refused") {
        return;
    }
    let found = refused(|round, harvest, named| {
        let lost = (round == 5).then_some(Lost::Reset { harvested: 3, reset: 2 });
        Ok(Reset { lost, ..harvest.reset_instead(named)? })
    });
    assert!(matches!(found, Refused::Lost { round: 5, .. }), "{found}");
    let mut guest = guest();
    let memory = guest.memory.clone();
    let found = check(&mut guest, LIMIT, |harvest, named| {
        memory.put(guest::offset(7) * 4096, &[99]).unwrap();
        harvest.reset_instead(named)
    });
    let offset = guest::offset(7);
    assert!(matches!(found, Err(Refused::Content { round: 1, expected: 1, found: 99, offset: at }) if at == offset), "{found:?}");
}

#[test]
fn native_a_guest_that_goes_astray_is_refused_in_time() {
    if !kvm_or_skip("native_a_guest_that_goes_astray_is_refused_in_time") {
        return;
    }
    // jmp $
    let mut guest = guest();
    guest.memory.put(PROGRAM, &[0xeb, 0xfe]).unwrap();
    let limit = Duration::from_millis(50);
    let found = check(&mut guest, limit, |harvest, named| harvest.reset_instead(named));
    assert!(matches!(found, Err(Refused::Time { limit: at }) if at == limit), "{found:?}");
    // out 0x11, al
    let mut guest = self::guest();
    guest.memory.put(PROGRAM, &[0xe6, 0x11]).unwrap();
    let found = check(&mut guest, LIMIT, |harvest, named| harvest.reset_instead(named)).unwrap_err();
    assert!(matches!(&found, Refused::Exit { exit } if exit.starts_with("IoOut(17")), "{found}");
}

#[test]
fn without_kvm_the_reason_is_the_hosts() {
    let found = pages_stay_writable("/dev/null".as_ref());
    assert!(matches!(found, Err(Refused::Host(HostError::NotKvm { .. }))), "{found:?}");
}
