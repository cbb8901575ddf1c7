//! A dirty ring for any VMM on `kvm-ioctls`.
//!
//! The kernel writes the frames that a vCPU dirties into that vCPU's ring, and leaves the guest
//! with exit reason 31 when the ring is nearly full. User space takes the entries in order
//! (*harvest*), copies the pages, and asks the kernel to protect them again (*reset*).
//!
//! ```no_run
//! use kvm_ioctls::Kvm;
//! use slackwater::kvm::{VmHandle, ring::{RingSize, VmRings}};
//! use slackwater::parked::Parked;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = Kvm::new()?.create_vm()?;
//! let mut rings = VmRings::enable(VmHandle::duplicate(&vm)?, RingSize::new(4096)?)?; // before the first vCPU
//! let mut vcpu = vm.create_vcpu(0)?;
//! rings.map(&vcpu)?;
//! // ... memory with KVM_MEM_LOG_DIRTY_PAGES, vcpu.run() until the ring-full exit, every vCPU out of the guest ...
//! let parked = Parked::vouch(&mut vcpu);
//! let harvest = rings.harvest();
//! for page in harvest.while_parked(&parked) {
//!     println!("slot {} page {}", page.slot, page.offset);
//! }
//! let reset = harvest.reset()?;
//! if let Some(lost) = reset.lost {
//!     println!("{lost}: compare all memory"); // never go on as if nothing had happened
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The types keep the order that the kernel needs:
//!
//! * A ring can only be mapped through [`VmRings`], and [`VmRings::enable`] fails once a vCPU
//!   exists.
//! * Pages of a harvest can be read before the reset only with the proof that the vCPUs are parked;
//!   otherwise the reset comes first.
//! * A harvest only reads: dropped without a reset, it is as if it had not been, and the next one
//!   lists its pages again.
//! * A reset can be taken in two steps ([`Harvest::begin_reset`], [`VmRings::finish_reset`]): a
//!   large one then goes on, on a thread of its own, while the caller copies the pages. What was
//!   begun and not finished is finished by the next harvest.
//! * The reset runs with every signal blocked, and a count that differs from the harvest's is
//!   [`Lost::Reset`].
//!
//! Sources: Documentation/virt/kvm/api.rst, section 8.29; virt/kvm/dirty_ring.c.

mod dirty_page;
mod entry;
mod order;
mod reset_thread;
mod rings;
#[cfg(test)]
mod tests;

pub use dirty_page::DirtyPage;
pub use reset_thread::{Lookout, ResetHelp};
pub use rings::{Harvest, Lost, Reset, RingError, RingSize, VmRings, support};

/// The exit reason of a full ring, `KVM_EXIT_DIRTY_RING_FULL`; kvm-ioctls reports it as
/// `VcpuExit::Unsupported(31)`.
pub const EXIT_RING_FULL: u32 = kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
