//! The digest of all guest memory.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::page::{Gfn, PageBytes};
use crate::xxh3::xxh3_128;

/// A digest of guest memory that does not depend on the order in which pages are added, and in
/// which one page can be replaced.
///
/// Pages that hold only zeros add nothing, so that memory that was never touched costs nothing. It
/// finds accidents, not forgeries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemoryDigest(pub u128);

impl MemoryDigest {
    /// What one page adds: 0 for a page of zeros.
    #[must_use]
    pub fn of_page(gfn: Gfn, page: &PageBytes) -> Self {
        if is_zero(page) {
            return Self::default();
        }
        let mut term = [0; 24];
        let (number, hash) = term.split_at_mut(8);
        number.copy_from_slice(&gfn.0.to_le_bytes());
        hash.copy_from_slice(&xxh3_128(page).to_le_bytes());
        Self(xxh3_128(&term))
    }

    /// Adds the page at `gfn`, which must not have been added before.
    pub fn add_page(&mut self, gfn: Gfn, page: &PageBytes) {
        self.add(Self::of_page(gfn, page));
    }

    /// Takes away the page at `gfn`, which must have been added with these bytes.
    pub fn remove_page(&mut self, gfn: Gfn, page: &PageBytes) {
        self.0 = self.0.wrapping_sub(Self::of_page(gfn, page).0);
    }

    /// Adds the digest of other pages.
    pub const fn add(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl fmt::Display for MemoryDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MemoryDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "digest {self}")
    }
}

/// Whether a page holds only zeros. Stops at the first 256 bytes that do not.
#[must_use]
pub fn is_zero(page: &PageBytes) -> bool {
    page.chunks_exact(256).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}
