//! A vCPU's thread: enter the guest, answer its ports, take part in cuts.

use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::devices::Wish;
use super::error::{VmmError, kvm};
use super::guests::{COMMAND_CHECK, GuestExit};
use super::shared::Shared;
use crate::epoch::FullRing;
use crate::format::Trigger;
use crate::kvm::ring::EXIT_RING_FULL;
use crate::machine::{capture_vcpu, leave_registers};

/// A guest that switched the machine off does not run while the run is brought to its end.
const UNTIL_THE_END: Duration = Duration::from_secs(3600);

/// What an exit asks for beyond its own completion.
enum Next {
    /// Enter again.
    Enter,
    /// The ring is full.
    RingFull,
    /// The epoch is to end.
    Cut(Trigger),
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
    /// When the pass in hand could begin; none before the first period.
    burst_began: Option<Instant>,
    /// The guest waits for its period, which begins then: a cut in between does not shorten the
    /// wait.
    rests_until: Option<Instant>,
    /// A cut for outputs was tried before this entry. Where storage is behind there is none, and
    /// the guest runs on meanwhile.
    tried_cut: bool,
}

impl<'s> VcpuThread<'s> {
    pub(super) fn new(shared: &'s Shared, index: usize, mut fd: VcpuFd) -> Self {
        leave_registers(&mut fd, &shared.vcpus.capture);
        Self {
            shared,
            index,
            fd,
            incomplete: false,
            next_period: Instant::now(),
            burst_began: None,
            rests_until: None,
            tried_cut: false,
        }
    }

    /// Runs the vCPU until the guest is halted.
    pub(super) fn run(mut self) -> Result<(), VmmError> {
        let shared = self.shared;
        shared.vcpus.gate.arrive(self.index);
        loop {
            if shared.vcpus.gate.is_closed() {
                self.complete()?;
            }
            let Self { fd, index, .. } = &mut self;
            if !shared.vcpus.gate.pass(*index, |state| capture_vcpu(fd, &shared.vcpus.capture, state)) {
                return Ok(());
            }
            if let Some(until) = self.rests_until.filter(|until| Instant::now() < *until) {
                shared.vcpus.gate.rest(until);
                continue;
            }
            self.rests_until = None;
            if let Some(devices) = shared.vcpus.devices.as_ref().filter(|devices| devices.is_busy()) {
                match devices.attend(shared.room_pages(), &|| shared.vcpus.gate.is_closed())? {
                    Wish::Nothing => {}
                    Wish::Room => {
                        self.cut(Trigger::RingFull)?;
                        continue;
                    }
                    Wish::Epoch => shared.announce(),
                    Wish::End => {
                        shared.stop.ask();
                        self.rests_until = Some(Instant::now() + UNTIL_THE_END);
                        continue;
                    }
                }
                if shared.vcpus.gate.is_closed() {
                    continue;
                }
            }
            if !self.tried_cut && shared.output_is_due() {
                self.tried_cut = true;
                self.cut(Trigger::Interval)?;
                continue;
            }
            self.tried_cut = false;
            shared.note_first_entry();
            match self.enter()? {
                Next::Enter => {}
                Next::Rest(until) => self.rests_until = Some(until),
                Next::RingFull if self.shared.ring_full() == FullRing::GoOn => {}
                Next::RingFull => self.cut(Trigger::RingFull)?,
                Next::Cut(trigger) => self.cut(trigger)?,
            }
        }
    }

    fn enter(&mut self) -> Result<Next, VmmError> {
        let exit = self.fd.run();
        self.incomplete = false;
        match exit {
            Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => Ok(Next::RingFull),
            Ok(VcpuExit::IoOut(port, data)) => {
                self.incomplete = true;
                if let Some(devices) = self.shared.devices_at_ports() {
                    devices.write_port(port, data)?;
                    return Ok(Next::Enter);
                }
                let said = GuestExit::decode(port, false);
                self.heard(said)?;
                Ok(match said {
                    Some(GuestExit::Cut) => Next::Cut(Trigger::Request),
                    _ if self.shared.vmm_share_is_used() => Next::Cut(Trigger::RingFull),
                    _ => Next::Enter,
                })
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.incomplete = true;
                if let Some(devices) = self.shared.devices_at_ports() {
                    devices.read_port(port, data);
                    return Ok(Next::Enter);
                }
                let asked = GuestExit::decode(port, true);
                let check = asked == Some(GuestExit::Command) && self.shared.monitor.check_wanted(self.index);
                let answer = if check { COMMAND_CHECK } else { 0 };
                for (byte, answer) in data.iter_mut().zip(answer.to_le_bytes()) {
                    *byte = answer;
                }
                Ok(if asked == Some(GuestExit::Pace) { self.pace() } else { Next::Enter })
            }
            Ok(exit) => {
                match (exit, &self.shared.vcpus.devices) {
                    (VcpuExit::MmioRead(address, data), Some(devices)) => devices.read_memory(address, data),
                    (VcpuExit::MmioWrite(address, data), Some(devices)) => devices.write_memory(address, data)?,
                    (exit, _) => return Err(VmmError::Exit { vcpu: self.index, exit: format!("{exit:?}") }),
                }
                self.incomplete = true;
                Ok(Next::Enter)
            }
            Err(error) if error.errno() == libc::EINTR => {
                self.shared.vcpus.gate.acknowledge(self.index);
                Ok(Next::Enter)
            }
            Err(error) if error.errno() == libc::EAGAIN => Ok(Next::Enter),
            Err(error) => Err(kvm("KVM_RUN")(error)),
        }
    }

    fn heard(&self, said: Option<GuestExit>) -> Result<(), VmmError> {
        match said {
            Some(GuestExit::Checked) => {
                self.shared.monitor.checked(self.index);
                self.shared.announce();
            }
            Some(GuestExit::Inconsistent) => {
                if let (_, Some(inconsistency)) = self.shared.monitor.read() {
                    return Err(VmmError::Inconsistent(inconsistency));
                }
            }
            Some(GuestExit::Progress | GuestExit::Command | GuestExit::Pace | GuestExit::Cut) | None => {}
        }
        Ok(())
    }

    fn pace(&mut self) -> Next {
        let now = Instant::now();
        if let Some(began) = self.burst_began {
            self.shared.monitor.burst(now - began);
        }
        let period = self.shared.guest_period;
        // A guest that was late begins a new count: it does not catch up.
        self.next_period = if self.next_period + period < now { now + period } else { self.next_period + period };
        self.burst_began = Some(self.next_period.max(now));
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

    fn cut(&mut self, trigger: Trigger) -> Result<(), VmmError> {
        if self.shared.vcpus.gate.try_lead() {
            self.complete()?;
            self.shared.cut(trigger, Some(self.index));
        }
        Ok(())
    }
}
