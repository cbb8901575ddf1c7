//! From a budget of pages to the size of the rings.

use crate::kvm::ring::RingSize;

/// A budget that no ring fits into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// The smallest rings hold more than the budget.
    #[error("a budget of {budget} pages for {vcpus} vCPUs: the smallest that works is {smallest}")]
    TooSmall {
        /// Pages asked for.
        budget: u64,
        /// vCPUs.
        vcpus: u32,
        /// The smallest budget for so many vCPUs.
        smallest: u64,
    },
    /// The rings that were asked for hold more than the budget.
    #[error("{vcpus} rings of {entries} entries do not fit in a budget of {budget} pages")]
    RingsTooLarge {
        /// Pages asked for.
        budget: u64,
        /// vCPUs.
        vcpus: u32,
        /// Entries of each ring.
        entries: u32,
    },
}

/// How many pages may be left writable and taken into every epoch ([`HotSet`](super::HotSet)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HotPages {
    /// None.
    #[default]
    Off,
    /// What the rings leave of the budget, for which they are made small enough to leave half of
    /// it, where rings can be so small.
    Auto,
    /// So many.
    Pages(u64),
}

/// How a budget is shared between the rings, the hot set and the VMM's own writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlan {
    /// The size of each vCPU's ring.
    pub ring: RingSize,
    /// The most pages in the hot set.
    pub hot: u64,
    /// Pages that the VMM may write between two cuts; reaching it ends an epoch as a full ring
    /// does.
    pub share: u64,
}

/// What a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingWish {
    /// The most pages in an epoch.
    pub budget: u64,
    /// vCPUs, each with a ring.
    pub vcpus: u32,
    /// Pages of the budget that the VMM needs at least.
    pub share_min: u64,
    /// The size of the rings; `None`: as fits.
    pub ring: Option<RingSize>,
    /// The hot set.
    pub hot: HotPages,
    /// Whether rounds empty the rings while the epoch goes on.
    pub early: bool,
}

/// With rounds, rings have this part of the budget: what may be listed until the next chance to end
/// an epoch has to fit beside what it has. Not less: a page that a full ring lists and that is
/// written again in the same epoch costs one more fault.
const EARLY_PART: u64 = 2;

impl RingPlan {
    /// The largest rings, up to `ring_max`, whose entries times `vcpus` fit in the budget and leave
    /// `share_min` to the VMM and what `hot` says; with rounds, smaller ones. Or rings of the size
    /// that is wished for.
    ///
    /// All entries count and not just those up to the soft limit, since the kernel may use the
    /// reserve: only so is the budget a bound.
    ///
    /// # Errors
    /// [`BudgetError`].
    pub fn new(wish: RingWish, ring_max: RingSize) -> Result<Self, BudgetError> {
        let RingWish { budget, vcpus, share_min, ring, hot, early } = wish;
        let rings_of = |size: RingSize| u64::from(size.entries()) * u64::from(vcpus.max(1));
        let fixed = share_min.saturating_add(if let HotPages::Pages(pages) = hot { pages } else { 0 });
        let smallest = rings_of(RingSize::MIN).saturating_add(fixed);
        if budget.checked_sub(fixed).is_none_or(|left| left < rings_of(RingSize::MIN)) {
            return Err(BudgetError::TooSmall { budget, vcpus, smallest });
        }
        let ring = match ring {
            Some(ring) if rings_of(ring) > budget - fixed => {
                return Err(BudgetError::RingsTooLarge { budget, vcpus, entries: ring.entries() });
            }
            Some(ring) => ring,
            None => {
                let for_rings = match (early, hot) {
                    (true, _) => (budget - fixed) / EARLY_PART,
                    (false, HotPages::Auto) => (budget - fixed) / 2,
                    (false, _) => budget - fixed,
                };
                let each = for_rings / u64::from(vcpus.max(1));
                let entries = u32::try_from(each).map_or(ring_max.entries(), |each| 1 << each.max(1).ilog2());
                RingSize::new(entries.min(ring_max.entries())).unwrap_or(RingSize::MIN)
            }
        };
        let left = budget - rings_of(ring);
        let hot = match hot {
            HotPages::Off => 0,
            HotPages::Auto if early => (left - share_min).min(budget / 2),
            HotPages::Auto => left - share_min,
            HotPages::Pages(pages) => pages,
        };
        // With rounds, what is left of the budget is for the pages that they take.
        Ok(Self { ring, hot, share: if early { share_min } else { left - hot } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(budget: u64, vcpus: u32) -> Result<(u32, u64), BudgetError> {
        let max = RingSize::new(65_536).expect("a ring");
        RingPlan::new(wish(budget, vcpus), max).map(|plan| (plan.ring.entries(), plan.share))
    }

    fn wish(budget: u64, vcpus: u32) -> RingWish {
        RingWish { budget, vcpus, share_min: 0, ring: None, hot: HotPages::Off, early: false }
    }

    #[test]
    fn the_largest_power_of_two_that_fits() {
        assert_eq!(plan(256, 1), Ok((256, 0)));
        assert_eq!(plan(512, 1), Ok((512, 0)));
        assert_eq!(plan(512, 2), Ok((256, 0)));
        assert_eq!(plan(2_000, 1), Ok((1_024, 976)));
        assert_eq!(plan(2_000, 2), Ok((512, 976)));
        assert_eq!(plan(20_000, 2), Ok((8_192, 3_616)));
        assert_eq!(plan(u64::MAX, 1), Ok((65_536, u64::MAX - 65_536)));
    }

    #[test]
    fn a_small_budget_is_refused_with_the_smallest_that_works() {
        for (budget, vcpus) in [(0, 1), (255, 1), (511, 2), (767, 3)] {
            let Err(BudgetError::TooSmall { smallest, .. }) = plan(budget, vcpus) else {
                panic!("{budget} for {vcpus} was taken")
            };
            assert!(plan(smallest, vcpus).is_ok());
            assert!(plan(smallest - 1, vcpus).is_err());
        }
    }

    #[test]
    fn a_share_for_the_vmm_is_kept() {
        let max = RingSize::new(65_536).expect("a ring");
        let plan = RingPlan::new(RingWish { share_min: 88, ..wish(600, 2) }, max).expect("it fits exactly");
        assert_eq!((plan.ring.entries(), plan.share), (256, 88));
        let less = RingPlan::new(RingWish { share_min: 88, ..wish(599, 2) }, max);
        assert!(matches!(less, Err(BudgetError::TooSmall { smallest: 600, .. })));
        let asked = RingSize::new(1_024).expect("a ring");
        assert!(matches!(
            RingPlan::new(RingWish { ring: Some(asked), ..wish(2_000, 2) }, max),
            Err(BudgetError::RingsTooLarge { entries: 1_024, .. })
        ));
    }

    #[test]
    fn a_hot_set_is_part_of_the_budget() {
        let max = RingSize::new(65_536).expect("a ring");
        let plan = |budget, vcpus, share_min, hot| {
            let wish = RingWish { share_min, hot, ..wish(budget, vcpus) };
            RingPlan::new(wish, max).map(|plan| (plan.ring.entries(), plan.hot, plan.share))
        };
        assert_eq!(plan(4096, 1, 0, HotPages::Auto), Ok((2048, 2048, 0)));
        assert_eq!(plan(4096, 2, 96, HotPages::Auto), Ok((512, 2976, 96)));
        assert_eq!(plan(300, 1, 0, HotPages::Auto), Ok((256, 44, 0)), "rings come first");
        assert_eq!(plan(256, 1, 0, HotPages::Auto), Ok((256, 0, 0)));
        assert_eq!(plan(4096, 1, 0, HotPages::Pages(500)), Ok((2048, 500, 1548)));
        let refused = plan(700, 2, 0, HotPages::Pages(189));
        assert_eq!(refused, Err(BudgetError::TooSmall { budget: 700, vcpus: 2, smallest: 701 }));
        assert!(plan(701, 2, 0, HotPages::Pages(189)).is_ok());
        assert!(plan(u64::MAX, 2, 0, HotPages::Pages(u64::MAX)).is_err());
    }

    #[test]
    fn rounds_have_half_of_the_budget() {
        let max = RingSize::new(65_536).expect("a ring");
        let plan = |budget, vcpus, share_min, hot| {
            let wish = RingWish { share_min, hot, early: true, ..wish(budget, vcpus) };
            RingPlan::new(wish, max).map(|plan| (plan.ring.entries(), plan.hot, plan.share))
        };
        assert_eq!(plan(200_000, 2, 0, HotPages::Off), Ok((32_768, 0, 0)));
        assert_eq!(plan(4096, 1, 0, HotPages::Auto), Ok((2048, 2048, 0)));
        assert_eq!(plan(4096, 2, 96, HotPages::Auto), Ok((512, 2048, 96)));
        assert_eq!(plan(300, 1, 0, HotPages::Auto), Ok((256, 44, 0)), "as without, where there is no room");
        assert!(plan(255, 1, 0, HotPages::Off).is_err());
    }
}
