//! What can happen, and when.

use super::register::Call;
use super::setting::Time;
use crate::replica::proto::{Answer, EpochKey, Message, Record};
use crate::replica::register::{Incarnation, Register};

#[derive(Debug)]
pub(super) enum Event {
    Tick,
    Cut,
    Durable(EpochKey),
    Recorded(Record),
    Hello {
        from: usize,
        who: Incarnation,
        register: Register,
        stream: u64,
    },
    Welcome {
        who: Incarnation,
        stream: u64,
    },
    Message(Message),
    Epoch {
        stream: u64,
        key: EpochKey,
        parent: Option<EpochKey>,
    },
    /// An epoch is durable in a standby's chain.
    HeldOnDisk {
        stream: u64,
        key: EpochKey,
    },
    StreamEnded(u64),
    Parked,
    Answer(Answer),
    Start,
}

#[derive(Debug)]
pub(super) enum What {
    /// To the process of a host.
    At(usize, u64, Event),
    /// A call comes to the witness.
    Call {
        host: usize,
        pid: u64,
        call: Call,
        is_awaited: bool,
    },
    Fault,
    Heal,
    Operator,
}

pub(super) struct Entry(pub(super) Time, pub(super) u64, pub(super) What);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}
