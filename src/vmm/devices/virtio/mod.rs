//! Virtio devices behind memory-mapped registers: the transport with its queues, and the
//! devices.
//!
//! Requests are handled on the thread of a vCPU, so that none is under way while a checkpoint is
//! taken, but for those that wait to be durable. All that a device writes goes through
//! `GuestMemory::ram` or `GuestMemory::device_ram`, which record it. Requests are bounded, so it is
//! known beforehand how many pages one may write.

mod block;
pub(super) mod entropy;
mod lone_device;
mod net;
mod transport;
mod virtio_device;
mod virtqueue;
mod vsock;

pub(super) use block::Block;
pub use lone_device::{Left, LoneDevice, Worked};
pub(super) use net::Net;
pub(super) use virtio_device::{ANSWERS_PAGES, REQUEST_PAGES_MAX};
pub(super) use vsock::Vsock;

#[cfg(test)]
mod net_tests;
#[cfg(test)]
mod queue_driver;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vsock_tests;
