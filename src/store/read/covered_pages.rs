//! Which pages a version was found for.

use std::collections::BTreeMap;

use crate::page::{Gfn, PageRun};

/// A set of frames as disjoint runs that do not touch. Its size follows the number of mentions in
/// the chain, and not the size of guest memory, which a store may claim to be anything.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// First frame, frame after the last.
    runs: BTreeMap<u64, u64>,
    frames: u64,
}

impl Found {
    /// How many frames there are.
    pub(crate) const fn frames(&self) -> u64 {
        self.frames
    }

    /// Adds a run, and tells `fresh` which parts of it are new. A run beyond the last frame number
    /// is cut.
    pub(crate) fn add(&mut self, run: PageRun, mut fresh: impl FnMut(PageRun)) {
        let (first, end) = (run.first.0, run.end().map_or(u64::MAX, |end| end.0));
        let mut begin = first;
        if let Some((&before, before_end)) = self.runs.range_mut(..=first).next_back() {
            if *before_end >= end {
                return;
            }
            if *before_end >= first {
                begin = before;
            }
        }
        // Swallows every run from the one that touches the beginning to the one that touches the
        // end.
        let mut at = first;
        let mut last = end;
        let mut tell = |from: u64, to: u64| {
            if from < to {
                self.frames += to - from;
                fresh(PageRun { first: Gfn(from), count: to - from });
            }
        };
        while let Some((&next, &next_end)) = self.runs.range(begin..=end).next() {
            tell(at, next.max(at));
            at = at.max(next_end);
            last = last.max(next_end);
            self.runs.remove(&next);
        }
        tell(at, end);
        self.runs.insert(begin, last);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn found_is_a_set(runs in prop::collection::vec((0u64..200, 1u64..40), 0..60)) {
            let (mut found, mut model) = (Found::default(), BTreeSet::new());
            for (first, count) in runs {
                let mut fresh = BTreeSet::new();
                found.add(PageRun { first: Gfn(first), count }, |run| fresh.extend(run.first.0..run.first.0 + run.count));
                let expected: BTreeSet<_> = (first..first + count).filter(|frame| model.insert(*frame)).collect();
                prop_assert_eq!(fresh, expected);
                prop_assert_eq!(found.frames(), model.len() as u64);
                let contains = |frame: u64| found.runs.range(..=frame).next_back().is_some_and(|(_, end)| frame < *end);
                prop_assert!((0..250).all(|frame| contains(frame) == model.contains(&frame)));
                let ends: Vec<_> = found.runs.iter().collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }
}
