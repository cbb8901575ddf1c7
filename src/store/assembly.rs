//! Putting pages together from their versions, block by block, oldest first.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, Scope};

use super::view::View;
use super::{Chain, FramePlace, StoreError};
use crate::format::{BLOCK_PAGES, BlockDecoder, BlockList, BlockPages, FRAME_HEADER_BYTES, FormatError, Mention, decode_changes};
use crate::page::{Gfn, PAGE_SIZE, PageBytes};

/// More threads than this read no faster than one can take.
const READERS_MOST: usize = 8;

/// Fewer blocks are read before threads are started.
const READ_AHEAD_FROM: usize = if cfg!(test) { 3 } else { 64 };

/// Blocks that each thread is ahead.
const AHEAD: usize = 4;

/// A block, read and checked.
#[derive(Debug)]
pub(crate) struct Block {
    /// The pages of `list`, where they are whole.
    pages: Box<BlockPages>,
    list: Option<BlockList>,
    /// The payload, where they are changes.
    changes: Vec<u8>,
    /// Bytes in the chain.
    pub(crate) bytes: u64,
}

impl Block {
    fn new() -> Self {
        Self { pages: Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]), list: None, changes: Vec::new(), bytes: 0 }
    }
}

/// Reads blocks.
struct Reader<'c> {
    chain: &'c Chain,
    decoder: BlockDecoder,
    buffer: Vec<u8>,
}

impl<'c> Reader<'c> {
    fn new(chain: &'c Chain) -> Self {
        Self { chain, decoder: BlockDecoder::new(), buffer: Vec::new() }
    }

    fn read(&mut self, segment: usize, place: &FramePlace, into: &mut Block) -> Result<(), StoreError> {
        let source = self.chain.segment(segment)?;
        let payload = source.payload(place, &mut self.buffer)?;
        into.bytes = FRAME_HEADER_BYTES as u64 + payload.len() as u64;
        into.list = None;
        if place.mention == Mention::Changes {
            into.changes.clear();
            into.changes.extend_from_slice(payload);
        } else {
            let decoded = self.decoder.decode(payload, &mut into.pages);
            into.list = Some(decoded.map_err(|error| source.damaged(place.epoch, place.offset, &error))?);
        }
        Ok(())
    }
}

/// Where a block is: which of the chain's segments, and where there.
pub(crate) type BlockPlace = (usize, FramePlace);

/// Reads blocks, whose places `place` says, on up to `threads` threads, and has `take` take them in order.
///
/// # Errors
/// Damage; what the operating system refuses; what `take` says, which is not called again.
pub(crate) fn in_order<B: Sync, E: From<StoreError>>(
    chain: &Chain,
    blocks: &[B],
    threads: usize,
    place: impl Fn(&B) -> Result<BlockPlace, StoreError> + Sync,
    mut take: impl FnMut(&B, &BlockPlace, &mut Block) -> Result<(), E>,
) -> Result<(), E> {
    let threads = threads.min(READERS_MOST);
    std::thread::scope(|scope| {
        let ahead = threads > 1 && blocks.len() >= READ_AHEAD_FROM;
        let lanes = if ahead { lanes(scope, chain, blocks, threads, &place) } else { Vec::new() };
        if lanes.is_empty() {
            let mut reader = Reader::new(chain);
            let mut block = Block::new();
            return blocks.iter().try_for_each(|of| {
                let place = place(of)?;
                reader.read(place.0, &place.1, &mut block)?;
                take(of, &place, &mut block)
            });
        }
        // Whoever returns early drops the lanes, and their threads end.
        for (of, lane) in blocks.iter().zip(lanes.iter().cycle()) {
            let panicked = |_| StoreError::io("read", chain.dir())(std::io::Error::other("a thread that reads panicked"));
            let (place, mut block) = lane.blocks.recv().map_err(panicked)?;
            take(of, &place?, &mut block)?;
            // It may have read all it has to.
            let _ = lane.spare.send(block);
        }
        Ok(())
    })
}

/// A thread that reads every so-manieth block.
struct Lane {
    blocks: Receiver<(Result<BlockPlace, StoreError>, Block)>,
    spare: Sender<Block>,
}

/// Starts the threads. None where not all could be had.
fn lanes<'scope, 'env, B: Sync>(
    scope: &'scope Scope<'scope, 'env>,
    chain: &'env Chain,
    blocks: &'env [B],
    threads: usize,
    place: &'env (impl Fn(&B) -> Result<BlockPlace, StoreError> + Sync),
) -> Vec<Lane> {
    let lane = |first: usize| {
        let (give, read) = sync_channel(AHEAD);
        let (spare, empty) = channel();
        // The other end is below.
        (0..AHEAD).for_each(|_| drop(spare.send(Block::new())));
        let mine = blocks.iter().skip(first).step_by(threads);
        let run = move || read_lane(chain, mine, place, &empty, &give);
        Builder::new().name("slackwater-read".to_owned()).spawn_scoped(scope, run).ok()?;
        Some(Lane { blocks: read, spare })
    };
    (0..threads).map(lane).collect::<Option<_>>().unwrap_or_default()
}

fn read_lane<'b, B: 'b>(
    chain: &Chain,
    mine: impl Iterator<Item = &'b B>,
    place: &impl Fn(&B) -> Result<BlockPlace, StoreError>,
    empty: &Receiver<Block>,
    give: &SyncSender<(Result<BlockPlace, StoreError>, Block)>,
) {
    let mut reader = Reader::new(chain);
    for of in mine {
        let Ok(mut block) = empty.recv() else { return };
        let read = place(of).and_then(|place| reader.read(place.0, &place.1, &mut block).map(|()| place));
        let failed = read.is_err();
        if give.send((read, block)).is_err() || failed {
            return;
        }
    }
}

/// What is to become of a page that a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// This is the version that was asked for.
    Give,
    /// The version after this one is a change of it.
    Hold,
    /// Not now.
    Leave,
}

/// Pages that are not yet the version that is wanted.
#[derive(Debug)]
pub(crate) struct Assembly<'c> {
    chain: &'c Chain,
    held: HashMap<Gfn, Box<PageBytes>>,
}

impl<'c> Assembly<'c> {
    pub(crate) fn new(chain: &'c Chain) -> Self {
        Self { chain, held: HashMap::new() }
    }

    /// Takes a block, which is newer than all taken before that have versions of the same pages. `want` has an answer for `expected` of its pages.
    ///
    /// # Errors
    /// Damage; a block that lacks a page that is expected; what `give` says.
    pub(crate) fn take<E: From<StoreError>>(
        &mut self,
        (segment, place): &BlockPlace,
        block: &mut Block,
        expected: u64,
        want: impl Fn(Gfn) -> Option<Want>,
        give: &mut dyn FnMut(Gfn, &PageBytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let source = self.chain.segment(*segment)?;
        let damaged = |error| source.damaged(place.epoch, place.offset, &error);
        let list = match block.list.take() {
            Some(list) => list,
            None => self.change(block, &want).map_err(damaged)?,
        };
        let mut met = 0;
        for (gfn, page) in list.gfns().iter().zip(block.pages.iter()) {
            let Some(want) = want(*gfn) else { continue };
            met += 1;
            match want {
                Want::Give => give(*gfn, page)?,
                Want::Hold => {
                    self.held.insert(*gfn, Box::new(*page));
                }
                Want::Leave => {}
            }
        }
        if met != expected {
            let error = FormatError::field("gfn", FRAME_HEADER_BYTES, format!("{expected} pages that the index names"), met);
            return Err(damaged(error).into());
        }
        Ok(())
    }

    /// Brings the pages that are wanted of a block of changes to what it says.
    fn change(&mut self, block: &mut Block, want: impl Fn(Gfn) -> Option<Want>) -> Result<BlockList, FormatError> {
        let (list, changes) = decode_changes(&block.changes)?;
        for ((gfn, change), page) in list.gfns().iter().zip(changes).zip(block.pages.iter_mut()) {
            if want(*gfn).is_some_and(|want| want != Want::Leave) {
                // What nothing was found of is zeros.
                *page = self.held.remove(gfn).map_or([0; PAGE_SIZE], |held| *held);
                change.apply(page)?;
            }
        }
        Ok(list)
    }
}

/// Gives the content that each of these pages, which rise, has at an epoch, but for those that no version was found of: they are zeros. Each block is read
/// once, in file order, so they come in no order. Memory is needed for all of them.
///
/// # Errors
/// Damage, with its place; what the operating system refuses; what `give` says.
pub(crate) fn read_all(
    chain: &Chain,
    view: &View,
    gfns: &[Gfn],
    give: &mut dyn FnMut(Gfn, &PageBytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut needed = Vec::new();
    for gfn in gfns {
        let (versions, _) = view.versions(chain, *gfn)?;
        let newest = versions.iter().enumerate().map(|(age, version)| (version, if age == 0 { Want::Give } else { Want::Hold }));
        needed.extend(newest.map(|(version, want)| (version.segment, version.place, *gfn, want)));
    }
    needed.sort_unstable_by_key(|(segment, place, gfn, _)| (*segment, place.offset, *gfn));
    let blocks: Vec<_> = needed.chunk_by(|one, other| (one.0, one.1.offset) == (other.0, other.1.offset)).collect();
    let first = |pages: &&[(usize, FramePlace, Gfn, Want)]| {
        let first = pages.first().map(|(segment, place, ..)| (*segment, *place));
        first.ok_or_else(|| StoreError::io("read", chain.dir())(std::io::ErrorKind::NotFound.into()))
    };
    let mut assembly = Assembly::new(chain);
    in_order(chain, &blocks, 1, first, |pages, place, block| {
        let wanted = |gfn: Gfn| {
            let at = pages.binary_search_by_key(&gfn, |(_, _, gfn, _)| *gfn).ok()?;
            pages.get(at).map(|(.., want)| *want)
        };
        assembly.take(place, block, pages.len() as u64, wanted, give)
    })
}
