//! Where a chain of a store is, and what its description says.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::{DESCRIPTION_BYTES_MAX, Description, FormatError, MAIN_BRANCH, is_branch_name};
use crate::store::error::StoreError;
use crate::store::medium::Medium;
use crate::store::names::{BRANCHES, DESCRIPTION};

/// The directory of a branch, and its medium where it is not the store's own.
pub(in crate::store) fn place_of(
    root: &Path,
    medium: &dyn Medium,
    branch: &str,
) -> Result<(PathBuf, Option<Arc<dyn Medium>>), StoreError> {
    if branch == MAIN_BRANCH {
        return Ok((root.to_owned(), None));
    }
    if !is_branch_name(branch) {
        return Err(StoreError::BranchName { name: branch.to_owned() });
    }
    let opened = medium.directory(BRANCHES).and_then(|branches| {
        let medium = branches.directory(branch)?;
        Ok((medium.list()?, medium))
    });
    match opened {
        Ok((names, medium)) if names.iter().any(|name| name == DESCRIPTION) => {
            Ok((root.join(BRANCHES).join(branch), Some(medium)))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("open", root.join(BRANCHES).join(branch))(error))
        }
        _ => Err(StoreError::NoBranch { dir: root.to_owned(), name: branch.to_owned() }),
    }
}

pub(in crate::store) fn read_description(dir: &Path, medium: &dyn Medium) -> Result<Description, StoreError> {
    let names = medium.list().map_err(StoreError::io("list", dir))?;
    if names.is_empty() {
        return Err(StoreError::Empty { dir: dir.to_owned() });
    }
    if !names.iter().any(|name| name == DESCRIPTION) {
        return Err(StoreError::NotAStore { dir: dir.to_owned() });
    }
    let path = dir.join(DESCRIPTION);
    let file = medium.open(DESCRIPTION).map_err(StoreError::io("open", &path))?;
    // One byte more than there may be, so that a file that is too long shows.
    let room = file.len().map_err(StoreError::io("read", &path))?.min(DESCRIPTION_BYTES_MAX as u64 + 1);
    let mut bytes = vec![0; usize::try_from(room).unwrap_or_default()];
    let read = file.read(0, &mut bytes).map_err(StoreError::io("read", &path))?;
    bytes.truncate(read);
    Description::parse(&bytes).map_err(|error| match error {
        FormatError::Version { found, .. } => StoreError::Version { file: path, found },
        source => StoreError::Description { file: path, source },
    })
}
