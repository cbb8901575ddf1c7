//! The machine, as the engine sees it during a cut.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};

use super::devices::{Devices, Quiet};
use super::gate::Gate;
use crate::epoch::{Guest, GuestError, RollbackGuest};
use crate::lock::lock;
use crate::machine::{CaptureSpec, MachineState, Rewinder, VcpuState, capture_vcpu, capture_vm, notify_paused, unhalt_vcpus};
use crate::parked::Parked;

/// A guest learns of a pause that was longer. Its watchdogs wait for ten seconds at least, and
/// telling it costs a call for each vCPU.
const PAUSE_TOLD: Duration = Duration::from_secs(1);

/// What a cut needs of the machine.
#[derive(Debug)]
pub(super) struct Vcpus {
    pub(super) gate: Gate,
    pub(super) vm: Arc<VmFd>,
    pub(super) capture: CaptureSpec,
    /// A second handle of each vCPU, for the leader of a cut. The lock is never waited for: it is
    /// for putting state back, which changes `kvm_run`.
    pub(super) handles: Vec<Mutex<VcpuFd>>,
    pub(super) rewinder: Mutex<Rewinder>,
    /// A built-in guest has none.
    pub(super) devices: Option<Arc<Devices>>,
}

/// What the guest does after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It runs on.
    Run,
    /// It does not run again.
    Halt,
    /// It stays parked, and the gate closed.
    Park,
}

/// The machine, as the engine sees it during a cut that this thread leads.
pub(super) struct Cutting<'s> {
    vcpus: &'s Vcpus,
    /// The vCPU of the leading thread, if it is one's.
    me: Option<usize>,
    after: After,
    is_done: bool,
    /// From parking to running again: what comes in between would be in a device and its interrupt
    /// in no chip, or in memory and in no device.
    quiet: Option<Quiet<'s>>,
    begun: Instant,
    parked: bool,
}

impl<'s> Cutting<'s> {
    pub(super) fn new(vcpus: &'s Vcpus, me: Option<usize>, after: After) -> Self {
        Self { vcpus, me, after, is_done: false, quiet: None, begun: Instant::now(), parked: false }
    }

    /// The guest's clocks went on while it stood still. A vCPU that is in the guest would keep this
    /// waiting.
    fn tell_paused(&self) {
        for handle in &self.vcpus.handles {
            if let Err(error) = notify_paused(&lock(handle)) {
                tracing::warn!(%error, "the guest can't be told of a long pause: its watchdogs may complain");
            }
        }
    }
}

impl Drop for Cutting<'_> {
    /// A cut that was skipped never parked anybody, but the gate was closed for it.
    fn drop(&mut self) {
        self.resume();
    }
}

impl Guest for Cutting<'_> {
    type State = MachineState;

    fn park(&mut self) -> Result<(), GuestError> {
        self.vcpus.gate.park_others(self.me);
        self.quiet = self.vcpus.devices.as_ref().map(|devices| devices.quiet());
        self.parked = true;
        Ok(())
    }

    fn capture(&mut self, _parked: &Parked<'_>, into: &mut MachineState) -> Result<(), GuestError> {
        let machine = self.vcpus;
        into.vcpus.resize_with(machine.handles.len(), VcpuState::default);
        for (vcpu, index) in into.vcpus.iter_mut().zip(0..) {
            vcpu.index = index;
        }
        into.devices = self.quiet.as_mut().map(Quiet::capture).unwrap_or_default();
        let MachineState { vm, vcpus, .. } = into;
        // The VM comes before the vCPUs: see `machine`, "Order".
        capture_vm(&machine.vm, &machine.capture, vm)?;
        Ok(machine.gate.capture(self.me, vcpus, |index, state| {
            machine.handles.get(index).map_or(Ok(()), |fd| capture_vcpu(&mut lock(fd), &machine.capture, state))
        })?)
    }

    fn resume(&mut self) {
        self.quiet = None;
        if std::mem::replace(&mut self.is_done, true) {
            return;
        }
        match self.after {
            After::Park => return,
            After::Halt => self.vcpus.gate.halt(),
            After::Run if self.parked && self.begun.elapsed() >= PAUSE_TOLD => self.tell_paused(),
            After::Run => {}
        }
        self.vcpus.gate.open();
    }

    fn halt(&mut self) {
        self.vcpus.gate.halt();
        self.resume();
    }
}

impl RollbackGuest for Cutting<'_> {
    fn restore(&mut self, _parked: &Parked<'_>, state: &MachineState) -> Result<(), GuestError> {
        let machine = self.vcpus;
        let mut rewinder = lock(&machine.rewinder);
        for (handle, state) in machine.handles.iter().zip(&state.vcpus) {
            rewinder.vcpu(&mut lock(handle), &machine.capture, state)?;
        }
        // The VM comes after the vCPUs: see `machine`, "Order".
        rewinder.vm(&machine.vm, &machine.capture, &state.vm)?;
        unhalt_vcpus(&machine.vm, &machine.capture, &state.vcpus)?;
        if let Some(quiet) = &mut self.quiet {
            quiet.restore(&state.devices)?;
            quiet.resume()?;
        }
        Ok(())
    }
}
