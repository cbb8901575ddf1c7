//! What an operator sees of a node.

use std::time::Duration;

use super::proto::{PrimaryRole, StandbyRole};
use super::register::{Incarnation, Register};
use crate::page::EpochId;

/// What a host is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nothing yet.
    Nobody,
    /// It runs the guest.
    Primary(PrimaryRole),
    /// It follows.
    Standby(StandbyRole),
}

/// A node, as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct NodeStatus {
    /// What it is.
    pub role: Role,
    /// This incarnation.
    pub me: Option<Incarnation>,
    /// The standby that there is or is being made; of a standby its primary.
    pub other: Option<Incarnation>,
    /// The newest register that is known.
    pub register: Option<Register>,
    /// The newest epoch that is complete, of a standby the newest that it holds.
    pub newest: EpochId,
    /// The newest epoch that the standby has said to hold.
    pub held: EpochId,
    /// The newest epoch whose outputs may leave.
    pub released: EpochId,
    /// Epochs that the standby of the pair does not hold yet.
    pub lag_epochs: Option<u64>,
    /// From an epoch's being complete until the standby has said that it holds it: the median of
    /// the last ones.
    pub follow: Option<Duration>,
    /// How long the newest call to the witness took that was answered.
    pub witness: Option<Duration>,
    /// Since when nothing was heard of the other end.
    pub silence: Option<Duration>,
    /// Whether the threads of heartbeats run before all that are not realtime.
    pub is_realtime: bool,
}
