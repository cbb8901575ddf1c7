//! Interrupt lines of KVM's interrupt controllers.
//!
//! They are set by `KVM_IRQ_LINE` and not by an eventfd. KVM may deliver the latter a moment later
//! from a worker of its own, and an interrupt that is on its way while a checkpoint is taken is in
//! none of its pieces.

use std::fmt;
use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_superio::Trigger;

/// What a device tells the processor with.
pub(in crate::vmm) trait Line: fmt::Debug + Send + Sync {
    /// Makes the line high or low.
    ///
    /// # Errors
    /// Of the system.
    fn set(&self, high: bool) -> io::Result<()>;
}

/// A line of the machine.
#[derive(Debug)]
pub(in crate::vmm) struct IrqLine {
    pub(in crate::vmm) vm: Arc<VmFd>,
    /// The input of the I/O interrupt controller.
    pub(in crate::vmm) number: u32,
}

impl Line for IrqLine {
    fn set(&self, high: bool) -> io::Result<()> {
        Ok(self.vm.set_irq_line(self.number, high)?)
    }
}

/// A line that is used for pulses: interrupts of the ISA are edge-triggered.
#[derive(Clone, Debug)]
pub(super) struct Pulse(pub(super) Arc<dyn Line>);

impl Trigger for Pulse {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.set(true)?;
        self.0.set(false)
    }
}
