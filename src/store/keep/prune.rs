//! What a prune would do to a chain.

use std::path::Path;
use std::sync::Arc;

use super::branches::{branches_on, pinned};
use super::epoch_bytes::SizedEpoch;
use super::expected_bytes::expected;
use super::retention::Retention;
use crate::format::ClockJump;
use crate::page::EpochId;
use crate::store::error::StoreError;
use crate::store::medium::{Directory, Medium};
use crate::store::read::chain::again;
use crate::store::read::{Chain, ReadOptions, Segment};

/// What a prune would do to a chain, of the epochs that are its own: those that a branch shares
/// with another chain are the other's to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrunePlan {
    /// The epochs that stay restorable, rising.
    pub kept: Vec<EpochId>,
    /// The epochs that go, rising. What they hold of pages that kept ones need stays.
    pub dropped: Vec<EpochId>,
    /// Bytes of the chain's segments now.
    pub bytes: u64,
    /// About as many bytes they will have. An epoch that takes over what dropped ones hold for it
    /// stores those pages whole; as many bytes each are assumed as whole pages of the chain have
    /// now.
    pub bytes_expected: u64,
    /// Where the clock was set while the chain was written, of what can be told by the epochs that
    /// there are. How old they are is counted without it.
    pub clock_jumps: Vec<ClockJump>,
}

/// Plans what `retention` keeps and drops of a chain of the store in `dir`: `main`, or a branch.
/// Epochs that branches begin at are kept. Changes nothing and takes no lock: until the prune,
/// writers may append and branches may be made.
///
/// # Errors
/// As [`Chain::open_branch`]; damage, with which nothing is pruned; a branch whose description is
/// damaged; what the operating system refuses.
pub fn plan_prune(dir: &Path, branch: &str, retention: &Retention) -> Result<PrunePlan, StoreError> {
    let medium: Arc<dyn Medium> = Arc::new(Directory::open(dir)?);
    again(|| {
        let chain = Chain::open_on_with(dir, &medium, branch, ReadOptions::default())?;
        plan_prune_on(dir, medium.as_ref(), &chain, branch, retention)
    })
}

pub(in crate::store) fn plan_prune_on(
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
