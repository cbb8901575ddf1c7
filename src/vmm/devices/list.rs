//! The list of a machine's devices.

use std::fmt;
use std::path::PathBuf;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::addresses::VIRTIO_MAX;
use super::device::Device;
use super::disk::{Disk, DiskBase, DiskBaseError, device_regions};
use super::parts::{Entry, Parts};
use super::virtio::{ANSWERS_PAGES, Block, Net, REQUEST_PAGES_MAX, Vsock, entropy};
use super::{generation_id, power, rtc, serial};

/// The devices of every machine. Disks come behind them.
const LIST: &[Entry] = &[serial::ENTRY, power::ENTRY, rtc::ENTRY, generation_id::ENTRY, entropy::ENTRY];

/// A device of a machine, as a chain's description has it: a restore needs to have all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceName(&'static str);

impl DeviceName {
    /// All that this program has, besides disks.
    pub fn all() -> impl Iterator<Item = Self> {
        LIST.iter().map(|entry| Self(entry.name))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = String::deserialize(deserializer)?;
        let name = Self::all().find(|name| name.0 == found);
        name.ok_or_else(|| D::Error::custom(format_args!("this program has no device `{found}`")))
    }
}

/// Virtio devices of the list.
fn virtio_devices() -> usize {
    LIST.iter().filter(|entry| entry.is_virtio).count()
}

/// Whether a machine can have these disks. A description may come from a store.
///
/// # Errors
/// [`DiskBaseError::TooMany`], [`DiskBaseError::Size`].
pub(in crate::vmm) fn check_disks(disks: &[DiskBase]) -> Result<(), DiskBaseError> {
    check_virtio(disks.len(), 0)?;
    disks.iter().try_for_each(DiskBase::check)
}

/// Whether a machine can have so many disks and network devices.
///
/// # Errors
/// [`DiskBaseError::TooMany`].
pub(in crate::vmm) fn check_virtio(disks: usize, nets: usize) -> Result<(), DiskBaseError> {
    let (found, most) = (disks.saturating_add(nets), VIRTIO_MAX - virtio_devices());
    if found > most { Err(DiskBaseError::TooMany { found, most }) } else { Ok(()) }
}

/// Pages that the VMM has to be able to write within an epoch of a machine with so many disks and
/// network devices: those of a request, of the answers that wait, and what else each device writes.
pub(in crate::vmm) fn share_pages_min(disks: usize, nets: usize) -> u64 {
    let of_list: u64 = LIST.iter().map(|entry| entry.pages).sum();
    of_list + disks as u64 * ANSWERS_PAGES + share_pages_of_nets(nets)
}

/// As [`share_pages_min`], of a machine that has only network devices.
pub(in crate::vmm) fn share_pages_of_nets(nets: usize) -> u64 {
    REQUEST_PAGES_MAX + nets as u64 * ANSWERS_PAGES
}

/// Makes the devices, in the order of the list, behind them the disks, behind those the network
/// devices, and last the socket device.
///
/// # Errors
/// [`DiskBaseError`], of the disks' base images.
pub(in crate::vmm) fn make(parts: &Parts<'_>) -> Result<Vec<Box<dyn Device>>, DiskBaseError> {
    let mut devices = Vec::new();
    let mut virtio = 0;
    for entry in LIST {
        devices.push((entry.make)(parts, virtio));
        virtio += u32::from(entry.is_virtio);
    }
    for ((base, run), index) in parts.disks.iter().zip(device_regions(parts.guest, parts.disks)).zip(0_u32..) {
        let image = usize::try_from(index).ok().and_then(|index| parts.images.get(index)).map(PathBuf::as_path);
        let disk = Disk::open(base, image, parts.memory.clone(), run)?;
        devices.push(Block::make(parts, virtio + index, disk, index));
    }
    virtio = virtio.saturating_add(u32::try_from(parts.disks.len()).unwrap_or(u32::MAX));
    devices.extend(make_nets(parts, virtio));
    virtio = virtio.saturating_add(u32::try_from(parts.nics.len()).unwrap_or(u32::MAX));
    devices.extend(parts.vsock.map(|side| Vsock::make(parts, virtio, side.clone())));
    Ok(devices)
}

/// Makes the network devices. There are `virtio` virtio devices before them.
pub(in crate::vmm) fn make_nets(parts: &Parts<'_>, virtio: u32) -> Vec<Box<dyn Device>> {
    parts.nics.iter().zip(0_u32..).map(|(nic, index)| Net::make(parts, virtio + index, nic.clone(), index)).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use super::*;
    use crate::machine::{DeviceState, StateError};
    use crate::vmm::devices::record::Fields;
    use crate::vmm::devices::testing::{Machine, RECORDS};

    #[test]
    fn devices_have_names_of_their_own() {
        let names: Vec<_> = DeviceName::all().map(|name| name.to_string()).collect();
        assert_eq!(names, ["serial", "power", "rtc", "generation_id", "entropy"]);
        let json = serde_json::to_string(&DeviceName::all().collect::<Vec<_>>()).unwrap();
        assert_eq!(json, serde_json::to_string(&names).unwrap());
        let read: Vec<DeviceName> = serde_json::from_str(&json).unwrap();
        assert!(read.into_iter().eq(DeviceName::all()));
        let error = serde_json::from_str::<DeviceName>(r#""sound""#).unwrap_err().to_string();
        assert!(error.contains("this program has no device `sound`"), "{error}");
        let machine = Machine::new(7);
        let records: BTreeSet<_> =
            machine.devices.iter().filter_map(|device| device.record()).map(|record| (record.name, record.index)).collect();
        assert_eq!(records.len(), RECORDS.len() + 7);
    }

    #[test]
    fn the_share_grows_with_the_disks() {
        assert_eq!((share_pages_min(0, 0), share_pages_min(1, 2)), (256 + 66 + 1, 256 + 4 * 66 + 1));
        assert_eq!(VIRTIO_MAX - virtio_devices(), 7);
    }

    #[test]
    fn a_record_of_another_length_or_version_is_refused() {
        for device in &mut Machine::new(1).devices {
            let Some(name) = device.record() else { continue };
            let saved = name.with(device.save());
            let mut restore = |saved: &DeviceState| device.restore(Fields::of(saved, name)?);
            restore(&saved).unwrap();
            let variable = name.name == "serial";
            let lengths = (0..saved.data.len()).chain((!variable).then_some(saved.data.len() + 1));
            for bytes in lengths {
                let mut other = saved.clone();
                other.data.resize(bytes, 0);
                let error = restore(&other).unwrap_err();
                let in_bounds = |offset| offset <= saved.data.len();
                assert!(
                    matches!(&error, StateError::Malformed { name, offset, .. } if *name == format!("device.{}", saved.name) && in_bounds(*offset)),
                    "{bytes} bytes of {}: {error}",
                    saved.name
                );
            }
            for (index, version) in [(name.index + 1, name.version), (name.index, name.version + 1)] {
                let error = restore(&DeviceState { index, version, ..saved.clone() }).unwrap_err();
                assert!(matches!(error, StateError::UnknownRecord { .. }), "{error}");
            }
            assert_eq!(device.save().len(), saved.data.len());
        }
    }
}
