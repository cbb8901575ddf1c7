//! What the engine needs of a place that epochs go to.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::format::{ChainId, Complete, Head};
use crate::lock::lock;
use crate::page::EpochId;

/// Why a place could not do as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The epoch in hand is not in the chain, and the chain is as it was before it: the same pages
    /// may be offered again in a later epoch.
    #[error("the epoch could not be appended")]
    Rejected(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What the medium holds is unknown: nothing is taken until [`Sink::reopen`].
    #[error("the chain takes nothing more until it is opened again")]
    Latched(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a sink is when an engine gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkStart {
    /// The identifier that frames of its chain carry.
    pub chain: ChainId,
    /// The newest epoch that was appended whole.
    pub head: Head,
    /// The newest that is durable. Where that is an older one, the engine has the sink synced
    /// first. If that fails the sink has to be latched for good: nobody else has what it lacks
    /// then. None: the sink never tells what is durable, and nobody waits for that.
    pub durable: Option<EpochId>,
    /// Whether it keeps anything. Where no sink does, nothing is encoded: epochs have no frames.
    pub keeps: bool,
}

/// A place that epochs go to: a chain on a disk, another host. One thread of the engine's uses it,
/// so that a slow one does not hold the others up; epochs come one after the other.
///
/// An epoch is any number of [`append`](Self::append) calls followed by one
/// [`complete`](Self::complete), or by [`abort`](Self::abort). Frames are whole, in sequence, and
/// made by [`crate::format::EpochWriter`] for the sink's chain. Two sinks that are given the same
/// epochs are given the same bytes.
pub trait Sink: Send {
    /// What it is. This comes first and once. `marks` is where it says how far it is durable, and
    /// what another host has acknowledged: from any thread, at any time.
    fn start(&mut self, marks: Marks) -> SinkStart;

    /// Takes some of the frames of `epoch`, which is above the newest one.
    ///
    /// # Errors
    /// After any error the epoch is gone, as after [`abort`](Self::abort).
    fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError>;

    /// Some of an epoch was appended and a sync will come: what was appended may begin its way to
    /// the medium, so that the sync has less to wait for. Advice.
    fn begin_sync(&mut self) {}

    /// Takes the last frames of an epoch, and the commit frame that makes it complete. The epoch is
    /// appended then. How far it is durable is told by the marks, later.
    ///
    /// # Errors
    /// After any error the epoch is gone, as after [`abort`](Self::abort). An epoch that does not
    /// follow the newest one is refused.
    fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError>;

    /// Undoes the `append` calls since the newest complete epoch.
    ///
    /// # Errors
    /// [`SinkError::Latched`] where they could not be undone.
    fn abort(&mut self) -> Result<(), SinkError>;

    /// Makes every appended epoch durable, and tells the marks when that is so: before it returns,
    /// or later.
    ///
    /// # Errors
    /// [`SinkError::Latched`], always: a failed sync cannot be repeated (`docs/format.md`,
    /// "Writing"). A sink that returns before it knows tells [`Marks::failed`]. Until the engine
    /// has heard that, it may be asked for more, and answers as one that is latched.
    fn sync(&mut self) -> Result<(), SinkError>;

    /// Opens the chain again after [`SinkError::Latched`], reading back what is there, and makes it
    /// durable. Returns its newest epoch.
    ///
    /// # Errors
    /// [`SinkError::Latched`] where that failed; it may be tried again.
    fn reopen(&mut self) -> Result<Head, SinkError>;

    /// Ends the chain in order. With `sync`, everything is durable then, and the marks say so. With
    /// `sync` false (durability `none`) nothing is synced and nothing claims to be durable.
    ///
    /// # Errors
    /// As [`sync`](Self::sync) and [`complete`](Self::complete).
    fn close(&mut self, sync: bool) -> Result<(), SinkError>;
}

/// What a sink has to tell.
#[derive(Debug)]
pub(super) enum Told {
    Durable(EpochId),
    Acknowledged(EpochId),
    Failed(SinkError),
}

/// Who is told.
pub(super) trait Listen: Send + Sync {
    fn told(&self, told: Told);
}

/// Where a sink tells how far its epochs have come. It can be cloned, and used from any thread.
#[derive(Clone)]
pub struct Marks(Option<Arc<dyn Listen>>);

impl Marks {
    pub(super) fn new(listener: Arc<dyn Listen>) -> Self {
        Self(Some(listener))
    }

    /// Nobody is told. For a sink that is used without an engine.
    #[must_use]
    pub const fn nowhere() -> Self {
        Self(None)
    }

    /// `epoch` and all before it are durable. An epoch that is below what was told before says
    /// nothing.
    pub fn durable(&self, epoch: EpochId) {
        self.tell(Told::Durable(epoch));
    }

    /// Another host holds `epoch` and all before it, in its memory or on its disk.
    pub fn acknowledged(&self, epoch: EpochId) {
        self.tell(Told::Acknowledged(epoch));
    }

    /// What was asked for could not be done, as the call that asked for it would have returned.
    pub fn failed(&self, error: SinkError) {
        self.tell(Told::Failed(error));
    }

    fn tell(&self, told: Told) {
        if let Some(listener) = &self.0 {
            listener.told(told);
        }
    }
}

/// Marks of which it is known later where they lead. What is told before that, nobody hears.
#[derive(Clone, Default)]
pub struct MarksRelay(Arc<Mutex<Option<Marks>>>);

impl MarksRelay {
    /// Marks that lead to where this one leads by then.
    #[must_use]
    pub fn marks(&self) -> Marks {
        Marks::new(Arc::new(self.clone()))
    }

    /// They lead there from now on.
    pub fn lead_to(&self, marks: Marks) {
        *lock(&self.0) = Some(marks);
    }
}

impl Listen for MarksRelay {
    fn told(&self, told: Told) {
        let marks = lock(&self.0).clone();
        if let Some(marks) = marks {
            marks.tell(told);
        }
    }
}

impl fmt::Debug for MarksRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MarksRelay").field(&lock(&self.0).is_some()).finish()
    }
}

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Marks").field(&self.0.is_some()).finish()
    }
}

/// No chain: epochs are numbered and gone. For a guest that is only ever put back in memory
/// ([`Engine::rollback`](super::Engine::rollback)).
#[derive(Clone, Debug)]
pub struct Discard {
    head: Head,
    marks: Marks,
}

impl Default for Discard {
    fn default() -> Self {
        Self { head: Head::default(), marks: Marks::nowhere() }
    }
}

impl Sink for Discard {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.marks = marks;
        SinkStart { head: self.head, durable: Some(self.head.epoch), ..SinkStart::default() }
    }

    fn append(&mut self, _epoch: EpochId, _frames: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    fn complete(&mut self, _frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        self.head = epoch.head();
        Ok(())
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.marks.durable(self.head.epoch);
        Ok(())
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        Ok(self.head)
    }

    fn close(&mut self, _sync: bool) -> Result<(), SinkError> {
        self.sync()
    }
}
