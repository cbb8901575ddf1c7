//! How much is measured at each point in the time that there is, from what exits and faults cost on
//! the machine at hand. Pure.

use std::time::Duration;

use super::workload::{Extent, Point};

/// Cuts at the start of each turn that are left out: the machine finds its caches cold, and its
/// first cut has waited.
pub(super) const COLD_CUTS: u64 = 2;
/// What a short run takes in all, where it can, in microseconds: five seconds are left of its
/// minute.
const QUICK_US: f64 = 55e6;
/// Making the machines of a point, and letting them go.
const SETUP_US: f64 = 300_000.0;
/// A turn of the guest without tracking: nearly the same on every machine.
const UNTRACKED_US: f64 = 20_000.0;
/// Copying a page, at most.
const COPY_US: f64 = 0.65;
/// What a cut takes besides pages: its state, its exit, and some calls that cost as much as an exit
/// each.
const CUT_US: f64 = 60.0;
const CUT_EXITS: f64 = 4.0;

/// What decides how long a cut takes on a machine, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// An exit and its entry.
    pub exit_us: f64,
    /// The first write to a page in an epoch.
    pub fault_us: f64,
}

/// What is done at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Lists that the guest goes through at the most.
    pub lists: u64,
    /// Cuts of each turn that are measured.
    pub cuts: u64,
    /// Rounds of turns at the least; there are more while time allows.
    pub rounds: u32,
}

impl Effort {
    /// For `point`, whose guest has so many lists by itself. A short run does less where cuts are
    /// dear: fewer cuts in a turn, then fewer lists, each of which is gone through before anything
    /// counts, then two rounds instead of three. Never fewer.
    #[must_use]
    pub fn plan(extent: Extent, point: &Point, lists: u64, costs: &Costs) -> Self {
        let mut effort = Self { lists, cuts: cuts_of_a_turn(point), rounds: extent.rounds_least() };
        if extent != Extent::Quick {
            return effort;
        }
        let limit_us = extent.time_at_a_point().as_secs_f64() * 1e6;
        let lists_least = if point.full_ring.is_some() { 1 } else { 4 };
        while effort.expected_us(point, costs) > limit_us {
            if effort.cuts > 6 {
                effort.cuts -= 2;
            } else if effort.lists > lists_least {
                effort.lists -= 1;
            } else if effort.rounds > 2 {
                effort.rounds = 2;
            } else if effort.cuts > 2 {
                effort.cuts -= 1;
            } else {
                break;
            }
        }
        effort
    }

    /// How long that takes, roughly, in microseconds.
    #[must_use]
    pub fn expected_us(&self, point: &Point, costs: &Costs) -> f64 {
        let pages = number(point.full_ring.map_or(point.pages, u64::from));
        let cut_us = pages * (costs.fault_us + COPY_US) + CUT_US + CUT_EXITS * costs.exit_us;
        // Besides the trackers, the one whose pages are copied.
        let lanes = number(point.trackers().len() as u64 + 1);
        let cuts = self.warm_cuts(point) + u64::from(self.rounds) * (self.cuts + COLD_CUTS);
        SETUP_US + lanes * number(cuts) * cut_us + f64::from(self.rounds + 1) * UNTRACKED_US
    }

    /// Whether so many rounds in so much time will do. A short run leaves it at two where they took
    /// longer than was expected.
    #[must_use]
    pub fn is_enough(&self, extent: Extent, rounds: u32, elapsed: Duration) -> bool {
        let least = if extent == Extent::Quick { self.rounds.min(2) } else { self.rounds };
        rounds >= least && elapsed >= extent.time_at_a_point()
    }

    /// Cuts until every list was gone through.
    pub(super) fn warm_cuts(&self, point: &Point) -> u64 {
        let passes =
            if point.full_ring.is_some() { (self.lists * point.pages).div_ceil(point.budget_pages()) } else { self.lists };
        passes + 1
    }
}

/// How long each run of the whole engine goes on, with so many rows to come: in a short run that
/// began `elapsed` ago its part of the time that is left, within reason.
pub(super) fn rate_time(extent: Extent, elapsed: Duration, rows: usize) -> Duration {
    match extent {
        Extent::Full => Duration::from_millis(3000),
        Extent::Quick => {
            // Three runs for a row, and making their machines.
            let each_us = (QUICK_US - elapsed.as_secs_f64() * 1e6) / number(rows.max(1) as u64 * 3) - 60_000.0;
            Duration::from_secs_f64(each_us.clamp(300_000.0, 1_000_000.0) / 1e6)
        }
        // A guest that is given no time for what is wanted of it gets it all the same.
        Extent::Tiny => Duration::from_millis(10),
    }
}

/// How long each run with rounds or without goes on, at the least.
pub(super) const fn stream_time(extent: Extent) -> Duration {
    match extent {
        Extent::Full => Duration::from_millis(2000),
        Extent::Quick => Duration::from_millis(400),
        Extent::Tiny => Duration::from_millis(50),
    }
}

fn cuts_of_a_turn(point: &Point) -> u64 {
    match point.full_ring.map_or(point.pages, u64::from) {
        ..=1000 => 24,
        1001..=8000 => 8,
        8001..=20_000 => 4,
        _ => 2,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are fewer than 2^52")]
const fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::endtoend::rate_points;
    use crate::bench::streaming::stream_points;
    use crate::bench::workload::{Axis, points};
    use crate::vmm::guests::touch;

    /// Two machines that were measured.
    const QUICK_MACHINE: Costs = Costs { exit_us: 19.0, fault_us: 7.4 };
    const SLOW_MACHINE: Costs = Costs { exit_us: 60.0, fault_us: 22.0 };

    fn lists(point: &Point) -> u64 {
        point.guest(1).parse::<touch::Options>().unwrap().lists()
    }

    fn plans(extent: Extent, costs: &Costs) -> Vec<(Point, Effort)> {
        let points = points(extent, &Axis::ALL);
        points.into_iter().map(|point| (point.clone(), Effort::plan(extent, &point, lists(&point), costs))).collect()
    }

    #[test]
    fn a_short_run_keeps_its_minute_on_either_machine() {
        for costs in [QUICK_MACHINE, SLOW_MACHINE] {
            let plans = plans(Extent::Quick, &costs);
            let time_at_a_point = Extent::Quick.time_at_a_point().as_secs_f64() * 1e6;
            // Rounds go on while there is time.
            let points_us: f64 = plans.iter().map(|(point, effort)| effort.expected_us(point, &costs).max(time_at_a_point)).sum();
            let rates = rate_points(Extent::Quick, &Axis::ALL).len();
            // Five runs for a point.
            let streams = stream_points(Extent::Quick, &Axis::ALL);
            let streams_us: f64 =
                streams.iter().map(|point| 5.0 * (point.time(stream_time(Extent::Quick)).as_secs_f64() * 1e6 + 60_000.0)).sum();
            let before_us = points_us + streams_us;
            let runs_us =
                rate_time(Extent::Quick, Duration::from_secs_f64(before_us / 1e6), rates).as_secs_f64() * 1e6 + 60_000.0;
            let all_us = before_us + runs_us * number(rates as u64 * 3);
            println!("{costs:?}: {points_us} us for points, {runs_us} for each of {rates} x 3 runs");
            assert!(all_us < 58e6, "{all_us} us: {plans:?}");
            for (point, effort) in plans {
                assert!(effort.rounds >= 2 && effort.cuts >= 2, "{point:?}: {effort:?}");
                assert!(
                    effort.lists >= lists(&point).min(4) || point.full_ring.is_some() && effort.lists == 1,
                    "{point:?}: {effort:?}"
                );
                // More pages than a ring has, so that none comes twice in an epoch.
                assert!(point.full_ring.is_none_or(|ring| u64::from(ring) < effort.lists * point.pages), "{point:?}");
            }
        }
    }

    #[test]
    fn what_takes_longer_than_expected_is_made_up_for() {
        let effort = Effort { lists: 16, cuts: 24, rounds: 3 };
        let time = Extent::Quick.time_at_a_point();
        assert!(!effort.is_enough(Extent::Quick, 1, time * 9) && effort.is_enough(Extent::Quick, 2, time));
        // Rounds go on while there is time.
        assert!(!effort.is_enough(Extent::Quick, 3, time / 2));
        // The whole grid has its three.
        let time = Extent::Full.time_at_a_point();
        assert!(!effort.is_enough(Extent::Full, 2, time * 9) && effort.is_enough(Extent::Full, 3, time));
        // Runs are shorter the less time is left, down to a floor.
        let times = [20, 42, 54, 90].map(|elapsed_s| rate_time(Extent::Quick, Duration::from_secs(elapsed_s), 10).as_millis());
        assert_eq!(times, [1000, 373, 300, 300]);
        assert_eq!(rate_time(Extent::Quick, Duration::from_secs(52), 1).as_millis(), 940);
    }

    #[test]
    fn what_is_cheap_is_measured_whole() {
        let points = points(Extent::Quick, &[Axis::Memory]);
        let few = points.iter().find(|point| point.pages == 60).unwrap();
        for costs in [QUICK_MACHINE, SLOW_MACHINE] {
            let effort =
                Effort::plan(Extent::Quick, few, 16, &Costs { exit_us: costs.exit_us / 2.0, fault_us: costs.fault_us / 4.0 });
            assert_eq!(effort, Effort { lists: 16, cuts: 24, rounds: 3 });
        }
        // And the whole grid whatever it takes.
        for (point, effort) in plans(Extent::Full, &SLOW_MACHINE) {
            assert_eq!(effort, Effort { lists: lists(&point), cuts: cuts_of_a_turn(&point), rounds: 3 });
        }
    }
}
