//! A VM's file descriptor, held beside the VMM's own.
#![expect(unsafe_code, reason = "borrows the raw descriptor of a kvm-ioctls object and calls ioctl")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Another descriptor of what an object of `kvm-ioctls` has one of.
///
/// # Errors
/// The error of `fcntl(F_DUPFD_CLOEXEC)`: the process has no descriptor left.
pub(crate) fn duplicate(object: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: `object` is borrowed for the whole call and owns its descriptor, so it stays open
    // meanwhile.
    let borrowed = unsafe { BorrowedFd::borrow_raw(object.as_raw_fd()) };
    borrowed.try_clone_to_owned()
}

/// A duplicate of a VM's file descriptor, for the ioctls that `kvm-ioctls` does not have.
///
/// It keeps the VM alive until it is dropped. Cloning duplicates again.
#[derive(Debug)]
pub struct VmHandle {
    fd: OwnedFd,
}

impl AsRawFd for VmHandle {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl VmHandle {
    /// Duplicates the descriptor of `vm` (a `kvm_ioctls::VmFd`, or anything whose descriptor is a
    /// KVM VM).
    ///
    /// # Errors
    /// The error of `fcntl(F_DUPFD_CLOEXEC)`: the process has no descriptor left.
    pub fn duplicate(vm: &impl AsRawFd) -> io::Result<Self> {
        Ok(Self { fd: duplicate(vm)? })
    }

    /// An ioctl whose argument is a number.
    ///
    /// # Errors
    /// The kernel's errno.
    pub(super) fn ioctl_value(&self, request: u32, value: libc::c_ulong) -> io::Result<libc::c_int> {
        // SAFETY: the requests passed by this module take a number, so the kernel follows no
        // pointer of ours.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::c_ulong::from(request), value) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    /// An ioctl whose argument is a structure.
    ///
    /// # Safety
    /// `T` is the structure that `request` names, and what its pointers point at is valid for what
    /// the kernel does with it: read or write, at that size, during the call (and, for memslots,
    /// for as long as the slot exists).
    ///
    /// # Errors
    /// The kernel's errno.
    pub(super) unsafe fn ioctl_with<T>(&self, request: u32, argument: &T) -> io::Result<libc::c_int> {
        // SAFETY: `argument` is valid for reads of `T`; the rest is the caller's promise.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::c_ulong::from(request), std::ptr::from_ref(argument)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }
}
