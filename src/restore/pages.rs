//! Reading the pages of one epoch in any order.

use std::sync::Arc;

use super::RestoreError;
use super::plan::{Needed, Plan};
use crate::format::{BLOCK_PAGES, BlockDecoder, BlockList, BlockPages, FormatError, decode_changes};
use crate::machine::StateRecord;
use crate::page::{EpochId, Gfn, PAGE_SIZE, PageBytes};
use crate::store::{Chain, SegmentReader, StoreError};

/// Gives pages of one epoch, in any order.
pub trait PageSource {
    /// Gives the content of `gfn`, or `None` where it is zeros, and at no further cost other pages whose newest content it has come by. The order is any; a page may come more than once.
    ///
    /// # Errors
    /// [`RestoreError`], in which case `gfn` did not come.
    fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, Option<&PageBytes>)) -> Result<(), RestoreError>;

    /// The page at `place` in the order in which reading all of them is cheapest, and moves `place` on; begin with 0. Every page that is not zeros comes, others may.
    ///
    /// # Errors
    /// [`RestoreError`].
    fn next(&mut self, place: &mut u64) -> Result<Option<Gfn>, RestoreError>;
}

/// Opens sources of the same pages, one for each thread that reads.
pub trait PageSources: Send + Sync + std::fmt::Debug {
    /// A source.
    fn open(&self) -> Box<dyn PageSource + '_>;

    /// The epoch that the pages are of.
    fn epoch(&self) -> EpochId;

    /// Pages that the guest is going to touch, in the order in which it did so the last time. None where that is not known.
    fn touched_before(&self) -> Vec<Gfn> {
        Vec::new()
    }

    /// Keeps the order in which pages were touched for the next time, where that is possible.
    fn keep_touched(&self, order: &[Gfn]) {
        let _ = order;
    }
}

/// So many zero pages around one that is wanted are given with it, at most: an aligned group.
const ZERO_GROUP: u64 = 64;

/// Decoded blocks that a source keeps: at least as many as a page can need, so that its neighbours find them.
const CACHED_BLOCKS: usize = 32;
const _: () = assert!(CACHED_BLOCKS > crate::format::CHANGES_DEPTH_MAX as usize);

/// Where every version of every page that counts at an epoch is, and the epoch's state.
#[derive(Debug)]
pub struct PageMap {
    chain: Arc<Chain>,
    epoch: EpochId,
    blocks: Vec<Needed>,
    /// By page, the newest version first: the places of blocks.
    versions: Vec<(Gfn, u32)>,
    /// Pages by the place of their newest version.
    file_order: Vec<(u32, Gfn)>,
    state: Vec<StateRecord>,
}

impl PageMap {
    /// Looks up all pages of `epoch`. Reads lists of blocks, and no pages.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn new(chain: Arc<Chain>, epoch: EpochId) -> Result<Self, RestoreError> {
        let mut versions = Vec::new();
        let (blocks, state) = Plan::with_versions(&chain, epoch, &mut versions)?.into_parts();
        // Stable: the newest version of each page stays the first.
        versions.sort_by_key(|(gfn, _)| *gfn);
        let mut file_order: Vec<_> = versions
            .chunk_by(|one, other| one.0 == other.0)
            .filter_map(|page| page.first())
            .map(|(gfn, block)| (*block, *gfn))
            .collect();
        file_order.sort_unstable();
        Ok(Self { chain, epoch, blocks, versions, file_order, state })
    }

    /// The state records of the epoch, in the order of the chain. A restore must use every one.
    #[must_use]
    pub fn state(&self) -> &[StateRecord] {
        &self.state
    }

    /// How many pages have a version in the chain that is not listed as zeros.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.file_order.len() as u64
    }

    /// The versions of a page, newest first.
    fn versions(&self, gfn: Gfn) -> &[(Gfn, u32)] {
        let first = self.versions.partition_point(|(other, _)| *other < gfn);
        let rest = self.versions.get(first..).unwrap_or_default();
        let count = rest.iter().take_while(|(other, _)| *other == gfn).count();
        rest.get(..count).unwrap_or_default()
    }
}

impl PageSources for PageMap {
    fn open(&self) -> Box<dyn PageSource + '_> {
        Box::new(PageReader {
            map: self,
            reader: SegmentReader::new(&self.chain),
            decoder: BlockDecoder::new(),
            cache: Vec::new(),
            uses: 0,
            page: Box::new([0; PAGE_SIZE]),
        })
    }

    fn epoch(&self) -> EpochId {
        self.epoch
    }

    fn touched_before(&self) -> Vec<Gfn> {
        super::touched::load(&self.chain)
    }

    fn keep_touched(&self, order: &[Gfn]) {
        super::touched::keep(&self.chain, order);
    }
}

/// A block that was read and checked.
#[derive(Debug)]
enum Content {
    Whole(BlockList, Box<BlockPages>),
    /// The payload, whose changes are taken out as they are needed.
    Changes(Vec<u8>),
}

#[derive(Debug)]
struct Cached {
    block: u32,
    last_use: u64,
    content: Content,
}

/// Reads pages of a [`PageMap`].
#[derive(Debug)]
struct PageReader<'a> {
    map: &'a PageMap,
    reader: SegmentReader<'a>,
    decoder: BlockDecoder,
    cache: Vec<Cached>,
    uses: u64,
    /// The page in hand.
    page: Box<PageBytes>,
}

impl PageSource for PageReader<'_> {
    fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, Option<&PageBytes>)) -> Result<(), RestoreError> {
        let map = self.map;
        let Some((_, newest)) = map.versions(gfn).first() else {
            let first = gfn.0 - gfn.0 % ZERO_GROUP;
            for gfn in (first..first + ZERO_GROUP).map(Gfn) {
                if map.chain.identity().contains(gfn) && map.versions(gfn).is_empty() {
                    take(gfn, None);
                }
            }
            return Ok(());
        };
        let epoch = map.epoch;
        for (_, block) in map.versions(gfn) {
            self.load(*block).map_err(|source| RestoreError::Page { epoch, gfn, source })?;
        }
        self.put_together(gfn).map_err(|source| RestoreError::Page { epoch, gfn, source })?;
        take(gfn, Some(&self.page));
        for other in self.list(*newest).into_iter().flat_map(|list| list.gfns().to_vec()).filter(|other| *other != gfn) {
            let versions = map.versions(other);
            let is_here = versions.first().is_some_and(|(_, block)| block == newest)
                && versions.iter().all(|(_, block)| self.cache.iter().any(|cached| cached.block == *block));
            // What is wrong with a neighbour is said when it is wanted itself.
            if is_here && self.put_together(other).is_ok() {
                take(other, Some(&self.page));
            }
        }
        Ok(())
    }

    fn next(&mut self, place: &mut u64) -> Result<Option<Gfn>, RestoreError> {
        let found = usize::try_from(*place).ok().and_then(|place| self.map.file_order.get(place));
        *place = place.saturating_add(1);
        Ok(found.map(|(_, gfn)| *gfn))
    }
}

impl PageReader<'_> {
    /// Brings a block into the cache.
    fn load(&mut self, block: u32) -> Result<(), StoreError> {
        self.uses += 1;
        if let Some(cached) = self.cache.iter_mut().find(|cached| cached.block == block) {
            cached.last_use = self.uses;
            return Ok(());
        }
        // Room that the oldest block had is used again.
        let oldest = if self.cache.len() < CACHED_BLOCKS {
            None
        } else {
            let oldest = self.cache.iter().enumerate().min_by_key(|(_, cached)| cached.last_use).map(|(index, _)| index);
            oldest.map(|index| self.cache.swap_remove(index).content)
        };
        let (mut pages, mut buffer) = match oldest {
            Some(Content::Whole(_, pages)) => (Some(pages), Vec::new()),
            Some(Content::Changes(buffer)) => (None, buffer),
            None => (None, Vec::new()),
        };
        let Some((needed, epoch)) = self.needed(block) else { return Ok(()) };
        // The buffer has more than the payload.
        let length = self.reader.payload(&epoch, &needed.frame, &mut buffer)?.len();
        buffer.truncate(length);
        let content = if needed.changes {
            decode_changes(&buffer).map_err(|error| self.damaged(block, &error))?;
            Content::Changes(buffer)
        } else {
            let mut pages = pages.take().unwrap_or_else(|| Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]));
            let list = self.decoder.decode(&buffer, &mut pages).map_err(|error| self.damaged(block, &error))?;
            Content::Whole(list, pages)
        };
        self.cache.push(Cached { block, last_use: self.uses, content });
        Ok(())
    }

    fn needed(&self, block: u32) -> Option<(Needed, crate::store::Epoch)> {
        let needed = *self.map.blocks.get(usize::try_from(block).ok()?)?;
        Some((needed, *self.map.chain.epochs().get(needed.epoch)?))
    }

    fn damaged(&self, block: u32, error: &FormatError) -> StoreError {
        match self.needed(block) {
            Some((needed, epoch)) => self.reader.damaged(epoch.commit.epoch, epoch.segment, needed.frame.offset, error),
            None => StoreError::NoEpoch { epoch: self.map.epoch, newest: self.map.chain.newest() },
        }
    }

    fn cached(&self, block: u32) -> Option<&Content> {
        self.cache.iter().find(|cached| cached.block == block).map(|cached| &cached.content)
    }

    fn list(&self, block: u32) -> Option<BlockList> {
        match self.cached(block)? {
            Content::Whole(list, _) => Some(*list),
            Content::Changes(payload) => BlockList::parse(payload).ok(),
        }
    }

    /// Makes `page` what `gfn` is, its blocks being in the cache.
    fn put_together(&mut self, gfn: Gfn) -> Result<(), StoreError> {
        // What nothing was found of is zeros.
        self.page.fill(0);
        let map = self.map;
        for (_, block) in map.versions(gfn).iter().rev() {
            let cached = self.cache.iter().find(|cached| cached.block == *block);
            let applied = match cached.map(|cached| &cached.content) {
                Some(Content::Whole(list, pages)) => {
                    let found = list.gfns().iter().zip(pages.iter()).find(|(other, _)| **other == gfn);
                    found.map(|(_, page)| self.page.copy_from_slice(page)).ok_or_else(|| lacking(gfn))
                }
                Some(Content::Changes(payload)) => decode_changes(payload).and_then(|(list, changes)| {
                    let found = list.gfns().iter().zip(&changes).find(|(other, _)| **other == gfn);
                    found.map_or_else(|| Err(lacking(gfn)), |(_, change)| change.apply(&mut self.page))
                }),
                None => Err(lacking(gfn)),
            };
            applied.map_err(|error| self.damaged(*block, &error))?;
        }
        Ok(())
    }
}

/// The block's list was read twice, and only the first time had the page.
fn lacking(gfn: Gfn) -> FormatError {
    FormatError::field("gfn", crate::format::FRAME_HEADER_BYTES, gfn, "a list without it")
}
