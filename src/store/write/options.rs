//! What a writer is told, and what it tells of the chain that it opened.

use crate::page::{EpochId, PageRun};
use crate::store::damage::TornTail;
use crate::store::keep::retention::Retention;

/// What a new chain is to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct NewChain {
    /// The frames of guest memory, as [`Description::memory`](crate::format::Description::memory).
    pub memory: Vec<PageRun>,
    /// How many of the last runs are memory of devices, as
    /// [`Description::device_runs`](crate::format::Description::device_runs).
    pub device_runs: usize,
    /// How many vCPUs, as [`Description::vcpus`](crate::format::Description::vcpus).
    pub vcpus: u32,
    /// Whatever the VMM needs to build the machine again.
    pub machine: serde_json::Value,
}

/// How a writer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// A segment that is this long or longer, in bytes, gets no further epoch. 64 MiB by default.
    pub segment_bytes: u64,
    /// Nor does one that mentions this many pages, or has an eighth as many epochs: how long a
    /// chain takes to open that was not ended in order follows these. 256 Ki by default.
    pub segment_mentions: u64,
    /// How far ahead space is taken, in bytes, so that a full disk shows at an append and not at a
    /// sync. 16 MiB by default, and no more than an eighth of what is free; 0 for not at all.
    pub preallocate_bytes: u64,
    /// Which epochs stay restorable; the others are dropped while the chain is written, once there
    /// is enough of them to pay. All by default.
    ///
    /// Dropping writes before it frees. The writer leaves it the room that it takes, about as much
    /// as the chain will have then: where an append would have some of that, it waits until what is
    /// not kept was dropped, and is refused ([`StoreError::Room`](crate::store::StoreError::Room))
    /// where that gave too little.
    pub retention: Option<Retention>,
    /// Whether segments get their indexes and are compacted on a thread of their own, and not while
    /// the writer waits. True by default.
    pub background: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segment_mentions: 256 << 10,
            preallocate_bytes: 16 << 20,
            retention: None,
            background: true,
        }
    }
}

/// What a writer found when it opened a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// The newest epoch, which is durable now; or none.
    pub tip: EpochId,
    /// How many epochs there are.
    pub epochs: usize,
    /// The torn tail that was cut off.
    pub torn: Option<TornTail>,
    /// Whether the writer before ended in order.
    pub closed: bool,
}
