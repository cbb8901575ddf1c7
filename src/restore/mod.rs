//! From a chain back to a machine: which version of each page counts at an epoch, and filling memory with it.
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

mod fill;
mod found;
mod memory;
mod on_demand;
mod pages;
mod plan;
#[cfg(test)]
mod tests;
mod touched;

pub use on_demand::{FillOptions, FillReport, FillTimes, OnDemand};
pub use pages::{PageMap, PageSource, PageSources};
pub use plan::{Digest, Filled, PageTarget, Plan, RestoreError, TargetError, digest};
