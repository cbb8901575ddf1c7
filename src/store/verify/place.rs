//! Where the chains of a store are, and what there is in each place.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::report::VerifyError;
use crate::store::error::StoreError;
use crate::store::medium::{ChainAt, Directory, Medium, MediumFile, Named};
use crate::store::names::BRANCHES;

/// The directory of a chain.
#[derive(Clone, Debug)]
pub(super) struct Place {
    at: ChainAt,
    path: PathBuf,
}

/// Opens the directory of a store.
pub(in crate::store) fn open_directory(path: &Path) -> Result<Directory, VerifyError> {
    if path.as_os_str().is_empty() {
        return Err(VerifyError::NoDirectory { path: path.to_owned() });
    }
    Directory::open(path).map_err(|error| match error {
        StoreError::Missing { dir } => VerifyError::NoDirectory { path: dir },
        StoreError::DanglingLink { link, to } => VerifyError::DanglingLink { link, to },
        StoreError::NotADirectory { path } => VerifyError::NotADirectory { path },
        StoreError::Io { path, source, .. } => VerifyError::Io { path, offset: 0, source },
        error => VerifyError::Io { path: path.to_owned(), offset: 0, source: io::Error::other(error) },
    })
}

impl Place {
    /// The directory of the store itself, where the chain is that is no branch.
    pub(super) fn of_store(medium: Arc<dyn Medium>, path: &Path) -> Self {
        Self { at: ChainAt::own(medium), path: path.to_owned() }
    }

    /// The names in the directory of this store's branches; none where it has none.
    ///
    /// # Errors
    /// A symbolic link, which is not passed over: what it leads to may be needed. What the
    /// operating system refuses.
    pub(super) fn names_of_branches(&self) -> Result<Vec<String>, VerifyError> {
        match self.at.root.directory(BRANCHES).and_then(|branches| branches.list()) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
            listed => listed.map_err(|error| refused(&self.path.join(BRANCHES), error)),
        }
    }

    /// The directory of a branch of this store.
    ///
    /// # Errors
    /// As [`names_of_branches`](Self::names_of_branches); nothing there.
    pub(super) fn branch(&self, name: &str) -> Result<Self, VerifyError> {
        let at = ChainAt { root: self.at.root.clone(), branch: Some(name.to_owned()) };
        let path = self.path.join(BRANCHES).join(name);
        at.directory().map_err(|error| refused(&path, error))?;
        Ok(Self { at, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> Result<Vec<String>, VerifyError> {
        self.at.directory().and_then(|directory| directory.list()).map_err(|error| refused(&self.path, error))
    }

    pub(super) fn look(&self, name: &str) -> io::Result<Named> {
        self.at.directory()?.look(name)
    }

    /// Opens a file for reading.
    pub(super) fn file(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.at.open(name)
    }

    /// Up to `most` bytes from the beginning of a file.
    pub(super) fn head(&self, name: &str, most: usize) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(most).min(most)];
        let read = file.read(0, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

fn refused(path: &Path, source: io::Error) -> VerifyError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound => VerifyError::NoDirectory { path },
        ErrorKind::NotADirectory => VerifyError::NotADirectory { path },
        _ => VerifyError::Io { path, offset: 0, source },
    }
}
