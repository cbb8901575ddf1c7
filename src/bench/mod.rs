//! The harness that compares ways to track writes, on the machine at hand.
//!
//! A [`workload::Point`] says what a guest does and on which machine. [`runner`] builds one machine
//! for each tracker, lets them take turns, so that drift of the machine hits all alike, and keeps
//! what the product's own engine says of each cut; floors are measured between the turns.
//! [`endtoend`] runs the whole engine with a chain on disk at a rate, and [`streaming`] with rounds
//! and without. [`hot`] judges the choice of the hot set. [`pairs`] is about
//! machines with a standby. [`results`] makes rows of it,
//! [`summary`] says what they come to, and [`report`] shows them. [`advise`] proposes budget and
//! interval from a chain of the user's own. docs/benchmarks.md has the method.

pub mod advise;
mod cpu;
pub mod effort;
pub mod endtoend;
mod floor;
pub mod hot;
mod interleave;
pub mod machine;
pub mod outputs;
pub mod pairs;
mod prose;
mod record;
pub mod report;
pub mod results;
pub mod runner;
pub mod session;
pub mod stats;
pub mod streaming;
mod summarize;
pub mod summary;
#[cfg(test)]
mod testing;
mod whole;
pub mod workload;

use std::path::PathBuf;
use std::time::Duration;

use crate::epoch::EngineError;
use crate::kvm::host::HostError;
use crate::store::StoreError;
use crate::vmm::VmmError;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The machine can't be built or can't run.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// KVM's device can't be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The chain of a run can't be made or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The guest of a measurement is not one.
    #[error("the guest `{guest}` of a measurement")]
    Guest {
        /// Its options.
        guest: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came of a turn.
    #[error("{tracker} took {found} of {expected} cuts within {seconds} s")]
    Stalled {
        /// The tracker.
        tracker: &'static str,
        /// Cuts of the turn.
        expected: u64,
        /// Cuts that came.
        found: u64,
        /// The time they had.
        seconds: u64,
    },
    /// The system refused a step.
    #[error("{step}")]
    System {
        /// What was asked.
        step: &'static str,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
    /// Requests that can't be asked.
    #[error(transparent)]
    Load(crate::ledger::LoadError),
    /// The wire to the guest.
    #[error(transparent)]
    Wire(crate::ledger::WireError),
    /// The guest's answers contradict each other: outputs that left were taken back.
    #[error(transparent)]
    Violation(crate::ledger::Violation),
    /// Two processes of the command came to nothing.
    #[error("a machine and its standby")]
    Pair(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A chart of the report.
    #[error(transparent)]
    Plot(#[from] report::PlotError),
    /// A file of the report can't be written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl From<EngineError> for BenchError {
    fn from(error: EngineError) -> Self {
        Self::Vmm(error.into())
    }
}

/// How long a turn may take.
const TURN_LIMIT: Duration = Duration::from_secs(120);
