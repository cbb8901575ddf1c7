//! The built-in guest `ledger`, which serves requests over a network: by its answers somebody
//! outside can tell whether the machine ever went on from a state behind what it had let out.
//!
//! A 64-bit program of a few hundred instructions (`ledger.S`) that runs at CPL 3, so natively on
//! every KVM, as [`super::churn`] does. It drives a virtio-net device by its memory-mapped
//! registers (Virtual I/O Device 1.2), with two queues of 64 that it polls: no interrupts. It
//! answers ARP, and the requests of [`crate::ledger`] over UDP, and ignores everything else, and
//! what is broken. It checks no checksum of UDP, and sends none.
//!
//! # Guest physical memory
//!
//! - below `0x60000`: as for `churn`: descriptors, the program, page tables
//! - `0x70000 + 0x1000 v`: what vCPU `v` is told
//! - `0x200000`: the state: count, hash, positions in the rings
//! - `0x201000`: the table of clients: the last answer to each
//! - `0x202000`, `0x203000`: the queues for receiving and for transmitting, with their rings
//! - `0x204000`: transmit buffers of 256 bytes
//! - `0x210000 + 0x1000 v`: a page of vCPU `v`'s own
//! - `0x260000`: receive buffers of 2048 bytes
//! - `0x280000`: the pages that requests dirty
//! - `0xd0000000`: the device's registers
//!
//! Below the state the guest can only read. Rings and descriptors are filled in from the start, so
//! that the program only has to say where they are.
//!
//! # A request
//! The first vCPU serves. It waits for a transmit buffer first, so that a device that holds answers
//! back slows requests down and loses none. A request extends the hash, writes the count to the
//! first word of as many pages as it asks for, and is answered to where it came from. Any other
//! vCPU writes to its page about once in a millisecond.
//!
//! All of that is in memory and registers, so a guest that was restored goes on between two
//! instructions. A device that is not there, or was reset by somebody else, leaves the guest
//! polling for ever.

mod image;
mod layout;
mod options;
mod program;

#[cfg(test)]
mod native_tests;

pub use image::{LedgerError, build, state_address};
pub use layout::requests;
pub use options::{Options, PAGES_MAX};

pub use super::flat::{MEMORY_MAX, MEMORY_MIN, VCPUS_MAX};
pub use super::options::OptionsError;
pub use super::ports::PORT_PACE;
