//! The first words of a connection.

use std::io::{self, Read, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::envelope::{Kind, read_envelope, write_envelope};
use crate::format::Description;
use crate::replica::register::{Incarnation, Nonce, Register};

/// The version of the protocol and of the wire. Both ends have the same.
pub const WIRE_VERSION: u32 = 1;

/// What a connection is for. After its first words each is used in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Epochs, to the standby. It is the first one.
    Epochs,
    /// Messages to the standby.
    Words,
    /// Messages from the standby.
    Answers,
}

/// What a primary says first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`WIRE_VERSION`].
    pub version: u32,
    /// What the connection is for.
    pub channel: Channel,
    /// The same for all connections to one standby.
    pub session: Nonce,
    /// Who comes.
    pub from: Incarnation,
    /// The newest register that it knows.
    pub register: Register,
    /// What is to be followed: with the first connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Followed>,
}

/// What a standby is to follow, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Followed {
    /// The chain's description, with the machine in it.
    pub description: Description,
    /// Pages that an epoch mentions at most, a base apart.
    pub pages_most: u64,
    /// Whether the standby holds an epoch when its chain has it durable, or when its memory has it.
    pub holds_on_disk: bool,
    /// A message goes to the other end so often, in microseconds.
    pub heartbeat_us: u64,
    /// The other end is taken for dead after this time, in microseconds.
    pub timeout_us: u64,
}

/// What a standby answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// [`WIRE_VERSION`].
    pub version: u32,
    /// Who the standby is, for the primary that comes; none where it refuses.
    pub standby: Option<Incarnation>,
    /// Why it refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The newest register that it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub register: Option<Register>,
}

/// Writes first words.
///
/// # Errors
/// The connection's; words that are longer than an envelope.
pub fn write_first(to: &mut (impl Write + ?Sized), words: &impl Serialize) -> io::Result<()> {
    write_envelope(to, Kind::Hello, &[&serde_json::to_vec(words)?])?;
    to.flush()
}

/// Reads first words.
///
/// # Errors
/// The connection's; anything but first words of this kind.
pub fn read_first<T: for<'de> Deserialize<'de>>(from: &mut (impl Read + ?Sized)) -> io::Result<T> {
    let mut bytes = Vec::new();
    match read_envelope(from, &mut bytes)? {
        Kind::Hello => Ok(serde_json::from_slice(&bytes)?),
        kind => Err(io::Error::new(io::ErrorKind::InvalidData, format!("first words were expected, and there is {kind:?}"))),
    }
}

impl Followed {
    /// How often a message goes to the other end.
    #[must_use]
    pub const fn heartbeat(&self) -> Duration {
        Duration::from_micros(self.heartbeat_us)
    }

    /// After which time the other end is taken for dead.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_micros(self.timeout_us)
    }
}
