//! From a chain back to a machine: which version of each page counts at an epoch, and filling
//! memory with it, or a file; and what differs between two epochs.
//!
//! ```no_run
//! # use slackwater::{page::{EpochId, Gfn, PageBytes}, restore::{PageTarget, Plan, TargetError}, store::Chain};
//! # struct Memory;
//! # impl PageTarget for Memory {
//! #     fn write_page(&mut self, _: Gfn, _: &PageBytes) -> Result<(), TargetError> { Ok(()) }
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let chain = Chain::open("store")?;
//! let plan = Plan::new(&chain, chain.newest())?;
//! plan.fill(&mut Memory, &mut |_done, _total| {})?;
//! for record in plan.state() { /* apply it, in the machine's order */ }
//! # Ok(())
//! # }
//! ```

mod diff;
mod digest;
mod eager_fill;
#[cfg(feature = "kvm")]
mod elf_core;
mod error;
mod export;
#[cfg(feature = "kvm")]
mod on_demand_fill;
#[cfg(feature = "kvm")]
mod on_demand_threads;
mod pages;
mod plan;
#[cfg(test)]
mod tests;
mod touched;
#[cfg(feature = "kvm")]
mod vmcoreinfo;

pub use diff::{DiffError, Difference, PageChange, StateChange, diff};
pub use digest::{Digest, digest};
pub use eager_fill::{Filled, PageTarget};
pub use error::{RestoreError, TargetError};
pub use export::{ExportError, ExportFormat, Exported, export};
#[cfg(feature = "kvm")]
pub use on_demand_threads::{FillOptions, FillReport, FillTimes, OnDemand};
pub use pages::{PageMap, PageSource, PageSources};
pub use plan::Plan;
