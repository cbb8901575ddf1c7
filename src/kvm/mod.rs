//! The kernel's ABI and nothing else: the dirty ring, the dirty bitmap, memslots, userfaultfd,
//! extended CPU state, and how to get a vCPU out of the guest.
//!
//! [`ring`] is usable alone, from any VMM on `kvm-ioctls`, which has neither the ring's mapping nor
//! its reset.

pub mod bitmap;
pub mod host;
pub mod kick;
pub mod memslot;
pub mod offer;
pub mod probe;
pub mod ring;
pub mod uffd;
pub mod xsave;

#[cfg(test)]
pub(crate) mod test_guest;
pub(crate) mod user_mode;
mod vm;

pub use vm::VmHandle;
#[cfg(feature = "vmm")]
pub(crate) use vm::duplicate;
