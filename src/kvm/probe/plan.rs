//! Which pages are written and named in which round, and what a kernel then lists.

use std::collections::BTreeSet;

use super::guest::PAGES;
use super::page_state::PageState;

/// Enough for a ring to go round: see the test.
pub(super) const ROUNDS: u64 = 12;
/// In the round before the last, no page is named.
const NAMELESS: u64 = ROUNDS - 1;

/// What is known of each page.
pub(super) struct Plan {
    states: [PageState; PAGES],
    /// The round of the last write.
    contents: [u64; PAGES],
}

/// The pages that the guest writes in a round: three in a row of four times three, others each
/// round. Two rounds write them all.
pub(super) fn written(round: u64) -> impl Iterator<Item = usize> {
    (0..PAGES).filter(move |page| !(*page as u64 / 3 + round).is_multiple_of(4))
}

impl Plan {
    pub(super) const fn new() -> Self {
        Self { states: [PageState::Fresh; PAGES], contents: [0; PAGES] }
    }

    pub(super) fn state(&self, page: usize) -> PageState {
        self.states.get(page).copied().unwrap_or(PageState::Fresh)
    }

    pub(super) fn content(&self, page: usize) -> u64 {
        self.contents.get(page).copied().unwrap_or_default()
    }

    /// The pages that the kernel must list after the writes of a round.
    pub(super) fn write(&mut self, round: u64) -> BTreeSet<usize> {
        let mut listed = BTreeSet::new();
        for page in written(round) {
            if let Some(content) = self.contents.get_mut(page) {
                *content = round;
            }
            if self.state(page) != PageState::Writable {
                listed.insert(page);
            }
        }
        listed
    }

    /// The pages to be named at the reset, in the order of the entries: of five that are listed two
    /// are left out, and in their places stand pages left out earlier, the highest first, as far as
    /// there are any. Every other round, all of it in ascending order.
    pub(super) fn protect(&mut self, round: u64, listed: &BTreeSet<usize>) -> Vec<usize> {
        let mut earlier: Vec<_> = (0..PAGES).filter(|page| self.state(*page) == PageState::Writable).collect();
        let mut named = Vec::new();
        for (place, page) in (0u64..).zip(listed) {
            let (name, state) = if round != NAMELESS && (place + round) % 5 >= 2 {
                (Some(*page), PageState::Protected)
            } else {
                (if round == NAMELESS { None } else { earlier.pop() }, PageState::Rearmed)
            };
            self.set(*page, PageState::Writable);
            if let Some(name) = name {
                self.set(name, state);
                named.push(name);
            }
        }
        if round.is_multiple_of(2) {
            named.sort_unstable();
        }
        named
    }

    fn set(&mut self, page: usize, to: PageState) {
        if let Some(state) = self.states.get_mut(page) {
            *state = to;
        }
    }
}
