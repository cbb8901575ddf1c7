//! Ethernet frames with ARP, and with UDP over IPv4: built, and read as far as a client needs it.
//! Neither options nor fragments.

use std::fmt;
use std::net::Ipv4Addr;

use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most bytes of a UDP datagram's payload.
pub const UDP_PAYLOAD_BYTES_MAX: usize = u16::MAX as usize - IPV4_BYTES - UDP_BYTES;

const IPV4_BYTES: usize = size_of::<Ipv4>();
const UDP_BYTES: usize = size_of::<Udp>();

const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV4: u16 = 0x0800;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// Ethernet addresses for IPv4 addresses, of 6 and 4 bytes.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// IPv4 without options.
const VERSION_AND_LENGTH: u8 = 0x45;
const DO_NOT_FRAGMENT: u16 = 0x4000;
/// What a fragment has set: more to come, or a place behind the first.
const FRAGMENT: u16 = 0x3fff;
const HOPS: u8 = 64;
const PROTOCOL_UDP: u8 = 17;
/// The sum over a header that has its checksum.
const SUM_OF_SOUND: u16 = 0xffff;

/// Why bytes are not a frame that is read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame ends too early.
    #[error("a frame of {found} bytes is too short for {what}")]
    Short {
        /// What it would be.
        what: &'static str,
        /// The frame's bytes.
        found: usize,
    },
    /// Neither ARP nor UDP over IPv4 as it is read here.
    #[error("a frame with {what} {found:#06x}, which is not read here")]
    Other {
        /// What of it.
        what: &'static str,
        /// Its value.
        found: u16,
    },
    /// A checksum is wrong.
    #[error("a wrong checksum in {what}")]
    Checksum {
        /// In which part.
        what: &'static str,
    },
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody's.
    pub const BROADCAST: Self = Self([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A host on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub ip: Ipv4Addr,
}

/// A port of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The UDP port.
    pub port: u16,
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// `from` asks for the Ethernet address of `target`.
    ArpRequest {
        /// Who asks.
        from: Host,
        /// Whose address.
        target: Ipv4Addr,
    },
    /// `from` says what its Ethernet address is.
    ArpReply {
        /// Who says so.
        from: Host,
    },
    /// A datagram.
    Udp {
        /// Where it comes from.
        from: Endpoint,
        /// Where it goes to.
        to: Endpoint,
        /// What it carries.
        payload: &'a [u8],
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Ethernet {
    to: Mac,
    from: Mac,
    kind: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Arp {
    kind: [u8; 6],
    operation: U16,
    from_mac: Mac,
    from_ip: [u8; 4],
    to_mac: Mac,
    to_ip: [u8; 4],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Ipv4 {
    version_and_length: u8,
    service: u8,
    bytes: U16,
    id: U16,
    fragment: U16,
    hops: u8,
    protocol: u8,
    checksum: U16,
    from: [u8; 4],
    to: [u8; 4],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Udp {
    from: U16,
    to: U16,
    bytes: U16,
    checksum: U16,
}

/// A frame by which `from` asks everybody for the Ethernet address of `target`.
#[must_use]
pub fn arp_request(from: Host, target: Ipv4Addr) -> Vec<u8> {
    arp(ARP_REQUEST, from, Mac::BROADCAST, Host { mac: Mac([0; 6]), ip: target })
}

/// A frame by which `from` tells `to` its Ethernet address.
#[must_use]
pub fn arp_reply(from: Host, to: Host) -> Vec<u8> {
    arp(ARP_REPLY, from, to.mac, to)
}

fn arp(operation: u16, from: Host, receiver: Mac, to: Host) -> Vec<u8> {
    let ethernet = Ethernet { to: receiver, from: from.mac, kind: TYPE_ARP.into() };
    let (from_ip, to_ip) = (from.ip.octets(), to.ip.octets());
    let arp = Arp { kind: ARP_KIND, operation: operation.into(), from_mac: from.mac, from_ip, to_mac: to.mac, to_ip };
    [ethernet.as_bytes(), arp.as_bytes()].concat()
}

/// A frame with a datagram. `None` where it has more than [`UDP_PAYLOAD_BYTES_MAX`].
#[must_use]
pub fn udp(from: Endpoint, to: Endpoint, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_bytes = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let ip_bytes = u16::try_from(IPV4_BYTES + UDP_BYTES + payload.len()).ok()?;
    let ethernet = Ethernet { to: to.host.mac, from: from.host.mac, kind: TYPE_IPV4.into() };
    let mut ip = Ipv4 {
        version_and_length: VERSION_AND_LENGTH,
        service: 0,
        bytes: ip_bytes.into(),
        id: 0.into(),
        fragment: DO_NOT_FRAGMENT.into(),
        hops: HOPS,
        protocol: PROTOCOL_UDP,
        checksum: 0.into(),
        from: from.host.ip.octets(),
        to: to.host.ip.octets(),
    };
    ip.checksum = (!sum(&[ip.as_bytes()])).into();
    let mut udp = Udp { from: from.port.into(), to: to.port.into(), bytes: udp_bytes.into(), checksum: 0.into() };
    // A checksum of 0 would say that there is none.
    udp.checksum = match !udp_sum(&ip, &udp, payload) {
        0 => SUM_OF_SOUND.into(),
        checksum => checksum.into(),
    };
    Some([ethernet.as_bytes(), ip.as_bytes(), udp.as_bytes(), payload].concat())
}

/// What a frame says. Bytes behind the datagram are padding.
///
/// # Errors
/// [`FrameError`].
pub fn parse(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let short = |what| FrameError::Short { what, found: bytes.len() };
    let (ethernet, rest) = Ethernet::ref_from_prefix(bytes).map_err(|_| short("Ethernet"))?;
    match ethernet.kind.get() {
        TYPE_ARP => {
            let (arp, _) = Arp::ref_from_prefix(rest).map_err(|_| short("ARP"))?;
            parse_arp(arp)
        }
        TYPE_IPV4 => {
            let (ip, rest) = Ipv4::ref_from_prefix(rest).map_err(|_| short("IPv4"))?;
            check_ipv4(ip)?;
            let rest = usize::from(ip.bytes.get()).checked_sub(IPV4_BYTES).and_then(|bytes| rest.get(..bytes));
            let (udp, rest) = rest.and_then(|rest| Udp::ref_from_prefix(rest).ok()).ok_or_else(|| short("UDP"))?;
            let payload = usize::from(udp.bytes.get()).checked_sub(UDP_BYTES).and_then(|bytes| rest.get(..bytes));
            let payload = payload.ok_or_else(|| short("its datagram"))?;
            if udp.checksum.get() != 0 && udp_sum(ip, udp, payload) != SUM_OF_SOUND {
                return Err(FrameError::Checksum { what: "UDP" });
            }
            let endpoint = |mac, ip: [u8; 4], port: U16| Endpoint { host: Host { mac, ip: ip.into() }, port: port.get() };
            let (from, to) = (endpoint(ethernet.from, ip.from, udp.from), endpoint(ethernet.to, ip.to, udp.to));
            Ok(Frame::Udp { from, to, payload })
        }
        found => Err(FrameError::Other { what: "type", found }),
    }
}

fn parse_arp(arp: &Arp) -> Result<Frame<'static>, FrameError> {
    if arp.kind != ARP_KIND {
        let [high, low, ..] = arp.kind;
        return Err(FrameError::Other { what: "ARP of hardware", found: u16::from_be_bytes([high, low]) });
    }
    let from = Host { mac: arp.from_mac, ip: arp.from_ip.into() };
    match arp.operation.get() {
        ARP_REQUEST => Ok(Frame::ArpRequest { from, target: arp.to_ip.into() }),
        ARP_REPLY => Ok(Frame::ArpReply { from }),
        found => Err(FrameError::Other { what: "ARP operation", found }),
    }
}

fn check_ipv4(ip: &Ipv4) -> Result<(), FrameError> {
    if ip.version_and_length != VERSION_AND_LENGTH {
        return Err(FrameError::Other { what: "IP version and length", found: ip.version_and_length.into() });
    }
    if sum(&[ip.as_bytes()]) != SUM_OF_SOUND {
        return Err(FrameError::Checksum { what: "IPv4" });
    }
    if ip.fragment.get() & FRAGMENT != 0 {
        return Err(FrameError::Other { what: "fragment", found: ip.fragment.get() });
    }
    if ip.protocol != PROTOCOL_UDP {
        return Err(FrameError::Other { what: "IP protocol", found: ip.protocol.into() });
    }
    Ok(())
}

fn udp_sum(ip: &Ipv4, udp: &Udp, payload: &[u8]) -> u16 {
    sum(&[&ip.from, &ip.to, &[0, PROTOCOL_UDP], udp.bytes.as_bytes(), udp.as_bytes(), payload])
}

/// The ones' complement sum over 16-bit words. Each part but the last has whole words.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(|word| match *word {
        [high, low] => u16::from_be_bytes([high, low]),
        [high] => u16::from_be_bytes([high, 0]),
        _ => 0,
    });
    words.fold(0, |sum: u16, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: Endpoint = Endpoint { host: Host { mac: Mac([2, 0, 0, 0, 0, 1]), ip: Ipv4Addr::new(10, 77, 0, 1) }, port: 7078 };
    const TWO: Endpoint = Endpoint { host: Host { mac: Mac([2, 0, 0, 0, 0, 2]), ip: Ipv4Addr::new(10, 77, 0, 2) }, port: 7077 };

    #[test]
    fn a_known_datagram_has_its_known_checksums() {
        // RFC 1071's example, and a header from the world.
        assert_eq!(sum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(sum(&[&header]), SUM_OF_SOUND);
        let frame = udp(ONE, TWO, b"odd").unwrap();
        let text: Vec<String> = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = "020000000002020000000001080045000" // Ethernet, then IPv4
            .to_owned()
            + "01f0000400040112632 0a4d00010a4d0002" // to its end
            + "1ba61ba5000b"; // UDP to its length
        assert_eq!(text.concat()[..80], expected.replace(' ', "")[..80]);
    }

    #[test]
    fn frames_say_what_they_were_built_from() {
        assert_eq!(parse(&arp_request(ONE.host, TWO.host.ip)), Ok(Frame::ArpRequest { from: ONE.host, target: TWO.host.ip }));
        assert_eq!(parse(&arp_reply(TWO.host, ONE.host)), Ok(Frame::ArpReply { from: TWO.host }));
        assert_eq!(&arp_request(ONE.host, TWO.host.ip)[..6], &[0xff; 6]);
        assert_eq!(udp(ONE, TWO, &vec![0; UDP_PAYLOAD_BYTES_MAX + 1]), None);
        assert!(udp(ONE, TWO, &vec![0; UDP_PAYLOAD_BYTES_MAX]).is_some());
    }

    #[test]
    fn a_checksum_that_is_wrong_or_not_there() {
        let mut frame = udp(ONE, TWO, b"payload").unwrap();
        frame[20] ^= 0x80;
        assert_eq!(parse(&frame), Err(FrameError::Checksum { what: "IPv4" }));
        let mut frame = udp(ONE, TWO, b"payload").unwrap();
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(parse(&frame), Err(FrameError::Checksum { what: "UDP" }));
        frame[40..42].fill(0);
        assert!(matches!(parse(&frame), Ok(Frame::Udp { payload: b"payloae", .. })), "none");
    }

    proptest! {
        #[test]
        fn a_datagram_comes_back(payload in prop::collection::vec(any::<u8>(), 0..1500), padding in 0_usize..20) {
            let mut frame = udp(ONE, TWO, &payload).unwrap();
            frame.resize(frame.len() + padding, 0);
            prop_assert_eq!(parse(&frame), Ok(Frame::Udp { from: ONE, to: TWO, payload: &payload }));
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(at in 0_usize..60, byte in any::<u8>(), cut in 0_usize..60) {
            for mut frame in [udp(ONE, TWO, &[7; 18]).unwrap(), arp_reply(ONE.host, TWO.host)] {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
                frame.truncate(cut);
                let _ = parse(&frame);
            }
        }
    }
}
