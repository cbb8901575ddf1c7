//! What the engine needs of a VMM.

use crate::format::StateRecord;
use crate::parked::Parked;

/// An error of the VMM's.
pub type GuestError = Box<dyn std::error::Error + Send + Sync>;

/// State as a VMM captures it. It is captured into while the guest is stopped, over and over, and
/// turned into records while the guest runs.
pub trait CapturedState: Clone + Default + Send + Sync + 'static {
    /// The records that a restore will be given back. Names and versions are the VMM's.
    fn records(&self) -> Vec<StateRecord>;
}

/// A machine that the engine can stop for a cut. The VMM keeps its vCPU threads; the engine calls
/// these from whichever thread calls [`Engine::cut`](super::Engine::cut): a vCPU's own after its
/// ring-full exit, or any other.
pub trait Guest {
    /// What [`capture`](Self::capture) fills.
    type State: CapturedState;

    /// Gets every vCPU out of the guest, completes port and MMIO exits (an exit is complete only
    /// after `KVM_RUN` was entered again, with `immediate_exit`), and quiesces devices: nobody
    /// writes guest memory afterwards.
    ///
    /// # Errors
    /// Nothing is parked then, and the cut is given up.
    fn park(&mut self) -> Result<(), GuestError>;

    /// Reads the state of all vCPUs, the VM and the devices.
    ///
    /// # Errors
    /// The cut is given up and the guest resumes; its pages are in the next epoch.
    fn capture(&mut self, parked: &Parked<'_>, into: &mut Self::State) -> Result<(), GuestError>;

    /// Lets everything that [`park`](Self::park) stopped run again.
    fn resume(&mut self);

    /// The engine gives up, and the guest is not to run unprotected: stops all vCPUs for good.
    /// Comes instead of [`resume`](Self::resume), or while the guest runs.
    fn halt(&mut self);
}

/// A guest that can go back to its last cut: see [`Engine::rollback`](super::Engine::rollback).
pub trait RollbackGuest: Guest {
    /// Puts the vCPUs, the VM and the devices back to `state`, which [`capture`](Guest::capture)
    /// filled at the last cut of this very machine. Its memory is as it was then.
    /// [`machine::Rewinder`](crate::machine::Rewinder) does it for vCPUs and the VM.
    ///
    /// # Errors
    /// What was put back and what was not is unknown then: the engine halts the guest.
    fn restore(&mut self, parked: &Parked<'_>, state: &Self::State) -> Result<(), GuestError>;
}
