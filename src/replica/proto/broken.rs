//! Rules that a test takes out, one at a time, to see that the simulator finds it. In the product
//! all of them hold.

/// A rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// While paired, an output waits for the standby.
    ReleaseWhenHeld,
    /// What a standby holds is known by identity, not by number.
    HoldsByIdentity,
    /// Only a standby that is paired takes over.
    OnlyHotPromotes,
    /// A standby that asks for the machine says no more that it holds epochs.
    SilentBeforeSwap,
    /// A swap without an answer is repeated.
    UnknownIsRepeated,
    /// Who loses a swap halts.
    LoserHalts,
    /// Outputs wait while the pair is made.
    HeldWhilePairing,
    /// The pair is made when the standby holds all that was released.
    CoveredBeforePairing,
    /// Outputs wait until it is known that a pair was not made.
    GivenUpBySwap,
    /// Alone, an output waits for the chain.
    SoloIsDurable,
    /// Alone again, outputs wait until the chain has all that was released.
    SettledBeforeSolo,
    /// What is of an older generation is refused.
    NoOldGeneration,
    /// The rule of release is recorded before it is used.
    RecordedBeforeRelease,
    /// A store asks the witness before it is run.
    AskBeforeOpening,
    /// After both died, only a store that release waited for goes on.
    OnlyACoveringStore,
    /// A machine that was given away stays parked.
    ParkedUntilKnown,
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// Takes `rule` out, on this thread.
#[cfg(test)]
pub(super) fn break_rule(rule: Option<Rule>) {
    BROKEN.set(rule);
}

#[cfg(test)]
pub(super) fn is_broken(rule: Rule) -> bool {
    BROKEN.get() == Some(rule)
}

#[cfg(not(test))]
pub(super) const fn is_broken(_: Rule) -> bool {
    false
}
