//! The older interface: a bitmap of a memslot's pages.
#![expect(unsafe_code, reason = "hands buffers to KVM")]

use std::io;

use kvm_bindings::{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap};

use super::VmHandle;
use super::memslot::Memslot;

/// `_IOW(0xAE, 0x42, struct kvm_dirty_log)`.
const KVM_GET_DIRTY_LOG: u32 = 0x4010_ae42;
/// `_IOWR(0xAE, 0xc0, struct kvm_clear_dirty_log)`.
const KVM_CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;
/// `_IOW(0xAE, 0xa3, struct kvm_enable_cap)`.
const KVM_ENABLE_CAP: u32 = 0x4068_aea3;
/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`, include/uapi/linux/kvm.h.
const MANUAL_PROTECT_ENABLE: u64 = 1;

const _: () = assert!(size_of::<kvm_dirty_log>() == 0x10);
const _: () = assert!(size_of::<ClearDirtyLog>() == 0x18);
const _: () = assert!(size_of::<kvm_enable_cap>() == 0x68);

/// `struct kvm_clear_dirty_log`.
#[repr(C)]
struct ClearDirtyLog {
    slot: u32,
    pages: u32,
    first: u64,
    bitmap: *const u64,
}

/// A failure of the bitmap interface.
#[derive(Debug, thiserror::Error)]
#[error("{ioctl} for slot {slot}")]
pub struct BitmapError {
    /// The ioctl's name.
    pub ioctl: &'static str,
    /// The memslot's number.
    pub slot: u16,
    /// The kernel's error.
    #[source]
    pub source: io::Error,
}

/// Separates reading the log from protecting pages again: afterwards [`SlotBitmap::get`] only
/// reads, and [`SlotBitmap::clear`] protects.
///
/// # Errors
/// The kernel's errno; `EINVAL` where the capability is missing.
pub fn enable_manual_protect(vm: &VmHandle) -> io::Result<()> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
    cap.args[0] = MANUAL_PROTECT_ENABLE;
    // SAFETY: the structure is the request's and has no pointers.
    unsafe { vm.ioctl_with(KVM_ENABLE_CAP, &cap) }.map(drop)
}

/// The log of one memslot, a bit a page.
#[derive(Debug)]
pub struct SlotBitmap {
    slot: Memslot,
    words: Vec<u64>,
}

impl SlotBitmap {
    /// Takes the memory for the log of `slot`.
    #[must_use]
    pub fn new(slot: Memslot) -> Self {
        let words = usize::try_from(slot.pages.div_ceil(64)).unwrap_or(usize::MAX);
        Self { slot, words: vec![0; words] }
    }

    /// The memslot.
    #[must_use]
    pub const fn slot(&self) -> &Memslot {
        &self.slot
    }

    /// Reads which pages were written. Bit *n* stands for the slot's page *n*.
    ///
    /// Without manual protect the kernel protects these pages again before it returns.
    ///
    /// # Errors
    /// [`BitmapError`]; `ENXIO` where the VM uses dirty rings, `ENOENT` where the slot is not
    /// logged.
    pub fn get(&mut self, vm: &VmHandle) -> Result<&[u64], BitmapError> {
        let log = kvm_dirty_log {
            slot: u32::from(self.slot.id),
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: self.words.as_mut_ptr().cast() },
        };
        // SAFETY: the kernel writes one bit for each page of the slot, rounded up to 64: what
        // `words` has room for.
        unsafe { vm.ioctl_with(KVM_GET_DIRTY_LOG, &log) }.map_err(|source| self.error("KVM_GET_DIRTY_LOG", source))?;
        Ok(&self.words)
    }

    /// With manual protect: protects again the pages that the last [`get`](Self::get) listed.
    ///
    /// # Errors
    /// [`BitmapError`].
    pub fn clear(&mut self, vm: &VmHandle) -> Result<(), BitmapError> {
        let mut first = 0;
        // The count is 32 bits wide; pieces begin at multiples of 64, as the kernel asks.
        for words in self.words.chunks(1 << 24) {
            let rest = self.slot.pages - first;
            let pages = u32::try_from(rest.min(1 << 30)).unwrap_or(1 << 30);
            let clear = ClearDirtyLog { slot: u32::from(self.slot.id), pages, first, bitmap: words.as_ptr() };
            // SAFETY: the kernel reads one bit for each of `pages` pages, which `words` has.
            unsafe { vm.ioctl_with(KVM_CLEAR_DIRTY_LOG, &clear) }.map_err(|source| self.error("KVM_CLEAR_DIRTY_LOG", source))?;
            first += u64::from(pages);
        }
        Ok(())
    }

    fn error(&self, ioctl: &'static str, source: io::Error) -> BitmapError {
        BitmapError { ioctl, slot: self.slot.id, source }
    }
}
