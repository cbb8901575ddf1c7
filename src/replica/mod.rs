//! A standby that takes over: two machines of which at most one goes on.
//!
//! `docs/fault-tolerance.md` has the argument.

pub mod proto;
pub mod register;
pub mod wire;
pub mod witness;
