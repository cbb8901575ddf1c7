//! Guest memory as memslots: where each frame lives on the host.
#![expect(unsafe_code, reason = "copies pages that the guest may be writing, and hands host addresses to KVM")]

use std::io;
use std::sync::{Arc, OnceLock};

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::missing::{FilledPages, MissingMemory};
use super::write_log::{WriteLog, WrittenPages};
use crate::kvm::VmHandle;
use crate::kvm::memslot::{self, Memslot, MemslotError};
use crate::kvm::uffd::{UserfaultError, Userfaultfd};
use crate::page::{Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageBytes, PageRun};
use crate::parked::Parked;

/// Guest memory of `vm-memory`, recording every write that the VMM makes through it.
pub type GuestRam = GuestMemoryMmap<WriteLog>;

/// What is wrong with a guest's memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// There is no memory.
    #[error("guest memory has no page")]
    Empty,
    /// A region is not made of whole pages, or does not fit below 2^52 bytes.
    #[error("guest memory from {first} on, {pages} pages, does not lie below guest address 2^52")]
    Range {
        /// First frame.
        first: Gfn,
        /// Pages.
        pages: u64,
    },
    /// More regions than memslots are used.
    #[error("{found} memory regions, at most {expected}")]
    TooManyRegions {
        /// The limit.
        expected: usize,
        /// The number asked for.
        found: usize,
    },
    /// The host has not enough address space or memory.
    #[error("mapping {pages} pages of guest memory at {first}")]
    Map {
        /// First frame.
        first: Gfn,
        /// Pages.
        pages: u64,
        /// The error of `mmap`.
        #[source]
        source: MmapRegionError,
    },
    /// Regions overlap or are out of order.
    #[error("the memory regions overlap or are not in ascending order")]
    Layout,
    /// KVM did not take a memslot.
    #[error(transparent)]
    Memslot(#[from] MemslotError),
    /// A descriptor could not be duplicated.
    #[error("duplicating the VM's descriptor")]
    Descriptor(#[source] io::Error),
    /// A page could not be taken out of the guest's mapping.
    #[error("taking guest {gfn} out of the guest's mapping")]
    Unmap {
        /// The frame.
        gfn: Gfn,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There is no such frame.
    #[error("guest {gfn} is not memory")]
    NoFrame {
        /// The frame.
        gfn: Gfn,
    },
    /// A page that was to come when it is touched can't be had.
    #[error("guest {gfn} did not come into memory")]
    Unreadable {
        /// The frame.
        gfn: Gfn,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Pages can't be made to come as they are touched.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// They already do, or did.
    #[error("guest memory is filled as it is touched already")]
    AlreadyOnDemand,
}

/// The most regions that [`GuestMemory`] takes; `docs/format.md` has the same limit.
const REGIONS_MAX: usize = 64;
/// Guest physical addresses have at most 52 bits on x86-64.
const FRAMES_MAX: u64 = 1 << 40;

/// A guest's memory: `vm-memory`'s regions, the memslots that they are for KVM, and the record of
/// the VMM's writes.
///
/// Cloning shares all of it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    ram: GuestRam,
    device_ram: GuestRam,
    /// One for each region, in ascending order; those of `device_ram`, which are none for KVM, are
    /// the last.
    slots: Arc<[Memslot]>,
    memslots: usize,
    written: Arc<WrittenPages>,
    frames: u64,
    /// Which pages have come, where they come as they are touched.
    filled: Arc<OnceLock<Arc<FilledPages>>>,
}

impl GuestMemory {
    /// Maps zeroed private memory for `regions`, in ascending order; region *n* becomes memslot
    /// *n*. Up to `share` pages that the VMM writes between two cuts are kept in a list (more are
    /// found by walking a bitmap). Pages are taken from the host when they are first touched.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn anonymous(regions: &[PageRun], share: usize) -> Result<Self, MemoryError> {
        Self::with_devices(regions, &[], share)
    }

    /// As [`anonymous`](Self::anonymous), with memory for devices in `device_regions`, which lie
    /// above all of `regions`: what a device keeps and the guest has at no address (a disk's
    /// written blocks). It is in every checkpoint as the guest's own memory is, and so of the same
    /// instant. KVM knows nothing of it, and the frames are numbers that only a chain knows: the
    /// guest may well use these guest physical addresses for something else.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn with_devices(regions: &[PageRun], device_regions: &[PageRun], share: usize) -> Result<Self, MemoryError> {
        if regions.is_empty() {
            return Err(MemoryError::Empty);
        }
        let all = || regions.iter().chain(device_regions);
        let (found, memslots) = (all().count(), regions.len());
        if found > REGIONS_MAX {
            return Err(MemoryError::TooManyRegions { expected: REGIONS_MAX, found });
        }
        let mut frames = 0;
        for run in all() {
            let end = run.end().filter(|end| end.0 <= FRAMES_MAX && run.count > 0);
            let end = end.ok_or(MemoryError::Range { first: run.first, pages: run.count })?;
            if run.first.0 < frames {
                return Err(MemoryError::Layout);
            }
            frames = end.0;
        }
        let written = WrittenPages::new(all().copied().collect(), frames, share);
        let mut mapped = Vec::with_capacity(found);
        let mut slots = Vec::with_capacity(found);
        for (run, id) in all().zip(0u16..) {
            let bytes = usize::try_from(run.count * PAGE_SIZE_U64)
                .map_err(|_| MemoryError::Range { first: run.first, pages: run.count })?;
            let region = MmapRegionBuilder::new_with_bitmap(bytes, WriteLog::new(written.clone(), run.first))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                .build()
                .map_err(|source| MemoryError::Map { first: run.first, pages: run.count, source })?;
            let host_address = region.as_ptr() as u64;
            slots.push(Memslot { id, first: run.first, pages: run.count, host_address });
            let address = GuestAddress(run.first.0 * PAGE_SIZE_U64);
            let region =
                GuestRegionMmap::new(region, address).ok_or(MemoryError::Range { first: run.first, pages: run.count })?;
            mapped.push(region);
        }
        let of_devices = mapped.split_off(memslots);
        let ram = GuestMemoryMmap::from_regions(mapped).map_err(|_| MemoryError::Layout)?;
        let device_ram = match of_devices.is_empty() {
            true => GuestMemoryMmap::default(),
            false => GuestMemoryMmap::from_regions(of_devices).map_err(|_| MemoryError::Layout)?,
        };
        Ok(Self { ram, device_ram, slots: slots.into(), memslots, written, frames, filled: Arc::default() })
    }

    /// `vm-memory`'s view, for loaders and devices. What is written through it is recorded.
    #[must_use]
    pub const fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The same for memory of devices, at the addresses that its frames have as numbers. A guest
    /// that gives a device one of these addresses must not reach it: what it names is looked up in
    /// [`ram`](Self::ram) alone.
    #[must_use]
    pub const fn device_ram(&self) -> &GuestRam {
        &self.device_ram
    }

    /// The memslots, in ascending order of frames. Memory of devices has none.
    #[must_use]
    pub fn slots(&self) -> &[Memslot] {
        self.slots.get(..self.memslots).unwrap_or_default()
    }

    /// What the VMM wrote.
    #[must_use]
    pub fn written(&self) -> &WrittenPages {
        &self.written
    }

    /// One more than the highest frame.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Pages of memory, that of devices included, holes not counted.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.slots.iter().map(|slot| slot.pages).sum()
    }

    /// The memory as runs of frames, that of devices last.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        self.slots.iter().map(|slot| PageRun { first: slot.first, count: slot.pages })
    }

    /// Tells KVM about all memslots. With `log_dirty`, writes to them are logged from then on;
    /// turning that off and on again write-protects everything anew.
    ///
    /// The memory must outlive the VM's use of it: keep a clone as long as the VM exists.
    ///
    /// # Errors
    /// [`MemoryError::Memslot`].
    pub fn register(&self, vm: &VmHandle, log_dirty: bool) -> Result<(), MemoryError> {
        for slot in self.slots() {
            // SAFETY: the host address and size are those of a region that `ram` keeps mapped; no
            // reference into it is ever made: the copies below go through raw pointers, and
            // vm-memory does the same.
            unsafe { memslot::set(vm, slot, log_dirty) }?;
        }
        Ok(())
    }

    /// From now on whoever touches a page that is missing waits until it was brought, through what
    /// is returned. Once for a memory. Until memory is whole, nobody may take pages out of it
    /// (`MADV_DONTNEED`, a balloon): they might come again.
    ///
    /// # Errors
    /// [`MemoryError::Userfault`], [`MemoryError::AlreadyOnDemand`].
    pub fn wait_for_missing(&self, uffd: Userfaultfd) -> Result<MissingMemory, MemoryError> {
        let filled = FilledPages::new(self.frames).map_err(|source| UserfaultError::Call { call: "taking memory", source })?;
        let filled = Arc::new(filled);
        self.filled.set(filled.clone()).map_err(|_| MemoryError::AlreadyOnDemand)?;
        // SAFETY: the slots are regions of private anonymous memory that `ram` keeps mapped, and
        // what is returned keeps a clone of it. No reference into them is ever made.
        let missing = unsafe { uffd.register(&self.slots) }?;
        Ok(MissingMemory::new(missing, self.clone(), filled))
    }

    /// Makes pages inaccessible, for good: to the guest, and to all who touch them.
    pub(super) fn forbid(&self, run: PageRun) -> Result<(), MemoryError> {
        let gfn = run.first;
        let page = self.host_page(gfn).ok_or(MemoryError::NoFrame { gfn })?;
        let bytes = usize::try_from(run.count).unwrap_or(usize::MAX).saturating_mul(PAGE_SIZE);
        // SAFETY: the run lies in one mapping of ours, which stays mapped. There is no reference
        // into it, and all access through `self` to pages that were not filled is checked by
        // `bring`.
        if unsafe { libc::mprotect(page.cast(), bytes, libc::PROT_NONE) } != 0 {
            return Err(MemoryError::Unreadable { gfn, source: io::Error::last_os_error() });
        }
        Ok(())
    }

    /// Comes before any access to a page: where pages come as they are touched, waits for this one,
    /// and gives an error where it will not come. Whoever holds a lock that the threads that bring
    /// pages take must not call it; they take none of the engine's and none of the VMM's that is
    /// held over an access to guest memory.
    pub(super) fn bring(&self, gfn: Gfn, page: *mut u8) -> Result<(), MemoryError> {
        let Some(filled) = self.filled.get() else { return Ok(()) };
        if filled.contains(gfn) {
            return Ok(());
        }
        while !filled.has_ended() {
            // SAFETY: the kernel touches one page of a mapping of ours as a read would, and answers
            // with an error where a read would end in a signal.
            if unsafe { libc::madvise(page.cast(), PAGE_SIZE, libc::MADV_POPULATE_READ) } == 0 {
                return Ok(());
            }
            let source = io::Error::last_os_error();
            match source.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                // Kernels before 5.14 don't know the request. The access itself will wait then.
                Some(libc::EINVAL) if !filled.lacks_any() => return Ok(()),
                _ => return Err(MemoryError::Unreadable { gfn, source }),
            }
        }
        if filled.contains(gfn) { Ok(()) } else { Err(MemoryError::Unreadable { gfn, source: io::ErrorKind::NotFound.into() }) }
    }

    /// Comes before a device's access through [`ram`](Self::ram) or
    /// [`device_ram`](Self::device_ram), where memory may be filled as it is touched: waits for the
    /// pages of `bytes` bytes from `address` on, and gives an error where one will not come.
    /// Addresses that are no memory are left to the access itself.
    ///
    /// # Errors
    /// [`MemoryError::Unreadable`].
    pub fn bring_range(&self, address: u64, bytes: u64) -> Result<(), MemoryError> {
        if self.filled.get().is_none() || bytes == 0 {
            return Ok(());
        }
        for gfn in address / PAGE_SIZE_U64..=address.saturating_add(bytes - 1) / PAGE_SIZE_U64 {
            let Some(page) = self.host_page(Gfn(gfn)) else { break };
            self.bring(Gfn(gfn), page)?;
        }
        Ok(())
    }

    /// Copies the page `gfn` into `into`. If the guest runs, the copy may be torn: such a page is
    /// logged as dirty and copied again later.
    ///
    /// # Errors
    /// [`MemoryError::NoFrame`]; [`MemoryError::Unreadable`] where pages come as they are touched,
    /// and this one can't.
    pub fn read_page(&self, gfn: Gfn, into: &mut PageBytes) -> Result<(), MemoryError> {
        let from = self.host_page(gfn).ok_or(MemoryError::NoFrame { gfn })?;
        self.bring(gfn, from)?;
        // SAFETY: `from` is the start of a mapped page that `ram` keeps alive; `into` is a page of
        // its own. The guest may write the source meanwhile, which is outside of what the compiler
        // knows about: no reference to it exists and whatever bytes are read are valid for `u8`.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), PAGE_SIZE) };
        Ok(())
    }

    /// Has the kernel provide the pages of `run` in one go, before each is written: that takes less
    /// time than a fault for each. Only a hint: what can't be had now comes with the first access.
    pub fn provide(&self, run: PageRun) {
        let Some(first) = self.host_pages(run) else { return };
        let Ok(pages) = usize::try_from(run.count) else { return };
        // SAFETY: the pages are of one mapping of ours; the kernel touches them as writes of
        // nothing would.
        let _ = unsafe { libc::madvise(first.cast(), pages * PAGE_SIZE, libc::MADV_POPULATE_WRITE) };
    }

    /// Puts `page` at `gfn` without recording it as a write of the VMM: a restore brings what the
    /// chain already has.
    ///
    /// # Errors
    /// [`MemoryError::NoFrame`].
    pub fn fill_page(&self, gfn: Gfn, page: &PageBytes) -> Result<(), MemoryError> {
        let to = self.host_page(gfn).ok_or(MemoryError::NoFrame { gfn })?;
        // SAFETY: as in `read_page`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), to, PAGE_SIZE) };
        Ok(())
    }

    /// Takes the page `gfn` out of the guest's mapping, its content untouched: the guest's next
    /// access faults, and is logged if it is a write. The kernel may take its neighbours out too.
    ///
    /// The host's protection of the page is changed and changed back, which makes KVM drop whatever
    /// it has mapped there (its MMU notifier). Nobody may write the page through the host's mapping
    /// meanwhile: hence the proof that all is parked.
    ///
    /// # Errors
    /// [`MemoryError::NoFrame`], [`MemoryError::Unmap`].
    pub fn unmap_page(&self, parked: &Parked<'_>, gfn: Gfn) -> Result<(), MemoryError> {
        let _ = parked;
        let page = self.host_page(gfn).ok_or(MemoryError::NoFrame { gfn })?;
        for protection in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
            // SAFETY: `page` is a page of a mapping of ours that stays mapped, and is readable and
            // writable again in the end. In between it is readable, and nobody writes: vCPUs are
            // parked and devices quiet, which `parked` vouches for.
            if unsafe { libc::mprotect(page.cast(), PAGE_SIZE, protection) } != 0 {
                return Err(MemoryError::Unmap { gfn, source: io::Error::last_os_error() });
            }
        }
        Ok(())
    }

    pub(super) fn host_page(&self, gfn: Gfn) -> Option<*mut u8> {
        self.host_pages(PageRun { first: gfn, count: 1 })
    }

    /// Where a run begins in this process; none where it does not lie within one region.
    fn host_pages(&self, run: PageRun) -> Option<*mut u8> {
        let after = self.slots.partition_point(|slot| slot.first <= run.first);
        let index = after.checked_sub(1)?;
        let slot = self.slots.get(index)?;
        let offset = run.first.0 - slot.first.0;
        if offset >= slot.pages || run.count > slot.pages - offset {
            return None;
        }
        let region = match index.checked_sub(self.memslots) {
            None => self.ram.iter().nth(index)?,
            Some(index) => self.device_ram.iter().nth(index)?,
        };
        let bytes = usize::try_from(offset).ok()?.checked_mul(PAGE_SIZE)?;
        debug_assert_eq!(region.len(), slot.pages * PAGE_SIZE_U64);
        Some(region.as_ptr().wrapping_add(bytes))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn two_regions() -> GuestMemory {
        let run = |first, count| PageRun { first: Gfn(first), count };
        GuestMemory::anonymous(&[run(0, 16), run(32, 8)], 4).expect("memory")
    }

    #[test]
    fn writes_through_vm_memory_are_recorded_and_fills_are_not() {
        let memory = two_regions();
        memory.ram().write_slice(&[7; 5000], GuestAddress(32 * PAGE_SIZE_U64 - 100)).expect_err("starts in the hole");
        memory.ram().write_slice(&[7; 5000], GuestAddress(33 * PAGE_SIZE_U64)).expect("write");
        memory.fill_page(Gfn(2), &[9; PAGE_SIZE]).expect("fill");
        let mut written = Vec::new();
        memory.written().take(&Parked::vouch(&mut ()), |gfn| written.push(gfn.0));
        assert_eq!(written, [33, 34]);
        let mut page = [0; PAGE_SIZE];
        memory.read_page(Gfn(2), &mut page).expect("read");
        assert_eq!(page, [9; PAGE_SIZE]);
    }

    #[test]
    fn providing_pages_changes_none() {
        let memory = two_regions();
        memory.fill_page(Gfn(3), &[7; PAGE_SIZE]).expect("a frame");
        // Within a region, over a hole, beyond the end, and as long as there are numbers.
        for (first, count) in [(0, 16), (3, 1), (2, 0), (8, 16), (8, 32), (39, 2), (40, 1), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            memory.provide(PageRun { first: Gfn(first), count });
        }
        let mut page = [1; PAGE_SIZE];
        memory.read_page(Gfn(3), &mut page).expect("a frame");
        assert_eq!(page, [7; PAGE_SIZE]);
        memory.read_page(Gfn(5), &mut page).expect("a frame");
        assert_eq!(page, [0; PAGE_SIZE]);
    }

    #[test]
    fn memory_of_devices_is_in_every_checkpoint_and_out_of_the_guests_reach() {
        let run = |first, count| PageRun { first: Gfn(first), count };
        let memory = GuestMemory::with_devices(&[run(0, 16), run(32, 8)], &[run(64, 4), run(68, 2)], 4).expect("memory");
        assert_eq!((memory.slots().len(), memory.pages(), memory.frames()), (2, 30, 70));
        assert_eq!(memory.runs().map(|run| run.first.0).collect::<Vec<_>>(), [0, 32, 64, 68]);
        let address = GuestAddress(68 * PAGE_SIZE_U64 - 2);
        memory.ram().write_slice(&[7; 4], address).expect_err("not the guest's");
        memory.device_ram().write_slice(&[7; 4], address).expect("write");
        memory.device_ram().write_slice(&[7; 4], GuestAddress(0)).expect_err("the guest's");
        let mut written = Vec::new();
        memory.written().take(&Parked::vouch(&mut ()), |gfn| written.push(gfn.0));
        assert_eq!(written, [67, 68]);
        let mut page = [0; PAGE_SIZE];
        memory.read_page(Gfn(68), &mut page).expect("a frame");
        assert_eq!(page[..3], [7, 7, 0]);
        memory.fill_page(Gfn(64), &[9; PAGE_SIZE]).expect("a frame");
        assert_eq!(memory.device_ram().read_obj::<u8>(GuestAddress(64 * PAGE_SIZE_U64)).expect("a byte"), 9);
        for regions in [[run(32, 8), run(39, 1)], [run(32, 8), run(0, 1)]] {
            let [guest, device] = &regions;
            let refused = GuestMemory::with_devices(std::slice::from_ref(guest), std::slice::from_ref(device), 0);
            assert!(matches!(refused, Err(MemoryError::Layout)));
        }
    }

    #[test]
    fn frames_in_holes_and_beyond_are_errors() {
        let memory = two_regions();
        let mut page = [0; PAGE_SIZE];
        for gfn in [16, 31, 40, u64::MAX] {
            assert!(matches!(memory.read_page(Gfn(gfn), &mut page), Err(MemoryError::NoFrame { gfn: found }) if found.0 == gfn));
        }
        for gfn in [0, 15, 32, 39] {
            memory.read_page(Gfn(gfn), &mut page).expect("a frame");
        }
        assert_eq!((memory.frames(), memory.pages()), (40, 24));
    }
}
