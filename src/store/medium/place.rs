//! What was locked, and whether it is still what everybody else finds: who writes stays with what
//! was opened, and says so where that is somewhere else now.

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::traits::{Displaced, FileId, HeldLock, Lock, MediumFile, WritableMedium};
use crate::store::error::StoreError;

/// A lock of a chain or of a store, in the directory that was opened.
#[derive(Debug)]
pub(in crate::store) struct Place {
    dir: PathBuf,
    medium: Arc<dyn WritableMedium>,
    name: &'static str,
    lock: Box<dyn HeldLock>,
}

impl Place {
    /// Takes the lock, or says who has it. `text` is what others are told.
    pub(in crate::store) fn lock(
        dir: &Path,
        medium: &Arc<dyn WritableMedium>,
        name: &'static str,
        text: &str,
    ) -> Result<Self, StoreError> {
        match medium.lock(name, text).map_err(StoreError::io("lock", dir.join(name)))? {
            Lock::Held(lock) => Ok(Self { dir: dir.to_owned(), medium: medium.clone(), name, lock }),
            Lock::Taken(holder) => Err(StoreError::InUse { dir: dir.to_owned(), holder }),
        }
    }

    /// Where the lock's directory was opened.
    pub(in crate::store) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether whoever opens the chain now comes to this directory and to this lock.
    ///
    /// # Errors
    /// [`StoreError::Displaced`] where not, or where it cannot be told.
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        self.medium.check_place().map_err(|Displaced { path, expected, found }| StoreError::Displaced {
            path,
            expected,
            found,
        })?;
        self.check_name(self.name, "the lock that is held", self.lock.id())
    }

    /// Whether `name` still is `file`, and that has as many bytes as it should.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(in crate::store) fn check_file(
        &self,
        name: &str,
        file: &dyn MediumFile,
        bytes: RangeInclusive<u64>,
    ) -> Result<(), StoreError> {
        self.check_name(name, "the segment that is written", file.id())?;
        let (least, most) = bytes.clone().into_inner();
        let found = match file.len() {
            Ok(found) if bytes.contains(&found) => return Ok(()),
            Ok(found) => format!("{found} bytes"),
            Err(error) => error.to_string(),
        };
        let expected = if least == most { format!("{least} bytes") } else { format!("{least} to {most} bytes") };
        Err(StoreError::Displaced { path: self.dir.join(name), expected, found })
    }

    fn check_name(&self, name: &str, what: &str, held: io::Result<FileId>) -> Result<(), StoreError> {
        let displaced = |expected: String, found| Err(StoreError::Displaced { path: self.dir.join(name), expected, found });
        match (held, self.medium.file_id(name)) {
            (Ok(held), Ok(Some(found))) if held == found => Ok(()),
            (Ok(held), Ok(Some(found))) => displaced(format!("{what} ({held})"), format!("another file ({found})")),
            (Ok(held), Ok(None)) => displaced(format!("{what} ({held})"), "no such file".to_owned()),
            (Err(error), _) | (_, Err(error)) => displaced(what.to_owned(), error.to_string()),
        }
    }
}
