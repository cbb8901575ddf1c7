//! Which epochs of a chain are kept: rules, and what they come to. No I/O, and no clock: how old an
//! epoch is, is a matter of the chain's own time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::format::CutTime;
use crate::page::EpochId;

/// Rules about which epochs stay restorable. An epoch is kept if any rule keeps it; without a rule
/// all are. The newest is kept always.
///
/// An epoch that the rules keep in a chain that has grown, they kept in the shorter one as well:
/// dropping often loses nothing that dropping once would have kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many.
    pub last: Option<u64>,
    /// The newest of each span of this length, in nanoseconds at least 1. Spans are counted from
    /// the beginning of the chain's own time and not from now, so that an epoch does not move from
    /// one to the next.
    pub every: Option<Duration>,
    /// All that are no older than this before the newest, so that a chain that rests is not
    /// emptied.
    pub within: Option<Duration>,
}

impl Retention {
    /// Whether there is no rule: nothing is dropped.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.last.is_none() && self.every.is_none() && self.within.is_none()
    }

    /// Those of `epochs` that are kept: what the rules keep, the newest, and the `pinned` ones.
    /// `epochs` rise.
    #[must_use]
    pub fn kept(&self, epochs: &[CutTime], pinned: &BTreeSet<EpochId>) -> BTreeSet<EpochId> {
        let all = || epochs.iter().map(|cut| cut.epoch);
        let Some(newest) = epochs.last() else { return BTreeSet::new() };
        if self.is_empty() {
            return all().collect();
        }
        let mut kept: BTreeSet<_> = all().filter(|epoch| pinned.contains(epoch)).collect();
        kept.insert(newest.epoch);
        if let Some(last) = self.last {
            kept.extend(all().rev().take(usize::try_from(last).unwrap_or(usize::MAX)));
        }
        if let Some(every) = self.every {
            let span = every.as_nanos().max(1);
            // The later of two in a span takes the place of the earlier.
            let newest_of: BTreeMap<_, _> = epochs.iter().map(|cut| (u128::from(cut.own_ns) / span, cut.epoch)).collect();
            kept.extend(newest_of.into_values());
        }
        if let Some(within) = self.within {
            let oldest = u128::from(newest.own_ns).saturating_sub(within.as_nanos());
            kept.extend(epochs.iter().filter(|cut| u128::from(cut.own_ns) >= oldest).map(|cut| cut.epoch));
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
    use crate::format::{ClockJump, OWN_TIME_UNIT_NS, OwnTime};

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;

    /// Epochs from 1 on, cut in these minutes.
    fn chain(minutes: &[u64]) -> Vec<CutTime> {
        (1..).zip(minutes).map(|(epoch, minute)| cut(epoch, minute * MINUTE)).collect()
    }

    fn cut(epoch: u64, ns: u64) -> CutTime {
        CutTime { epoch: EpochId(epoch), own_ns: ns, unix_ns: ns }
    }

    fn kept(rules: Retention, minutes: &[u64], pinned: &[u64]) -> Vec<u64> {
        let pinned = pinned.iter().copied().map(EpochId).collect();
        rules.kept(&chain(minutes), &pinned).into_iter().map(|epoch| epoch.0).collect()
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

    fn rules() -> impl Strategy<Value = Retention> {
        let time = || option::of((0_u64..300).prop_map(Duration::from_secs));
        (option::of(0_u64..20), time(), time()).prop_map(|(last, every, within)| Retention { last, every, within })
    }

    /// Rising epochs with gaps; time may stand still and, unless `steady`, go back, as nobody but a
    /// hostile writer has it.
    fn epochs(steady: bool) -> impl Strategy<Value = Vec<CutTime>> {
        vec((1_u64..4, 0_u64..600), 0..60).prop_map(move |steps| {
            let (mut epoch, mut second) = (0, 0);
            let mut next = |(gap, step): (u64, u64)| {
                epoch += gap;
                second = if steady { second + step / 10 } else { step };
                cut(epoch, second * SECOND)
            };
            steps.into_iter().map(&mut next).collect()
        })
    }

    fn pins() -> impl Strategy<Value = BTreeSet<EpochId>> {
        btree_set((0_u64..150).prop_map(EpochId), 0..5)
    }

    fn only(epochs: &[CutTime], kept: &BTreeSet<EpochId>) -> Vec<CutTime> {
        epochs.iter().copied().filter(|cut| kept.contains(&cut.epoch)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_kept_stays_kept(rules in rules(), epochs in epochs(false), pinned in pins()) {
            let kept = rules.kept(&epochs, &pinned);
            prop_assert_eq!(kept.last(), epochs.last().map(|newest| &newest.epoch));
            prop_assert!(epochs.iter().all(|cut| kept.contains(&cut.epoch) || !pinned.contains(&cut.epoch)));
            prop_assert_eq!(rules.kept(&only(&epochs, &kept), &pinned), kept);
        }

        #[test]
        fn more_keeps_more(rules in rules(), epochs in epochs(false), pinned in pins(), more in 0_u64..20, pin in 0_u64..150) {
            let kept = rules.kept(&epochs, &pinned);
            let wider = Retention {
                last: rules.last.map(|last| last + more),
                // A whole part of the span, so that each span's newest is one of its parts' newest.
                every: rules.every.map(|every| every / 3).filter(|third| *third * 3 == rules.every.unwrap_or_default()).or(rules.every),
                within: rules.within.map(|within| within + Duration::from_secs(more)),
            };
            let mut pins = pinned.clone();
            pins.insert(EpochId(pin));
            prop_assert!(wider.kept(&epochs, &pins).is_superset(&kept));
            for rule in [Retention { every: None, within: None, ..rules }, Retention { last: None, within: None, ..rules }, Retention { last: None, every: None, ..rules }] {
                prop_assert!(rule.is_empty() || kept.is_superset(&rule.kept(&epochs, &pinned)));
            }
        }

        #[test]
        fn dropping_often_is_dropping_once(rules in rules(), epochs in epochs(true), pinned in pins(), at in 0_usize..60) {
            let (before, after) = epochs.split_at(at.min(epochs.len()));
            let early = rules.kept(before, &pinned);
            let mut left = only(before, &early);
            left.extend(after);
            prop_assert_eq!(rules.kept(&left, &pinned), rules.kept(&epochs, &pinned));
        }

        /// What is kept follows from the time that really passed, however the clock is set while it
        /// is written, and says so of each jump, and of nothing else.
        #[test]
        fn a_clock_that_jumps_within_a_life_changes_nothing(rules in rules(), steps in lives(1), pinned in pins(), at in 0_usize..60) {
            let (steady, jumping) = (write(&steps, false), write(&steps, true));
            prop_assert_eq!(rules.kept(&steady, &pinned), rules.kept(&jumping, &pinned));
            prop_assert!(jumping.is_sorted_by_key(|cut| cut.own_ns));
            let jumps: Vec<_> = ClockJump::all(&jumping).iter().map(|jump| (jump.epoch, jump.by_ns)).collect();
            let expected = steps.iter().zip(&jumping).skip(1).filter(|(step, _)| step.jump != 0);
            let expected: Vec<_> = expected.map(|(step, cut)| (cut.epoch, i128::from(step.jump) * i128::from(SECOND))).collect();
            prop_assert_eq!(jumps, expected);
            prop_assert_eq!(ClockJump::all(&steady), []);
            // And dropping often is dropping once.
            let (before, after) = jumping.split_at(at.min(jumping.len()));
            let mut left = only(before, &rules.kept(before, &pinned));
            left.extend(after);
            prop_assert_eq!(rules.kept(&left, &pinned), rules.kept(&jumping, &pinned));
        }

        /// From one writer to the next a clock that went forward is believed, and one that went
        /// back is not. Time never goes back, and what was dropped on the way makes no difference.
        #[test]
        fn over_lives_the_clock_counts_forward(rules in rules(), steps in lives(4), pinned in pins(), at in 0_usize..60) {
            let cuts = write(&steps, true);
            for ((before, cut), step) in cuts.iter().zip(&cuts[1.min(cuts.len())..]).zip(steps.iter().skip(1)) {
                let passed = if step.new_life { cut.unix_ns.saturating_sub(before.unix_ns) } else { step.seconds * SECOND };
                prop_assert_eq!(cut.own_ns - before.own_ns, passed);
            }
            let (before, after) = cuts.split_at(at.min(cuts.len()));
            let mut left = only(before, &rules.kept(before, &pinned));
            left.extend(after);
            prop_assert_eq!(rules.kept(&left, &pinned), rules.kept(&cuts, &pinned));
        }
    }

    /// From one epoch to the next.
    #[derive(Clone, Copy, Debug)]
    struct Step {
        gap: u64,
        /// What passes.
        seconds: u64,
        /// How far the clock is set, in seconds.
        jump: i64,
        /// Another writer begins.
        new_life: bool,
    }

    fn lives(most: usize) -> impl Strategy<Value = Vec<Step>> {
        let jump = prop_oneof![9 => Just(0), 1 => -50_000_000_i64..-1, 1 => 2_i64..50_000_000];
        let step = (1_u64..4, 0_u64..100, jump, 0_usize..20).prop_map(move |(gap, seconds, jump, life)| {
            // A clock that is off by more than a thousandth of this has jumped.
            Step { gap, seconds, jump, new_life: life + 1 < most }
        });
        vec(step, 0..60)
    }

    /// The cuts that a chain's writers tell. Without `jumps` nobody sets the clock.
    fn write(steps: &[Step], jumps: bool) -> Vec<CutTime> {
        let (mut epoch, mut unix) = (0, 3_000_000_000_i64);
        let (mut own, mut engine_began, mut runs) = (OwnTime::default(), unix, 0);
        steps
            .iter()
            .map(|step| {
                epoch += step.gap;
                unix += i64::try_from(step.seconds).unwrap() + if jumps { step.jump } else { 0 };
                unix = unix.max(0);
                runs += step.seconds;
                if step.new_life {
                    (own, engine_began, runs) = (OwnTime::behind(own.newest()), unix, 0);
                }
                let engine_ns = (u64::try_from(engine_began).unwrap() + runs) * SECOND;
                let told = own.of(EpochId(epoch), engine_ns, u64::try_from(unix).unwrap() * SECOND);
                own.appended(told);
                told.0
            })
            .collect()
    }

    /// A machine without a battery for its clock boots in 1970, and learns the time a moment later;
    /// or an operator sets a wrong date and corrects it.
    #[test]
    fn a_clock_that_learns_the_time_neither_empties_a_chain_nor_keeps_it_for_ever() {
        let step = |seconds, jump| Step { gap: 1, seconds, jump, new_life: false };
        let years = 56 * 365 * 24 * 3600;
        for jump in [years, -years / 40] {
            // An epoch each minute; at the sixth and the ninth the clock is set, forth and back.
            let mut steps = vec![step(60, 0); 200];
            (steps[5].jump, steps[8].jump) = (jump, -jump);
            let cuts = write(&steps, true);
            let kept = |rules: Retention, count: usize| rules.kept(&cuts[..count], &BTreeSet::new()).len();
            let within = Retention { within: minutes(120), ..Retention::default() };
            assert_eq!([6, 9, 10, 200].map(|count| kept(within, count)), [6, 9, 10, 121]);
            let every = Retention { every: minutes(10), ..Retention::default() };
            assert_eq!(kept(every, 200), 20 + usize::from(!(cuts[0].own_ns / SECOND).is_multiple_of(600)));
            assert_eq!(ClockJump::all(&cuts).iter().map(|jump| jump.epoch.0).collect::<Vec<_>>(), [6, 9]);
        }
    }

    #[test]
    fn an_engine_without_a_time_has_the_clocks_but_never_goes_back() {
        let mut own = OwnTime::default();
        let mut told = |epoch: u64, second: u64| {
            let told = own.of(EpochId(epoch), 0, second * SECOND);
            own.appended(told);
            told.0.own_ns / SECOND
        };
        assert_eq!(
            [(1, 100), (2, 200), (3, 150), (4, 170), (5, 300)].map(|(epoch, second)| told(epoch, second)),
            [100, 200, 200, 200, 300]
        );
        // A hostile chain.
        let wild = CutTime { epoch: EpochId(9), own_ns: u64::MAX, unix_ns: 0 };
        assert_eq!(OwnTime::behind(Some(wild)).of(EpochId(10), u64::MAX, u64::MAX).0.own_ns, u64::MAX);
        assert_eq!(OwnTime::default().of(EpochId(1), 0, 0).0.own_ns, OWN_TIME_UNIT_NS);
        assert_eq!(ClockJump::all(&[wild, cut(10, 0)]).len(), 1);
    }
}
