//! The names of files in a chain's directory, and which of them count.

use std::fmt;

use crate::format::SEGMENTS_MAX;

/// The file that says what a chain is.
pub(super) const DESCRIPTION: &str = "description.json";

/// What becomes [`DESCRIPTION`] once it is whole and synced.
pub(super) const DESCRIPTION_DRAFT: &str = "description.tmp";

/// The file that says which epoch was durable.
pub(super) const MARK: &str = "durable";

/// What becomes [`MARK`] where that is made anew.
pub(super) const MARK_DRAFT: &str = "durable.tmp";

/// The file that the one writer holds a lock on.
pub(super) const LOCK: &str = "lock";

/// The directory of a store's branches.
pub(super) const BRANCHES: &str = "branches";

/// The file that whoever compacts or makes a branch holds a lock on.
pub(super) const MAINTENANCE: &str = "maintenance";

/// The numbers that a segment stands for: one, or those of the segments that a compaction put it in
/// the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentNumbers {
    /// The first, from 1.
    pub first: u32,
    /// The last; the first, but in a compacted segment.
    pub last: u32,
}

impl SegmentNumbers {
    /// One number.
    #[must_use]
    pub const fn one(number: u32) -> Self {
        Self { first: number, last: number }
    }

    /// Whether a segment with these numbers can only have been made by a compaction.
    pub(super) const fn is_compacted(self) -> bool {
        self.first < self.last
    }

    /// The name of the segment's file.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("segment-{self}")
    }

    /// The name of its index.
    pub(crate) fn index_name(self) -> String {
        format!("index-{self}")
    }

    /// The name of its index while it is written.
    pub(super) fn index_draft(self) -> String {
        format!("index-{self}.tmp")
    }

    /// Whether `other`'s numbers all lie within these.
    #[must_use]
    pub const fn cover(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// The numbers in `name`, behind `prefix`, where it is such a name.
    fn parse(prefix: &str, name: &str) -> Option<Self> {
        let rest = name.strip_prefix(prefix)?;
        let number = |digits: &str| {
            let sound = digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|number| sound && (1..=SEGMENTS_MAX).contains(number))
        };
        match rest.split_once('-') {
            None => number(rest).map(Self::one),
            Some((first, last)) => {
                Some(Self { first: number(first)?, last: number(last)? }).filter(|numbers| numbers.first < numbers.last)
            }
        }
    }
}

impl fmt::Display for SegmentNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.first)?;
        if self.last > self.first { write!(f, "-{:08}", self.last) } else { Ok(()) }
    }
}

/// The segments among the names of a directory, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// Those that count, rising. Two that share numbers are both here.
    pub(super) live: Vec<SegmentNumbers>,
    /// Those that a compaction put another in the place of.
    pub(super) replaced: Vec<SegmentNumbers>,
}

impl Listed {
    /// Sorts the names of a chain's directory.
    pub(super) fn new(names: &[String]) -> Self {
        let mut numbers: Vec<_> = names.iter().filter_map(|name| SegmentNumbers::parse("segment-", name)).collect();
        // A wide one comes before those that it covers.
        numbers.sort_unstable_by_key(|numbers| (numbers.first, std::cmp::Reverse(numbers.last)));
        let mut listed = Self::default();
        for numbers in numbers {
            // The last that was taken reaches furthest.
            match listed.live.last() {
                Some(before) if before.cover(numbers) => listed.replaced.push(numbers),
                _ => listed.live.push(numbers),
            }
        }
        listed
    }

    /// The numbers of all indexes among the names of a directory.
    pub(super) fn indexes(names: &[String]) -> impl Iterator<Item = SegmentNumbers> + '_ {
        names.iter().filter_map(|name| SegmentNumbers::parse("index-", name))
    }

    /// The names of files that mean nothing any more: replaced segments, indexes without a segment
    /// that counts, and drafts.
    pub(super) fn leftovers(&self, names: &[String]) -> Vec<String> {
        let is_leftover = |name: &&String| match name.strip_suffix(".tmp") {
            Some(draft) => *name == MARK_DRAFT || SegmentNumbers::parse("index-", draft).is_some(),
            None => SegmentNumbers::parse("index-", name).is_some_and(|numbers| !self.live.contains(&numbers)),
        };
        let replaced = self.replaced.iter().map(|numbers| numbers.file_name());
        replaced.chain(names.iter().filter(is_leftover).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> (Vec<String>, Vec<String>, Vec<String>) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let listed = Listed::new(&names);
        let text = |numbers: &[SegmentNumbers]| numbers.iter().map(ToString::to_string).collect();
        (text(&listed.live), text(&listed.replaced), listed.leftovers(&names))
    }

    #[test]
    fn what_lies_within_another_is_replaced() {
        let names = [
            "segment-00000003",
            "segment-00000001-00000002",
            "segment-00000001",
            "segment-00000002",
            "segment-00000001-00000003",
            "segment-00000004",
            "index-00000003",
            "index-00000004",
            "index-00000004.tmp",
            "description.json",
            "lock",
        ];
        let (live, replaced, leftovers) = listed(&names);
        assert_eq!(live, ["00000001-00000003", "00000004"]);
        assert_eq!(replaced, ["00000001-00000002", "00000001", "00000002", "00000003"]);
        assert_eq!(
            leftovers,
            [
                "segment-00000001-00000002",
                "segment-00000001",
                "segment-00000002",
                "segment-00000003",
                "index-00000003",
                "index-00000004.tmp"
            ]
        );
        assert_eq!(listed(&["segment-00000001-00000003", "segment-00000003-00000005"]).0.len(), 2);
    }

    #[test]
    fn other_names_are_no_segments() {
        for name in [
            "segment-0000001",
            "segment-00000000",
            "segment-00000002-00000002",
            "segment-00000002-00000001",
            "segment-0000000a",
            "segment-00000001.tmp",
            "segment-+0000001",
        ] {
            assert_eq!(listed(&[name]).0, Vec::<String>::new(), "{name}");
        }
    }
}
