//! The thread that takes pages beside the running guest, so that a cut has few left.

use std::time::Duration;

use super::shared::Shared;
use crate::epoch::Place;
use crate::kvm::probe::fault_cost;

/// Until the engine is looked at again.
const WAIT: Duration = Duration::from_millis(1);

/// The thread: rounds as long as there may be some.
pub(super) fn run(shared: &Shared) {
    if let Some(engine) = shared.engine.as_ref().filter(|engine| engine.lock().wants_fault_cost()) {
        match fault_cost(&shared.kvm_path) {
            Ok(fault) => {
                // A slot is free before long.
                while !shared.learnt(engine.lock().learn_fault_cost(fault)) {
                    if shared.vcpus.gate.is_halted() || !shared.rounds.wait(WAIT) {
                        return;
                    }
                }
            }
            Err(reason) => {
                tracing::info!(%reason, "no pages are taken early: what a fault costs can't be measured here");
                return;
            }
        }
    }
    while let Some(time) = shared.round(Place::Middle) {
        if shared.vcpus.gate.is_halted() || !shared.rounds.wait(time) {
            break;
        }
    }
}
