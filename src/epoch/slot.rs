//! What goes round between a cut and the sinks.

use std::time::Instant;

use super::staging::Staging;
use crate::format::{Commit, Complete, FormatError, Head};
use crate::page::EpochId;

/// A part of an epoch: all of it, or up to a budget of its pages.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) epoch: EpochId,
    /// Failures count up; what was cut before one was noticed has an older number, and is thrown
    /// away.
    pub(super) attempt: u64,
    /// Store pages even if their content is what an earlier epoch had: that epoch may never have
    /// reached a sink.
    pub(super) store_unchanged: bool,
    /// When the epoch was cut.
    pub(super) cut_at: Instant,
    /// What is known of the epoch, with its last part.
    pub(super) commit: Option<Commit>,
    /// The sink that is joining: it gets all pages of the part, as a part of its base.
    pub(super) joiner: Option<Joiner>,
    /// The part is for that sink alone.
    pub(super) base_only: bool,
}

/// A sink that gets a base of its own, beside the epochs of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joiner {
    pub(super) sink: usize,
    /// The epoch that its base is of. The others come to it when the base is whole.
    pub(super) epoch: EpochId,
    /// The newest epoch that the sink has.
    pub(super) head: Head,
    /// Which try this is, of all sinks.
    pub(super) number: u64,
}

/// Staging for one part, and its frames.
#[derive(Debug)]
pub(super) struct Slot<C> {
    pub(super) arena: Staging,
    pub(super) state: C,
    pub(super) part: Part,
    /// The frames for the sinks that have the epochs before.
    pub(super) frames: Vec<u8>,
    /// How the epoch ends for them, with its last part.
    pub(super) complete: Option<Complete>,
    /// The frames for the sink that is joining.
    pub(super) base_frames: Vec<u8>,
    /// How its base ends, with the last part.
    pub(super) base_complete: Option<Complete>,
    /// What came of encoding.
    pub(super) encoded: Result<(), FormatError>,
}
