//! Why a check failed.

use std::error::Error;
use std::time::Duration;

use super::page_state::PageState;
use crate::kvm::host::HostError;
use crate::kvm::memslot::MemslotError;
use crate::kvm::ring::{Lost, RingError};

/// Why a check failed: something is missing, or this kernel does otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// KVM can't be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The rings: there are none, or a reset failed.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The guest's memory.
    #[error(transparent)]
    Memslot(#[from] MemslotError),
    /// The guest could not be made or run.
    #[error("{step}")]
    Setup {
        /// What was being done; the ioctl's name where it was one.
        step: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The guest left other than by the port that it writes to when it is done.
    #[error("the guest left with {exit}")]
    Exit {
        /// The exit, as kvm-ioctls calls it.
        exit: String,
    },
    /// Code at CPL 0 is interpreted: the same loop takes many times as long there as at CPL 3.
    #[error("a loop takes {at_cpl0:?} at CPL 0 and {at_cpl3:?} at CPL 3")]
    Interpreted {
        /// The least time at CPL 0.
        at_cpl0: Duration,
        /// The least time at CPL 3.
        at_cpl3: Duration,
    },
    /// A ring was never full, although more pages were written than it has entries.
    #[error("a ring of {entries} entries is never full")]
    NeverFull {
        /// The ring's entries.
        entries: u32,
    },
    /// The guest did not come to an end.
    #[error("the guest was not done after {} s", limit.as_secs_f64())]
    Time {
        /// The time that it had.
        limit: Duration,
    },
    /// A page that was written is not listed: writes would be missed.
    #[error(
        "round {round}: of {expected} pages that were written, {missing} are not listed, the first of them page {offset}: {state}"
    )]
    NotListed {
        /// The round, from 1 on.
        round: u64,
        /// The first such page's index in the memslot.
        offset: u64,
        /// What had become of it before.
        state: PageState,
        /// How many such pages there are in this round.
        missing: usize,
        /// How many pages were to be listed.
        expected: usize,
    },
    /// A page is listed that should not be: nothing would be missed, and nothing gained.
    #[error("round {round}: {extra} pages too many are listed, the first of them page {offset}: {state}")]
    Listed {
        /// The round, from 1 on.
        round: u64,
        /// The first such page's index in the memslot.
        offset: u64,
        /// What had become of it before. It was not written in this round, unless this is
        /// [`PageState::Writable`].
        state: PageState,
        /// How many such pages there are in this round.
        extra: usize,
    },
    /// The reset says that tracking was lost.
    #[error("round {round}")]
    Lost {
        /// The round, from 1 on.
        round: u64,
        /// How.
        #[source]
        lost: Lost,
    },
    /// A page does not hold what the guest was to write.
    #[error("round {round}: page {offset} holds {found} instead of {expected}")]
    Content {
        /// The round, from 1 on.
        round: u64,
        /// The page's index in the memslot.
        offset: u64,
        /// The round of its last write, 0 for none.
        expected: u64,
        /// The word that it begins with.
        found: u64,
    },
}

impl Refused {
    pub(super) fn setup(step: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Setup { step, source: Box::new(source) }
    }
}
