//! The host's side of a virtio socket device.
//!
//! One Unix socket of the host stands for the guest: a host program connects to `PATH`, writes
//! `CONNECT PORT` and a line feed, and reads `OK HOSTPORT` and a line feed once the guest has
//! accepted; then bytes flow. A guest that connects to a port of the host reaches the program that
//! listens at `PATH_PORT`.
//!
//! Everything that leaves the guest waits until its epoch is released. So the core
//! ([`Connections`]) writes to no socket: it makes [`Output`]s, which the device puts into its
//! queue of outputs and gives to the sockets when they are released.

mod connection;
mod connections;
mod credit;
mod error;
mod handshake;
mod host_socket;
mod host_sockets;
mod inbox;
mod listener;
#[cfg(test)]
mod model_guest;
mod output;
mod packet;
mod spec;

pub use connections::{CONNECTIONS_MAX, Connections, TooManyConnections, WAITING_BYTES_MAX};
pub use error::VsockError;
pub use host_sockets::{HostEvents, HostSockets};
pub use output::{ConnectionId, Output, OutputKind};
pub use packet::{
    HEADER_BYTES, HOST_CID, Header, Op, PAYLOAD_BYTES_MAX, PacketError, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
    TYPE_STREAM,
};
pub use spec::{VsockSpec, VsockSpecError};
