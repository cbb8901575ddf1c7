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
#[cfg(feature = "kvm")]
mod elf_core;
mod export;
#[cfg(feature = "kvm")]
mod fill;
#[cfg(feature = "kvm")]
mod memory;
#[cfg(feature = "kvm")]
mod on_demand;
mod pages;
mod plan;
#[cfg(test)]
mod tests;
mod touched;
#[cfg(feature = "kvm")]
mod vmcoreinfo;

pub use diff::{DiffError, Difference, PageChange, StateChange, diff};
pub use export::{ExportError, ExportFormat, Exported, export};
#[cfg(feature = "kvm")]
pub use on_demand::{FillOptions, FillReport, FillTimes, OnDemand};
pub use pages::{PageMap, PageSource, PageSources};
pub use plan::{Digest, Filled, PageTarget, Plan, RestoreError, TargetError, digest};
