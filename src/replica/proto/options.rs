//! What an operator chooses.

use std::time::Duration;

/// When things are tried. Nothing here decides what is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A message goes to the other end at least so often.
    pub heartbeat: Duration,
    /// The other end is taken for dead after this time without a message.
    pub timeout: Duration,
    /// A standby of the pair that comes no further for this time, although there is more, is too
    /// slow: it is dropped. And as long as a standby is made, either end waits this long for the
    /// other's word: nothing depends on it yet, and to begin again would take longer.
    pub behind: Duration,
    /// A witness that gave no answer is asked again after this time.
    pub retry: Duration,
    /// The register is read at least so often: a machine that was superseded without a word halts.
    pub poll: Duration,
}

impl Timing {
    /// With these, and what follows from them.
    #[must_use]
    pub const fn new(heartbeat: Duration, timeout: Duration) -> Self {
        Self {
            heartbeat,
            timeout,
            behind: Duration::from_secs(2),
            retry: Duration::from_millis(20),
            poll: Duration::from_secs(1),
        }
    }
}

/// What a primary does that has lost its standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenLost {
    /// It goes on alone, once the witness says so.
    Solo,
    /// It halts its guest. The standby may take over.
    Stop,
}

/// How a primary behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryOptions {
    /// When things are tried.
    pub timing: Timing,
    /// Whether it has a chain. Alone, outputs leave when their epoch is durable there; without one
    /// they wait for a standby.
    pub has_chain: bool,
    /// Whether outputs wait for the chain while paired, too. Then the chain may go on if both ends
    /// die.
    pub waits_for_chain: bool,
    /// What to do without the standby.
    pub when_lost: WhenLost,
}

/// How a standby behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyOptions {
    /// When things are tried.
    pub timing: Timing,
    /// Whether it has a chain.
    pub has_chain: bool,
    /// Whether it holds an epoch only when its own chain has it durable. Then the chain may go on
    /// if both ends die.
    pub holds_on_disk: bool,
}
