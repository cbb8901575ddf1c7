//! What the chain holds of each page, as a hash: so that a page that did not change is not stored
//! again.

use crate::page::{Gfn, PageBytes};
use crate::xxh3::xxh3_128_with_seed;

/// Content that the table can say without a hash.
const INITIAL: u128 = 0;
const ZERO: u128 = 1;
const UNKNOWN: u128 = 2;
const FIRST_HASH: u128 = 3;

/// What a page holds, as far as its hash tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Content(u128);

impl Content {
    /// Only zeros.
    pub(super) const ZERO: Self = Self(ZERO);
}

/// For each frame, the content that the newest epoch in the pipeline or in the chain has for it. 16
/// bytes a frame, taken from the host as they are touched.
///
/// The hash is XXH3-128 with a random seed. A guest that could make two pages of its own with the
/// same hash would damage only its own checkpoints, and does not know the seed.
#[derive(Debug)]
pub(super) struct Contents {
    entries: Vec<u128>,
    initial: u128,
    seed: u64,
}

impl Contents {
    /// For frames below `frames` that all begin as zeros (`known_zero`), or of which nothing is
    /// known.
    pub(super) fn new(frames: u64, known_zero: bool, seed: u64) -> Self {
        let frames = usize::try_from(frames).unwrap_or(usize::MAX);
        Self { entries: vec![INITIAL; frames], initial: if known_zero { ZERO } else { UNKNOWN }, seed }
    }

    /// The content of a page that is not zero.
    pub(super) fn of(&self, page: &PageBytes) -> Content {
        let hash = xxh3_128_with_seed(page, self.seed);
        Content(if hash < FIRST_HASH { hash + FIRST_HASH } else { hash })
    }

    /// Whether `gfn` was stored before, as other than zeros.
    pub(super) fn has_hash(&self, gfn: Gfn) -> bool {
        let entry = usize::try_from(gfn.0).ok().and_then(|gfn| self.entries.get(gfn));
        entry.is_some_and(|entry| *entry >= FIRST_HASH)
    }

    /// Notes the content of `gfn` and returns whether it is another than before.
    pub(super) fn replace(&mut self, gfn: Gfn, content: Content) -> bool {
        let Some(entry) = usize::try_from(gfn.0).ok().and_then(|gfn| self.entries.get_mut(gfn)) else { return true };
        let before = std::mem::replace(entry, content.0);
        let before = if before == INITIAL { self.initial } else { before };
        before != content.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PAGE_SIZE;

    #[test]
    fn only_a_change_is_a_change() {
        let page = |byte| [byte; PAGE_SIZE];
        let mut fresh = Contents::new(4, true, 7);
        assert!(!fresh.replace(Gfn(0), Content::ZERO), "memory begins as zeros");
        let (one, two) = (fresh.of(&page(1)), fresh.of(&page(2)));
        assert!(fresh.replace(Gfn(0), one));
        assert!(!fresh.replace(Gfn(0), one));
        assert!(fresh.replace(Gfn(0), two));
        assert!(fresh.replace(Gfn(0), Content::ZERO));
        assert!(fresh.replace(Gfn(4), Content::ZERO), "nothing is known of what lies beyond");
        let mut unknown = Contents::new(4, false, 7);
        assert!(unknown.replace(Gfn(1), Content::ZERO), "unknown content is never the same");
        assert!(!unknown.replace(Gfn(1), Content::ZERO));
    }
}
