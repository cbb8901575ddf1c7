//! Whether a captured machine can run on a host: compared piece by piece, before anything is built.
//!
//! [`compare`] takes the state of an epoch and what a host [offers](Offer), and gives a [`Fit`]: a
//! list of [`Finding`]s, each with its piece, what was captured, what the host has, and a
//! [`Verdict`]. Nothing is read or written and no clock is asked, so a host's offer that was kept
//! as JSON can be compared with anywhere. Where the machine can run, [`Fit::adapt`] makes its state
//! one that this host takes.
//!
//! `docs/kernel.md`, "Hosts of another make", says what decides and why.

mod compare;
mod cpuid;
mod feature_words;
mod findings;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;

pub use compare::compare;

use super::msrs::msr_list;
use super::state::MachineState;
#[cfg(doc)]
use crate::kvm::offer::Offer;

/// How far two frequencies of a time stamp counter may differ and be the same, in millionths: what
/// KVM itself takes for the same unless told otherwise, and QEMU and Firecracker do.
pub const TSC_TOLERANCE_PPM: u32 = 250;

/// Whether a counter of `host_khz` is as good as one of `khz`.
#[must_use]
pub const fn is_same_frequency(khz: u32, host_khz: u32) -> bool {
    // Neither overflows.
    khz.abs_diff(host_khz) as u64 * 1_000_000 <= khz as u64 * TSC_TOLERANCE_PPM as u64
}

/// What is to be done where the host's time stamp counter has another frequency and can't be
/// scaled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TscChoice {
    /// The guest does not run.
    #[default]
    Same,
    /// It runs with the host's frequency, unless it was shown an invariant counter.
    Host,
}

/// What the machine is wanted for, besides what its state says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wishes {
    /// For a counter of another frequency.
    pub tsc: TscChoice,
    /// Writes are tracked by dirty rings.
    pub ring: bool,
    /// For a guest that has a kernel: whether the host's KVM runs kernels
    /// (`kvm::probe::runs_kernels`). `None` for other guests, and where it was not tried.
    pub runs_kernels: Option<bool>,
}

/// A register of CPUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the registers")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(tag = "piece", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Piece {
    /// All that CPUID says.
    Cpuid,
    /// A leaf of CPUID.
    CpuidLeaf {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
    },
    /// A register of a leaf, all of whose bits are features.
    CpuidWord {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: Register,
    },
    /// A feature: a bit of CPUID.
    CpuidBit {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: Register,
        /// The bit.
        bit: u8,
    },
    /// All model-specific registers.
    Msrs,
    /// A model-specific register.
    Msr {
        /// Its number.
        index: u32,
    },
    /// Extended state: its size.
    Xsave,
    /// A component of extended state.
    XsaveComponent {
        /// Its bit in XCR0 or IA32_XSS.
        component: u8,
    },
    /// The time stamp counter's frequency.
    Tsc,
    /// All capabilities of the kernel that are needed.
    Capabilities,
    /// A capability of the kernel.
    Capability {
        /// Its name, as the kernel's header has it, or a few words.
        capability: &'static str,
    },
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpuid => f.write_str("CPUID"),
            Self::CpuidLeaf { leaf, subleaf } => write!(f, "CPUID {leaf:#x}.{subleaf}"),
            Self::CpuidWord { leaf, subleaf, register } => write!(f, "CPUID {leaf:#x}.{subleaf} {register}"),
            Self::CpuidBit { leaf, subleaf, register, bit } => write!(f, "CPUID {leaf:#x}.{subleaf} {register} bit {bit}"),
            Self::Msrs => f.write_str("MSRs"),
            Self::Msr { index } => write!(f, "MSR {index:#x}"),
            Self::Xsave => f.write_str("XSAVE"),
            Self::XsaveComponent { component } => write!(f, "XSAVE component {component}"),
            Self::Tsc => f.write_str("TSC"),
            Self::Capabilities => f.write_str("capabilities"),
            Self::Capability { capability } => f.write_str(capability),
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        })
    }
}

/// What a finding comes to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing differs.
    Same,
    /// Something differs, and the guest runs all the same.
    Harmless,
    /// The guest can't run here.
    CannotRun,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same",
            Self::Harmless => "harmless",
            Self::CannotRun => "cannot run",
        })
    }
}

/// One piece of a captured machine beside the host's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What it is about.
    #[serde(flatten)]
    pub piece: Piece,
    /// Its name, where it has one.
    pub name: Option<&'static str>,
    /// The vCPU, where it is one's; the first for which it is so.
    pub vcpu: Option<u32>,
    /// What was captured.
    pub captured: String,
    /// What the host has.
    pub host: String,
    /// What it comes to.
    pub verdict: Verdict,
    /// Why, in a sentence without a final stop.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.piece)?;
        if let Some(name) = self.name {
            write!(f, " ({name})")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// How the guest's time stamp counter goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counter {
    /// At the frequency that it had, or one that counts as the same.
    #[default]
    Same,
    /// At the frequency that it had, which the host scales to.
    Scaled,
    /// At the host's.
    Host,
}

/// What a comparison came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fit {
    findings: Vec<Finding>,
    counter: Counter,
    counter_may_be_hosts: bool,
    host_khz: Option<u32>,
    msrs_left_out: Vec<u32>,
    xsave_bytes: Option<usize>,
}

impl Fit {
    /// Whether the machine can run.
    #[must_use]
    pub fn can_run(&self) -> bool {
        self.reasons().next().is_none()
    }

    /// All findings, by piece; those of a part that is the same throughout are one.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Why it can't run.
    pub fn reasons(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.verdict == Verdict::CannotRun)
    }

    /// How the counter goes on, if the machine can run.
    #[must_use]
    pub const fn counter(&self) -> Counter {
        self.counter
    }

    /// What whoever runs the machine should know: the counter, where it goes on at the host's
    /// frequency.
    #[must_use]
    pub fn warning(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| self.counter == Counter::Host && finding.piece == Piece::Tsc)
    }

    /// Whether [`TscChoice::Host`] is all that it takes to run.
    #[must_use]
    pub fn runs_with_hosts_counter(&self) -> bool {
        self.counter_may_be_hosts && !self.can_run() && self.reasons().all(|finding| finding.piece == Piece::Tsc)
    }

    /// Makes state that was captured elsewhere such that this host takes it: without registers that
    /// it does not know and that hold nothing, with its size of extended state, and with its
    /// frequency where it can't give the guest's.
    pub fn adapt(&self, state: &mut MachineState) {
        for vcpu in &mut state.vcpus {
            if self.counter == Counter::Host {
                vcpu.tsc_khz = self.host_khz;
            }
            if let (Some(bytes), false) = (self.xsave_bytes, vcpu.xsave.is_empty()) {
                vcpu.xsave.resize(bytes, 0);
            }
            let Some(msrs) = vcpu.msrs.as_mut().filter(|_| !self.msrs_left_out.is_empty()) else { continue };
            let kept: Vec<_> = msrs.as_slice().iter().filter(|msr| !self.msrs_left_out.contains(&msr.index)).copied().collect();
            // Fewer than there were always fit.
            if let Ok(kept) = msr_list(&kept) {
                *msrs = kept;
            }
        }
    }
}
