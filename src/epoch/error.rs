//! Why an engine could not do as asked.

use std::io;
use std::sync::Arc;

use super::guest::GuestError;
use super::memory::MemoryError;
use super::tracker::TrackerError;
use crate::format::ChainId;
use crate::page::EpochId;

/// Why the engine can't go on, or could not take an epoch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Memory for staging, or the threads.
    #[error("taking memory for {slots} slots of {budget_pages} pages, or starting threads")]
    Start {
        /// Slots.
        slots: usize,
        /// Pages of each.
        budget_pages: usize,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The chain is not at the epoch that the guest's memory is at.
    #[error("the chain ends at epoch {found}, and the guest is at epoch {expected}")]
    OtherEpoch {
        /// Where the guest is.
        expected: EpochId,
        /// Where the chain is.
        found: EpochId,
    },
    /// The VMM could not park or capture.
    #[error("the VMM could not {action}")]
    Guest {
        /// What was asked of it.
        action: &'static str,
        /// Its error.
        #[source]
        source: GuestError,
    },
    /// Tracking was lost and could not be begun anew.
    #[error("tracking could not be begun anew after {lost}")]
    Tracking {
        /// Why it was lost.
        lost: String,
        /// Why it stays so.
        #[source]
        source: TrackerError,
    },
    /// Guest memory is not what the tracker says.
    #[error("guest memory can't be read or put back")]
    Memory(#[source] MemoryError),
    /// An epoch could not be stored, and the options say to stop then.
    #[error("{} could not be stored", behind(*newest))]
    Storage {
        /// The newest epoch in the chain that is known to be durable, or with durability `none` the
        /// newest appended.
        newest: EpochId,
        /// The storage's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pipeline's threads are gone.
    #[error("the engine's threads have ended")]
    Ended,
    /// The options did not plan for going back.
    #[error("going back to the last cut was not planned when the engine was started")]
    NoRollback,
    /// There is nothing to go back to.
    #[error("no cut was taken yet: there is none to go back to")]
    NoCut,
    /// The VMM could not put state back: memory is that of the cut, and state is not.
    #[error("the VMM could not put back the state of epoch {epoch}")]
    Restore {
        /// The epoch.
        epoch: EpochId,
        /// Its error.
        #[source]
        source: GuestError,
    },
    /// The engine gave up before, with another error: nothing is taken any more.
    #[error("the engine has halted the guest")]
    Halted,
}

/// Why a sink gets no epochs.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeftReason {
    /// It was attached behind the first epoch, or where another chain ends, and was not asked to
    /// join.
    #[error("it has not joined yet")]
    NotJoined,
    /// It could not do as asked.
    #[error("it failed")]
    Failed(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The epochs went on from another one than its newest.
    #[error("the epochs go on from another one than its newest")]
    OtherEpoch,
    /// The epoch that it was to begin with could not be stored by the others.
    #[error("the epoch that it was to begin with could not be stored")]
    NoEpoch,
    /// Its thread has ended.
    #[error("its thread has ended")]
    Ended,
}

/// Why a sink could not be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// It has another chain.
    #[error("the sink has {found:?}, and the epochs are those of {expected:?}")]
    OtherChain {
        /// The chain of the engine's first sink.
        expected: ChainId,
        /// The chain of the one that was attached.
        found: ChainId,
    },
    /// Its thread could not be started.
    #[error("starting the thread of a sink")]
    Thread(#[source] io::Error),
}

/// Why a sink could not be asked to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// There is none with this number.
    #[error("there is no sink {0}")]
    NoSink(usize),
    /// It has every epoch.
    #[error("sink {0} has every epoch")]
    Follows(usize),
    /// A base is being copied, for this sink or another.
    #[error("a base is being copied, and there is one at a time")]
    Busy,
}

fn behind(newest: EpochId) -> String {
    if newest == EpochId::NONE { "the first epoch".to_owned() } else { format!("epochs behind {newest}") }
}
