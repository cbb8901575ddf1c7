//! What the two ends say to each other.

use super::epoch_key::EpochKey;
use crate::replica::register::{Incarnation, Register};

/// One end to the other. It may be lost, come late, twice, or in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub from: Incarnation,
    /// Whom it is for.
    pub to: Incarnation,
    /// The newest register that its sender knows to have been in the witness. What is of an older
    /// generation than the receiver's is refused.
    pub register: Register,
    /// What is said.
    pub body: Body,
}

impl Message {
    /// Whether nothing is lost where this one is said and `earlier` is not.
    #[must_use]
    pub fn replaces(&self, earlier: &Self) -> bool {
        let says_so = matches!((self.body, earlier.body), (Body::Holds(_), _) | (Body::Beat, Body::Beat));
        says_so && (self.from, self.to, self.register) == (earlier.from, earlier.to, earlier.register)
    }
}

/// What a [`Message`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// That its sender is there.
    Beat,
    /// The standby holds this epoch whole, and all that it follows: a promise to have it when it
    /// takes over.
    Holds(EpochKey),
}
