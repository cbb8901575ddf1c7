//! Sizes and times as people write them.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::format::{MAIN_BRANCH, is_branch_name};
use crate::page::EpochId;

/// Reads bytes: a number, or one with `K`, `M`, `G` or `T` (powers of 1024), or `KiB` and so on.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err(format!("`{unit}` is not a unit of size: K, M, G or T, or KiB, MiB, GiB or TiB")),
    };
    let number: u64 =
        digits.parse().map_err(|_| "a size is a whole number, or one with K, M, G or T, such as `512M`".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than 2^64 bytes".to_owned())
}

/// Reads a time: a whole number with `us`, `ms`, `s`, `m` or `h`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| "a time is a whole number with us, ms, s, m or h, such as `50ms`".to_owned())?;
    let limit = || "that is more than 100 years".to_owned();
    let seconds =
        |factor: u64| number.checked_mul(factor).filter(|s| *s < 100 * 366 * 86_400).map(Duration::from_secs).ok_or_else(limit);
    match unit {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => Err(format!("`{text}` has no unit of time: us, ms, s, m or h, such as `50ms`")),
    }
}

/// [`time`] that is more than nothing.
pub(super) fn time_above_zero(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time.is_zero() { Err("must be more than nothing".to_owned()) } else { Ok(time) }
}

/// Reads a share as a percentage, above 0% and below 100%: `5%` is 0.05.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let what = || "a share is a percentage above 0% and below 100%, such as `5%` or `0.5%`".to_owned();
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
    let value: f64 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(what)?;
    if value > 0.0 && value < 100.0 { Ok(value / 100.0) } else { Err(what()) }
}

/// Reads a number that is not 0.
pub(super) fn at_least_one(text: &str) -> Result<NonZeroU64, String> {
    let number: u64 = text.parse().map_err(|_| "a whole number of at least 1 is needed".to_owned())?;
    NonZeroU64::new(number).ok_or_else(|| "must be at least 1".to_owned())
}

/// Reads the number of an epoch.
pub(super) fn epoch(text: &str) -> Result<EpochId, String> {
    match text.parse() {
        Ok(0) => Err("epochs are numbered from 1".to_owned()),
        Ok(number) => Ok(EpochId(number)),
        Err(_) => Err("the number of an epoch is a whole number, from 1".to_owned()),
    }
}

/// Reads the name of a branch, or that of the chain itself.
pub(super) fn branch(text: &str) -> Result<String, String> {
    if text == MAIN_BRANCH || is_branch_name(text) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 of a-z A-Z 0-9 . - _, and first none of . and -".to_owned())
    }
}

/// Bytes for people.
#[expect(clippy::cast_precision_loss, reason = "for people, to three digits")]
pub(super) fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!((size("2G"), size("2GiB")), (Ok(2 << 30), Ok(2 << 30)));
        // Powers of 1000, or of 1024: nobody knows which.
        for bad in ["", "M", "4X", "4GB", "-1", "1.5G", "99999999999T", "4 K"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(time("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "ms", "5d", "1.5s", "99999999999999h"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert!(time_above_zero("0s").is_err());
        assert_eq!((percent("5%"), percent("0.5%")), (Ok(0.05), Ok(0.005)));
        for bad in ["", "5", "%", "0%", "100%", "-1%", "1e1%", "inf%", "."] {
            assert!(percent(bad).is_err(), "{bad}");
        }
        assert_eq!(branch("try-2.a_b"), Ok("try-2.a_b".to_owned()));
        assert!(branch(MAIN_BRANCH).is_ok());
        for bad in ["", ".", "..", "-x", "a/b", "a b", "\u{e4}"] {
            assert!(branch(bad).is_err(), "{bad}");
        }
        assert_eq!(at_least_one("3").map(NonZeroU64::get), Ok(3));
        for bad in ["", "0", "-1", "x", "1.5"] {
            assert!(at_least_one(bad).is_err_and(|error| error.contains("at least 1")), "{bad}");
        }
        assert_eq!((epoch("1"), epoch("18446744073709551615")), (Ok(EpochId(1)), Ok(EpochId(u64::MAX))));
        for bad in ["", "0", "-1", "x", "18446744073709551616"] {
            assert!(epoch(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes_text(1023), "1023 B");
        assert_eq!(bytes_text(3 << 29), "1.5 GiB");
    }
}
