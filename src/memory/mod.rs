//! Guest memory, which records what the VMM itself writes, the page-aligned staging arena, a second copy for rollback, and files that are
//! read in place.

mod copy;
mod file;
mod guest;
mod shadow;
mod staging;
mod write_log;

pub use file::MappedFile;
pub use guest::{GuestMemory, GuestRam, MemoryError};
pub use shadow::Shadow;
pub use staging::Arena;
pub use write_log::{WriteLog, WrittenPages};
