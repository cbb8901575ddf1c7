//! The options that say which epochs stay.

use std::num::NonZeroU64;
use std::time::Duration;

use clap::Args;

use super::units::{at_least_one, time_above_zero};
use crate::store::Retention;

/// Which epochs to keep. What any of the rules keeps is kept, and so are the newest epoch and those
/// that branches begin at.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct KeepArgs {
    /// Keep the newest N epochs, and drop others. The `--keep` options add up: an epoch goes if
    /// none keeps it. The newest stays, and so do those that branches begin at.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    keep_last: Option<NonZeroU64>,
    /// Keep the newest epoch of each span of this time. Times are the chain's own: where the clock
    /// was set while it was written, they are counted without that.
    #[arg(long, value_name = "TIME", value_parser = time_above_zero)]
    keep_every: Option<Duration>,
    /// Keep all epochs that are at most this much older than the newest, by the same time.
    #[arg(long, value_name = "TIME", value_parser = time_above_zero)]
    keep_within: Option<Duration>,
}

impl KeepArgs {
    /// The rules; none if nothing is to be dropped.
    pub(super) fn retention(&self) -> Option<Retention> {
        let last = self.keep_last.map(NonZeroU64::get);
        Some(Retention { last, every: self.keep_every, within: self.keep_within }).filter(|rules| !rules.is_empty())
    }
}
