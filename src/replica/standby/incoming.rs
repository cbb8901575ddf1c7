//! Epochs as they come in: bytes in, whole epochs in memory. No clock, and no I/O but the image's.
//!
//! Everything is checked before anything of it counts: each frame by its checksums, its place and
//! what it says, and the epoch as a whole by its commit frame, which names the epoch before it.
//! Pages of an epoch wait beside the image until it is complete; then all of them are put in place.
//! So the image is always that of a whole epoch, but for a base: nothing is held before that is
//! whole.

use std::collections::HashMap;
use std::fmt;

use super::image::{Image, ImageError};
use crate::format::{
    BlockDecoder, BlockList, BlockPages, ChainId, Commit, EpochTotals, FRAME_HEADER_BYTES, FormatError, FrameHeader, FrameKind,
    Head, PageChange, StateRecord, decode_changes, decode_state, decode_zeros, unpack_state,
};
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes, PageRun, PageSet};
use crate::replica::proto::EpochKey;
use crate::xxh3::Xxh3;

/// Why a stream of epochs ends. What was held before is held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IncomingError {
    /// A frame that is none, or breaks a rule of the format.
    #[error("epoch {epoch}, frame {sequence}")]
    Frame {
        /// The epoch in hand.
        epoch: EpochId,
        /// Frames of it that came before.
        sequence: u32,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// Frames that are sound, and not what comes next.
    #[error("epoch {epoch}, frame {sequence}: {expected} was expected, and there is {found}")]
    Order {
        /// The epoch in hand.
        epoch: EpochId,
        /// Frames of it that came before.
        sequence: u32,
        /// What should have come.
        expected: String,
        /// What came.
        found: String,
    },
    /// More pages than an epoch may have.
    #[error("epoch {epoch} mentions more than {most} pages")]
    Pages {
        /// The epoch in hand.
        epoch: EpochId,
        /// The bound.
        most: u64,
    },
    /// A page that is no memory of the machine.
    #[error("epoch {epoch} has a page that is no memory")]
    Image {
        /// The epoch in hand.
        epoch: EpochId,
        /// What is wrong.
        #[source]
        source: ImageError,
    },
}

/// An epoch that is in the image whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which one.
    pub key: EpochKey,
    /// The one that it follows; none of a base.
    pub parent: Option<EpochKey>,
    /// What its commit frame says.
    pub commit: Commit,
}

/// The epoch in hand.
struct InHand {
    epoch: EpochId,
    totals: EpochTotals,
    headers: Xxh3,
    zero_pages: u64,
    state: Option<Vec<StateRecord>>,
}

impl InHand {
    fn new(epoch: EpochId) -> Self {
        Self { epoch, totals: EpochTotals::default(), headers: Xxh3::new(), zero_pages: 0, state: None }
    }
}

/// Pages that wait for their epoch to be complete.
#[derive(Default)]
struct Waiting {
    places: HashMap<Gfn, usize>,
    /// Those behind the places are there for what comes next.
    pages: Vec<PageBytes>,
}

impl Waiting {
    /// Pages that are kept for the next epoch.
    const KEPT: usize = 1024;

    /// Has a page wait. `put` gets its place, and whether it waits there already; the place has no
    /// meaning otherwise.
    fn put<T>(&mut self, gfn: Gfn, put: impl FnOnce(&mut PageBytes, bool) -> T) -> T {
        let next = self.places.len();
        let place = *self.places.entry(gfn).or_insert(next);
        if place == self.pages.len() {
            self.pages.push([0; PAGE_SIZE]);
        }
        match self.pages.get_mut(place) {
            Some(page) => put(page, place != next),
            // There is one for each place.
            None => put(&mut [0; PAGE_SIZE], false),
        }
    }

    fn pages(&self) -> impl Iterator<Item = (Gfn, &PageBytes)> {
        self.places.iter().filter_map(|(gfn, place)| self.pages.get(*place).map(|page| (*gfn, page)))
    }

    fn clear(&mut self) {
        self.places.clear();
        self.pages.truncate(Self::KEPT);
    }
}

/// Takes what one stream brings, and keeps the image.
pub struct Incoming<I> {
    chain: ChainId,
    image: I,
    /// All pages of it.
    memory: Vec<PageRun>,
    /// Pages that an epoch may mention, a base apart.
    pages_most: u64,
    head: Option<Head>,
    in_hand: Option<InHand>,
    waiting: Waiting,
    /// Pages that a base has written: the others are zeros.
    written: PageSet,
    /// The beginning of a frame whose end has not come.
    bytes: Vec<u8>,
    /// Sound frames, but for commit frames, since [`Incoming::take_frames`].
    sound: Vec<u8>,
    keeps_frames: bool,
    state: Vec<StateRecord>,
    decoder: BlockDecoder,
    pages: Box<BlockPages>,
}

impl<I: Image> Incoming<I> {
    /// For epochs of `chain` into `image`, which is all zeros. An epoch behind the base mentions at
    /// most `pages_most` pages.
    pub fn new(chain: ChainId, image: I, pages_most: u64) -> Self {
        let memory = image.runs();
        let frames = memory.iter().filter_map(|run| run.end()).map(|end| end.0).max().unwrap_or_default();
        Self {
            chain,
            image,
            memory,
            pages_most,
            head: None,
            in_hand: None,
            waiting: Waiting::default(),
            written: PageSet::new(frames, 0),
            bytes: Vec::new(),
            sound: Vec::new(),
            keeps_frames: false,
            state: Vec::new(),
            decoder: BlockDecoder::new(),
            pages: Box::new([[0; PAGE_SIZE]; 16]),
        }
    }

    /// Keeps the frames that came, for a chain: see [`take_frames`](Self::take_frames).
    #[must_use]
    pub const fn keeping_frames(mut self) -> Self {
        self.keeps_frames = true;
        self
    }

    /// The frames that came since the last call, whole ones, of the epoch in hand or of the one
    /// that was completed; without commit frames.
    pub fn take_frames(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sound)
    }

    /// The newest epoch that is whole.
    #[must_use]
    pub const fn head(&self) -> Option<Head> {
        self.head
    }

    /// The chain whose epochs they are.
    #[must_use]
    pub const fn chain(&self) -> ChainId {
        self.chain
    }

    /// The epoch of which parts have come; none between epochs.
    #[must_use]
    pub fn epoch_in_hand(&self) -> EpochId {
        self.place().0
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> &[StateRecord] {
        &self.state
    }

    /// The image. An epoch of which only a part came is not in it, unless that is the base.
    #[must_use]
    pub const fn image(&self) -> &I {
        &self.image
    }

    /// Forgets what came of an epoch that is not complete.
    pub fn abort(&mut self) {
        self.in_hand = None;
        self.bytes.clear();
        self.sound.clear();
        self.waiting.clear();
    }

    /// Takes the next bytes of the stream. Returns the epoch that they complete: the commit frame
    /// is the last of its bytes.
    ///
    /// # Errors
    /// [`IncomingError`]: nothing more may be taken then. What was held before is held, but where a
    /// base was torn: nothing is.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<Held>, IncomingError> {
        let mut kept = std::mem::take(&mut self.bytes);
        let mut rest = if kept.is_empty() {
            bytes
        } else {
            kept.extend_from_slice(bytes);
            &kept
        };
        let mut held = None;
        while let Some(header) = rest.get(..FRAME_HEADER_BYTES) {
            let header = FrameHeader::parse(header, self.chain).map_err(|source| self.fault(source))?;
            let whole = usize::try_from(header.frame_bytes()).unwrap_or(usize::MAX);
            let Some((frame, behind)) = rest.split_at_checked(whole) else { break };
            if held.is_some() {
                return Err(self.order("nothing behind a commit frame", "a frame"));
            }
            held = self.frame(&header, frame)?;
            rest = behind;
        }
        if held.is_some() && !rest.is_empty() {
            return Err(self.order("nothing behind a commit frame", "bytes"));
        }
        // At most one frame, whose kind bounds it.
        self.bytes = rest.to_vec();
        Ok(held)
    }

    fn fault(&self, source: FormatError) -> IncomingError {
        let (epoch, sequence) = self.place();
        IncomingError::Frame { epoch, sequence, source }
    }

    fn order(&self, expected: impl Into<String>, found: impl Into<String>) -> IncomingError {
        let (epoch, sequence) = self.place();
        IncomingError::Order { epoch, sequence, expected: expected.into(), found: found.into() }
    }

    fn outside(&self, source: ImageError) -> IncomingError {
        IncomingError::Image { epoch: self.place().0, source }
    }

    fn place(&self) -> (EpochId, u32) {
        self.in_hand.as_ref().map_or((EpochId::NONE, 0), |in_hand| (in_hand.epoch, in_hand.totals.frames))
    }

    fn frame(&mut self, header: &FrameHeader, frame: &[u8]) -> Result<Option<Held>, IncomingError> {
        let (head, body) = frame.split_at(FRAME_HEADER_BYTES);
        let payload = header.check_body(body).map_err(|source| self.fault(source))?;
        if self.in_hand.is_none() {
            if self.head.is_some_and(|head| header.epoch <= head.epoch) {
                return Err(
                    self.order(format!("an epoch behind {}", self.head.unwrap_or_default().epoch), header.epoch.to_string())
                );
            }
            self.in_hand = Some(InHand::new(header.epoch));
        }
        let (epoch, sequence) = self.place();
        if (header.epoch, header.sequence) != (epoch, sequence) || header.kind.is_between_epochs() {
            let found = format!("a {} frame, {} of epoch {}", header.kind.as_str(), header.sequence, header.epoch);
            return Err(self.order(format!("frame {sequence} of epoch {epoch}"), found));
        }
        if self.in_hand.as_ref().is_some_and(|in_hand| in_hand.state.is_some()) && header.kind != FrameKind::Commit {
            return Err(self.order("the commit frame behind the state", header.kind.as_str()));
        }
        match header.kind {
            FrameKind::Pages => self.pages(payload)?,
            FrameKind::Zeros => self.zeros(payload)?,
            FrameKind::State => {
                let records = unpack_state(payload).and_then(|records| decode_state(&records));
                let records = records.map_err(|source| self.fault(source))?;
                if let Some(in_hand) = &mut self.in_hand {
                    in_hand.state = Some(records);
                }
            }
            FrameKind::Commit => return self.commit(header, payload, frame).map(Some),
            _ => {}
        }
        if let Some(InHand { totals, headers, .. }) = &mut self.in_hand {
            headers.update(head);
            totals.frames = totals.frames.saturating_add(1);
            totals.frames_bytes = totals.frames_bytes.saturating_add(header.frame_bytes());
        }
        if self.keeps_frames {
            self.sound.extend_from_slice(frame);
        }
        Ok(None)
    }

    fn pages(&mut self, payload: &[u8]) -> Result<(), IncomingError> {
        let list = BlockList::parse(payload).map_err(|source| self.fault(source))?;
        let gfns = list.gfns();
        self.count(gfns.len() as u64)?;
        if list.is_changes() {
            let (_, changes) = decode_changes(payload).map_err(|source| self.fault(source))?;
            gfns.iter().zip(changes).try_for_each(|(gfn, change)| self.change(*gfn, &change))?;
        } else {
            let mut pages = std::mem::replace(&mut self.pages, Box::new([[0; PAGE_SIZE]; 16]));
            let decoded = self.decoder.decode(payload, &mut pages);
            decoded.map_err(|source| self.fault(source))?;
            gfns.iter().zip(pages.iter()).try_for_each(|(gfn, page)| self.put(*gfn, page))?;
            self.pages = pages;
        }
        if let Some(InHand { totals, .. }) = &mut self.in_hand {
            totals.blocks = totals.blocks.saturating_add(1);
            totals.stored_pages = totals.stored_pages.saturating_add(gfns.len() as u64);
        }
        Ok(())
    }

    fn zeros(&mut self, payload: &[u8]) -> Result<(), IncomingError> {
        let runs = decode_zeros(payload).map_err(|source| self.fault(source))?;
        let is_base = self.is_base();
        for run in runs {
            if !self.is_memory(run) {
                return Err(self.outside(format!("{} pages from {} on", run.count, run.first).into()));
            }
            if !is_base {
                self.count(run.count)?;
            }
            for gfn in run.gfns() {
                // A page that nothing was written to is zeros, and takes no memory.
                if !is_base || self.written.contains(gfn) {
                    self.put(gfn, &[0; PAGE_SIZE])?;
                }
            }
            if let Some(in_hand) = &mut self.in_hand {
                in_hand.zero_pages = in_hand.zero_pages.saturating_add(run.count);
            }
        }
        Ok(())
    }

    /// Whether the epoch in hand is the base: nothing is held before it.
    const fn is_base(&self) -> bool {
        self.head.is_none()
    }

    /// Whether all of `run` is memory of the machine.
    fn is_memory(&self, run: PageRun) -> bool {
        self.memory.iter().any(|whole| contains(*whole, run))
    }

    /// So many pages more are mentioned.
    fn count(&self, pages: u64) -> Result<(), IncomingError> {
        let Some(InHand { epoch, totals, zero_pages, .. }) = self.in_hand.as_ref().filter(|_| !self.is_base()) else {
            return Ok(());
        };
        let most = self.pages_most;
        let mentions = totals.stored_pages.saturating_add(*zero_pages).saturating_add(pages);
        if mentions > most { Err(IncomingError::Pages { epoch: *epoch, most }) } else { Ok(()) }
    }

    fn put(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), IncomingError> {
        if self.is_base() {
            self.written.insert(gfn);
            return self.image.write(gfn, page).map_err(|source| self.outside(source));
        }
        if !self.is_memory(PageRun { first: gfn, count: 1 }) {
            return Err(self.outside(format!("page {gfn}").into()));
        }
        self.waiting.put(gfn, |place, _| *place = *page);
        Ok(())
    }

    /// Changes a page of the image, or of what waits.
    fn change(&mut self, gfn: Gfn, change: &PageChange<'_>) -> Result<(), IncomingError> {
        if self.is_base() {
            let mut page = [0; PAGE_SIZE];
            self.image.read(gfn, &mut page).map_err(|source| self.outside(source))?;
            change.apply(&mut page).map_err(|source| self.fault(source))?;
            return self.put(gfn, &page);
        }
        let image = &self.image;
        let applied = self.waiting.put(gfn, |page, waits| {
            let read = if waits { Ok(()) } else { image.read(gfn, page) };
            read.map(|()| change.apply(page))
        });
        applied.map_err(|source| self.outside(source))?.map_err(|source| self.fault(source))
    }

    fn commit(&mut self, header: &FrameHeader, payload: &[u8], frame: &[u8]) -> Result<Held, IncomingError> {
        let commit = Commit::decode(header, payload).map_err(|source| self.fault(source))?;
        let bytes = frame.get(..FRAME_HEADER_BYTES + payload.len()).unwrap_or_default();
        let identity = commit.identity(bytes);
        let Some(in_hand) = self.in_hand.take() else { return Err(self.order("an epoch", "a commit frame alone")) };
        let totals = EpochTotals { frames_hash: in_hand.headers.digest128(), ..in_hand.totals };
        let parent = self.head.map(EpochKey::from);
        let follows = parent.map_or((EpochId::NONE, 0), |parent| (parent.epoch, parent.identity));
        if commit.totals != totals || (commit.parent, commit.parent_hash) != follows || commit.base != parent.is_none() {
            let expected = format!("{totals:?} behind {} ({:032x})", follows.0, follows.1);
            let found = format!("{:?} behind {} ({:032x})", commit.totals, commit.parent, commit.parent_hash);
            return Err(IncomingError::Order { epoch: header.epoch, sequence: header.sequence, expected, found });
        }
        let Some(state) = in_hand.state else {
            let (epoch, sequence) = (header.epoch, header.sequence);
            let (expected, found) = ("a state frame".to_owned(), "the commit frame".to_owned());
            return Err(IncomingError::Order { epoch, sequence, expected, found });
        };
        // Every page was found to be memory when it came: from here on nothing fails.
        for (gfn, page) in self.waiting.pages() {
            let written = self.image.write(gfn, page);
            written.map_err(|source| IncomingError::Image { epoch: header.epoch, source })?;
        }
        self.waiting.clear();
        self.written.clear();
        self.state = state;
        let head = Head { epoch: header.epoch, identity, cut: Some((&commit).into()) };
        self.head = Some(head);
        Ok(Held { key: head.into(), parent, commit })
    }
}

fn contains(whole: PageRun, part: PageRun) -> bool {
    let ends = whole.end().zip(part.end()).is_some_and(|(whole, part)| part <= whole);
    part.first >= whole.first && ends
}

impl<I> fmt::Debug for Incoming<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chain, head, pages_most, .. } = self;
        f.debug_struct("Incoming")
            .field("chain", chain)
            .field("head", head)
            .field("pages_most", pages_most)
            .finish_non_exhaustive()
    }
}
