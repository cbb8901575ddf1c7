//! How a machine's writes are tracked: rings, their budget, and the check for a hot set.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use super::error::{VmmError, system};
use super::spec::MachineSpec;
use crate::kvm::VmHandle;
use crate::kvm::probe::{PagesStayWritable, pages_stay_writable, ring_reserve};
use crate::kvm::ring::{self, RingError, RingSize, VmRings};
use crate::track::{HotPages, RingPlan, RingWish};

/// How writes are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Not at all: the guest runs without checkpoints.
    None,
    /// By dirty rings, of the largest size that `budget` pages have room for, or of the size
    /// `ring`.
    Ring {
        /// The budget in pages.
        budget: u64,
        /// The size of each vCPU's ring.
        ring: Option<RingSize>,
        /// Pages that may be left writable. Something else than full rings must then end epochs
        /// too.
        hot: HotPages,
        /// Whether rounds empty the rings: they are small then, and epochs larger than they are.
        early: bool,
    },
    /// By the bitmap.
    Bitmap {
        /// Whether reading and protecting are two steps.
        manual_protect: bool,
    },
}

/// When to find out whether pages can be left writable, which takes tens of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HotCheck {
    /// Before the machine is built.
    #[default]
    First,
    /// Beside the running guest, where the hot set is only wished for ([`HotPages::Auto`]): until
    /// then, and where they can't, there is none.
    Late,
}

/// The check that is still to be made.
#[derive(Debug)]
pub(super) struct LateCheck {
    pub(super) kvm_path: PathBuf,
    pub(super) found: Sender<PagesStayWritable>,
}

impl LateCheck {
    /// Makes it, and tells the tracker.
    pub(super) fn run(self) {
        match pages_stay_writable(&self.kvm_path) {
            // Nobody listens once the tracker is gone.
            Ok(writable) => drop(self.found.send(writable)),
            Err(reason) => tracing::info!(%reason, "no hot set: pages can't be left writable here"),
        }
    }
}

/// Whether pages can be left writable.
pub(super) enum Checked {
    Is(PagesStayWritable),
    /// It is to be found out.
    Later,
}

/// With rings that have more entries than this KVM keeps free, where those of `entries` do not; the
/// kernel refuses them then. What rings there are does not decide whether pages can be left
/// writable.
pub(super) fn larger_rings(
    kvm_path: &Path,
    vm: &VmHandle,
    spec: &MachineSpec,
    tracking: Tracking,
    hot_check: HotCheck,
    entries: u32,
) -> Result<(RingPlan, VmRings), VmmError> {
    let failed = || VmmError::Ring(RingError::Unsupported);
    let Tracking::Ring { budget, ring, hot, early } = tracking else { return Err(failed()) };
    let reserved = ring_reserve(kvm_path).map_err(VmmError::RingReserve)?;
    if ring.is_some() && entries <= reserved {
        return Err(RingError::TooSmall { entries, reserved }.into());
    }
    let larger = if entries <= reserved { (reserved + 1).next_power_of_two() } else { entries };
    let tracking = Tracking::Ring { budget, ring: Some(RingSize::new(larger)?), hot, early };
    let (plan, _) = ring_plan(kvm_path, vm, spec, tracking, hot_check)?;
    let plan = plan.ok_or_else(failed)?;
    let vm = VmHandle::duplicate(vm).map_err(system("duplicating the VM's descriptor"))?;
    Ok((plan, VmRings::enable(vm, plan.ring)?))
}

/// How the budget is shared, and where it has a hot set, that there can be one.
pub(super) fn ring_plan(
    kvm_path: &Path,
    vm: &VmHandle,
    spec: &MachineSpec,
    tracking: Tracking,
    hot_check: HotCheck,
) -> Result<(Option<RingPlan>, Option<Checked>), VmmError> {
    let Tracking::Ring { budget, ring, hot, early } = tracking else { return Ok((None, None)) };
    let (max, _) = ring::support(vm).ok_or(RingError::Unsupported)?;
    // Besides what devices need, a part of what the smallest rings leave: the more, the less often
    // disks end an epoch.
    let least = spec.share_pages_min();
    let rings = u64::from(RingSize::MIN.entries()).saturating_mul(spec.vcpus.into());
    let share = if least == 0 { 0 } else { least.max((budget / 4).min(budget.saturating_sub(rings))) };
    let plan = |hot| RingPlan::new(RingWish { budget, vcpus: spec.vcpus, share_min: share, ring, hot, early }, max);
    let with_hot = plan(hot)?;
    if with_hot.hot == 0 {
        return Ok((Some(with_hot), None));
    }
    if (hot, hot_check) == (HotPages::Auto, HotCheck::Late) {
        return Ok((Some(with_hot), Some(Checked::Later)));
    }
    match (pages_stay_writable(kvm_path), hot) {
        (Ok(writable), _) => Ok((Some(with_hot), Some(Checked::Is(writable)))),
        (Err(reason), HotPages::Auto) => {
            tracing::info!(%reason, "no hot set: pages can't be left writable here");
            Ok((Some(plan(HotPages::Off)?), None))
        }
        (Err(reason), _) => Err(VmmError::HotSet(reason)),
    }
}
