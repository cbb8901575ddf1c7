//! Which pages were written: one trait, three trackers.
//!
//! While every vCPU is parked, a tracker *collects*: it puts every page that was written since the last time into a set (harvest), and has the
//! next write to each of them logged again (reset). Both belong together: with the vCPUs parked, pages can be copied before or after the reset,
//! and a harvest without its reset would lose writes. A tracker says so when it may have missed writes; [`Tracker::rearm`] then begins tracking
//! anew, and the engine compares all memory.

mod bitmap;
mod hot;
mod ring;
mod simulated;
#[cfg(test)]
mod tests;

pub use bitmap::BitmapTracker;
pub use hot::{ENTER_AFTER, HotSet, LOOK_EVERY};
pub use ring::RingTracker;
pub use simulated::{SimulatedMemory, SimulatedTracker};

use std::time::Duration;

use crate::kvm::bitmap::BitmapError;
use crate::kvm::park::Parked;
use crate::kvm::ring::{Lost, RingError};
use crate::memory::MemoryError;
use crate::page::{Gfn, PageSet};

/// What a tracker can't do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackError {
    /// The rings.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The bitmap.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// The memslots.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel's descriptor, or a thread.
    #[error("preparing the tracker")]
    Prepare(#[source] std::io::Error),
    /// The kernel lists a page that is in no memslot.
    #[error("the log lists page {offset} of slot {slot}, which is not memory")]
    NoSuchPage {
        /// Address space and slot, as the kernel gave them.
        slot: u32,
        /// The page's index.
        offset: u64,
    },
}

/// What a collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries or bits that the kernel listed, repeats included.
    pub entries: u64,
    /// Pages that are left writable and taken into every collection.
    pub hot: u64,
    /// Why writes may have been missed, where they may.
    pub lost: Option<Lost>,
    /// Time from the start to the end of the harvest.
    pub harvest: Duration,
    /// Time of the reset, as far as it is done.
    pub reset: Duration,
}

/// How a collection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Why writes may have been missed, where they may.
    pub lost: Option<Lost>,
    /// Time that was left to wait for, or to do, of the reset.
    pub reset: Duration,
}

/// Finds the pages that a guest wrote.
pub trait Tracker: Send + std::fmt::Debug {
    /// `ring`, `ring+hot` or `bitmap`, as reports name it.
    fn name(&self) -> &'static str;

    /// The most pages that it lists in one collection, or `None` where nothing bounds them.
    fn bound(&self) -> Option<u64>;

    /// Adds every page that was written since the last collection to `into`, and has their next write logged again.
    ///
    /// # Errors
    /// [`TrackError`]: tracking is lost then, as with [`Collected::lost`].
    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackError>;

    /// As [`collect`](Self::collect), but the reset may go on, on another thread, until [`settle`](Self::settle), which has to be called before any vCPU runs.
    /// Pages may be copied meanwhile. Whoever implements one of the two must implement both.
    ///
    /// # Errors
    /// [`TrackError`]: tracking is lost, and nothing goes on.
    fn begin(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackError> {
        self.collect(parked, into)
    }

    /// Whether anything was written since [`begin`](Self::begin), where that can be told at once. Then a cut may begin the collection before it captures state,
    /// which itself may write to guest memory, and has to ask afterwards. `None`: collect after the capture.
    fn wrote_more(&self, parked: &Parked<'_>) -> Option<bool> {
        let _ = parked;
        None
    }

    /// Waits for whatever [`begin`](Self::begin) has left to do.
    ///
    /// # Errors
    /// [`TrackError`]: tracking is lost, as with [`Settled::lost`].
    fn settle(&mut self, parked: &Parked<'_>) -> Result<Settled, TrackError> {
        let _ = parked;
        Ok(Settled::default())
    }

    /// The pages of the last collection were put back to what they were: what they hold now is no sign of being written again.
    fn rolled_back(&mut self, parked: &Parked<'_>) {
        let _ = parked;
    }

    /// Begins tracking anew: the next write to any page is logged. What is in the log is dropped.
    ///
    /// # Errors
    /// [`TrackError`]. Nothing can be promised about the guest's writes then.
    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackError>;
}

/// Adds a page that the kernel listed; what is not memory is an error, because then the log can't be believed.
fn insert(into: &mut PageSet, gfn: Option<Gfn>, slot: u32, offset: u64) -> Result<(), TrackError> {
    gfn.and_then(|gfn| into.insert(gfn)).map(drop).ok_or(TrackError::NoSuchPage { slot, offset })
}
