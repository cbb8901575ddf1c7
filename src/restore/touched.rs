//! The order in which a restored guest touched its pages, kept beside the chain for the next
//! restore.
//!
//! It only says what is worth bringing first: a record that is missing, damaged, of another chain
//! or made up costs time and nothing else. It may be removed at any time.
//!
//! The file: `SWTOUCH1`, the chain's identifier (16 bytes), frame numbers as 8 bytes each, and
//! xxh3-64 of all that. Little-endian.

use std::io;

use crate::format::ChainId;
use crate::page::Gfn;
use crate::store::{Chain, TOUCHED, TOUCHED_DRAFT, replace_derived};
use crate::xxh3::xxh3_64;

/// The most pages of a record: 256 MiB of guest memory.
pub(super) const TOUCHED_MOST: usize = 1 << 16;

const MAGIC: &[u8; 8] = b"SWTOUCH1";
const HEAD_BYTES: usize = 24;
const FILE_BYTES_MAX: u64 = HEAD_BYTES as u64 + 8 * TOUCHED_MOST as u64 + 8;

/// What was kept. Nothing where it is not sound.
pub(super) fn load(chain: &Chain) -> Vec<Gfn> {
    let description = chain.description();
    let read = chain.read_derived(TOUCHED, FILE_BYTES_MAX);
    let parsed = read.and_then(|bytes| parse(&bytes, description.chain).ok_or_else(|| io::ErrorKind::InvalidData.into()));
    match parsed {
        Ok(mut order) => {
            order.retain(|gfn| description.contains(*gfn));
            order
        }
        Err(error) => {
            tracing::debug!(%error, "no record of the pages that were touched the last time");
            Vec::new()
        }
    }
}

/// Keeps `order`, up to [`TOUCHED_MOST`] pages of it.
pub(super) fn keep(chain: &Chain, order: &[Gfn]) {
    let order = order.get(..TOUCHED_MOST).unwrap_or(order);
    if let Err(error) = replace_derived(chain, TOUCHED, TOUCHED_DRAFT, &encode(order, chain.description().chain)) {
        tracing::debug!(%error, "the record of touched pages could not be kept");
    }
}

#[cfg(feature = "kvm")]
/// The record for the next time: what had to be waited for in this run comes first, for the record
/// before brought it too late or not at all; and what that brought in time stays.
pub(super) fn merge(demanded: &[Gfn], before: &[Gfn]) -> Vec<Gfn> {
    let mut seen = std::collections::HashSet::new();
    demanded.iter().chain(before).copied().filter(|gfn| seen.insert(*gfn)).take(TOUCHED_MOST).collect()
}

fn encode(order: &[Gfn], chain: ChainId) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(chain.0);
    bytes.extend(order.iter().flat_map(|gfn| gfn.0.to_le_bytes()));
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    bytes
}

fn parse(bytes: &[u8], chain: ChainId) -> Option<Vec<Gfn>> {
    let (content, hash) = bytes.split_last_chunk::<8>()?;
    let (head, order) = content.split_at_checked(HEAD_BYTES)?;
    let (order, rest) = order.as_chunks::<8>();
    let sound = head.starts_with(MAGIC)
        && head.ends_with(&chain.0)
        && rest.is_empty()
        && order.len() <= TOUCHED_MOST
        && xxh3_64(content) == u64::from_le_bytes(*hash);
    sound.then(|| order.iter().map(|gfn| Gfn(u64::from_le_bytes(*gfn))).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::store::WriterOptions;
    use crate::store::testing::{Disk, new_chain};

    fn gfns(numbers: impl IntoIterator<Item = u64>) -> Vec<Gfn> {
        numbers.into_iter().map(Gfn).collect()
    }

    #[test]
    fn a_record_is_kept_and_one_that_is_not_sound_is_none() {
        let disk = Disk::new();
        drop(disk.create(&new_chain(), WriterOptions::default()).unwrap());
        let chain = disk.chain().unwrap();
        assert_eq!(load(&chain), []);
        keep(&chain, &gfns([3, 1, 2]));
        assert_eq!(load(&chain), gfns([3, 1, 2]));
        // Another replaces it, a draft that was left over is no obstacle, and what is not memory is
        // left out.
        replace_derived(&chain, TOUCHED_DRAFT, "other", b"left over").unwrap();
        keep(&chain, &gfns([5, 1 << 39, u64::MAX, 0]));
        assert_eq!(load(&chain), gfns([5, 0]));
        let good = encode(&gfns([1, 2]), chain.description().chain);
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            assert_eq!(parse(&bytes, chain.description().chain), None, "byte {at}");
            assert_eq!(parse(&good[..at], chain.description().chain), None, "cut at {at}");
        }
        assert_eq!(parse(&encode(&gfns([1]), ChainId([9; 16])), chain.description().chain), None);
        let long = encode(&gfns(0..TOUCHED_MOST as u64 + 1), chain.description().chain);
        assert_eq!(parse(&long, chain.description().chain), None);
        replace_derived(&chain, TOUCHED, TOUCHED_DRAFT, &long).unwrap();
        assert_eq!(load(&chain), []);
    }

    #[test]
    fn what_was_waited_for_comes_first_the_next_time() {
        assert_eq!(merge(&gfns([7, 2]), &gfns([1, 2, 3])), gfns([7, 2, 1, 3]));
        assert_eq!(merge(&gfns([4, 4]), &[]), gfns([4]));
        assert_eq!(merge(&gfns(0..10), &gfns(5..TOUCHED_MOST as u64 * 2)).len(), TOUCHED_MOST);
    }
}
