//! `slackwater host`: what this machine's KVM can do, and whether tracking works on it.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::fit::{Check, TscName};
use super::output;
use super::scratch_store::scratch;
use super::units::{branch, epoch};
use crate::epoch::{Engine, EngineOptions, Start};
use crate::format::MAIN_BRANCH;
use crate::kvm::host::Host;
use crate::kvm::offer::Offer;
use crate::kvm::probe;
use crate::kvm::ring::RingSize;
use crate::kvm::uffd::Userfaultfd;
use crate::page::EpochId;
use crate::store::causes;
use crate::store::verify::{VerifyOptions, verify};
use crate::store::{NewChain, Writer, WriterOptions};
use crate::track::HotPages;
use crate::vmm::guests::churn;
use crate::vmm::{GuestSpec, Limits, MachineSpec, Protection, Running, Stop, Tracking, Vm, VmmError, memory_regions};

const RINGS: [u32; 4] = [256, 1024, 4096, 65_536];
const CHECK_MEMORY: u64 = 16 << 20;
const CHECK_PAGES: &str = "churn:pages=1024,content=words";
/// What a bitmap is checked with.
const CHECK_BUDGET: u64 = 256;
const CHECK_EPOCHS: u64 = 30;

/// Print what this machine's KVM can do, and check that tracking misses nothing on it.
#[derive(Debug, Args)]
pub(super) struct HostVerb {
    /// The KVM device.
    #[arg(long, value_name = "FILE", default_value = crate::kvm::host::KVM_PATH)]
    kvm: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
    /// Leave out the self-checks, which run a guest for a moment.
    #[arg(long)]
    no_checks: bool,
    /// Say only whether a checkpoint of this store can run here, piece by piece, as `restore
    /// --check` does.
    #[arg(long = "for", value_name = "DIR")]
    store: Option<PathBuf>,
    /// The checkpoint's branch [default: main, which is the chain itself].
    #[arg(long, value_name = "NAME", value_parser = branch, default_value = MAIN_BRANCH, hide_default_value = true, requires = "store")]
    branch: String,
    /// The checkpoint's epoch [default: the newest].
    #[arg(long, value_name = "N", value_parser = epoch, requires = "store")]
    epoch: Option<EpochId>,
    /// As for `restore`.
    #[arg(long, value_enum, default_value_t = TscName::Same, requires = "store")]
    tsc: TscName,
}

#[derive(Debug, Serialize)]
struct HostReport {
    #[serde(flatten)]
    host: Host,
    /// Entries of each ring that the kernel keeps free, where there are rings.
    ring_reserved_entries: Option<u32>,
    /// Whether the processor logs dirty pages itself (page modification logging), for which the
    /// kernel keeps more entries free.
    pml: bool,
    /// For some sizes of ring: entries, and entries in use at which the guest leaves.
    ring_soft_limits: Vec<(u32, u32)>,
    self_checks: Vec<SelfCheck>,
    /// Whether pages can be left out of a reset. Absent without checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_stay_writable: Option<KernelCheck>,
    /// What a captured machine is compared with.
    offer: Offer,
    /// Whether guests with a kernel of their own run. Absent without checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs_kernels: Option<KernelCheck>,
}

/// Whether the kernel does what it does not promise. Where it does not, what is built on it is off,
/// and nothing else is wrong.
#[derive(Debug, Serialize)]
struct KernelCheck {
    ok: bool,
    detail: String,
}

/// A guest was checkpointed with audits, and the chain recomputed.
#[derive(Debug, Serialize)]
struct SelfCheck {
    tracker: &'static str,
    ok: bool,
    audits: u64,
    tracking_lost: u64,
    detail: String,
}

impl HostVerb {
    pub(super) fn run(self) -> Result<(), CliError> {
        if let Some(store) = &self.store {
            let Self { branch, epoch, kvm, tsc, json, .. } = &self;
            let (epoch, tsc, json) = (*epoch, *tsc, *json);
            return Check { store, branch, epoch, kvm, tsc, ring: false, json }.run();
        }
        let host = Host::probe(&self.kvm)?;
        let ring = host.ring;
        let reserve = ring.map(|_| probe::ring_reserve(&self.kvm)).transpose();
        let reserve =
            reserve.map_err(|reason| CliError::Check { what: format!("the reserve of a ring: {}", causes(&reason)) })?;
        let soft = |entries| Some((entries, ring?.soft_limit(entries, reserve?)?));
        let smallest = RINGS.into_iter().find_map(|entries| soft(entries).and_then(|_| RingSize::new(entries).ok()));
        let mut checks = Vec::new();
        if !self.no_checks {
            if let Some(ring) = smallest {
                let budget = ring.entries().into();
                let ring_tracking = Tracking::Ring { budget, ring: Some(ring), hot: HotPages::Off, early: false };
                checks.push(self_check(&self.kvm, "ring", ring_tracking));
            }
            checks.push(self_check(&self.kvm, "bitmap", Tracking::Bitmap { manual_protect: host.bitmap.manual_protect }));
        }
        let report = HostReport {
            host,
            ring_reserved_entries: reserve,
            pml: reserve.is_some_and(|reserve| reserve > probe::RESERVE_LEAST),
            ring_soft_limits: RINGS.into_iter().filter_map(soft).collect(),
            self_checks: checks,
            pages_stay_writable: (!self.no_checks).then(|| pages_stay_writable(&self.kvm)),
            offer: Offer::read(&self.kvm)?,
            runs_kernels: (!self.no_checks).then(|| runs_kernels(&self.kvm)),
        };
        output::unless_gone(if self.json { output::json(&report) } else { report.print() })?;
        match report.self_checks.iter().find(|check| !check.ok) {
            None => Ok(()),
            Some(check) => Err(CliError::Check { what: format!("the {} self-check failed: {}", check.tracker, check.detail) }),
        }
    }
}

fn pages_stay_writable(kvm: &Path) -> KernelCheck {
    match probe::pages_stay_writable(kvm) {
        Ok(_) => KernelCheck {
            ok: true,
            detail: "pages left out of a reset stay writable, and are listed again after a later one names them".to_owned(),
        },
        Err(reason) => KernelCheck { ok: false, detail: causes(&reason) },
    }
}

fn runs_kernels(kvm: &Path) -> KernelCheck {
    match probe::runs_kernels(kvm) {
        Ok(()) => KernelCheck { ok: true, detail: "code at CPL 0 is as fast as at CPL 3, and goes there by iretq".to_owned() },
        Err(reason) => KernelCheck { ok: false, detail: causes(&reason) },
    }
}

fn self_check(kvm: &Path, tracker: &'static str, tracking: Tracking) -> SelfCheck {
    match scratch("slackwater-host-").and_then(|scratch| checked_run(kvm, &scratch.path().join("store"), tracking)) {
        Ok((audits, tracking_lost, failed)) => SelfCheck {
            tracker,
            ok: failed == 0 && audits > 0,
            audits,
            tracking_lost,
            detail: format!("{audits} digests of all memory recomputed from the chain, {failed} differ"),
        },
        Err(error) => SelfCheck { tracker, ok: false, audits: 0, tracking_lost: 0, detail: error.to_string() },
    }
}

/// Returns audits, how often tracking was lost, and how many audits differ.
fn checked_run(kvm: &Path, store: &Path, tracking: Tracking) -> Result<(u64, u64, u64), CliError> {
    let guest: churn::Options = CHECK_PAGES.parse().map_err(|error: churn::OptionsError| CliError::Usage(error.to_string()))?;
    let spec =
        MachineSpec { memory_bytes: CHECK_MEMORY, vcpus: 1, guest: GuestSpec::Churn(guest), nets: Vec::new(), vsock: None };
    let mut vm = Vm::build(kvm, spec, tracking)?;
    let machine = serde_json::to_value(vm.spec()).map_err(VmmError::Machine)?;
    let new = NewChain { memory: memory_regions(CHECK_MEMORY), device_runs: 0, vcpus: 1, machine };
    let writer = Writer::create(store, &new, WriterOptions::default())?;
    vm.load()?;
    let options = EngineOptions {
        budget_pages: usize::try_from(if let Tracking::Ring { budget, .. } = tracking { budget } else { CHECK_BUDGET })
            .unwrap_or(usize::MAX),
        audit_every: NonZeroU64::new(1),
        ..EngineOptions::default()
    };
    let tracker = vm.take_tracker().ok_or(CliError::Check { what: "the machine has no tracker".to_owned() })?;
    let engine = Engine::new(vm.memory().clone(), tracker, Box::new(writer), Start::Fresh, options)?;
    let interval = matches!(tracking, Tracking::Bitmap { .. }).then_some(std::time::Duration::from_millis(5));
    let protection = Protection { engine, interval, base_first: true, share_pages: 0 };
    let limits = Limits { time: None, epochs: Some(CHECK_EPOCHS) };
    let mut running = Running::start(vm, Some(protection), limits, Stop::default())?;
    running.supervise();
    let outcome = running.finish();
    if let Some(error) = outcome.error {
        return Err(error.into());
    }
    let verified = verify(store, &VerifyOptions::default(), &mut |_| {})?;
    let lost = outcome.report.map_or(0, |report| report.tracking_lost);
    Ok((verified.audits_checked, lost, verified.audits_failed + verified.damage.len() as u64))
}

impl HostReport {
    fn print(&self) -> Result<(), CliError> {
        let Host { device, kernel, flavour, ring, bitmap, xsave_bytes, msrs, vcpus_max, memslots_max, .. } = &self.host;
        let flavour = format!("{flavour:?}").to_lowercase();
        output::line(format_args!("{} of kernel {kernel}, {flavour}", device.display()))?;
        match ring {
            None => output::line("  dirty ring    none: only the bitmap tracker works here")?,
            Some(ring) => {
                let order = if ring.acquire_release { "with" } else { "without" };
                output::line(format_args!(
                    "  dirty ring    up to {} entries a vCPU, {order} acquire and release",
                    ring.entries_max
                ))?;
                for (entries, soft) in &self.ring_soft_limits {
                    output::line(format_args!("                {entries} entries: the guest leaves at {soft}"))?;
                }
            }
        }
        let yes = |is| if is { "yes" } else { "no" };
        output::line(format_args!("  page modification logging (PML)  {}", yes(self.pml)))?;
        output::line(format_args!("  bitmap        manual protect {}", yes(bitmap.manual_protect)))?;
        output::line(format_args!("  state         {xsave_bytes} bytes of XSAVE, {msrs} MSRs listed"))?;
        output::line(format_args!("  limits        {vcpus_max} vCPUs, {memslots_max} memslots"))?;
        let userfault = match Userfaultfd::open() {
            Ok(_) => "yes".to_owned(),
            Err(error) => format!("no: {error}; {}", error.hint()),
        };
        output::line(format_args!("  userfaultfd   for faults of KVM (restore --lazy): {userfault}"))?;
        for check in &self.self_checks {
            let verdict = if check.ok { "ok" } else { "FAILED" };
            output::line(format_args!("  self-check    {}: {verdict}, {}", check.tracker, check.detail))?;
        }
        if let Some(KernelCheck { ok, detail }) = &self.pages_stay_writable {
            let verdict = if *ok { "ok" } else { "not on this kernel" };
            output::line(format_args!("  self-check    pages_stay_writable: {verdict}, {detail}"))?;
        }
        if let Some(KernelCheck { ok, detail }) = &self.runs_kernels {
            let verdict = if *ok { "ok" } else { "not by this KVM" };
            output::line(format_args!("  self-check    runs_kernels: {verdict}, {detail}"))?;
        }
        Ok(())
    }
}
