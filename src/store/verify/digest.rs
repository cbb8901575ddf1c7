//! The digest of guest memory, kept up to date page by page.

use std::collections::BTreeMap;

use crate::page::{Gfn, PageRun};
use crate::xxh3::xxh3_128;

/// A page that is not all zero.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// Its term in the sum, in halves: a `u128` would cost 8 bytes more for its alignment.
    term: [u64; 2],
    /// The generation that mentioned it last, modulo 2^32.
    generation: u32,
}

/// Guest memory as far as the digest is concerned: one term a page that is not zero, and their sum.
///
/// Its size follows the pages that the chain really stores, never what the description claims.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryDigest {
    pages: BTreeMap<u64, Page>,
    sum: u128,
    generation: u32,
}

impl MemoryDigest {
    /// What is set from now on belongs to another epoch.
    pub(super) fn begin_epoch(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// The page at `gfn` now holds `bytes`.
    pub(super) fn set(&mut self, gfn: Gfn, bytes: &[u8]) {
        let old = if bytes.iter().all(|byte| *byte == 0) {
            self.pages.remove(&gfn.0)
        } else {
            let mut text = [0; 24];
            text[..8].copy_from_slice(&gfn.0.to_le_bytes());
            text[8..].copy_from_slice(&xxh3_128(bytes).to_le_bytes());
            let term = xxh3_128(&text);
            self.sum = self.sum.wrapping_add(term);
            self.pages.insert(gfn.0, Page { term: split(term), generation: self.generation })
        };
        self.subtract(old);
    }

    /// The pages of `run` now hold zeros. Costs what there is in that range, not the range.
    pub(super) fn clear(&mut self, run: PageRun) {
        let last = run.first.0.saturating_add(run.count.saturating_sub(1));
        while let Some(gfn) = self.pages.range(run.first.0..=last).next().map(|(gfn, _)| *gfn) {
            let old = self.pages.remove(&gfn);
            self.subtract(old);
        }
    }

    /// Every page that was not set since [`begin_epoch`](Self::begin_epoch) now holds zeros.
    pub(super) fn keep_epoch_only(&mut self) {
        let generation = self.generation;
        self.pages.retain(|_, page| page.generation == generation);
        self.sum = self.pages.values().fold(0, |sum, page| sum.wrapping_add(join(page.term)));
    }

    /// How many pages are not zero.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// The digest of all memory.
    pub(super) fn sum(&self) -> u128 {
        self.sum
    }

    fn subtract(&mut self, page: Option<Page>) {
        self.sum = self.sum.wrapping_sub(page.map_or(0, |page| join(page.term)));
    }
}

fn split(term: u128) -> [u64; 2] {
    let bytes = term.to_le_bytes();
    [super::frame::u64_at(&bytes, 0), super::frame::u64_at(&bytes, 8)]
}

fn join([low, high]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}
