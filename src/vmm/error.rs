//! What can go wrong in the reference VMM.

use super::boot::LinuxError;
use super::devices::{DeviceError, DiskBaseError};
use super::guests::churn::{ChurnError, Inconsistency};
use super::guests::ledger::LedgerError;
use super::guests::touch::TouchError;
use super::links::{LinkError, NetSpecError};
use super::vsock::VsockError;
use crate::epoch::EngineError;
use crate::kvm::host::HostError;
use crate::kvm::probe::Refused;
use crate::kvm::ring::RingError;
use crate::machine::StateError;
use crate::memory::MemoryError;
use crate::replica::proto::Halted;
use crate::restore::RestoreError;
use crate::track::BudgetError;
use crate::track::TrackError;

/// Why a machine can't be built or can't run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// KVM's device can't be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// KVM refused a step.
    #[error("{step}")]
    Kvm {
        /// What was asked.
        step: &'static str,
        /// Its answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The system refused a step.
    #[error("{step}")]
    System {
        /// What was asked.
        step: &'static str,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
    /// A number of vCPUs that there can't be.
    #[error("{found} vCPUs: this KVM takes 1 to {max}")]
    Vcpus {
        /// Asked for.
        found: u32,
        /// The most.
        max: u32,
    },
    /// The guest does not fit the machine.
    #[error(transparent)]
    Guest(#[from] ChurnError),
    /// The guest `touch` does not fit the machine.
    #[error(transparent)]
    Touch(#[from] TouchError),
    /// The guest `ledger` does not fit the machine.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Network devices that a machine can't have.
    #[error(transparent)]
    Net(#[from] NetSpecError),
    /// The guest drives no network device, or not so many.
    #[error("`{guest}` has no driver for {found} network devices")]
    NoDriver {
        /// The guest.
        guest: String,
        /// Asked for.
        found: usize,
    },
    /// The guest does nothing without a network device.
    #[error("`{guest}` needs a network device: it answers requests that come over one")]
    NeedsNet {
        /// The guest.
        guest: String,
    },
    /// The host's side of a socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The guest has no driver for a socket device, or the machine has none.
    #[error("`{guest}` has no socket device")]
    NoVsock {
        /// The guest.
        guest: String,
    },
    /// Links for more network devices than the machine has.
    #[error("links for {found} network devices: the machine has {most}")]
    Nets {
        /// Given.
        found: usize,
        /// What the machine has.
        most: usize,
    },
    /// A link can't be opened.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A Linux guest can't be booted.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// A device can't go on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The guest could not be put into memory.
    #[error("loading the guest at guest physical address {address:#x}")]
    Load {
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// The budget.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Pages can't be left writable on this kernel.
    #[error("no hot set: pages can't be left writable here")]
    HotSet(#[source] Refused),
    /// How many entries of a ring this KVM keeps free could not be found out.
    #[error("how many entries of a ring this KVM keeps free")]
    RingReserve(#[source] Refused),
    /// The rings.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The tracker.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Capturing or applying state.
    #[error(transparent)]
    State(#[from] StateError),
    /// Memory could not be filled while the guest ran.
    #[error(transparent)]
    Restore(Box<RestoreError>),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The machine of a chain is none that this program can build.
    #[error("the chain's machine can't be built by this program")]
    Machine(#[source] serde_json::Error),
    /// A vCPU left the guest for a reason that nobody handles.
    #[error("vCPU {vcpu} left the guest: {exit}")]
    Exit {
        /// The vCPU.
        vcpu: usize,
        /// The exit.
        exit: String,
    },
    /// The guest found that its memory or registers are not of one instant.
    #[error("the guest found an inconsistency: {0}")]
    Inconsistent(Inconsistency),
    /// The guest did not answer in time.
    #[error("the guest did not finish its check within {seconds} s")]
    CheckTimeout {
        /// The time it had.
        seconds: u64,
    },
    /// Another machine goes on, or this one was to stop: the witness decides.
    #[error("{0}")]
    Fenced(Box<Halted>),
    /// A vCPU's thread panicked.
    #[error("the thread of vCPU {vcpu} panicked")]
    Panicked {
        /// The vCPU.
        vcpu: usize,
    },
}

impl From<DiskBaseError> for VmmError {
    fn from(error: DiskBaseError) -> Self {
        Self::Linux(error.into())
    }
}

impl From<RestoreError> for VmmError {
    fn from(error: RestoreError) -> Self {
        Self::Restore(Box::new(error))
    }
}

/// For `map_err`.
pub(super) fn kvm(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmmError {
    move |source| VmmError::Kvm { step, source }
}

/// For `map_err`.
pub(super) fn system(step: &'static str) -> impl FnOnce(std::io::Error) -> VmmError {
    move |source| VmmError::System { step, source }
}
