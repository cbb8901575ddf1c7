//! What the engine needs of a place to commit to.

use crate::format::{ChainId, Commit};
use crate::page::EpochId;

/// Why a place to commit to could not do as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The epoch in hand is not in the chain, and the chain is as it was before it: the same pages may be offered again in a later
    /// epoch.
    #[error("the epoch could not be appended")]
    Rejected(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What the medium holds is unknown: nothing is taken until [`Sink::reopen`].
    #[error("the chain takes nothing more until it is opened again")]
    Latched(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A chain of epochs that can be appended to. One thread uses it; epochs come one after the other.
///
/// An epoch is any number of [`append`](Self::append) calls followed by one [`commit`](Self::commit), or by
/// [`abort`](Self::abort). Frames are whole, in sequence, and made by [`crate::format::EpochWriter`] for this chain.
pub trait Sink: Send {
    /// The identifier that frames of this chain carry.
    fn chain(&self) -> ChainId;

    /// The newest epoch that was appended whole, or [`EpochId::NONE`].
    fn tip(&self) -> EpochId;

    /// Whether nothing is kept of what is appended. Then nothing is encoded either: epochs have no frames.
    fn discards(&self) -> bool {
        false
    }

    /// Takes some of the frames of `epoch`, which is above [`tip`](Self::tip).
    ///
    /// # Errors
    /// After any error the epoch is gone from the chain, as after [`abort`](Self::abort).
    fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError>;

    /// Takes the last frames of the epoch `commit.epoch` and its commit frame. `parent`, `parent_hash`, `durable` and `bytes_written`
    /// of `commit` are the sink's to fill in. Returns the bytes written for the epoch.
    ///
    /// The epoch is appended then, and durable only after [`sync`](Self::sync).
    ///
    /// # Errors
    /// After any error the epoch is gone from the chain, as after [`abort`](Self::abort).
    fn commit(&mut self, frames: &[u8], commit: Commit) -> Result<u64, SinkError>;

    /// Undoes the `append` calls since the last commit.
    ///
    /// # Errors
    /// [`SinkError::Latched`] where they could not be undone.
    fn abort(&mut self) -> Result<(), SinkError>;

    /// Makes every appended epoch durable and returns the newest.
    ///
    /// # Errors
    /// [`SinkError::Latched`], always: a failed sync cannot be repeated (`docs/format.md`, "Commit protocol").
    fn sync(&mut self) -> Result<EpochId, SinkError>;

    /// Opens the chain again after [`SinkError::Latched`], reading back what is there. Returns the newest epoch found, which is durable.
    ///
    /// # Errors
    /// [`SinkError::Latched`] where that failed; it may be tried again.
    fn reopen(&mut self) -> Result<EpochId, SinkError>;

    /// Syncs and ends the chain in order. With `sync` false (durability `none`) nothing is synced and nothing claims to be durable.
    ///
    /// # Errors
    /// As [`sync`](Self::sync) and [`commit`](Self::commit).
    fn close(&mut self, sync: bool) -> Result<EpochId, SinkError>;
}

/// No chain: epochs are numbered and gone. For a guest that is only ever put back in memory ([`Engine::rollback`](super::Engine::rollback)).
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard {
    tip: EpochId,
}

impl Sink for Discard {
    fn chain(&self) -> ChainId {
        ChainId([0; 16])
    }

    fn tip(&self) -> EpochId {
        self.tip
    }

    fn discards(&self) -> bool {
        true
    }

    fn append(&mut self, _epoch: EpochId, _frames: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    fn commit(&mut self, _frames: &[u8], commit: Commit) -> Result<u64, SinkError> {
        self.tip = commit.epoch;
        Ok(0)
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<EpochId, SinkError> {
        Ok(self.tip)
    }

    fn reopen(&mut self) -> Result<EpochId, SinkError> {
        Ok(self.tip)
    }

    fn close(&mut self, _sync: bool) -> Result<EpochId, SinkError> {
        Ok(self.tip)
    }
}
