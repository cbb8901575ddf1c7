//! The engine: policy, the cut (park to run again), the pipeline behind it, and the report.
//!
//! ```text
//! cut (vCPUs parked)                      encode thread                      writer thread
//! state, harvest, copy, reset ──slot──>   zero, same, zstd, frames ──slot──>  append, group commit, sync ──> committed
//!         ^                                                                        │
//!         └──────────────────────── the slot, free again ─────────────────────────┘
//! ```
//!
//! A slot is staging for one budget of pages, and their frames. There is a fixed number of slots, so memory does not grow when storage is
//! slow: the policy then decides between longer epochs and a guest that waits.

mod budget;
mod clock;
mod contents;
mod encode;
mod engine;
mod guest;
mod options;
mod pipeline;
mod policy;
mod report;
mod sink;
mod slot;
mod versions;
mod write;

pub use budget::{BudgetError, HotPages, RingPlan};
pub use engine::{Cut, Engine, EngineError, Finished, RolledBack, Start};
pub use guest::{CapturedState, Guest, GuestError, RollbackGuest};
pub use options::{Durability, EngineOptions, OnCommit, OnStorageError, WhenBehind};
pub use report::{Distribution, PhasesReport, Report, RollbackReport, Triggers};
pub use sink::{Discard, Sink, SinkError};
