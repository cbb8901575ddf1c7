//! What the engine needs of whoever knows which pages a guest wrote.

use std::time::Duration;

use crate::page::PageSet;
use crate::parked::Parked;

/// Why writes may have been missed, or what a tracker can't do.
pub type TrackerError = Box<dyn std::error::Error + Send + Sync>;

/// What a collection found.
#[derive(Debug, Default)]
pub struct Collected {
    /// Entries or bits that the kernel listed, repeats included.
    pub entries: u64,
    /// Pages that are left writable and taken into every collection.
    pub hot: u64,
    /// Why writes may have been missed, where they may.
    pub lost: Option<TrackerError>,
    /// Time from the start to the end of the harvest.
    pub harvest: Duration,
    /// Time of the reset, as far as it is done.
    pub reset: Duration,
}

/// How a collection ended.
#[derive(Debug, Default)]
pub struct Settled {
    /// Why writes may have been missed, where they may.
    pub lost: Option<TrackerError>,
    /// Time that was left to wait for, or to do, of the reset.
    pub reset: Duration,
}

/// Finds the pages that a guest wrote.
pub trait Tracker: Send + std::fmt::Debug {
    /// `ring`, `ring+hot` or `bitmap`, as reports name it.
    fn name(&self) -> &'static str;

    /// The most pages that the next collection can have, or `None` where nothing bounds them.
    fn bound(&self) -> Option<u64>;

    /// How many entries are listed that no collection and no [`round`](Self::round) has taken,
    /// while the guest may write more. `None` where there are no rounds.
    fn listed(&self) -> Option<u64> {
        None
    }

    /// Takes up to `most` of the entries that are listed by now, while the guest runs: adds their
    /// pages to `into`, after the next write to each is logged again. So what is copied from then
    /// on has every write that was taken, and whatever comes later is listed again. Pages that
    /// every collection takes are left out. `None`: there are no rounds.
    ///
    /// It blocks signals. It must not be called on a thread that uses io_uring.
    ///
    /// # Errors
    /// Tracking is lost then, as with [`Collected::lost`]: a cut has to [begin](Self::rearm) it
    /// anew.
    fn round(&mut self, most: usize, into: &mut PageSet) -> Result<Option<Collected>, TrackerError> {
        let _ = (most, into);
        Ok(None)
    }

    /// Whether pages may be left writable, because copying them in each collection is cheaper than
    /// a fault at the next write.
    fn has_hot_set(&self) -> bool {
        false
    }

    /// On this host the first write to a protected page costs the guest as much as so many copies
    /// of a page.
    fn learn(&mut self, copies: u32) {
        let _ = copies;
    }

    /// Adds every page that was written since the last collection to `into`, and has their next
    /// write logged again.
    ///
    /// # Errors
    /// Tracking is lost then, as with [`Collected::lost`].
    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError>;

    /// As [`collect`](Self::collect), but the reset may go on, on another thread, until
    /// [`settle`](Self::settle), which has to be called before any vCPU runs. Pages may be copied
    /// meanwhile. Whoever implements one of the two must implement both.
    ///
    /// # Errors
    /// Tracking is lost, and nothing goes on.
    fn begin(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        self.collect(parked, into)
    }

    /// Whether anything was written since [`begin`](Self::begin), where that can be told at once.
    /// Then a cut may begin the collection before it captures state, which itself may write to
    /// guest memory, and has to ask afterwards. `None`: collect after the capture.
    fn wrote_more(&self, parked: &Parked<'_>) -> Option<bool> {
        let _ = parked;
        None
    }

    /// Waits for whatever [`begin`](Self::begin) has left to do.
    ///
    /// # Errors
    /// Tracking is lost, as with [`Settled::lost`].
    fn settle(&mut self, parked: &Parked<'_>) -> Result<Settled, TrackerError> {
        let _ = parked;
        Ok(Settled::default())
    }

    /// The pages of the last collection were put back to what they were: what they hold now is no
    /// sign of being written again.
    fn rolled_back(&mut self, parked: &Parked<'_>) {
        let _ = parked;
    }

    /// Begins tracking anew: the next write to any page is logged. What is in the log is dropped.
    ///
    /// # Errors
    /// Nothing can be promised about the guest's writes then.
    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackerError>;
}
