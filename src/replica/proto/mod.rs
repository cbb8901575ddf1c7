//! The protocol of a pair, as state machines without I/O and clock: [`Primary`] and [`Standby`].
//!
//! Whoever drives one tells it what happened (each call may say what time it is, since an instant
//! of the caller's choice), and does the [`Action`]s that it then wants, in their order. Times
//! decide when a machine tries something, and never whether it is right: clocks may run at any
//! speed and stand still. `docs/fault-tolerance.md` has the rules, and the argument for them.

mod action;
mod broken;
mod epoch_key;
mod line;
mod message;
mod options;
mod primary;
mod record;
mod silence;
#[cfg(test)]
mod sim;
mod standby;
mod swaps;

pub use action::{Action, Answer, Halted};
pub use epoch_key::EpochKey;
pub use message::{Body, Message};
pub use options::{PrimaryOptions, StandbyOptions, Timing, WhenLost};
pub use primary::{Primary, PrimaryRole};
pub use record::{Opening, Record, WhyNot, may_open};
pub use standby::{Promotion, Standby, StandbyRole};
