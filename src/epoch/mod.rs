//! The engine: policy, the cut (park to run again), the pipeline behind it, and the report.
//!
//! ```text
//! cut (vCPUs parked)                    encode thread                     a thread for each sink
//! state, harvest, copy, reset ──slot──> zero, same, changed, zstd,
//!         ^                             frames, commit frame    ──slot──> append, sync ──> marks ──> released
//!         └────────────────────── the slot, free again ─────────────────────┘
//! ```
//!
//! A slot is staging for a part of an epoch, and its frames. There is a fixed number of slots,
//! so memory does not grow when storage is slow: the policy then decides between longer epochs and
//! a guest that waits.

mod base;
mod clock;
mod contents;
mod deliver;
mod early;
mod encode;
mod encoded;
mod engine;
mod engine_lock;
mod error;
mod guest;
mod lateness;
mod learning;
mod memory;
mod options;
mod page_costs;
mod pipeline;
mod point;
mod policy;
mod release;
mod report;
mod shadow;
mod shared;
mod sink;
mod slot;
mod staging;
pub(crate) mod times;
mod tracker;
mod tracking;
mod versions;

pub use early::Place;
pub use engine::{Cut, Engine, Finished, FullRing, NextRound, RolledBack, Round, SinkReport, SinkStanding, Start};
pub use engine_lock::EngineLock;
pub use error::{AttachError, EngineError, JoinError, LeftReason};
pub use guest::{CapturedState, Guest, GuestError, RollbackGuest};
pub use memory::{Memory, MemoryError};
pub use options::{Durability, Early, EngineOptions, OnRelease, OnStorageError, WhenBehind};
pub use release::{Need, Reached, Release, ReleaseRule};
pub use report::{PhasesReport, Report, RollbackReport, Triggers};
pub use shadow::Shadow;
pub use sink::{Discard, Marks, MarksRelay, Sink, SinkError, SinkStart};
pub use staging::Staging;
pub use times::Distribution;
pub use tracker::{Collected, Settled, Tracker, TrackerError};
