//! Why a Linux guest can't be booted.

use std::path::PathBuf;

use super::cpu_level::CpuLevel;
use crate::kvm::probe::Refused;
use crate::vmm::devices::{DeviceName, DiskBaseError};

/// Why a Linux guest can't be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinuxError {
    /// A file that can't be read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no kernel that could be booted.
    #[error("{} is no Linux kernel that can be booted: {reason}", path.display())]
    NoKernel {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        reason: &'static str,
    },
    /// The loader refused the kernel.
    #[error("{} can't be loaded as a Linux kernel", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The kernel does not fit.
    #[error("{found} bytes of memory: this kernel needs at least {needed} to start in")]
    TooLittleMemory {
        /// Bytes of guest memory.
        found: u64,
        /// Bytes that the kernel needs, without an initrd and without what it does later.
        needed: u64,
    },
    /// The initrd does not fit behind the kernel.
    #[error("{} has {bytes} bytes: there is room for {room} between the kernel and the end of memory that it can be in", path.display())]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// Bytes that there is room for.
        room: u64,
    },
    /// The command line is too long, or can't be one.
    #[error("the command line has {found} bytes: this kernel takes at most {most}, and no zero byte")]
    CommandLine {
        /// Its size in bytes.
        found: usize,
        /// The largest size in bytes.
        most: usize,
    },
    /// A disk's base image.
    #[error(transparent)]
    Disk(#[from] DiskBaseError),
    /// More vCPUs than the tables can describe.
    #[error("{found} vCPUs: a Linux guest takes 1 to {most}")]
    Vcpus {
        /// Asked for.
        found: u32,
        /// The most.
        most: u32,
    },
    /// This host does not have the level of the processor that the guest is to be told of.
    #[error("this host's KVM does not have all of {level}: it lacks {}", lacking.join(", "))]
    CpuLevel {
        /// The level.
        level: CpuLevel,
        /// What it lacks.
        lacking: Vec<&'static str>,
    },
    /// A machine without a device that this program gives to each.
    #[error("a machine without the device {device} can't be built by this program")]
    NoDevice {
        /// The device.
        device: DeviceName,
    },
    /// Something did not go into guest memory.
    #[error("writing {what} to guest memory at {address:#x}")]
    Write {
        /// What.
        what: &'static str,
        /// Guest physical address.
        address: u64,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The machine is for a Linux guest, which comes from files.
    #[error("a Linux guest comes from its files or from a checkpoint")]
    NotBuiltIn,
    /// The machine is not for a Linux guest.
    #[error("the machine is for a built-in guest")]
    BuiltIn,
    /// This KVM does not run kernels.
    #[error(
        "this machine's KVM can't run a stock kernel: it interprets code of the kernel's privilege level, which would take hours to boot, or refuses it"
    )]
    Kvm(#[source] Refused),
}
