//! Putting one segment in the place of several, and dropping epochs: how a chain stays small.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::branches::{branches_on, pinned};
use super::epoch_bytes::{Seen, sum};
use super::place_to_write::place_to_write;
use super::retention::Retention;
use super::{compaction_steps, make_index, rewrite};
use crate::format::{CutTime, Description};
use crate::page::EpochId;
use crate::store::bounds::Bounds;
use crate::store::error::{StoreError, causes};
use crate::store::medium::{Directory, Medium, Place, WritableMedium, take_lock};
use crate::store::names::{LOCK, Listed, MAINTENANCE, SegmentNumbers};
use crate::store::read::{Chain, ReadOptions, Segment, read_description, walk};

/// Files that are open at a time, so that a writer beside it has those that it needs.
const OPEN_FILES: usize = 8;

/// A compacted segment until it is whole.
const DRAFT: &str = "compact.tmp";

/// What a compaction came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Compacted {
    /// Segments before and after.
    pub segments: (u64, u64),
    /// Epochs before and after.
    pub epochs: (u64, u64),
    /// Bytes of all segments before and after.
    pub bytes: (u64, u64),
}

/// Which epochs are to be kept, of those that exist; the second are those that branches begin at.
pub(in crate::store) type Keep<'a> = &'a dyn Fn(&[CutTime], &BTreeSet<EpochId>) -> BTreeSet<EpochId>;

/// Which segments are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Scope {
    /// All of them.
    All,
    /// Those from the first to the last that hold something to drop.
    WhatIsDropped,
    /// What is worth its while; whether anything is ever dropped makes a difference.
    WhatPays { drops: bool },
}

/// Puts the segments of a chain of the store in `dir` together, `main` or a branch. With `keep`,
/// only the epochs stay that it keeps and those that branches begin at; without, all stay. While
/// somebody writes to the chain, its last segment is left as it is. Where there is not room for all
/// of it at once, it is done in steps, each of which frees room for the next. `progress` is told
/// bytes done and in all, of each step.
///
/// # Errors
/// As [`Chain::open_branch`]; somebody else who compacts the store or makes a branch; damage; what
/// the operating system refuses. Nothing is changed then. [`StoreError::Room`] where no further
/// step fits: those before it are done.
pub fn compact(
    dir: &Path,
    branch: &str,
    keep: Option<&Retention>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Compacted, StoreError> {
    let medium: Arc<dyn WritableMedium> = Arc::new(Directory::open(dir)?);
    let (rules, scope) = keep.map_or((Retention::default(), Scope::All), |rules| (*rules, Scope::WhatIsDropped));
    let kept = |epochs: &[CutTime], pinned: &BTreeSet<EpochId>| rules.kept(epochs, pinned);
    run((dir, &medium), branch, &kept, scope, (0, Bounds::USUAL), &mut |done, total| {
        progress(done, total);
        Ok(())
    })
    .map(|upkeep| upkeep.compacted)
}

/// What was done for a chain, and what it takes to do it again.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Upkeep {
    pub(in crate::store) compacted: Compacted,
    /// About so many bytes have to be free at most so that what is not kept can be dropped at once.
    /// Where there is far more room, all bytes of the chain stand for it.
    pub(in crate::store) needs: u64,
    /// The last segment that was looked at for that, or 0: not the one that somebody writes to.
    pub(in crate::store) last: u32,
}

/// Compacts a chain of the store at `root`, and leaves `spare` bytes of the disk free.
///
/// # Errors
/// Somebody else at it; damage, after which nothing was changed; what the operating system refuses;
/// [`StoreError::Room`].
pub(in crate::store) fn run(
    (root, root_medium): (&Path, &Arc<dyn WritableMedium>),
    branch: &str,
    keep: Keep<'_>,
    scope: Scope,
    (spare, bounds): (u64, Bounds),
    progress: &mut dyn FnMut(u64, u64) -> Result<(), StoreError>,
) -> Result<Upkeep, StoreError> {
    let (dir, medium) = place_to_write(root, root_medium, branch)?;
    let description = Arc::new(read_description(&dir, medium.as_ref())?);
    let maintenance = take_lock(root, root_medium, MAINTENANCE)?;
    // While somebody writes, the last segment is theirs.
    let writer = match take_lock(&dir, &medium, LOCK) {
        Ok(lock) => Some(lock),
        Err(StoreError::InUse { .. }) => None,
        Err(error) => return Err(error),
    };
    // Before anything takes another's place or goes: who moves or replaces the store, or unlocks it
    // by removing a lock, may have another at work in it.
    let check = || [Some(&maintenance), writer.as_ref()].into_iter().flatten().try_for_each(Place::check);
    let (medium, check): (_, &dyn Fn() -> _) = (medium.as_ref(), &check);
    let description = &description;
    let dir = dir.as_path();
    let stepwise = Stepwise {
        root,
        root_medium,
        branch,
        dir,
        medium,
        description,
        keep,
        scope,
        spare,
        bounds,
        is_alone: writer.is_some(),
        check,
    };
    let (mut begun, mut room_most) = (None, u64::MAX);
    loop {
        if let Some(done) = stepwise.step(&mut begun, &mut room_most, progress)? {
            return Ok(done);
        }
    }
}

/// A compaction that is done in as many steps as the room on the disk needs.
struct Stepwise<'a> {
    root: &'a Path,
    root_medium: &'a Arc<dyn WritableMedium>,
    branch: &'a str,
    dir: &'a Path,
    medium: &'a dyn WritableMedium,
    description: &'a Arc<Description>,
    keep: Keep<'a>,
    scope: Scope,
    /// Bytes that are left free.
    spare: u64,
    bounds: Bounds,
    /// Nobody writes to the chain.
    is_alone: bool,
    /// Whether the store is where it was, and locked.
    check: &'a dyn Fn() -> Result<(), StoreError>,
}

/// With less room than this, no smaller step is tried.
const ROOM_MIN: u64 = 64 << 10;

/// With so many times the bytes of a chain free, dropping surely fits.
const PLENTY: u64 = 8;

impl Stepwise<'_> {
    /// Does all at once where there is room, or else a part of it, and returns nothing then: there
    /// is more to do. `begun` is what there was before the first step. `room_most` is lowered where
    /// there turned out to be less room than the system says.
    fn step(
        &self,
        begun: &mut Option<Totals>,
        room_most: &mut u64,
        progress: &mut dyn FnMut(u64, u64) -> Result<(), StoreError>,
    ) -> Result<Option<Upkeep>, StoreError> {
        let chain = Arc::new(self.open()?);
        if let Some(damage) = chain.damage().first() {
            return Err(StoreError::Damaged(damage.clone()));
        }
        let pinned = pinned(&branches_on(self.root, self.root_medium.as_ref())?, self.branch);
        let seen = Seen::all(&chain)?;
        let mut whole = chain.own_segments();
        // A torn tail is the writer's to cut off.
        if !self.is_alone || chain.tail().is_some() {
            whole.end = whole.end.saturating_sub(1).max(whole.start);
        }
        let times: Vec<_> = seen.iter().flat_map(|segment| &segment.epochs).map(|epoch| epoch.cut).collect();
        let mut kept = (self.keep)(&times, &pinned);
        kept.extend(&pinned);
        kept.extend(times.last().map(|cut| cut.epoch));
        let candidates = seen.get(..whole.len()).unwrap_or_default();
        let compaction = Compaction {
            dir: self.dir,
            medium: self.medium,
            description: self.description,
            chain: &chain,
            kept: &kept,
            check: self.check,
        };
        // What an earlier one left takes room.
        compaction.remove_replaced();
        let chosen = match self.scope {
            Scope::All => {
                (candidates.len() > 1 || candidates.iter().any(|segment| segment.drops(&kept) > 0)).then_some(0..candidates.len())
            }
            Scope::WhatIsDropped => what_is_dropped(candidates, &kept),
            Scope::WhatPays { drops } => what_pays(candidates, &kept, if drops { ALIKE_DROPPING } else { ALIKE }),
        };
        let before = *begun.get_or_insert_with(|| Totals::of(&seen));
        // Where there is nothing to do, nothing is read again.
        let (chain, seen) = if let Some(chosen) = chosen {
            if !self.replace(&compaction, candidates, chosen, room_most, progress)? {
                return Ok(None);
            }
            let chain = Arc::new(self.open()?);
            let seen = Seen::all(&chain)?;
            (chain, seen)
        } else {
            (chain, seen)
        };
        let drops = !matches!(self.scope, Scope::All | Scope::WhatPays { drops: false });
        let (needs, last) = if drops { self.needs(&chain, &seen, &kept)? } else { (0, 0) };
        let after = Totals::of(&seen);
        let compacted = Compacted {
            segments: (before.segments, after.segments),
            epochs: (before.epochs, after.epochs),
            bytes: (before.bytes, after.bytes),
        };
        Ok(Some(Upkeep { compacted, needs, last }))
    }

    fn open(&self) -> Result<Chain, StoreError> {
        let root_medium: Arc<dyn Medium> = self.root_medium.clone();
        Chain::open_on_with(
            self.root,
            &root_medium,
            self.branch,
            ReadOptions { bounds: self.bounds, ..ReadOptions::open_files(OPEN_FILES) },
        )
    }

    /// Bytes that are free, but for the spare ones. Where the system does not tell, trying does.
    fn room(&self) -> u64 {
        self.medium.room().unwrap_or(u64::MAX).saturating_sub(self.spare)
    }

    /// Puts one segment in the place of those chosen, or of some of them. Returns whether of all.
    fn replace(
        &self,
        compaction: &Compaction<'_>,
        candidates: &[Seen],
        chosen: Range<usize>,
        room_most: &mut u64,
        progress: &mut dyn FnMut(u64, u64) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let Compaction { chain, kept, .. } = *compaction;
        let first = chain.own_segments().start;
        let files = chain.own().get(chosen.clone()).unwrap_or_default();
        let seen = candidates.get(chosen.clone()).unwrap_or_default();
        let mut refused = None;
        loop {
            let room = self.room().min(*room_most);
            let needs = at_most(files, seen, kept, (room, &self.bounds))?;
            let is_all = needs <= room;
            let range = if is_all {
                chosen.clone()
            } else {
                match compaction_steps::choose(files, seen, kept, (room, &self.bounds), self.scope == Scope::All)? {
                    compaction_steps::Step::These(range) => chosen.start + range.start..chosen.start + range.end,
                    compaction_steps::Step::Needs(needed) => {
                        let needed = needed.saturating_add(self.spare);
                        let free = self.medium.room().unwrap_or(u64::MAX);
                        return Err(match refused {
                            // The system says that there is room, and gives none: it knows why.
                            Some(error) if needed <= free => error,
                            _ => StoreError::Room { dir: self.dir.to_owned(), needed, free },
                        });
                    }
                }
            };
            let total = sum(candidates.get(range.clone()).unwrap_or_default(), |segment| segment.bytes);
            match compaction.replace(first + range.start..first + range.end, room, &mut |done| progress(done, total)) {
                Ok(()) => return Ok(is_all),
                Err(error) if error.lacks_room() && room > ROOM_MIN => {
                    tracing::debug!(error = causes(&error), room, "a step did not fit: a smaller one is tried");
                    *room_most = room.min(needs) / 2;
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What dropping everything that is not kept needs at most, and the last segment of which it is
    /// dropped.
    fn needs(&self, chain: &Chain, seen: &[Seen], kept: &BTreeSet<EpochId>) -> Result<(u64, u32), StoreError> {
        let theirs = if self.is_alone { 0 } else { 1 };
        let whole = seen.len().saturating_sub(theirs);
        let (files, seen) = (chain.own().get(..whole).unwrap_or_default(), seen.get(..whole).unwrap_or_default());
        let last = files.last().map_or(0, |segment| segment.numbers().last);
        Ok((at_most(files, seen, kept, (self.room(), &self.bounds))?, last))
    }
}

/// As [`compaction_steps::at_most`]. Nothing is read where there is far more room than it can be:
/// all bytes of the segments stand for it then.
fn at_most(
    segments: &[Segment],
    seen: &[Seen],
    kept: &BTreeSet<EpochId>,
    (room, bounds): (u64, &Bounds),
) -> Result<u64, StoreError> {
    let bytes = sum(seen, |segment| segment.bytes);
    if room / PLENTY >= bytes { Ok(bytes) } else { compaction_steps::at_most(segments, seen, kept, bounds) }
}

/// How much there is of a chain.
#[derive(Clone, Copy, Debug)]
struct Totals {
    segments: u64,
    epochs: u64,
    bytes: u64,
}

impl Totals {
    fn of(seen: &[Seen]) -> Self {
        Self { segments: seen.len() as u64, epochs: sum(seen, Seen::len), bytes: sum(seen, |segment| segment.bytes) }
    }
}

/// From the first segment with something to drop to the last, and on until one ends in an epoch
/// that is kept: the last epoch stays in any case.
fn what_is_dropped(segments: &[Seen], kept: &BTreeSet<EpochId>) -> Option<Range<usize>> {
    let drops = |segment: &Seen| segment.drops(kept) > 0;
    let first = segments.iter().position(drops)?;
    let mut end = segments.iter().rposition(drops)? + 1;
    let ends_kept = |end: usize| {
        segments.get(end - 1).and_then(|segment| segment.epochs.last()).is_none_or(|epoch| kept.contains(&epoch.cut.epoch))
    };
    while end < segments.len() && !ends_kept(end) {
        end += 1;
    }
    Some(first..end)
}

/// Least waste that is worth a rewrite.
const WASTE_BYTES_MIN: u64 = 1 << 20;

/// So many segments of about one size are put together, where nothing is dropped.
const ALIKE: usize = 8;

/// And so many where something is: most of them go as a whole before they are that many, and what
/// is put together goes later.
const ALIKE_DROPPING: usize = 32;

/// Segments of this size and above are not put together for their number alone.
const LARGE_BYTES: u64 = 1 << 30;

/// Segments with more waste than half of the image that has to be written to get rid of it; or else
/// so many that are alike.
fn what_pays(segments: &[Seen], kept: &BTreeSet<EpochId>, enough: usize) -> Option<Range<usize>> {
    let waste = sum(segments, |segment| segment.waste(kept));
    let image = segments.first().map_or(0, |segment| segment.base_bytes);
    if waste >= (image / 2).max(WASTE_BYTES_MIN) {
        // The last one that has anything to drop may have much to keep: it is left until it is half
        // empty.
        let half_empty = |segment: &Seen| segment.drops(kept) * 2 >= segment.epochs.len() as u64 && segment.drops(kept) > 0;
        let first = segments.iter().position(|segment| segment.drops(kept) > 0)?;
        return segments.iter().rposition(half_empty).map(|last| first..last + 1).filter(|range| !range.is_empty());
    }
    // Sizes by powers of 8.
    let class = |segment: &Seen| segment.bytes.max(1).ilog2() / 3;
    let mut begin = 0;
    for end in 1..=segments.len() {
        let alike = match (segments.get(begin), segments.get(end)) {
            (Some(first), Some(next)) => class(first) == class(next) && next.bytes < LARGE_BYTES,
            _ => false,
        };
        if end - begin >= enough && segments.get(begin).is_some_and(|first| first.bytes < LARGE_BYTES) {
            return Some(begin..end);
        }
        if !alike {
            begin = end;
        }
    }
    None
}

struct Compaction<'a> {
    dir: &'a Path,
    medium: &'a dyn WritableMedium,
    description: &'a Arc<Description>,
    chain: &'a Arc<Chain>,
    kept: &'a BTreeSet<EpochId>,
    /// Whether the store is where it was, and locked.
    check: &'a dyn Fn() -> Result<(), StoreError>,
}

impl Compaction<'_> {
    /// Puts one segment in the place of these, which has at most `bytes_most`.
    fn replace(
        &self,
        range: Range<usize>,
        bytes_most: u64,
        progress: &mut dyn FnMut(u64) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let segments = self.chain.all_segments().get(range.clone()).unwrap_or_default();
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(()) };
        let numbers = SegmentNumbers { first: first.numbers().first, last: last.numbers().last };
        let draft = self.dir.join(DRAFT);
        let io = |action| StoreError::io(action, &draft);
        if self.medium.list().map_err(StoreError::io("list", self.dir))?.iter().any(|name| name == DRAFT) {
            self.medium.remove(DRAFT).map_err(io("remove"))?;
        }
        let written = (|| {
            let file = self.chain.with_room(|| self.medium.create(DRAFT)).map_err(io("make"))?;
            let file = file.as_ref();
            let all = range.start..=range.end - 1;
            let made = rewrite::rewrite(self.chain, all, numbers, self.kept, (file, &draft, bytes_most), progress)?;
            file.sync().map_err(io("sync"))?;
            // Reads back what was written, frame by frame.
            let index = walk::index_of(&draft, numbers, file, made.bytes, self.description)?;
            // One name may stand for an earlier compaction, whose index is none of this segment.
            let index_name = numbers.index_name();
            if self.medium.list().map_err(StoreError::io("list", self.dir))?.contains(&index_name) {
                self.medium.remove(&index_name).map_err(StoreError::io("remove", self.dir.join(&index_name)))?;
            }
            (self.check)()?;
            self.medium.rename(DRAFT, &numbers.file_name()).map_err(io("rename"))?;
            self.medium.sync().map_err(StoreError::io("sync", self.dir))?;
            Ok((made, index))
        })();
        let (made, index) = match written {
            Ok(made) => made,
            Err(error) => {
                // Whoever compacts next removes what this leaves.
                let _ = self.medium.remove(DRAFT);
                return Err(error);
            }
        };
        tracing::debug!(segment = %numbers, epochs = made.epochs, bytes = made.bytes, "segments were compacted");
        (self.check)()?;
        if let Err(error) = make_index::write(self.medium, numbers, &index) {
            tracing::warn!(segment = %numbers, %error, "the segment stays without an index");
        }
        self.remove_replaced();
        Ok(())
    }

    /// Removes the files that mean nothing any more. What stays is ignored by every reader, and
    /// removed by the next compaction.
    fn remove_replaced(&self) {
        let names = match self.medium.list() {
            Ok(names) => names,
            Err(error) => return tracing::warn!(error = causes(&error), "the directory cannot be listed"),
        };
        let mut leftovers = Listed::new(&names).leftovers(&names);
        // Other drafts may be the writer's.
        leftovers.retain(|name| !name.ends_with(".tmp"));
        leftovers.extend(names.into_iter().filter(|name| name == DRAFT));
        for name in &leftovers {
            if let Err(error) = (self.check)() {
                return tracing::warn!(error = causes(&error), "replaced files stay");
            }
            if let Err(error) = self.medium.remove(name) {
                tracing::warn!(%name, %error, "a replaced file stays");
            }
        }
    }
}
