//! Slackwater checkpoints KVM virtual machines, driven by KVM's dirty ring, and brings them back.
//!
//! A vCPU leaves the guest when its ring of written pages is full. The engine then parks the
//! machine, captures its state, copies the pages that were listed, resets the rings and lets the
//! guest run. Behind its back the copy becomes an *epoch* of a *chain*. An epoch has a bounded
//! number of pages, and any epoch of a chain can be restored.
//!
//! | to | begin with |
//! | --- | --- |
//! | take checkpoints in a VMM | [`epoch::Engine`], `memory::GuestMemory`, `track::RingTracker` |
//! | write a chain to files | [`store::Writer`] |
//! | read, verify or repair a chain | [`store::Chain`], [`store::verify`], [`store::repair`] |
//! | fill memory from a chain | [`restore::Plan`], `restore::OnDemand` |
//! | capture and apply KVM's state | `machine` |
//! | use the dirty ring alone | `kvm::ring` |
//! | run a whole guest | `vmm` |
//!
//! # Features
//! Without features the library reads, verifies, repairs and exports chains, and the engine is
//! there for a tracker and a memory of your own. No crate that knows KVM is needed then. `kvm` adds
//! the ring, the trackers, memory and captured state, `replica` the register of who goes on and its
//! witnesses, `vmm` the reference VMM, `bench` and `cli` what the command is made of.
//!
//! # Example
//! The epochs of a chain, and what is in memory at the newest one:
//!
//! ```
//! use slackwater::page::{Gfn, PageBytes};
//! use slackwater::restore::{PageTarget, Plan, TargetError};
//! use slackwater::store::Chain;
//!
//! /// Anything that takes pages can be filled: this counts those that are not zero.
//! struct Count(u64);
//!
//! impl PageTarget for Count {
//!     fn write_page(&mut self, _: Gfn, page: &PageBytes) -> Result<(), TargetError> {
//!         self.0 += u64::from(page.iter().any(|byte| *byte != 0));
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let chain = Chain::open("checkpoints/golden/plain")?;
//!     for epoch in chain.epochs() {
//!         let commit = epoch?.commit;
//!         println!("epoch {}: {} pages", commit.epoch, commit.captured_pages);
//!     }
//!     let mut count = Count(0);
//!     Plan::new(&chain, chain.newest())?.fill(&mut count, &mut |_done, _total| {})?;
//!     println!("{} pages are not zero", count.0);
//!     Ok(())
//! }
//! ```
//!
//! A VMM in one page is `examples/one_page_vmm.rs`; `docs/embedding.md` goes through it.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking"))]

mod clock;
mod lock;

mod xxh3;

pub mod page;

pub mod parked;

#[cfg(feature = "kvm")]
pub mod kvm;

#[cfg(feature = "kvm")]
pub mod memory;

#[cfg(feature = "kvm")]
pub mod machine;

#[cfg(feature = "kvm")]
pub mod track;

pub mod format;

pub mod epoch;

pub mod store;

pub mod restore;

#[cfg(feature = "replica")]
pub mod replica;

#[cfg(feature = "vmm")]
pub mod ledger;

#[cfg(feature = "vmm")]
pub mod vmm;

#[cfg(feature = "bench")]
pub mod bench;

#[cfg(feature = "cli")]
pub mod cli;
