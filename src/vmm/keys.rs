//! Values of the guests' options, as text.

use std::time::Duration;

use crate::page::PAGE_SIZE_U64;

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
