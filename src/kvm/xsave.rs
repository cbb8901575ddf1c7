//! Extended processor state (x87, SSE, AVX, AMX ...) of any size: `KVM_GET_XSAVE`, `KVM_GET_XSAVE2`
//! and `KVM_SET_XSAVE`, safe.
//!
//! The kernel reads and writes as many bytes as the vCPU's state has, whatever the buffer has: that
//! is why kvm-ioctls marks these calls unsafe. [`XsaveSize`] is the proof that makes them safe.
#![expect(unsafe_code, reason = "three ioctls whose buffer's size the type system can't state")]

use std::os::fd::AsRawFd;

use kvm_ioctls::{Cap, VcpuFd, VmFd};

/// Bytes of the state on hosts and kernels without `KVM_CAP_XSAVE2`, and the smallest size with it.
pub const XSAVE_BYTES_MIN: usize = 4096;

/// The largest size that is accepted. With all of AMX the state has about 11 KiB.
pub const XSAVE_BYTES_MAX: usize = 64 << 10;

/// `_IOR(0xAE, 0xa4, struct kvm_xsave)`
const KVM_GET_XSAVE: libc::c_ulong = 0x9000_aea4;
/// `_IOW(0xAE, 0xa5, struct kvm_xsave)`
const KVM_SET_XSAVE: libc::c_ulong = 0x5000_aea5;
/// `_IOR(0xAE, 0xcf, struct kvm_xsave)`
const KVM_GET_XSAVE2: libc::c_ulong = 0x9000_aecf;

/// Why extended state could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XsaveError {
    /// The kernel names a size that this library doesn't take.
    #[error(
        "the kernel's extended state has {found} bytes, which is not a multiple of 4 from {XSAVE_BYTES_MIN} to {XSAVE_BYTES_MAX}"
    )]
    Kernel {
        /// What `KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2)` said.
        found: i32,
    },
    /// The buffer has another size than the state.
    #[error("extended state of {found} bytes where this process's vCPUs have {expected}")]
    Size {
        /// Bytes of the vCPU's state.
        expected: usize,
        /// Bytes of the buffer.
        found: usize,
    },
    /// The kernel refused.
    #[error("{ioctl} failed")]
    Ioctl {
        /// Its name.
        ioctl: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// How many bytes the extended state of this process's vCPUs has.
///
/// A value of this type exists only where a vCPU does, and from the first vCPU on the size is final
/// for the process: the kernel then locks the set of features that guests may have
/// (`arch/x86/kernel/fpu/core.c`, `fpu_init_guest_permissions`), and `KVM_CAP_XSAVE2` states the
/// size of all of that set (`arch/x86/kvm/x86.c`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XsaveSize {
    bytes: usize,
    /// Whether the kernel has `KVM_GET_XSAVE2` (5.17 and later).
    two: bool,
}

impl XsaveSize {
    /// Asks the kernel. `vcpu` is the evidence that a vCPU exists; which one does not matter.
    ///
    /// # Errors
    /// [`XsaveError::Kernel`] where the size is out of range.
    pub fn probe(vm: &VmFd, _vcpu: &VcpuFd) -> Result<Self, XsaveError> {
        let found = vm.check_extension_int(Cap::Xsave2);
        if found <= 0 {
            return Ok(Self { bytes: XSAVE_BYTES_MIN, two: false });
        }
        match usize::try_from(found) {
            Ok(bytes) if Self::is_valid(bytes) => Ok(Self { bytes, two: true }),
            _ => Err(XsaveError::Kernel { found }),
        }
    }

    /// Whether extended state may have `bytes` bytes on any host: a multiple of 4 within the
    /// limits.
    #[must_use]
    pub const fn is_valid(bytes: usize) -> bool {
        bytes >= XSAVE_BYTES_MIN && bytes <= XSAVE_BYTES_MAX && bytes.is_multiple_of(4)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    const fn check(self, found: usize) -> Result<(), XsaveError> {
        if found == self.bytes { Ok(()) } else { Err(XsaveError::Size { expected: self.bytes, found }) }
    }
}

/// Reads the extended state of `vcpu` into `buffer`, which has [`XsaveSize::bytes`] bytes.
///
/// # Errors
/// [`XsaveError::Size`], and [`XsaveError::Ioctl`] where the kernel refuses.
pub fn get(vcpu: &VcpuFd, size: XsaveSize, buffer: &mut [u8]) -> Result<(), XsaveError> {
    size.check(buffer.len())?;
    let (request, ioctl) = if size.two { (KVM_GET_XSAVE2, "KVM_GET_XSAVE2") } else { (KVM_GET_XSAVE, "KVM_GET_XSAVE") };
    // SAFETY: KVM_GET_XSAVE writes 4096 bytes and KVM_GET_XSAVE2 at most `size.bytes` (see
    // `XsaveSize`); the buffer, borrowed for the call, has exactly that many. The file descriptor
    // is a vCPU's.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), request, buffer.as_mut_ptr()) };
    finish(result, ioctl)
}

/// Writes the extended state of `vcpu`: `bytes` has [`XsaveSize::bytes`] bytes. The kernel checks
/// what they say.
///
/// # Errors
/// [`XsaveError::Size`], and [`XsaveError::Ioctl`] where the kernel refuses.
pub fn set(vcpu: &VcpuFd, size: XsaveSize, bytes: &[u8]) -> Result<(), XsaveError> {
    size.check(bytes.len())?;
    // SAFETY: KVM_SET_XSAVE reads at most `size.bytes` (see `XsaveSize`); the slice, borrowed for
    // the call, has exactly that many. The file descriptor is a vCPU's.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_XSAVE, bytes.as_ptr()) };
    finish(result, "KVM_SET_XSAVE")
}

fn finish(result: libc::c_int, ioctl: &'static str) -> Result<(), XsaveError> {
    if result == 0 { Ok(()) } else { Err(XsaveError::Ioctl { ioctl, source: std::io::Error::last_os_error() }) }
}
