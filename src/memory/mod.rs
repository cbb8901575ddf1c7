//! Guest memory, which records what the VMM itself writes, and the page-aligned staging arena.

mod copy;
mod guest;
mod missing;
mod staging;
mod write_log;

pub use guest::{GuestMemory, GuestRam, MemoryError};
pub use missing::{FilledPages, MissingMemory};
pub use staging::Arena;
pub use write_log::{WriteLog, WrittenPages};
