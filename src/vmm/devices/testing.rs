//! The devices of a machine that needs no KVM.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::device::Device;
use super::disk::{DiskBase, device_regions};
use super::irq_line::Line;
use super::list;
use super::parts::Parts;
use crate::memory::GuestMemory;
use crate::page::{Gfn, PageRun};

/// A line that nothing is behind.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeLine(pub(super) Arc<AtomicBool>);

impl Line for FakeLine {
    fn set(&self, high: bool) -> io::Result<()> {
        self.0.store(high, Ordering::SeqCst);
        Ok(())
    }
}

/// The records of the list's devices, in its order. Those of disks come behind them.
pub(in crate::vmm) const RECORDS: &[&str] = &["serial", "power", "rtc", "entropy"];

/// All devices of a machine with 1 MiB of memory and with disks of 1 MiB.
pub(super) struct Machine {
    pub(super) devices: Vec<Box<dyn Device>>,
    pub(super) memory: GuestMemory,
    _dir: tempfile::TempDir,
}

impl Machine {
    pub(super) fn new(disks: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let disks: Vec<_> = (0..disks).map(|_| DiskBase::read(&path).unwrap()).collect();
        let guest = [PageRun { first: Gfn(0), count: 256 }];
        let memory = GuestMemory::with_devices(&guest, &device_regions(&guest, &disks), 64).unwrap();
        let parts = Parts {
            memory: &memory,
            line: &|_| Arc::new(FakeLine::default()),
            output: &|| Box::new(io::sink()),
            console: None,
            guest: &guest,
            disks: &disks,
            images: &[],
            nics: &[],
            vsock: None,
        };
        let devices = list::make(&parts).unwrap();
        Self { devices, memory, _dir: dir }
    }

    /// The device with such a record.
    pub(super) fn device(&mut self, name: &str) -> &mut dyn Device {
        let found = self.devices.iter_mut().find(|device| device.record().is_some_and(|record| record.name == name));
        &mut **found.unwrap()
    }
}

/// The devices of a machine with so many disks.
pub(in crate::vmm) fn machine_devices(disks: usize) -> Vec<Box<dyn Device>> {
    Machine::new(disks).devices
}
