//! A chain of checkpoints in a directory: append, commit, recover, read.
//!
//! [`Writer`] is the one writer of a chain and the place that an engine commits to; [`Chain`] reads one, also while a writer
//! appends. `docs/format.md` says what the files hold and argues what a crash can leave.

pub(crate) mod assembly;
pub(crate) mod blocks;
#[cfg(test)]
mod bounds_tests;
mod branch;
mod compact;
#[cfg(test)]
mod compaction_tests;
mod covered;
mod directory;
mod error;
mod files;
mod frames;
mod maintain;
mod mark;
mod medium;
mod mounts;
mod names;
mod pages;
mod place;
#[cfg(test)]
mod place_tests;
mod prune;
mod read;
mod retention;
mod rewrite;
#[cfg(test)]
mod room_tests;
mod scan;
mod seal;
mod segment;
mod shortage;
mod steps;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod writer;

pub mod repair;
pub mod verify;
pub(crate) mod view;

pub use branch::{Branch, branches};
pub use compact::{Compacted, compact};
pub(crate) use covered::Found;
pub use error::StoreError;
pub(crate) use error::causes;
pub use maintain::KeptSegments;
pub use names::SegmentNumbers;
pub use pages::{FoundPages, PageReader};
pub use prune::{PrunePlan, plan_prune};
pub use read::{Chain, ReadOptions};
pub use retention::Retention;
pub use scan::{Damage, Epoch, TornTail};
pub(crate) use segment::{FramePlace, Segment};
pub use writer::{NewChain, Recovered, Writer, WriterOptions};

/// The order in which restored guests touched pages: derived, and never needed.
pub(crate) const TOUCHED: &str = "touched";

/// What becomes [`TOUCHED`] once it is whole.
pub(crate) const TOUCHED_DRAFT: &str = "touched.tmp";
