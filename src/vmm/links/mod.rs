//! How frames of a network device enter and leave the host: by a tap, or by a Unix stream socket.
//!
//! What is outside of a link is a packet: the 12 bytes of virtio's `virtio_net_hdr_v1`, and behind
//! them an Ethernet frame. `announce` is what is said to the network in the guest's place, when the
//! guest goes on elsewhere.

mod announce;
mod frame_stream;
mod ioctl;
mod link;
mod lone_link;
mod mac;
#[cfg(test)]
mod native_tests;
mod net_spec;
mod open;
mod ready;
mod tap;
mod unix_link;

pub(in crate::vmm) use announce::Neighbours;
pub use link::LinkError;
pub(in crate::vmm) use link::{HEADER_BYTES, Link, LinkReceiver, LinkSender, Offloads};
#[doc(hidden)]
pub use lone_link::LoneLink;
pub use mac::{Mac, MacError};
pub(in crate::vmm) use net_spec::check_nets;
pub use net_spec::{NetBackend, NetSpec, NetSpecError};
