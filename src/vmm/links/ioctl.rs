//! The kernel's requests on taps and on interfaces.
#![expect(unsafe_code, reason = "requests whose arguments are addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

/// The name of an interface as the kernel takes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct InterfaceName([libc::c_char; libc::IFNAMSIZ]);

impl InterfaceName {
    /// Of `name`, which has at most 15 bytes: what is behind them is cut off.
    pub(super) fn new(name: &str) -> Self {
        let mut bytes = [0; libc::IFNAMSIZ];
        let places = bytes.iter_mut().take(libc::IFNAMSIZ - 1);
        places.zip(name.bytes()).for_each(|(place, byte)| *place = byte.cast_signed());
        Self(bytes)
    }

    /// A request about the interface, with `flags`.
    fn with(self, flags: libc::c_short) -> libc::ifreq {
        libc::ifreq { ifr_name: self.0, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } }
    }
}

/// Flags of an interface are 16 bits.
const fn short(flags: libc::c_int) -> libc::c_short {
    let [low, high, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([low, high])
}

/// Gives the tap `name` to the open `/dev/net/tun`, with these flags.
pub(super) fn set_interface(tun: BorrowedFd<'_>, name: InterfaceName, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the request takes an `ifreq`, with a name and flags.
    unsafe { ioctl(tun, libc::TUNSETIFF, &mut name.with(short(flags))) }
}

/// How many bytes a header in front of each frame has.
pub(super) fn set_header_bytes(tun: BorrowedFd<'_>, mut bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the request takes an `int`.
    unsafe { ioctl(tun, libc::TUNSETVNETHDRSZ, &mut bytes) }
}

/// What frames that are read may leave to their reader: a set of `TUN_F_...`.
pub(super) fn set_offload(tun: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the request takes a number.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The most bytes of a frame behind its Ethernet header. None where virtio has no number for it.
pub(super) fn mtu(name: InterfaceName) -> io::Result<Option<u16>> {
    let socket = UnixDatagram::unbound()?;
    let mut request = name.with(0);
    // SAFETY: the request takes an `ifreq` with a name.
    unsafe { ioctl(socket.as_fd(), libc::SIOCGIFMTU, &mut request) }?;
    // SAFETY: the kernel has just put the MTU there.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).ok())
}

/// Brings the interface up.
pub(super) fn bring_up(name: InterfaceName) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    let mut request = name.with(0);
    // SAFETY: the request takes an `ifreq` with a name.
    unsafe { ioctl(socket.as_fd(), libc::SIOCGIFFLAGS, &mut request) }?;
    // SAFETY: the kernel has just put the flags there.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let mut request = name.with(flags | short(libc::IFF_UP));
    // SAFETY: the request takes an `ifreq`, with a name and flags.
    unsafe { ioctl(socket.as_fd(), libc::SIOCSIFFLAGS, &mut request) }
}

/// # Safety
/// `T` is what `request` reads and writes.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the pointer is valid for reads and writes of `T`; the rest is the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
