//! What the verbs that run a guest need where it is Linux.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;

use super::error::CliError;
use crate::vmm::boot::{Boot, CpuLevel};
use crate::vmm::devices::{Console, DiskBase};
use crate::vmm::{GuestSpec, Stop, Vm, VmmError, memory_regions};

/// A Linux guest.
#[derive(Debug, Args)]
pub(super) struct LinuxArgs {
    /// Boot this Linux kernel, a bzImage (`vmlinuz`) or an ELF image (`vmlinux`), in place of a
    /// built-in guest. Its serial console is standard input and output; on a terminal, Ctrl-A x
    /// ends the run.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initrd.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// A disk's image, which is never written: what the guest writes is in the checkpoints. May be
    /// given up to seven times.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    disk: Vec<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", requires = "kernel")]
    cmdline: String,
    /// What the guest finds of the processor: all that this host has, or no more than a level that
    /// many hosts have, so that it can go on there, too. Built-in guests find nothing of it, and
    /// move anyway.
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = CpuName::Host, requires = "kernel")]
    cpu: CpuName,
}

/// How much of the processor.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CpuName {
    /// All that this host's KVM supports.
    Host,
    /// SSE4.2, POPCNT, CMPXCHG16B: processors from about 2009 on.
    #[value(name = "x86-64-v2")]
    V2,
    /// AVX2, BMI, FMA, MOVBE besides: from about 2015 on.
    #[value(name = "x86-64-v3")]
    V3,
}

impl From<CpuName> for CpuLevel {
    fn from(name: CpuName) -> Self {
        match name {
            CpuName::Host => Self::Host,
            CpuName::V2 => Self::V2,
            CpuName::V3 => Self::V3,
        }
    }
}

impl LinuxArgs {
    /// Reads and checks the files before anything is made. Whether this KVM can run them is found
    /// as the machine is built.
    pub(super) fn read(&self, memory_bytes: u64, vcpus: u32) -> Result<Option<Boot>, CliError> {
        let Some(kernel) = &self.kernel else { return Ok(None) };
        let mut boot = Boot::read(kernel, self.initrd.as_deref(), &self.cmdline).map_err(VmmError::from)?;
        boot = boot.with_cpu(self.cpu.into());
        for disk in &self.disk {
            boot = boot.with_disk(DiskBase::read(disk).map_err(VmmError::from)?);
        }
        boot.check(&memory_regions(memory_bytes), vcpus).map_err(VmmError::from)?;
        Ok(Some(boot))
    }
}

/// Connects standard input with the guest's serial port, where it has one.
pub(super) fn attach_console(vm: &Vm, stop: &Stop) -> Result<Option<Console>, CliError> {
    let attach = |devices| Console::attach(devices, stop.clone());
    let is_linux = matches!(vm.spec().guest, GuestSpec::Linux(_));
    let console = vm.devices().filter(|_| is_linux).cloned().map(attach).transpose();
    console.map_err(|source| CliError::System { step: "connecting standard input with the guest", source })
}

/// The same for a machine that was taken over, which goes on whether its console has input or not.
/// A terminal would stop a process in the background that takes it: that one has none.
pub(super) fn attach_console_if_possible(vm: &Vm, stop: &Stop) -> Option<Console> {
    // On what is no terminal the question fails.
    if tcgetpgrp(std::io::stdin()).is_ok_and(|foreground| foreground != getpgrp()) {
        return None;
    }
    attach_console(vm, stop).unwrap_or_else(|error| {
        tracing::warn!(%error, "no input for the guest's console");
        None
    })
}
