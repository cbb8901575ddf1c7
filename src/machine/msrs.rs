//! Lists of model-specific registers.

use kvm_bindings::{Msrs, kvm_msr_entry};

use super::error::StateError;
use super::order::VcpuPiece;
use super::spec::MSRS_MAX;

/// A list of registers as the kernel takes it.
pub(super) fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, StateError> {
    let too_many = |_| StateError::Size {
        piece: VcpuPiece::Msrs.name(),
        expected: MSRS_MAX * size_of::<kvm_msr_entry>(),
        found: size_of_val(entries),
    };
    Msrs::from_entries(entries).map_err(too_many)
}

/// Checks that the kernel did all of a list. `action` says what was to be done.
pub(super) fn all_msrs(msrs: &Msrs, done: usize, vcpu: u32, action: &'static str) -> Result<(), StateError> {
    // The kernel stops at the first register that it can't do, and says how many it did.
    msrs.as_slice().get(done).map_or(Ok(()), |msr| Err(StateError::Msr { vcpu, index: msr.index, action }))
}
