//! Which pages were written: one trait, three trackers.
//!
//! While every vCPU is parked, a tracker *collects*: it puts every page that was written since the
//! last time into a set (harvest), and has the next write to each of them logged again (reset).
//! Both belong together: with the vCPUs parked, pages can be copied before or after the reset, and
//! a harvest without its reset would lose writes. A tracker says so when it may have missed writes;
//! [`Tracker::rearm`](crate::epoch::Tracker::rearm) then begins tracking anew, and the engine
//! compares all memory.

mod bitmap;
mod hot;
mod plan;
pub mod replay;
mod ring;
mod simulated;
#[cfg(test)]
mod tests;

pub use bitmap::BitmapTracker;
pub use hot::HotSet;
pub use plan::{BudgetError, HotPages, RingPlan, RingWish};
pub use ring::RingTracker;
pub use simulated::{SimulatedMemory, SimulatedTracker};

use crate::kvm::bitmap::BitmapError;
use crate::kvm::ring::RingError;
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

/// Adds a page that the kernel listed; what is not memory is an error, because then the log can't
/// be believed.
fn insert(into: &mut PageSet, gfn: Option<Gfn>, slot: u32, offset: u64) -> Result<(), TrackError> {
    gfn.and_then(|gfn| into.insert(gfn)).map(drop).ok_or(TrackError::NoSuchPage { slot, offset })
}
