//! The reference VMM: a machine with an in-kernel interrupt controller, memory from 0 on, and a built-in guest ([`churn`] or [`touch`]) or a stock Linux kernel ([`linux`]).
//!
//! It is what the `slackwater` command runs, and an example of a VMM that embeds the engine: `run` has the vCPU threads, `gate` is where they meet for a cut.

pub mod churn;
pub mod linux;
pub mod touch;

mod clocks;
mod cut;
mod error;
mod exits;
mod flat;
mod gate;
mod guest;
mod keys;
mod monitor;
mod run;
mod shared;
mod stop;
mod vcpu;
mod vm;

pub use clocks::Clocks;
pub use error::VmmError;
pub use exits::exit_times;
pub use guest::{GuestSpec, GuestSpecError};
pub use monitor::{GuestReport, Paced};
pub use run::{Outcome, Protection, Running};
pub use shared::Limits;
pub use stop::Stop;
pub use vm::{BuildOptions, HotCheck, MachineSpec, Setup, Tracking, Vm, memory_regions};
