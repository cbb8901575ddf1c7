//! Taps of this kernel, each test in a network namespace of its own: what it does to the network
//! is seen by nobody else, and ends with it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "requests that only a test needs")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::ioctl::{self, InterfaceName};
use super::link::{HEADER_BYTES, Link, LinkError, Offloads};
use super::mac::Mac;
use super::net_spec::NetBackend;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const ALL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 255);

/// Nothing that these tests wait for takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` in a new network namespace, with a tap's name that nobody else has. Where there can
/// be none, says loudly that it is skipped.
fn in_namespace(test: &'static str, run: impl FnOnce(&str, &Arc<OwnedFd>) + Send) {
    let inside = || {
        // SAFETY: the call takes a number, and changes what this thread alone sees.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Some(std::io::Error::last_os_error());
        }
        if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
            return Some(error);
        }
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        thread::scope(|scope| {
            let (done, over) = mpsc::channel::<()>();
            let asked = end.clone();
            // Who still waits for a packet then finds the end in its place.
            scope.spawn(move || {
                if over.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    ask(&asked);
                }
            });
            run(&format!("sw{}", std::process::id()), &end);
            drop(done);
        });
        None
    };
    let skipped = thread::scope(|scope| scope.spawn(inside).join()).unwrap();
    if let Some(error) = skipped {
        let _ = writeln!(std::io::stderr(), "SKIP {test}: no tap can be made ({error})");
    }
}

fn ask(end: &OwnedFd) {
    rustix::io::write(end, &1_u64.to_le_bytes()).unwrap();
}

fn open(name: &str, end: &Arc<OwnedFd>) -> Result<Link, LinkError> {
    Link::open(&NetBackend::Tap { name: name.to_owned() }, end)
}

/// Makes a tap that stays, and that is for root and one other user.
fn make_lasting(name: &str) {
    const SOMEBODY: libc::c_int = 12_345;
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    ioctl::set_interface(tun.as_fd(), InterfaceName::new(name), libc::IFF_TAP | libc::IFF_NO_PI).unwrap();
    for (request, number) in [(libc::TUNSETPERSIST, 1), (libc::TUNSETOWNER, SOMEBODY)] {
        // SAFETY: the request takes a number.
        let result = unsafe { libc::ioctl(tun.as_raw_fd(), request, number) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Gives the interface the address of the host, in a network of 256.
fn give_address(name: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for (request, address) in [(libc::SIOCSIFADDR, HOST), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))] {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET.try_into().unwrap(),
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: both are plain bytes, of the same number.
        let ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
        let mut ifr_name = [0; libc::IFNAMSIZ];
        ifr_name.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte.cast_signed());
        let argument = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_addr } };
        // SAFETY: the request takes an `ifreq` with a name and an address.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw const argument) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

fn index(name: &str) -> Option<u32> {
    name_to_index(UnixDatagram::unbound().unwrap(), name).ok()
}

/// Has the kernel take the interface away.
fn delete(name: &str) {
    // Without a protocol it is about routes and interfaces.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    let mut request = Vec::new();
    request.extend(32_u32.to_le_bytes());
    request.extend(libc::RTM_DELLINK.to_le_bytes());
    request.extend(u16::try_from(libc::NLM_F_REQUEST).unwrap().to_le_bytes());
    request.extend([0; 12]);
    request.extend(index(name).unwrap().to_le_bytes());
    request.extend([0; 8]);
    send(&socket, &request, SendFlags::empty()).unwrap();
    assert_eq!(index(name), None);
}

fn guest_mac() -> Mac {
    "52:54:00:12:34:56".parse().unwrap()
}

/// The guest asks who has the host's address.
fn question() -> Vec<u8> {
    let mac = guest_mac().bytes();
    let header = [0; HEADER_BYTES];
    let kinds = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    [&header[..], &[0xff; 6], &mac, &kinds, &mac, &GUEST.octets(), &[0; 6], &HOST.octets()].concat()
}

fn is_answer(packet: &[u8]) -> bool {
    let frame = &packet[HEADER_BYTES..];
    frame[..6] == guest_mac().bytes()
        && frame[12..14] == [0x08, 0x06]
        && frame[20..22] == [0, 2]
        && frame[28..32] == HOST.octets()
}

fn is_udp(packet: &[u8]) -> bool {
    let frame = &packet[HEADER_BYTES..];
    frame[12..14] == [0x08, 0x00] && frame[23] == 17
}

/// The next packet that is `wanted`, in a buffer of so many bytes.
fn receive(link: &mut Link, bytes: usize, wanted: fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        let mut buffer = vec![0xff; bytes];
        let length = link.receiver.receive(&mut buffer).unwrap().unwrap();
        buffer.truncate(length);
        if wanted(&buffer) {
            return buffer;
        }
    }
}

/// The host says something to all.
fn broadcast() {
    let socket = UdpSocket::bind((HOST, 0)).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.send_to(&[7; 100], (ALL, 9)).unwrap();
}

#[test]
fn the_kernel_answers_through_a_tap() {
    in_namespace("the_kernel_answers_through_a_tap", |name, end| {
        let mut link = open(name, end).unwrap();
        assert_eq!((link.mtu, link.has_offloads), (Some(1500), true));
        give_address(name);
        link.sender.send(&question()).unwrap();
        let answer = receive(&mut link, 2000, is_answer);
        assert_eq!(answer.len(), HEADER_BYTES + 42);
        assert_eq!(answer[..HEADER_BYTES], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!((link.sender.dropped(), link.receiver.dropped()), (0, 0));
    });
}

#[test]
fn a_frame_larger_than_the_buffer_is_dropped() {
    in_namespace("a_frame_larger_than_the_buffer_is_dropped", |name, end| {
        let mut link = open(name, end).unwrap();
        give_address(name);
        broadcast();
        link.sender.send(&question()).unwrap();
        // The answer fits to the byte.
        assert_eq!(receive(&mut link, HEADER_BYTES + 42, is_answer).len(), HEADER_BYTES + 42);
        assert!(link.receiver.dropped() > 0);
        assert_eq!(link.receiver.receive(&mut [0; 11]).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    });
}

#[test]
fn checksums_are_left_to_a_guest_that_completes_them() {
    in_namespace("checksums_are_left_to_a_guest_that_completes_them", |name, end| {
        const NEEDS_CHECKSUM: u8 = 1;
        let mut link = open(name, end).unwrap();
        give_address(name);
        broadcast();
        assert_eq!(receive(&mut link, 2000, is_udp)[0], 0);
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true };
        link.sender.set_offloads(all).unwrap();
        broadcast();
        assert_eq!(receive(&mut link, 2000, is_udp)[0], NEEDS_CHECKSUM);
        link.sender.set_offloads(Offloads::default()).unwrap();
        broadcast();
        assert_eq!(receive(&mut link, 2000, is_udp)[0], 0);
    });
}

#[test]
fn a_tap_is_used_by_one() {
    in_namespace("a_tap_is_used_by_one", |name, end| {
        let link = open(name, end).unwrap();
        assert!(matches!(open(name, end), Err(LinkError::TapInUse { name: found }) if found == name));
        assert!(index(name).is_some());
        drop(link);
        assert_eq!(index(name), None, "it was made for the link");
        open(name, end).unwrap();
        assert!(matches!(open("lo", end), Err(LinkError::NotATap { .. })));
    });
}

#[test]
fn a_tap_that_is_there_is_used_as_it_is() {
    in_namespace("a_tap_that_is_there_is_used_as_it_is", |name, end| {
        make_lasting(name);
        let before = index(name);
        let mut link = open(name, end).unwrap();
        assert_eq!(index(name), before);
        // It is down, as nobody brought it up: a cable that is not plugged in.
        link.sender.send(&question()).unwrap();
        assert_eq!(link.sender.dropped(), 1);
        ioctl::bring_up(InterfaceName::new(name)).unwrap();
        give_address(name);
        link.sender.send(&question()).unwrap();
        receive(&mut link, 2000, is_answer);
        assert_eq!(link.sender.dropped(), 1);
        drop(link);
        assert_eq!(index(name), before, "it stays");
    });
}

#[test]
fn an_error_says_what_this_user_may_not() {
    in_namespace("an_error_says_what_this_user_may_not", |name, end| {
        make_lasting(name);
        // This thread's alone.
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        assert!(matches!(open(name, end), Err(LinkError::TapPermission { .. })));
        let other = format!("{name}x");
        let error = open(&other, end).unwrap_err();
        assert!(matches!(error, LinkError::NoTap { .. }), "{error}");
        assert!(error.to_string().starts_with(&format!("there is no tap `{other}`")), "{error}");
    });
}

#[test]
fn what_a_guest_can_not_send_is_dropped() {
    in_namespace("what_a_guest_can_not_send_is_dropped", |name, end| {
        let mut link = open(name, end).unwrap();
        give_address(name);
        let with = |at: usize, bytes: &[u8]| {
            let mut packet = question();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            packet
        };
        let wrong = [
            Vec::new(),
            vec![0; 11],
            vec![0; HEADER_BYTES],
            vec![0; HEADER_BYTES + 13],
            // A kind of segmentation that there is not.
            with(1, &[0x7f]),
            // A header that is longer than the packet.
            with(2, &[0xff, 0xff]),
            // A checksum behind the packet.
            with(0, &[1, 0, 0, 0, 0, 0, 0xf0, 0xff, 0xf0, 0xff]),
        ];
        for packet in &wrong {
            link.sender.send(packet).unwrap();
        }
        assert_eq!(link.sender.dropped(), wrong.len() as u64);
        link.sender.send(&question()).unwrap();
        receive(&mut link, 2000, is_answer);
    });
}

#[test]
fn the_end_wakes_who_waits() {
    in_namespace("the_end_wakes_who_waits", |name, end| {
        let mut link = open(name, end).unwrap();
        thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut buffer = [0; 2000];
                while link.receiver.receive(&mut buffer).unwrap().is_some() {}
            });
            ask(end);
            receiver.join().unwrap();
        });
        assert_eq!(link.receiver.receive(&mut [0; 2000]).unwrap(), None);
    });
}

#[test]
fn a_tap_that_is_taken_away_is_an_error() {
    in_namespace("a_tap_that_is_taken_away_is_an_error", |name, end| {
        let mut link = open(name, end).unwrap();
        thread::scope(|scope| {
            let receiver = scope.spawn(|| while link.receiver.receive(&mut [0; 2000]).is_ok() {});
            delete(name);
            receiver.join().unwrap();
        });
        link.sender.send(&question()).unwrap_err();
    });
}
