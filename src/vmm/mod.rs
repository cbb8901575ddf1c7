//! The reference VMM: a machine with an in-kernel interrupt controller and memory from 0 on. It
//! runs a built-in guest ([`guests::churn`] or [`guests::touch`]) or a stock Linux kernel
//! ([`boot`], [`devices`]).
//!
//! It is what the `slackwater` command runs, and an example of a VMM that embeds the engine: `run`
//! has the vCPU threads, `gate` is where they meet for a cut.

pub mod boot;
pub mod devices;
pub mod guests;
pub mod vsock;

mod alarm;
mod attention;
mod carriers;
mod clocks;
mod cut;
mod error;
mod exits;
mod gate;
mod links;
mod monitor;
#[cfg(test)]
mod native_tests;
mod network;
mod nic;
mod outputs;
mod rounds;
mod run;
mod shared;
mod spec;
mod stop;
mod tracking;
mod vcpu;
mod vm;
mod vsock_side;

pub use clocks::Clocks;
pub use error::VmmError;
pub use exits::exit_times;
pub use guests::{GuestSpec, GuestSpecError};
#[doc(hidden)]
pub use links::LoneLink;
pub use links::{LinkError, Mac, MacError, NetBackend, NetSpec, NetSpecError};
pub use monitor::{GuestReport, Paced};
pub use network::NetworkReport;
pub use nic::OutputDelay;
pub use run::{Handle, Outcome, Protection, Running};
pub use shared::Limits;
pub use spec::{MachineSpec, memory_regions};
pub use stop::Stop;
pub use tracking::{HotCheck, Tracking};
pub use vm::{BuildOptions, Setup, Vm};
