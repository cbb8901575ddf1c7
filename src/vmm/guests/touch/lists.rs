//! Which pages each pass has. Pure.

use std::collections::HashSet;
use std::ops::Range;

use super::options::{Options, Pattern};
use crate::vmm::guests::random::random;

/// How much larger than a pass the working set of [`Pattern::Zipf`] is.
const ZIPF_SPREAD: u64 = 16;

/// The lists of all passes: places, from 0 to below `places`, which has at least the pages of a
/// pass. No place comes twice in a list.
pub(super) fn lists(options: &Options, places: u64) -> Vec<Vec<u64>> {
    let pages = options.pages();
    let mut random = Random(options.seed());
    match options.pattern() {
        Pattern::Sequential => {
            (0..options.lists()).map(|list| (list * pages..(list + 1) * pages).map(|place| place % places).collect()).collect()
        }
        Pattern::Uniform => (0..options.lists()).map(|_| random.distinct(0..places, pages, &[])).collect(),
        Pattern::Zipf => {
            let spread = (pages * ZIPF_SPREAD).min(places);
            (0..options.lists()).map(|_| random.zipf(spread, pages)).collect()
        }
        Pattern::HotCold => {
            let hot = random.distinct(0..places, (pages * 9 / 10).max(1), &[]);
            let list = |_| {
                let cold = random.distinct(0..places, pages - hot.len() as u64, &hot);
                let mut list = [hot.as_slice(), &cold].concat();
                random.shuffle(&mut list);
                list
            };
            (0..options.lists()).map(list).collect()
        }
        Pattern::Same => vec![random.distinct(0..places, pages, &[]); usize::try_from(options.lists()).unwrap_or(1)],
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let (value, state) = random(self.0);
        self.0 = state;
        value
    }

    /// Below `bound`, which is at most 2^32.
    const fn scale(value: u64, bound: u64) -> u64 {
        ((value >> 32) * bound) >> 32
    }

    /// A number from 0 to below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// So many of `range` but none of `not`, in any order. There are as many.
    fn distinct(&mut self, range: Range<u64>, count: u64, not: &[u64]) -> Vec<u64> {
        let width = range.end - range.start;
        let mut taken: HashSet<u64> = not.iter().copied().collect();
        // Where most are free, trying is quick; else all that are free are shuffled.
        if (not.len() as u64 + count) * 2 > width {
            let mut all: Vec<u64> = range.filter(|place| !taken.contains(place)).collect();
            self.shuffle(&mut all);
            all.truncate(usize::try_from(count).unwrap_or(usize::MAX));
            return all;
        }
        let mut list = Vec::new();
        while (list.len() as u64) < count {
            let place = range.start + Self::scale(self.next(), width);
            if taken.insert(place) {
                list.push(place);
            }
        }
        list
    }

    /// So many of the places below `spread`, drawn one after the other with a weight of 1/rank and
    /// not put back, in the order drawn.
    fn zipf(&mut self, spread: u64, count: u64) -> Vec<u64> {
        // The smallest of exponential times with a rate of the weight come first (Efraimidis and
        // Spirakis, "Weighted random sampling with a reservoir", 2006).
        #[expect(clippy::cast_precision_loss, reason = "a weight")]
        let mut times: Vec<(f64, u64)> =
            (0..spread).map(|place| (-(1.0 - self.fraction()).ln() * (place + 1) as f64, place)).collect();
        times.sort_by(|one, other| one.0.total_cmp(&other.0));
        times.into_iter().map(|(_, place)| place).take(usize::try_from(count).unwrap_or(usize::MAX)).collect()
    }

    fn shuffle(&mut self, list: &mut [u64]) {
        for end in (1..list.len()).rev() {
            let other = Self::scale(self.next(), end as u64 + 1);
            list.swap(end, usize::try_from(other).unwrap_or(end));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn made(text: &str, places: u64) -> Vec<HashSet<u64>> {
        let options: Options = text.parse().unwrap();
        let lists = lists(&options, places);
        assert_eq!(lists.len() as u64, options.lists(), "{text}");
        let sets: Vec<HashSet<u64>> = lists.iter().map(|list| list.iter().copied().collect()).collect();
        for (list, set) in lists.iter().zip(&sets) {
            assert_eq!((list.len() as u64, set.len()), (options.pages(), list.len()), "{text}: every page once");
            assert!(set.iter().all(|place| *place < places), "{text}");
        }
        sets
    }

    #[test]
    fn every_pattern_lists_distinct_pages_in_bounds() {
        for (pattern, _) in Pattern::ALL {
            for (pages, places) in [(1, 1), (1, 2), (16, 16), (16, 17), (60, 65_000), (1000, 1100), (1000, 15_000_000)] {
                made(&format!("touch:pattern={pattern},pages={pages},lists=3"), places);
            }
        }
    }

    #[test]
    fn patterns_are_what_they_say() {
        let sequential = made("touch:pattern=sequential,pages=100,lists=5", 300);
        assert!(sequential[0].is_disjoint(&sequential[1]) && sequential[0] == sequential[3], "all memory, then from the start");
        assert_eq!(sequential[1], (100..200).collect());
        let same = made("touch:pattern=same,pages=100,lists=3", 10_000);
        assert!(same[0] == same[1] && same[1] == same[2]);
        let hotcold = made("touch:pattern=hotcold,pages=1000,lists=4", 1_000_000);
        let common = hotcold[1..].iter().fold(hotcold[0].clone(), |common, list| &common & list);
        assert!((900..910).contains(&common.len()), "{}", common.len());
        let uniform = made("touch:pages=1000,lists=2", 100_000);
        let low = uniform[0].iter().filter(|place| **place < 50_000).count();
        assert!((400..600).contains(&low), "{low} of 1000 in the lower half");
        assert!((&uniform[0] & &uniform[1]).len() < 50);
        let zipf = made("touch:pattern=zipf,pages=100,lists=2", 100_000);
        let low = zipf[0].iter().filter(|place| **place < 100).count();
        assert!((30..90).contains(&low) && zipf[0] != zipf[1], "{low} of 100 among the first 100");
        assert!(zipf[0].iter().all(|place| *place < 1600));
    }
}
