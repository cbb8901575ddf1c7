//! Options of the built-in guests as text: `name`, or `name:key=value,key=value`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::page::PAGE_SIZE_U64;

const EVERY_MAX: Duration = Duration::from_secs(3600);

/// Why a text is not options of a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The text names another guest.
    #[error("`{found}` is not the guest `{guest}`: expected `{guest}` or `{guest}:key=value,key=value`")]
    Guest {
        /// The guest.
        guest: &'static str,
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
    #[error("`{key}` is not an option of `{guest}`: there are {}", keys.join(", "))]
    Key {
        /// The guest.
        guest: &'static str,
        /// The key.
        key: String,
        /// The keys that there are.
        keys: Vec<&'static str>,
    },
    /// A key that comes twice.
    #[error("option `{key}` of `{guest}` is given twice")]
    Twice {
        /// The guest.
        guest: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A value that the key does not take.
    #[error("option `{key}={value}` of `{guest}` is not allowed: {allowed}")]
    Value {
        /// The guest.
        guest: &'static str,
        /// The key.
        key: &'static str,
        /// The value as given.
        value: String,
        /// What the key takes.
        allowed: Cow<'static, str>,
    },
    /// A key without another that it belongs to.
    #[error("option `{key}` of `{guest}` needs `{needed}`, {found}")]
    Needs {
        /// The guest.
        guest: &'static str,
        /// The key.
        key: &'static str,
        /// What else has to be given.
        needed: &'static str,
        /// What there is.
        found: String,
    },
}

/// The options of a guest.
pub(super) trait GuestOptions: Default + 'static {
    /// The guest's name.
    const GUEST: &'static str;
    /// The keys, in the order in which they are written.
    const KEYS: &'static [Key<Self>];

    /// What every guest has.
    fn of_every_guest(&self) -> &OfEveryGuest;

    /// The same, to be changed.
    fn of_every_guest_mut(&mut self) -> &mut OfEveryGuest;

    /// Whether the values fit each other.
    ///
    /// # Errors
    /// [`OptionsError`].
    fn check(&self) -> Result<(), OptionsError> {
        Ok(())
    }
}

/// An option of a guest.
pub(super) struct Key<O> {
    /// Its key.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) allowed: &'static str,
    /// Sets it, where the text is one that it takes.
    pub(super) set: fn(&mut O, &str) -> Option<()>,
    /// Its text, which is written where it is another than by default.
    pub(super) text: fn(&O) -> Option<String>,
}

/// Options that every guest has.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct OfEveryGuest {
    /// The period, of which each begins at most one pass of each vCPU. Zero: no pacing.
    pub(super) every: Duration,
    /// Where the random numbers begin.
    pub(super) seed: u64,
}

impl Default for OfEveryGuest {
    fn default() -> Self {
        Self { every: Duration::ZERO, seed: 1 }
    }
}

impl<O: GuestOptions> Key<O> {
    /// The period.
    pub(super) const EVERY: Self = Self {
        name: "every",
        allowed: "0, or a time of 1us to 3600s as 250us, 50ms or 5s",
        set: |it, value| put(&mut it.of_every_guest_mut().every, time(value).filter(|time| *time <= EVERY_MAX)),
        text: |it| Some(time_text(it.of_every_guest().every)),
    };
    /// Where the random numbers begin.
    pub(super) const SEED: Self = Self {
        name: "seed",
        allowed: "0 to 18446744073709551615, or the same with 0x",
        set: |it, value| put(&mut it.of_every_guest_mut().seed, seed(value)),
        text: |it| Some(it.of_every_guest().seed.to_string()),
    };
}

/// For [`Key::set`]: the value, if there is one, in its place.
pub(super) fn put<T>(place: &mut T, value: Option<T>) -> Option<()> {
    *place = value?;
    Some(())
}

/// The options that `text` means.
///
/// # Errors
/// [`OptionsError`].
pub(super) fn parse<O: GuestOptions>(text: &str) -> Result<O, OptionsError> {
    let guest = O::GUEST;
    let (found, list) = text.split_once(':').unwrap_or((text, ""));
    if found != guest {
        return Err(OptionsError::Guest { guest, found: found.to_owned() });
    }
    let mut options = O::default();
    let mut given = Vec::new();
    for part in list.split(',').filter(|_| !list.is_empty()) {
        let Some((name, value)) = part.split_once('=') else { return Err(OptionsError::NoValue { part: part.to_owned() }) };
        let Some(key) = O::KEYS.iter().find(|key| key.name == name) else {
            let keys = O::KEYS.iter().map(|key| key.name).collect();
            return Err(OptionsError::Key { guest, key: name.to_owned(), keys });
        };
        if (key.set)(&mut options, value).is_none() {
            let (value, allowed) = (value.to_owned(), key.allowed.into());
            return Err(OptionsError::Value { guest, key: key.name, value, allowed });
        }
        if given.contains(&key.name) {
            return Err(OptionsError::Twice { guest, key: key.name });
        }
        given.push(key.name);
    }
    options.check()?;
    Ok(options)
}

/// Writes a text that means `options`, without what is as it is by default.
pub(super) fn write<O: GuestOptions>(options: &O, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let plain = O::default();
    let differing = O::KEYS.iter().filter_map(|key| Some((key, (key.text)(options)?)));
    let differing = differing.filter(|(key, text)| (key.text)(&plain).as_ref() != Some(text));
    f.write_str(O::GUEST)?;
    for ((key, text), sign) in differing.zip(std::iter::once(':').chain(std::iter::repeat(','))) {
        write!(f, "{sign}{}={text}", key.name)?;
    }
    Ok(())
}

/// Options in JSON: their text.
pub(super) mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::vmm::guests) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(in crate::vmm::guests) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The name of that value.
pub(super) fn name_of<T: PartialEq>(all: &[(&'static str, T)], value: &T) -> &'static str {
    all.iter().find(|(_, other)| other == value).map_or("", |(name, _)| name)
}

/// The value of that name.
pub(super) fn named<T: Copy>(all: &[(&'static str, T)], name: &str) -> Option<T> {
    all.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
}

/// Digits only: neither sign nor spaces.
pub(super) fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A number of pages, or a size with its unit that is a whole number of pages.
pub(super) fn pages(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit {
        "" => return number(digits),
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    let bytes = number(digits)?.checked_mul(1 << shift)?;
    bytes.is_multiple_of(PAGE_SIZE_U64).then_some(bytes / PAGE_SIZE_U64)
}

/// A time with its unit; 0 needs none.
pub(super) fn time(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let count = number(digits)?;
    match unit {
        "" => (count == 0).then_some(Duration::ZERO),
        "us" => Some(Duration::from_micros(count)),
        "ms" => Some(Duration::from_millis(count)),
        "s" => Some(Duration::from_secs(count)),
        _ => None,
    }
}

/// The text that [`time`] reads as `time`, in the largest unit that is exact.
pub(super) fn time_text(time: Duration) -> String {
    match time.as_micros() {
        us if us % 1_000_000 == 0 => format!("{}s", us / 1_000_000),
        us if us % 1000 == 0 => format!("{}ms", us / 1000),
        us => format!("{us}us"),
    }
}

/// A number, or one of base 16 behind `0x`.
pub(super) fn seed(text: &str) -> Option<u64> {
    text.strip_prefix("0x").map_or_else(|| number(text), |digits| u64::from_str_radix(digits, 16).ok())
}
