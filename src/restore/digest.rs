//! One number for all memory of an epoch, and one for its state.

use super::eager_fill::PageTarget;
use super::error::{RestoreError, TargetError};
use super::plan::Plan;
use crate::format::MemoryDigest;
use crate::page::{EpochId, Gfn, PageBytes};
use crate::store::Chain;

impl Plan<'_> {
    /// The digest of what this plan restores.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn digest(&self) -> Result<Digest, RestoreError> {
        let mut memory = MemoryDigest::default();
        self.fill(&mut memory, &mut |_, _| {})?;
        Ok(Digest { memory, state: self.state_hash })
    }
}

impl PageTarget for MemoryDigest {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        self.add_page(gfn, page);
        Ok(())
    }
}

/// A digest of all memory and all state of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Of memory: what an audit of the epoch holds.
    pub memory: MemoryDigest,
    /// Of state: xxh3-128 of the state frame's payload, unpacked.
    pub state: u128,
}

/// Computes the digest of an epoch from the chain.
///
/// # Errors
/// As [`Plan::new`] and [`Plan::fill`].
pub fn digest(chain: &Chain, epoch: EpochId) -> Result<Digest, RestoreError> {
    Plan::new(chain, epoch)?.digest()
}
