//! userfaultfd: memory whose missing pages are put in place by this process when somebody touches
//! them, KVM included.
//!
//! KVM touches guest memory from inside the kernel, so a descriptor that is told of faults in user
//! mode only (`UFFD_USER_MODE_ONLY`, which every user may make) does not do: such a fault fails
//! there instead of waiting. [`Userfaultfd::open`] asks for one that is told of all faults, of
//! `/dev/userfaultfd` first and of the system call then.
#![expect(unsafe_code, reason = "system calls whose arguments are addresses, and descriptors that they return")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::memslot::Memslot;
use crate::page::{Gfn, PAGE_SIZE, PAGE_SIZE_U64, PageRun};

/// The device that gives descriptors to whoever may open it (6.1 and later).
pub const DEVICE: &str = "/dev/userfaultfd";

const USERFAULTFD_IOC_NEW: u32 = 0xaa00;
const UFFDIO_API: u32 = 0xc018_aa3f;
const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u32 = 0x8010_aa01;
const UFFDIO_WAKE: u32 = 0x8010_aa02;
const UFFDIO_COPY: u32 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u32 = 0xc020_aa04;

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1;

/// `UFFDIO_WAKE`, `UFFDIO_COPY` and `UFFDIO_ZEROPAGE`, as bits of what a registration answers.
const RANGE_IOCTLS: u64 = 1 << 2 | 1 << 3 | 1 << 4;

/// The kernel answers `EAGAIN` without any progress only while the process changes its mappings in
/// ways that this module does not ask to be told of.
const NO_PROGRESS_MOST: u32 = 10_000;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

/// `struct uffd_msg` with the fields of a page fault.
#[repr(C)]
#[derive(Default)]
struct UffdMsg {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    rest: u64,
}

const _: () = assert!(
    size_of::<UffdioApi>() == 0x18
        && size_of::<UffdioRegister>() == 0x20
        && size_of::<UffdioRange>() == 0x10
        && size_of::<UffdioCopy>() == 0x28
        && size_of::<UffdioZeropage>() == 0x20
        && size_of::<UffdMsg>() == 32
);

/// Why missing pages can't be served. [`hint`](Self::hint) says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserfaultError {
    /// The kernel was built without it.
    #[error("this kernel has no userfaultfd")]
    Absent,
    /// This user may not be told of faults that happen inside the kernel, as KVM's do.
    #[error("no permission for a userfaultfd that serves faults of KVM")]
    Denied {
        /// Whether there is a `/dev/userfaultfd`.
        device: bool,
    },
    /// Another errno.
    #[error("{call}")]
    Call {
        /// The system call or ioctl.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel serves this memory, but without an operation that is needed.
    #[error("userfaultfd offers operations {found:#x} for guest memory, without one of {expected:#x}")]
    Operations {
        /// Those needed, as bits.
        expected: u64,
        /// Those there are.
        found: u64,
    },
}

impl UserfaultError {
    /// What to do about it, in a sentence without a final stop.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Absent => "restore without `--lazy`, or use a kernel with CONFIG_USERFAULTFD",
            Self::Denied { device: true } => {
                "run as root, or get access to /dev/userfaultfd, or CAP_SYS_PTRACE, or set the sysctl vm.unprivileged_userfaultfd to 1"
            }
            Self::Denied { device: false } => {
                "run as root, or get CAP_SYS_PTRACE, or set the sysctl vm.unprivileged_userfaultfd to 1"
            }
            Self::Call { .. } | Self::Operations { .. } => "restore without `--lazy`",
        }
    }
}

fn call(call: &'static str) -> impl FnOnce(io::Error) -> UserfaultError {
    move |source| UserfaultError::Call { call, source }
}

/// Whether a descriptor can be had that is told of user-mode faults only: what every user may have,
/// from 5.11 on.
#[must_use]
pub fn serves_user_mode() -> bool {
    by_system_call(UFFD_USER_MODE_ONLY).is_ok()
}

/// A descriptor that is told of missing pages, user space's and the kernel's. Nothing is registered
/// with it yet.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

impl Userfaultfd {
    /// Makes one.
    ///
    /// # Errors
    /// [`UserfaultError::Absent`], [`UserfaultError::Denied`], [`UserfaultError::Call`].
    pub fn open() -> Result<Self, UserfaultError> {
        let by_device = by_device();
        let fd = match by_device {
            Ok(fd) => fd,
            Err(device_error) => by_system_call(0).map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => UserfaultError::Denied { device: Path::new(DEVICE).exists() },
                Some(libc::ENOSYS) if device_error.raw_os_error() == Some(libc::ENOENT) => UserfaultError::Absent,
                _ => UserfaultError::Call { call: "userfaultfd", source: error },
            })?,
        };
        let mut api = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
        // SAFETY: the structure is the request's.
        unsafe { ioctl(fd.as_fd(), UFFDIO_API, &mut api) }.map_err(call("UFFDIO_API"))?;
        Ok(Self { fd })
    }

    /// From now on whoever touches a missing page of `slots` waits until it was put in place. Pages
    /// that are there stay as they are.
    ///
    /// # Safety
    /// The host memory of the slots, in ascending order of frames, is private anonymous memory,
    /// readable and writable, which stays mapped as long as what is returned exists, and no Rust
    /// reference into it is held.
    ///
    /// # Errors
    /// [`UserfaultError::Call`], [`UserfaultError::Operations`].
    pub unsafe fn register(self, slots: &[Memslot]) -> Result<MissingPages, UserfaultError> {
        for slot in slots {
            let range = UffdioRange { start: slot.host_address, len: slot.pages * PAGE_SIZE_U64 };
            let mut register = UffdioRegister { range, mode: UFFDIO_REGISTER_MODE_MISSING, ioctls: 0 };
            // SAFETY: the structure is the request's. What the range may be used for is the
            // caller's promise.
            unsafe { ioctl(self.fd.as_fd(), UFFDIO_REGISTER, &mut register) }.map_err(call("UFFDIO_REGISTER"))?;
            if register.ioctls & RANGE_IOCTLS != RANGE_IOCTLS {
                return Err(UserfaultError::Operations { expected: RANGE_IOCTLS, found: register.ioctls });
            }
        }
        Ok(MissingPages { fd: self.fd, slots: slots.into() })
    }
}

fn by_device() -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the request takes a number.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), libc::c_ulong::from(USERFAULTFD_IOC_NEW), flags) };
    owned(fd.into())
}

fn by_system_call(more: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes a number.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | more) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made it for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `T` is the structure that `request` names, and what its addresses name may be used as the
/// request does.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: the pointer is valid for reads and writes of `T`; the rest is the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(request), std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Somebody waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The page.
    pub gfn: Gfn,
    /// It is to be written.
    pub write: bool,
}

/// Guest memory whose missing pages are waited for. Dropping it ends that: pages that are missing
/// then are zeros.
#[derive(Debug)]
pub struct MissingPages {
    fd: OwnedFd,
    slots: Box<[Memslot]>,
}

impl AsFd for MissingPages {
    /// Readable when there is a fault to be had.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl MissingPages {
    /// The next fault that no thread has taken yet, or none. Does not wait.
    ///
    /// # Errors
    /// The errno of `read`.
    pub fn take_fault(&self) -> io::Result<Option<Fault>> {
        loop {
            let mut message = UffdMsg::default();
            let size = size_of::<UffdMsg>();
            // SAFETY: `message` has room for `size` bytes, and any bytes are valid for its fields.
            let read = unsafe { libc::read(self.fd.as_raw_fd(), std::ptr::from_mut(&mut message).cast(), size) };
            if read < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                }
            }
            if usize::try_from(read) != Ok(size) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if message.event != UFFD_EVENT_PAGEFAULT {
                continue;
            }
            let Some(gfn) = self.frame(message.address) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a fault outside of guest memory"));
            };
            return Ok(Some(Fault { gfn, write: message.flags & UFFD_PAGEFAULT_FLAG_WRITE != 0 }));
        }
    }

    /// Puts `pages`, whole pages from `first` on, in place where pages are missing, leaves those
    /// that are there as they are, and wakes whoever waits for any of them. Returns how many were
    /// put.
    ///
    /// # Errors
    /// The errno of `UFFDIO_COPY`: `ENOENT` for pages that are not registered any more, `ENOMEM`,
    /// `ESRCH`. `EINVAL` for what is not memory.
    pub fn copy(&self, first: Gfn, pages: &[u8]) -> io::Result<u64> {
        let run = PageRun { first, count: (pages.len() / PAGE_SIZE) as u64 };
        self.put(run, |fd, address, done| {
            let rest = pages.get(usize::try_from(done).unwrap_or(usize::MAX) * PAGE_SIZE..).unwrap_or_default();
            let mut copy =
                UffdioCopy { dst: address, src: rest.as_ptr() as u64, len: (run.count - done) * PAGE_SIZE_U64, mode: 0, copy: 0 };
            // SAFETY: the structure is the request's. The source is `rest`, which is at least that
            // long; the kernel writes only pages of the registered memory that are missing, to
            // which by the promise of `register` there is no reference.
            let result = unsafe { ioctl(fd, UFFDIO_COPY, &mut copy) };
            (copy.copy, result)
        })
    }

    /// As [`copy`](Self::copy), with pages of zeros.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    pub fn zero(&self, run: PageRun) -> io::Result<u64> {
        self.put(run, |fd, address, done| {
            let range = UffdioRange { start: address, len: (run.count - done) * PAGE_SIZE_U64 };
            let mut zero = UffdioZeropage { range, mode: 0, zeropage: 0 };
            // SAFETY: the structure is the request's; as in `copy`.
            let result = unsafe { ioctl(fd, UFFDIO_ZEROPAGE, &mut zero) };
            (zero.zeropage, result)
        })
    }

    /// Calls `put` with the host address of what is left, and how many pages are done, until all
    /// are there. It returns the bytes put, or a negative errno, and the call's result.
    fn put(&self, run: PageRun, put: impl Fn(BorrowedFd<'_>, u64, u64) -> (i64, io::Result<()>)) -> io::Result<u64> {
        let address = self.host_address(run).ok_or(io::ErrorKind::InvalidInput)?;
        let (mut done, mut placed, mut stuck) = (0, 0, 0);
        while done < run.count {
            let at = address + done * PAGE_SIZE_U64;
            let (bytes, result) = put(self.fd.as_fd(), at, done);
            let pages = u64::try_from(bytes).unwrap_or(0) / PAGE_SIZE_U64;
            match result {
                Ok(()) => return Ok(placed + (run.count - done)),
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    (done, placed) = (done + pages, placed + pages);
                    stuck = if pages > 0 { 0 } else { stuck + 1 };
                    if stuck > NO_PROGRESS_MOST {
                        return Err(error);
                    }
                    if stuck > 0 {
                        std::thread::yield_now();
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    // Whoever put it there has woken those who waited by then; who came in between
                    // is woken here.
                    self.wake(UffdioRange { start: at, len: PAGE_SIZE_U64 })?;
                    done += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(placed)
    }

    fn wake(&self, mut range: UffdioRange) -> io::Result<()> {
        // SAFETY: the structure is the request's; waking changes no memory.
        unsafe { ioctl(self.fd.as_fd(), UFFDIO_WAKE, &mut range) }
    }

    /// Ends the service of one page: who waits for it is woken, and touches it again.
    ///
    /// # Errors
    /// The errno of `UFFDIO_UNREGISTER`. `EINVAL` for what is not memory.
    pub fn give_up(&self, gfn: Gfn) -> io::Result<()> {
        let address = self.host_address(PageRun { first: gfn, count: 1 }).ok_or(io::ErrorKind::InvalidInput)?;
        self.unregister(UffdioRange { start: address, len: PAGE_SIZE_U64 })
    }

    /// Ends the service of all memory: pages that are missing are zeros from now on, also for those
    /// who wait.
    ///
    /// # Errors
    /// The errno of `UFFDIO_UNREGISTER`.
    pub fn end(&self) -> io::Result<()> {
        let mut ranges = self.slots.iter().map(|slot| UffdioRange { start: slot.host_address, len: slot.pages * PAGE_SIZE_U64 });
        ranges.try_for_each(|range| self.unregister(range))
    }

    /// The kernel wakes who waits *before* it takes memory out of its service. Where faults are
    /// handled under a lock of the mapping alone (6.7 and later, commit 29a22b9e08d7), a thread can
    /// begin to wait in between, and nobody would wake it: so all are woken again. Who waits by now
    /// has begun before the mapping was changed, and nobody begins any more.
    fn unregister(&self, mut range: UffdioRange) -> io::Result<()> {
        // SAFETY: the structure is the request's; no memory changes by it.
        unsafe { ioctl(self.fd.as_fd(), UFFDIO_UNREGISTER, &mut range) }?;
        self.wake(range)
    }

    /// The host address of a run that lies in one slot.
    fn host_address(&self, run: PageRun) -> Option<u64> {
        let slot = self.slots.get(self.slots.partition_point(|slot| slot.first <= run.first).checked_sub(1)?)?;
        let offset = run.first.0 - slot.first.0;
        let fits = run.count > 0 && run.count <= slot.pages.checked_sub(offset)?;
        fits.then(|| slot.host_address + offset * PAGE_SIZE_U64)
    }

    fn frame(&self, address: u64) -> Option<Gfn> {
        let offset = |slot: &Memslot| address.checked_sub(slot.host_address).map(|bytes| bytes / PAGE_SIZE_U64);
        self.slots.iter().find_map(|slot| slot.frame(offset(slot)?))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::thread;

    use memmap2::MmapMut;

    use super::*;

    /// Two slots with a hole between them, over one mapping.
    fn slots(map: &MmapMut) -> [Memslot; 2] {
        let slot = |id, first, at: usize, pages| Memslot {
            id,
            first: Gfn(first),
            pages,
            host_address: map.as_ptr() as u64 + (at * PAGE_SIZE) as u64,
        };
        [slot(0, 0, 0, 8), slot(1, 100, 8, 8)]
    }

    fn byte(map: &MmapMut, page: usize) -> u8 {
        // SAFETY: within the mapping; volatile, for another thread puts the page there.
        unsafe { map.as_ptr().wrapping_add(page * PAGE_SIZE + 7).read_volatile() }
    }

    fn wait(missing: &MissingPages) -> Fault {
        loop {
            if let Some(fault) = missing.take_fault().unwrap() {
                return fault;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn missing_pages_are_waited_for_and_put_once() {
        let uffd = match Userfaultfd::open() {
            Ok(uffd) => uffd,
            Err(error @ (UserfaultError::Denied { .. } | UserfaultError::Absent)) => {
                return println!("not here: {error}; {}", error.hint());
            }
            Err(error) => panic!("{error}"),
        };
        let map = MmapMut::map_anon(16 * PAGE_SIZE).unwrap();
        // SAFETY: the mapping outlives what is returned, and is only read below, page by page.
        let missing = unsafe { uffd.register(&slots(&map)) }.unwrap();
        assert_eq!(missing.take_fault().unwrap(), None);
        thread::scope(|scope| {
            let reader = scope.spawn(|| byte(&map, 9));
            assert_eq!(wait(&missing), Fault { gfn: Gfn(101), write: false });
            let pages = [[1; PAGE_SIZE], [2; PAGE_SIZE], [3; PAGE_SIZE]].concat();
            assert_eq!(missing.copy(Gfn(100), &pages).unwrap(), 3);
            assert_eq!(reader.join().unwrap(), 2);
            // What is there stays; what surrounds it is put.
            assert_eq!(missing.copy(Gfn(101), &[9; PAGE_SIZE]).unwrap(), 0);
            assert_eq!(missing.zero(PageRun { first: Gfn(101), count: 5 }).unwrap(), 3);
            assert_eq!(missing.copy(Gfn(100), &[8; 8 * PAGE_SIZE]).unwrap(), 2);
            assert_eq!((8..16).map(|page| byte(&map, page)).collect::<Vec<_>>(), [1, 2, 3, 0, 0, 0, 8, 8]);
        });
        for (first, count) in [(7, 2), (8, 1), (99, 2), (107, 2), (u64::MAX, 1), (100, 0), (100, u64::MAX)] {
            assert!(missing.zero(PageRun { first: Gfn(first), count }).is_err(), "{first} {count}");
        }
        thread::scope(|scope| {
            let reader = scope.spawn(|| byte(&map, 0));
            assert_eq!(wait(&missing).gfn, Gfn(0));
            missing.end().unwrap();
            assert_eq!(reader.join().unwrap(), 0);
        });
        assert_eq!(missing.copy(Gfn(1), &[1; PAGE_SIZE]).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
}
