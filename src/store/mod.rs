//! A chain of checkpoints in a directory: append, sync, recover, read.
//!
//! [`Writer`] is the one writer of a chain and the place that an engine gives its epochs to.
//! [`Chain`] reads one, also while a writer appends. `docs/format.md` says what the files hold and
//! argues what a crash can leave.
//!
//! The rooms, each of which uses only those before it: `medium`, `read`, `keep`, `write`, `verify`,
//! `repair`. What stands beside them here is for all of them.

mod bounds;
mod damage;
mod epoch;
mod error;
mod keep;
mod medium;
mod names;
pub(crate) mod read;
mod shortage;
mod write;

pub mod repair;
pub mod verify;

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod compaction_tests;
#[cfg(test)]
mod place_tests;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use damage::{Damage, TornTail};
pub use epoch::Epoch;
pub use error::StoreError;
pub(crate) use error::causes;
pub use keep::branches::{Branch, branches};
pub use keep::compaction::{Compacted, compact};
pub(crate) use keep::derived_file::replace_derived;
pub use keep::prune::{PrunePlan, plan_prune};
pub use keep::retention::Retention;
pub use keep::upkeep::KeptSegments;
pub use names::SegmentNumbers;
pub(crate) use read::Segment;
pub use read::single_pages::{FoundPages, PageReader};
pub use read::{Chain, ReadOptions};
pub use write::{NewChain, Recovered, Writer, WriterOptions};

/// The order in which restored guests touched pages: derived, and never needed.
pub(crate) const TOUCHED: &str = "touched";

/// What becomes [`TOUCHED`] once it is whole.
pub(crate) const TOUCHED_DRAFT: &str = "touched.tmp";
