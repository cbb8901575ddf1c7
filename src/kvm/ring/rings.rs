//! The rings of a VM: enabling, mapping, harvest and reset.
#![expect(unsafe_code, reason = "a mapping that the kernel writes")]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn, kvm_enable_cap,
};
use memmap2::{MmapOptions, MmapRaw};

use super::dirty_page::DirtyPage;
use super::entry::{Cursor, DirtyGfn};
use super::order;
use super::reset_thread::{Beside, ResetHelp};
use crate::kvm::VmHandle;
use crate::kvm::kick::SignalsBlocked;
use crate::page::PAGE_SIZE;
use crate::parked::Parked;

/// `_IO(0xAE, 0xc7)`.
const KVM_RESET_DIRTY_RINGS: u32 = 0xaec7;
/// `_IO(0xAE, 0x03)`.
const KVM_CHECK_EXTENSION: u32 = 0xae03;
/// `_IOW(0xAE, 0xa3, struct kvm_enable_cap)`.
const KVM_ENABLE_CAP: u32 = 0x4068_aea3;

/// No memslot: the kernel skips an entry with it (virt/kvm/dirty_ring.c, kvm_reset_dirty_gfn).
const NO_SLOT: u32 = u32::MAX;
const ENTRY_BYTES: u32 = 16;
const _: () = assert!(size_of::<kvm_dirty_gfn>() == ENTRY_BYTES as usize);

/// A reset of fewer pages, or of pages in fewer neighbourhoods, takes less time than waking a
/// thread for it.
const BESIDE_FROM: usize = 128;
const BESIDE_FROM_NEIGHBOURHOODS: usize = 24;

/// What the kernel protects in one go, of pages listed one after the other: as many as a word has
/// bits (virt/kvm/dirty_ring.c, `kvm_dirty_ring_reset`).
const NEIGHBOURHOOD_PAGES: u64 = 64;

/// Whether a reset of these pages, in ascending order, is worth waking a thread for.
fn is_large(pages: &[DirtyPage]) -> bool {
    let apart = |pair: &[DirtyPage]| match pair {
        [one, other] => one.slot != other.slot || other.offset.abs_diff(one.offset) >= NEIGHBOURHOOD_PAGES,
        _ => false,
    };
    pages.len() >= BESIDE_FROM || pages.windows(2).filter(|pair| apart(pair)).count() + 1 >= BESIDE_FROM_NEIGHBOURHOODS
}

/// How many entries a ring has: a power of two, at least [`RingSize::MIN`] (one page).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RingSize(u32);

impl RingSize {
    /// The smallest ring: a page of entries.
    pub const MIN: Self = Self(256);

    /// Checks a number of entries.
    ///
    /// # Errors
    /// [`RingError::Size`] unless it is a power of two of at least 256.
    pub const fn new(entries: u32) -> Result<Self, RingError> {
        if entries.is_power_of_two() && entries >= Self::MIN.0 { Ok(Self(entries)) } else { Err(RingError::Size { entries }) }
    }

    /// The number of entries.
    #[must_use]
    pub const fn entries(self) -> u32 {
        self.0
    }
}

/// What went wrong with a VM's rings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// No ring has this size.
    #[error("a ring of {entries} entries: it must be a power of two of at least 256")]
    Size {
        /// The entries asked for.
        entries: u32,
    },
    /// This KVM has no dirty ring.
    #[error("this KVM has no dirty ring (neither KVM_CAP_DIRTY_LOG_RING_ACQ_REL nor KVM_CAP_DIRTY_LOG_RING)")]
    Unsupported,
    /// The ring is larger than this KVM takes.
    #[error("a ring of {entries} entries: this KVM takes at most {max_entries}")]
    TooLarge {
        /// The entries asked for.
        entries: u32,
        /// The most that the kernel takes.
        max_entries: u32,
    },
    /// The kernel keeps more entries free than the ring has.
    #[error("a ring of {entries} entries: this KVM keeps {reserved} of each ring free, so it must have more")]
    TooSmall {
        /// The entries asked for.
        entries: u32,
        /// The entries that are kept free.
        reserved: u32,
    },
    /// The kernel did not enable the rings.
    #[error("enabling rings of {entries} entries (it fails with EINVAL once a vCPU exists, and when done a second time)")]
    Enable {
        /// The entries asked for.
        entries: u32,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A vCPU's ring could not be mapped.
    #[error("mapping the ring of vCPU {vcpu}")]
    Map {
        /// The vCPU, counted in the order of mapping.
        vcpu: usize,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// More pages are to be protected than there are entries to name them.
    #[error("{pages} pages to protect, and entries for {room}")]
    NoRoom {
        /// The pages.
        pages: usize,
        /// The entries that were listed.
        room: usize,
    },
    /// The reset itself failed.
    #[error("KVM_RESET_DIRTY_RINGS")]
    Reset(#[source] io::Error),
}

/// Tracking may have missed writes: what to do is in docs/kernel.md, "When tracking is lost".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// Every entry of a ring was in use, so the kernel may have overwritten some. Emulated guest
    /// code can run past the soft limit.
    #[error("the ring of vCPU {vcpu} was completely full ({entries} entries)")]
    Overflow {
        /// The vCPU, counted in the order of mapping.
        vcpu: usize,
        /// The entries of its ring.
        entries: u32,
    },
    /// The kernel reset another number of entries than were harvested.
    #[error("the kernel reset {reset} entries where {harvested} were harvested")]
    Reset {
        /// Entries harvested since the last complete reset.
        harvested: u64,
        /// Entries that the kernel says it reset.
        reset: u64,
    },
}

/// The largest ring that the kernel of `vm` takes, and whether by the capability with acquire and
/// release (6.1 and later); `None` without rings.
#[must_use]
pub fn support(vm: &VmHandle) -> Option<(RingSize, bool)> {
    [(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, true), (KVM_CAP_DIRTY_LOG_RING, false)].into_iter().find_map(|(cap, acquire_release)| {
        let bytes = vm.ioctl_value(KVM_CHECK_EXTENSION, cap.into()).ok()?;
        let entries = u32::try_from(bytes).ok()? / ENTRY_BYTES;
        // Round down, should a kernel ever answer something else than a power of two.
        let entries = if entries == 0 { 0 } else { 1 << entries.ilog2() };
        RingSize::new(entries).ok().map(|size| (size, acquire_release))
    })
}

struct Ring {
    map: MmapRaw,
    entries: usize,
    cursor: Cursor,
    /// Entries that the harvest in hand has read.
    read: usize,
}

impl Ring {
    fn entries(&self) -> &[DirtyGfn] {
        // SAFETY: the mapping is `entries * 16` bytes long, page-aligned, and lives as long as
        // `self`; all fields are atomics, which may change under a shared reference; any bits are
        // valid for them.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<DirtyGfn>(), self.entries) }
    }
}

/// All rings of a VM, one for each vCPU.
///
/// The mapping is private to this type: on a reset the kernel acts on whatever slot and offset it
/// finds in a harvested entry.
pub struct VmRings {
    vm: VmHandle,
    size: RingSize,
    rings: Vec<Ring>,
    pages: Vec<DirtyPage>,
    /// For sorting them. Kept for its memory.
    room: Vec<DirtyPage>,
    /// Entries given back that no reset has taken yet.
    unreset: u64,
    beside: Option<Beside>,
    /// A reset was begun and not finished.
    begun: Option<Begun>,
}

/// A reset that was begun.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// What was known to be missed at the harvest.
    lost: Option<Lost>,
    /// Whether another thread may do it.
    ordered: bool,
}

impl VmRings {
    /// Turns the rings on. It is for good, and `KVM_GET_DIRTY_LOG` no longer works then.
    ///
    /// # Errors
    /// [`RingError::Unsupported`], [`RingError::TooLarge`], and [`RingError::Enable`] where the
    /// kernel refused: a vCPU exists already, or rings are on.
    pub fn enable(vm: VmHandle, size: RingSize) -> Result<Self, RingError> {
        let (max, acquire_release) = support(&vm).ok_or(RingError::Unsupported)?;
        let entries = size.entries();
        if size > max {
            return Err(RingError::TooLarge { entries, max_entries: max.entries() });
        }
        let cap = if acquire_release { KVM_CAP_DIRTY_LOG_RING_ACQ_REL } else { KVM_CAP_DIRTY_LOG_RING };
        let mut enable = kvm_enable_cap { cap, ..Default::default() };
        enable.args[0] = u64::from(entries) * u64::from(ENTRY_BYTES);
        // SAFETY: the structure is the request's and has no pointers.
        unsafe { vm.ioctl_with(KVM_ENABLE_CAP, &enable) }.map_err(|source| RingError::Enable { entries, source })?;
        Ok(Self { vm, size, rings: Vec::new(), pages: Vec::new(), room: Vec::new(), unreset: 0, beside: None, begun: None })
    }

    /// Maps the ring of a new vCPU of this VM (a `kvm_ioctls::VcpuFd`). Every vCPU must be mapped
    /// before it runs.
    ///
    /// # Errors
    /// [`RingError::Map`].
    pub fn map(&mut self, vcpu: &impl AsRawFd) -> Result<(), RingError> {
        let entries = self.size.entries() as usize;
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE as u64;
        let map = MmapOptions::new()
            .offset(offset)
            .len(entries * ENTRY_BYTES as usize)
            .map_raw(vcpu.as_raw_fd())
            .map_err(|source| RingError::Map { vcpu: self.rings.len(), source })?;
        self.rings.push(Ring { map, entries, cursor: Cursor::default(), read: 0 });
        for pages in [&mut self.pages, &mut self.room] {
            pages.reserve(self.rings.len() * entries - pages.len());
        }
        Ok(())
    }

    /// Starts a thread for large resets that are [begun](Harvest::begin_reset) and
    /// [finished](Self::finish_reset) in two steps: it does them while the caller does something
    /// else in between. Only worth it where there is a second processor.
    ///
    /// # Errors
    /// The error of starting the thread, or of duplicating the VM's descriptor.
    pub fn start_thread(&mut self) -> io::Result<()> {
        let vm = VmHandle::duplicate(&self.vm)?;
        self.beside = Some(Beside::start(move || reset_ioctl(&vm))?);
        Ok(())
    }

    /// For threads that wait for a cut's end and can help with its reset, where there is a
    /// [thread](Self::start_thread) for resets.
    #[must_use]
    pub fn help(&self) -> Option<ResetHelp> {
        self.beside.as_ref().map(Beside::help)
    }

    /// The size of each ring.
    #[must_use]
    pub const fn size(&self) -> RingSize {
        self.size
    }

    /// The most entries that all rings together can list between two resets.
    #[must_use]
    pub fn bound(&self) -> u64 {
        self.rings.len() as u64 * u64::from(self.size.entries())
    }

    /// Whether the rings list anything that no harvest has taken and given back. Also while a reset
    /// is under way.
    #[must_use]
    pub fn list_more(&self) -> bool {
        self.rings.iter().any(|ring| ring.cursor.lists_any(ring.entries()))
    }

    /// How many vCPUs have a ring.
    #[must_use]
    pub const fn vcpus(&self) -> usize {
        self.rings.len()
    }

    /// How many entries the rings list that no harvest has taken and given back, while the kernel
    /// may list more. Takes a few reads a ring.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.rings.iter().map(|ring| ring.cursor.listed(ring.entries()) as u64).sum()
    }

    /// Reads what the rings list. No allocation. A harvest that is dropped changes nothing: the
    /// next one lists its pages again.
    pub fn harvest(&mut self) -> Harvest<'_> {
        self.harvest_some(usize::MAX)
    }

    /// As [`harvest`](Self::harvest), but up to `most` entries, the oldest of each ring: the kernel
    /// holds locks while it resets, which a vCPU may wait for.
    pub fn harvest_some(&mut self, most: usize) -> Harvest<'_> {
        let each = most.div_ceil(self.rings.len().max(1));
        let mut left = most;
        // A reset that somebody began and forgot; where it failed, nothing is known.
        let forgotten = Lost::Reset { harvested: self.unreset, reset: 0 };
        let mut lost = self.finish_reset().map_or(Some(forgotten), |reset| reset.lost);
        self.pages.clear();
        for (vcpu, ring) in self.rings.iter_mut().enumerate() {
            ring.read =
                ring.cursor.read(ring.entries(), each.min(left), |slot, offset| self.pages.push(DirtyPage { slot, offset }));
            left -= ring.read;
            if ring.cursor.is_full(ring.entries(), 0) {
                lost.get_or_insert(Lost::Overflow { vcpu, entries: self.size.entries() });
            }
        }
        // The kernel protects pages that are neighbours and listed one after the other in one go:
        // up to twice as fast (measured).
        order::sort(&mut self.pages, &mut self.room);
        Harvest { rings: self, lost }
    }

    /// Gives the harvest in hand back to the kernel, as `pages` and then as entries that it skips.
    /// Returns whether it may have overwritten some meanwhile.
    fn give_back(&mut self, mut pages: impl Iterator<Item = DirtyPage>) -> Option<Lost> {
        let mut lost = None;
        for (vcpu, ring) in self.rings.iter_mut().enumerate() {
            let (mut cursor, read) = (std::mem::take(&mut ring.cursor), std::mem::take(&mut ring.read));
            cursor.give_back(ring.entries(), read, || pages.next().map_or((NO_SLOT, 0), |page| (page.slot, page.offset)));
            if read < ring.entries && cursor.is_full(ring.entries(), read) {
                lost.get_or_insert(Lost::Overflow { vcpu, entries: self.size.entries() });
            }
            ring.cursor = cursor;
            self.unreset += read as u64;
        }
        lost
    }

    /// Finishes the reset that was [begun](Harvest::begin_reset): does it, or waits for the thread
    /// that does. Nothing happens where none was.
    ///
    /// # Errors
    /// [`RingError::Reset`] where the ioctl failed: tracking is lost.
    pub fn finish_reset(&mut self) -> Result<Reset<'_>, RingError> {
        let Some(Begun { lost, ordered }) = self.begun.take() else { return Ok(Reset { pages: &self.pages, lost: None }) };
        let outcome = self.beside.as_ref().filter(|_| ordered).and_then(Beside::take);
        let outcome = outcome.unwrap_or_else(|| {
            if self.unreset == 0 {
                return Ok(0); // nothing was listed: the kernel would find nothing to do
            }
            let _blocked = SignalsBlocked::new();
            reset_ioctl(&self.vm)
        });
        self.reset_done(lost, outcome)
    }

    fn reset_done(&mut self, lost: Option<Lost>, outcome: io::Result<u64>) -> Result<Reset<'_>, RingError> {
        let reset = outcome.map_err(RingError::Reset)?;
        let harvested = self.unreset;
        // What a short reset left in the rings as harvested is taken back by the next one.
        self.unreset = harvested.saturating_sub(reset);
        let lost = if reset == harvested { lost } else { Some(Lost::Reset { harvested, reset }) };
        Ok(Reset { pages: &self.pages, lost })
    }
}

/// The ioctl. Callers block signals around it.
fn reset_ioctl(vm: &VmHandle) -> io::Result<u64> {
    vm.ioctl_value(KVM_RESET_DIRTY_RINGS, 0).map(|count| u64::try_from(count).unwrap_or(0))
}

impl std::fmt::Debug for VmRings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmRings")
            .field("size", &self.size)
            .field("rings", &self.rings.len())
            .field("unreset", &self.unreset)
            .finish()
    }
}

/// Pages that the rings list, and that are not protected again before the reset.
#[must_use = "the guest can't go on with full rings: reset"]
#[derive(Debug)]
pub struct Harvest<'r> {
    rings: &'r mut VmRings,
    lost: Option<Lost>,
}

impl<'r> Harvest<'r> {
    /// The pages, in ascending order; a page can be there more than once. Before the reset they may
    /// be read only while no vCPU runs.
    #[must_use]
    pub fn while_parked(&self, parked: &Parked<'_>) -> &[DirtyPage] {
        let _ = parked;
        &self.rings.pages
    }

    /// As [`while_parked`](Self::while_parked), while vCPUs may run: for choosing which of the
    /// pages are to be protected. What they hold must not be read before the reset.
    #[must_use]
    pub fn names(&self) -> &[DirtyPage] {
        &self.rings.pages
    }

    /// What is known by now of writes that were missed.
    #[must_use]
    pub const fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// Protects the pages again, with signals blocked, and compares the kernel's count with the
    /// harvest's.
    ///
    /// Call it on a thread that uses no io_uring: its task work ends the reset early as a signal
    /// would (docs/kernel.md).
    ///
    /// # Errors
    /// [`RingError::Reset`] where the ioctl failed: tracking is lost.
    pub fn reset(mut self) -> Result<Reset<'r>, RingError> {
        self.give_back_all();
        self.finish()
    }

    /// As [`reset`](Self::reset), but protects `pages` instead of those listed, and leaves the
    /// others writable: a write to them is not listed until they are protected again, by some later
    /// reset. Pages that were never listed can be protected so.
    ///
    /// That the kernel protects what an entry says at the reset, and skips one that names no
    /// memslot, is what kernels do and none promises: check it on the kernel at hand.
    ///
    /// # Errors
    /// [`RingError::Reset`], and [`RingError::NoRoom`] where `pages` are more than the entries
    /// listed: nothing was done.
    pub fn reset_instead(mut self, pages: &[DirtyPage]) -> Result<Reset<'r>, RingError> {
        self.give_back_instead(pages)?;
        self.finish()
    }

    /// The first half of [`reset`](Self::reset), or of [`reset_instead`](Self::reset_instead) with
    /// `pages`. [`VmRings::finish_reset`] is the second, and has to come before any vCPU runs. In
    /// between, a large reset goes on beside the caller where there is a thread for it
    /// ([`VmRings::start_thread`]).
    ///
    /// # Errors
    /// [`RingError::NoRoom`] where `pages` are more than the entries listed: nothing was done.
    pub fn begin_reset(mut self, instead: Option<&[DirtyPage]>, parked: &Parked<'_>) -> Result<(), RingError> {
        let _ = parked;
        let is_beside = self.rings.beside.is_some() && is_large(instead.unwrap_or(&self.rings.pages));
        match instead {
            Some(pages) => self.give_back_instead(pages)?,
            None => self.give_back_all(),
        }
        let beside = self.rings.beside.as_mut().filter(|_| is_beside);
        let ordered = beside.is_some_and(Beside::order);
        self.rings.begun = Some(Begun { lost: self.lost, ordered });
        Ok(())
    }

    /// [`reset`](Self::reset) as it must not be done.
    #[cfg(test)]
    pub(super) fn reset_with_signals(mut self) -> Result<Reset<'r>, RingError> {
        self.give_back_all();
        let outcome = reset_ioctl(&self.rings.vm);
        self.rings.reset_done(self.lost, outcome)
    }

    fn give_back_all(&mut self) {
        let pages = std::mem::take(&mut self.rings.pages);
        let lost = self.rings.give_back(pages.iter().copied());
        self.rings.pages = pages;
        self.lost = self.lost.or(lost);
    }

    fn give_back_instead(&mut self, pages: &[DirtyPage]) -> Result<(), RingError> {
        let room = self.rings.pages.len();
        if pages.len() > room {
            return Err(RingError::NoRoom { pages: pages.len(), room });
        }
        let lost = self.rings.give_back(pages.iter().copied());
        self.lost = self.lost.or(lost);
        Ok(())
    }

    fn finish(self) -> Result<Reset<'r>, RingError> {
        self.rings.begun = Some(Begun { lost: self.lost, ordered: false });
        self.rings.finish_reset()
    }
}

/// The outcome of a reset: the pages are protected again and may be read although vCPUs run.
#[must_use = "`lost` says whether writes may have been missed"]
#[derive(Debug)]
pub struct Reset<'r> {
    /// The pages that the harvest took.
    pub pages: &'r [DirtyPage],
    /// Whether writes may have been missed.
    pub lost: Option<Lost>,
}
