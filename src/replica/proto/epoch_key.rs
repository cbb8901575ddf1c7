//! An epoch, by number and identity.

use std::fmt;

use crate::format::Head;
use crate::page::EpochId;

/// An epoch of one line: the number alone may mean another epoch on another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EpochKey {
    /// Its number.
    pub epoch: EpochId,
    /// Its identity, which covers all epochs that it follows.
    pub identity: u128,
}

impl From<Head> for EpochKey {
    fn from(head: Head) -> Self {
        Self { epoch: head.epoch, identity: head.identity }
    }
}

impl fmt::Display for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:032x})", self.epoch, self.identity)
    }
}
