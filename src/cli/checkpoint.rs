//! `slackwater checkpoint`: a guest under continuous checkpoints.

use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use super::linux::{LinuxArgs, attach_console};
use super::output;
use super::pair::supervise;
use super::protect::{ProtectArgs, RunReport, stop_on_signals};
use super::stderr;
use super::units::size;
use crate::epoch::Start;
use crate::page::PAGE_SIZE_U64;
use crate::store::{NewChain, Writer};
use crate::vmm::guests::linux;
use crate::vmm::vsock::VsockSpec;
use crate::vmm::{BuildOptions, GuestSpec, MachineSpec, NetSpec, Running, Vm, VmmError};

/// Run a guest under continuous checkpoints, into a new store.
#[derive(Debug, Args)]
pub(super) struct Checkpoint {
    /// The directory for the store; it is made if it does not exist.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The built-in guest: `churn` or `churn:key=value,...` (pages, pattern, hot, content, burst,
    /// every, seed), which checks itself; `touch:...` (pages, pattern, lists, words, cut, every,
    /// seed), which is made for measuring and checks nothing; or `ledger:...` (pages, ip, port,
    /// every), which answers `slackwater ledger-client`.
    #[arg(long, value_name = "GUEST", default_value = "churn", conflicts_with = "kernel")]
    guest: GuestSpec,
    #[command(flatten)]
    linux: LinuxArgs,
    /// Guest memory.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    memory: u64,
    /// vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// A network device, connected to a tap (`tap=NAME`) or a Unix stream socket (`unix=PATH`),
    /// with `,mac=MAC` and `,mtu=BYTES`. May be given several times for Linux, once for `ledger`.
    #[arg(long, value_name = "LINK")]
    net: Vec<NetSpec>,
    /// A socket device for a Linux guest: `cid=N,path=PATH`. The host reaches the guest's ports by
    /// `CONNECT PORT` on the Unix socket PATH, and is reached at `PATH_PORT`.
    #[arg(long, value_name = "SOCKET", requires = "kernel")]
    vsock: Option<VsockSpec>,
    /// The KVM device.
    #[arg(long, value_name = "FILE", default_value = crate::kvm::host::KVM_PATH)]
    kvm: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    protect: ProtectArgs,
}

impl Checkpoint {
    pub(super) fn run(self) -> Result<(), CliError> {
        if !self.memory.is_multiple_of(PAGE_SIZE_U64) {
            let memory = self.memory;
            return Err(CliError::Usage(format!("`--memory {memory}`: memory is made of whole pages of {PAGE_SIZE_U64} bytes")));
        }
        Writer::check_place(&self.store)?;
        let boot = self.linux.read(self.memory, self.vcpus)?;
        let guest = boot.as_ref().map_or(self.guest, |boot| GuestSpec::Linux(linux::Options::of(boot)));
        let spec = MachineSpec { memory_bytes: self.memory, vcpus: self.vcpus, guest, nets: self.net, vsock: self.vsock };
        // The machine comes first: if it can't be built, no store is made.
        let (holds_outputs, holds_console) = (self.protect.holds_outputs(), self.protect.holds_console());
        let options = BuildOptions { holds_outputs, holds_console, ..BuildOptions::default() };
        let mut vm = Vm::build_with(&self.kvm, spec, self.protect.tracking()?, &options)?;
        match &boot {
            Some(boot) => vm.boot(boot)?,
            None => vm.load()?,
        }
        let machine = serde_json::to_value(vm.spec()).map_err(VmmError::Machine)?;
        let (memory, device_runs) = (vm.spec().regions(), vm.spec().device_regions().len());
        let new = NewChain { memory, device_runs, vcpus: self.vcpus, machine };
        let paired = if self.protect.pair.is_given() { Some(self.protect.pair.start(&self.store)?) } else { None };
        let writer = Writer::create(&self.store, &new, self.protect.writer_options())?;
        let description = writer.description().clone();
        let stop = stop_on_signals()?;
        if let Some(paired) = &paired {
            paired.open_new(&self.store, &stop)?;
        }
        let node = paired.as_ref().map(|paired| &paired.node);
        let control = self.protect.control(paired.as_ref(), &stop)?;
        let protection = self.protect.protect(&mut vm, writer, Start::Fresh, node)?;
        let console = attach_console(&vm, &stop)?;
        let spinner = match console {
            // The terminal is the guest's.
            Some(_) => None,
            None => Some(stderr::spinner("the guest runs under checkpoints; Ctrl-C ends it with a last one")),
        };
        let mut running = Running::start(vm, Some(protection), self.protect.limits(), stop)?;
        let kept = paired.as_ref().map(|paired| paired.keep(&running, description, self.protect.mentions_most())).transpose()?;
        supervise(&mut running, control, kept.as_ref());
        if let Some(kept) = kept {
            kept.finish(&running);
        }
        let outcome = running.finish();
        drop(console);
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        if let Some(report) = RunReport::new(&outcome, &self.protect) {
            output::unless_gone(if self.json { output::json(&report) } else { report.print() })?;
        }
        outcome.error.map_or(Ok(()), |error| Err(self.protect.explain(error)))
    }
}
