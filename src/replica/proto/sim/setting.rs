//! What a seed chose, and what came of it.

use std::time::Duration;

use crate::replica::proto::{Timing, WhenLost};

/// Microseconds.
pub(super) type Time = u64;

pub(super) const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(5),
    timeout: Duration::from_millis(20),
    behind: Duration::from_millis(150),
    retry: Duration::from_millis(10),
    poll: Duration::from_millis(100),
};

/// Faults come for so long; then everything heals, and the same time is left to recover.
pub(super) const FAULTY: Time = 1_200_000;
pub(super) const HEALED: Time = 1_200_000;

/// Machines are told the time so often.
pub(super) const TICK: Time = 2_000;

/// What a seed chose for the whole run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) waits_for_chain: bool,
    pub(super) holds_on_disk: bool,
    pub(super) when_lost: WhenLost,
    /// A fault about so often.
    pub(super) fault_us: u64,
    /// A sync takes so long at most.
    pub(super) sync_us: u64,
    /// Both hosts stand still at times, at once, and nothing else breaks.
    pub(super) only_stalls: bool,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) releases: u64,
    pub(super) failovers: u64,
    pub(super) pairs: u64,
    pub(super) migrations: u64,
    pub(super) restarts: u64,
    pub(super) losses_accepted: u64,
    pub(super) late_swaps: u64,
    pub(super) gone: u64,
}
