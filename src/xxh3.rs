//! XXH3, the one hash of chains. `docs/format.md` says what is hashed.
//!
//! `twox-hash` chooses the processor's widest vectors as it runs.

use std::fmt;

use twox_hash::{XxHash3_64, XxHash3_128};

/// xxh3-64.
pub(crate) fn xxh3_64(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// xxh3-64 with a seed.
pub(crate) fn xxh3_64_with_seed(bytes: &[u8], seed: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

/// xxh3-128.
pub(crate) fn xxh3_128(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

/// xxh3-128 with a seed.
pub(crate) fn xxh3_128_with_seed(bytes: &[u8], seed: u64) -> u128 {
    XxHash3_128::oneshot_with_seed(seed, bytes)
}

/// xxh3-128 of bytes that come in pieces.
#[derive(Clone)]
pub(crate) struct Xxh3(XxHash3_128);

impl Xxh3 {
    /// Of no bytes yet.
    pub(crate) fn new() -> Self {
        Self(XxHash3_128::new())
    }

    /// Takes the next piece.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The hash of all pieces so far.
    pub(crate) fn digest128(&self) -> u128 {
        self.0.finish_128()
    }
}

impl fmt::Debug for Xxh3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xxh3").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_hash_of_the_whole() {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(4096).collect();
        for len in [0, 1, 48, 240, 241, 1024, 4096] {
            for size in [1, 48, 300] {
                let mut pieces = Xxh3::new();
                bytes[..len].chunks(size).for_each(|piece| pieces.update(piece));
                assert_eq!(pieces.digest128(), xxh3_128(&bytes[..len]), "{len} by {size}");
            }
        }
    }

    #[test]
    fn the_hash_of_nothing_is_the_references() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(xxh3_128(b""), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
        assert_eq!(xxh3_64_with_seed(b"", 0), xxh3_64(b""));
        assert_eq!(xxh3_128_with_seed(b"", 0), xxh3_128(b""));
    }
}
