//! The segment that a writer appends to.

use crate::store::medium::WritableFile;
use crate::store::names::SegmentNumbers;

/// The segment that is appended to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) numbers: SegmentNumbers,
    pub(super) file: Box<dyn WritableFile>,
    /// Mentions of pages and epochs that were added since it was opened.
    pub(super) mentions: u64,
    pub(super) epochs: u64,
    /// Bytes of bases among them.
    pub(super) base_bytes: u64,
    /// It gets no more epochs, because it has an index or is compacted.
    pub(super) sealed: bool,
    /// The system lets no file, or not this process's, be longer.
    pub(super) full: bool,
    /// The end of the last whole epoch or close frame.
    pub(super) end: u64,
    /// Where the frames of the epoch in hand begin.
    pub(super) epoch_at: u64,
    /// Where the next byte goes, which is where the file ends.
    pub(super) at: u64,
    /// Where the file ended at the last sync that nothing was wrong with.
    pub(super) synced: u64,
    /// The system was asked to begin writing what is before this.
    pub(super) sync_begun: u64,
    /// Space was taken up to here.
    pub(super) reserved: u64,
}

impl Active {
    pub(super) fn new(numbers: SegmentNumbers, file: Box<dyn WritableFile>, end: u64, sealed: bool) -> Self {
        Self {
            numbers,
            file,
            mentions: 0,
            epochs: 0,
            base_bytes: 0,
            sealed,
            full: false,
            end,
            epoch_at: end,
            at: end,
            synced: end,
            sync_begun: end,
            reserved: end,
        }
    }
}
