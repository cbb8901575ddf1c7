//! The engine: policy, the cut (park to run again), the pipeline behind it, and the report.
//!
//! ```text
//! cut (vCPUs parked)                    encode thread                     a thread for each sink
//! state, harvest, copy, reset ──slot──> zero, same, changed, zstd,
//!         ^                             frames, commit frame    ──slot──> append, sync ──> marks ──> released
//!         └────────────────────── the slot, free again ─────────────────────┘
//! ```
//!
//! A slot is staging for one budget of pages, and their frames. There is a fixed number of slots, so memory does not grow when storage is
//! slow: the policy then decides between longer epochs and a guest that waits.

mod base;
mod budget;
mod clock;
mod contents;
mod deliver;
mod encode;
mod engine;
mod error;
mod guest;
mod options;
mod pipeline;
mod policy;
mod release;
mod report;
mod shared;
mod sink;
mod slot;
mod tracking;
mod versions;

pub use budget::{BudgetError, HotPages, RingPlan};
pub use engine::{Cut, Engine, Finished, RolledBack, SinkReport, SinkStanding, Start};
pub use error::{AttachError, EngineError, JoinError, LeftReason};
pub use guest::{CapturedState, Guest, GuestError, RollbackGuest};
pub use options::{Durability, EngineOptions, OnRelease, OnStorageError, WhenBehind};
pub use release::{Need, Reached, Release};
pub use report::{Distribution, PhasesReport, Report, RollbackReport, Triggers};
pub use sink::{Discard, Marks, Sink, SinkError, SinkStart};
