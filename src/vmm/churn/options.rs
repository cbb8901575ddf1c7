//! What the guest is asked to do: `churn` or `churn:key=value,key=value`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::vmm::keys::{name_of, named, number, pages, seed, time, time_text};

/// The most pages of a working set: 64 GiB.
pub(super) const PAGES_MAX: u64 = 1 << 24;
/// The most page writes in a pass of one vCPU.
const BURST_MAX: u64 = 1 << 24;
const EVERY_MAX: Duration = Duration::from_secs(3600);

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

/// Why a text is not options of the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The text names another guest.
    #[error("`{found}` is not the guest `churn`: expected `churn` or `churn:key=value,key=value`")]
    Guest {
        /// The name before the colon.
        found: String,
    },
    /// A part between commas has no `=`.
    #[error("`{part}` is not `key=value`")]
    NoValue {
        /// The part.
        part: String,
    },
    /// A key that there is not.
    #[error("`{key}` is not an option of `churn`: there are pages, pattern, hot, content, burst, every, seed")]
    Key {
        /// The key.
        key: String,
    },
    /// A key that comes twice.
    #[error("option `{key}` of `churn` is given twice")]
    Twice {
        /// The key.
        key: &'static str,
    },
    /// A value that the key does not take.
    #[error("option `{key}={value}` of `churn` is not allowed: {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value as given.
        value: String,
        /// What the key takes.
        allowed: &'static str,
    },
    /// `hot` without the pattern that it belongs to.
    #[error("option `hot` of `churn` needs `pattern=hotcold`, the pattern is {pattern}")]
    HotWithoutHotCold {
        /// The pattern.
        pattern: Pattern,
    },
    /// Not fewer hot pages than pages.
    #[error("option `hot={hot}` of `churn` is not allowed: 1 to {}, one below `pages`", pages.saturating_sub(1))]
    Hot {
        /// The hot pages asked for.
        hot: u64,
        /// The pages of the working set.
        pages: u64,
    },
}

const PAGES_ALLOWED: &str = "1 to 16777216 pages, or a size of 4K to 64G in whole pages";
const HOT_ALLOWED: &str = "a number of pages, or a size in whole pages";
const BURST_ALLOWED: &str = "1 to 16777216 page writes";
const EVERY_ALLOWED: &str = "0, or a time of 1us to 3600s as 250us, 50ms or 5s";
const SEED_ALLOWED: &str = "0 to 18446744073709551615, or the same with 0x";

/// What the guest is asked to do. Always within its limits, whatever it was made from.
///
/// Made from text by [`FromStr`]; [`Display`](fmt::Display) gives a text that makes the same, without what is
/// as it is by default. Serialised as that text.
///
/// | key | takes | default |
/// | --- | --- | --- |
/// | `pages` | pages of the working set, over all vCPUs: a number, or a size as `16M` | 4096 |
/// | `pattern` | `sequential`, `uniform`, `zipf`, `hotcold` ([`Pattern`]) | `uniform` |
/// | `hot` | hot pages, over all vCPUs, with `pattern=hotcold`: a number below `pages`, or a size | a tenth of `pages` |
/// | `content` | `text`, `random`, `zero`, `counter`, `words` ([`Content`]) | `text` |
/// | `burst` | page writes of each vCPU in a pass | its share of `pages`, up to 4096 |
/// | `every` | a time, of which each begins at most one pass of each vCPU; 0 for as many as there can be | 0 |
/// | `seed` | where the random numbers begin | 1 |
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Options {
    pages: u64,
    pattern: Pattern,
    hot: Option<u64>,
    content: Content,
    burst: Option<u64>,
    every: Duration,
    seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pages: 4096,
            pattern: Pattern::default(),
            hot: None,
            content: Content::default(),
            burst: None,
            every: Duration::ZERO,
            seed: 1,
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

    /// The period, of which each begins at most one pass of each vCPU. Zero: no pacing, and the guest never reads
    /// [`PORT_PACE`](super::PORT_PACE). At most an hour.
    #[must_use]
    pub const fn every(&self) -> Duration {
        self.every
    }

    /// Where the random numbers begin.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }
}

impl FromStr for Options {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let (guest, list) = text.split_once(':').unwrap_or((text, ""));
        if guest != "churn" {
            return Err(OptionsError::Guest { found: guest.to_owned() });
        }
        let mut options = Self::default();
        let mut given = Vec::new();
        for part in list.split(',').filter(|_| !list.is_empty()) {
            let Some((key, value)) = part.split_once('=') else { return Err(OptionsError::NoValue { part: part.to_owned() }) };
            let key = options.set(key, value)?;
            if given.contains(&key) {
                return Err(OptionsError::Twice { key });
            }
            given.push(key);
        }
        match (options.hot, options.pattern, options.pages) {
            (Some(hot), Pattern::HotCold, pages) if !(1..pages).contains(&hot) => Err(OptionsError::Hot { hot, pages }),
            (None, Pattern::HotCold, pages @ ..2) => Err(OptionsError::Hot { hot: 1, pages }),
            (Some(_), pattern, _) if pattern != Pattern::HotCold => Err(OptionsError::HotWithoutHotCold { pattern }),
            _ => Ok(options),
        }
    }
}

impl Options {
    /// Sets one option and returns its key.
    fn set(&mut self, key: &str, value: &str) -> Result<&'static str, OptionsError> {
        let (key, set) = match key {
            "pages" => (
                "pages",
                pages(value).filter(|pages| (1..=PAGES_MAX).contains(pages)).map(|it| self.pages = it).ok_or(PAGES_ALLOWED),
            ),
            "pattern" => {
                let set = named(&Pattern::ALL, value).map(|it| self.pattern = it);
                ("pattern", set.ok_or("sequential, uniform, zipf or hotcold"))
            }
            "hot" => ("hot", pages(value).map(|it| self.hot = Some(it)).ok_or(HOT_ALLOWED)),
            "content" => {
                let set = named(&Content::ALL, value).map(|it| self.content = it);
                ("content", set.ok_or("text, random, zero, counter or words"))
            }
            "burst" => {
                let burst = number(value).filter(|it| (1..=BURST_MAX).contains(it));
                ("burst", burst.map(|it| self.burst = Some(it)).ok_or(BURST_ALLOWED))
            }
            "every" => ("every", time(value).filter(|it| *it <= EVERY_MAX).map(|it| self.every = it).ok_or(EVERY_ALLOWED)),
            "seed" => ("seed", seed(value).map(|it| self.seed = it).ok_or(SEED_ALLOWED)),
            _ => return Err(OptionsError::Key { key: key.to_owned() }),
        };
        set.map(|()| key).map_err(|allowed| OptionsError::Value { key, value: value.to_owned(), allowed })
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, pattern, hot, content, burst, every, seed } = self;
        let plain = Self::default();
        let mut parts = Vec::new();
        if *pages != plain.pages {
            parts.push(format!("pages={pages}"));
        }
        if *pattern != plain.pattern {
            parts.push(format!("pattern={pattern}"));
        }
        parts.extend(hot.map(|hot| format!("hot={hot}")));
        if *content != plain.content {
            parts.push(format!("content={content}"));
        }
        parts.extend(burst.map(|burst| format!("burst={burst}")));
        if !every.is_zero() {
            parts.push(format!("every={}", time_text(*every)));
        }
        if *seed != plain.seed {
            parts.push(format!("seed={seed}"));
        }
        f.write_str(if parts.is_empty() { "churn" } else { "churn:" })?;
        f.write_str(&parts.join(","))
    }
}

impl From<Options> for String {
    fn from(options: Options) -> Self {
        options.to_string()
    }
}

impl TryFrom<String> for Options {
    type Error = OptionsError;

    fn try_from(text: String) -> Result<Self, OptionsError> {
        text.parse()
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
                pages, pattern, hot, content: Content::ALL[content].1, burst, every: Duration::from_micros(every_us), seed,
            };
            prop_assert_eq!(parse(&options.to_string()).unwrap(), options.clone());
            let json = serde_json::to_string(&options).unwrap();
            prop_assert_eq!(serde_json::from_str::<Options>(&json).unwrap(), options);
        }

        #[test]
        fn any_text_is_options_or_an_error(text in "(churn:)?([a-z]{0,7}=?[0-9a-zA-Z]{0,22},?){0,4}") {
            if let Ok(options) = parse(&text) {
                prop_assert_eq!(parse(&options.to_string()), Ok(options));
            }
        }
    }
}
