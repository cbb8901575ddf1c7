//! Making the index of a segment that nothing is appended to any more.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::medium::Medium;
use super::{SegmentNumbers, StoreError, scan};
use crate::format::Identity;

/// Writes the index of the segment with these numbers, every epoch of which is durable. A segment without one is as good, and slower: where this fails,
/// nothing is lost.
///
/// # Errors
/// A segment that is not sound as a whole; what the operating system refuses.
pub(super) fn seal(dir: &Path, medium: &dyn Medium, identity: &Arc<Identity>, numbers: SegmentNumbers) -> Result<(), StoreError> {
    let path = dir.join(numbers.file_name());
    let file = medium.open(&numbers.file_name(), false).map_err(StoreError::io("open", &path))?;
    let bytes = file.len().map_err(StoreError::io("read", &path))?;
    let index = scan::index_of(&path, numbers, file.as_ref(), bytes, identity)?;
    write(medium, numbers, &index).map_err(StoreError::io("write", dir.join(numbers.index_name())))
}

/// Puts an index beside its segment.
pub(super) fn write(medium: &dyn Medium, numbers: SegmentNumbers, index: &[u8]) -> io::Result<()> {
    let (draft, name) = (numbers.index_draft(), numbers.index_name());
    let written = (|| {
        let file = medium.create(&draft)?;
        file.write(0, &[index])?;
        file.sync()?;
        medium.rename(&draft, &name)
    })();
    if written.is_err() {
        // Whoever opens the chain for writing next removes what this leaves.
        let _ = medium.remove(&draft);
    }
    written
}
