//! The machine that a run is of.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::BenchError;
use crate::kvm::host::{Flavour, Host};
use crate::kvm::probe::ring_reserve;

/// The machine that a run is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor, as the kernel names it.
    pub processor: String,
    /// Processors that this process may use.
    pub processors: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Which KVM it is.
    pub kvm: Flavour,
    /// Whether the processor logs pages itself.
    pub pml: bool,
    /// The largest ring's entries, 0 where there is no ring.
    pub ring_entries_max: u32,
    /// The version of this program.
    pub version: &'static str,
    /// Whether this program was built for speed. Without that, its own share of each phase is
    /// several times larger.
    pub optimised: bool,
}

impl Machine {
    /// Asks the system and the KVM whose device is `kvm`.
    ///
    /// # Errors
    /// [`BenchError::Host`].
    pub fn probe(kvm: &Path) -> Result<Self, BenchError> {
        let host = Host::probe(kvm)?;
        Ok(Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: field("/proc/meminfo", "MemTotal").and_then(|text| kib(&text)).unwrap_or_default(),
            kernel: host.kernel,
            kvm: host.flavour,
            // The kernel keeps 64 entries of a ring free, and more where the processor has a log of
            // its own.
            pml: host.ring.is_some() && ring_reserve(kvm).is_ok_and(|reserve| reserve > 64),
            ring_entries_max: host.ring.map_or(0, |ring| ring.entries_max),
            version: env!("CARGO_PKG_VERSION"),
            optimised: !cfg!(debug_assertions),
        })
    }
}

/// The first field of that name in a file of lines like `name: value`.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.split_once(':').filter(|(found, _)| found.trim() == name))?.1;
    Some(value.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Bytes of `123 kB`.
fn kib(text: &str) -> Option<u64> {
    text.strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}
