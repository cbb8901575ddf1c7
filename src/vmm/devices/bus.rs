//! Which device answers at which port and which address.

/// What an access is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// A port, byte by byte.
    Ports,
    /// An address that is no memory, as wide as the guest asks.
    Memory,
}

/// Ports or addresses, one behind the other, that one device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vmm) struct BusRange {
    space: Space,
    base: u64,
    count: u64,
}

impl BusRange {
    pub(super) fn ports(base: u16, count: impl Into<u64>) -> Self {
        Self { space: Space::Ports, base: base.into(), count: count.into() }
    }

    pub(super) const fn memory(base: u64, count: u64) -> Self {
        Self { space: Space::Memory, base, count }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.space == other.space
            && self.base < other.base.saturating_add(other.count)
            && other.base < self.base.saturating_add(self.count)
    }
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The device's place in the list.
    pub(super) device: usize,
    /// Where the range of the device begins.
    pub(super) base: u64,
    /// From there on.
    pub(super) offset: u64,
}

/// The ranges of all devices of a list.
#[derive(Debug)]
pub(super) struct Bus(Vec<(BusRange, usize)>);

impl Bus {
    /// The bus of devices with these ranges. Where two of them claim the same, the first one
    /// answers.
    pub(super) fn new(devices: impl Iterator<Item = Vec<BusRange>>) -> Self {
        let ranges = devices.enumerate().flat_map(|(device, ranges)| ranges.into_iter().map(move |range| (range, device)));
        let bus = Self(ranges.collect());
        debug_assert!(!bus.has_overlaps(), "two devices at one address: {bus:?}");
        bus
    }

    /// Who answers at `address`, if anybody does.
    pub(super) fn find(&self, space: Space, address: u64) -> Option<Target> {
        self.0.iter().find_map(|(range, device)| {
            let offset = address.checked_sub(range.base)?;
            let is_in = range.space == space && offset < range.count;
            is_in.then_some(Target { device: *device, base: range.base, offset })
        })
    }

    fn has_overlaps(&self) -> bool {
        self.0.iter().enumerate().any(|(at, (range, _))| self.0.iter().take(at).any(|(other, _)| other.overlaps(range)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_goes_to_the_device_whose_range_it_is_in() {
        let bus = Bus(vec![
            (BusRange::ports(0x3f8, 8_u8), 0),
            (BusRange::ports(0x60, 5_u8), 1),
            (BusRange::memory(0x3f8, 4), 2),
            (BusRange::ports(0x608, 1_u8), 1),
            (BusRange::memory(u64::MAX, 1), 3),
        ]);
        let found = |space, address| bus.find(space, address).map(|it| (it.device, it.base, it.offset));
        assert_eq!(found(Space::Ports, 0x3f8), Some((0, 0x3f8, 0)));
        assert_eq!(found(Space::Ports, 0x3ff), Some((0, 0x3f8, 7)));
        assert_eq!((found(Space::Ports, 0x3f7), found(Space::Ports, 0x400)), (None, None));
        assert_eq!(found(Space::Memory, 0x3fb), Some((2, 0x3f8, 3)));
        assert_eq!((found(Space::Memory, 0x3fc), found(Space::Memory, 0x60)), (None, None));
        assert_eq!((found(Space::Ports, 0x64), found(Space::Ports, 0x608)), (Some((1, 0x60, 4)), Some((1, 0x608, 0))));
        assert_eq!(found(Space::Memory, u64::MAX), Some((3, u64::MAX, 0)));
        assert!(!bus.has_overlaps());
    }

    #[test]
    fn devices_at_one_address_are_found() {
        let overlap = |one, other| Bus(vec![(one, 0), (other, 1)]).has_overlaps();
        assert!(overlap(BusRange::ports(0x60, 5_u8), BusRange::ports(0x64, 1_u8)));
        assert!(overlap(BusRange::memory(0, u64::MAX), BusRange::memory(7, 1)));
        assert!(!overlap(BusRange::ports(0x60, 4_u8), BusRange::ports(0x64, 1_u8)));
        assert!(!overlap(BusRange::ports(0x60, 5_u8), BusRange::memory(0x60, 5)));
    }
}
