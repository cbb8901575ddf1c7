//! When a round is worth its while. Pure: no clock, no locks.
//!
//! A page that a round takes and that is not written again is one less to copy in the pause. One
//! that is written again costs the guest one more fault, and has to be copied all the same. So
//! rounds pay as long as `repeated * fault <= (taken - repeated) * copy`: the guest never loses
//! more than the pause gains.
//!
//! How many are written again is the guest's habit, and is counted, over the last epochs, apart for
//! two kinds of rounds: those in the middle of an epoch, and the last one just before a cut whose
//! time is known. After the last one there is hardly time left to write a page again: it pays for
//! guests of whose pages no other can be taken early. A kind that does not pay is tried again, with
//! few pages, after ever more epochs.

use std::time::Duration;

use super::page_costs::PageCosts;

/// Where in an epoch a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere.
    Middle,
    /// Just before a cut whose time is known: of an interval.
    BeforeCut,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Take up to so many entries.
    Take(u64),
    /// Nothing, and look again after this time.
    Wait(Duration),
}

/// A round of fewer entries gains less than its own calls cost.
const LEAST: u64 = 64;
/// In the middle of an epoch, so many entries are waited for: they are what a cut may have left.
const WANTED: u64 = 256;
/// Entries of a round that is only a try.
const TRIED: u64 = 128;
/// A kind that does not pay is tried again after at most so many epochs.
const REST_MAX: u32 = 64;
/// How often to look.
const SOONEST: Duration = Duration::from_micros(250);
const LATEST: Duration = Duration::from_millis(10);

/// One kind of rounds.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    /// Pages taken, and of them pages that were written again in their epoch; old ones fade.
    taken: f64,
    repeated: f64,
    /// Of the epoch in hand.
    taken_now: u64,
    repeated_now: u64,
    /// Epochs without a round of this kind that are left, and how many there were the last time.
    rests: u32,
    rested: u32,
}

impl Kind {
    /// Whether so many entries are to be taken, of those that there are.
    fn most(&self, entries: u64) -> u64 {
        if self.rests > 0 {
            0
        } else if self.rested > 0 || self.taken == 0.0 {
            TRIED.saturating_sub(self.taken_now).min(entries)
        } else {
            entries
        }
    }

    /// The epoch is over.
    #[expect(clippy::cast_precision_loss, reason = "counts of pages of one epoch")]
    fn end(&mut self, costs: PageCosts) {
        let (taken, repeated) = (std::mem::take(&mut self.taken_now), std::mem::take(&mut self.repeated_now));
        if self.rests > 0 {
            self.rests -= 1;
            return;
        }
        if taken == 0 {
            return;
        }
        self.taken = self.taken * 0.75 + taken as f64;
        self.repeated = self.repeated * 0.75 + repeated as f64;
        if self.repeated * costs.fault_ns() <= (self.taken - self.repeated) * costs.copy_ns() {
            self.rested = 0;
        } else {
            self.rested = (self.rested * 2).clamp(1, REST_MAX);
            // A try counts for itself.
            (self.rests, self.taken, self.repeated) = (self.rested, 0.0, 0.0);
        }
    }
}

/// What is known of the guest and of the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    middle: Kind,
    before_cut: Kind,
    costs: PageCosts,
    /// Entries a nanosecond.
    rate: f64,
}

impl Habits {
    /// Of a guest of which nothing is known.
    pub(super) fn new(costs: PageCosts) -> Self {
        Self { middle: Kind::default(), before_cut: Kind::default(), costs, rate: 0.0 }
    }

    /// Pages cost so much now.
    pub(super) const fn costs(&mut self, costs: PageCosts) {
        self.costs = costs;
    }

    const fn kind(&mut self, place: Place) -> &mut Kind {
        match place {
            Place::Middle => &mut self.middle,
            Place::BeforeCut => &mut self.before_cut,
        }
    }

    /// What to do with `entries` that are listed, of which so many came in this time.
    pub(super) fn choose(&mut self, place: Place, entries: u64, came: u64, within: Duration) -> Choice {
        #[expect(clippy::cast_precision_loss, reason = "entries of rings")]
        if !within.is_zero() {
            self.rate = 0.5 * self.rate + 0.5 * (came as f64 / ns(within));
        }
        let wanted = if place == Place::Middle { WANTED } else { LEAST };
        let most = self.kind(place).most(entries);
        if entries >= wanted && most > 0 { Choice::Take(most) } else { Choice::Wait(self.until(entries)) }
    }

    /// Whether rounds of this kind may take something in the epoch in hand.
    pub(super) const fn wants(&self, place: Place) -> bool {
        let kind = match place {
            Place::Middle => &self.middle,
            Place::BeforeCut => &self.before_cut,
        };
        kind.rests == 0
    }

    /// When so many entries as are wanted are likely to be there.
    pub(super) fn until(&self, entries: u64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "entries of rings")]
        let missing = WANTED.saturating_sub(entries).max(LEAST) as f64;
        if self.rate <= 0.0 { LATEST } else { Duration::from_nanos(whole(missing / self.rate)).clamp(SOONEST, LATEST) }
    }

    /// A round has taken so many pages.
    pub(super) const fn took(&mut self, place: Place, pages: u64) {
        self.kind(place).taken_now += pages;
    }

    /// So many pages of such rounds were written again in their epoch.
    pub(super) const fn repeated(&mut self, place: Place, pages: u64) {
        self.kind(place).repeated_now += pages;
    }

    /// The epoch is over.
    pub(super) fn end(&mut self) {
        self.middle.end(self.costs);
        self.before_cut.end(self.costs);
    }
}

#[expect(clippy::cast_precision_loss, reason = "times of less than a day")]
fn ns(time: Duration) -> f64 {
    time.as_nanos() as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates, and is clamped")]
fn whole(ns: f64) -> u64 {
    ns as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: Duration = Duration::from_micros(6);
    const COPY_NS: f64 = 300.0;

    /// Epochs of a guest of whose pages that a round takes so many of a hundred are written again;
    /// pages taken, in each epoch.
    fn epochs(habits: &mut Habits, place: Place, repeated_percent: u64, count: usize) -> Vec<u64> {
        (0..count)
            .map(|_| {
                let mut taken = 0;
                // As long as pages come.
                for _ in 0..8 {
                    if let Choice::Take(pages) = habits.choose(place, 500, 500, Duration::from_millis(3)) {
                        habits.took(place, pages);
                        habits.repeated(place, pages * repeated_percent / 100);
                        taken += pages;
                    }
                }
                habits.end();
                taken
            })
            .collect()
    }

    #[test]
    fn a_guest_that_writes_each_page_once_has_all_taken_after_one_try() {
        let mut habits = Habits::new(PageCosts::new(FAULT, COPY_NS));
        assert_eq!(epochs(&mut habits, Place::Middle, 1, 4), [TRIED, 4000, 4000, 4000]);
    }

    #[test]
    fn what_does_not_pay_is_tried_ever_less_often() {
        let mut habits = Habits::new(PageCosts::new(FAULT, COPY_NS));
        let taken = epochs(&mut habits, Place::Middle, 50, 1000);
        let tries: Vec<_> = taken.iter().enumerate().filter(|(_, taken)| **taken > 0).map(|(epoch, _)| epoch).collect();
        assert!(taken.iter().all(|taken| *taken <= TRIED));
        assert_eq!(tries[..6], [0, 2, 5, 10, 19, 36]);
        assert!(tries.len() < 6 + 1000 / 64 + 2, "{tries:?}");
        // It changes its ways.
        let taken = epochs(&mut habits, Place::Middle, 0, 2 + REST_MAX as usize);
        assert_eq!(taken.last(), Some(&4000), "{taken:?}");
    }

    #[test]
    fn the_guest_never_loses_more_than_the_pause_gains() {
        for repeated_percent in 0..100 {
            let mut habits = Habits::new(PageCosts::new(FAULT, COPY_NS));
            let taken: u64 = epochs(&mut habits, Place::Middle, repeated_percent, 500).iter().sum();
            let repeated = taken * repeated_percent / 100;
            let (loses, gains) = (repeated as f64 * 6000.0, (taken - repeated) as f64 * COPY_NS);
            // But for the tries: a percent of all pages that there were.
            let tries = 500.0 * 4000.0 * 0.01 * 6000.0;
            assert!(loses <= gains + tries, "{repeated_percent}: {loses} lost, {gains} gained");
        }
    }

    #[test]
    fn kinds_are_judged_apart() {
        let mut habits = Habits::new(PageCosts::new(FAULT, COPY_NS));
        for _ in 0..50 {
            epochs(&mut habits, Place::Middle, 50, 1);
            let last = epochs(&mut habits, Place::BeforeCut, 0, 1);
            assert!(last[0] > 0);
        }
        assert!(habits.middle.rested > 1 && habits.before_cut.rested == 0);
    }

    #[test]
    fn it_waits_until_enough_entries_are_likely_to_be_there() {
        let mut habits = Habits::new(PageCosts::new(FAULT, COPY_NS));
        for _ in 0..20 {
            assert!(matches!(habits.choose(Place::Middle, 0, 100, Duration::from_millis(1)), Choice::Wait(_)));
        }
        let wait = habits.until(56);
        assert!((Duration::from_micros(1900)..Duration::from_micros(2100)).contains(&wait), "{wait:?}");
        assert_eq!(habits.until(255), Duration::from_micros(640), "never for a handful");
        let mut idle = Habits::new(PageCosts::new(FAULT, COPY_NS));
        assert_eq!(idle.choose(Place::Middle, 0, 0, Duration::from_secs(1)), Choice::Wait(LATEST));
    }
}
