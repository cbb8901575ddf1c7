//! A vCPU's thread: enter the guest, answer its ports, take part in cuts.

use std::time::Instant;

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::churn::{COMMAND_CHECK, ChurnExit};
use super::error::{VmmError, kvm};
use super::gate::GateError;
use super::run::Shared;
use crate::epoch::{Guest, GuestError};
use crate::format::Trigger;
use crate::kvm::park::Parked;
use crate::kvm::ring::EXIT_RING_FULL;
use crate::machine::{MachineState, VcpuState, capture_vcpu, capture_vm};

/// What an exit asks for beyond its own completion.
enum Next {
    /// Enter again.
    Enter,
    /// A ring is full.
    Cut,
    /// The guest's period is over until then.
    Rest(Instant),
}

/// One vCPU and the thread that runs it.
pub(super) struct VcpuThread<'s> {
    shared: &'s Shared,
    index: usize,
    fd: VcpuFd,
    /// The last exit is complete only after `KVM_RUN` was entered again.
    incomplete: bool,
    next_period: Instant,
}

impl<'s> VcpuThread<'s> {
    pub(super) fn new(shared: &'s Shared, index: usize, fd: VcpuFd) -> Self {
        Self { shared, index, fd, incomplete: false, next_period: Instant::now() }
    }

    /// Runs the vCPU until the guest is halted.
    pub(super) fn run(mut self) -> Result<(), VmmError> {
        let shared = self.shared;
        shared.gate.arrive(self.index);
        loop {
            if shared.gate.is_closed() {
                self.complete()?;
            }
            let Self { fd, index, .. } = &self;
            if !shared.gate.pass(*index, |state| capture_vcpu(fd, &shared.capture, state)) {
                return Ok(());
            }
            shared.note_first_entry();
            match self.enter()? {
                Next::Enter => {}
                Next::Rest(until) => shared.gate.rest(until),
                Next::Cut => self.cut()?,
            }
        }
    }

    fn enter(&mut self) -> Result<Next, VmmError> {
        let exit = self.fd.run();
        self.incomplete = false;
        match exit {
            Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => Ok(Next::Cut),
            Ok(VcpuExit::IoOut(port, _)) => {
                self.incomplete = true;
                self.written(port)?;
                Ok(if self.shared.vmm_share_is_used() { Next::Cut } else { Next::Enter })
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.incomplete = true;
                let asked = ChurnExit::decode(port, true);
                let check = asked == Some(ChurnExit::Command) && self.shared.monitor.check_wanted(self.index);
                let answer = if check { COMMAND_CHECK } else { 0 };
                for (byte, answer) in data.iter_mut().zip(answer.to_le_bytes()) {
                    *byte = answer;
                }
                Ok(if asked == Some(ChurnExit::Pace) { self.pace() } else { Next::Enter })
            }
            Ok(exit) => {
                let exit = format!("{exit:?}");
                Err(VmmError::Exit { vcpu: self.index, exit })
            }
            Err(error) if error.errno() == libc::EINTR => {
                self.shared.gate.acknowledge(self.index);
                Ok(Next::Enter)
            }
            Err(error) if error.errno() == libc::EAGAIN => Ok(Next::Enter),
            Err(error) => Err(kvm("KVM_RUN")(error)),
        }
    }

    fn written(&self, port: u16) -> Result<(), VmmError> {
        match ChurnExit::decode(port, false) {
            Some(ChurnExit::Checked) => {
                self.shared.monitor.checked(self.index);
                self.shared.announce();
            }
            Some(ChurnExit::Inconsistent) => {
                if let (_, Some(inconsistency)) = self.shared.monitor.read() {
                    return Err(VmmError::Inconsistent(inconsistency));
                }
            }
            Some(ChurnExit::Progress | ChurnExit::Command | ChurnExit::Pace) | None => {}
        }
        Ok(())
    }

    fn pace(&mut self) -> Next {
        let now = Instant::now();
        let period = self.shared.guest_period;
        // A guest that was late begins a new count: it does not catch up.
        self.next_period = if self.next_period + period < now { now + period } else { self.next_period + period };
        Next::Rest(self.next_period)
    }

    /// Completes the last exit without entering the guest.
    fn complete(&mut self) -> Result<(), VmmError> {
        while self.incomplete {
            self.fd.set_kvm_immediate_exit(1);
            let _ = self.enter()?;
        }
        Ok(())
    }

    fn cut(&mut self) -> Result<(), VmmError> {
        if self.shared.gate.try_lead() {
            self.complete()?;
            self.shared.cut(Trigger::RingFull, Some((self.index, &self.fd)));
        }
        Ok(())
    }
}

/// The machine, as the engine sees it during a cut that this thread leads.
pub(super) struct Cutting<'s> {
    shared: &'s Shared,
    /// The vCPU of the leading thread, if it is one's.
    me: Option<(usize, &'s VcpuFd)>,
    /// The guest is not to run again after this cut.
    last: bool,
    open: bool,
}

impl<'s> Cutting<'s> {
    pub(super) fn new(shared: &'s Shared, me: Option<(usize, &'s VcpuFd)>, last: bool) -> Self {
        Self { shared, me, last, open: false }
    }
}

impl Drop for Cutting<'_> {
    /// A cut that was skipped never parked anybody, but the gate was closed for it.
    fn drop(&mut self) {
        self.resume();
    }
}

/// An error of the gate or of the state, on its way to the engine.
struct CaptureFailed(GuestError);

impl From<GateError> for CaptureFailed {
    fn from(error: GateError) -> Self {
        Self(Box::new(error))
    }
}

impl Guest for Cutting<'_> {
    type State = MachineState;

    fn park(&mut self) -> Result<(), GuestError> {
        self.shared.gate.park_others(self.me.map(|(index, _)| index));
        Ok(())
    }

    fn capture(&mut self, _parked: &Parked<'_>, into: &mut MachineState) -> Result<(), GuestError> {
        let shared = self.shared;
        into.vcpus.resize_with(shared.vcpus, VcpuState::default);
        for (vcpu, index) in into.vcpus.iter_mut().zip(0..) {
            vcpu.index = index;
        }
        let MachineState { vm, vcpus, .. } = into;
        // The VM comes before the vCPUs: see `machine`, "Order".
        capture_vm(&shared.fd, &shared.capture, vm)?;
        let mut own = self.me.map(|(index, fd)| (index, fd, VcpuState::default()));
        if let Some((index, _, state)) = &mut own
            && let Some(vcpu) = vcpus.get_mut(*index)
        {
            std::mem::swap(vcpu, state);
        }
        let mine = || {
            let captured = own.as_mut().map_or(Ok(()), |(_, fd, state)| capture_vcpu(fd, &shared.capture, state));
            captured.map_err(|error| CaptureFailed(Box::new(error)))
        };
        let captured = shared.gate.capture(self.me.map(|(index, _)| index), mine, |index, state| {
            if let Some(vcpu) = vcpus.get_mut(index) {
                std::mem::swap(vcpu, state);
            }
        });
        if let Some((index, _, state)) = own
            && let Some(vcpu) = vcpus.get_mut(index)
        {
            *vcpu = state;
        }
        captured.map_err(|CaptureFailed(error)| error)
    }

    fn resume(&mut self) {
        if !std::mem::replace(&mut self.open, true) {
            if self.last {
                self.shared.gate.halt();
            }
            self.shared.gate.open();
        }
    }

    fn halt(&mut self) {
        self.shared.gate.halt();
        self.resume();
    }
}
