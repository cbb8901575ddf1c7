//! Requests to the built-in guest `ledger`, and whether its answers can be true.
//!
//! The guest keeps a count of requests and one hash over all of them, and each answer says both as
//! they were before and after. A client that sees a count go back, or two hashes at one count, has
//! found that the machine went on from a state behind an answer that it had let out.
//!
//! - [`Request`] and [`Answer`] are what goes over the wire, [`Checker`] judges the answers.
//! - [`Server`] is the guest's side of it without a machine.
//! - [`run`] has the clients of a [`Load`] ask over a [`Wire`]: [`UdpWire`] through the host's
//!   network, [`UnixWire`] as what network devices connect to, with datagrams in Ethernet frames
//!   ([`frames`]) on a stream ([`frame_stream`]).
//!
//! # Rules
//! - A client has one request under way, numbered from 1. It sends it again until it is answered.
//! - The server takes a request whose number follows the client's last. The last one again gets the
//!   same answer again. Any other is not answered.
//! - It knows [`CLIENTS_MAX`] clients, by their ids, and forgets none. Further ones are not
//!   answered.

mod checker;
mod client;
pub mod frame_stream;
pub mod frames;
mod load;
mod protocol;
mod server;
mod udp_wire;
mod unix_wire;

pub use checker::{Accepted, Checker, Violation, WINDOW_COUNTS};
pub use client::{Outcome, Received, Verdict, Wire, WireError, run};
pub use load::{End, Latency, Load, LoadError, LoadOptions, LoadReport};
pub use protocol::{
    ANSWER_BYTES, Answer, CLIENTS_MAX, PAYLOAD_BYTES_MAX, ProtocolError, REQUEST_HEADER_BYTES, REQUEST_PAGES_MAX, Request, Tally,
};
pub(crate) use protocol::{ANSWER_MAGIC, HASH_FACTOR, REQUEST_MAGIC, request_at};
pub use server::Server;
pub use udp_wire::UdpWire;
pub use unix_wire::UnixWire;
