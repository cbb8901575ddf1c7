//! A tap in a network of its own.
#![expect(unsafe_code, reason = "requests on taps and interfaces")]

use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use super::skip;

const NAME: &str = "slackwater0";

/// Runs `test` in a network namespace of its own, which what it starts is in, too: nobody else sees
/// it, and it goes with them. There is a tap that stays, whoever leaves it, whose host has the
/// address `host` in a network of 256. `test` gets its name. Where there can be no tap, says loudly
/// that `name` is skipped.
pub(crate) fn with_tap(name: &str, host: Ipv4Addr, test: impl FnOnce(&str) + Send) {
    let inside = || {
        make(host)?;
        test(NAME);
        Ok(())
    };
    let ended: Result<(), io::Error> = thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| {
        // As the test has it.
        std::panic::resume_unwind(panic)
    });
    if let Err(error) = ended {
        skip(name, &format!("no tap can be made: {error}"));
    }
}

/// Makes the tap, and lets go of it: it has one user at a time.
fn make(host: Ipv4Addr) -> io::Result<()> {
    // SAFETY: the call takes a number, and changes what this thread and its children see.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request(&tun, libc::TUNSETIFF, libc::__c_anonymous_ifr_ifru { ifru_flags: short(flags) })?;
    // SAFETY: the request takes a number.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) })?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for (what, address) in [(libc::SIOCSIFADDR, host), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))] {
        let [first, second, third, fourth] = address.octets().map(u8::cast_signed);
        // A `sockaddr_in`: the port, and the address behind it.
        let mut sa_data = [0; 14];
        sa_data[2..6].copy_from_slice(&[first, second, third, fourth]);
        let sa_family = libc::AF_INET.try_into().unwrap();
        request(&socket, what, libc::__c_anonymous_ifr_ifru { ifru_addr: libc::sockaddr { sa_family, sa_data } })?;
    }
    request(&socket, libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags: short(libc::IFF_UP) })
}

fn short(flags: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(flags).unwrap()
}

/// Asks for something about the tap.
fn request(at: &impl AsRawFd, what: libc::Ioctl, argument: libc::__c_anonymous_ifr_ifru) -> io::Result<()> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    ifr_name.iter_mut().zip(NAME.bytes()).for_each(|(place, byte)| *place = byte.cast_signed());
    let mut argument = libc::ifreq { ifr_name, ifr_ifru: argument };
    // SAFETY: each of the requests takes an `ifreq` with a name and what belongs to it.
    checked(unsafe { libc::ioctl(at.as_raw_fd(), what, &raw mut argument) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
