//! The versions of pages that were stored last, as far as memory for them goes: so that only what
//! changed needs to be stored.

use crate::format::{CHANGED_WORDS_MAX, CHANGES_DEPTH_MAX, ChangedWords};
use crate::page::{Gfn, PageBytes};

/// A page at a place where copying it is fast (`docs/kernel.md`).
#[derive(Clone)]
#[repr(align(4096))]
struct Aligned(PageBytes);

/// A page that is kept.
#[derive(Clone, Copy)]
struct Kept {
    gfn: Gfn,
    /// How many versions in a row were stored as changes.
    depth: u8,
    /// Asked for since the hand last came by.
    used: bool,
}

/// What is to be stored of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// Nothing: the page is as it was.
    Nothing,
    /// What changed.
    Changes(ChangedWords),
    /// All of it.
    Whole,
}

/// For some pages the version that was stored last, in this pipeline: the newest that the chain
/// has, or will have if nothing fails. After a failure the engine has every page that the chain may
/// lack stored anew (`Part::store_unchanged`), and that is done with whole pages, so no change ever
/// builds on a version that did not reach the chain.
///
/// The number of pages is fixed. Room for another is made where the clock's hand finds a page that
/// was not asked for since it last came by.
pub(super) struct Versions {
    /// For each frame the place of its page, from 1; 0 for none.
    places: Vec<u32>,
    kept: Vec<Kept>,
    pages: Vec<Aligned>,
    /// The most of them. Memory is taken as it is used.
    most: usize,
    hand: usize,
}

impl Versions {
    /// For up to `pages` of the frames below `frames`.
    pub(super) fn new(frames: u64, pages: usize) -> Self {
        let frames = usize::try_from(frames).unwrap_or(usize::MAX);
        let pages = pages.min(frames).min(usize::try_from(u32::MAX - 1).unwrap_or(usize::MAX));
        Self {
            places: vec![0; if pages == 0 { 0 } else { frames }],
            kept: Vec::with_capacity(pages),
            pages: Vec::with_capacity(pages),
            most: pages,
            hand: 0,
        }
    }

    fn place(&self, gfn: Gfn) -> Option<usize> {
        let place = *usize::try_from(gfn.0).ok().and_then(|gfn| self.places.get(gfn))?;
        usize::try_from(place).ok()?.checked_sub(1)
    }

    fn set_place(&mut self, gfn: Gfn, place: Option<usize>) {
        if let Some(entry) = usize::try_from(gfn.0).ok().and_then(|gfn| self.places.get_mut(gfn)) {
            *entry = place.and_then(|place| u32::try_from(place + 1).ok()).unwrap_or(0);
        }
    }

    /// Says what to store of `gfn`, which holds `now`, and keeps that, if a version of it is kept.
    /// With `whole`, the version kept says nothing about the chain.
    pub(super) fn update(&mut self, gfn: Gfn, now: &PageBytes, whole: bool) -> Option<Store> {
        let place = self.place(gfn)?;
        let (kept, page) = (self.kept.get_mut(place)?, &mut self.pages.get_mut(place)?.0);
        kept.used = true;
        if !whole {
            let changed = ChangedWords::between(page, now);
            let count = changed.count();
            if count == 0 {
                return Some(Store::Nothing);
            }
            if count <= CHANGED_WORDS_MAX && kept.depth < CHANGES_DEPTH_MAX {
                kept.depth += 1;
                changed.patch(page, now);
                return Some(Store::Changes(changed));
            }
        }
        kept.depth = 0;
        *page = *now;
        Some(Store::Whole)
    }

    /// Keeps `now`, the content of `gfn` that is stored whole, if there is memory for any page.
    /// Returns the page whose version is dropped for it, and that version.
    pub(super) fn keep(&mut self, gfn: Gfn, now: &PageBytes) -> Option<(Gfn, PageBytes)> {
        // Neighbours, which come in one block, begin at one depth and others at others, so that not
        // all pages are due to be stored whole in one epoch.
        let depth = u8::try_from(gfn.0 / 16 % 16).unwrap_or_default().min(CHANGES_DEPTH_MAX);
        let kept = Kept { gfn, depth, used: true };
        if self.most == 0 || usize::try_from(gfn.0).map_or(true, |gfn| gfn >= self.places.len()) {
            return None;
        }
        if self.kept.len() < self.most {
            match self.pages.get_mut(self.kept.len()) {
                Some(page) => page.0 = *now,
                None => self.pages.push(Aligned(*now)),
            }
            self.set_place(gfn, Some(self.kept.len()));
            self.kept.push(kept);
            return None;
        }
        let place = self.next_unused();
        let before = std::mem::replace(self.kept.get_mut(place)?, kept);
        let dropped = std::mem::replace(&mut self.pages.get_mut(place)?.0, *now);
        self.set_place(before.gfn, None);
        self.set_place(gfn, Some(place));
        Some((before.gfn, dropped))
    }

    /// Goes round until a page was not asked for since the last time; twice at most.
    fn next_unused(&mut self) -> usize {
        for _ in 0..2 * self.kept.len() {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.kept.len().max(1);
            match self.kept.get_mut(place) {
                Some(kept) if kept.used => kept.used = false,
                _ => return place,
            }
        }
        self.hand
    }

    /// Forgets the version of `gfn`. Returns whether one was kept.
    pub(super) fn forget(&mut self, gfn: Gfn) -> bool {
        let Some(place) = self.place(gfn) else { return false };
        self.set_place(gfn, None);
        // The last takes its place.
        let last = self.kept.len() - 1;
        if place != last {
            let (kept, moved) = (self.kept.get(last).copied(), self.pages.get(last).cloned());
            if let (Some(kept), Some(moved), Some(to)) = (kept, moved, self.pages.get_mut(place)) {
                *to = moved;
                self.set_place(kept.gfn, Some(place));
                if let Some(entry) = self.kept.get_mut(place) {
                    *entry = kept;
                }
            }
        }
        self.kept.truncate(last);
        self.hand = if self.hand < last { self.hand } else { 0 };
        true
    }
}

impl std::fmt::Debug for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Versions").field("kept", &self.kept.len()).field("most", &self.most).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::page::PAGE_SIZE;

    /// A page that differs from every other with another number in as many words as asked for.
    fn page(number: u64, words: usize) -> PageBytes {
        let mut page = [7; PAGE_SIZE];
        page.chunks_exact_mut(8).take(words).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
        page
    }

    #[test]
    fn a_page_comes_whole_at_least_every_sixteenth_time() {
        let mut versions = Versions::new(64, 4);
        assert_eq!(versions.update(Gfn(3), &page(0, 1), false), None);
        assert_eq!(versions.keep(Gfn(3), &page(0, 1)), None);
        let mut whole = Vec::new();
        for number in 1..50 {
            match versions.update(Gfn(3), &page(number, 1), false).unwrap() {
                Store::Changes(changed) => assert_eq!(changed.count(), 1),
                Store::Whole => whole.push(number),
                Store::Nothing => panic!("it changed"),
            }
            assert_eq!(versions.update(Gfn(3), &page(number, 1), false), Some(Store::Nothing));
        }
        assert_eq!(whole, [16, 32, 48]);
        assert_eq!(versions.update(Gfn(3), &page(49, 1), true), Some(Store::Whole), "what is kept may not be in the chain");
        assert_eq!(versions.update(Gfn(3), &page(50, 257), false), Some(Store::Whole), "too many words");
    }

    #[test]
    fn neighbours_come_whole_together_and_others_at_other_times() {
        let mut versions = Versions::new(64, 64);
        (0..64).for_each(|gfn| assert_eq!(versions.keep(Gfn(gfn), &page(0, 1)), None));
        let whole = |versions: &mut Versions, gfn| {
            (1..17).find(|number| versions.update(Gfn(gfn), &page(*number, 1), false) == Some(Store::Whole)).unwrap()
        };
        let when: Vec<_> = (0..64).map(|gfn| whole(&mut versions, gfn)).collect();
        assert!(when.chunks(16).all(|block| block.iter().all(|number| *number == block[0])), "{when:?}");
        assert_eq!([when[0], when[16], when[32], when[48]], [16, 15, 14, 13]);
    }

    proptest! {
        /// What is kept is what was stored last, for no more pages than asked for, and what is
        /// dropped is handed back.
        #[test]
        fn versions_are_what_was_stored(room in 0usize..6, steps in prop::collection::vec((0u64..9, 0u8..10, 0usize..3), 0..300)) {
            let mut versions = Versions::new(8, room);
            let mut model: BTreeMap<u64, PageBytes> = BTreeMap::new();
            for ((gfn, kind, words), number) in steps.into_iter().zip(1..) {
                if kind == 0 {
                    prop_assert_eq!(versions.forget(Gfn(gfn)), model.remove(&gfn).is_some());
                    continue;
                }
                let now = page(number, [0, 1, 300][words]);
                let stored = versions.update(Gfn(gfn), &now, kind == 1);
                prop_assert_eq!(stored.is_some(), model.contains_key(&gfn));
                if let Some(before) = model.get(&gfn) {
                    match stored.unwrap() {
                        Store::Nothing => prop_assert!(kind != 1 && *before == now),
                        Store::Changes(changed) => {
                            prop_assert!(kind != 1 && changed.count() <= 256);
                            let mut patched = *before;
                            changed.patch(&mut patched, &now);
                            prop_assert!(patched == now);
                        }
                        Store::Whole => {}
                    }
                    model.insert(gfn, now);
                } else {
                    if let Some((dropped, version)) = versions.keep(Gfn(gfn), &now) {
                        prop_assert!(model.remove(&dropped.0) == Some(version));
                    }
                    if room > 0 && gfn < 8 {
                        model.insert(gfn, now);
                    }
                }
                prop_assert!(model.len() <= room);
            }
            for (gfn, page) in model {
                prop_assert_eq!(versions.update(Gfn(gfn), &page, false), Some(Store::Nothing));
            }
        }
    }
}
