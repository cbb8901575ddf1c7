//! Guest memory, which records what the VMM itself writes, the page-aligned staging arena, and a second copy for rollback.

mod copy;
mod guest;
mod shadow;
mod staging;
mod write_log;

pub use guest::{GuestMemory, GuestRam, MemoryError};
pub use shadow::Shadow;
pub use staging::Arena;
pub use write_log::{WriteLog, WrittenPages};
