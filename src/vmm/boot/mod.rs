//! What starts a Linux kernel: its files, where they go in memory, its tables, and the vCPUs as
//! firmware leaves them.

mod acpi;
mod cpu_level;
mod cpuid;
mod error;
mod image;
mod layout;
mod load;
mod registers;
mod start;

pub(in crate::vmm) use acpi::vcpus_checked;
pub use cpu_level::CpuLevel;
pub(in crate::vmm) use cpuid::Processors;
pub use error::LinuxError;
pub use image::{Boot, FileId};
