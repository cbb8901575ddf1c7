//! Guest memory, which records what the VMM itself writes, and files that are read in place.

mod copy;
mod epoch;
mod file;
mod guest;
mod missing;
mod write_log;

pub use file::MappedFile;
pub use guest::{GuestMemory, GuestRam, MemoryError};
pub use missing::{FilledPages, MissingMemory};
pub use write_log::{WriteLog, WrittenPages};
