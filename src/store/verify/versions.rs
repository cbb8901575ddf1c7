//! Where the versions of pages are that later changes build on.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::content::{self, Blocks, Change};
use super::damage::{DamageKind, Fault};
use super::description::Description;
use super::listing::Segment;
use super::report::VerifyError;
use crate::page::{Gfn, PAGE_SIZE, PageRun};

/// The most changes of a page behind each other.
const CHANGES_MAX: usize = 15;

/// A payload that was read and found sound.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) segment: usize,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// What the newest version of a page is made of.
#[derive(Clone, Debug)]
struct Version {
    /// Nothing is known where what came before can't be read.
    whole: Option<At>,
    changes: Vec<At>,
    generation: u32,
}

/// What came of a change.
#[derive(Debug)]
pub(super) enum Changed {
    /// The page.
    Page(Box<[u8]>),
    /// What it builds on is not known, so neither is the page.
    Unknown,
}

/// For each page that is not zero, where its newest version is. A few that were changed lately are
/// kept as they are.
#[derive(Debug)]
pub(super) struct Versions<'a> {
    segments: &'a [Segment],
    description: &'a Description,
    pages: BTreeMap<u64, Version>,
    generation: u32,
    recent: HashMap<u64, Vec<u8>>,
    /// The pages of `recent`, as they came; some may be gone from it.
    order: VecDeque<u64>,
    /// So many are kept, [`PAGES_KEPT`](super::listing::PAGES_KEPT). Beyond it, a page is read
    /// again from its last whole version on, which takes a hundred times as long.
    kept_most: usize,
    blocks: Blocks,
    buffer: Vec<u8>,
}

impl<'a> Versions<'a> {
    pub(super) fn new(description: &'a Description, segments: &'a [Segment], kept_most: usize) -> Self {
        Self {
            segments,
            description,
            pages: BTreeMap::new(),
            generation: 0,
            recent: HashMap::new(),
            order: VecDeque::new(),
            kept_most,
            blocks: Blocks::default(),
            buffer: Vec::new(),
        }
    }

    /// The same pages, for a branch that begins here. Those kept as they are stay behind.
    pub(super) fn fork(&self) -> Self {
        Self {
            pages: self.pages.clone(),
            generation: self.generation,
            ..Self::new(self.description, self.segments, self.kept_most)
        }
    }

    /// What comes from now on belongs to another epoch.
    pub(super) fn begin_epoch(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Only what came since [`begin_epoch`](Self::begin_epoch) counts.
    pub(super) fn keep_epoch_only(&mut self) {
        let generation = self.generation;
        self.pages.retain(|_, version| version.generation == generation);
        self.recent.retain(|gfn, _| self.pages.contains_key(gfn));
    }

    /// The page `gfn` stands whole at `at`, and is `page`.
    pub(super) fn whole(&mut self, gfn: Gfn, at: At, page: &[u8]) {
        self.pages.insert(gfn.0, Version { whole: Some(at), changes: Vec::new(), generation: self.generation });
        // A page that was changed before will be again.
        if let Some(kept) = self.recent.get_mut(&gfn.0) {
            kept.clear();
            kept.extend_from_slice(page);
        }
    }

    /// The pages of `run` are zero.
    pub(super) fn zero(&mut self, run: PageRun) {
        let last = run.first.0.saturating_add(run.count.saturating_sub(1));
        while let Some(gfn) = self.pages.range(run.first.0..=last).next().map(|(gfn, _)| *gfn) {
            self.pages.remove(&gfn);
            self.recent.remove(&gfn);
        }
    }

    /// Whether the newest version of `gfn` is one of the epoch in hand.
    pub(super) fn is_of_epoch(&self, gfn: Gfn) -> bool {
        self.pages.get(&gfn.0).is_some_and(|version| version.generation == self.generation)
    }

    /// Makes `change`, which stands in the block at `at`. With `known` false, what came before this
    /// epoch is not known.
    pub(super) fn change(&mut self, change: &Change<'_>, at: At, known: bool) -> Result<Result<Changed, Fault>, VerifyError> {
        let gfn = change.gfn.0;
        let fault = |expected: &str, found: &str| Ok(Err(Fault::new(DamageKind::Changes, change.offset, expected, found)));
        let Some(version) = self.pages.get_mut(&gfn) else {
            if known {
                return fault("a page that is there and not zero", "a change of one that is not");
            }
            let unknown = Version { whole: None, changes: Vec::new(), generation: self.generation };
            self.pages.insert(gfn, unknown);
            return Ok(Ok(Changed::Unknown));
        };
        let known = known || version.generation == self.generation;
        version.generation = self.generation;
        let Some(whole) = version.whole.filter(|_| known) else {
            version.whole = None;
            self.recent.remove(&gfn);
            return Ok(Ok(Changed::Unknown));
        };
        if version.changes.len() >= CHANGES_MAX {
            return fault("at most 15 changes of a page behind each other", "one more");
        }
        let changes = version.changes.clone();
        version.changes.push(at);
        if !self.recent.contains_key(&gfn) {
            match self.rebuild(change.gfn, whole, &changes)? {
                Some(page) => self.keep(gfn, page.into_vec()),
                None => return fault("the versions before, as they were read before", "other bytes"),
            }
        }
        let applied = self.recent.get_mut(&gfn).map(|page| change.apply(page).map(|()| page.as_slice().into()));
        match applied {
            Some(Ok(page)) => Ok(Ok(Changed::Page(page))),
            Some(Err(fault)) => {
                self.recent.remove(&gfn);
                if let Some(version) = self.pages.get_mut(&gfn) {
                    version.whole = None;
                }
                Ok(Err(fault))
            }
            // Just put there.
            None => Ok(Ok(Changed::Unknown)),
        }
    }

    fn keep(&mut self, gfn: u64, page: Vec<u8>) {
        // Before it is put there: an older entry may be its own.
        while self.order.len() >= self.kept_most {
            if let Some(oldest) = self.order.pop_front() {
                self.recent.remove(&oldest);
            }
        }
        self.recent.insert(gfn, page);
        self.order.push_back(gfn);
    }

    /// Reads a page's newest version anew; `None` where the file is not any more what it was.
    fn rebuild(&mut self, gfn: Gfn, whole: At, changes: &[At]) -> Result<Option<Box<[u8]>>, VerifyError> {
        if !self.read(whole)? {
            return Ok(None);
        }
        let Self { blocks, buffer, description, .. } = self;
        let Ok(mut pages) = blocks.decode(buffer, whole.offset, description) else { return Ok(None) };
        let Some(mut page) = pages.find(|(found, _)| *found == gfn).map(|(_, page)| Box::<[u8]>::from(page)) else {
            return Ok(None);
        };
        drop(pages);
        for at in changes {
            if !self.read(*at)? {
                return Ok(None);
            }
            let Ok(changes) = content::changes(&self.buffer, at.offset, self.description) else { return Ok(None) };
            let change = changes.iter().find(|change| change.gfn == gfn);
            if change.is_none_or(|change| change.apply(&mut page).is_err()) {
                return Ok(None);
            }
        }
        debug_assert_eq!(page.len(), PAGE_SIZE, "a block has whole pages");
        Ok(Some(page))
    }

    /// Reads a payload into the buffer. Returns whether it is all there.
    fn read(&mut self, at: At) -> Result<bool, VerifyError> {
        let Some(segment) = self.segments.get(at.segment) else { return Ok(false) };
        let io = |source| VerifyError::Io { path: segment.path.clone(), offset: at.offset, source };
        let file = segment.open()?;
        self.buffer.resize(usize::try_from(at.length).unwrap_or_default(), 0);
        let read = file.read(at.offset, &mut self.buffer).map_err(io)?;
        Ok(read == self.buffer.len())
    }
}
