//! What can go wrong with certificates and connections.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::names::NAME;

/// Why certificates can't be used, or a connection was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file of this host could not be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of this host is no PEM.
    #[error("{} is no PEM file", file.display())]
    Pem {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is nothing of the right kind in a file of this host.
    #[error("there is no {what} in {}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// What it should have.
        what: &'static str,
    },
    /// Others may read the key of this host.
    #[error("others may read the key {} (mode {mode:04o}): it has to be 0600 or less, and a key that was read is no secret", file.display())]
    KeyIsOpen {
        /// The file.
        file: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key of this host is not that of its certificate.
    #[error("the key {} is not that of the certificate {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// A certificate or key of this host can't be used.
    #[error("{} can't be used", file.display())]
    Unusable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The certificate of this host is of another CA.
    #[error("the certificate {} is not signed by the CA in {}", certificate.display(), ca.display())]
    NotOfCa {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the CA.
        ca: PathBuf,
    },
    /// The certificate of this host has expired.
    #[error("the certificate {} expired on {}", file.display(), date(*since))]
    Expired {
        /// The file.
        file: PathBuf,
        /// When it did.
        since: SystemTime,
    },
    /// The certificate of this host does not hold yet.
    #[error("the certificate {} holds only from {} on: is the clock right?", file.display(), date(*from))]
    NotYet {
        /// The file.
        file: PathBuf,
        /// When it begins to.
        from: SystemTime,
    },
    /// The certificate of this host has not the name that both ends have.
    #[error("the certificate {} has not the DNS name {NAME}", file.display())]
    OtherName {
        /// The file.
        file: PathBuf,
    },
    /// The other end's certificate is of another CA.
    #[error("the certificate of {peer} is not signed by this host's CA")]
    PeerNotOfCa {
        /// The other end.
        peer: SocketAddr,
    },
    /// The other end's certificate has expired.
    #[error("the certificate of {peer} expired on {}", date(*since))]
    PeerExpired {
        /// The other end.
        peer: SocketAddr,
        /// When it did.
        since: SystemTime,
    },
    /// The other end's certificate does not hold yet.
    #[error("the certificate of {peer} holds only from {} on: are both clocks right?", date(*from))]
    PeerNotYet {
        /// The other end.
        peer: SocketAddr,
        /// When it begins to.
        from: SystemTime,
    },
    /// The other end gave no certificate.
    #[error("{peer} gave no certificate")]
    PeerGaveNone {
        /// The other end.
        peer: SocketAddr,
    },
    /// The other end's certificate has not the name that both ends have.
    #[error("the certificate of {peer} has not the DNS name {NAME}")]
    PeerOtherName {
        /// The other end.
        peer: SocketAddr,
    },
    /// Something else is wrong with the other end's certificate.
    #[error("the certificate of {peer} can't be used")]
    PeerUnusable {
        /// The other end.
        peer: SocketAddr,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The other end refuses this host's certificate.
    #[error("{peer} refuses the certificate of this host: {why}")]
    Refused {
        /// The other end.
        peer: SocketAddr,
        /// The alert that it sent.
        why: String,
    },
    /// The other end has not TLS 1.3.
    #[error("{peer} has another version of TLS: both ends need 1.3")]
    OtherVersion {
        /// The other end.
        peer: SocketAddr,
    },
    /// What the other end says is no TLS, or against its rules.
    #[error("{peer} does not do the handshake of TLS")]
    Protocol {
        /// The other end.
        peer: SocketAddr,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The handshake was not done within the limit.
    #[error("{peer} did not do the handshake within {limit:?}")]
    TooLate {
        /// The other end.
        peer: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// The connection ended or failed during the handshake.
    #[error("the connection to {peer} ended during the handshake")]
    Ended {
        /// The other end.
        peer: SocketAddr,
        /// How.
        source: io::Error,
    },
    /// The socket could not be set up.
    #[error("cannot {action} of a connection")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The time of a certificate.
pub(super) fn time(seconds: u64) -> SystemTime {
    // A certificate's years have four digits: there is always such a time.
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

/// As `2031-02-03 04:05:06 UTC`.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day of a day that is counted from 1970-01-01 on.
const fn civil(days: u64) -> (u64, u64, u64) {
    // In years that begin in March the leap day is the last one, and months have their lengths by
    // a rule. 400 years are 146,097 days; 1970 began 719,468 days after 1 March of year 0.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(date(time(seconds)), text);
        }
    }
}
