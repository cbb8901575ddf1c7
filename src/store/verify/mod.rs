//! Checks a chain with a reader of its own.
//!
//! Everything here is written from `docs/format.md` alone and shares no code with the reader and the writer that it judges: a
//! mistake in one of them shows as a difference. It reads every byte of every segment, checks every promise that the page makes, and
//! recomputes every audit digest from the chain.
//!
//! What is wrong is in the [`VerifyReport`]; a [`VerifyError`] says only that there was nothing to verify. Memory is bounded by one
//! frame's payload, by 256 MiB of pages that changed lately, and by 16 bytes of hash, plus bookkeeping, for each page that the chain really
//! stores. Time is linear in the chain's size whatever its bytes are: what a change builds on is 16 blocks at most.

mod content;
mod digest;
mod epoch;
mod frame;
mod identity;
mod pieces;
mod report;
#[cfg(test)]
mod tests;
mod versions;
mod walk;

use std::path::Path;

pub use report::{Damage, DamageKind, Progress, TornTail, VerifyError, VerifyOptions, VerifyReport};

/// Checks the chain in `dir` and says what it found. `progress` is called now and then, at least once a segment.
///
/// A writer may be at work on the chain meanwhile. The segments' lengths are looked up once, at the start, so what the writer has not
/// committed by then appears as a torn tail.
///
/// # Errors
/// Where there is nothing to verify: `dir` is missing or is no directory, its identity is missing, unreadable or of another format
/// version, or the medium gave an error. Damage is never an error.
pub fn verify(dir: &Path, options: &VerifyOptions, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport, VerifyError> {
    let identity = identity::read(dir)?;
    let segments = pieces::segments(dir)?;
    walk::Walk::new(&identity, &segments, options).run(progress)
}
