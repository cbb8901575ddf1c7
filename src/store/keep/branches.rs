//! The branches of a store, and the epochs that they need.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crate::format::{MAIN_BRANCH, is_branch_name};
use crate::page::EpochId;
use crate::store::error::StoreError;
use crate::store::medium::{Directory, Medium};
use crate::store::names::{BRANCHES, DESCRIPTION};
use crate::store::read::read_description;

/// A branch of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Branch {
    /// Its name.
    pub name: String,
    /// The chain that it begins in: `main`, or another branch. The epoch may be one that this has
    /// from the chain that it begins in itself.
    pub of: String,
    /// The epoch that it begins at.
    pub epoch: EpochId,
    /// That epoch's identity.
    pub identity: u128,
}

/// The branches of the store in `dir`, by name. A directory without a description is none, nor is a
/// chain that begins nowhere.
///
/// # Errors
/// No store in `dir`; a branch whose description is damaged or of another version; what the
/// operating system refuses.
pub fn branches(dir: impl AsRef<Path>) -> Result<Vec<Branch>, StoreError> {
    let dir = dir.as_ref();
    let medium = Directory::open(dir)?;
    read_description(dir, &medium)?;
    branches_on(dir, &medium)
}

pub(in crate::store) fn branches_on(root: &Path, medium: &dyn Medium) -> Result<Vec<Branch>, StoreError> {
    let place = root.join(BRANCHES);
    let medium = match medium.directory(BRANCHES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(StoreError::io("open", &place))?,
    };
    let mut names = medium.list().map_err(StoreError::io("list", &place))?;
    names.retain(|name| is_branch_name(name));
    names.sort_unstable();
    let mut branches = Vec::new();
    for name in names {
        let dir = place.join(&name);
        let medium = match medium.directory(&name) {
            Ok(medium) => medium,
            // Gone since, or a file.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(StoreError::io("open", &dir)(error)),
        };
        let names = medium.list().map_err(StoreError::io("list", &dir))?;
        if !names.iter().any(|name| name == DESCRIPTION) {
            // Not made yet.
            continue;
        }
        if let Some(point) = read_description(&dir, medium.as_ref())?.branch_of {
            branches.push(Branch { name, of: point.branch, epoch: point.epoch, identity: point.identity });
        }
    }
    Ok(branches)
}

/// The epochs of `chain` (`main`, or a branch) that branches begin at: none of them may be dropped.
///
/// Where a branch begins in another at an epoch that this one has from a third, which no
/// [`Writer`](super::Writer) makes, the third has to keep it. Where that cannot be told, because a
/// branch in between is missing, every chain keeps it.
pub(in crate::store) fn pinned(branches: &[Branch], chain: &str) -> BTreeSet<EpochId> {
    let by_name: BTreeMap<&str, &Branch> = branches.iter().map(|branch| (branch.name.as_str(), branch)).collect();
    let holds = |branch: &Branch| {
        let mut holder = branch.of.as_str();
        // As many steps as there are branches: names that lead round in a circle end.
        for _ in 0..=branches.len() {
            if holder == MAIN_BRANCH {
                return chain == MAIN_BRANCH;
            }
            match by_name.get(holder) {
                Some(between) if branch.epoch <= between.epoch => holder = between.of.as_str(),
                Some(_) => return chain == holder,
                None => return true,
            }
        }
        true
    };
    branches.iter().filter(|branch| holds(branch)).map(|branch| branch.epoch).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use super::*;
    use crate::store::testing::new_chain;
    use crate::store::{Writer, WriterOptions};

    fn branch(name: &str, of: &str, epoch: u64) -> Branch {
        Branch { name: name.to_owned(), of: of.to_owned(), epoch: EpochId(epoch), identity: 0 }
    }

    #[test]
    fn the_chain_that_holds_the_epoch_keeps_it() {
        // b begins at main's 5; c in b's own part; d in what b has from main; e in what d has from
        // main; f in nothing that there is.
        let mut all =
            vec![branch("b", "main", 5), branch("c", "b", 8), branch("d", "b", 3), branch("e", "d", 2), branch("g", "c", 9)];
        let pins = |all: &[Branch], chain: &str| pinned(all, chain).into_iter().map(|epoch| epoch.0).collect::<Vec<_>>();
        assert_eq!(pins(&all, "main"), [2, 3, 5]);
        assert_eq!(pins(&all, "b"), [8]);
        assert_eq!(pins(&all, "c"), [9]);
        assert_eq!(pins(&all, "d"), [0; 0]);
        all.push(branch("f", "gone", 4));
        assert_eq!(pins(&all, "main"), [2, 3, 4, 5]);
        assert_eq!(pins(&all, "d"), [4]);
        let circle = [branch("x", "y", 7), branch("y", "x", 7)];
        assert_eq!(pins(&circle, "main"), [7]);
    }

    #[test]
    fn what_is_no_branch_is_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        assert!(matches!(branches(&root), Err(StoreError::Missing { .. })));
        drop(Writer::create(&root, &new_chain(), WriterOptions::default()).unwrap());
        assert_eq!(branches(&root).unwrap(), []);
        let place = root.join("branches");
        fs::create_dir_all(place.join("begun")).unwrap();
        fs::create_dir_all(place.join(".hidden")).unwrap();
        fs::write(place.join("file"), "").unwrap();
        fs::create_dir_all(place.join("copy")).unwrap();
        fs::copy(root.join(DESCRIPTION), place.join("copy").join(DESCRIPTION)).unwrap();
        assert_eq!(branches(&root).unwrap(), []);
        fs::write(place.join("begun").join(DESCRIPTION), "x\n").unwrap();
        assert!(branches(&root).unwrap_err().is_damage());
    }
}
