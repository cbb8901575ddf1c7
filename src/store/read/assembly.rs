//! Putting pages together from their versions, block by block, oldest first.

use std::collections::HashMap;

use super::blocks::{Block, BlockPlace, in_order};
use super::chain::Chain;
use super::view::{self, View};
use crate::format::{BlockList, FormatError, decode_changes};
use crate::page::{Gfn, PAGE_SIZE, PageBytes};
use crate::store::error::StoreError;

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

    /// Takes a block, which is newer than all taken before that have versions of the same pages.
    /// `want` has an answer for `expected` of its pages.
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
        let list = match block.list.take() {
            Some(list) => list,
            None => self.change(block, &want).map_err(|error| source.damaged(place.epoch, place.offset, &error))?,
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
            return Err(view::lacks_pages(source, place, expected, met).into());
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

/// Gives the content that each of these pages, which rise, has at an epoch, but for those that no
/// version was found of: they are zeros. Each block is read once, in file order, so they come in no
/// order. Memory is needed for all of them.
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
        let aged = versions.iter().enumerate().map(|(age, version)| (version, if age == 0 { Want::Give } else { Want::Hold }));
        needed.extend(aged.map(|(version, want)| ((version.segment, version.place), *gfn, want)));
    }
    let order = |(segment, place): &BlockPlace| (*segment, place.offset);
    needed.sort_unstable_by_key(|(place, gfn, _)| (order(place), *gfn));
    let by_block = needed.chunk_by(|one, other| order(&one.0) == order(&other.0));
    let blocks: Vec<_> = by_block.filter_map(|pages| Some((pages.first()?.0, pages))).collect();
    let mut assembly = Assembly::new(chain);
    in_order(
        chain,
        &blocks,
        1,
        |(place, _)| Ok(*place),
        |(_, pages), place, block| {
            let wanted = |gfn: Gfn| {
                let at = pages.binary_search_by_key(&gfn, |(_, gfn, _)| *gfn).ok()?;
                pages.get(at).map(|(.., want)| *want)
            };
            assembly.take(place, block, pages.len() as u64, wanted, give)
        },
    )
}
