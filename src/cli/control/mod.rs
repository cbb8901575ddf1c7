//! The control socket: HTTP on a Unix socket beside a machine that runs.

mod client;
mod machine;
mod metrics;
mod server;
mod status;

pub(super) use client::call;
pub(super) use server::Control;
pub(super) use status::Status;
