//! A chain of checkpoints in a directory: append, commit, recover, read.
//!
//! [`Writer`] is the one writer of a chain and the place that an engine commits to; [`Chain`] reads one, also while a writer
//! appends. `docs/format.md` says what the files hold and argues what a crash can leave.

mod error;
mod frames;
mod maintain;
mod medium;
mod names;
mod read;
mod scan;
mod seal;
mod segment;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod writer;

pub mod repair;
pub mod verify;

pub use error::StoreError;
pub(crate) use error::causes;
pub use names::SegmentNumbers;
pub use read::Chain;
pub use scan::{Damage, Epoch, TornTail};
pub(crate) use segment::{FramePlace, Segment};
pub use writer::{NewChain, Recovered, Writer, WriterOptions};
