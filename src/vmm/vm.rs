//! Building a machine.

use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::error::{VmmError, kvm, system};
use super::guest::{GuestSpec, Image};
use crate::epoch::{HotPages, RingPlan};
use crate::kvm::VmHandle;
use crate::kvm::host;
use crate::kvm::probe::{PagesStayWritable, pages_stay_writable};
use crate::kvm::ring::{self, ResetHelp, RingSize, VmRings};
use crate::machine::{CaptureSpec, MachineState, apply_vcpu, apply_vm};
use crate::memory::GuestMemory;
use crate::page::{Gfn, PAGE_SIZE_U64, PageRun};
use crate::track::{BitmapTracker, RingTracker, Tracker};

/// Where memory below 4 GiB ends, if there is more: behind it are the interrupt controllers and KVM's own slots.
const LOW_MEMORY_END: u64 = 3 << 30;
const HIGH_MEMORY_BEGIN: u64 = 4 << 30;
/// Three pages that KVM needs on some Intel hosts, in the hole.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// What a machine is: enough to build it again for a restore. Stored in a chain's identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Bytes of memory, in whole pages.
    pub memory_bytes: u64,
    /// vCPUs, at least 1.
    pub vcpus: u32,
    /// What runs on it.
    pub guest: GuestSpec,
}

/// How writes are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Not at all: the guest runs without checkpoints.
    None,
    /// By dirty rings, of the largest size that `budget` pages have room for, or of the size `ring`.
    Ring {
        /// The budget in pages.
        budget: u64,
        /// The size of each vCPU's ring.
        ring: Option<RingSize>,
        /// Pages that may be left writable. Something else than full rings must then end epochs too.
        hot: HotPages,
    },
    /// By the bitmap.
    Bitmap {
        /// Whether reading and protecting are two steps.
        manual_protect: bool,
    },
}

/// A machine that was built and has not run.
#[derive(Debug)]
pub struct Vm {
    pub(super) fd: Arc<VmFd>,
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) capture: CaptureSpec,
    pub(super) spec: MachineSpec,
    memory: GuestMemory,
    tracker: Option<Box<dyn Tracker>>,
    /// For vCPU threads that wait for a cut's end.
    pub(super) help: Option<ResetHelp>,
    plan: Option<RingPlan>,
}

/// Where a machine with so much memory has it: from 0 on, with a hole from 3 to 4 GiB.
#[must_use]
pub fn memory_regions(memory_bytes: u64) -> Vec<PageRun> {
    let run = |first, bytes| PageRun { first: Gfn::containing(first), count: bytes / PAGE_SIZE_U64 };
    let low = memory_bytes.min(LOW_MEMORY_END);
    let mut regions = vec![run(0, low)];
    if memory_bytes > low {
        regions.push(run(HIGH_MEMORY_BEGIN, memory_bytes - low));
    }
    regions
}

impl Vm {
    /// Builds the machine of `spec` with zeroed memory, on the KVM whose device is `kvm_path`, and begins tracking.
    ///
    /// # Errors
    /// [`VmmError`]: what does not fit, or what KVM refused.
    pub fn build(kvm_path: &Path, spec: MachineSpec, tracking: Tracking) -> Result<Self, VmmError> {
        // The guest's own bounds are checked before anything is started.
        spec.guest.image(spec.memory_bytes, spec.vcpus)?;
        let hypervisor = host::open(kvm_path)?;
        let max = u32::try_from(hypervisor.get_max_vcpus()).unwrap_or(u32::MAX);
        if spec.vcpus == 0 || spec.vcpus > max {
            return Err(VmmError::Vcpus { found: spec.vcpus, max });
        }
        let fd = hypervisor.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        let handle = || VmHandle::duplicate(&fd).map_err(system("duplicating the VM's descriptor"));
        let (plan, writable) = ring_plan(kvm_path, &handle()?, &spec, tracking)?;
        // Rings come before the first vCPU.
        let mut rings = plan.map(|plan| Ok::<_, VmmError>(VmRings::enable(handle()?, plan.ring)?)).transpose()?;
        let share = plan.map_or(0, |plan| usize::try_from(plan.share).unwrap_or(usize::MAX)).min(1 << 20);
        let memory = GuestMemory::anonymous(&memory_regions(spec.memory_bytes), share)?;
        let bitmap = match tracking {
            Tracking::Bitmap { manual_protect } => Some(BitmapTracker::new(handle()?, memory.clone(), manual_protect)?),
            Tracking::None | Tracking::Ring { .. } => None,
        };
        memory.register(&handle()?, tracking != Tracking::None)?;
        fd.set_tss_address(TSS_ADDRESS).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(kvm("KVM_CREATE_PIT2"))?;
        let mut vcpus = Vec::new();
        for id in 0..u64::from(spec.vcpus) {
            let vcpu = fd.create_vcpu(id).map_err(kvm("KVM_CREATE_VCPU"))?;
            if let Some(rings) = &mut rings {
                rings.map(&vcpu)?;
            }
            vcpus.push(vcpu);
        }
        let first = vcpus.first().ok_or(VmmError::Vcpus { found: 0, max })?;
        let capture = CaptureSpec::probe(&hypervisor, &fd, first)?;
        let mut help = None;
        let tracker: Option<Box<dyn Tracker>> = match (rings, bitmap) {
            (Some(rings), _) => {
                let tracker = RingTracker::new(handle()?, memory.clone(), rings).with_thread()?;
                help = tracker.help();
                let most = plan.and_then(|plan| usize::try_from(plan.hot).ok()).unwrap_or_default();
                Some(Box::new(match writable {
                    Some(writable) => tracker.with_hot_set(most, writable),
                    None => tracker,
                }))
            }
            (None, Some(bitmap)) => Some(Box::new(bitmap)),
            (None, None) => None,
        };
        Ok(Self { fd: Arc::new(fd), vcpus, capture, spec, memory, tracker, help, plan })
    }

    /// Puts the guest into memory and its vCPUs at its start.
    ///
    /// # Errors
    /// [`VmmError`].
    pub fn load(&mut self) -> Result<(), VmmError> {
        let image = self.spec.guest.image(self.spec.memory_bytes, self.spec.vcpus)?;
        for segment in image.segments() {
            let loaded = self.memory.ram().write_slice(&segment.bytes, GuestAddress(segment.address));
            loaded.map_err(|source| VmmError::Load { address: segment.address, source })?;
        }
        for (vcpu, index) in self.vcpus.iter().zip(0u32..) {
            let sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
            vcpu.set_sregs(&Image::initial_sregs(sregs)).map_err(kvm("KVM_SET_SREGS"))?;
            if let Some(regs) = image.initial_regs(index) {
                vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
            }
            let lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
            vcpu.set_lapic(&Image::initial_lapic(lapic)).map_err(kvm("KVM_SET_LAPIC"))?;
            vcpu.set_mp_state(Image::initial_mp_state()).map_err(kvm("KVM_SET_MP_STATE"))?;
        }
        Ok(())
    }

    /// Applies saved state. Memory is filled through [`GuestMemory::fill_page`] beforehand.
    ///
    /// # Errors
    /// [`VmmError::State`].
    pub fn apply(&mut self, state: &MachineState) -> Result<(), VmmError> {
        for (vcpu, state) in self.vcpus.iter().zip(&state.vcpus) {
            apply_vcpu(vcpu, &self.capture, state)?;
        }
        Ok(apply_vm(&self.fd, &self.capture, &state.vm)?)
    }

    /// Guest memory.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What the machine is.
    #[must_use]
    pub const fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// How the budget is shared, where rings track.
    #[must_use]
    pub const fn ring_plan(&self) -> Option<RingPlan> {
        self.plan
    }

    /// Hands over the tracker, once; `None` where nothing is tracked.
    pub const fn take_tracker(&mut self) -> Option<Box<dyn Tracker>> {
        self.tracker.take()
    }
}

/// How the budget is shared, and where it has a hot set, that there can be one.
fn ring_plan(
    kvm_path: &Path,
    vm: &VmHandle,
    spec: &MachineSpec,
    tracking: Tracking,
) -> Result<(Option<RingPlan>, Option<PagesStayWritable>), VmmError> {
    let Tracking::Ring { budget, ring, hot } = tracking else { return Ok((None, None)) };
    let (max, _) = ring::support(vm).ok_or(crate::kvm::ring::RingError::Unsupported)?;
    // The built-in guest has no device that writes to memory, so the VMM needs no share of the budget.
    let plan = |hot| RingPlan::new(budget, spec.vcpus, 0, max, ring, hot);
    let with_hot = plan(hot)?;
    if with_hot.hot == 0 {
        return Ok((Some(with_hot), None));
    }
    match (pages_stay_writable(kvm_path), hot) {
        (Ok(writable), _) => Ok((Some(with_hot), Some(writable))),
        (Err(reason), HotPages::Auto) => {
            tracing::info!(%reason, "no hot set: pages can't be left writable here");
            Ok((Some(plan(HotPages::Off)?), None))
        }
        (Err(reason), _) => Err(VmmError::HotSet(reason)),
    }
}
