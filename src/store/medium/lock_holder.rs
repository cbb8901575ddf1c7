//! What a lock says of who holds it.

use std::path::Path;
use std::sync::Arc;

use super::place::Place;
use super::traits::WritableMedium;
use crate::clock::unix_ns;
use crate::store::error::StoreError;

/// Takes one of the locks of a chain, or says who has it.
pub(in crate::store) fn take_lock(dir: &Path, medium: &Arc<dyn WritableMedium>, name: &'static str) -> Result<Place, StoreError> {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    let text = format!("pid {} on {host}, since {}\n", std::process::id(), utc(unix_ns() / 1_000_000_000));
    Place::lock(dir, medium, name, &text)
}

/// A time as people read it, in UTC. Counts years from March, so that the leap day is a year's
/// last.
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_time_is_a_date() {
        assert_eq!(super::utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(super::utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(super::utc(1_735_689_599), "2024-12-31T23:59:59Z");
    }
}
