//! Guest memory, which records what the VMM itself writes.

mod copy;
mod epoch;
mod guest;
mod missing;
mod write_log;

pub use guest::{GuestMemory, GuestRam, MemoryError};
pub use missing::{FilledPages, MissingMemory};
pub use write_log::{WriteLog, WrittenPages};
