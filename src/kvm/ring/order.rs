//! Putting listed pages in ascending order, fast: it happens while the guest stands still.

use super::rings::DirtyPage;

/// The most bits in a digit: its counts have to stay in the fastest cache.
const DIGIT_BITS_MAX: u32 = 11;

/// Below that, comparing is as fast.
const RADIX_FROM: usize = 48;

/// Address space, slot and page as one number. Pages beyond 2^40 of a slot do not exist; were one listed, it would only be out of order.
const fn key(page: &DirtyPage) -> u64 {
    // Widening; `From` is not const.
    ((page.slot as u64) << 40) ^ page.offset
}

/// Sorts `pages` by slot and page, with a radix sort over those digits in which they differ. `room` is used again and again and ends up with as many entries.
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
    let differ = all ^ any;
    room.clear();
    room.extend_from_slice(pages);
    let mut shift = differ.trailing_zeros();
    let bits = u64::BITS - differ.leading_zeros() - shift;
    // Going over a digit's counts should take no longer than going over the pages.
    let passes = bits.div_ceil(pages.len().ilog2().min(DIGIT_BITS_MAX));
    let digit_bits = bits.div_ceil(passes);
    let mut places = [0u32; 1 << DIGIT_BITS_MAX];
    let places = places.get_mut(..1 << digit_bits).unwrap_or_default();
    for _ in 0..passes {
        let mask = places.len() - 1;
        let digit = |page: &DirtyPage| usize::try_from(key(page) >> shift).unwrap_or_default() & mask;
        places.fill(0);
        for page in pages.iter() {
            if let Some(count) = places.get_mut(digit(page)) {
                *count += 1;
            }
        }
        let mut before = 0;
        for place in places.iter_mut() {
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
            offsets in vec((0u32..3, prop_oneof![0u64..5000, 0u64..1 << 40]), 0..400),
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
