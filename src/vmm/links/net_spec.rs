//! What a network device is connected to: `tap=NAME` or `unix=PATH`, with `mac` and `mtu`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::mac::{Mac, MacError};

/// The most bytes of an interface's name.
const TAP_NAME_BYTES_MAX: usize = 15;
/// The smallest and the largest MTU that virtio has.
const MTU_MIN: u16 = 68;
const MTU_MAX: u16 = u16::MAX;

const TAP_ALLOWED: &str = "a name of 1 to 15 bytes without white space, `/`, `:` and `%`, and not `.` or `..`";
const UNIX_ALLOWED: &str = "the path of a Unix socket";
const MTU_ALLOWED: &str = "68 to 65535 bytes";

/// What a network device is connected to, as text `tap=NAME[,mac=MAC][,mtu=BYTES]` or
/// `unix=PATH[,mac=MAC][,mtu=BYTES]`. A path with a comma has no such text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetSpec {
    /// Where its frames go.
    pub backend: NetBackend,
    /// Its address. Without it a random one is to be made.
    pub mac: Option<Mac>,
    /// The most bytes of a frame behind its Ethernet header: 68 to 65535. Without it that of the
    /// backend.
    pub mtu: Option<u16>,
}

/// Where frames of a network device go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NetBackend {
    /// A tap, which is made if there is none.
    Tap {
        /// The interface's name.
        name: String,
    },
    /// A Unix stream socket that somebody listens at, with a length before each frame: what passt
    /// and the backend `stream` of QEMU speak.
    Unix {
        /// Where the socket is.
        path: PathBuf,
    },
}

/// Why a text says of no network device what it is connected to, or why several devices can't be
/// connected so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetSpecError {
    /// A part between commas has no `=`.
    #[error("`{part}` is not `key=value`")]
    NoValue {
        /// The part.
        part: String,
    },
    /// A key that there is not.
    #[error("`{key}` is not an option of a network device: there are tap, unix, mac, mtu")]
    Key {
        /// The key.
        key: String,
    },
    /// A key that comes twice.
    #[error("option `{key}` of a network device is given twice")]
    Twice {
        /// The key.
        key: &'static str,
    },
    /// A value that the key does not take.
    #[error("option `{key}={value}` of a network device is not allowed: expected {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value as given.
        value: String,
        /// What the key takes.
        allowed: &'static str,
    },
    /// The address.
    #[error("option `mac` of a network device: {0}")]
    Mac(MacError),
    /// It is connected to nothing.
    #[error("a network device without a backend: expected `tap=NAME` or `unix=PATH`")]
    NoBackend,
    /// It is connected to two things.
    #[error("a network device with two backends: expected either `tap=NAME` or `unix=PATH`")]
    TwoBackends,
    /// Two devices have one address.
    #[error("network devices {first} and {second} have the same MAC address, {mac}")]
    SameMac {
        /// The address.
        mac: Mac,
        /// The place of one, from 0 on.
        first: usize,
        /// The place of the other.
        second: usize,
    },
    /// Two devices are connected to the same.
    #[error("network devices {first} and {second} have the same backend, {backend}")]
    SameBackend {
        /// The backend.
        backend: NetBackend,
        /// The place of one, from 0 on.
        first: usize,
        /// The place of the other.
        second: usize,
    },
}

/// Whether the kernel has an interface of exactly this name: `%` would have it choose one.
pub(super) fn is_tap_name(name: &str) -> bool {
    let is_allowed = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '%' | '\0');
    (1..=TAP_NAME_BYTES_MAX).contains(&name.len()) && !matches!(name, "." | "..") && name.chars().all(is_allowed)
}

/// Whether a machine can have all of these.
///
/// # Errors
/// [`NetSpecError::SameMac`], [`NetSpecError::SameBackend`].
pub(in crate::vmm) fn check_nets(nets: &[NetSpec]) -> Result<(), NetSpecError> {
    for (second, net) in nets.iter().enumerate() {
        for (first, other) in nets.iter().enumerate().take(second) {
            if let (Some(mac), Some(same)) = (net.mac, other.mac)
                && mac == same
            {
                return Err(NetSpecError::SameMac { mac, first, second });
            }
            if net.backend == other.backend {
                return Err(NetSpecError::SameBackend { backend: net.backend.clone(), first, second });
            }
        }
    }
    Ok(())
}

impl fmt::Display for NetBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap { name } => write!(f, "tap={name}"),
            Self::Unix { path } => write!(f, "unix={}", path.display()),
        }
    }
}

impl fmt::Display for NetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backend)?;
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={mtu}")?;
        }
        Ok(())
    }
}

impl FromStr for NetSpec {
    type Err = NetSpecError;

    fn from_str(text: &str) -> Result<Self, NetSpecError> {
        let (mut tap, mut unix, mut mac, mut mtu) = (None, None, None, None);
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| NetSpecError::NoValue { part: part.to_owned() })?;
            let refused = |key, allowed| NetSpecError::Value { key, value: value.to_owned(), allowed };
            match key {
                "tap" if is_tap_name(value) => put("tap", &mut tap, NetBackend::Tap { name: value.to_owned() })?,
                "tap" => return Err(refused("tap", TAP_ALLOWED)),
                "unix" if value.is_empty() || value.contains('\0') => return Err(refused("unix", UNIX_ALLOWED)),
                "unix" => put("unix", &mut unix, NetBackend::Unix { path: value.into() })?,
                "mac" => put("mac", &mut mac, value.parse().map_err(NetSpecError::Mac)?)?,
                "mtu" => put("mtu", &mut mtu, mtu_of(value).ok_or_else(|| refused("mtu", MTU_ALLOWED))?)?,
                _ => return Err(NetSpecError::Key { key: key.to_owned() }),
            }
        }
        let backend = match (tap, unix) {
            (Some(backend), None) | (None, Some(backend)) => backend,
            (None, None) => return Err(NetSpecError::NoBackend),
            (Some(_), Some(_)) => return Err(NetSpecError::TwoBackends),
        };
        Ok(Self { backend, mac, mtu })
    }
}

fn put<T>(key: &'static str, place: &mut Option<T>, value: T) -> Result<(), NetSpecError> {
    if place.replace(value).is_some() { Err(NetSpecError::Twice { key }) } else { Ok(()) }
}

fn mtu_of(value: &str) -> Option<u16> {
    let is_number = value.bytes().all(|digit| digit.is_ascii_digit());
    value.parse().ok().filter(|mtu| is_number && (MTU_MIN..=MTU_MAX).contains(mtu))
}

impl Serialize for NetSpec {
    /// Fails where the text would say something else, or be refused.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string();
        match text.parse::<Self>() {
            Ok(same) if same == *self => serializer.serialize_str(&text),
            Ok(_) => Err(serde::ser::Error::custom(format!("`{text}` is not all of the network device"))),
            Err(error) => Err(serde::ser::Error::custom(error)),
        }
    }
}

impl<'de> Deserialize<'de> for NetSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> NetSpec {
        text.parse().unwrap()
    }

    #[test]
    fn text_and_fields_agree() {
        let spec = net("mtu=9000,tap=tap0,mac=52:54:00:12:34:56");
        assert_eq!(spec.backend, NetBackend::Tap { name: "tap0".to_owned() });
        assert_eq!((spec.mac, spec.mtu), (Some("52:54:00:12:34:56".parse().unwrap()), Some(9000)));
        assert_eq!(spec.to_string(), "tap=tap0,mac=52:54:00:12:34:56,mtu=9000");
        for text in ["tap=a", "tap=fifteen-bytes-x", "unix=/run/passt=1.sock,mtu=68", "unix=a b,mtu=65535"] {
            assert_eq!(net(text).to_string(), text);
            let json = serde_json::to_string(&net(text)).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<NetSpec>(&json).unwrap(), net(text));
        }
        assert_eq!(net("unix=/x"), NetSpec { backend: NetBackend::Unix { path: "/x".into() }, mac: None, mtu: None });
    }

    #[test]
    fn errors_name_the_key_and_what_is_allowed() {
        for (text, message) in [
            ("", "a network device without a backend: expected `tap=NAME` or `unix=PATH`"),
            ("mtu=1500", "a network device without a backend: expected `tap=NAME` or `unix=PATH`"),
            ("tap=a,unix=b", "a network device with two backends: expected either `tap=NAME` or `unix=PATH`"),
            ("tap", "`tap` is not `key=value`"),
            ("tap=a,", "`` is not `key=value`"),
            ("tap=a,ip=b", "`ip` is not an option of a network device: there are tap, unix, mac, mtu"),
            ("tap=a,tap=b", "option `tap` of a network device is given twice"),
            ("unix=a,unix=a", "option `unix` of a network device is given twice"),
            ("tap=a,mtu=70,mtu=70", "option `mtu` of a network device is given twice"),
            ("tap=a,mtu=67", "option `mtu=67` of a network device is not allowed: expected 68 to 65535 bytes"),
            ("unix=", "option `unix=` of a network device is not allowed: expected the path of a Unix socket"),
            (
                "tap=a/b",
                "option `tap=a/b` of a network device is not allowed: expected a name of 1 to 15 bytes without white space, \
                 `/`, `:` and `%`, and not `.` or `..`",
            ),
        ] {
            assert_eq!(text.parse::<NetSpec>().unwrap_err().to_string(), message, "{text}");
        }
        for bad in ["tap=", "tap=sixteen-bytes-xy", "tap=a b", "tap=a\u{a0}b", "tap=tap%d", "tap=a:1", "tap=..", "tap=a\0"] {
            assert!(matches!(bad.parse::<NetSpec>(), Err(NetSpecError::Value { key: "tap", .. })), "{bad}");
        }
        for bad in ["65536", "", "-1", "+68", "1k", "068x"] {
            let text = format!("tap=a,mtu={bad}");
            assert!(matches!(text.parse::<NetSpec>(), Err(NetSpecError::Value { key: "mtu", .. })), "{bad}");
        }
        let error = "tap=a,mac=01:00:00:00:00:00".parse::<NetSpec>().unwrap_err();
        assert!(matches!(error, NetSpecError::Mac(MacError::Multicast { .. })), "{error}");
        serde_json::from_str::<NetSpec>("{\"tap\":\"a\"}").unwrap_err();
    }

    #[test]
    fn two_devices_have_nothing_in_common() {
        let check = |texts: &[&str]| check_nets(&texts.iter().map(|text| net(text)).collect::<Vec<_>>());
        check(&[]).unwrap();
        check(&["tap=a", "tap=b", "unix=a", "unix=b,mac=52:54:00:12:34:56", "unix=c,mac=52:54:00:12:34:57"]).unwrap();
        assert_eq!(
            check(&["tap=a,mac=52:54:00:12:34:56", "tap=b", "unix=c,mac=52:54:00:12:34:56"]).unwrap_err().to_string(),
            "network devices 0 and 2 have the same MAC address, 52:54:00:12:34:56"
        );
        assert_eq!(
            check(&["tap=a", "tap=b,mtu=68", "tap=b"]).unwrap_err().to_string(),
            "network devices 1 and 2 have the same backend, tap=b"
        );
        assert!(matches!(check(&["unix=/a", "unix=/a"]), Err(NetSpecError::SameBackend { first: 0, second: 1, .. })));
    }

    #[test]
    fn what_has_no_text_is_not_written() {
        let unix = |path: &[u8]| NetSpec { backend: NetBackend::Unix { path: OsStr::from_bytes(path).into() }, ..net("tap=a") };
        for spec in [unix(b"a,b"), unix(b"a,mtu=68"), unix(b"\xff"), NetSpec { mtu: Some(1), ..net("tap=a") }] {
            serde_json::to_string(&spec).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_device_or_an_error(text in "((tap|unix|mac|mtu)?=?[0-9a-z:/. %]{0,17},?){0,4}") {
            if let Ok(spec) = text.parse::<NetSpec>() {
                prop_assert_eq!(spec.to_string().parse(), Ok(spec));
            }
        }
    }
}
