//! The file that says which epoch was durable, apart from the segments. Follows `docs/format.md`, "The mark".

use std::io;
use std::path::Path;

use super::files::Files;
use super::medium::{Medium, MediumFile};
use super::names::MARK;
use super::{Damage, StoreError, causes};
use crate::format::{ChainId, FormatError, Identity, MARK_BLOCK_BYTES, MARK_BYTES, MARK_SLOTS, Mark};
use crate::page::EpochId;

/// What there is of a mark.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// The newest epoch that it calls durable.
    Whole(Mark),
    /// It is not there, or not whole: what was durable is not known.
    Damaged(Damage),
}

/// Reads the mark of the chain in `dir`. To be asked before the directory is listed: a writer may go on meanwhile, and what it calls durable then
/// must be there.
///
/// # Errors
/// What the operating system refuses.
pub(super) fn read(dir: &Path, medium: &dyn Medium, identity: &Identity, files: &Files) -> Result<Found, StoreError> {
    let path = dir.join(MARK);
    let damaged = |offset, expected: String, found: String| {
        let found = format!("{found}: what was durable is not known");
        Ok(Found::Damaged(Damage { file: path.clone(), offset, epoch: EpochId::NONE, expected, found }))
    };
    let expected = || "a file that says which epoch was durable".to_owned();
    let file = match files.with_room(|| medium.open(MARK, false)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged(0, expected(), "no such file".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return damaged(0, expected(), error.to_string()),
        Err(error) => return Err(StoreError::io("open", &path)(error)),
    };
    match slots(file.as_ref(), identity.chain).map_err(StoreError::io("read", &path))? {
        Ok(slots) => match newest(slots) {
            Some((_, mark)) => Ok(Found::Whole(mark)),
            None => damaged(0, expected(), "none".to_owned()),
        },
        Err(error) => damaged(error.offset(), error.expected(), error.found()),
    }
}

type Slots = [Option<Mark>; MARK_SLOTS];

fn slots(file: &dyn MediumFile, chain: ChainId) -> io::Result<Result<Slots, FormatError>> {
    // One byte more than there may be, so that a file that is too long shows.
    let mut bytes = vec![0; MARK_BYTES + 1];
    let read = file.read(0, &mut bytes)?;
    Ok(Mark::parse(bytes.get(..read).unwrap_or_default(), chain))
}

/// The slot with the highest epoch, and what it says: what each of them says is true.
fn newest(slots: Slots) -> Option<(usize, Mark)> {
    let sound = slots.into_iter().enumerate().filter_map(|(number, mark)| Some((number, mark?)));
    sound.max_by_key(|(_, mark)| mark.epoch)
}

/// The mark of a chain that is written.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: Box<dyn MediumFile>,
    chain: ChainId,
    /// What the synced slots say at most, and which of them says it.
    firm: Option<(usize, Mark)>,
    /// It could not be written, and that was said.
    failed: bool,
}

/// The slot that is written without a sync of its own. It is the first: whoever copies a part of the file has the newest of it.
const LOOSE: usize = 0;

impl MarkFile {
    /// Makes the mark of a chain in which nothing but `begins` is durable, in the place of one that a chain that was never finished left.
    /// Durable when this returns.
    pub(super) fn create(dir: &Path, medium: &dyn Medium, chain: ChainId, begins: Mark) -> Result<Self, StoreError> {
        let make = || {
            if medium.list()?.iter().any(|name| name == MARK) {
                medium.remove(MARK)?;
            }
            let file = medium.create(MARK)?;
            file.write(0, &[&begins.encode_whole(chain)])?;
            file.sync()?;
            medium.sync()?;
            Ok(file)
        };
        let file = make().map_err(StoreError::io("make", dir.join(MARK)))?;
        Ok(Self { file, chain, firm: Some((1, begins)), failed: false })
    }

    /// Opens the mark of a chain that a writer goes on with.
    pub(super) fn open(dir: &Path, medium: &dyn Medium, identity: &Identity) -> Result<Self, StoreError> {
        let open = || {
            let file = medium.open(MARK, true)?;
            // Only what was synced survives a power cut.
            let [_, one, other] = slots(file.as_ref(), identity.chain)?.map_err(io::Error::other)?;
            let firm = newest([None, one, other]);
            Ok(Self { firm, file, chain: identity.chain, failed: false })
        };
        open().map_err(StoreError::io("open", dir.join(MARK)))
    }

    /// The epoch and all before it are durable, as a sync just said. Costs one small write, which a killed process leaves behind.
    ///
    /// A mark that can't be written proves less, and nothing is lost with it: the epochs are where they are.
    pub(super) fn durable(&mut self, mark: Mark) {
        let written = self.write(LOOSE, mark);
        self.report(written);
    }

    /// As [`durable`](Self::durable), and survives a power cut.
    pub(super) fn firmly_durable(&mut self, mark: Mark) {
        if self.firm.is_some_and(|(_, firm)| firm == mark) {
            return;
        }
        // Never the one that says most: a write that is torn takes the other.
        let slot = if self.firm.is_some_and(|(slot, _)| slot == 1) { 2 } else { 1 };
        let written = self.write(LOOSE, mark).and_then(|()| self.write(slot, mark)).and_then(|()| self.file.sync());
        if written.is_ok() {
            self.firm = Some((slot, mark));
        }
        self.report(written);
    }

    fn write(&self, slot: usize, mark: Mark) -> io::Result<()> {
        self.file.write((slot * MARK_BLOCK_BYTES) as u64, &[&mark.encode(self.chain)])
    }

    fn report(&mut self, written: io::Result<()>) {
        match written {
            Ok(()) => self.failed = false,
            Err(error) if !std::mem::replace(&mut self.failed, true) => {
                tracing::warn!(error = causes(&error), "what is durable could not be written to the file `{MARK}`");
            }
            Err(_) => {}
        }
    }
}
