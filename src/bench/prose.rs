//! The results in words: which tracker to take for which work on this machine, and what budget.
//! Pure.

use super::results::Row;
use super::session::Results;
use super::summary::{Duel, Flatness, Summary, Winner, Words};

/// Paragraphs whose sentences stand on rows that were measured; what was not measured is not
/// mentioned.
pub(super) fn words(summary: &Summary, results: &Results) -> Vec<Words> {
    let paragraph = |about: &'static str, sentences: &[Option<String>]| {
        let text = sentences.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
        (!text.is_empty()).then_some(Words { about, text })
    };
    [
        paragraph("Which tracker", &[memory(summary), ring_wins(summary), bitmap_wins(summary), bound(summary)]),
        paragraph("What a checkpoint costs", &[fault(summary), floor(summary)]),
        paragraph("Rounds", &[streams(results)]),
        paragraph("The hot set", &[hot(results)]),
        paragraph("Which budget", &[budget(summary)]),
        paragraph("The whole engine", &[rate(results)]),
        paragraph("How much was measured", &[rounds(results)]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Bytes as people say them.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{bytes} bytes"),
    }
}

/// A number of things, in groups of three digits.
pub(super) fn count(count: u64) -> String {
    match count {
        count if count < 1000 => count.to_string(),
        count => format!("{},{:03}", self::count(count / 1000), count % 1000),
    }
}

/// A time in microseconds, to what is worth saying of it.
pub(super) fn time(us: f64) -> String {
    match us {
        0.0 => "0 µs".to_owned(),
        us if us >= 10_000.0 => format!("{:.0} ms", us / 1000.0),
        us if us >= 1000.0 => format!("{:.1} ms", us / 1000.0),
        us if us >= 10.0 => format!("{us:.0} µs"),
        us => format!("{us:.1} µs"),
    }
}

/// A factor, to what is worth saying of it.
fn times(factor: f64) -> String {
    if factor >= 10.0 { format!("{factor:.0} times") } else { format!("{factor:.1} times") }
}

fn rounds(results: &Results) -> Option<String> {
    let rounds = || results.cuts().map(|row| row.rounds);
    let (least, most) = (rounds().min()?, rounds().max()?);
    let cuts = results.cuts().map(|row| row.cuts as u64).min()?;
    let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
    Some(format!("Each point had {range} rounds of turns, and each tracker {} cuts or more in them.", count(cuts)))
}

fn memory(summary: &Summary) -> Option<String> {
    let first = summary.flatness.first()?;
    let like = |flat: &&Flatness| (flat.dirty_pages, flat.memory_bytes) == (first.dirty_pages, first.memory_bytes);
    let part = |flat: &Flatness| {
        let at = |memory| {
            let place = |duel: &&Duel| (duel.memory_bytes, duel.dirty_pages, duel.vcpus) == (memory, flat.dirty_pages, 1);
            summary.duels.iter().filter(place).find(|duel| duel.pattern == flat.pattern)
        };
        let (small, large) = (at(flat.memory_bytes.0)?, at(flat.memory_bytes.1)?);
        Some(format!(
            "{} pages take the ring {} to {}, and the bitmap {} at {} and {} at {}, {} the ring's",
            flat.pattern,
            time(flat.ring_us.0),
            time(flat.ring_us.1),
            time(small.bitmap_us),
            bytes(small.memory_bytes),
            time(large.bitmap_us),
            bytes(large.memory_bytes),
            times(large.bitmap_over_ring),
        ))
    };
    let parts: Vec<String> = summary.flatness.iter().filter(like).filter_map(part).collect();
    (!parts.is_empty()).then(|| {
        let (least, most) = (bytes(first.memory_bytes.0), bytes(first.memory_bytes.1));
        format!(
            "To find {} dirty pages and protect them again in {least} to {most} of guest memory: {}.",
            first.dirty_pages,
            parts.join("; ")
        )
    })
}

/// The points as `60 pages at 4 GiB`, the largest ratio first.
fn points(mut duels: Vec<&Duel>, ratio: fn(&Duel) -> f64) -> String {
    const SHOWN: usize = 4;
    duels.sort_by(|one, other| ratio(other).total_cmp(&ratio(one)));
    let more = duels.len().saturating_sub(SHOWN);
    let shown = duels.iter().take(SHOWN).map(|duel| {
        let vcpus = if duel.vcpus == 1 { String::new() } else { format!(", {} vCPUs", duel.vcpus) };
        format!(
            "{} {} pages at {}{vcpus} ({})",
            count(duel.dirty_pages),
            duel.pattern,
            bytes(duel.memory_bytes),
            times(ratio(duel))
        )
    });
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

fn won(summary: &Summary, winner: Winner) -> Vec<&Duel> {
    summary.duels.iter().filter(|duel| duel.winner() == winner).collect()
}

fn ring_wins(summary: &Summary) -> Option<String> {
    let duels = won(summary, Winner::Ring);
    let text = points(duels.clone(), |duel| duel.bitmap_over_ring);
    (!duels.is_empty())
        .then(|| format!("Take the ring where memory is large for the pages that get dirty. The bitmap costs more with {text}."))
}

fn bitmap_wins(summary: &Summary) -> Option<String> {
    if summary.duels.is_empty() {
        return None;
    }
    let duels = won(summary, Winner::Bitmap);
    let even = won(summary, Winner::Even).len();
    let text = points(duels.clone(), |duel| 1.0 / duel.bitmap_over_ring.max(1e-9));
    let even = if even > 0 { format!(" At {even} of {} points the two are even.", summary.duels.len()) } else { String::new() };
    Some(if duels.is_empty() {
        format!("The bitmap is nowhere clearly cheaper here.{even}")
    } else {
        format!(
            "Take the bitmap where a large share of a small memory gets dirty in each epoch. The ring costs more with {text}.{even}"
        )
    })
}

fn bound(summary: &Summary) -> Option<String> {
    (!summary.duels.is_empty()).then(|| {
        "Only the ring bounds an epoch by itself: with a bitmap, nothing but a timer ends it, however much the guest writes."
            .to_owned()
    })
}

fn fault(summary: &Summary) -> Option<String> {
    let fault = summary.fault_us_per_page?;
    Some(format!(
        "Either way, the first write to a page in an epoch costs the guest {} on this machine, beyond the pause: few long epochs are cheaper than many short ones for a \
         guest that writes to the same pages.",
        time(fault)
    ))
}

fn floor(summary: &Summary) -> Option<String> {
    let most = |vcpus| {
        let of = summary.above_floor.iter().filter(|row| row.tracker == "ring" && row.vcpus == vcpus);
        let of = of.filter(|row| (60..=4000).contains(&row.dirty_pages));
        of.max_by(|one, other| one.above_us.total_cmp(&other.above_us))
    };
    let one = most(1)?;
    let two = most(2).map(|row| format!("; with two vCPUs by {}", time(row.above_us.max(0.0)))).unwrap_or_default();
    Some(format!(
        "The ring's median pause exceeds the plain copy of the same pages by at most {} from 60 to 4,000 pages with one vCPU ({} against {} at {} pages){two}.",
        time(one.above_us.max(0.0)),
        time(one.pause_us),
        time(one.floor_us),
        count(one.dirty_pages)
    ))
}

fn budget(summary: &Summary) -> Option<String> {
    let best = summary.best_ring_entries?;
    let cost = summary.budgets.iter().find(|cost| cost.ring_entries == best)?;
    let least = summary.budgets.iter().map(|cost| cost.cycle_us_per_page).min_by(f64::total_cmp)?;
    Some(format!(
        "For a guest that fills its ring, a budget of {} pages is best: {} a page, run and pause together, with a median pause of {}; the best of all sizes is {} a page, \
         and a larger budget only makes the pause longer.",
        count(best.into()),
        time(cost.cycle_us_per_page),
        time(cost.pause_us),
        time(least)
    ))
}

fn streams(results: &Results) -> Option<String> {
    let of = |early: &'static str| {
        results.streams().filter(move |row| (row.tracker, row.early) == ("ring", early) && row.interval_us.is_none())
    };
    // What a ring can hold without rounds.
    let whole = of("off").filter(|row| row.whole_epochs());
    let plain = whole.max_by_key(|row| row.dirty_pages)?;
    let early = of("auto").find(|row| row.dirty_pages == plain.dirty_pages)?;
    let most = of("auto").max_by_key(|row| row.dirty_pages)?;
    Some(format!(
        "Of a guest that writes {} pages between two cuts, one after the other, a cut takes {} with rounds and {} without, and the epoch is durable after {} and {}. \
         With {} pages and rounds it takes {}.",
        count(plain.dirty_pages),
        time(early.pause_us.p50),
        time(plain.pause_us.p50),
        time(early.durable_after_us.p50),
        time(plain.durable_after_us.p50),
        count(most.dirty_pages),
        time(most.pause_us.p50)
    ))
}

fn hot(results: &Results) -> Option<String> {
    let over = || results.hot().map(|row| row.over_least);
    let (least, most) = (over().min_by(f64::total_cmp)?, over().max_by(f64::total_cmp)?);
    let standard = results.hot().next()?;
    Some(format!(
        "Faults and copies with the hot set are {least:.2} to {most:.2} times the least that any set could have come to on the same {} traces. At {} checkpoints a second it slows \
         the paced guest down by {:.1}%, {:.1}% without one.",
        over().count(),
        standard.wanted_per_s,
        standard.slowdown_percent,
        standard.none_slowdown_percent
    ))
}

fn rate(results: &Results) -> Option<String> {
    let ring = || results.rates().filter(|row| row.tracker == "ring" && row.burst_us.is_some());
    let at = |rate: u32| ring().find(|row| row.wanted_per_s == Some(rate));
    let parts: Vec<String> = [20, 200]
        .into_iter()
        .filter_map(|rate| at(rate).map(|row| format!("{:.1}% of its time at {rate} checkpoints a second", row.slowdown_percent)))
        .collect();
    (!parts.is_empty()).then(|| {
        format!(
            "Under the whole engine, with a chain on disk, a paced guest (2,000 page writes in each 50 ms) loses {}.",
            parts.join(", ")
        )
    })
}

/// A row's place in a few words, for tables and plots.
pub(super) fn place(row: &Row) -> String {
    let vcpus = if row.vcpus == 1 { String::new() } else { format!(", {} vCPUs", row.vcpus) };
    format!("{}, {} {} pages{vcpus}", bytes(row.memory_bytes), count(row.dirty_pages), row.pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_said_as_people_say_them() {
        assert_eq!([0, 60, 999, 1000, 65_536, 1_234_567].map(count), ["0", "60", "999", "1,000", "65,536", "1,234,567"]);
        assert_eq!(
            [0.0, 5.74, 41.6, 338.2, 1480.0, 23_900.0].map(time),
            ["0 µs", "5.7 µs", "42 µs", "338 µs", "1.5 ms", "24 ms"]
        );
        assert_eq!([60 << 30, 256 << 20, 3 << 29, 512].map(bytes), ["60 GiB", "256 MiB", "1536 MiB", "512 bytes"]);
        assert_eq!([1.44, 58.6].map(times), ["1.4 times", "59 times"]);
    }
}
