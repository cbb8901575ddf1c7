//! Where a chain is in a store, without a descriptor for it.

use std::io;
use std::sync::Arc;

use super::traits::{Medium, MediumFile};
use crate::store::names::BRANCHES;

/// The directory of a chain, from the directory of the store on. Nothing is held open for it: a
/// store may have more branches than a process may have files open.
#[derive(Clone, Debug)]
pub(in crate::store) struct ChainAt {
    pub(in crate::store) root: Arc<dyn Medium>,
    /// None for the chain that is no branch.
    pub(in crate::store) branch: Option<String>,
}

impl ChainAt {
    /// A chain in this very directory.
    pub(in crate::store) fn own(medium: Arc<dyn Medium>) -> Self {
        Self { root: medium, branch: None }
    }

    /// Opens the directory.
    pub(in crate::store) fn directory(&self) -> io::Result<Arc<dyn Medium>> {
        match &self.branch {
            None => Ok(self.root.clone()),
            Some(branch) => self.root.directory(BRANCHES)?.directory(branch),
        }
    }

    /// Opens a file in it.
    pub(in crate::store) fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        self.directory()?.open(name).map(Arc::from)
    }
}
