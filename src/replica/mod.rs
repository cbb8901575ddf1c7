//! A standby that takes over: two machines of which at most one goes on.
//!
//! `docs/fault-tolerance.md` has the argument.

pub(crate) mod draw;
mod follow_times;
pub mod follower;
pub mod link;
pub mod migrate;
pub mod node;
pub mod node_status;
pub mod proto;
pub mod realtime;
pub mod record_file;
pub mod register;
pub mod seed;
pub mod standby;
pub mod wire;
pub mod wishes;
pub mod witness;
