//! The adviser: from the commit frames of a chain of the user's own, what budget and what interval
//! give a wanted pause or a wanted slowdown. Pure.
//!
//! Two lines are laid through the epochs, both by the median of the slopes between pairs (Theil,
//! 1950; Sen, 1968), which a few odd epochs don't move: the pause by the pages of an epoch, and the
//! logarithm of the pages by the logarithm of the time that the guest ran. What a wanted value asks
//! for is read off them, with the spread of the epochs around the line added.
//!
//! Where all epochs have about as many pages, no line can tell what a page adds. Then fewer pages
//! are taken to pause as long, and more pages in proportion: the worse of what may be. Epochs that
//! a full ring ended say nothing of how pages grow with time; where there are no others, pages grow
//! in step.

use serde::Serialize;

use super::stats::{median, quantile, round, sorted};
use crate::format::{Commit, Trigger};

/// Epochs behind the first one of a chain that are not like those that follow: rounds learn, and
/// staging is touched for the first time.
const EPOCHS_COLD: usize = 3;
/// Fewer epochs say nothing.
pub const EPOCHS_LEAST: usize = 20;
/// Epochs for which 99 of 100 can be spoken of.
const EPOCHS_FOR_P99: usize = 200;
/// Lines are laid through at most so many epochs, spread evenly.
const EPOCHS_USED: usize = 600;
/// A proposal up to this many times beyond what was seen is a guess; further beyond it is none.
const REACH: f64 = 4.0;
/// The smallest ring's entries.
const RING_LEAST: f64 = 256.0;

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// A pause of at most so many microseconds.
    Pause(f64),
    /// A share of the guest's time of at most so much, from 0 to 1.
    Slowdown(f64),
}

/// An epoch, as the adviser sees it. Times are in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Pages captured.
    pub pages: f64,
    /// How long the guest ran.
    pub run: f64,
    /// How long it stood still, waiting for storage not counted.
    pub pause: f64,
    /// Whether its pages ended it and not the time.
    pub full: bool,
}

impl Seen {
    /// The epochs of a chain that say something: neither a base nor the first few behind it nor a
    /// recovery nor the last, whose lengths have other reasons.
    #[must_use]
    pub fn of<'c>(commits: impl IntoIterator<Item = &'c Commit>) -> Vec<Self> {
        let says =
            |commit: &&Commit| !commit.base && !commit.recovery && commit.trigger != Trigger::Final && commit.captured_pages > 0;
        let seen = |commit: &Commit| {
            let sample = super::runner::Sample::from(commit);
            #[expect(clippy::cast_precision_loss, reason = "pages are fewer than 2^52")]
            let pages = commit.captured_pages as f64;
            Self { pages, run: sample.run, pause: sample.pause(), full: commit.trigger == Trigger::RingFull }
        };
        let mut cold = 0;
        let is_warm = |commit: &&Commit| {
            let is_cold = cold > 0;
            cold = if commit.base { EPOCHS_COLD } else { cold.saturating_sub(1) };
            !is_cold
        };
        commits.into_iter().filter(is_warm).filter(says).map(seen).collect()
    }
}

/// How far a proposal can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sureness {
    /// Epochs like the proposed ones were seen, and many.
    Seen,
    /// Epochs like the proposed ones were seen, but few.
    SeenRarely,
    /// The proposal lies beyond what was seen.
    Beyond,
}

/// What the adviser found and proposes. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// Epochs that it rests on.
    pub epochs: usize,
    /// The fewest and the most pages of an epoch.
    pub pages_seen: (f64, f64),
    /// The shortest and the longest run.
    pub run_us_seen: (f64, f64),
    /// A pause without pages; of epochs that are all alike, a pause.
    pub pause_base_us: f64,
    /// What each page adds to it; none where all epochs are alike.
    pub pause_us_per_page: Option<f64>,
    /// The share of epochs whose pause is within the bound that is promised, 0.99 or, with few
    /// epochs, 0.9.
    pub kept_by: f64,
    /// How far above the line the pause of that share of epochs is.
    pub pause_spread_us: f64,
    /// How pages grow with the time that the guest runs: with this power of it. 1 is in step, 0 not
    /// at all.
    pub pages_growth: f64,
    /// What the write faults of a page cost the guest, where the user said so. The chain does not
    /// have it.
    pub fault_us: f64,
    /// The pages of an epoch, at most: `--budget`.
    pub budget_pages: u64,
    /// When an epoch is to end at the latest: `--interval`; none where the budget does alone.
    pub interval_us: Option<f64>,
    /// The pause that is to be expected with it: of that share of epochs, at most.
    pub expected_pause_us: f64,
    /// The share of the guest's time that is to be expected.
    pub expected_slowdown: f64,
    /// How far that can be trusted.
    pub sureness: Sureness,
}

/// Why there is no advice.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdviseError {
    /// Too few epochs.
    #[error("{found} epochs that say something, at least {EPOCHS_LEAST} are needed: let the guest run longer under checkpoints")]
    TooFew {
        /// Epochs there are.
        found: usize,
    },
    /// No epoch is as short.
    #[error("no budget gives pauses of {wanted_us:.0} us: one without any pages takes {least_us:.0} us here")]
    PauseTooShort {
        /// What was wanted.
        wanted_us: f64,
        /// The shortest that there can be.
        least_us: f64,
    },
    /// What shorter pauses need was not seen.
    #[error(
        "all epochs have about {pages:.0} pages and pauses of up to {pause_us:.0} us, and tell nothing of shorter ones: let the guest run with a smaller budget or an interval"
    )]
    Alike {
        /// Pages of the epochs.
        pages: f64,
        /// Their pauses.
        pause_us: f64,
    },
    /// No interval is long enough, as far as the epochs tell.
    #[error(
        "no interval up to {longest_us:.0} us gives a slowdown of {:.1}%: the least is {:.1}%, and what longer epochs do was not seen",
        wanted * 100.0, least * 100.0
    )]
    SlowdownTooSmall {
        /// What was wanted.
        wanted: f64,
        /// The smallest that there can be.
        least: f64,
        /// The longest interval that can be spoken of.
        longest_us: f64,
    },
}

/// What the epochs have in common.
struct Fit {
    base: f64,
    /// None where all epochs have as many pages as `pages_middle`.
    by_page: Option<f64>,
    pages_middle: f64,
    spread: f64,
    kept_by: f64,
    /// Pages are `scale * run ^ growth`, and of that share of epochs at most `excess` times as
    /// many.
    scale: f64,
    growth: f64,
    excess: f64,
    fault: f64,
    pages: (f64, f64),
    run: (f64, f64),
}

impl Fit {
    fn of(seen: &[Seen], fault: f64) -> Self {
        let used: Vec<Seen> = seen.iter().step_by(seen.len().div_ceil(EPOCHS_USED)).copied().collect();
        let by_page = slope(&used, |epoch| epoch.pages, |epoch| epoch.pause).map(|slope| slope.max(0.0));
        let of_pages = |pages: f64| by_page.unwrap_or(0.0) * pages;
        let base = median(seen.iter().map(|epoch| epoch.pause - of_pages(epoch.pages))).max(0.0);
        let kept_by = if seen.len() >= EPOCHS_FOR_P99 { 0.99 } else { 0.9 };
        let spread = quantile(&sorted(seen.iter().map(|epoch| epoch.pause - of_pages(epoch.pages) - base)), kept_by).max(0.0);
        // Growth above 1 would be a guest that speeds up; what it does with shorter epochs is not
        // for us to hope.
        let timed: Vec<Seen> = used.iter().filter(|epoch| !epoch.full).copied().collect();
        let growth = if timed.len() < EPOCHS_LEAST {
            1.0
        } else {
            slope(&timed, |epoch| epoch.run.max(1.0).ln(), |epoch| epoch.pages.ln()).unwrap_or(1.0).clamp(0.0, 1.0)
        };
        let scale = median(seen.iter().map(|epoch| epoch.pages / epoch.run.max(1.0).powf(growth)));
        let excess = seen.iter().map(|epoch| epoch.pages / (scale * epoch.run.max(1.0).powf(growth)).max(1e-9));
        let excess = quantile(&sorted(excess), kept_by).max(1.0);
        let range = |of: fn(&Seen) -> f64| {
            let values = sorted(seen.iter().map(of));
            (quantile(&values, 0.0), quantile(&values, 1.0))
        };
        let pages_middle = median(seen.iter().map(|epoch| epoch.pages));
        Self {
            base,
            by_page,
            pages_middle,
            spread,
            kept_by,
            scale,
            growth,
            excess,
            fault,
            pages: range(|epoch| epoch.pages),
            run: range(|epoch| epoch.run),
        }
    }

    /// Pages of an epoch in which the guest runs so long, in the middle of all.
    fn pages_of(&self, run: f64) -> f64 {
        (self.scale * run.max(1.0).powf(self.growth)).max(1.0)
    }

    /// How long the guest runs until it has written so many pages, of the share of epochs that is
    /// spoken of.
    fn run_of(&self, pages: f64) -> f64 {
        (pages / self.excess / self.scale.max(1e-9)).powf(1.0 / self.growth.max(0.05))
    }

    fn pause_of(&self, pages: f64) -> f64 {
        match self.by_page {
            Some(by_page) => self.base + by_page * pages,
            None => self.base * (pages / self.pages_middle.max(1.0)).max(1.0),
        }
    }

    /// The share of its time that the guest loses with such epochs.
    fn slowdown_of(&self, run: f64) -> f64 {
        let pages = self.pages_of(run);
        let cost = self.pause_of(pages) + self.fault * pages;
        cost / (run + self.pause_of(pages))
    }
}

/// The median slope between pairs of epochs; `None` where `x` hardly varies.
fn slope(seen: &[Seen], x: impl Fn(&Seen) -> f64, y: impl Fn(&Seen) -> f64) -> Option<f64> {
    let mut slopes = Vec::new();
    for (index, one) in seen.iter().enumerate() {
        for other in seen.iter().skip(index + 1) {
            let across = x(other) - x(one);
            // Pairs that hardly differ say nothing but noise.
            if across.abs() > 0.05 * (x(one).abs() + x(other).abs()).max(1e-9) / 2.0 {
                slopes.push((y(other) - y(one)) / across);
            }
        }
    }
    (slopes.len() >= seen.len()).then(|| median(slopes))
}

/// Proposes a budget and an interval. `fault_us` is what the first write to a page in an epoch
/// costs the guest (`slackwater bench` measures it), and counts in a slowdown.
///
/// # Errors
/// [`AdviseError`].
pub fn advise(seen: &[Seen], wanted: Wanted, fault_us: f64) -> Result<Advice, AdviseError> {
    if seen.len() < EPOCHS_LEAST {
        return Err(AdviseError::TooFew { found: seen.len() });
    }
    let fit = Fit::of(seen, fault_us.max(0.0));
    let (pages, run) = match wanted {
        Wanted::Pause(wanted_us) => {
            let room = wanted_us - fit.spread;
            let pages = match fit.by_page {
                None if room < fit.base => {
                    return Err(AdviseError::Alike { pages: fit.pages_middle, pause_us: fit.base + fit.spread });
                }
                None => fit.pages_middle * room / fit.base.max(1e-9),
                Some(by_page) if room < fit.base + by_page.max(1e-6) => {
                    return Err(AdviseError::PauseTooShort { wanted_us, least_us: fit.base + fit.spread + by_page });
                }
                Some(by_page) => (room - fit.base) / by_page.max(1e-9),
            };
            // Beyond what can be spoken of there is no need to go.
            let pages = pages.min(fit.pages.1 * REACH).max(1.0).floor();
            (pages, fit.run_of(pages))
        }
        Wanted::Slowdown(wanted) => {
            let longest = fit.run.1 * REACH;
            let shortest = (fit.run.0 / REACH).max(1.0);
            let steps = (0..=400).map(|step| shortest * (longest / shortest).powf(f64::from(step) / 400.0));
            let Some(run) = steps.clone().find(|run| fit.slowdown_of(*run) <= wanted) else {
                let least = steps.map(|run| fit.slowdown_of(run)).fold(1.0, f64::min);
                return Err(AdviseError::SlowdownTooSmall { wanted, least, longest_us: longest });
            };
            // Room for the epochs that have more pages than most: the interval is to end them, not
            // the budget.
            ((fit.pages_of(run) * fit.excess).ceil(), run)
        }
    };
    // No ring is smaller than the smallest; a smaller epoch needs an interval.
    let budget = match wanted {
        Wanted::Pause(_) => pages.max(RING_LEAST),
        Wanted::Slowdown(_) => (pages * 1.5).max(RING_LEAST),
    };
    let by_interval = matches!(wanted, Wanted::Slowdown(_)) || pages < RING_LEAST;
    let expected_pages = if by_interval { fit.pages_of(run).min(pages) } else { pages };
    let within = |value: f64, (least, most): (f64, f64)| (least / 1.1..=most * 1.1).contains(&value);
    let was_seen = within(expected_pages, fit.pages) && (!by_interval || within(run, fit.run));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of pages, at least 256")]
    let budget_pages = budget as u64;
    Ok(Advice {
        epochs: seen.len(),
        pages_seen: fit.pages,
        run_us_seen: (round(fit.run.0), round(fit.run.1)),
        pause_base_us: round(fit.base),
        pause_us_per_page: fit.by_page.map(round),
        kept_by: fit.kept_by,
        pause_spread_us: round(fit.spread),
        pages_growth: round(fit.growth),
        fault_us,
        budget_pages,
        interval_us: by_interval.then(|| round(run.floor().max(1.0))),
        expected_pause_us: round(fit.pause_of(pages) + fit.spread),
        expected_slowdown: round(fit.slowdown_of(run.max(1.0)) * 100.0) / 100.0,
        sureness: match (was_seen, seen.len() >= EPOCHS_FOR_P99) {
            (true, true) => Sureness::Seen,
            (true, false) => Sureness::SeenRarely,
            (false, _) => Sureness::Beyond,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Epochs of a guest that writes `rate` pages in a microsecond, cut after different times:
    /// pauses of 50 us and half a microsecond a page, a little uneven.
    fn steady(count: u32, rate: f64) -> Vec<Seen> {
        (0..count)
            .map(|index| {
                let run = 5_000.0 + f64::from(index * 7919 % 1000) * 45.0;
                let pages = (run * rate).round();
                Seen { pages, run, pause: 50.0 + 0.5 * pages + f64::from(index % 10), full: false }
            })
            .collect()
    }

    #[test]
    fn a_wanted_pause_gives_the_budget_that_keeps_it() {
        let seen = steady(400, 0.1);
        let advice = advise(&seen, Wanted::Pause(1000.0), 0.0).unwrap();
        assert!(
            (advice.pause_us_per_page.unwrap() - 0.5).abs() < 0.01 && (advice.pause_base_us - 54.5).abs() < 3.0,
            "{advice:?}"
        );
        // (1000 - 59) / 0.5
        assert!((1840..=1900).contains(&advice.budget_pages), "{advice:?}");
        assert_eq!((advice.interval_us, advice.sureness, advice.kept_by), (None, Sureness::Seen, 0.99));
        assert!(advice.expected_pause_us <= 1000.0);
        // The pause is kept by the epochs that were seen with so many pages.
        let kept = seen.iter().filter(|epoch| epoch.pages <= 1840.0).all(|epoch| epoch.pause <= 1000.0);
        assert!(kept);
    }

    #[test]
    fn a_pause_below_the_smallest_ring_needs_an_interval() {
        let advice = advise(&steady(400, 0.01), Wanted::Pause(120.0), 0.0).unwrap();
        assert_eq!(advice.budget_pages, 256);
        // (120 - 59) / 0.5 pages at a hundredth of a page in a microsecond.
        let interval = advice.interval_us.unwrap();
        assert!((11_000.0..=13_000.0).contains(&interval), "{advice:?}");
    }

    #[test]
    fn a_wanted_slowdown_gives_an_interval() {
        let seen = steady(400, 0.01);
        // A page in 100 us costs half a microsecond: half a percent, and 54.5 us for each cut.
        let advice = advise(&seen, Wanted::Slowdown(0.01), 0.0).unwrap();
        let interval = advice.interval_us.unwrap();
        assert!((10_000.0..=12_500.0).contains(&interval), "{advice:?}");
        assert!((advice.expected_slowdown - 0.01).abs() < 0.001);
        // Faults count where the user says what they cost: 5 us a page are another 5 percent, which
        // no interval takes away.
        let error = advise(&seen, Wanted::Slowdown(0.01), 5.0).unwrap_err();
        assert!(matches!(error, AdviseError::SlowdownTooSmall { least, .. } if least > 0.05), "{error}");
        let advice = advise(&seen, Wanted::Slowdown(0.06), 5.0).unwrap();
        assert!(advice.interval_us.unwrap() > interval / 2.0, "{advice:?}");
    }

    #[test]
    fn pages_that_come_again_make_longer_epochs_cheaper() {
        // A working set of 1000 pages that is soon written once: pages grow little with time.
        let seen: Vec<Seen> = (0..300)
            .map(|index| {
                let run = 2_000.0 + f64::from(index) * 100.0;
                let pages = (700.0 * (run / 2_000.0).powf(0.1)).round();
                Seen { pages, run, pause: 50.0 + 0.5 * pages, full: false }
            })
            .collect();
        let advice = advise(&seen, Wanted::Slowdown(0.02), 0.0).unwrap();
        assert!((advice.pages_growth - 0.1).abs() < 0.03, "{advice:?}");
        assert!((20_000.0..=26_000.0).contains(&advice.interval_us.unwrap()), "{advice:?}");
        assert_eq!(advice.sureness, Sureness::Seen);
    }

    #[test]
    fn what_was_not_seen_is_said() {
        let seen = steady(400, 0.1);
        let beyond = advise(&seen, Wanted::Pause(5000.0), 0.0).unwrap();
        assert_eq!(beyond.sureness, Sureness::Beyond);
        // Nothing is proposed that is further away than four times what was seen.
        assert!(beyond.budget_pages <= 20_000, "{beyond:?}");
        assert_eq!(advise(&steady(100, 0.1), Wanted::Pause(1000.0), 0.0).unwrap().sureness, Sureness::SeenRarely);
        assert_eq!(advise(&seen[..19], Wanted::Pause(1000.0), 0.0), Err(AdviseError::TooFew { found: 19 }));
        let short = advise(&seen, Wanted::Pause(40.0), 0.0).unwrap_err();
        assert!(matches!(short, AdviseError::PauseTooShort { least_us, .. } if least_us > 50.0), "{short}");
    }

    #[test]
    fn odd_epochs_and_epochs_all_alike_do_no_harm() {
        let mut seen = steady(400, 0.1);
        for epoch in seen.iter_mut().step_by(20) {
            epoch.pause *= 50.0;
        }
        let advice = advise(&seen, Wanted::Pause(200_000.0), 0.0).unwrap();
        assert!((advice.pause_us_per_page.unwrap() - 0.5).abs() < 0.1, "{advice:?}");
        let alike = vec![Seen { pages: 192.0, run: 3000.0, pause: 100.0, full: true }; 50];
        let advice = advise(&alike, Wanted::Pause(150.0), 0.0).unwrap();
        assert!(advice.expected_slowdown.is_finite() && advice.budget_pages >= 256, "{advice:?}");
        let zeros = vec![Seen { pages: 1.0, run: 0.0, pause: 0.0, full: false }; 50];
        for wanted in [Wanted::Pause(1.0), Wanted::Slowdown(0.01), Wanted::Slowdown(0.0), Wanted::Pause(0.0)] {
            if let Ok(advice) = advise(&zeros, wanted, 0.0) {
                assert!(advice.expected_pause_us.is_finite() && advice.expected_slowdown.is_finite(), "{advice:?}");
            }
        }
    }

    #[test]
    fn epochs_that_are_all_alike_promise_nothing_of_others() {
        // Full rings, whose pages do not vary although the time does.
        let seen: Vec<Seen> = (0..50)
            .map(|index| Seen { pages: 960.0, run: 7000.0 + f64::from(index % 7) * 900.0, pause: 800.0, full: true })
            .collect();
        assert_eq!(advise(&seen, Wanted::Pause(500.0), 0.0), Err(AdviseError::Alike { pages: 960.0, pause_us: 800.0 }));
        let longer = advise(&seen, Wanted::Pause(1600.0), 0.0).unwrap();
        assert_eq!((longer.budget_pages, longer.sureness, longer.pause_us_per_page), (1920, Sureness::Beyond, None));
        // In proportion, longer epochs are no cheaper: 800 us in about 9,700.
        assert!(matches!(advise(&seen, Wanted::Slowdown(0.05), 0.0), Err(AdviseError::SlowdownTooSmall { .. })));
        assert!(advise(&seen, Wanted::Slowdown(0.09), 0.0).is_ok());
    }

    #[test]
    fn with_rounds_a_pause_asks_for_no_smaller_epochs() {
        // Pauses are what a cut has left, whatever the epoch.
        let seen: Vec<Seen> = (0..400)
            .map(|index| {
                let pages = 1_000.0 + f64::from(index * 7919 % 1000) * 19.0;
                Seen { pages, run: pages * 10.0, pause: 60.0 + f64::from(index * 31 % 40), full: false }
            })
            .collect();
        let advice = advise(&seen, Wanted::Pause(200.0), 0.0).unwrap();
        assert!(advice.budget_pages >= 19_000 && advice.interval_us.is_none(), "{advice:?}");
        assert!(advice.expected_pause_us <= 110.0, "{advice:?}");
        // It is not promised of epochs that nobody has seen.
        assert_eq!(advice.sureness, Sureness::Beyond);
        let error = advise(&seen, Wanted::Pause(50.0), 0.0).unwrap_err();
        assert!(matches!(error, AdviseError::PauseTooShort { .. }), "{error}");
    }

    #[test]
    fn only_epochs_that_say_something_count() {
        let epoch = |trigger, base, recovery, captured_pages| Commit {
            trigger,
            base,
            recovery,
            captured_pages,
            run_ns: 2000,
            ..Commit::default()
        };
        let cold = (0..EPOCHS_COLD).map(|_| epoch(Trigger::Interval, false, false, 5));
        let commits: Vec<_> = [epoch(Trigger::Request, true, false, 5)]
            .into_iter()
            .chain(cold)
            .chain([
                epoch(Trigger::RingFull, false, true, 5),
                epoch(Trigger::Final, false, false, 5),
                epoch(Trigger::Interval, false, false, 0),
                epoch(Trigger::Interval, false, false, 7),
            ])
            .collect();
        assert_eq!(Seen::of(&commits), [Seen { pages: 7.0, run: 2.0, pause: 0.0, full: false }]);
    }
}
