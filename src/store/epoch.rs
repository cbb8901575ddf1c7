//! An epoch that a chain holds.

use super::names::SegmentNumbers;
use crate::format::Commit;

/// An epoch of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Epoch {
    /// What its commit frame says.
    pub commit: Commit,
    /// Its identity: what the next epoch names as its parent.
    pub identity: u128,
    /// The segment that it lies in.
    pub segment: SegmentNumbers,
    /// Where its first frame begins, in bytes from the segment's beginning.
    pub offset: u64,
    /// Where its state frame begins.
    pub state_offset: u64,
    /// Where its commit frame begins.
    pub commit_offset: u64,
}
