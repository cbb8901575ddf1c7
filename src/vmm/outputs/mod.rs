//! What leaves the machine, and waits for its epoch: one rule for all of it.
//!
//! An output belongs to the epoch in hand when the guest made it. It goes when that epoch is
//! released: a machine that is put back to an earlier instant has then told the world nothing that
//! this instant does not know. [`Held`] is the rule, pure. An [`Outlet`] is a place where packets
//! or a stream leave, with a thread that sends them. Answers that promise something to the guest
//! follow the same rule, and stay with their device; the end of a run by the guest waits for the
//! last epoch.

mod console_out;
mod cut_due;
mod held;
mod outlet;

pub(super) use console_out::ConsoleOut;
pub(super) use cut_due::CutDue;
pub(super) use held::Held;
pub(super) use outlet::{Bounds, Outlet, Output, Outputs};
