//! The names of segments and indexes.

/// The highest number of a segment.
const NUMBER_MAX: u32 = 99_999_999;

/// The numbers that a segment stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Numbers {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl Numbers {
    pub(super) fn parse(name: &str, prefix: &str) -> Option<Self> {
        let number = |digits: &str| {
            let digits = Some(digits).filter(|digits| digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))?;
            digits.parse().ok().filter(|number| (1..=NUMBER_MAX).contains(number))
        };
        let digits = name.strip_prefix(prefix)?;
        match digits.split_once('-') {
            None => number(digits).map(|first| Self { first, last: first }),
            Some((first, last)) => number(first)
                .zip(number(last))
                .map(|(first, last)| Self { first, last })
                .filter(|numbers| numbers.first < numbers.last),
        }
    }

    /// Whether a segment with these numbers can only have been made by a compaction.
    pub(super) fn is_compacted(self) -> bool {
        self.first < self.last
    }

    pub(super) fn name(self, prefix: &str) -> String {
        let Self { first, last } = self;
        if first == last { format!("{prefix}{first:08}") } else { format!("{prefix}{first:08}-{last:08}") }
    }
}

/// The name of a file in its own directory, by its path in the store's.
pub(super) fn in_directory(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}
