//! Checks a store with a reader of its own.
//!
//! Everything here is written from `docs/format.md` alone and shares no code with the reader and
//! the writer that it judges: a mistake in one of them shows as a difference. It reads every byte
//! of every segment, of `main` and of all branches, checks every promise that the page makes,
//! compares every index with the frames of its segment, and recomputes every audit digest from the
//! chain. Or it checks only what one epoch needs.
//!
//! What is wrong is in the [`VerifyReport`]; a [`VerifyError`] says only that there was nothing to
//! verify. Memory is bounded by one frame's payload, by 256 MiB of pages that changed lately, by
//! the largest index, and by 16 bytes of hash and the places of its versions, plus bookkeeping, for
//! each page that the chain really stores; once more for each branch on the way to the one in hand.
//! Time is linear in the store's size whatever its bytes are: what a change builds on is 16 blocks
//! at most.

mod content;
mod damage;
mod description;
mod digest;
mod epoch;
mod frame;
mod index;
mod listing;
mod mark;
mod names;
mod one_epoch;
mod open_files;
mod place;
mod report;
mod segment_file;
#[cfg(test)]
mod tests;
mod totals;
mod versions;
mod walk;

use std::path::Path;
use std::sync::Arc;

pub use damage::{Damage, DamageKind};
pub use report::{
    BranchReport, EpochReport, Leftover, LeftoverKind, Progress, TornTail, VerifyError, VerifyOptions, VerifyReport,
};

use listing::{PAGES_KEPT, Store};
use place::Place;
pub(in crate::store) use place::open_directory;
use totals::Tally;

use super::medium::Medium;

/// Checks the store in `dir` and says what it found. `progress` is called now and then, at least
/// once a segment.
///
/// A writer may be at work on it meanwhile, and a compaction: where one takes away a segment that
/// is still to be read, all is begun again, a few times. The segments' lengths are looked up once,
/// at the start, so an epoch that is not complete by then appears as a torn tail.
///
/// # Errors
/// Where there is nothing to verify: `dir` is missing or is no directory, its description is
/// missing, unreadable or of another format version, there is no such branch or epoch, or the
/// medium gave an error. Damage is never an error.
pub fn verify(dir: &Path, options: &VerifyOptions, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport, VerifyError> {
    verify_on(Arc::new(open_directory(dir)?), dir, options, progress)
}

/// Checks the store on a medium, which was opened as `dir`.
///
/// # Errors
/// As [`verify`].
pub(in crate::store) fn verify_on(
    medium: Arc<dyn Medium>,
    dir: &Path,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport, VerifyError> {
    verify_with(&Place::of_store(medium, dir), options, PAGES_KEPT, progress)
}

fn verify_with(
    place: &Place,
    options: &VerifyOptions,
    pages_kept: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport, VerifyError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let verified = Store::list(place, options.open_files).and_then(|mut store| {
            store.pages_kept = pages_kept;
            let mut report = listed(&store, options, progress)?;
            report.leftovers.splice(..0, store.leftovers);
            Ok(report)
        });
        match verified {
            Err(VerifyError::Replaced { .. }) if tries < TRIES_MAX => {}
            verified => return verified,
        }
    }
}

/// How often a store is verified from the beginning because a compaction took a segment away that
/// was not open.
const TRIES_MAX: u32 = 8;

/// Whether there is a store on a medium at all.
///
/// # Errors
/// As [`verify`].
pub(in crate::store) fn check(medium: Arc<dyn Medium>, dir: &Path) -> Result<(), VerifyError> {
    Store::list(&Place::of_store(medium, dir), report::OPEN_FILES).map(|_| ())
}

/// Checks what was listed of a store.
fn listed(store: &Store, options: &VerifyOptions, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport, VerifyError> {
    let path = options.branch.as_deref().map(|name| store.path_to(name)).transpose()?;
    let asked = path.as_ref().and_then(|path| path.first().copied()).unwrap_or(0);
    if let Some(epoch) = options.epoch {
        return one_epoch::verify(store, asked, epoch, options, progress);
    }
    let mut tally = Tally::new(store, path, options, progress);
    walk::walk(store, options, &mut tally)?;
    Ok(tally.report(asked))
}
