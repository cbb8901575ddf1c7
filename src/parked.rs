//! The proof that no vCPU runs.

use std::marker::PhantomData;

/// Proof that every vCPU of a VM is out of `KVM_RUN`, has completed its port and MMIO exits, and
/// stays so for `'p`.
///
/// Reading harvested pages before the reset, and reading state, need it.
/// [`Engine`](crate::epoch::Engine) makes one after the guest's `park` returned; a VMM that uses
/// the rings alone makes its own.
#[derive(Debug)]
pub struct Parked<'p> {
    scope: PhantomData<&'p mut ()>,
}

impl<'p> Parked<'p> {
    /// Vouches for it. `scope` is whatever the caller holds to keep the vCPUs parked: the proof
    /// can't outlive it.
    ///
    /// A false promise breaks no memory safety, but checkpoints made under it may mix two instants
    /// or miss writes.
    #[must_use]
    pub fn vouch<T: ?Sized>(scope: &'p mut T) -> Self {
        let _ = scope;
        Self { scope: PhantomData }
    }
}
