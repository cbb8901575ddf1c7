//! Reading the file that says which epoch was durable, apart from the segments. Follows
//! `docs/format.md`, "The mark".

use std::io;
use std::path::Path;

use super::pooled_files::Files;
use crate::format::{ChainId, Description, FormatError, MARK_BYTES, MARK_SLOTS, Mark};
use crate::page::EpochId;
use crate::store::damage::Damage;
use crate::store::error::StoreError;
use crate::store::medium::{Medium, MediumFile};
use crate::store::names::MARK;

/// What there is of a mark.
#[derive(Clone, Debug)]
pub(in crate::store) enum Found {
    /// The newest epoch that it calls durable.
    Whole(Mark),
    /// It is not there, or not whole: what was durable is not known.
    Damaged(Damage),
}

/// Reads the mark of the chain in `dir`. To be asked before the directory is listed: a writer may
/// go on meanwhile, and what it calls durable then must be there.
///
/// # Errors
/// What the operating system refuses.
pub(in crate::store) fn read(
    dir: &Path,
    medium: &dyn Medium,
    description: &Description,
    files: &Files,
) -> Result<Found, StoreError> {
    let path = dir.join(MARK);
    let damaged = |offset, expected: String, found: String| {
        let found = format!("{found}: what was durable is not known");
        Ok(Found::Damaged(Damage { file: path.clone(), offset, epoch: EpochId::NONE, expected, found }))
    };
    let expected = || "a file that says which epoch was durable".to_owned();
    let file = match files.with_room(|| medium.open(MARK)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged(0, expected(), "no such file".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return damaged(0, expected(), error.to_string()),
        Err(error) => return Err(StoreError::io("open", &path)(error)),
    };
    match slots(file.as_ref(), description.chain).map_err(StoreError::io("read", &path))? {
        Ok(slots) => match newest(slots) {
            Some((_, mark)) => Ok(Found::Whole(mark)),
            None => damaged(0, expected(), "none".to_owned()),
        },
        Err(error) => damaged(error.offset(), error.expected(), error.found()),
    }
}

pub(in crate::store) type Slots = [Option<Mark>; MARK_SLOTS];

pub(in crate::store) fn slots(file: &dyn MediumFile, chain: ChainId) -> io::Result<Result<Slots, FormatError>> {
    // One byte more than there may be, so that a file that is too long shows.
    let mut bytes = vec![0; MARK_BYTES + 1];
    let read = file.read(0, &mut bytes)?;
    Ok(Mark::parse(bytes.get(..read).unwrap_or_default(), chain))
}

/// The slot with the highest epoch, and what it says: what each of them says is true.
pub(in crate::store) fn newest(slots: Slots) -> Option<(usize, Mark)> {
    let sound = slots.into_iter().enumerate().filter_map(|(number, mark)| Some((number, mark?)));
    sound.max_by_key(|(_, mark)| mark.epoch)
}
