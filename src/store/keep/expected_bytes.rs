//! How many bytes the epochs that are kept will take.

use std::collections::{BTreeSet, HashMap};

use super::epoch_bytes::SizedEpoch;
use crate::format::{BLOCK_PAGES, Index, IndexError, Mention};
use crate::page::{EpochId, PAGE_SIZE_U64};
use crate::store::error::StoreError;
use crate::store::read::Segment;

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
    pub(super) fn about(self) -> u64 {
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
