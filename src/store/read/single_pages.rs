//! Single pages of an epoch, in any order.

use std::sync::Arc;

use super::chain::Chain;
use super::view::{Version, View};
use crate::format::{BLOCK_PAGES, BlockDecoder, BlockList, BlockPages, FRAME_HEADER_BYTES, FormatError, Mention, decode_changes};
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes, PageRun};
use crate::store::error::StoreError;

/// Reads pages of one epoch of a chain, in any order. What it reads for a page is at most 16
/// blocks, however long the chain is.
#[derive(Debug)]
pub struct PageReader {
    chain: Arc<Chain>,
    view: View,
    decoder: BlockDecoder,
    pages: Box<BlockPages>,
    /// Pages that are put together from changes.
    built: Box<BlockPages>,
    buffer: Vec<u8>,
}

/// What was found of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundPages {
    /// The page was given, and perhaps others that were read along with it.
    Given,
    /// Nothing was given: it is zeros, and so are all of these, which it is one of. They may reach
    /// beyond guest memory.
    Zeros(PageRun),
}

impl PageReader {
    /// A reader of `epoch`.
    ///
    /// # Errors
    /// An epoch that the chain does not hold or that damage hides; a list of pages that counts and
    /// cannot be read.
    pub fn new(chain: Arc<Chain>, epoch: EpochId) -> Result<Self, StoreError> {
        let view = View::new(&chain, epoch)?;
        Ok(Self {
            chain,
            view,
            decoder: BlockDecoder::new(),
            pages: Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]),
            built: Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]),
            buffer: Vec::new(),
        })
    }

    /// The epoch.
    #[must_use]
    pub const fn epoch(&self) -> EpochId {
        self.view.epoch()
    }

    /// Gives `take` the content that `gfn` has at the epoch, and that of those other pages of the
    /// same block that cost nothing more.
    ///
    /// # Errors
    /// Damage, with its place; what the operating system refuses. Nothing was given then.
    pub fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, &PageBytes)) -> Result<FoundPages, StoreError> {
        let (versions, alike) = self.view.versions(&self.chain, gfn)?;
        let Some((newest, older)) = versions.split_first() else { return Ok(FoundPages::Zeros(alike)) };
        let mut wanted = Vec::new();
        if older.is_empty() && newest.place.mention == Mention::Whole {
            let list = self.decode(newest)?;
            for (gfn, page) in list.gfns().iter().zip(self.pages.iter()) {
                // Asking costs less than decoding the block again.
                if alike.contains(*gfn) || self.view.is_newest(&self.chain, *gfn, newest)? {
                    wanted.push((gfn, page));
                }
            }
            if !wanted.iter().any(|(found, _)| **found == gfn) {
                return Err(self.not_listed(newest, gfn));
            }
            wanted.into_iter().for_each(|(gfn, page)| take(*gfn, page));
            return Ok(FoundPages::Given);
        }
        // Pages with the same mentions are in the same blocks, all of them.
        let list = self.list(newest)?;
        let gfns: Vec<_> = list.gfns().iter().copied().filter(|gfn| alike.contains(*gfn)).collect();
        if !gfns.contains(&gfn) {
            return Err(self.not_listed(newest, gfn));
        }
        self.built.iter_mut().take(gfns.len()).for_each(|page| page.fill(0));
        for version in versions.iter().rev() {
            self.apply(version, &gfns)?;
        }
        gfns.iter().zip(self.built.iter()).for_each(|(gfn, page)| take(*gfn, page));
        Ok(FoundPages::Given)
    }

    /// Brings the pages that are put together to this version.
    fn apply(&mut self, version: &Version, gfns: &[Gfn]) -> Result<(), StoreError> {
        if version.place.mention == Mention::Whole {
            let list = self.decode(version)?;
            for (gfn, built) in gfns.iter().zip(self.built.iter_mut()) {
                let at = list.gfns().binary_search(gfn).ok().and_then(|at| self.pages.get(at));
                match at {
                    Some(page) => built.copy_from_slice(page),
                    None => return Err(self.not_listed(version, *gfn)),
                }
            }
            return Ok(());
        }
        let source = self.chain.segment(version.segment)?;
        let place = &version.place;
        let damaged = |error| source.damaged(place.epoch, place.offset, &error);
        let (list, changes) = decode_changes(source.payload(place, &mut self.buffer)?).map_err(damaged)?;
        let mut met = 0;
        for (gfn, change) in list.gfns().iter().zip(changes) {
            if let Some(built) = gfns.binary_search(gfn).ok().and_then(|at| self.built.get_mut(at)) {
                change.apply(built).map_err(damaged)?;
                met += 1;
            }
        }
        match gfns.iter().find(|gfn| list.gfns().binary_search(gfn).is_err()) {
            Some(gfn) if met < gfns.len() => Err(self.not_listed(version, *gfn)),
            _ => Ok(()),
        }
    }

    /// Decodes all pages of a block.
    fn decode(&mut self, version: &Version) -> Result<BlockList, StoreError> {
        let source = self.chain.segment(version.segment)?;
        let place = &version.place;
        let payload = source.payload(place, &mut self.buffer)?;
        self.decoder.decode(payload, &mut self.pages).map_err(|error| source.damaged(place.epoch, place.offset, &error))
    }

    /// The list of a block's pages.
    fn list(&mut self, version: &Version) -> Result<BlockList, StoreError> {
        let source = self.chain.segment(version.segment)?;
        let place = &version.place;
        let payload = source.payload(place, &mut self.buffer)?;
        BlockList::parse(payload).map_err(|error| source.damaged(place.epoch, place.offset, &error))
    }

    /// A block that lacks a page that the index says it has.
    fn not_listed(&self, version: &Version, gfn: Gfn) -> StoreError {
        let error = FormatError::field("gfn", FRAME_HEADER_BYTES, format!("{gfn}, which the index names"), "other pages");
        match self.chain.segment(version.segment) {
            Ok(source) => source.damaged(version.place.epoch, version.place.offset, &error),
            Err(error) => error,
        }
    }
}
