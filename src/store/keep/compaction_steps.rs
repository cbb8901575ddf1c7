//! What is compacted where there is no room to do it at once: the step that frees the most of those
//! that fit. Each frees before the next begins.

use std::collections::BTreeSet;
use std::ops::Range;

use super::epoch_bytes::{Seen, sum};
use super::expected_bytes::expected;
use crate::page::EpochId;
use crate::store::bounds::Bounds;
use crate::store::error::StoreError;
use crate::store::read::Segment;

/// No step takes more segments than this, but for the one that does all.
const SEGMENTS_MOST: usize = 32;

/// What may be done with the room that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Step {
    /// These segments.
    These(Range<usize>),
    /// Nothing: so much room is needed.
    Needs(u64),
}

/// At most about so many bytes a segment has that stands for these, with its index: a quarter more
/// than their pages have now. What it comes to is watched while it is written.
pub(in crate::store) fn at_most(
    segments: &[Segment],
    seen: &[Seen],
    kept: &BTreeSet<EpochId>,
    bounds: &Bounds,
) -> Result<u64, StoreError> {
    let mut kept: BTreeSet<EpochId> = seen
        .iter()
        .flat_map(|segment| &segment.epochs)
        .map(|epoch| epoch.cut.epoch)
        .filter(|epoch| kept.contains(epoch))
        .collect();
    let epochs: Vec<_> = seen.iter().flat_map(|segment| segment.epochs.iter().copied()).collect();
    // The last one stays in any case.
    kept.extend(epochs.last().map(|epoch| epoch.cut.epoch));
    let bytes = expected(segments, &epochs, &kept)?.at_most();
    let index = bytes / 64 + 64 * kept.len() as u64;
    Ok(bytes.saturating_add(index).saturating_add(bounds.slack_bytes))
}

/// Chooses among the windows of `segments`, which `seen` describes. With `joins`, fewer segments
/// are a gain of their own.
pub(in crate::store) fn choose(
    segments: &[Segment],
    seen: &[Seen],
    kept: &BTreeSet<EpochId>,
    (room, bounds): (u64, &Bounds),
    joins: bool,
) -> Result<Step, StoreError> {
    let mut best: Option<(u64, Range<usize>)> = None;
    let mut least = None::<u64>;
    let mut size = 1;
    while size <= seen.len().min(SEGMENTS_MOST) {
        for begin in (0..=seen.len() - size).step_by((size / 2).max(1)) {
            let window = begin..begin + size;
            let (Some(of), Some(files)) = (seen.get(window.clone()), segments.get(window.clone())) else { continue };
            if !joins && !has_waste(of, kept) {
                continue;
            }
            let needs = at_most(files, of, kept, bounds)?;
            let freed = sum(of, |segment| segment.bytes).saturating_sub(needs);
            let gain = if joins && size > 1 { freed.max(size as u64) } else { freed };
            let is_useful = if joins { size > 1 } else { freed >= bounds.freed_bytes_least.max(needs / 8) };
            if !is_useful {
                continue;
            }
            least = Some(least.map_or(needs, |least| least.min(needs)));
            if needs <= room && best.as_ref().is_none_or(|(most, _)| gain > *most) {
                best = Some((gain, window));
            }
        }
        size *= 2;
    }
    Ok(match best {
        Some((_, window)) => Step::These(window),
        None => Step::Needs(match least {
            Some(least) => least,
            // No part of it frees anything: it takes all at once.
            None => at_most(segments, seen, kept, bounds)?,
        }),
    })
}

/// Whether an epoch of these segments goes: the last one never does.
fn has_waste(seen: &[Seen], kept: &BTreeSet<EpochId>) -> bool {
    let mut epochs = seen.iter().flat_map(|segment| &segment.epochs).rev();
    epochs.next();
    epochs.any(|epoch| !kept.contains(&epoch.cut.epoch))
}
