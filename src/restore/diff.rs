//! What differs between two epochs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Serialize;

use super::eager_fill::PageTarget;
use super::error::{RestoreError, TargetError};
use super::plan::Plan;
use crate::format::StateRecord;
use crate::page::{EpochId, Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageBytes};
use crate::store::Chain;
use crate::xxh3::xxh3_64;

/// A page that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PageChange {
    /// The page.
    pub gfn: Gfn,
    /// How many of its bytes differ: 1 to 4096.
    pub bytes: u64,
}

/// A state record that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StateChange {
    /// The record's name.
    pub name: String,
    /// The record's index: the vCPU, or the instance of a device.
    pub index: u32,
}

/// What differs between two epochs, in content: a page that was written and is as it was before
/// does not differ.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// One epoch.
    pub a: EpochId,
    /// The other.
    pub b: EpochId,
    /// The pages, rising.
    pub pages: Vec<PageChange>,
    /// How many of them are zeros at `a`.
    pub zero_at_a: u64,
    /// How many of them are zeros at `b`.
    pub zero_at_b: u64,
    /// The state records that are not the same, or that only one of the epochs has; by name and
    /// index.
    pub state: Vec<StateChange>,
}

/// Why two epochs could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// The chain does not give what is needed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The chains are of machines whose memory is not the same.
    #[error("the two are of machines with different memory")]
    Memory,
    /// The file for pages that differ can't be used.
    #[error("the file for pages that differ could not be {action}")]
    Spill {
        /// `written` or `read`.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Compares memory and state of two epochs, of one chain or of two: of branches, or of two machines
/// with the same memory.
///
/// Both are read through, one after the other, and the first once more where pages differ. What is
/// kept in memory is 16 bytes a page that is not zeros, and 16 more for one that differs, 64 MiB
/// for 16 GiB of guest memory; the content of pages that differ goes to `spill`, an empty file that
/// is worth nothing afterwards. `progress` is called with the number of pages done and in all.
///
/// # Errors
/// An epoch that a chain does not hold; damage; machines with different memory; a spill that can't
/// be written or read.
pub fn diff(
    (chain_a, a): (&Chain, EpochId),
    (chain_b, b): (&Chain, EpochId),
    spill: &File,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Difference, DiffError> {
    if chain_a.description().memory != chain_b.description().memory {
        return Err(DiffError::Memory);
    }
    let (plan_a, plan_b) = (Plan::new(chain_a, a)?, Plan::new(chain_b, b)?);
    let mut found =
        Difference { a, b, pages: Vec::new(), zero_at_a: 0, zero_at_b: 0, state: state(plan_a.state(), plan_b.state()) };
    let identity = |chain: &Chain, epoch| chain.epoch(epoch).map(|epoch| epoch.identity).map_err(RestoreError::from);
    if identity(chain_a, a)? == identity(chain_b, b)? {
        // The same epoch, also where branches share it.
        return Ok(found);
    }
    let total = plan_a.pages().saturating_mul(2).saturating_add(plan_b.pages());

    let mut hashes = Hashes(Vec::new());
    plan_a.fill(&mut hashes, &mut |done, _| progress(done, total))?;
    hashes.0.sort_unstable();

    let seen = vec![false; hashes.0.len()];
    let mut compared = Compared { a: &hashes.0, seen, spill, spilled: Vec::new(), pages: &mut found.pages };
    plan_b
        .fill(&mut compared, &mut |done, _| progress(plan_a.pages() + done, total))
        .map_err(RestoreError::of_target::<DiffError>)?;
    let Compared { seen, mut spilled, .. } = compared;
    found.zero_at_a = found.pages.len() as u64;
    let gone = hashes.0.iter().zip(seen).filter(|(_, seen)| !seen).map(|((gfn, _), _)| (*gfn, None));
    let before = spilled.len();
    spilled.extend(gone);
    found.zero_at_b = (spilled.len() - before) as u64;
    drop(hashes);

    if !spilled.is_empty() {
        spilled.sort_unstable();
        let mut counted = Counted { spilled: &spilled, spill, pages: &mut found.pages };
        let done_before = plan_a.pages() + plan_b.pages();
        plan_a
            .fill(&mut counted, &mut |done, _| progress(done_before + done, total))
            .map_err(RestoreError::of_target::<DiffError>)?;
    }
    found.pages.sort_unstable_by_key(|page| page.gfn);
    Ok(found)
}

/// The pages of one epoch that are not zeros, as they come.
struct Hashes(Vec<(Gfn, u64)>);

impl PageTarget for Hashes {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        self.0.push((gfn, xxh3_64(page)));
        Ok(())
    }
}

/// Holds the pages of the other epoch against them.
struct Compared<'a> {
    /// Rising.
    a: &'a [(Gfn, u64)],
    /// For each of `a`: whether the other epoch has it as well.
    seen: Vec<bool>,
    spill: &'a File,
    /// Pages that differ, and which page of the spill has what they hold at the other epoch; none
    /// for zeros.
    spilled: Vec<(Gfn, Option<u32>)>,
    /// Pages that were zeros.
    pages: &'a mut Vec<PageChange>,
}

impl PageTarget for Compared<'_> {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        let Ok(place) = self.a.binary_search_by_key(&gfn, |(gfn, _)| *gfn) else {
            self.pages.push(PageChange { gfn, bytes: differing(page, &[0; PAGE_SIZE]) });
            return Ok(());
        };
        if let Some(seen) = self.seen.get_mut(place) {
            *seen = true;
        }
        if self.a.get(place).is_some_and(|(_, hash)| *hash != xxh3_64(page)) {
            let slot = u32::try_from(self.spilled.len())?;
            let written = self.spill.write_all_at(page, u64::from(slot) * PAGE_SIZE_U64);
            written.map_err(|source| DiffError::Spill { action: "written", source })?;
            self.spilled.push((gfn, Some(slot)));
        }
        Ok(())
    }
}

/// Counts the bytes that differ.
struct Counted<'a> {
    /// Rising.
    spilled: &'a [(Gfn, Option<u32>)],
    spill: &'a File,
    pages: &'a mut Vec<PageChange>,
}

impl PageTarget for Counted<'_> {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        let place = self.spilled.binary_search_by_key(&gfn, |(gfn, _)| *gfn);
        let Some((_, slot)) = place.ok().and_then(|place| self.spilled.get(place)) else { return Ok(()) };
        let mut other = [0; PAGE_SIZE];
        if let Some(slot) = slot {
            let read = self.spill.read_exact_at(&mut other, u64::from(*slot) * PAGE_SIZE_U64);
            read.map_err(|source| DiffError::Spill { action: "read", source })?;
        }
        self.pages.push(PageChange { gfn, bytes: differing(page, &other) });
        Ok(())
    }
}

fn differing(one: &PageBytes, other: &PageBytes) -> u64 {
    one.iter().zip(other).map(|(one, other)| u64::from(one != other)).sum()
}

fn state(a: &[StateRecord], b: &[StateRecord]) -> Vec<StateChange> {
    let by_name = |records: &'_ [StateRecord]| -> BTreeMap<_, _> {
        records.iter().map(|record| ((record.name.clone(), record.index), (record.version, record.data.clone()))).collect()
    };
    let (mut a, mut b) = (by_name(a), by_name(b));
    a.retain(|key, value| b.get(key) != Some(value) || b.remove(key).is_none());
    a.append(&mut b);
    a.into_keys().map(|(name, index)| StateChange { name, index }).collect()
}
