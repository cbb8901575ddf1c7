//! Putting pages together from their versions, block by block, oldest first.

use std::collections::HashMap;

use super::view::View;
use super::{Chain, FramePlace, StoreError};
use crate::format::{BLOCK_PAGES, BlockDecoder, BlockPages, FRAME_HEADER_BYTES, FormatError, Mention, decode_changes};
use crate::page::{Gfn, PAGE_SIZE, PageBytes};

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
    decoder: BlockDecoder,
    pages: Box<BlockPages>,
    buffer: Vec<u8>,
    held: HashMap<Gfn, Box<PageBytes>>,
}

impl<'c> Assembly<'c> {
    pub(crate) fn new(chain: &'c Chain) -> Self {
        let pages = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
        Self { chain, decoder: BlockDecoder::new(), pages, buffer: Vec::new(), held: HashMap::new() }
    }

    /// Takes a block, which is newer than all taken before that have versions of the same pages. `want` has an answer for `expected` of its pages. Returns how many bytes were read.
    ///
    /// # Errors
    /// Damage; a block that lacks a page that is expected; what `give` says.
    pub(crate) fn block<E: From<StoreError>>(
        &mut self,
        segment: usize,
        place: &FramePlace,
        expected: u64,
        want: impl Fn(Gfn) -> Option<Want>,
        give: &mut dyn FnMut(Gfn, &PageBytes) -> Result<(), E>,
    ) -> Result<u64, E> {
        let source = self.chain.segment(segment)?;
        let damaged = |error| source.damaged(place.epoch, place.offset, &error);
        let payload = source.payload(place, &mut self.buffer)?;
        let bytes = FRAME_HEADER_BYTES as u64 + payload.len() as u64;
        let decoded = if place.mention == Mention::Changes {
            decode_changes(payload).and_then(|(list, changes)| {
                for ((gfn, change), page) in list.gfns().iter().zip(changes).zip(self.pages.iter_mut()) {
                    if want(*gfn).is_some_and(|want| want != Want::Leave) {
                        // What nothing was found of is zeros.
                        *page = self.held.remove(gfn).map_or([0; PAGE_SIZE], |held| *held);
                        change.apply(page)?;
                    }
                }
                Ok(list)
            })
        } else {
            self.decoder.decode(payload, &mut self.pages)
        };
        let list = decoded.map_err(damaged)?;
        let mut met = 0;
        for (gfn, page) in list.gfns().iter().zip(self.pages.iter()) {
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
        Ok(bytes)
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
    let mut assembly = Assembly::new(chain);
    for of_block in needed.chunk_by(|one, other| (one.0, one.1.offset) == (other.0, other.1.offset)) {
        let Some((segment, place, ..)) = of_block.first() else { continue };
        let wanted = |gfn: Gfn| {
            let at = of_block.binary_search_by_key(&gfn, |(_, _, gfn, _)| *gfn).ok()?;
            of_block.get(at).map(|(.., want)| *want)
        };
        assembly.block(*segment, place, of_block.len() as u64, wanted, give)?;
    }
    Ok(())
}
