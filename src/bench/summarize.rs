//! Makes the summary of what was measured. Pure.

use super::prose;
use super::results::Row;
use super::session::Results;
use super::stats::{median, round};
use super::summary::{AboveFloor, BudgetCost, Duel, Flatness, Hot, Summary};
use super::workload::TrackerKind;

/// A larger ring than this much better is not worth its longer pause.
const WORTH: f64 = 1.05;

impl Summary {
    /// Of all that was measured.
    #[must_use]
    pub fn of(results: &Results) -> Self {
        let rows: Vec<&Row> = results.cuts().collect();
        let duels = duels(&rows);
        let largest = duels.iter().map(|duel| duel.memory_bytes).max().unwrap_or_default();
        let smallest = duels.iter().map(|duel| duel.memory_bytes).min().unwrap_or_default();
        let faults = rows.iter().filter(|row| is_ring(row) && row.fault_us_per_page > 0.0).map(|row| row.fault_us_per_page);
        let faults: Vec<f64> = faults.collect();
        let budgets = budgets(&rows);
        let mut summary = Self {
            flatness: flatness(&duels),
            largest_memory: duels.iter().filter(|duel| duel.memory_bytes == largest && largest > smallest).cloned().collect(),
            above_floor: rows.iter().filter(|row| row.trigger == "request").map(|row| above_floor(row)).collect(),
            fault_us_per_page: (!faults.is_empty()).then(|| round(median(faults))),
            best_ring_entries: best_ring(&budgets),
            budgets,
            hot: rows.iter().filter(|row| row.pattern == "same").map(|row| hot(row)).collect(),
            durable_per_s: results.rates().map(|row| row.durable_per_s).max_by(f64::total_cmp),
            duels,
            words: Vec::new(),
        };
        summary.words = prose::words(&summary, results);
        summary
    }
}

fn is_ring(row: &Row) -> bool {
    row.tracker == TrackerKind::Ring.as_str()
}

fn duels(rows: &[&Row]) -> Vec<Duel> {
    let bitmaps = [TrackerKind::Bitmap.as_str(), TrackerKind::BitmapClear.as_str()];
    let place = |row: &Row| (row.memory_bytes, row.dirty_pages, row.pattern.clone(), row.vcpus);
    let duel = |ring: &&&Row| {
        let others = rows.iter().filter(|row| bitmaps.contains(&row.tracker) && place(row) == place(ring));
        let bitmap_us = others.map(|row| row.tracking_us).min_by(f64::total_cmp)?;
        Some(Duel {
            memory_bytes: ring.memory_bytes,
            dirty_pages: ring.dirty_pages,
            pattern: ring.pattern.clone(),
            vcpus: ring.vcpus,
            ring_us: ring.tracking_us,
            bitmap_us,
            bitmap_over_ring: if ring.tracking_us > 0.0 { round(bitmap_us / ring.tracking_us) } else { 0.0 },
        })
    };
    rows.iter().filter(|row| is_ring(row) && row.trigger == "request").filter_map(|row| duel(&row)).collect()
}

fn flatness(duels: &[Duel]) -> Vec<Flatness> {
    let mut kinds: Vec<(u64, &str)> = Vec::new();
    for duel in duels.iter().filter(|duel| duel.vcpus == 1) {
        if !kinds.contains(&(duel.dirty_pages, &duel.pattern)) {
            kinds.push((duel.dirty_pages, &duel.pattern));
        }
    }
    let flat = |(dirty_pages, pattern): (u64, &str)| {
        let of =
            || duels.iter().filter(move |duel| duel.dirty_pages == dirty_pages && duel.pattern == pattern && duel.vcpus == 1);
        let memory = (of().map(|duel| duel.memory_bytes).min()?, of().map(|duel| duel.memory_bytes).max()?);
        let ring = (of().map(|duel| duel.ring_us).min_by(f64::total_cmp)?, of().map(|duel| duel.ring_us).max_by(f64::total_cmp)?);
        (memory.0 < memory.1 && ring.0 > 0.0).then(|| Flatness {
            dirty_pages,
            pattern: pattern.to_owned(),
            memory_bytes: memory,
            ring_us: ring,
            max_over_min: round(ring.1 / ring.0),
        })
    };
    let mut flat: Vec<Flatness> = kinds.into_iter().filter_map(flat).collect();
    // The widest range of memory first, and there the fewest pages.
    flat.sort_by_key(|flat| (std::cmp::Reverse(flat.memory_bytes.1 / flat.memory_bytes.0.max(1)), flat.dirty_pages));
    flat
}

fn above_floor(row: &Row) -> AboveFloor {
    AboveFloor {
        tracker: row.tracker,
        memory_bytes: row.memory_bytes,
        dirty_pages: row.dirty_pages,
        vcpus: row.vcpus,
        pause_us: row.pause_us.p50,
        floor_us: row.floor_copy_us,
        above_us: row.pause_above_floor_us,
    }
}

fn budgets(rows: &[&Row]) -> Vec<BudgetCost> {
    let of_budget = rows.iter().filter(|row| row.trigger == "ring_full" && row.epoch_pages > 0.0);
    let mut costs: Vec<BudgetCost> = of_budget
        .filter_map(|row| {
            Some(BudgetCost {
                ring_entries: row.ring_entries?,
                pause_us: row.pause_us.p50,
                pause_us_per_page: round(row.pause_us.p50 / row.epoch_pages),
                cycle_us_per_page: round((row.run_us + row.pause_us.p50) / row.epoch_pages),
            })
        })
        .collect();
    costs.sort_by_key(|cost| cost.ring_entries);
    costs
}

fn best_ring(budgets: &[BudgetCost]) -> Option<u32> {
    let best = budgets.iter().map(|cost| cost.cycle_us_per_page).min_by(f64::total_cmp)?;
    budgets.iter().find(|cost| cost.cycle_us_per_page <= best * WORTH).map(|cost| cost.ring_entries)
}

fn hot(row: &Row) -> Hot {
    Hot { tracker: row.tracker, dirty_pages: row.dirty_pages, cuts_per_s: row.cuts_per_s }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::summary::Winner;
    use crate::bench::testing::results;
    use crate::bench::workload::Extent;

    #[test]
    fn duels_are_won_by_the_cheaper_one() {
        let summary = Summary::of(&results(Extent::Full));
        let at = |memory: u64, pages| {
            summary.duels.iter().find(|duel| (duel.memory_bytes, duel.dirty_pages, duel.vcpus) == (memory, pages, 1)).unwrap()
        };
        // At 60 GiB the bitmap takes 960 us and 3 for the pages, the ring 12.
        let large = at(60 << 30, 60);
        assert!((large.bitmap_us - 963.0).abs() < 0.1 && (large.ring_us - 12.0).abs() < 0.1, "{large:?}");
        assert!((large.bitmap_over_ring - 80.25).abs() < 0.1 && large.winner() == Winner::Ring);
        // At 256 MiB it takes 4 us and 200, the ring 800.
        assert_eq!(at(256 << 20, 4000).winner(), Winner::Bitmap);
        // 64 and 25.6 against 102.4: a little more than even.
        assert_eq!(at(4 << 30, 512).winner(), Winner::Even);
        assert!(summary.largest_memory.iter().all(|duel| duel.memory_bytes == 60 << 30) && summary.largest_memory.len() == 3);
    }

    #[test]
    fn ratios_are_of_the_rows() {
        let summary = Summary::of(&results(Extent::Full));
        assert!(summary.flatness.len() >= 3 && summary.flatness.iter().all(|flat| (flat.max_over_min - 1.0).abs() < 1e-9));
        assert_eq!(summary.flatness[0].memory_bytes, (256 << 20, 60 << 30));
        assert!((summary.fault_us_per_page.unwrap() - 5.0).abs() < 0.2, "{:?}", summary.fault_us_per_page);
        let ring =
            summary.above_floor.iter().find(|row| row.tracker == "ring" && row.dirty_pages == 60 && row.vcpus == 2).unwrap();
        // Kick, state, tracking, and a microsecond of the copy.
        assert!((ring.above_us - (20.0 + 23.0 + 12.0 + 1.0)).abs() < 1.5, "{ring:?}");
        assert_eq!(summary.budgets.len(), 9);
        assert!(summary.budgets.windows(2).all(|pair| pair[0].pause_us_per_page >= pair[1].pause_us_per_page));
        // From 256 entries on everything but the faults is less than a twentieth.
        assert_eq!(summary.best_ring_entries, Some(256));
        assert_eq!(summary.hot.len(), TrackerKind::ALL.len());
    }

    #[test]
    fn the_best_ring_is_the_smallest_that_is_hardly_worse() {
        let cost = |ring_entries, cycle_us_per_page| BudgetCost {
            ring_entries,
            pause_us: 1.0,
            pause_us_per_page: 1.0,
            cycle_us_per_page,
        };
        assert_eq!(best_ring(&[cost(256, 9.0), cost(512, 7.3), cost(1024, 7.1), cost(2048, 7.0)]), Some(512));
        assert_eq!(best_ring(&[cost(256, 7.0), cost(512, 9.0)]), Some(256));
        assert_eq!(best_ring(&[]), None);
    }

    #[test]
    fn words_say_who_wins_and_mention_only_what_was_measured() {
        let summary = Summary::of(&results(Extent::Full));
        let text: String = summary.words.iter().map(|words| words.text.as_str()).collect();
        for said in [
            "To find 60 dirty pages and protect them again in 256 MiB to 60 GiB of guest memory: sequential pages take the ring 12 µs to 12 µs",
            "uniform pages take the ring 12 µs to 12 µs, and the bitmap 7.0 µs at 256 MiB and 963 µs at 60 GiB, 80 times the ring's",
            "The bitmap costs more with 60",
            "The ring costs more with",
            "a budget of 256 pages is best",
            "with the hot set are 1.10 to 1.10 times the least that any set could have come to on the same 5 traces",
            "writes 200,000 pages between two cuts, one after the other, a cut takes 80 µs with rounds and 60 ms without",
            "loses 0.4% of its time at 20 checkpoints a second, 4.0% of its time at 200",
            "with two vCPUs by",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let mut nothing = results(Extent::Full);
        nothing.lines.clear();
        assert_eq!(Summary::of(&nothing).words, []);
    }
}
