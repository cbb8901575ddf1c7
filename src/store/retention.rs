//! Which epochs of a chain are kept: rules, and what they come to. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::page::EpochId;

/// Rules about which epochs stay restorable. An epoch is kept if any rule keeps it; without a rule all are. The newest is kept always.
///
/// An epoch that the rules keep in a chain that has grown, they kept in the shorter one as well: dropping often loses nothing that
/// dropping once would have kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many.
    pub last: Option<u64>,
    /// The newest of each span of this length, in nanoseconds at least 1. Spans are counted from 1970 and not from now, so that an epoch does
    /// not move from one to the next.
    pub every: Option<Duration>,
    /// All that are no older than this before the newest, so that a chain that rests is not emptied.
    pub within: Option<Duration>,
}

impl Retention {
    /// Whether there is no rule: nothing is dropped.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.last.is_none() && self.every.is_none() && self.within.is_none()
    }

    /// Those of `epochs` that are kept: what the rules keep, the newest, and the `pinned` ones. `epochs` rise; with each comes the time of
    /// its cut in nanoseconds since 1970. `now_unix_ns` counts only where it is before the newest epoch's time: that was taken by a clock
    /// that was ahead, and must not make all others old.
    #[must_use]
    pub fn kept(&self, epochs: &[(EpochId, u64)], now_unix_ns: u64, pinned: &BTreeSet<EpochId>) -> BTreeSet<EpochId> {
        let all = || epochs.iter().map(|(epoch, _)| *epoch);
        let Some((newest, newest_ns)) = epochs.last().copied() else { return BTreeSet::new() };
        if self.is_empty() {
            return all().collect();
        }
        let mut kept: BTreeSet<_> = all().filter(|epoch| pinned.contains(epoch)).collect();
        kept.insert(newest);
        if let Some(last) = self.last {
            kept.extend(all().rev().take(usize::try_from(last).unwrap_or(usize::MAX)));
        }
        if let Some(every) = self.every {
            let span = every.as_nanos().max(1);
            // The later of two in a span takes the place of the earlier.
            let newest_of: BTreeMap<_, _> = epochs.iter().map(|(epoch, ns)| (u128::from(*ns) / span, *epoch)).collect();
            kept.extend(newest_of.into_values());
        }
        if let Some(within) = self.within {
            let oldest = u128::from(newest_ns.min(now_unix_ns)).saturating_sub(within.as_nanos());
            kept.extend(epochs.iter().filter(|(_, ns)| u128::from(*ns) >= oldest).map(|(epoch, _)| *epoch));
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    /// Epochs from 1 on, cut in these minutes.
    fn chain(minutes: &[u64]) -> Vec<(EpochId, u64)> {
        (1..).map(EpochId).zip(minutes.iter().map(|minute| minute * MINUTE)).collect()
    }

    fn kept(rules: Retention, minutes: &[u64], pinned: &[u64]) -> Vec<u64> {
        let pinned = pinned.iter().copied().map(EpochId).collect();
        rules.kept(&chain(minutes), u64::MAX, &pinned).into_iter().map(|epoch| epoch.0).collect()
    }

    const fn minutes(minutes: u64) -> Option<Duration> {
        Some(Duration::from_secs(60 * minutes))
    }

    #[test]
    fn each_rule() {
        let times = [0, 1, 9, 10, 11, 19, 25];
        let none = Retention::default();
        assert_eq!(kept(none, &times, &[]), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(kept(Retention { last: Some(2), ..none }, &times, &[]), [6, 7]);
        assert_eq!(kept(Retention { last: Some(0), ..none }, &times, &[]), [7]);
        assert_eq!(kept(Retention { last: Some(u64::MAX), ..none }, &times, &[]), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(kept(Retention { every: minutes(10), ..none }, &times, &[]), [3, 6, 7]);
        assert_eq!(kept(Retention { every: Some(Duration::ZERO), ..none }, &times, &[]), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(kept(Retention { within: minutes(14), ..none }, &times, &[]), [5, 6, 7]);
        assert_eq!(kept(Retention { within: minutes(0), ..none }, &times, &[]), [7]);
        assert_eq!(kept(Retention { within: Some(Duration::MAX), ..none }, &times, &[]), [1, 2, 3, 4, 5, 6, 7]);
        // Together they keep what either keeps; pins that are no epochs of the chain mean nothing.
        assert_eq!(kept(Retention { last: Some(1), every: minutes(10), within: minutes(6) }, &times, &[2, 99]), [2, 3, 6, 7]);
        assert_eq!(kept(Retention { last: Some(5), ..none }, &[], &[1]), [0; 0]);
    }

    #[test]
    fn a_clock_that_was_ahead_makes_nothing_old() {
        let rules = Retention { within: minutes(10), ..Retention::default() };
        let times = chain(&[1, 2, 3, 5000]);
        let kept = |now: u64| rules.kept(&times, now * MINUTE, &BTreeSet::new()).len();
        assert_eq!((kept(4), kept(5000), kept(9000)), (4, 1, 1));
    }

    fn rules() -> impl Strategy<Value = Retention> {
        let time = || option::of((0_u64..300).prop_map(Duration::from_secs));
        (option::of(0_u64..20), time(), time()).prop_map(|(last, every, within)| Retention { last, every, within })
    }

    /// Rising epochs with gaps; the clock may stand still and, unless `steady`, go back.
    fn epochs(steady: bool) -> impl Strategy<Value = Vec<(EpochId, u64)>> {
        vec((1_u64..4, 0_u64..600), 0..60).prop_map(move |steps| {
            let (mut epoch, mut second) = (0, 0);
            let mut next = |(gap, step): (u64, u64)| {
                epoch += gap;
                second = if steady { second + step / 10 } else { step };
                (EpochId(epoch), second * 1_000_000_000)
            };
            steps.into_iter().map(&mut next).collect()
        })
    }

    fn pins() -> impl Strategy<Value = BTreeSet<EpochId>> {
        btree_set((0_u64..150).prop_map(EpochId), 0..5)
    }

    fn only(epochs: &[(EpochId, u64)], kept: &BTreeSet<EpochId>) -> Vec<(EpochId, u64)> {
        epochs.iter().copied().filter(|(epoch, _)| kept.contains(epoch)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_kept_stays_kept(rules in rules(), epochs in epochs(false), pinned in pins(), now in 0_u64..1000) {
            let now = now * 1_000_000_000;
            let kept = rules.kept(&epochs, now, &pinned);
            prop_assert_eq!(kept.last(), epochs.last().map(|(newest, _)| newest));
            prop_assert!(epochs.iter().all(|(epoch, _)| kept.contains(epoch) || !pinned.contains(epoch)));
            prop_assert_eq!(rules.kept(&only(&epochs, &kept), now, &pinned), kept);
        }

        #[test]
        fn more_keeps_more(rules in rules(), epochs in epochs(false), pinned in pins(), now in 0_u64..1000, more in 0_u64..20, pin in 0_u64..150) {
            let now = now * 1_000_000_000;
            let kept = rules.kept(&epochs, now, &pinned);
            let wider = Retention {
                last: rules.last.map(|last| last + more),
                // A whole part of the span, so that each span's newest is one of its parts' newest.
                every: rules.every.map(|every| every / 3).filter(|third| *third * 3 == rules.every.unwrap_or_default()).or(rules.every),
                within: rules.within.map(|within| within + Duration::from_secs(more)),
            };
            let mut pins = pinned.clone();
            pins.insert(EpochId(pin));
            prop_assert!(wider.kept(&epochs, now, &pins).is_superset(&kept));
            for rule in [Retention { every: None, within: None, ..rules }, Retention { last: None, within: None, ..rules }, Retention { last: None, every: None, ..rules }] {
                prop_assert!(rule.is_empty() || kept.is_superset(&rule.kept(&epochs, now, &pinned)));
            }
        }

        #[test]
        fn dropping_often_is_dropping_once(rules in rules(), epochs in epochs(true), pinned in pins(), at in 0_usize..60) {
            let (before, after) = epochs.split_at(at.min(epochs.len()));
            let early = rules.kept(before, u64::MAX, &pinned);
            let mut left = only(before, &early);
            left.extend(after);
            prop_assert_eq!(rules.kept(&left, u64::MAX, &pinned), rules.kept(&epochs, u64::MAX, &pinned));
        }
    }
}
