//! What the guest is asked to do: `churn` or `churn:key=value,key=value`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::vmm::guests::options::{
    GuestOptions, Key, OfEveryGuest, OptionsError, name_of, named, number, pages, parse, put, write,
};

/// The most pages of a working set: 64 GiB.
pub(super) const PAGES_MAX: u64 = 1 << 24;
/// The most page writes in a pass of one vCPU.
const BURST_MAX: u64 = 1 << 24;

/// In which order a vCPU writes its pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Pattern {
    /// One after the other, and again from the first.
    Sequential,
    /// Each as likely as any other.
    #[default]
    Uniform,
    /// The page of rank n with a weight of 1/n. The ranks follow the addresses.
    Zipf,
    /// Nine of ten writes hit the hot pages, which come first; the rest hits the others.
    HotCold,
}

impl Pattern {
    const ALL: [(&'static str, Self); 4] =
        [("sequential", Self::Sequential), ("uniform", Self::Uniform), ("zipf", Self::Zipf), ("hotcold", Self::HotCold)];
}

/// What a page write puts into a page behind its header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Content {
    /// Phrases of a dictionary of 32 KiB, which compress about as well as text.
    #[default]
    Text,
    /// Random bytes, which do not compress.
    Random,
    /// In turn nothing but zeros, and as [`Content::Counter`].
    Zero,
    /// Numbers that count up from the page's ticket.
    Counter,
    /// Text that stays, of which each write changes 8 words of 8 bytes.
    Words,
}

impl Content {
    const ALL: [(&'static str, Self); 5] = [
        ("text", Self::Text),
        ("random", Self::Random),
        ("zero", Self::Zero),
        ("counter", Self::Counter),
        ("words", Self::Words),
    ];

    /// The number by which the program knows the content.
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Text => 0,
            Self::Random => 1,
            Self::Zero => 2,
            Self::Counter => 3,
            Self::Words => 4,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(&Self::ALL, self))
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(&Self::ALL, self))
    }
}

/// What the guest is asked to do. Always within its limits, whatever it was made from.
///
/// Made from text by [`FromStr`]; [`Display`](fmt::Display) gives a text that makes the same,
/// without what is as it is by default.
///
/// - `pages`: pages of the working set, over all vCPUs: a number, or a size as `16M`; by default
///   4096
/// - `pattern`: `sequential`, `uniform`, `zipf`, `hotcold` ([`Pattern`]); by default `uniform`
/// - `hot`: hot pages, over all vCPUs, with `pattern=hotcold`: a number below `pages`, or a size;
///   by default a tenth of `pages`
/// - `content`: `text`, `random`, `zero`, `counter`, `words` ([`Content`]); by default `text`
/// - `burst`: page writes of each vCPU in a pass; by default its share of `pages`, up to 4096
/// - `every`: a time, of which each begins at most one pass of each vCPU; 0 for as many as there
///   can be; by default 0
/// - `seed`: where the random numbers begin; by default 1
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Options {
    pages: u64,
    pattern: Pattern,
    hot: Option<u64>,
    content: Content,
    burst: Option<u64>,
    of_every_guest: OfEveryGuest,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pages: 4096,
            pattern: Pattern::default(),
            hot: None,
            content: Content::default(),
            burst: None,
            of_every_guest: OfEveryGuest::default(),
        }
    }
}

impl Options {
    /// Pages of the working set, over all vCPUs: 1 to 2^24.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// In which order a vCPU writes its pages.
    #[must_use]
    pub const fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Hot pages, over all vCPUs, of [`Pattern::HotCold`]: 1 to [`pages`](Self::pages).
    #[must_use]
    pub fn hot(&self) -> u64 {
        self.hot.unwrap_or_else(|| (self.pages / 10).max(1))
    }

    /// What a page write puts into a page.
    #[must_use]
    pub const fn content(&self) -> Content {
        self.content
    }

    /// Page writes of each of `vcpus` vCPUs in a pass: 1 to 2^24.
    #[must_use]
    pub fn burst(&self, vcpus: u32) -> u64 {
        self.burst.unwrap_or_else(|| (self.pages / u64::from(vcpus.max(1))).clamp(1, 4096))
    }

    /// The period, of which each begins at most one pass of each vCPU. Zero: no pacing, and the
    /// guest never reads [`PORT_PACE`](super::PORT_PACE). At most an hour.
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

impl GuestOptions for Options {
    const GUEST: &'static str = "churn";
    const KEYS: &'static [Key<Self>] = &[
        Key {
            name: "pages",
            allowed: "1 to 16777216 pages, or a size of 4K to 64G in whole pages",
            set: |it, value| put(&mut it.pages, pages(value).filter(|pages| (1..=PAGES_MAX).contains(pages))),
            text: |it| Some(it.pages.to_string()),
        },
        Key {
            name: "pattern",
            allowed: "sequential, uniform, zipf or hotcold",
            set: |it, value| put(&mut it.pattern, named(&Pattern::ALL, value)),
            text: |it| Some(it.pattern.to_string()),
        },
        Key {
            name: "hot",
            allowed: "a number of pages, or a size in whole pages",
            set: |it, value| put(&mut it.hot, pages(value).map(Some)),
            text: |it| it.hot.map(|hot| hot.to_string()),
        },
        Key {
            name: "content",
            allowed: "text, random, zero, counter or words",
            set: |it, value| put(&mut it.content, named(&Content::ALL, value)),
            text: |it| Some(it.content.to_string()),
        },
        Key {
            name: "burst",
            allowed: "1 to 16777216 page writes",
            set: |it, value| put(&mut it.burst, number(value).filter(|burst| (1..=BURST_MAX).contains(burst)).map(Some)),
            text: |it| it.burst.map(|burst| burst.to_string()),
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

    fn check(&self) -> Result<(), OptionsError> {
        let (guest, key) = (Self::GUEST, "hot");
        let not_below = |hot: u64, pages: u64| {
            let allowed = format!("1 to {}, one below `pages`", pages.saturating_sub(1)).into();
            Err(OptionsError::Value { guest, key, value: hot.to_string(), allowed })
        };
        match (self.hot, self.pattern, self.pages) {
            (Some(hot), Pattern::HotCold, pages) if !(1..pages).contains(&hot) => not_below(hot, pages),
            (None, Pattern::HotCold, pages @ ..2) => not_below(1, pages),
            (Some(_), pattern, _) if pattern != Pattern::HotCold => {
                let found = format!("the pattern is {pattern}");
                Err(OptionsError::Needs { guest, key, needed: "pattern=hotcold", found })
            }
            _ => Ok(()),
        }
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

    fn parse(text: &str) -> Result<Options, OptionsError> {
        text.parse()
    }

    #[test]
    fn defaults() {
        for text in ["churn", "churn:"] {
            let options = parse(text).unwrap();
            assert_eq!(options, Options::default());
            assert_eq!(options.to_string(), "churn");
            assert_eq!((options.pages(), options.hot(), options.burst(1), options.burst(3)), (4096, 409, 4096, 1365));
            assert_eq!(options.every(), Duration::ZERO);
        }
    }

    #[test]
    fn every_key_is_taken() {
        let text = "churn:pages=16M,pattern=hotcold,hot=64K,content=words,burst=7,every=50ms,seed=0x10";
        let options = parse(text).unwrap();
        assert_eq!((options.pages(), options.hot(), options.burst(2), options.seed()), (4096, 16, 7, 16));
        assert_eq!((options.pattern(), options.content()), (Pattern::HotCold, Content::Words));
        assert_eq!(options.every(), Duration::from_millis(50));
        assert_eq!(options.to_string(), "churn:pattern=hotcold,hot=16,content=words,burst=7,every=50ms,seed=16");
    }

    #[test]
    fn errors_name_the_key_and_what_is_allowed() {
        for (text, message) in [
            ("linux", "`linux` is not the guest `churn`: expected `churn` or `churn:key=value,key=value`"),
            ("churn:pages", "`pages` is not `key=value`"),
            ("churn:pages=1,", "`` is not `key=value`"),
            ("churn:page=1", "`page` is not an option of `churn`: there are pages, pattern, hot, content, burst, every, seed"),
            ("churn:seed=1,seed=1", "option `seed` of `churn` is given twice"),
            (
                "churn:pages=0",
                "option `pages=0` of `churn` is not allowed: 1 to 16777216 pages, or a size of 4K to 64G in whole pages",
            ),
            ("churn:hot=5", "option `hot` of `churn` needs `pattern=hotcold`, the pattern is uniform"),
            ("churn:pattern=hotcold,hot=9,pages=9", "option `hot=9` of `churn` is not allowed: 1 to 8, one below `pages`"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
        for (key, values) in [
            ("pages", &["", "-1", "+1", "1k", "65G", "16777217", "6K", "99999999999999999999", "99999999999G", " 1", "K"][..]),
            ("pattern", &["", "Zipf", "random"]),
            ("hot", &["", "x", "1K"]),
            ("content", &["", "zeros"]),
            ("burst", &["0", "16777217", "4K", ""]),
            ("every", &["1", "", "1m", "3601s", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615s"]),
            ("seed", &["", "0x", "-1", "18446744073709551616"]),
        ] {
            for value in values {
                match parse(&format!("churn:{key}={value}")).unwrap_err() {
                    OptionsError::Value { key: found, value: given, .. } => assert_eq!((found, &*given), (key, *value)),
                    other => panic!("{key}={value}: {other}"),
                }
            }
        }
        parse("churn:pattern=hotcold,pages=1").unwrap_err();
    }

    proptest! {
        #[test]
        fn text_and_options_agree(
            pages in 2u64..=PAGES_MAX, pattern in 0usize..4, hot in prop::option::of(1u64..100), content in 0usize..5,
            burst in prop::option::of(1u64..=BURST_MAX), every_us in 0u64..=3_600_000_000, seed: u64,
        ) {
            let pattern = Pattern::ALL[pattern].1;
            let hot = hot.filter(|_| pattern == Pattern::HotCold).map(|hot| hot.min(pages - 1));
            let options = Options {
                pages, pattern, hot, content: Content::ALL[content].1, burst,
                of_every_guest: OfEveryGuest { every: Duration::from_micros(every_us), seed },
            };
            prop_assert_eq!(parse(&options.to_string()).unwrap(), options);
        }

        #[test]
        fn any_text_is_options_or_an_error(text in "(churn:)?([a-z]{0,7}=?[0-9a-zA-Z]{0,22},?){0,4}") {
            if let Ok(options) = parse(&text) {
                prop_assert_eq!(parse(&options.to_string()), Ok(options));
            }
        }
    }
}
