//! Putting listed pages in ascending order, fast: it happens while the guest stands still.

use super::dirty_page::DirtyPage;

/// Below that, comparing is as fast.
const RADIX_FROM: usize = 48;

/// Address space, slot and page as one number. Pages beyond 2^40 of a slot do not exist; were one
/// listed, it would only be out of order.
const fn key(page: &DirtyPage) -> u64 {
    // Widening; `From` is not const.
    ((page.slot as u64) << 40) ^ page.offset
}

/// Sorts `pages` by slot and page, with a radix sort over those digits in which they differ. `room`
/// is used again and again and ends up with as many entries.
pub(super) fn sort(pages: &mut Vec<DirtyPage>, room: &mut Vec<DirtyPage>) {
    if pages.len() < RADIX_FROM {
        pages.sort_unstable_by_key(key);
        return;
    }
    let (mut all, mut any, mut last, mut sorted) = (u64::MAX, 0, 0, true);
    for page in pages.iter() {
        let key = key(page);
        (all, any, sorted, last) = (all & key, any | key, sorted && last <= key, key);
    }
    if sorted {
        return;
    }
    room.clear();
    room.extend_from_slice(pages);
    // Fewer and larger digits pay where there are more pages to go over than counts, as long as
    // these stay in the fastest cache.
    match pages.len() {
        ..512 => by_digits::<{ 1 << 8 }>(pages, room, all ^ any),
        _ => by_digits::<{ 1 << 11 }>(pages, room, all ^ any),
    }
}

/// Sorts by the digits of those bits in which keys `differ`; a digit has at most `DIGITS` values.
fn by_digits<const DIGITS: usize>(pages: &mut Vec<DirtyPage>, room: &mut Vec<DirtyPage>, differ: u64) {
    let mut shift = differ.trailing_zeros();
    let bits = u64::BITS - differ.leading_zeros() - shift;
    let passes = bits.div_ceil(DIGITS.ilog2());
    let digit_bits = bits.div_ceil(passes);
    let mask = (1 << digit_bits) - 1;
    for _ in 0..passes {
        let digit = |page: &DirtyPage| usize::try_from(key(page) >> shift).unwrap_or_default() & mask;
        let mut places = [0u32; DIGITS];
        for page in pages.iter() {
            if let Some(count) = places.get_mut(digit(page)) {
                *count += 1;
            }
        }
        let mut before = 0;
        for place in places.iter_mut().take(mask + 1) {
            (before, *place) = (before + *place, before);
        }
        for page in pages.iter() {
            if let Some(place) = places.get_mut(digit(page)) {
                if let Some(to) = usize::try_from(*place).ok().and_then(|place| room.get_mut(place)) {
                    *to = *page;
                }
                *place += 1;
            }
        }
        std::mem::swap(pages, room);
        shift += digit_bits;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pages_are_sorted(
            offsets in vec((0u32..3, prop_oneof![0u64..5000, 0u64..1 << 40]), 0..1500),
            sorted in any::<bool>(),
        ) {
            let mut pages: Vec<_> = offsets.iter().map(|(slot, offset)| DirtyPage { slot: *slot, offset: *offset }).collect();
            let mut expected = pages.clone();
            expected.sort();
            if sorted {
                pages.clone_from(&expected);
            }
            let mut room = Vec::new();
            sort(&mut pages, &mut room);
            prop_assert_eq!(pages, expected);
        }
    }

    #[test]
    fn what_no_kernel_lists_is_kept() {
        let mut pages: Vec<_> = (0..100).map(|n| DirtyPage { slot: u32::MAX - n % 7, offset: u64::MAX - u64::from(n) }).collect();
        let mut expected = pages.clone();
        sort(&mut pages, &mut Vec::new());
        pages.sort();
        expected.sort();
        assert_eq!(pages, expected);
    }
}
