//! What a writer does with the chain that it opens: reads it back, cuts off a torn tail,
//! and makes the rest durable.

use std::path::Path;
use std::sync::Arc;

use super::active::Active;
use super::mark_file::MarkFile;
use super::options::Recovered;
use crate::format::{CutTime, Description, Head, Mark, SEGMENT_HEADER_FRAME_BYTES, SegmentHeader};
use crate::page::EpochId;
use crate::store::bounds::Bounds;
use crate::store::error::StoreError;
use crate::store::medium::{ChainAt, WritableMedium};
use crate::store::names::{Listed, SegmentNumbers};
use crate::store::read::pooled_files::Files;
use crate::store::read::scan;

/// What the end of a segment that was opened says to be durable.
pub(super) fn told_durable(segment: &Active, recovered: &Recovered) -> EpochId {
    let is_new = segment.end == SEGMENT_HEADER_FRAME_BYTES as u64;
    if is_new || recovered.closed { recovered.tip } else { EpochId::NONE }
}

pub(super) struct Opened {
    pub(super) segment: Active,
    pub(super) mark: MarkFile,
    pub(super) head: Head,
    pub(super) image_bytes: u64,
    /// Bytes of the segments before the last.
    pub(super) full_bytes: u64,
    pub(super) recovered: Recovered,
}

/// Files that are open at a time while a chain is read back.
pub(super) const OPEN_FILES: usize = 8;

/// Reads the chain back, cuts off a torn tail, and makes what is left durable. Where it does not
/// hold epoch `least`, nothing is changed.
pub(super) fn recover(
    dir: &Path,
    own: &Arc<dyn WritableMedium>,
    description: &Arc<Description>,
    (least, bounds): (EpochId, Bounds),
) -> Result<Opened, StoreError> {
    let medium = own.as_ref();
    let names = medium.list().map_err(StoreError::io("list", dir))?;
    let listed = Listed::new(&names);
    if let Some(last) = listed.live.last() {
        // After a failed sync the system may keep, as clean, what the medium does not have.
        // Segments before the last were synced before the last was made.
        let path = dir.join(last.file_name());
        let file = medium.open_to_write(&last.file_name()).map_err(StoreError::io("open", &path))?;
        file.sync().map_err(StoreError::io("sync", &path))?;
        file.forget_cached();
    }
    let from = begins_at(description);
    let scan = scan::scan(dir, medium, description, from, (&Files::new(OPEN_FILES, bounds), &ChainAt::own(own.clone())))?;
    if let Some(damage) = scan.damage {
        return Err(StoreError::Damaged(damage));
    }
    let (tip, tip_hash) = (scan.newest, scan.newest_hash);
    if tip < least {
        let (expected, found) = (format!("epoch {least}, which was durable"), format!("{tip} as the newest"));
        return Err(StoreError::Displaced { path: dir.to_owned(), expected, found });
    }
    let last = scan.end.map_or(0, |(numbers, _)| numbers.last);
    for (numbers, _) in scan.files.iter().rev().filter(|(numbers, _)| numbers.last > last) {
        let name = numbers.file_name();
        medium.remove(&name).map_err(StoreError::io("remove", dir.join(&name)))?;
    }
    for name in names.iter().filter(|name| name.ends_with(".tmp")).filter(|name| listed.leftovers(&names).contains(name)) {
        medium.remove(name).map_err(StoreError::io("remove", dir.join(name)))?;
    }
    let segment = match scan.end {
        None => make_segment(dir, medium, description, 1, from)?,
        Some((numbers, end)) => {
            let name = numbers.file_name();
            let path = dir.join(&name);
            let file = medium.open_to_write(&name).map_err(StoreError::io("open", &path))?;
            if scan.files.iter().any(|(file, bytes)| *file == numbers && *bytes > end) {
                file.set_len(end).map_err(StoreError::io("cut back", &path))?;
            }
            file.sync().map_err(StoreError::io("sync", &path))?;
            medium.sync().map_err(StoreError::io("sync", dir))?;
            // Whether it is sound or not: one that does not fit would be neither an index of what
            // is appended nor of what was there.
            let has_index = names.contains(&numbers.index_name());
            Active::new(numbers, file, end, has_index || numbers.is_compacted())
        }
    };
    let mut mark = MarkFile::open(dir, medium, description)?;
    mark.firmly_durable(Mark { epoch: tip, identity: tip_hash });
    let epochs = scan.segments.iter().try_fold(0, |sum, segment| Ok::<_, StoreError>(sum + segment.epochs()?))?;
    let epochs = usize::try_from(epochs).unwrap_or(usize::MAX);
    let recovered = Recovered { tip, epochs, torn: scan.tail, closed: scan.closed };
    let image_bytes = scan.files.first().map_or(0, |(_, bytes)| *bytes);
    let full_bytes =
        scan.files.iter().filter(|(numbers, _)| numbers.last < last).fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
    let mut newest = None;
    for segment in scan.segments.iter().rev() {
        if let Some(last) = segment.epochs()?.checked_sub(1) {
            newest = Some(CutTime::from(&segment.epoch(last)?.commit));
            break;
        }
    }
    let head = Head { epoch: tip, identity: tip_hash, cut: newest };
    Ok(Opened { segment, mark, head, image_bytes, full_bytes, recovered })
}

pub(super) fn make_segment(
    dir: &Path,
    medium: &dyn WritableMedium,
    description: &Description,
    number: u32,
    (previous, previous_hash): (EpochId, u128),
) -> Result<Active, StoreError> {
    let numbers = SegmentNumbers::one(number);
    let name = numbers.file_name();
    let header = SegmentHeader { format: description.format, number, more: 0, chain: description.chain, previous_hash, previous };
    let make = || {
        let file = medium.create(&name)?;
        file.write(0, &[&header.encode_frame()])?;
        file.sync()?;
        medium.sync()?;
        Ok(file)
    };
    let file = make().map_err(StoreError::io("make", dir.join(&name)))?;
    Ok(Active::new(numbers, file, SEGMENT_HEADER_FRAME_BYTES as u64, false))
}

/// The epoch that a chain begins behind, and its identity.
pub(super) fn begins_at(description: &Description) -> (EpochId, u128) {
    description.branch_of.as_ref().map_or((EpochId::NONE, 0), |point| (point.epoch, point.identity))
}
