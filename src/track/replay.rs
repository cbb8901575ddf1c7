//! What a hot set makes of a guest whose writes are known, and the least that any could. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::hot::HotSet;
use crate::kvm::ring::DirtyPage;
use crate::page::Gfn;

/// What tracking a guest came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// First writes to protected pages.
    pub faults: u64,
    /// Pages copied at cuts.
    pub copies: u64,
    /// Members whose content was looked at.
    pub looks: u64,
}

impl Tracked {
    /// In the unit of both costs. A look reads a page and computes a hash of it: two copies.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are fewer than 2^52")]
    pub const fn cost(&self, fault: f64, copy: f64) -> f64 {
        self.faults as f64 * fault + (self.copies + 2 * self.looks) as f64 * copy
    }
}

/// Replays epochs, each given by the pages that the guest wrote in it, below `frames`: with a hot
/// set of at most `most` pages, in which a fault is worth so many copies. Without one where `most`
/// is 0.
#[must_use]
pub fn replay(epochs: &[Vec<Gfn>], frames: u64, most: usize, worth: u32) -> Tracked {
    let mut hot = HotSet::new(frames, most);
    hot.set_worth(worth);
    let mut writes: BTreeMap<Gfn, u64> = BTreeMap::new();
    let mut tracked = Tracked::default();
    for written in epochs {
        let members: BTreeSet<Gfn> = hot.iter().collect();
        let mut protect = Vec::new();
        let mut listed = 0;
        for gfn in written {
            *writes.entry(*gfn).or_default() += 1;
            if !members.contains(gfn) {
                listed += 1;
                protect.extend(hot.listed(*gfn, DirtyPage { slot: 0, offset: gfn.0 }));
            }
        }
        tracked.faults += listed as u64;
        tracked.copies += (members.len() + listed) as u64;
        let look = |gfn: Gfn| {
            tracked.looks += 1;
            Some(writes.get(&gfn).copied().unwrap_or_default())
        };
        let _ = hot.look(listed - protect.len(), look, &mut protect);
        hot.end();
    }
    tracked
}

/// The least that any set of at most `most` pages could have cost that stays the same, for faults
/// and copies that cost so much: its pages are copied in each epoch, and others where they are
/// written.
#[must_use]
pub fn least(epochs: &[Vec<Gfn>], most: usize, fault: f64, copy: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts are fewer than 2^52")]
    let number = |count: usize| count as f64;
    let mut writes: BTreeMap<Gfn, usize> = BTreeMap::new();
    for gfn in epochs.iter().flatten() {
        *writes.entry(*gfn).or_default() += 1;
    }
    let cold: f64 = writes.values().map(|count| number(*count) * (fault + copy)).sum();
    let mut gains: Vec<f64> = writes
        .values()
        .map(|count| number(*count) * (fault + copy) - number(epochs.len()) * copy)
        .filter(|gain| *gain > 0.0)
        .collect();
    gains.sort_by(|one, other| other.total_cmp(one));
    cold - gains.iter().take(most).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(pages: impl IntoIterator<Item = u64>) -> Vec<Gfn> {
        pages.into_iter().map(Gfn).collect()
    }

    #[test]
    fn without_a_set_every_write_is_a_fault_and_a_copy() {
        let epochs = vec![pages(0..100); 50];
        assert_eq!(replay(&epochs, 1000, 0, 10), Tracked { faults: 5000, copies: 5000, looks: 0 });
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} and not {expected}");
        close(least(&epochs, 0, 6.0, 0.5), 5000.0 * 6.5);
        close(least(&epochs, 1000, 6.0, 0.5), 5000.0 * 0.5);
        close(least(&epochs, 40, 6.0, 0.5), 60.0 * 50.0 * 6.5 + 40.0 * 50.0 * 0.5);
    }

    #[test]
    fn of_hot_and_cold_pages_the_hot_ones_are_found() {
        // A hundred pages in each epoch, a hundred others in every tenth, and ever new ones.
        let epochs: Vec<_> = (0..500)
            .map(|epoch| pages((0..100).chain((100..200).filter(|page| page % 10 == epoch % 10)).chain([1000 + epoch])))
            .collect();
        let (fault, copy) = (6.0, 0.3);
        let tracked = replay(&epochs, 2000, 1000, 20);
        let (cost, least) = (tracked.cost(fault, copy), least(&epochs, 1000, fault, copy));
        assert!(cost < 1.25 * least && tracked.looks > 0, "{tracked:?}: {cost}, least {least}");
        assert!(replay(&epochs, 2000, 0, 20).cost(fault, copy) > 3.0 * least);
    }
}
