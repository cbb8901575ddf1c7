//! What a state machine wants done, and what it may be told of the witness.

use std::fmt;

use super::message::Message;
use super::record::Record;
use crate::replica::register::{Incarnation, Register};

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the witness for this swap, and tell what it answered. One call at a time.
    Swap {
        /// What the register has to have.
        expected: Option<Register>,
        /// What it is to have then.
        new: Register,
    },
    /// Ask the witness what the register says.
    Read,
    /// Make this durable in the store, and tell when it is. Records become so in their order.
    Record(Record),
    /// Send this. Nobody waits for it.
    Send(Message),
    /// Let the guest run.
    Run,
    /// Park the guest, take a last epoch, and tell which it is.
    Park,
    /// End all connections with this one: it is no standby any more.
    Drop(Incarnation),
    /// Halt the guest for good. Nothing more is wanted.
    Halt(Halted),
}

/// Why a machine does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halted {
    /// Another one does, as the register says.
    Fenced(Register),
    /// The standby is lost, and the machine was to stop then.
    StandbyLost,
    /// The standby was given the machine.
    HandedOver(Register),
    /// The register went back, to a generation that is older than one that was seen or to another
    /// value of the same: what stands behind it has forgotten something. None: it was empty.
    WitnessForgot {
        /// What was seen.
        seen: Register,
        /// What it says.
        found: Option<Register>,
    },
}

/// What came of asking the witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The swap was carried out.
    Won,
    /// The register says this, and a swap was not carried out.
    Register(Option<Register>),
    /// The request was surely not carried out, and will not be.
    Refused,
    /// The request may have been carried out, or may be later.
    Unknown,
}

impl fmt::Display for Halted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fenced(register) => {
                write!(f, "another machine goes on, since generation {} of the witness", register.generation)
            }
            Self::StandbyLost => f.write_str("the standby is lost, and the machine was to stop then"),
            Self::HandedOver(register) => {
                write!(f, "the machine was handed over, in generation {} of the witness", register.generation)
            }
            Self::WitnessForgot { seen, found } => {
                let generation = found.map_or(0, |found| found.generation.0);
                write!(f, "the witness has forgotten something: it had generation {}, and has {generation}", seen.generation)
            }
        }
    }
}
