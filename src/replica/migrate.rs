//! A machine that goes to another host while it runs: a standby is made there, follows, and gets
//! the machine when little is left to be sent.

use std::time::{Duration, Instant};

use super::node::Node;
use super::node_status::{NodeStatus, Role};
use super::proto::PrimaryRole;
use super::register::{Generation, Holder};
use super::seed::Keeper;
use crate::clock::whole_us;

/// Where a machine is to go, and how.
#[derive(Clone, Debug)]
pub struct Migration {
    /// Where a standby listens.
    pub to: String,
    /// The guest is parked when it is expected to stand still for no longer than this.
    pub downtime: Duration,
    /// All of it is given up after this time, and the machine stays.
    pub within: Duration,
}

/// A machine that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The generation in which it goes on.
    pub generation: Generation,
    /// From the wish to the pair.
    pub seeding: Duration,
    /// From the wish to park the guest until the witness had said that it is another's.
    pub downtime: Duration,
}

/// Why a machine stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The other host does not take it.
    #[error("the machine can't go to {to}: {reason}")]
    Refused {
        /// Where it was to go.
        to: String,
        /// What came of the last try.
        reason: String,
    },
    /// Nobody follows in time.
    #[error("the standby at {to} was not ready after {seconds} s")]
    NotPaired {
        /// Where it was to go.
        to: String,
        /// How long that was tried.
        seconds: u64,
    },
    /// The guest writes too fast.
    #[error("the guest would stand still for some {expected_us} us, and {downtime_us} us were wanted")]
    TooSlow {
        /// What was expected last.
        expected_us: u64,
        /// What was wanted.
        downtime_us: u64,
    },
    /// The standby was lost just then.
    #[error("the standby was lost while it was given the machine, which goes on here")]
    GivenUp,
    /// There is no machine that could go.
    #[error("there is no machine here that could go: {0:?}")]
    NotNow(Role),
    /// Whoever asked wants no more.
    #[error("it was ended before")]
    Ended,
}

/// It is looked again after this time.
const LOOK: Duration = Duration::from_millis(1);
/// A host that refuses is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// A standby that is given the machine and does not take it in this time does not get it.
const HANDING: Duration = Duration::from_secs(2);

/// Moves the machine of `node`, whose standbys `keeper` makes. `is_over` is asked now and then.
///
/// # Errors
/// [`MigrateError`]: the machine stays, and runs on.
pub fn migrate(
    node: &Node,
    keeper: &Keeper,
    migration: &Migration,
    is_over: &dyn Fn() -> bool,
) -> Result<Migrated, MigrateError> {
    let before = keeper.aim();
    let outcome = go(node, keeper, migration, is_over);
    if outcome.is_err() {
        keeper.aim_at(before.wanted);
    }
    outcome
}

fn go(node: &Node, keeper: &Keeper, migration: &Migration, is_over: &dyn Fn() -> bool) -> Result<Migrated, MigrateError> {
    let begun = Instant::now();
    let Migration { to, downtime, within } = migration;
    keeper.aim_at(Some(to.clone()));
    let mut expected = None;
    let mut paired_at = None;
    let parked_at = loop {
        let status = node.status();
        let aim = keeper.aim();
        let Role::Primary(role) = status.role else { return Err(MigrateError::NotNow(status.role)) };
        if role == PrimaryRole::Fenced {
            return Err(MigrateError::NotNow(status.role));
        }
        if role == PrimaryRole::Paired && aim.attached.as_ref() == Some(to) {
            paired_at.get_or_insert_with(Instant::now);
            expected = expected_downtime(&status).or(expected);
            let parked_at = Instant::now();
            if expected.is_some_and(|expected| expected <= *downtime) && node.hand_over() {
                break parked_at;
            }
        } else if let Some(reason) = aim.refused.filter(|_| begun.elapsed() > PATIENCE) {
            return Err(MigrateError::Refused { to: to.clone(), reason });
        }
        if is_over() {
            return Err(MigrateError::Ended);
        }
        if begun.elapsed() > *within {
            return Err(match expected {
                Some(expected) => MigrateError::TooSlow { expected_us: whole_us(expected), downtime_us: whole_us(*downtime) },
                None => MigrateError::NotPaired { to: to.clone(), seconds: within.as_secs() },
            });
        }
        std::thread::sleep(LOOK);
    };
    let seeding = paired_at.map_or(Duration::ZERO, |at| at.duration_since(begun));
    let mut is_taken_back = false;
    // What the witness was asked for stays open until it answers, and so long the guest is parked.
    loop {
        let status = node.status();
        match (status.role, status.register) {
            (Role::Primary(PrimaryRole::Fenced), Some(register)) if matches!(register.holder, Holder::Solo(_)) => {
                return Ok(Migrated { generation: register.generation, seeding, downtime: parked_at.elapsed() });
            }
            (Role::Primary(PrimaryRole::Handing | PrimaryRole::Suspect), _) => {}
            (Role::Primary(PrimaryRole::Fenced), _) => return Err(MigrateError::NotNow(status.role)),
            _ => return Err(MigrateError::GivenUp),
        }
        if parked_at.elapsed() > HANDING
            && !std::mem::replace(&mut is_taken_back, true)
            && let Some(standby) = status.other
        {
            node.lost(standby);
        }
        if is_over() {
            return Err(MigrateError::Ended);
        }
        std::thread::sleep(LOOK);
    }
}

/// How long the guest would stand still: until the standby has the last epoch, and the witness has
/// said whose the machine is.
fn expected_downtime(status: &NodeStatus) -> Option<Duration> {
    let NodeStatus { follow, witness, .. } = status;
    // The epoch is cut, encoded and sent, and the standby's word comes back.
    Some(follow.as_ref()?.saturating_mul(2).saturating_add(witness.unwrap_or_default()))
}
