//! Memslots: which host memory stands for which guest frames, and whether KVM logs writes to it.
#![expect(unsafe_code, reason = "hands host addresses to KVM")]

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};

use super::VmHandle;
use crate::page::{Gfn, PAGE_SIZE_U64};

/// `_IOW(0xAE, 0x46, struct kvm_userspace_memory_region)`.
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;

const _: () = assert!(size_of::<kvm_userspace_memory_region>() == 0x20);

/// One memslot of address space 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memslot {
    /// The slot's number.
    pub id: u16,
    /// The first guest frame.
    pub first: Gfn,
    /// Pages in the slot; at least one.
    pub pages: u64,
    /// The host address (bytes, page-aligned) of the first page.
    pub host_address: u64,
}

impl Memslot {
    /// The guest frame at index `offset` (pages) of the slot, or `None` behind its end.
    #[must_use]
    pub const fn frame(&self, offset: u64) -> Option<Gfn> {
        if offset < self.pages { Some(Gfn(self.first.0 + offset)) } else { None }
    }
}

/// A memslot that the kernel would not take.
#[derive(Debug, thiserror::Error)]
#[error("KVM_SET_USER_MEMORY_REGION for slot {slot} at guest {first}, {pages} pages")]
pub struct MemslotError {
    /// The slot's number.
    pub slot: u16,
    /// Its first frame.
    pub first: Gfn,
    /// Its size in pages.
    pub pages: u64,
    /// The kernel's error.
    #[source]
    pub source: std::io::Error,
}

/// Makes or changes a memslot. `log_dirty` sets `KVM_MEM_LOG_DIRTY_PAGES`; setting it where it was
/// not set write-protects all of the slot (`kvm_mmu_slot_apply_flags` in arch/x86/kvm/x86.c), which
/// is how tracking is begun again after writes may have been missed.
///
/// Takes about 6.5 ms whatever the size (measured): the kernel waits for readers of the old table.
/// Reset the rings first: slot numbers are reused.
///
/// # Safety
/// The slot's host memory is a mapping of that size, readable and writable, that stays mapped as
/// long as the slot exists, and no Rust reference into it is held while the guest may run.
///
/// # Errors
/// [`MemslotError`] with the kernel's errno.
pub unsafe fn set(vm: &VmHandle, slot: &Memslot, log_dirty: bool) -> Result<(), MemslotError> {
    let region = kvm_userspace_memory_region {
        slot: u32::from(slot.id),
        flags: if log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
        guest_phys_addr: slot.first.0 * PAGE_SIZE_U64,
        memory_size: slot.pages * PAGE_SIZE_U64,
        userspace_addr: slot.host_address,
    };
    // SAFETY: the structure is the request's, and its host address is the caller's promise.
    unsafe { vm.ioctl_with(KVM_SET_USER_MEMORY_REGION, &region) }.map(drop).map_err(|source| MemslotError {
        slot: slot.id,
        first: slot.first,
        pages: slot.pages,
        source,
    })
}
