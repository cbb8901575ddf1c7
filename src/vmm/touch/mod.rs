//! The built-in guest `touch`, made for measuring: in each pass it writes to exactly the pages that the host has listed, and asks for a cut.
//!
//! A 64-bit program of a few dozen instructions (`touch.S`) that runs at CPL 3, so natively on every KVM, as [`super::churn`] does. It checks nothing: what
//! it wrote is known on the host's side ([`Image::pass`]), and can be compared there.
//!
//! # Guest physical memory
//! | address | what |
//! | --- | --- |
//! | below `0x60000` | as for `churn`: descriptors, the program, page tables |
//! | `0x70000 + 0x1000 v` | what vCPU `v` is told |
//! | `0x100000` | the lists: frame numbers (u32) of each pass, one pass after the other |
//! | the next multiple of 2 MiB | the control page ([`control_address`]): the counter, the barrier, the passes of each vCPU |
//! | behind it | pages that lists may have; from 3 to 4 GiB there are none |
//!
//! Below the control page the guest can only read: KVM may list a page as written when it is first read, where a write would be allowed.
//!
//! # A pass
//! A vCPU takes its part of the pass's list. For each page it takes the next number of the counter (atomically, one counter for all vCPUs) and stores it
//! in the first words of the page. Then, if cuts are asked for, all vCPUs meet: each counts itself in and spins until vCPU 0 has seen all of them, has
//! written to [`PORT_CUT`] where a cut is due, and opens the barrier. After the last list comes the first again.
//!
//! With a cut after each pass, an epoch has the pages of the pass and the control page, and no others.

mod image;
mod lists;
mod options;
mod program;

#[cfg(test)]
mod native_tests;

pub use image::{Image, MEMORY_MAX, MEMORY_MIN, TouchError, control_address};
pub use options::{Options, OptionsError, PAGES_MAX, Pattern};

/// The most vCPUs the guest runs on.
pub const VCPUS_MAX: u32 = 64;

/// Written by vCPU 0 when a cut is due: the low 32 bits of the number of passes. `churn` has no such port.
pub const PORT_CUT: u16 = 0x15;
/// Read before a pass, with pacing: the VMM answers when the period begins. The same as `churn`'s.
pub const PORT_PACE: u16 = super::churn::PORT_PACE;

/// Passes of all vCPUs together, from the control page.
#[must_use]
pub fn passes(control: &crate::page::PageBytes, vcpus: u32) -> u64 {
    let words = control.as_chunks().0.iter().skip(program::control_at::PASSES / 8);
    words.take(usize::try_from(vcpus).unwrap_or(usize::MAX)).map(|word| u64::from_le_bytes(*word)).sum()
}
