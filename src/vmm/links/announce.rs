//! What is said to the network in a guest's place when the guest goes on elsewhere: here is its
//! address now. No I/O.
//!
//! Switches learn from any frame of the device; neighbours learn from ARP and from ICMPv6, for
//! which the guest's addresses must be known. They are learned from what the guest itself says to
//! its neighbours. A guest can say anything, but only of its own device's address.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::mac::Mac;

/// The most addresses that are kept, of each family.
const ADDRESSES_MAX: usize = 4;

const BROADCAST: [u8; 6] = [0xff; 6];
/// What ff02::1 is on Ethernet.
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ARP: [u8; 2] = [0x08, 0x06];
const RARP: [u8; 2] = [0x80, 0x35];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// ARP's first fields for Ethernet and IPv4: kinds of both, lengths of both.
const ARP_KINDS: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const RARP_REQUEST: u8 = 3;

const ICMPV6: u8 = 58;
/// Neighbours only hear what no router has passed on.
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// An advertisement that takes the place of what a neighbour knows.
const OVERRIDE: u8 = 0x20;
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;
/// Options are in units of 8 bytes.
const OPTION_UNIT: usize = 8;

/// The shortest frame on a wire, without its checksum.
const FRAME_BYTES_MIN: usize = 60;

/// The newest addresses of a guest's device, as its neighbours know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::vmm) struct Neighbours {
    /// The newest last, each once.
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
}

/// A saved record of addresses that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of the addresses of a network device: expected {expected}")]
pub(in crate::vmm) struct NeighboursError {
    /// Where.
    pub(in crate::vmm) offset: usize,
    /// What would be right.
    pub(in crate::vmm) expected: &'static str,
}

impl Neighbours {
    /// Learns from a frame that the guest sends by the device `mac`.
    pub(in crate::vmm) fn learn(&mut self, mac: Mac, frame: &[u8]) {
        match said(mac, frame) {
            Some(Address::V4(address)) if is_ipv4_of_one(address) => note(&mut self.ipv4, address),
            Some(Address::V6(address)) if is_ipv6_of_one(address) => note(&mut self.ipv6, address),
            _ => {}
        }
    }

    /// What `decode` takes: each family's number of addresses, and the addresses.
    pub(in crate::vmm) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![number(self.ipv4.len())];
        self.ipv4.iter().for_each(|address| bytes.extend(address.octets()));
        bytes.push(number(self.ipv6.len()));
        self.ipv6.iter().for_each(|address| bytes.extend(address.octets()));
        bytes
    }

    /// The addresses that were encoded.
    ///
    /// # Errors
    /// [`NeighboursError`]: `encode` gives no such bytes.
    pub(in crate::vmm) fn decode(bytes: &[u8]) -> Result<Self, NeighboursError> {
        let mut left = bytes;
        let wrong = |left: &[u8], expected| NeighboursError { offset: bytes.len() - left.len(), expected };
        let ipv4 = take(&mut left, Ipv4Addr::from, is_ipv4_of_one).map_err(|expected| wrong(left, expected))?;
        let ipv6 = take(&mut left, Ipv6Addr::from, is_ipv6_of_one).map_err(|expected| wrong(left, expected))?;
        if left.is_empty() { Ok(Self { ipv4, ipv6 }) } else { Err(wrong(left, "no more bytes")) }
    }

    /// The frames that say where `mac` is, in the order in which they are to be sent.
    pub(in crate::vmm) fn announcements(&self, mac: Mac) -> Vec<Vec<u8>> {
        let mut frames = vec![arp(RARP, RARP_REQUEST, (mac, Ipv4Addr::UNSPECIFIED), (mac.bytes(), Ipv4Addr::UNSPECIFIED))];
        frames.extend(self.ipv4.iter().map(|address| arp(ARP, ARP_REQUEST, (mac, *address), ([0; 6], *address))));
        frames.extend(self.ipv6.iter().map(|address| advertisement(mac, *address)));
        frames
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

/// The address that a frame says the device `mac` has.
fn said(mac: Mac, frame: &[u8]) -> Option<Address> {
    let mut left = frame;
    let _to: [u8; 6] = next(&mut left)?;
    let from: [u8; 6] = next(&mut left)?;
    if from != mac.bytes() {
        return None;
    }
    match next(&mut left)? {
        ARP => said_by_arp(mac, left).map(Address::V4),
        IPV6 => said_by_ipv6(mac, left).map(Address::V6),
        _ => None,
    }
}

fn said_by_arp(mac: Mac, mut left: &[u8]) -> Option<Ipv4Addr> {
    let kinds: [u8; 6] = next(&mut left)?;
    let operation: [u8; 2] = next(&mut left)?;
    let sender: [u8; 6] = next(&mut left)?;
    let address = next(&mut left).map(Ipv4Addr::from)?;
    let _target: [u8; 10] = next(&mut left)?;
    let is_of_device = kinds == ARP_KINDS && matches!(operation, [0, ARP_REQUEST | ARP_REPLY]) && sender == mac.bytes();
    is_of_device.then_some(address)
}

/// Checksums are not looked at: the guest may leave them to the host.
fn said_by_ipv6(mac: Mac, mut left: &[u8]) -> Option<Ipv6Addr> {
    let [version, ..]: [u8; 4] = next(&mut left)?;
    let bytes = next(&mut left).map(u16::from_be_bytes)?;
    let [kind, hop_limit] = next(&mut left)?;
    let source = next(&mut left).map(Ipv6Addr::from)?;
    let _destination: [u8; 16] = next(&mut left)?;
    if version >> 4 != 6 || kind != ICMPV6 || hop_limit != HOP_LIMIT {
        return None;
    }
    // Behind it is what fills up a short frame.
    let mut left = left.get(..bytes.into())?;
    let [kind, code, ..]: [u8; 8] = next(&mut left)?;
    let target = next(&mut left).map(Ipv6Addr::from)?;
    let (address, option) = match (kind, code) {
        (SOLICITATION, 0) => (source, SOURCE_OPTION),
        (ADVERTISEMENT, 0) => (target, TARGET_OPTION),
        _ => return None,
    };
    options_are_of(mac, option, left)?.then_some(address)
}

/// Whether the options name no other device than `mac`. None where they are no options.
fn options_are_of(mac: Mac, wanted: u8, mut left: &[u8]) -> Option<bool> {
    let mut is_of_device = true;
    while !left.is_empty() {
        let [kind, units, ..]: [u8; 2] = *left.first_chunk()?;
        let bytes = usize::from(units) * OPTION_UNIT;
        let option = left.get(..bytes).filter(|option| !option.is_empty())?;
        is_of_device &= kind != wanted || option.get(2..) == Some(&mac.bytes());
        left = left.get(bytes..)?;
    }
    Some(is_of_device)
}

/// The next bytes, if there are so many.
fn next<const N: usize>(left: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, behind) = left.split_first_chunk()?;
    *left = behind;
    Some(*bytes)
}

fn is_ipv4_of_one(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast())
}

fn is_ipv6_of_one(address: Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// The address is the newest; where there are too many, the oldest goes.
fn note<A: PartialEq>(known: &mut Vec<A>, address: A) {
    if known.last() == Some(&address) {
        return;
    }
    known.retain(|other| *other != address);
    if known.len() >= ADDRESSES_MAX {
        known.remove(0);
    }
    known.push(address);
}

/// A number of addresses.
fn number(count: usize) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

/// The addresses of one family: their number, and each. What is wrong is what is left begins with.
fn take<A: PartialEq + Copy, const N: usize>(
    left: &mut &[u8],
    address: fn([u8; N]) -> A,
    is_allowed: fn(A) -> bool,
) -> Result<Vec<A>, &'static str> {
    let counted = left.first().map(|count| usize::from(*count)).filter(|count| *count <= ADDRESSES_MAX);
    let count = counted.ok_or("the number of addresses, 0 to 4")?;
    *left = left.get(1..).unwrap_or_default();
    let mut known = Vec::with_capacity(count);
    for _ in 0..count {
        let found = left.first_chunk().map(|bytes| address(*bytes)).filter(|found| is_allowed(*found) && !known.contains(found));
        known.push(found.ok_or("an address of one device, and each once")?);
        *left = left.get(N..).unwrap_or_default();
    }
    Ok(known)
}

/// A frame to all, from `sender`.
fn arp(kind: [u8; 2], operation: u8, sender: (Mac, Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, sender.0, kind);
    frame.extend(ARP_KINDS);
    frame.extend([0, operation]);
    frame.extend(sender.0.bytes());
    frame.extend(sender.1.octets());
    frame.extend(target.0);
    frame.extend(target.1.octets());
    padded(frame)
}

/// Says to all nodes that `address` is at `mac`. Not that it is a router: one that is says so
/// itself, and often.
fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_OPTION, 1]);
    message.extend(mac.bytes());
    let sum = checksum(address, ALL_NODES_ADDRESS, &message).to_be_bytes();
    message.iter_mut().skip(2).zip(sum).for_each(|(place, byte)| *place = byte);
    let mut frame = ethernet(ALL_NODES, mac, IPV6);
    frame.extend([0x60, 0, 0, 0, 0, number(message.len()), ICMPV6, HOP_LIMIT]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES_ADDRESS.octets());
    frame.extend(message);
    padded(frame)
}

fn ethernet(to: [u8; 6], from: Mac, kind: [u8; 2]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_BYTES_MIN);
    frame.extend(to);
    frame.extend(from.bytes());
    frame.extend(kind);
    frame
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(FRAME_BYTES_MIN), 0);
    frame
}

/// ICMPv6's: over both addresses, length and kind, and a short message, which has an even number
/// of bytes and no checksum yet.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let parts = [&source.octets()[..], &destination.octets(), &[0, number(message.len()), 0, ICMPV6], message];
    let words = parts.iter().flat_map(|part| part.chunks_exact(2)).filter_map(|word| word.first_chunk());
    let sum = words.map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    !folded(sum)
}

/// A sum of words in one's complement.
fn folded(sum: u64) -> u16 {
    u16::try_from(sum).unwrap_or_else(|_| folded((sum & 0xffff) + (sum >> 16)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn mac() -> Mac {
        "52:54:00:12:34:56".parse().unwrap()
    }

    fn bytes(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    /// 10.0.0.7 asks for 10.0.0.1.
    const ASKS: &str = "ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a000007 000000000000 0a000001";
    /// fe80::5054:ff:fe12:3456 asks for fe80::1, with its own device's address.
    const SOLICITS: &str = "3333ff000001 525400123456 86dd 60000000 0020 3a ff fe80000000000000505400fffe123456
        ff0200000000000000000001ff000001 8700 0000 00000000 fe800000000000000000000000000001 0101 525400123456";
    /// fd00::7 says where it is, to whom asked.
    const ADVERTISES: &str = "525400000001 525400123456 86dd 60000000 0020 3a ff fd000000000000000000000000000007
        fd000000000000000000000000000001 8800 0000 60000000 fd000000000000000000000000000007 0201 525400123456";

    fn learned(frame: &[u8]) -> Neighbours {
        let mut neighbours = Neighbours::default();
        neighbours.learn(mac(), frame);
        neighbours
    }

    fn known(ipv4: &[&str], ipv6: &[&str]) -> Neighbours {
        let ipv4 = ipv4.iter().map(|address| address.parse().unwrap()).collect();
        Neighbours { ipv4, ipv6: ipv6.iter().map(|address| address.parse().unwrap()).collect() }
    }

    /// `frame` with these bytes in the place of those at `at`.
    fn with(frame: &str, at: usize, other: &[u8]) -> Vec<u8> {
        let mut frame = bytes(frame);
        frame[at..at + other.len()].copy_from_slice(other);
        frame
    }

    #[test]
    fn addresses_are_learned_from_what_a_guest_says_to_its_neighbours() {
        assert_eq!(learned(&bytes(ASKS)), known(&["10.0.0.7"], &[]));
        assert_eq!(learned(&with(ASKS, 21, &[2])), known(&["10.0.0.7"], &[]));
        assert_eq!(learned(&padded(bytes(ASKS))), known(&["10.0.0.7"], &[]));
        assert_eq!(learned(&bytes(SOLICITS)), known(&[], &["fe80::5054:ff:fe12:3456"]));
        assert_eq!(learned(&bytes(ADVERTISES)), known(&[], &["fd00::7"]));
        // Without options.
        let mut plain = with(SOLICITS, 18, &[0, 24]);
        plain.truncate(78);
        assert_eq!(learned(&plain), known(&[], &["fe80::5054:ff:fe12:3456"]));
    }

    #[test]
    fn nothing_is_learned_from_anything_else() {
        let none = Neighbours::default();
        let cases = [
            (ASKS, 6, &[0x53][..], "from another device"),
            (ASKS, 12, &[0x81, 0], "in a VLAN"),
            (ASKS, 15, &[6], "another network"),
            (ASKS, 18, &[8], "longer addresses"),
            (ASKS, 21, &[3], "another request"),
            (ASKS, 22, &[0x54], "of another device"),
            (ASKS, 28, &[0; 4], "a probe"),
            (ASKS, 28, &[127, 0, 0, 1], "loopback"),
            (ASKS, 28, &[224, 0, 0, 1], "multicast"),
            (ASKS, 28, &[255; 4], "broadcast"),
            (SOLICITS, 14, &[0x40], "IPv4"),
            (SOLICITS, 18, &[0, 33], "longer than the frame"),
            (SOLICITS, 18, &[0xff, 0xff], "much longer"),
            (SOLICITS, 18, &[0, 31], "an option that is cut off"),
            (SOLICITS, 18, &[0, 23], "a message that is cut off"),
            (SOLICITS, 20, &[17], "UDP"),
            (SOLICITS, 21, &[254], "passed on by a router"),
            (SOLICITS, 22, &[0; 16], "duplicate address detection"),
            (SOLICITS, 54, &[133], "another message"),
            (SOLICITS, 55, &[1], "another code"),
            (SOLICITS, 79, &[0], "an option without a length"),
            (SOLICITS, 79, &[2], "an option longer than the message"),
            (SOLICITS, 80, &[0x54], "the option of another device"),
            (ADVERTISES, 62, &[0xff, 2], "a group"),
            (ADVERTISES, 80, &[0x54], "the option of another device"),
        ];
        for (frame, at, other, what) in cases {
            assert_eq!(learned(&with(frame, at, other)), none, "{what}");
        }
        for frame in [ASKS, SOLICITS, ADVERTISES] {
            let frame = bytes(frame);
            for length in 0..frame.len() {
                assert_eq!(learned(&frame[..length]), none, "{length} bytes");
            }
        }
    }

    #[test]
    fn the_newest_addresses_are_kept() {
        let mut neighbours = Neighbours::default();
        for last in [1, 2, 3, 4, 5, 4, 4] {
            neighbours.learn(mac(), &with(ASKS, 31, &[last]));
            neighbours.learn(mac(), &with(ADVERTISES, 77, &[last]));
        }
        let expected = known(&["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.4"], &["fd00::2", "fd00::3", "fd00::5", "fd00::4"]);
        assert_eq!(neighbours, expected);
        let encoded = neighbours.encode();
        assert_eq!(encoded.len(), 2 + ADDRESSES_MAX * (4 + 16));
        assert_eq!(Neighbours::decode(&encoded), Ok(expected));
    }

    #[test]
    fn a_record_that_can_not_be_is_refused() {
        let good = known(&["10.0.0.1", "10.0.0.2"], &["fd00::1"]).encode();
        assert_eq!(good, bytes("02 0a000001 0a000002 01 fd000000000000000000000000000001"));
        assert_eq!(Neighbours::decode(&[0, 0]), Ok(Neighbours::default()));
        for length in 0..good.len() {
            Neighbours::decode(&good[..length]).unwrap_err();
        }
        let refused = |text: &str| Neighbours::decode(&bytes(text)).unwrap_err();
        let error = |offset, expected| NeighboursError { offset, expected };
        assert_eq!(refused("00 00 00"), error(2, "no more bytes"));
        assert_eq!(refused("05 0a000001 0a000002 0a000003 0a000004 0a000005 00"), error(0, "the number of addresses, 0 to 4"));
        assert_eq!(refused("00 ff"), error(1, "the number of addresses, 0 to 4"));
        assert_eq!(refused("02 0a000001 0a000001 00"), error(5, "an address of one device, and each once"));
        assert_eq!(refused("01 00000000 00"), error(1, "an address of one device, and each once"));
        assert_eq!(refused("00 01 ff020000000000000000000000000001"), error(2, "an address of one device, and each once"));
        assert_eq!(
            refused("01").to_string(),
            "byte 1 of the addresses of a network device: expected an address of one device, and each once"
        );
    }

    #[test]
    fn announcements_are_these_bytes() {
        // Checksum and all, as computed elsewhere.
        let rarp = "ffffffffffff 525400123456 8035 0001 0800 06 04 0003 525400123456 00000000 525400123456 00000000";
        assert_eq!(Neighbours::default().announcements(mac()), [padded(bytes(rarp))]);
        let frames = known(&["10.0.0.7"], &["fd00::7"]).announcements(mac());
        let arp = "ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a000007 000000000000 0a000007";
        let advertises = "333300000001 525400123456 86dd 60000000 0020 3a ff fd000000000000000000000000000007
            ff020000000000000000000000000001 8800 d5d3 20000000 fd000000000000000000000000000007 0201 525400123456";
        assert_eq!(frames, [padded(bytes(rarp)), padded(bytes(arp)), bytes(advertises)]);
        assert!(frames.iter().all(|frame| frame.len() >= 60));
    }

    #[test]
    fn sums_are_folded_until_they_fit() {
        assert_eq!([0, 0xffff, 0x1_0000, 0x1_ffff, 0xffff_ffff].map(folded), [0, 0xffff, 1, 1, 0xffff]);
    }

    proptest! {
        #[test]
        fn a_guest_may_send_anything(
            base in prop::sample::select(vec![ASKS, SOLICITS, ADVERTISES]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            length in 0_usize..100,
        ) {
            let mut frame = bytes(base);
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            frame.resize(length, 0);
            let neighbours = learned(&frame);
            prop_assert!(neighbours.ipv4.len() + neighbours.ipv6.len() <= 1);
            prop_assert_eq!(Neighbours::decode(&neighbours.encode()), Ok(neighbours.clone()));
            // What is announced of an address teaches the same address.
            let mut again = Neighbours::default();
            neighbours.announcements(mac()).iter().for_each(|frame| again.learn(mac(), frame));
            prop_assert_eq!(again, neighbours);
        }

        #[test]
        fn records_have_one_form(bytes in prop::collection::vec(prop_oneof![0_u8..6, any::<u8>()], 0..90)) {
            if let Ok(neighbours) = Neighbours::decode(&bytes) {
                prop_assert_eq!(neighbours.encode(), bytes);
            }
        }
    }
}
