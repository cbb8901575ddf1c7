//! How frames of a network device enter and leave the host: by a tap, or by a Unix stream socket.
//!
//! What is outside of a link is a packet: the 12 bytes of virtio's `virtio_net_hdr_v1`, and behind
//! them an Ethernet frame. `announce` is what is said to the network in the guest's place, when the
//! guest goes on elsewhere.
#![cfg_attr(not(test), expect(dead_code, reason = "the network device is not there yet"))]

mod announce;
mod frame_stream;
mod ioctl;
mod link;
mod mac;
#[cfg(test)]
mod native_tests;
mod net_spec;
mod open;
mod ready;
mod tap;
mod unix_link;

#[expect(unused_imports, reason = "the network device is not there yet")]
pub(in crate::vmm) use announce::{ENCODED_BYTES_MAX, Neighbours, NeighboursError};
pub use link::LinkError;
#[expect(unused_imports, reason = "the network device is not there yet")]
pub(in crate::vmm) use link::{HEADER_BYTES, Link, LinkReceiver, LinkSender, Offloads};
pub use mac::{Mac, MacError};
pub use net_spec::{NetBackend, NetSpec, NetSpecError, check_nets};
