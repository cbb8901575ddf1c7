//! The directory of a chain, for those who change it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::store::error::StoreError;
use crate::store::medium::WritableMedium;
use crate::store::names::BRANCHES;
use crate::store::read::place_of;

/// The directory of the chain `branch` of a store, `main` or a branch.
///
/// # Errors
/// No such branch; what the operating system refuses.
pub(in crate::store) fn place_to_write(
    root: &Path,
    medium: &Arc<dyn WritableMedium>,
    branch: &str,
) -> Result<(PathBuf, Arc<dyn WritableMedium>), StoreError> {
    let (dir, own) = place_of(root, medium.as_ref(), branch)?;
    if own.is_none() {
        return Ok((dir, medium.clone()));
    }
    let opened = medium.directory_to_write(BRANCHES).and_then(|branches| branches.directory_to_write(branch));
    opened.map(|own| (dir.clone(), own)).map_err(StoreError::io("open", dir))
}
