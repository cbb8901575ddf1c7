//! Interrupt lines of KVM's interrupt controllers.
//!
//! They are set by `KVM_IRQ_LINE` and not by an eventfd: KVM may deliver the latter a moment later from a worker of its own, and an interrupt that is on its way while a
//! checkpoint is taken is in none of its pieces.

use std::fmt;
use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_superio::Trigger;

/// What a device tells the processor with.
pub(super) trait Line: fmt::Debug + Send {
    /// Makes the line high or low.
    fn set(&self, high: bool) -> io::Result<()>;
}

/// A line of the machine.
#[derive(Clone, Debug)]
pub(super) struct IrqLine {
    pub(super) vm: Arc<VmFd>,
    /// The input of the I/O interrupt controller.
    pub(super) number: u32,
}

impl Line for IrqLine {
    fn set(&self, high: bool) -> io::Result<()> {
        Ok(self.vm.set_irq_line(self.number, high)?)
    }
}

impl Trigger for IrqLine {
    type E = io::Error;

    /// A pulse: interrupts of the ISA are edge-triggered.
    fn trigger(&self) -> io::Result<()> {
        self.set(true)?;
        self.set(false)
    }
}
