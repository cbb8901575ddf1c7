//! Building a machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::Builder;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress};

use super::attention::Attention;
use super::boot::{Boot, LinuxError, Processors};
use super::clocks::{Clocks, Since};
use super::devices::{self, Devices, IrqLine, Parts};
use super::error::{VmmError, kvm, system};
use super::guests::GuestSpec;
use super::links::NetSpec;
use super::network::Network;
use super::outputs::{ConsoleOut, Outlet};
use super::spec::{MachineSpec, memory_regions};
use super::tracking::{Checked, HotCheck, LateCheck, Tracking, larger_rings, ring_plan};
use super::vsock::VsockSpec;
use super::vsock_side::VsockSide;
use crate::epoch::Tracker;
use crate::kvm::VmHandle;
use crate::kvm::host;
use crate::kvm::ring::{ResetHelp, RingError, VmRings};
use crate::machine::{CaptureSpec, MachineState, apply_vcpu, apply_vm, notify_paused, unhalt_vcpus};
use crate::memory::GuestMemory;
use crate::page::PAGE_SIZE_U64;
use crate::restore::{FillOptions, OnDemand, PageSources};
use crate::track::{BitmapTracker, RingTracker};

/// Three pages that KVM needs on some Intel hosts, in the hole.
const TSS_ADDRESS: usize = 0xfffb_d000;

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
    share_pages: u64,
    pub(super) kvm_path: PathBuf,
    pub(super) filling: Option<OnDemand>,
    pub(super) late_check: Option<LateCheck>,
    setup: Setup,
    /// Most built-in guests have none.
    pub(super) devices: Option<Arc<Devices>>,
    pub(super) network: Network,
    /// Where the console's output leaves, where it waits.
    pub(super) console_outlet: Option<Arc<Outlet>>,
    pub(super) vsock: Option<Arc<VsockSide>>,
    /// Looks after the devices once the machine runs.
    pub(super) attention: Arc<Attention>,
}

/// How a machine is built, besides what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// When to check whether there can be a hot set.
    pub hot_check: HotCheck,
    /// Where the base images of disks are, in the order of the disks, as far as they are not where
    /// they were.
    pub images: Vec<PathBuf>,
    /// What network devices are connected to, in their order, as far as it is something else than
    /// the machine says. They keep the addresses that they have.
    pub nets: Vec<NetSpec>,
    /// What the socket device is connected to, if it is something else than the machine says.
    pub vsock: Option<VsockSpec>,
    /// Packets wait until their epoch is released. Without an engine none ever is.
    pub holds_outputs: bool,
    /// The console's output waits, too.
    pub holds_console: bool,
}

/// How long the kernel's part of building a machine took: what no VMM can save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// `KVM_CREATE_VM`.
    pub vm: Duration,
    /// Every `KVM_SET_USER_MEMORY_REGION`.
    pub memslots: Duration,
    /// Every `KVM_CREATE_VCPU`, with the interrupt controllers and the timer before them.
    pub vcpus: Duration,
}

impl Setup {
    /// All together.
    #[must_use]
    pub fn total(self) -> Duration {
        self.vm + self.memslots + self.vcpus
    }
}

impl Vm {
    /// Builds the machine of `spec` with zeroed memory, on the KVM whose device is `kvm_path`, and
    /// begins tracking.
    ///
    /// # Errors
    /// [`VmmError`]: what does not fit, or what KVM refused.
    pub fn build(kvm_path: &Path, spec: MachineSpec, tracking: Tracking) -> Result<Self, VmmError> {
        Self::build_with(kvm_path, spec, tracking, &BuildOptions::default())
    }

    /// As [`build`](Self::build), with options.
    ///
    /// # Errors
    /// As there.
    pub fn build_with(kvm_path: &Path, spec: MachineSpec, tracking: Tracking, options: &BuildOptions) -> Result<Self, VmmError> {
        // The guest's own bounds are checked while the kernel works, and are the first that is
        // said.
        let (guest, memory_bytes, vcpus) = (spec.guest.clone(), spec.memory_bytes, spec.vcpus);
        let path = kvm_path.to_owned();
        let check = move || guest.check(memory_bytes, vcpus, &path);
        let checking = Builder::new().name("slackwater-image".to_owned()).spawn(check).map_err(system("starting a thread"))?;
        let built = Self::build_unchecked(kvm_path, spec, tracking, options);
        checking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        built
    }

    pub(super) fn build_unchecked(
        kvm_path: &Path,
        mut spec: MachineSpec,
        tracking: Tracking,
        options: &BuildOptions,
    ) -> Result<Self, VmmError> {
        let hypervisor = host::open(kvm_path)?;
        let max = u32::try_from(hypervisor.get_max_vcpus()).unwrap_or(u32::MAX);
        if spec.vcpus == 0 || spec.vcpus > max {
            return Err(VmmError::Vcpus { found: spec.vcpus, max });
        }
        spec.connect(&options.nets, options.vsock.as_ref())?;
        spec.check_nets()?;
        let network = Network::open(&mut spec.nets, options.holds_outputs)?;
        let mut setup = Setup::default();
        let start = Instant::now();
        let fd = hypervisor.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        setup.vm = start.elapsed();
        let handle = || VmHandle::duplicate(&fd).map_err(system("duplicating the VM's descriptor"));
        let (plan, writable) = ring_plan(kvm_path, &handle()?, &spec, tracking, options.hot_check)?;
        // Rings come before the first vCPU.
        let (plan, mut rings) = match plan.map(|plan| VmRings::enable(handle()?, plan.ring).map_err(VmmError::from)).transpose() {
            Err(VmmError::Ring(RingError::Enable { entries, .. })) => {
                let (plan, rings) = larger_rings(kvm_path, &handle()?, &spec, tracking, options.hot_check, entries)?;
                (Some(plan), Some(rings))
            }
            rings => (plan, rings?),
        };
        let share_pages = plan.map_or_else(|| spec.share_pages_min(), |plan| plan.share);
        let share = usize::try_from(share_pages).unwrap_or(usize::MAX).min(1 << 20);
        let guest_regions = memory_regions(spec.memory_bytes);
        let memory = GuestMemory::with_devices(&guest_regions, &spec.device_regions(), share)?;
        let bitmap = match tracking {
            Tracking::Bitmap { manual_protect } => Some(BitmapTracker::new(handle()?, memory.clone(), manual_protect)?),
            Tracking::None | Tracking::Ring { .. } => None,
        };
        let start = Instant::now();
        memory.register(&handle()?, tracking != Tracking::None)?;
        setup.memslots = start.elapsed();
        let start = Instant::now();
        fd.set_tss_address(TSS_ADDRESS).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(kvm("KVM_CREATE_PIT2"))?;
        let memory_end = guest_regions.last().and_then(|run| run.end()).map_or(0, |end| end.0.saturating_mul(PAGE_SIZE_U64));
        let processors = match &spec.guest {
            GuestSpec::Linux(options) => Some(Processors::new(&hypervisor, spec.vcpus, options.cpu, memory_end)?),
            _ => None,
        };
        let mut vcpus = Vec::new();
        for index in 0..spec.vcpus {
            let vcpu = fd.create_vcpu(index.into()).map_err(kvm("KVM_CREATE_VCPU"))?;
            if let Some(processors) = &processors {
                processors.tell(&vcpu, index)?;
            }
            if let Some(rings) = &mut rings {
                rings.map(&vcpu)?;
            }
            vcpus.push(vcpu);
        }
        setup.vcpus = start.elapsed();
        let first = vcpus.first().ok_or(VmmError::Vcpus { found: 0, max })?;
        let capture = CaptureSpec::probe(&hypervisor, &fd, first)?;
        let mut late_check = None;
        let mut help = None;
        let tracker: Option<Box<dyn Tracker>> = match (rings, bitmap) {
            (Some(rings), _) => {
                let tracker = RingTracker::new(handle()?, memory.clone(), rings).with_thread()?;
                help = tracker.help();
                let most = plan.and_then(|plan| usize::try_from(plan.hot).ok()).unwrap_or_default();
                Some(Box::new(match writable {
                    Some(Checked::Is(writable)) => tracker.with_hot_set(most, writable),
                    Some(Checked::Later) => {
                        let (found, later) = channel();
                        late_check = Some(LateCheck { kvm_path: kvm_path.to_owned(), found });
                        tracker.with_hot_set_later(most, later)
                    }
                    None => tracker,
                }))
            }
            (None, Some(bitmap)) => Some(Box::new(bitmap)),
            (None, None) => None,
        };
        let fd = Arc::new(fd);
        let console_outlet = options.holds_console.then(ConsoleOut::outlet);
        let vsock = spec.vsock.clone().map(|vsock| {
            let mut port = [0; 4];
            // Without random bytes it is always the same one.
            let _ = getrandom(&mut port, GetRandomFlags::empty());
            Arc::new(VsockSide::new(vsock, u32::from_le_bytes(port), options.holds_outputs))
        });
        let attention = Arc::new(Attention::default());
        vsock.iter().try_for_each(|side| side.listen(&attention))?;
        let parts = Parts {
            memory: &memory,
            line: &|number| Arc::new(IrqLine { vm: fd.clone(), number }),
            output: &|| Box::new(std::io::stdout()),
            console: console_outlet.as_ref(),
            guest: &guest_regions,
            disks: spec.disks(),
            images: &options.images,
            nics: network.nics(),
            vsock: vsock.as_ref(),
        };
        let list = match &spec.guest {
            GuestSpec::Linux(_) => devices::make(&parts)?,
            _ => devices::make_nets(&parts, 0),
        };
        let has_devices = !list.is_empty();
        let devices = has_devices.then(|| {
            let outputs = console_outlet.iter().fold(network.outputs(), |outputs, outlet| outputs.with(outlet.clone()));
            let outputs = vsock.iter().fold(outputs, |outputs, side| outputs.with(side.outlet.clone()));
            Arc::new(Devices::new(list, memory.clone(), outputs))
        });
        Ok(Self {
            fd,
            vcpus,
            capture,
            spec,
            memory,
            tracker,
            help,
            share_pages,
            kvm_path: kvm_path.to_owned(),
            filling: None,
            late_check,
            setup,
            devices,
            network,
            console_outlet,
            vsock,
            attention,
        })
    }

    /// Puts the built-in guest into memory and its vCPUs at its start.
    ///
    /// # Errors
    /// [`VmmError`]; a Linux guest is [booted](Self::boot).
    pub fn load(&mut self) -> Result<(), VmmError> {
        let image = self.spec.guest.image(self.spec.memory_bytes, self.spec.vcpus)?;
        for segment in image.segments() {
            let loaded = self.memory.ram().write_slice(&segment.bytes, GuestAddress(segment.address));
            loaded.map_err(|source| VmmError::Load { address: segment.address, source })?;
        }
        for (vcpu, index) in self.vcpus.iter().zip(0u32..) {
            let sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
            vcpu.set_sregs(&image.initial_sregs(sregs)).map_err(kvm("KVM_SET_SREGS"))?;
            if let Some(regs) = image.initial_regs(index) {
                vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
            }
            let lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
            vcpu.set_lapic(&image.initial_lapic(lapic)).map_err(kvm("KVM_SET_LAPIC"))?;
            vcpu.set_mp_state(image.initial_mp_state()).map_err(kvm("KVM_SET_MP_STATE"))?;
        }
        Ok(())
    }

    /// Puts a Linux guest into memory and the first vCPU at its entry.
    ///
    /// # Errors
    /// [`VmmError::Linux`] where it does not fit, or the machine is for a built-in guest;
    /// [`VmmError::Kvm`].
    pub fn boot(&mut self, boot: &Boot) -> Result<(), VmmError> {
        let Some(devices) = &self.devices else { return Err(LinuxError::BuiltIn.into()) };
        boot.start(&self.memory, &memory_regions(self.spec.memory_bytes), &self.vcpus, &devices.describe())?;
        Ok(devices.begin()?)
    }

    /// Applies saved state. Memory is filled through [`GuestMemory::fill_page`] beforehand, or [on
    /// demand](Self::fill_on_demand) meanwhile.
    ///
    /// # Errors
    /// [`VmmError::State`]; [`VmmError::Restore`] where memory that KVM needs for it can't be had.
    pub fn apply(&mut self, state: &MachineState) -> Result<(), VmmError> {
        self.apply_with(state, Clocks::Continue).map(drop)
    }

    /// As [`apply`](Self::apply), with a choice of how the guest's clocks go on. Returns by how
    /// much they were put forward.
    ///
    /// # Errors
    /// As there.
    pub fn apply_with(&mut self, state: &MachineState, clocks: Clocks) -> Result<Duration, VmmError> {
        self.try_apply(state, clocks).map_err(|error| {
            // That memory could not be had is why.
            self.filling.as_ref().and_then(OnDemand::forget_on_failure).map_or(error, VmmError::from)
        })
    }

    fn try_apply(&self, state: &MachineState, clocks: Clocks) -> Result<Duration, VmmError> {
        let since = clocks.since(&state.vm);
        if let Some(behind_ns) = since.and_then(Since::behind_ns) {
            tracing::warn!(behind_ns, "the host's clock is behind the checkpoint: the guest's clocks go on from where they were");
        }
        // All counters by the same, or they would not agree.
        let counters_ns = since.map(Since::passed_ns);
        for (vcpu, state) in self.vcpus.iter().zip(&state.vcpus) {
            match counters_ns {
                None => apply_vcpu(vcpu, &self.capture, state)?,
                Some(ns) => {
                    let mut state = state.clone();
                    state.advance_counter(ns);
                    apply_vcpu(vcpu, &self.capture, &state)?;
                }
            }
        }
        let mut vm = state.vm;
        let clock_ns = since.map_or(0, Since::passed_ns);
        vm.advance_clock(clock_ns);
        apply_vm(&self.fd, &self.capture, &vm)?;
        unhalt_vcpus(&self.fd, &self.capture, &state.vcpus)?;
        match (&self.devices, state.devices.first()) {
            (Some(devices), _) => {
                devices.restore(&state.devices)?;
                devices.advance_clock(since.map_or(0, Since::passed_ns));
                devices.resume()?;
            }
            (None, None) => {}
            (None, Some(device)) => return Err(devices::unknown(device).into()),
        }
        for vcpu in &self.vcpus {
            // A guest without kvmclock can't be told, and has no watchdog that asks.
            notify_paused(vcpu)?;
        }
        Ok(Duration::from_nanos(clock_ns))
    }

    /// From now on pages of memory come from `sources`, as they are touched and, with `background`,
    /// also those that are not, until the machine's run ends. Comes before [`apply`](Self::apply),
    /// which makes KVM touch memory. Nothing was written to memory before.
    ///
    /// # Errors
    /// [`VmmError::Restore`].
    pub fn fill_on_demand(&mut self, sources: Arc<dyn PageSources>, background: bool) -> Result<(), VmmError> {
        let options = FillOptions { fault_threads: self.vcpus.len(), background };
        self.filling = Some(OnDemand::start(&self.memory, sources, options)?);
        Ok(())
    }

    /// How long the kernel's part of building the machine took.
    #[must_use]
    pub const fn setup(&self) -> Setup {
        self.setup
    }

    /// Guest memory.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The devices, where the machine has some.
    #[must_use]
    pub const fn devices(&self) -> Option<&Arc<Devices>> {
        self.devices.as_ref()
    }

    /// What the machine is.
    #[must_use]
    pub const fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// Pages of a budget that the VMM itself may write between two cuts: the devices' share. With
    /// rings it is part of the budget.
    #[must_use]
    pub const fn share_pages(&self) -> u64 {
        self.share_pages
    }

    /// Hands over the tracker, once; `None` where nothing is tracked.
    pub const fn take_tracker(&mut self) -> Option<Box<dyn Tracker>> {
        self.tracker.take()
    }
}
