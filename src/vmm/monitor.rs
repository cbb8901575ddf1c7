//! What the guest says of itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use super::churn::{Inconsistency, PrivatePage, private_page_address};
use crate::memory::GuestMemory;
use crate::page::{Gfn, PAGE_SIZE};

/// What the guest reports at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GuestReport {
    /// Passes of all vCPUs since the guest was first started.
    pub passes: u64,
    /// Whole checks that found nothing, of all vCPUs, in this run.
    pub checks: u64,
    /// Whether it found no inconsistency.
    pub ok: bool,
}

/// Collects what vCPU threads hear from the guest.
#[derive(Debug)]
pub(super) struct Monitor {
    memory: GuestMemory,
    vcpus: Vec<VcpuMonitor>,
}

#[derive(Debug, Default)]
struct VcpuMonitor {
    check_wanted: AtomicBool,
    checks: AtomicU64,
}

impl Monitor {
    pub(super) fn new(memory: GuestMemory, vcpus: u32) -> Self {
        Self { memory, vcpus: (0..vcpus).map(|_| VcpuMonitor::default()).collect() }
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

    /// Whether every vCPU has checked itself at least once.
    pub(super) fn all_checked(&self) -> bool {
        self.vcpus.iter().all(|vcpu| vcpu.checks.load(Ordering::Acquire) > 0)
    }

    /// What the guest's own pages say. The vCPUs are not running, or the numbers are about to be old.
    pub(super) fn read(&self) -> (GuestReport, Option<Inconsistency>) {
        let mut report = GuestReport { passes: 0, checks: 0, ok: true };
        let mut inconsistency = None;
        for (vcpu, index) in self.vcpus.iter().zip(0u32..) {
            let mut page = [0; PAGE_SIZE];
            if self.memory.read_page(Gfn::containing(private_page_address(index)), &mut page).is_err() {
                continue;
            }
            let private = PrivatePage::parse(index, &page);
            report.passes += private.passes;
            report.checks += vcpu.checks.load(Ordering::Acquire);
            inconsistency = inconsistency.or(private.inconsistency);
        }
        report.ok = inconsistency.is_none();
        (report, inconsistency)
    }
}
