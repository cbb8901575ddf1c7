//! The machine that a chain has saved: its description, and its state at an epoch.

use std::path::Path;

use super::error::CliError;
use crate::format::Description;
use crate::machine::MachineState;
use crate::page::EpochId;
use crate::store::Chain;
use crate::vmm::{MachineSpec, VmmError};

/// The machine of a chain, whose description must fit the memory that the chain is about.
pub(super) fn machine_of(dir: &Path, description: &Description) -> Result<MachineSpec, CliError> {
    let file = || dir.join("description.json");
    let spec: MachineSpec = serde_json::from_value(description.machine.clone())
        .map_err(|error| CliError::Unbuildable { file: file(), source: VmmError::Machine(error) })?;
    let same_memory = spec.regions() == description.memory && spec.device_regions() == description.device_memory();
    if !same_memory || spec.vcpus != description.vcpus {
        return Err(CliError::MachineMismatch { file: file() });
    }
    Ok(spec)
}

/// The state of an epoch, for a machine with so many vCPUs.
pub(super) fn state_of(chain: &Chain, epoch: EpochId, vcpus: u32) -> Result<MachineState, CliError> {
    MachineState::from_records(&chain.state(epoch)?, vcpus).map_err(|source| CliError::State { epoch, source })
}
