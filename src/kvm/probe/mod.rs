//! Checks of what KVM does and does not promise, with a tiny guest, on the kernel at hand.

mod fault_cost;
mod guest;
mod kernel;
mod page_state;
mod plan;
mod refused;
mod reserve;
mod stay_writable;
#[cfg(test)]
mod tests;

pub use fault_cost::fault_cost;
pub use kernel::runs_kernels;
pub use page_state::PageState;
pub use refused::Refused;
pub use reserve::{RESERVE_LEAST, ring_reserve};
pub use stay_writable::{PagesStayWritable, pages_stay_writable};
