//! The list of a machine's devices.

use std::fmt;
use std::path::PathBuf;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::addresses::VIRTIO_MAX;
use super::device::Device;
use super::disk::{Disk, DiskBase, DiskBaseError, device_regions};
use super::parts::{Entry, Parts};
use super::virtio::{ANSWERS_PAGES, Block, REQUEST_PAGES_MAX, entropy};
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
    let most = VIRTIO_MAX - virtio_devices();
    if disks.len() > most {
        return Err(DiskBaseError::TooMany { found: disks.len(), most });
    }
    disks.iter().try_for_each(DiskBase::check)
}

/// Pages that the VMM has to be able to write within an epoch of a machine with so many disks:
/// those of a request, of the answers that wait, and what else each device writes.
pub(in crate::vmm) fn share_pages_min(disks: usize) -> u64 {
    let of_list: u64 = LIST.iter().map(|entry| entry.pages).sum();
    REQUEST_PAGES_MAX + of_list + disks as u64 * ANSWERS_PAGES
}

/// Makes the devices, in the order of the list, and behind them the disks.
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
    Ok(devices)
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
        assert_eq!((share_pages_min(0), share_pages_min(3)), (256 + 66 + 1, 256 + 4 * 66 + 1));
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
