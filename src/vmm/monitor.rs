//! What the guest says of itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::guests::GuestSpec;
use super::guests::churn::Inconsistency;
use super::spec::MachineSpec;
use crate::memory::GuestMemory;
use crate::page::{Gfn, PAGE_SIZE, PageBytes};

/// What the guest reports at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GuestReport {
    /// Passes of all vCPUs since the guest was first started.
    pub passes: u64,
    /// Whole checks that found nothing, of all vCPUs, in this run.
    pub checks: u64,
    /// Whether it is a guest that can check itself.
    pub checks_itself: bool,
    /// Whether it found no inconsistency. Always so for a guest that does not check itself, as
    /// `touch`.
    pub ok: bool,
}

/// What a paced guest did in the periods that are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paced {
    /// Passes, of all vCPUs.
    pub bursts: u64,
    /// The time from the beginning of each pass's period to the pass's end, summed up.
    pub busy: Duration,
}

/// Collects what vCPU threads hear from the guest.
#[derive(Debug)]
pub(super) struct Monitor {
    memory: GuestMemory,
    vcpus: Vec<VcpuMonitor>,
    guest: GuestSpec,
    bursts: AtomicU64,
    busy_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct VcpuMonitor {
    check_wanted: AtomicBool,
    checks: AtomicU64,
}

impl Monitor {
    pub(super) fn new(memory: GuestMemory, spec: &MachineSpec) -> Self {
        let vcpus = (0..spec.vcpus).map(|_| VcpuMonitor::default()).collect();
        Self { memory, vcpus, guest: spec.guest.clone(), bursts: AtomicU64::new(0), busy_ns: AtomicU64::new(0) }
    }

    /// Asks every vCPU for the whole check, at its next chance.
    pub(super) fn want_checks(&self) {
        for vcpu in &self.vcpus {
            vcpu.check_wanted.store(true, Ordering::Release);
        }
    }

    /// Whether the vCPU is to check now. Asked once per wish.
    pub(super) fn check_wanted(&self, vcpu: usize) -> bool {
        self.vcpus.get(vcpu).is_some_and(|vcpu| vcpu.check_wanted.swap(false, Ordering::AcqRel))
    }

    pub(super) fn checked(&self, vcpu: usize) {
        if let Some(vcpu) = self.vcpus.get(vcpu) {
            vcpu.checks.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether every vCPU that can check itself has done so at least once.
    pub(super) fn all_checked(&self) -> bool {
        !self.guest.checks_itself() || self.vcpus.iter().all(|vcpu| vcpu.checks.load(Ordering::Acquire) > 0)
    }

    /// A pass of a paced guest is over, which took so long from the beginning of its period.
    pub(super) fn burst(&self, busy: Duration) {
        self.bursts.fetch_add(1, Ordering::Relaxed);
        self.busy_ns.fetch_add(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn paced(&self) -> Paced {
        let busy = Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed));
        Paced { bursts: self.bursts.load(Ordering::Relaxed), busy }
    }

    /// What the guest's own pages say. The vCPUs are not running, or the numbers are about to be
    /// old.
    pub(super) fn read(&self) -> (GuestReport, Option<Inconsistency>) {
        let vcpus = u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX);
        let (passes, inconsistency) = self.guest.read_pages(vcpus, |address| self.page(address));
        let checks = self.vcpus.iter().map(|vcpu| vcpu.checks.load(Ordering::Acquire)).sum();
        let ok = inconsistency.is_none();
        (GuestReport { passes, checks, checks_itself: self.guest.checks_itself(), ok }, inconsistency)
    }

    fn page(&self, address: u64) -> Option<PageBytes> {
        let mut page = [0; PAGE_SIZE];
        self.memory.read_page(Gfn::containing(address), &mut page).is_ok().then_some(page)
    }
}
