//! Where the newest version of every page is at one epoch, and those that it was changed from.

use std::collections::BTreeMap;
use std::ops::Range;

use super::chain::Chain;
use super::covered_pages::Found;
use super::segment::Segment;
use super::view::{self, Unanswered, View};
use crate::format::{Index, Mention};
use crate::page::{Gfn, PageRun};
use crate::store::error::StoreError;

/// Pages of a block that count, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pages {
    pub(crate) segment: usize,
    pub(crate) frame: u32,
    pub(crate) first: Gfn,
    pub(crate) count: u64,
    pub(crate) version: Counts,
}

/// What a version of a page is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counts {
    /// It is the newest, and whole.
    Newest,
    /// It is the newest, and a change of the one before it.
    NewestChange,
    /// The one after it is a change of it.
    Older,
}

impl Pages {
    pub(crate) const fn run(&self) -> PageRun {
        PageRun { first: self.first, count: self.count }
    }
}

/// The versions that count of all pages that are not zeros, in no order; and the pages whose newest
/// version is a change, rising.
///
/// # Errors
/// More changes behind each other than the format has; an index that cannot be read, and neither
/// can its segment.
pub(crate) fn of_all(chain: &Chain, view: &View) -> Result<(Vec<Pages>, Vec<Gfn>), StoreError> {
    let Search { needed, changed, .. } = view::ask(chain, || Search::default().all(chain, view))?;
    Ok((needed, changed))
}

/// What was found while going back from the epoch, segment by segment.
#[derive(Debug, Default)]
struct Search {
    /// Pages whose newest version was met.
    found: Found,
    /// For each of them whose versions that were met are all changes, how many these are.
    open: BTreeMap<Gfn, u8>,
    /// Every page whose newest version is a change.
    changed: Vec<Gfn>,
    needed: Vec<Pages>,
}

impl Search {
    fn all(mut self, chain: &Chain, view: &View) -> Result<Self, Unanswered> {
        let frames = chain.description().frames();
        for part in view.parts() {
            if self.found.frames() >= frames && self.open.is_empty() {
                break;
            }
            let source = chain.segment(part.segment)?;
            let index = source.index()?;
            let asked = |error| Unanswered::Index(part.segment, error);
            for number in 0..index.runs() {
                let run = index.run(number).map_err(asked)?;
                let mentions = part.mentions(index, &run).map_err(asked)?;
                if !mentions.is_empty() {
                    self.run(source, index, part.segment, run.run, mentions)?;
                }
            }
        }
        self.changed.sort_unstable();
        Ok(self)
    }

    /// Takes a run's mentions, which are older than all met before of its pages.
    fn run(
        &mut self,
        source: &Segment,
        index: &Index,
        segment: usize,
        run: PageRun,
        mentions: Range<u64>,
    ) -> Result<(), Unanswered> {
        let end = run.end().unwrap_or(Gfn(u64::MAX));
        let open: Vec<_> = self.open.range(run.first..end).map(|(gfn, depth)| (*gfn, *depth)).collect();
        for (gfn, depth) in open {
            let page = PageRun { first: gfn, count: 1 };
            match self.versions(source, index, segment, page, mentions.clone(), Some(depth))? {
                Some(depth) => self.open.insert(gfn, depth),
                None => self.open.remove(&gfn),
            };
        }
        let mut fresh = Vec::new();
        self.found.add(run, |part| fresh.push(part));
        for part in fresh {
            let depth = self.versions(source, index, segment, part, mentions.clone(), None)?;
            if let Some(depth) = depth {
                self.open.extend(part.gfns().map(|gfn| (gfn, depth)));
            }
        }
        Ok(())
    }

    /// Takes the versions of pages in a segment. `depth`: how many changes were met before, or none
    /// where nothing was. Returns how many there are now, where none but changes were met.
    fn versions(
        &mut self,
        source: &Segment,
        index: &Index,
        segment: usize,
        run: PageRun,
        mentions: Range<u64>,
        depth: Option<u8>,
    ) -> Result<Option<u8>, Unanswered> {
        let (mut is_newest, Self { changed, needed, .. }) = (depth.is_none(), self);
        let at = (segment, source, index);
        view::back_to_whole(at, run, mentions, depth.unwrap_or_default(), &mut |frame, mention| {
            let version = match (std::mem::take(&mut is_newest), mention) {
                (false, _) => Counts::Older,
                (true, Mention::Changes) => {
                    changed.extend(run.gfns());
                    Counts::NewestChange
                }
                (true, _) => Counts::Newest,
            };
            needed.push(Pages { segment, frame, first: run.first, count: run.count, version });
        })
    }
}
