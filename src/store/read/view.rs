//! Where the versions of pages are at one epoch, as the indexes of the chain's segments say.

use std::ops::Range;

use super::chain::Chain;
use super::segment::{FramePlace, Segment};
use crate::format::{CHANGES_DEPTH_MAX, FRAME_HEADER_BYTES, FormatError, Index, IndexError, IndexedRun, Mention};
use crate::page::{EpochId, Gfn, PageRun};
use crate::store::error::StoreError;

/// One epoch of a chain.
#[derive(Debug)]
pub(crate) struct View {
    epoch: EpochId,
    /// Newest segment first.
    parts: Vec<Part>,
}

/// A segment's frames that count at the epoch: those from `first` on and below `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Which of the chain's segments.
    pub(crate) segment: usize,
    first: u32,
    end: u32,
}

/// A version of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) segment: usize,
    pub(crate) place: FramePlace,
}

/// Why a question has no answer yet, or none at all.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The index of the segment with this number among the chain's is not sound.
    Index(usize, IndexError),
    Store(StoreError),
}

impl From<StoreError> for Unanswered {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Asks until every index that is needed is sound, or its segment was walked.
pub(crate) fn ask<T>(chain: &Chain, question: impl Fn() -> Result<T, Unanswered>) -> Result<T, StoreError> {
    loop {
        match question() {
            Ok(answer) => return Ok(answer),
            Err(Unanswered::Store(error)) => return Err(error),
            Err(Unanswered::Index(segment, error)) => chain.segment(segment)?.fall_back(error)?,
        }
    }
}

/// A block with other pages than the index says: `met` of the `expected` that it names.
pub(crate) fn lacks_pages(segment: &Segment, place: &FramePlace, expected: u64, met: u64) -> StoreError {
    let error = FormatError::field("gfn", FRAME_HEADER_BYTES, format!("{expected} pages that the index names"), met);
    segment.damaged(place.epoch, place.offset, &error)
}

/// A page with more changes behind each other than the format has.
fn too_deep(segment: &Segment, place: &FramePlace, gfn: Gfn) -> StoreError {
    let expected = format!("at most {CHANGES_DEPTH_MAX} changes of a page behind each other");
    let error = FormatError::field("gfn", FRAME_HEADER_BYTES, expected, format!("more of {gfn}"));
    segment.damaged(place.epoch, place.offset, &error)
}

impl View {
    /// Looks up which frames count at `epoch`.
    ///
    /// # Errors
    /// An epoch that the chain does not hold or that damage hides; a list of pages that counts and
    /// cannot be read.
    pub(crate) fn new(chain: &Chain, epoch: EpochId) -> Result<Self, StoreError> {
        ask(chain, || {
            let (last, number) = chain.locate(epoch)?;
            let mut parts = Vec::new();
            for (segment, source) in chain.all_segments().iter().enumerate().take(last + 1).rev() {
                let index = source.index()?;
                let asked = |error| Unanswered::Index(segment, error);
                let Some(newest) = (if segment == last { Some(number) } else { source.epochs()?.checked_sub(1) }) else {
                    continue;
                };
                let end = index.frames_end(newest).map_err(asked)?;
                let base = index.base_up_to(newest).map_err(asked)?;
                let (first, from) = match base {
                    None => (0, EpochId::NONE),
                    Some(base) => {
                        let base = index.epoch(base).map_err(asked)?;
                        (base.first_frame, base.epoch)
                    }
                };
                if let Some(damage) = source.fault(from, epoch) {
                    return Err(StoreError::Damaged(damage.clone()).into());
                }
                parts.push(Part { segment, first, end });
                if base.is_some() {
                    break;
                }
            }
            Ok(Self { epoch, parts })
        })
    }

    pub(crate) const fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// The segments whose frames count, newest first.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The versions of a page, newest first, down to the one that is no change, and the pages
    /// around it for which these are the same and are all whole. No version: the page is zeros, and
    /// so are those pages.
    ///
    /// # Errors
    /// More changes behind each other than the format has; an index that cannot be read, and
    /// neither can its segment.
    pub(crate) fn versions(&self, chain: &Chain, gfn: Gfn) -> Result<(Vec<Version>, PageRun), StoreError> {
        ask(chain, || {
            let mut versions = Vec::new();
            let mut alike = PageRun { first: Gfn(0), count: u64::MAX };
            for part in &self.parts {
                let source = chain.segment(part.segment)?;
                let index = source.index()?;
                let asked = |error| Unanswered::Index(part.segment, error);
                let (run, around) = find(index, gfn).map_err(asked)?;
                alike = common(alike, around);
                let Some(run) = run else { continue };
                let mentions = part.mentions(index, &run).map_err(asked)?;
                let (page, behind) = (PageRun { first: gfn, count: 1 }, u8::try_from(versions.len()).unwrap_or(u8::MAX));
                let mut frames = Vec::new();
                let at = (part.segment, source, index);
                let open = back_to_whole(at, page, mentions, behind, &mut |frame, _| frames.push(frame))?;
                for frame in frames {
                    let place = Segment::place(index, frame.into()).map_err(asked)?;
                    versions.push(Version { segment: part.segment, place });
                }
                if open.is_none() {
                    return Ok((versions, alike));
                }
            }
            Ok((versions, alike))
        })
    }

    /// Whether this is the newest version of a page.
    ///
    /// # Errors
    /// An index that cannot be read, and neither can its segment.
    pub(crate) fn is_newest(&self, chain: &Chain, gfn: Gfn, version: &Version) -> Result<bool, StoreError> {
        ask(chain, || {
            for part in &self.parts {
                let source = chain.segment(part.segment)?;
                let index = source.index()?;
                let asked = |error| Unanswered::Index(part.segment, error);
                let Some(run) = index.find_run(gfn).map_err(asked)? else { continue };
                let Some(frame) = part.newest(index, &run).map_err(asked)? else { continue };
                let offset = index.frame(frame.into()).map_err(asked)?.offset;
                return Ok((part.segment, offset) == (version.segment, version.place.offset));
            }
            Ok(false)
        })
    }
}

/// The run that holds `gfn`, and the pages around `gfn` that are in it too; or, where none does,
/// those that are in no run either.
fn find(index: &Index, gfn: Gfn) -> Result<(Option<IndexedRun>, PageRun), IndexError> {
    let number = index.run_from(gfn)?;
    let next = if number < index.runs() { Some(index.run(number)?) } else { None };
    if let Some(run) = next.clone().filter(|next| next.run.contains(gfn)) {
        let around = run.run;
        return Ok((Some(run), around));
    }
    let first = match number.checked_sub(1) {
        Some(before) => index.run(before)?.run.end().unwrap_or_default(),
        None => Gfn(0),
    };
    let end = next.map_or(u64::MAX, |next| next.run.first.0);
    Ok((None, PageRun { first, count: end.saturating_sub(first.0) }))
}

/// The pages that two runs have in common.
fn common(one: PageRun, other: PageRun) -> PageRun {
    let first = one.first.max(other.first);
    let end = |run: PageRun| run.first.0.saturating_add(run.count);
    PageRun { first, count: end(one).min(end(other)).saturating_sub(first.0) }
}

/// Goes back through the mentions of pages in one segment, newest first, down to one that is no
/// change, and gives `take` each version that is met: its frame, and what it is. Zeros are no
/// version.
///
/// `behind` says how many changes were met in newer segments. Returns how many there are now behind
/// each other, or nothing where the last one that counts was met.
///
/// # Errors
/// More changes behind each other than the format has; an index that is not sound.
pub(crate) fn back_to_whole(
    (segment, source, index): (usize, &Segment, &Index),
    pages: PageRun,
    mentions: Range<u64>,
    mut behind: u8,
    take: &mut dyn FnMut(u32, Mention),
) -> Result<Option<u8>, Unanswered> {
    let asked = |error| Unanswered::Index(segment, error);
    for mention in mentions.rev() {
        let frame = index.mention(mention).map_err(asked)?;
        let mention = index.frame_of(frame.into(), pages).map_err(asked)?.mention;
        if mention == Mention::Zeros {
            return Ok(None);
        }
        take(frame, mention);
        if mention == Mention::Whole {
            return Ok(None);
        }
        behind = behind.saturating_add(1);
        if behind > CHANGES_DEPTH_MAX {
            let place = Segment::place(index, frame.into()).map_err(asked)?;
            return Err(too_deep(source, &place, pages.first).into());
        }
    }
    Ok(Some(behind))
}

impl Part {
    /// These frames of a segment.
    pub(in crate::store) const fn new(segment: usize, frames: Range<u32>) -> Self {
        Self { segment, first: frames.start, end: frames.end }
    }

    /// The newest frame that counts of those that mention a run.
    pub(in crate::store) fn newest(&self, index: &Index, run: &IndexedRun) -> Result<Option<u32>, IndexError> {
        let below = if u64::from(self.end) >= index.frames() {
            run.mentions.end - run.mentions.start
        } else {
            index.mentions_below(run, self.end)?
        };
        let Some(newest) = below.checked_sub(1) else { return Ok(None) };
        let frame = index.mention(run.mentions.start + newest)?;
        Ok((frame >= self.first).then_some(frame))
    }

    /// The numbers of those of a run's mentions that count.
    pub(crate) fn mentions(&self, index: &Index, run: &IndexedRun) -> Result<Range<u64>, IndexError> {
        let from = |frame| Ok::<_, IndexError>(run.mentions.start + index.mentions_below(run, frame)?);
        let begin = if self.first == 0 { run.mentions.start } else { from(self.first)? };
        let end = if u64::from(self.end) >= index.frames() { run.mentions.end } else { from(self.end)? };
        Ok(begin..end.max(begin))
    }
}
