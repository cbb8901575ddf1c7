//! Saved CPU, VM and device state: its types, capture and apply, and their order as data.
//!
//! A [`CaptureSpec`] says what there is to capture on a VM. [`capture_vm`] and [`capture_vcpu`]
//! read it into a [`VmState`] and [`VcpuState`]s that are used again and again; [`apply_vcpu`],
//! [`apply_vm`] and last [`unhalt_vcpus`] write it to a fresh VM. [`MachineState::to_records`] and
//! [`MachineState::from_records`] turn it into [`StateRecord`](crate::format::StateRecord)s and
//! back. A [`Rewinder`] puts a machine that has run back to state that was captured of it. [`fit`]
//! compares state that was captured on another host with what this one has.
//!
//! # Order
//! Within a vCPU and within the VM the order is data: see [`CAPTURE_ORDER`], [`APPLY_ORDER`],
//! [`VM_CAPTURE_ORDER`], [`VM_APPLY_ORDER`] and the tables of reasons beside them. Between them:
//! - All vCPUs are parked, their last exit completed, and devices quiet, before anything is
//!   captured.
//! - Capture the VM before the vCPUs. Timers in the kernel run on while the vCPUs stand still, and
//!   an interrupt goes from the PIT through the interrupt chips to a local APIC: reading in that
//!   direction may see a tick twice, but never loses one.
//! - Harvest dirty pages after all state was read: reading state can write guest memory (pvclock,
//!   steal time).
//! - Restore memory first, then apply the vCPUs, then the VM. Applying special registers may read
//!   page directory pointers from guest memory. Applying the I/O APIC delivers what it has pending
//!   to the local APICs. The clock comes after the vCPUs' time stamp counters, on which it is
//!   based.
//! - Applying state can write guest memory too (the wall clock MSR): track writes, or have dirty
//!   logging on, before it.
//!
//! `docs/kernel.md` has the same in a table, with what is not captured.

mod capture;
mod clocks;
mod encode;
mod error;
pub mod fit;
mod msrs;
mod order;
mod rewind;
mod run_registers;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod unhalt;

pub use capture::{apply_vcpu, apply_vm, capture_vcpu, capture_vm, notify_paused};
pub use error::StateError;
pub use order::{
    APPLY_CONSTRAINTS, APPLY_ORDER, CAPTURE_CONSTRAINTS, CAPTURE_ORDER, Constraint, NOT_CAPTURED, VM_APPLY_CONSTRAINTS,
    VM_APPLY_ORDER, VM_CAPTURE_CONSTRAINTS, VM_CAPTURE_ORDER, VcpuPiece, VmPiece,
};
pub use rewind::Rewinder;
pub use run_registers::leave_registers;
pub use spec::CaptureSpec;
pub use state::{DeviceState, MachineState, VcpuState, VmState};
pub use unhalt::unhalt_vcpus;
