//! Reading blocks one after the other, by threads that are ahead of who takes them.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, Scope};

use super::chain::Chain;
use super::segment::FramePlace;
use crate::format::{BLOCK_PAGES, BlockDecoder, BlockList, BlockPages, FRAME_HEADER_BYTES, Mention};
use crate::page::PAGE_SIZE;
use crate::store::error::StoreError;

/// More threads than this read no faster than one can take.
const READERS_MOST: usize = 8;

/// Blocks that each thread is ahead.
const AHEAD: usize = 4;

/// A block, read and checked.
#[derive(Debug)]
pub(crate) struct Block {
    /// The pages of `list`, where they are whole.
    pub(in crate::store) pages: Box<BlockPages>,
    pub(in crate::store) list: Option<BlockList>,
    /// The payload, where they are changes.
    pub(in crate::store) changes: Vec<u8>,
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

/// Reads blocks, whose places `place` says, on up to `threads` threads, and has `take` take them in
/// order.
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
        let ahead = threads > 1 && blocks.len() >= chain.bounds().read_ahead_blocks;
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
