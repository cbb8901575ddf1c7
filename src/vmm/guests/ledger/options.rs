//! What the guest is asked to do: `ledger` or `ledger:key=value,key=value`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use crate::vmm::guests::options::{GuestOptions, Key, OfEveryGuest, OptionsError, number, pages, parse, put, write};

/// The most pages that requests can dirty.
pub const PAGES_MAX: u64 = 1 << 19;

/// What the guest is asked to do. Always within its limits, whatever it was made from.
///
/// Made from text by [`FromStr`]; [`Display`](fmt::Display) gives a text that makes the same,
/// without what is as it is by default.
///
/// | key | takes | default |
/// | --- | --- | --- |
/// | `pages` | pages that requests dirty, in turn: a number, or a size as `16M` | 1024 |
/// | `ip` | the guest's IPv4 address | 10.77.0.2 |
/// | `port` | the UDP port that it serves | 7077 |
/// | `every` | how long to wait between two looks for work while there is none; 0: not at all | 0 |
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Options {
    pages: u64,
    ip: Ipv4Addr,
    port: u16,
    of_every_guest: OfEveryGuest,
}

impl Default for Options {
    fn default() -> Self {
        Self { pages: 1024, ip: Ipv4Addr::new(10, 77, 0, 2), port: 7077, of_every_guest: OfEveryGuest::default() }
    }
}

impl Options {
    /// Pages that requests dirty, in turn: 1 to [`PAGES_MAX`].
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The guest's address.
    #[must_use]
    pub const fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// The UDP port that it serves, not 0.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The time of which each has at most one look for work while there is none; zero to look all
    /// the time. At most an hour.
    #[must_use]
    pub const fn every(&self) -> Duration {
        self.of_every_guest.every
    }
}

/// An address that a host may have.
fn host(text: &str) -> Option<Ipv4Addr> {
    let ip: Ipv4Addr = text.parse().ok()?;
    // 0.0.0.0/8 is this network, and from 224.0.0.0 on there are groups and everybody.
    (1..224).contains(&ip.octets()[0]).then_some(ip)
}

impl GuestOptions for Options {
    const GUEST: &'static str = "ledger";
    const KEYS: &'static [Key<Self>] = &[
        Key {
            name: "pages",
            allowed: "1 to 524288 pages, or a size of 4K to 2G in whole pages",
            set: |it, value| put(&mut it.pages, pages(value).filter(|pages| (1..=PAGES_MAX).contains(pages))),
            text: |it| Some(it.pages.to_string()),
        },
        Key {
            name: "ip",
            allowed: "the IPv4 address of a host, as 10.77.0.2",
            set: |it, value| put(&mut it.ip, host(value)),
            text: |it| Some(it.ip.to_string()),
        },
        Key {
            name: "port",
            allowed: "1 to 65535",
            set: |it, value| put(&mut it.port, number(value).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)),
            text: |it| Some(it.port.to_string()),
        },
        Key::EVERY,
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
        for text in ["ledger", "ledger:"] {
            assert_eq!(text.parse::<Options>().unwrap(), Options::default());
        }
        let text = "ledger:pages=60,ip=192.168.7.9,port=9,every=50ms";
        let options: Options = text.parse().unwrap();
        assert_eq!((options.pages(), options.ip(), options.port()), (60, Ipv4Addr::new(192, 168, 7, 9), 9));
        assert_eq!(options.every(), Duration::from_millis(50));
        assert_eq!(options.to_string(), text);
        assert_eq!("ledger:pages=4M".parse::<Options>().unwrap(), Options::default());
    }

    #[test]
    fn errors_name_the_key_and_what_is_allowed() {
        for (text, message) in [
            ("touch", "`touch` is not the guest `ledger`: expected `ledger` or `ledger:key=value,key=value`"),
            ("ledger:seed=1", "`seed` is not an option of `ledger`: there are pages, ip, port, every"),
            ("ledger:port=0", "option `port=0` of `ledger` is not allowed: 1 to 65535"),
            ("ledger:ip=1", "option `ip=1` of `ledger` is not allowed: the IPv4 address of a host, as 10.77.0.2"),
        ] {
            assert_eq!(text.parse::<Options>().unwrap_err().to_string(), message, "{text}");
        }
        for bad in
            ["pages=0", "pages=524289", "ip=0.0.0.1", "ip=224.0.0.1", "ip=255.255.255.255", "ip=::1", "port=65536", "every=1"]
        {
            assert!(matches!(format!("ledger:{bad}").parse::<Options>(), Err(OptionsError::Value { .. })), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_options_or_an_error(text in "(ledger:)?([a-z]{0,5}=?[0-9a-zA-Z.]{0,22},?){0,4}") {
            if let Ok(options) = text.parse::<Options>() {
                prop_assert_eq!(options.to_string().parse(), Ok(options));
            }
        }
    }
}
