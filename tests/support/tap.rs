//! Taps in a network of their own.
#![expect(unsafe_code, reason = "requests on taps and interfaces")]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use super::skip;

const TAPS: [&str; 2] = ["slackwater0", "slackwater1"];
const BRIDGE: &str = "bridge0";

/// Of `linux/sockios.h`: makes a bridge, and an interface a part of one.
const SIOCBRADDBR: libc::Ioctl = 0x89a0;
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// Runs `test` in a network namespace of its own, which what it starts is in, too: nobody else sees
/// it, and it goes with them. There is a tap that stays, whoever leaves it, whose host has the
/// address `host` in a network of 256. `test` gets its name. Where there can be no tap, says loudly
/// that `name` is skipped.
pub(crate) fn with_tap(name: &str, host: Ipv4Addr, test: impl FnOnce(&str) + Send) {
    let [tap, _] = TAPS;
    let make = |socket: &UdpSocket| {
        make_tap(tap)?;
        give_address(socket, tap, host)?;
        raise(socket, tap)
    };
    in_a_network(name, make, || test(tap));
}

/// The same with two taps on a bridge, which has the address: one for each of two machines of which
/// one takes the other's place. The loopback device is up, for what they tell each other.
pub(crate) fn with_bridge(name: &str, host: Ipv4Addr, test: impl FnOnce([&str; 2]) + Send) {
    let make = |socket: &UdpSocket| {
        request(socket, BRIDGE, SIOCBRADDBR, None)?;
        for tap in TAPS {
            make_tap(tap)?;
            let ifru_ifindex = index(tap)?;
            request(socket, BRIDGE, SIOCBRADDIF, Some(libc::__c_anonymous_ifr_ifru { ifru_ifindex }))?;
            raise(socket, tap)?;
        }
        give_address(socket, BRIDGE, host)?;
        raise(socket, BRIDGE)?;
        raise(socket, "lo")
    };
    in_a_network(name, make, || test(TAPS));
}

fn in_a_network(name: &str, make: impl FnOnce(&UdpSocket) -> io::Result<()> + Send, test: impl FnOnce() + Send) {
    let inside = || {
        // SAFETY: the call takes a number, and changes what this thread and its children see.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        make(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)?;
        test();
        Ok(())
    };
    let ended: Result<(), io::Error> = thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| {
        // As the test has it.
        std::panic::resume_unwind(panic)
    });
    if let Err(error) = ended {
        skip(name, &format!("no network of its own can be made: {error}"));
    }
}

/// Makes a tap, and lets go of it: it has one user at a time.
fn make_tap(name: &str) -> io::Result<()> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let ifru_flags = short(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    request(&tun, name, libc::TUNSETIFF, Some(libc::__c_anonymous_ifr_ifru { ifru_flags }))?;
    // SAFETY: the request takes a number.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) })
}

fn give_address(socket: &UdpSocket, name: &str, host: Ipv4Addr) -> io::Result<()> {
    for (what, address) in [(libc::SIOCSIFADDR, host), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))] {
        let [first, second, third, fourth] = address.octets().map(u8::cast_signed);
        // A `sockaddr_in`: the port, and the address behind it.
        let mut sa_data = [0; 14];
        sa_data[2..6].copy_from_slice(&[first, second, third, fourth]);
        let sa_family = libc::AF_INET.try_into().unwrap();
        let ifru_addr = libc::sockaddr { sa_family, sa_data };
        request(socket, name, what, Some(libc::__c_anonymous_ifr_ifru { ifru_addr }))?;
    }
    Ok(())
}

fn raise(socket: &UdpSocket, name: &str) -> io::Result<()> {
    request(socket, name, libc::SIOCSIFFLAGS, Some(libc::__c_anonymous_ifr_ifru { ifru_flags: short(libc::IFF_UP) }))
}

fn index(name: &str) -> io::Result<libc::c_int> {
    let name = CString::new(name)?;
    // SAFETY: the call reads a string that ends.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index.cast_signed()),
    }
}

fn short(flags: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(flags).unwrap()
}

/// Asks for something about the interface `name`.
fn request(at: &impl AsRawFd, name: &str, what: libc::Ioctl, argument: Option<libc::__c_anonymous_ifr_ifru>) -> io::Result<()> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    ifr_name.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte.cast_signed());
    let ifr_ifru = argument.unwrap_or(libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 });
    let mut argument = libc::ifreq { ifr_name, ifr_ifru };
    // SAFETY: each of the requests takes an `ifreq` with a name and what belongs to it, or the name
    // alone.
    checked(unsafe { libc::ioctl(at.as_raw_fd(), what, &raw mut argument) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
