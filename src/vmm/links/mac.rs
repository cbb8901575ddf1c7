//! The address of a network device.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The bit of the first byte that a group of devices has.
const MULTICAST: u8 = 1;
/// The bit of the first byte that says that no manufacturer gave the address.
const LOCAL: u8 = 2;

/// The address of one network device, written `52:54:00:12:34:56`. Never a group's, never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

/// Why something is no address of a network device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MacError {
    /// The text has another form.
    #[error("{found} is no MAC address: expected six bytes as 52:54:00:12:34:56")]
    Text {
        /// The text, quoted.
        found: String,
    },
    /// The address of a group.
    #[error("the MAC address {found} is one of a group of devices: the first byte of a device's own is even")]
    Multicast {
        /// The address.
        found: String,
    },
    /// Nobody's address.
    #[error("the MAC address 00:00:00:00:00:00 is nobody's")]
    Zero,
}

impl Mac {
    /// The address with these bytes, the first as it is written first.
    ///
    /// # Errors
    /// [`MacError::Multicast`], [`MacError::Zero`].
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let [first, ..] = bytes;
        if first & MULTICAST != 0 {
            return Err(MacError::Multicast { found: Self(bytes).to_string() });
        }
        if bytes == [0; 6] { Err(MacError::Zero) } else { Ok(Self(bytes)) }
    }

    /// An address that no manufacturer gives, with random bytes from the host.
    ///
    /// # Errors
    /// Of `getrandom`.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        // So few bytes come at once or not at all.
        retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
        let [first, ..] = &mut bytes;
        *first = *first & !MULTICAST | LOCAL;
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MAC {self}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        Self::new(bytes(text).ok_or_else(|| MacError::Text { found: format!("{text:?}") })?)
    }
}

fn bytes(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn text_and_address_agree() {
        let mac: Mac = "52:54:00:12:AB:ff".parse().unwrap();
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0x12, 0xab, 0xff]);
        assert_eq!(mac.to_string(), "52:54:00:12:ab:ff");
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"52:54:00:12:ab:ff\"");
        assert_eq!(serde_json::from_str::<Mac>("\"52:54:00:12:ab:ff\"").unwrap(), mac);
    }

    #[test]
    fn what_is_no_device_of_its_own_is_refused() {
        let no_address = [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "525400123456",
            "52-54-00-12-34-56",
            "52:54:00:12:34:é",
            " 52:54:00:12:34:56",
        ];
        for text in no_address {
            assert!(matches!(text.parse::<Mac>(), Err(MacError::Text { .. })), "{text}");
        }
        assert_eq!(
            "33:33:00:00:00:01".parse::<Mac>().unwrap_err().to_string(),
            "the MAC address 33:33:00:00:00:01 is one of a group of devices: the first byte of a device's own is even"
        );
        assert!(matches!(Mac::new([0xff; 6]), Err(MacError::Multicast { .. })));
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
        serde_json::from_str::<Mac>("\"01:00:00:00:00:00\"").unwrap_err();
    }

    #[test]
    fn random_addresses_are_local_and_of_one_device() {
        for _ in 0..64 {
            let mac = Mac::random().unwrap();
            assert_eq!(Mac::new(mac.bytes()), Ok(mac));
            assert_eq!(mac.bytes()[0] & 3, LOCAL, "{mac}");
        }
    }
}
