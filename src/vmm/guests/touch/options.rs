//! What the guest is asked to do: `touch` or `touch:key=value,key=value`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::vmm::guests::options::{
    GuestOptions, Key, OfEveryGuest, OptionsError, name_of, named, number, pages, parse, put, write,
};

/// The most pages of a pass.
pub const PAGES_MAX: u64 = 1 << 20;
/// The most lists, and the most passes from one cut to the next.
const LISTS_MAX: u64 = 1024;
const CUT_MAX: u64 = 1 << 32;
/// Words in a page.
const WORDS_MAX: u64 = 512;
/// Pages of all lists together, unless told otherwise.
const LISTED_PAGES: u64 = 1 << 17;

/// Which pages the passes have. No page comes twice in one pass.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Pattern {
    /// Each pass has the pages behind those of the pass before, and all of memory is gone through
    /// so.
    Sequential,
    /// Any pages of all memory, each as likely as any other, in any order.
    #[default]
    Uniform,
    /// Pages of a working set sixteen times as large as a pass, the page of rank n with a weight of
    /// 1/n, in any order. Ranks follow the addresses.
    Zipf,
    /// Nine of ten pages are the same in every pass, spread over all memory; the rest as
    /// [`Pattern::Uniform`].
    HotCold,
    /// Every pass has the same pages, spread over all memory.
    Same,
}

impl Pattern {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 5] = [
        ("sequential", Self::Sequential),
        ("uniform", Self::Uniform),
        ("zipf", Self::Zipf),
        ("hotcold", Self::HotCold),
        ("same", Self::Same),
    ];
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(&Self::ALL, self))
    }
}

/// What the guest is asked to do. Always within its limits, whatever it was made from.
///
/// Made from text by [`FromStr`]; [`Display`](fmt::Display) gives a text that makes the same,
/// without what is as it is by default.
///
/// | key | takes | default |
/// | --- | --- | --- |
/// | `pages` | pages of a pass, over all vCPUs: a number, or a size as `16M` | 512 |
/// | `pattern` | `sequential`, `uniform`, `zipf`, `hotcold`, `same` ([`Pattern`]) | `uniform` |
/// | `lists` | passes after which the same lists come again | 16, fewer where lists are long |
/// | `words` | words of 8 bytes that are written to each page | 1 |
/// | `cut` | passes from one cut to the next, by request of the guest; 0 for none | 1 |
/// | `every` | a time, of which each begins at most one pass; 0 for as many as there can be | 0 |
/// | `seed` | where the random numbers begin | 1 |
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Options {
    pages: u64,
    pattern: Pattern,
    lists: Option<u64>,
    words: u64,
    cut: u64,
    of_every_guest: OfEveryGuest,
}

impl Default for Options {
    fn default() -> Self {
        let of_every_guest = OfEveryGuest::default();
        Self { pages: 512, pattern: Pattern::default(), lists: None, words: 1, cut: 1, of_every_guest }
    }
}

impl Options {
    /// Pages of a pass, over all vCPUs: 1 to [`PAGES_MAX`].
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Which pages the passes have.
    #[must_use]
    pub const fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// How many lists there are, at least 1.
    #[must_use]
    pub fn lists(&self) -> u64 {
        let plain = if self.pattern == Pattern::Same { 1 } else { (LISTED_PAGES / self.pages).clamp(2, 16) };
        self.lists.unwrap_or(plain)
    }

    /// Words of 8 bytes written to each page: 1 to 512.
    #[must_use]
    pub const fn words(&self) -> u64 {
        self.words
    }

    /// Passes from one cut to the next that the guest asks for; 0 for none.
    #[must_use]
    pub const fn cut(&self) -> u64 {
        self.cut
    }

    /// The period, of which each begins at most one pass; zero for no pacing. At most an hour.
    #[must_use]
    pub const fn every(&self) -> Duration {
        self.of_every_guest.every
    }

    /// Where the random numbers begin.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.of_every_guest.seed
    }
}

/// A number within `range`.
fn in_range(value: &str, range: RangeInclusive<u64>) -> Option<u64> {
    number(value).filter(|number| range.contains(number))
}

impl GuestOptions for Options {
    const GUEST: &'static str = "touch";
    const KEYS: &'static [Key<Self>] = &[
        Key {
            name: "pages",
            allowed: "1 to 1048576 pages, or a size of 4K to 4G in whole pages",
            set: |it, value| put(&mut it.pages, pages(value).filter(|pages| (1..=PAGES_MAX).contains(pages))),
            text: |it| Some(it.pages.to_string()),
        },
        Key {
            name: "pattern",
            allowed: "sequential, uniform, zipf, hotcold or same",
            set: |it, value| put(&mut it.pattern, named(&Pattern::ALL, value)),
            text: |it| Some(it.pattern.to_string()),
        },
        Key {
            name: "lists",
            allowed: "1 to 1024 lists",
            set: |it, value| put(&mut it.lists, in_range(value, 1..=LISTS_MAX).map(Some)),
            text: |it| it.lists.map(|lists| lists.to_string()),
        },
        Key {
            name: "words",
            allowed: "1 to 512 words",
            set: |it, value| put(&mut it.words, in_range(value, 1..=WORDS_MAX)),
            text: |it| Some(it.words.to_string()),
        },
        Key {
            name: "cut",
            allowed: "0 to 4294967296 passes",
            set: |it, value| put(&mut it.cut, in_range(value, 0..=CUT_MAX)),
            text: |it| Some(it.cut.to_string()),
        },
        Key::EVERY,
        Key::SEED,
    ];

    fn of_every_guest(&self) -> &OfEveryGuest {
        &self.of_every_guest
    }

    fn of_every_guest_mut(&mut self) -> &mut OfEveryGuest {
        &mut self.of_every_guest
    }
}

impl FromStr for Options {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        parse(text)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_and_options_agree_key_by_key() {
        for text in ["touch", "touch:"] {
            assert_eq!(text.parse::<Options>().unwrap(), Options::default());
        }
        let text = "touch:pages=60,pattern=hotcold,lists=4,words=8,cut=0,every=50ms,seed=2";
        let options: Options = text.parse().unwrap();
        assert_eq!((options.pages(), options.pattern(), options.lists()), (60, Pattern::HotCold, 4));
        assert_eq!((options.words(), options.cut(), options.every(), options.seed()), (8, 0, Duration::from_millis(50), 2));
        assert_eq!(options.to_string(), text);
        let lists = |text: &str| text.parse::<Options>().unwrap().lists();
        assert_eq!((lists("touch"), lists("touch:pages=64000"), lists("touch:pattern=same")), (16, 2, 1));
    }

    #[test]
    fn errors_name_the_key_and_what_is_allowed() {
        for (text, message) in [
            ("churn", "`churn` is not the guest `touch`: expected `touch` or `touch:key=value,key=value`"),
            ("touch:pages", "`pages` is not `key=value`"),
            ("touch:page=1", "`page` is not an option of `touch`: there are pages, pattern, lists, words, cut, every, seed"),
            ("touch:seed=1,seed=1", "option `seed` of `touch` is given twice"),
            ("touch:words=513", "option `words=513` of `touch` is not allowed: 1 to 512 words"),
        ] {
            assert_eq!(text.parse::<Options>().unwrap_err().to_string(), message, "{text}");
        }
        for bad in ["pages=0", "pages=1048577", "lists=0", "words=0", "cut=-1", "every=1", "pattern=random", "seed=x"] {
            assert!(matches!(format!("touch:{bad}").parse::<Options>(), Err(OptionsError::Value { .. })), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_options_or_an_error(text in "(touch:)?([a-z]{0,7}=?[0-9a-zA-Z]{0,22},?){0,4}") {
            if let Ok(options) = text.parse::<Options>() {
                prop_assert_eq!(options.to_string().parse(), Ok(options));
            }
        }
    }
}
