//! Writing the file that says which epoch was durable, apart from the segments. Follows
//! `docs/format.md`, "The mark".

use std::io;
use std::path::Path;

use crate::format::{ChainId, Description, MARK_BLOCK_BYTES, Mark};
use crate::store::error::{StoreError, causes};
use crate::store::medium::{WritableFile, WritableMedium};
use crate::store::names::MARK;
use crate::store::read::mark::{newest, slots};

/// The mark of a chain that is written.
#[derive(Debug)]
pub(in crate::store) struct MarkFile {
    file: Box<dyn WritableFile>,
    chain: ChainId,
    /// What the synced slots say at most, and which of them says it.
    firm: Option<(usize, Mark)>,
    /// It could not be written, and that was said.
    failed: bool,
}

/// The slot that is written without a sync of its own. It is the first: whoever copies a part of
/// the file has the newest of it.
const LOOSE: usize = 0;

impl MarkFile {
    /// Makes the mark of a chain in which nothing but `begins` is durable, in the place of one that
    /// a chain that was never finished left. Durable when this returns.
    pub(in crate::store) fn create(
        dir: &Path,
        medium: &dyn WritableMedium,
        chain: ChainId,
        begins: Mark,
    ) -> Result<Self, StoreError> {
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
    pub(in crate::store) fn open(dir: &Path, medium: &dyn WritableMedium, description: &Description) -> Result<Self, StoreError> {
        let open = || {
            let file = medium.open_to_write(MARK)?;
            // Only what was synced survives a power cut.
            let [_, one, other] = slots(file.as_ref(), description.chain)?.map_err(io::Error::other)?;
            let firm = newest([None, one, other]);
            Ok(Self { firm, file, chain: description.chain, failed: false })
        };
        open().map_err(StoreError::io("open", dir.join(MARK)))
    }

    /// The epoch and all before it are durable, as a sync just said. Costs one small write, which a
    /// killed process leaves behind.
    ///
    /// A mark that can't be written proves less, and nothing is lost with it: the epochs are where
    /// they are.
    pub(in crate::store) fn durable(&mut self, mark: Mark) {
        let written = self.write(LOOSE, mark);
        self.report(written);
    }

    /// As [`durable`](Self::durable), and survives a power cut.
    pub(in crate::store) fn firmly_durable(&mut self, mark: Mark) {
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
