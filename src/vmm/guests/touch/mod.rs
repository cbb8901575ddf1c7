//! The built-in guest `touch`, made for measuring: in each pass it writes to exactly the pages that
//! the host has listed, and asks for a cut.
//!
//! A 64-bit program of a few dozen instructions (`touch.S`) that runs at CPL 3, so natively on
//! every KVM, as [`super::churn`] does. It checks nothing: what it wrote is known on the host's
//! side ([`Image::pass`]), and can be compared there.
//!
//! # Guest physical memory
//!
//! - below `0x60000`: as for `churn`: descriptors, the program, page tables
//! - `0x70000 + 0x1000 v`: what vCPU `v` is told
//! - `0x100000`: the lists: frame numbers (u32) of each pass, one pass after the other
//! - the next multiple of 2 MiB: the control page ([`control_address`]): the counter, the barrier,
//!   the passes of each vCPU
//! - behind it: pages that lists may have; from 3 to 4 GiB there are none
//!
//! Below the control page the guest can only read: KVM may list a page as written when it is first
//! read, where a write would be allowed.
//!
//! # A pass
//! A vCPU takes its part of the pass's list. For each page it takes the next number of the counter
//! (atomically, one counter for all vCPUs) and stores it in the first words of the page. Then, if
//! cuts are asked for, all vCPUs meet: each counts itself in and spins until vCPU 0 has seen all of
//! them, has written to [`PORT_CUT`] where a cut is due, and opens the barrier. After the last list
//! comes the first again.
//!
//! With a cut after each pass, an epoch has the pages of the pass and the control page, and no
//! others.

mod image;
mod layout;
mod lists;
mod options;
mod program;

#[cfg(test)]
mod native_tests;

pub use image::{Image, TouchError, control_address};
pub use layout::passes;
pub use options::{Options, PAGES_MAX, Pattern};

pub use super::flat::{MEMORY_MAX, MEMORY_MIN, VCPUS_MAX};
pub use super::options::OptionsError;
pub use super::ports::{PORT_CUT, PORT_PACE};
