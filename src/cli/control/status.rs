//! What `GET /status` says.

use serde::{Deserialize, Serialize};

use crate::clock::whole_us;
use crate::epoch::{Distribution, Reached};
use crate::page::EpochId;
use crate::replica::node_status::{NodeStatus, Role};
use crate::replica::proto::{PrimaryRole, StandbyRole};
use crate::replica::register::{Generation, Incarnation};
use crate::replica::seed::Aim;

/// A machine, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cli) struct Status {
    pub(in crate::cli) role: String,
    /// Of the witness, as far as it is known.
    pub(in crate::cli) generation: Generation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) incarnation: Option<Incarnation>,
    /// The standby, or of a standby its primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) other: Option<Incarnation>,
    /// Where a standby is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) standby: Option<String>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) refused: Option<String>,
    /// The newest epochs that came so far.
    pub(in crate::cli) complete_epoch: EpochId,
    pub(in crate::cli) durable_epoch: EpochId,
    pub(in crate::cli) acknowledged_epoch: EpochId,
    pub(in crate::cli) released_epoch: EpochId,
    /// How many this process has made.
    pub(in crate::cli) epochs: u64,
    pub(in crate::cli) bytes_written: u64,
    /// Epochs that the standby does not hold yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) lag_epochs: Option<u64>,
    /// From an epoch's end until the standby holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) lag_us: Option<u64>,
    /// Since the other end was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) silence_us: Option<u64>,
    /// How long the witness took to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) witness_us: Option<u64>,
    /// Whether heartbeats have `SCHED_FIFO`.
    pub(in crate::cli) realtime: bool,
    /// The pauses of the guest.
    pub(in crate::cli) pause_us: Distribution,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) guest: Option<Guest>,
}

/// What the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Guest {
    pub(in crate::cli) passes: u64,
    pub(in crate::cli) ok: bool,
}

/// The word for a role.
pub(super) const fn role(role: Role) -> &'static str {
    match role {
        Role::Nobody => "waiting",
        Role::Primary(role) => match role {
            PrimaryRole::Opening => "opening",
            PrimaryRole::Solo => "solo",
            PrimaryRole::Seeding => "seeding",
            PrimaryRole::Paired => "paired",
            PrimaryRole::Suspect => "suspect",
            PrimaryRole::Handing => "handing",
            PrimaryRole::Fenced => "fenced",
        },
        Role::Standby(role) => match role {
            StandbyRole::Joining => "joining",
            StandbyRole::Hot => "hot",
            StandbyRole::Promoting => "promoting",
            StandbyRole::Promoted => "promoted",
            StandbyRole::Stale => "stale",
        },
    }
}

impl Status {
    /// Of a machine that is part of no pair, or of nothing yet.
    pub(super) fn alone() -> Self {
        Self {
            role: "unpaired".to_owned(),
            generation: Generation::NONE,
            incarnation: None,
            other: None,
            standby: None,
            refused: None,
            complete_epoch: EpochId::NONE,
            durable_epoch: EpochId::NONE,
            acknowledged_epoch: EpochId::NONE,
            released_epoch: EpochId::NONE,
            epochs: 0,
            bytes_written: 0,
            lag_epochs: None,
            lag_us: None,
            silence_us: None,
            witness_us: None,
            realtime: false,
            pause_us: Distribution::default(),
            guest: None,
        }
    }

    /// With what a node says.
    pub(super) fn with_node(self, node: &NodeStatus) -> Self {
        Self {
            role: role(node.role).to_owned(),
            generation: node.register.map_or(Generation::NONE, |register| register.generation),
            incarnation: node.me,
            other: node.other,
            complete_epoch: node.newest.max(self.complete_epoch),
            acknowledged_epoch: node.held.max(self.acknowledged_epoch),
            released_epoch: node.released.max(self.released_epoch),
            lag_epochs: node.lag_epochs,
            lag_us: node.follow.map(whole_us),
            silence_us: node.silence.map(whole_us),
            witness_us: node.witness.map(whole_us),
            realtime: node.is_realtime,
            ..self
        }
    }

    /// With where a standby is wanted.
    pub(super) fn with_aim(self, aim: Aim) -> Self {
        let Aim { wanted, refused, .. } = aim;
        Self { standby: wanted, refused, ..self }
    }

    /// With how far the chain has come.
    pub(super) fn with_chain(self, chain: Reached) -> Self {
        Self { complete_epoch: chain.appended.max(self.complete_epoch), durable_epoch: chain.durable, ..self }
    }
}
