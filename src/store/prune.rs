//! What a prune would do to a chain.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::branch::{branches_on, pinned};
use super::compact::SizedEpoch;
use super::directory::Directory;
use super::medium::Medium;
use super::read::again;
use super::{Chain, ReadOptions, Retention, Segment, StoreError};
use crate::format::{BLOCK_PAGES, ClockJump, Index, IndexError, Mention};
use crate::page::{EpochId, PAGE_SIZE_U64};

/// What a prune would do to a chain, of the epochs that are its own: those that a branch shares with another chain are the other's to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrunePlan {
    /// The epochs that stay restorable, rising.
    pub kept: Vec<EpochId>,
    /// The epochs that go, rising. What they hold of pages that kept ones need stays.
    pub dropped: Vec<EpochId>,
    /// Bytes of the chain's segments now.
    pub bytes: u64,
    /// About as many bytes they will have. An epoch that takes over what dropped ones hold for it stores those pages whole; as many bytes
    /// each are assumed as whole pages of the chain have now.
    pub bytes_expected: u64,
    /// Where the clock was set while the chain was written, of what can be told by the epochs that there are. How old they are is counted without it.
    pub clock_jumps: Vec<ClockJump>,
}

/// Plans what `retention` keeps and drops of a chain of the store in `dir`: `main`, or a branch. Epochs that branches begin at are kept. Changes
/// nothing and takes no lock: until the prune, writers may append and branches may be made.
///
/// # Errors
/// As [`Chain::open_branch`]; a chain of a format before 3; damage, with which nothing is pruned; a branch whose identity is damaged; what the operating system refuses.
pub fn plan_prune(dir: &Path, branch: &str, retention: &Retention) -> Result<PrunePlan, StoreError> {
    let medium: Arc<dyn Medium> = Arc::new(Directory::open(dir)?);
    again(|| {
        let chain = Chain::open_on_with(dir, &medium, branch, ReadOptions::default())?;
        plan_prune_on(dir, medium.as_ref(), &chain, branch, retention)
    })
}

pub(super) fn plan_prune_on(
    root: &Path,
    medium: &dyn Medium,
    chain: &Chain,
    branch: &str,
    retention: &Retention,
) -> Result<PrunePlan, StoreError> {
    if let Some(damage) = chain.damage().first() {
        return Err(StoreError::Damaged(damage.clone()));
    }
    let own = chain.own();
    let mut epochs = Vec::new();
    for segment in own {
        for number in 0..segment.epochs()? {
            epochs.push(SizedEpoch::new(&segment.epoch(number)?));
        }
    }
    let times: Vec<_> = epochs.iter().map(|epoch| epoch.cut).collect();
    let kept = retention.kept(&times, &pinned(&branches_on(root, medium)?, branch));
    let dropped = times.iter().map(|cut| cut.epoch).filter(|epoch| !kept.contains(epoch)).collect();
    let bytes = own.iter().map(Segment::bytes).sum();
    let bytes_expected = if kept.len() == epochs.len() { bytes } else { expected(own, &epochs, &kept)?.about() };
    Ok(PrunePlan { kept: kept.into_iter().collect(), dropped, bytes, bytes_expected, clock_jumps: ClockJump::all(&times) })
}

/// Bytes of the epochs that stay as they are, and of those that are written anew.
pub(super) fn expected(segments: &[Segment], epochs: &[SizedEpoch], kept: &BTreeSet<EpochId>) -> Result<Expected, StoreError> {
    let kept: Vec<_> = kept.iter().copied().collect();
    // Which kept epoch takes over what an epoch holds: itself, or the next one.
    let heir = |epoch: EpochId| kept.partition_point(|kept| *kept < epoch);
    let mut rewritten = vec![false; kept.len()];
    let is_heir = |epoch: EpochId| kept.binary_search(&epoch).is_ok();
    for epoch in epochs.iter().filter(|epoch| !is_heir(epoch.cut.epoch)) {
        if let Some(rewritten) = rewritten.get_mut(heir(epoch.cut.epoch)) {
            *rewritten = true;
        }
    }
    let is_rewritten = |heir: usize| rewritten.get(heir).copied().unwrap_or_default();
    let mut bytes = 0_u64;
    for epoch in epochs.iter().filter(|epoch| is_heir(epoch.cut.epoch)) {
        bytes = bytes.saturating_add(if is_rewritten(heir(epoch.cut.epoch)) { epoch.state_bytes } else { epoch.bytes });
    }
    let (mut whole_bytes, mut whole_pages, mut pages) = (0_u64, 0_u64, 0_u64);
    // Which heir was the last to get a page. Segments come oldest first.
    let mut last_heir: HashMap<u64, usize> = HashMap::new();
    for segment in segments {
        let walked = segment.look(|index| {
            let mut walked = Walked::default();
            for number in 0..index.frames() {
                let place = Segment::place(index, number)?;
                if place.mention == Mention::Whole {
                    walked.whole_bytes = walked.whole_bytes.saturating_add(place.end.saturating_sub(place.offset));
                }
            }
            for number in 0..index.runs() {
                walked.run(index, number, &heir)?;
            }
            Ok(walked)
        })?;
        whole_bytes = whole_bytes.saturating_add(walked.whole_bytes);
        whole_pages = whole_pages.saturating_add(walked.whole_pages);
        for (gfn, heir) in walked.heirs {
            if is_rewritten(heir) && last_heir.insert(gfn, heir) != Some(heir) {
                pages += 1;
            }
        }
    }
    let page_bytes = whole_bytes.checked_div(whole_pages).unwrap_or(PAGE_SIZE_U64);
    Ok(Expected { bytes, pages, page_bytes })
}

/// What epochs come to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Bytes of what stays as it is.
    bytes: u64,
    /// Pages that are stored whole.
    pages: u64,
    /// Bytes that a whole page has now, on average.
    page_bytes: u64,
}

impl Expected {
    fn about(self) -> u64 {
        self.bytes.saturating_add(self.pages.saturating_mul(self.page_bytes))
    }

    /// With pages that take a quarter more; none takes more than itself.
    pub(super) fn at_most(self) -> u64 {
        let page_bytes = (self.page_bytes + self.page_bytes / 4).min(PAGE_SIZE_U64);
        let blocks = self.pages.div_ceil(BLOCK_PAGES as u64);
        self.bytes.saturating_add(self.pages.saturating_mul(page_bytes + 4)).saturating_add(blocks.saturating_mul(80))
    }
}

/// What the index of a segment says.
#[derive(Debug, Default)]
struct Walked {
    whole_bytes: u64,
    whole_pages: u64,
    /// Pages that are not zero, and whose they will be.
    heirs: Vec<(u64, usize)>,
}

impl Walked {
    fn run(&mut self, index: &Index, number: u64, heir: &impl Fn(EpochId) -> usize) -> Result<(), IndexError> {
        let run = index.run(number)?;
        // A run of more pages is not all in one block, whatever an index says.
        let pages = run.run.count.min(BLOCK_PAGES as u64);
        let mut last = None;
        for mention in run.mentions {
            let frame = index.frame(index.mention(mention)?.into())?;
            if frame.mention == Mention::Whole {
                self.whole_pages = self.whole_pages.saturating_add(pages);
            }
            let heir = heir(index.epoch(frame.epoch.into())?.epoch);
            if frame.mention != Mention::Zeros && last.replace(heir) != Some(heir) {
                self.heirs.extend((0..pages).map(|page| (run.run.first.0.saturating_add(page), heir)));
            }
        }
        Ok(())
    }
}
