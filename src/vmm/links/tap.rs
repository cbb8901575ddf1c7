//! A tap: an interface of the host whose other end is the guest's device. Frames have a header, so
//! checksums and segmentation can be left to the other end.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::ioctl::{self, InterfaceName};
use super::link::{HEADER_BYTES, Link, LinkError, LinkReceiver, LinkSender, Offloads, check_buffer, put_buffers};
use super::net_spec::is_tap_name;
use super::ready;

const DEVICE: &str = "/dev/net/tun";
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Opens the tap `name`, and makes it where there is none.
pub(super) fn open(name: &str, end: &Arc<OwnedFd>) -> Result<Link, LinkError> {
    if !is_tap_name(name) {
        return Err(LinkError::TapName { name: name.to_owned() });
    }
    let interface = InterfaceName::new(name);
    let failed = |step| move |source| LinkError::Tap { name: name.to_owned(), step, source };
    let tap = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE).map_err(no_device)?;
    let is_made = attach(&tap, name)?;
    let header_bytes = HEADER_BYTES.try_into().unwrap_or_default();
    ioctl::set_header_bytes(tap.as_fd(), header_bytes).map_err(failed("setting the length of the header"))?;
    // One that was there before has those of its last user.
    ioctl::set_offload(tap.as_fd(), 0).map_err(failed("setting the offloads"))?;
    let mtu = ioctl::mtu(interface).map_err(failed("reading the MTU"))?;
    if is_made && let Err(error) = ioctl::bring_up(interface) {
        tracing::warn!(%error, tap = name, "the tap was made, and is not up");
    }
    let tap = Arc::new(tap);
    let sender = TapSender { tap: tap.clone(), end: end.clone(), dropped: 0 };
    let receiver = TapReceiver { tap, end: end.clone(), dropped: 0 };
    Ok(Link { sender: Box::new(sender), receiver: Box::new(receiver), mtu, has_offloads: true })
}

fn no_device(error: io::Error) -> LinkError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => LinkError::NoTaps(error),
        _ => LinkError::TapDevice(error),
    }
}

/// Returns whether the tap was made.
fn attach(tap: &File, name: &str) -> Result<bool, LinkError> {
    let interface = InterfaceName::new(name);
    let owned = || name.to_owned();
    // Only what is new first: so the two answers mean one thing each.
    match ioctl::set_interface(tap.as_fd(), interface, FLAGS | libc::IFF_TUN_EXCL) {
        Ok(()) => return Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EBUSY) => {}
            Some(libc::EPERM) => return Err(LinkError::NoTap { name: owned() }),
            _ => return Err(LinkError::Tap { name: owned(), step: "making", source: error }),
        },
    }
    let Err(error) = ioctl::set_interface(tap.as_fd(), interface, FLAGS) else { return Ok(false) };
    Err(match error.raw_os_error() {
        Some(libc::EBUSY) => LinkError::TapInUse { name: owned() },
        Some(libc::EPERM) => LinkError::TapPermission { name: owned() },
        Some(libc::EINVAL) => LinkError::NotATap { name: owned() },
        _ => LinkError::Tap { name: owned(), step: "opening", source: error },
    })
}

/// What the kernel takes: nothing without checksums, congestion notification only with TCP.
fn flags_of(offloads: Offloads) -> libc::c_uint {
    if !offloads.checksum {
        return 0;
    }
    let tso = offloads.tso4 || offloads.tso6;
    let flags = [
        (true, libc::TUN_F_CSUM),
        (offloads.tso4, libc::TUN_F_TSO4),
        (offloads.tso6, libc::TUN_F_TSO6),
        (offloads.ecn && tso, libc::TUN_F_TSO_ECN),
        (offloads.ufo, libc::TUN_F_UFO),
    ];
    flags.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag)
}

#[derive(Debug)]
struct TapSender {
    tap: Arc<File>,
    end: Arc<OwnedFd>,
    dropped: u64,
}

impl LinkSender for TapSender {
    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        loop {
            match rustix::io::write(&*self.tap, packet) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !ready::wait(&self.tap, PollFlags::OUT, &self.end)? {
                        return Ok(());
                    }
                }
                // The header or the length can't be, the interface is down (as a cable that is not
                // plugged in), or the host has no memory for it now.
                Err(Errno::INVAL | Errno::MSGSIZE | Errno::TOOBIG | Errno::IO | Errno::NOBUFS | Errno::NOMEM) => {
                    self.dropped += 1;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        ioctl::set_offload(self.tap.as_fd(), flags_of(offloads))
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[derive(Debug)]
struct TapReceiver {
    tap: Arc<File>,
    end: Arc<OwnedFd>,
    dropped: u64,
}

impl LinkReceiver for TapReceiver {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        check_buffer(buffer)?;
        while ready::wait(&self.tap, PollFlags::IN, &self.end)? {
            // The kernel cuts a frame without a word: the byte behind the buffer shows it.
            let mut behind = [0];
            let mut parts = [IoSliceMut::new(buffer), IoSliceMut::new(&mut behind)];
            match rustix::io::readv(&*self.tap, &mut parts) {
                Ok(count) if count > buffer.len() => self.dropped += 1,
                Ok(count) => {
                    // The kernel leaves that part of the header as it was.
                    put_buffers(buffer);
                    return Ok(Some(count));
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn the_kernel_is_asked_for_nothing_that_it_refuses() {
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true };
        assert_eq!(flags_of(all), 0x1f);
        assert_eq!(flags_of(Offloads { checksum: false, ..all }), 0);
        assert_eq!(flags_of(Offloads { tso4: false, tso6: false, ..all }), 0x11);
        assert_eq!(flags_of(Offloads { tso4: false, ufo: false, ..all }), 0x0d);
        assert_eq!(flags_of(Offloads::default()), 0);
    }

    #[test]
    fn a_name_that_no_interface_has_is_refused_before_the_kernel_is_asked() {
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        for name in ["", "sixteen-bytes-xy", "tap%d", "a/b"] {
            assert!(matches!(open(name, &end), Err(LinkError::TapName { .. })), "{name}");
        }
    }
}
