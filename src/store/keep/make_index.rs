//! Making the index of a segment that nothing is appended to any more.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::format::{Description, Index, IndexError};
use crate::store::error::StoreError;
use crate::store::medium::{Medium, WritableMedium};
use crate::store::names::SegmentNumbers;
use crate::store::read::frames::{self, Fault};
use crate::store::read::walk;

/// Writes the index of the segment with these numbers, every epoch of which is durable. A segment
/// without one is as good, and slower: where this fails, nothing is lost.
///
/// # Errors
/// A segment that is not sound as a whole; what the operating system refuses.
pub(in crate::store) fn make(
    dir: &Path,
    medium: &dyn WritableMedium,
    description: &Arc<Description>,
    numbers: SegmentNumbers,
) -> Result<(), StoreError> {
    let path = dir.join(numbers.file_name());
    let file = medium.open(&numbers.file_name()).map_err(StoreError::io("open", &path))?;
    let bytes = file.len().map_err(StoreError::io("read", &path))?;
    let index = walk::index_of(&path, numbers, file.as_ref(), bytes, description)?;
    write(medium, numbers, &index).map_err(StoreError::io("write", dir.join(numbers.index_name())))
}

/// Whether the index beside the segment with these numbers is one of it, as far as its first block
/// says.
///
/// # Errors
/// A segment or an index that cannot be read.
pub(in crate::store) fn fits(medium: &dyn Medium, description: &Description, numbers: SegmentNumbers) -> io::Result<bool> {
    let file = medium.open(&numbers.file_name())?;
    let header = match frames::read_header(file.as_ref(), 0, file.len()?, description.chain) {
        Ok(header) => header.encode(description.chain),
        Err(Fault::Format(_)) => return Ok(false),
        Err(Fault::Io(error)) => return Err(error),
    };
    match Index::open(medium.map(&numbers.index_name())?, &header, file.len()?) {
        Ok(_) => Ok(true),
        Err(IndexError::Format(_)) => Ok(false),
        Err(IndexError::Io(error)) => Err(error),
    }
}

/// Puts an index beside its segment, in the place of one that is there.
pub(in crate::store) fn write(medium: &dyn WritableMedium, numbers: SegmentNumbers, index: &[u8]) -> io::Result<()> {
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
