//! The thread that takes pages beside the running guest, so that a cut has few left.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::shared::Shared;
use crate::epoch::Place;
use crate::kvm::probe::{RESERVE_LEAST, fault_cost, ring_reserve};

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
    let Some(time) = shared.round(Place::Middle) else { return };
    if !shared.rounds.wait(time) {
        return;
    }
    match ring_reserve(&shared.kvm_path) {
        Ok(reserve) if reserve > RESERVE_LEAST => shared.log_is_late.store(true, Ordering::Relaxed),
        Ok(_) => {}
        Err(reason) => tracing::info!(%reason, "whether processors keep a log of their own can't be found out here"),
    }
    while let Some(time) = shared.round(Place::Middle) {
        if shared.vcpus.gate.is_halted() || !shared.rounds.wait(time) {
            break;
        }
    }
}

#[cfg(test)]
mod native_tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::num::NonZeroU64;
    use std::path::Path;

    use super::*;
    use crate::epoch::{Early, Engine, EngineOptions, Start};
    use crate::kvm::host::KVM_PATH;
    use crate::kvm::test_guest::kvm_or_skip;
    use crate::store::verify::{VerifyOptions, verify};
    use crate::store::{NewChain, Writer, WriterOptions};
    use crate::track::HotPages;
    use crate::vmm::{GuestSpec, Limits, MachineSpec, Protection, Running, Stop, Tracking, Vm};

    /// As on a processor with a log of its own: vCPUs are called out before the last round, over
    /// and over, and nothing is missed.
    #[test]
    fn vcpus_are_called_out_before_the_last_round() {
        if !kvm_or_skip("vmm::rounds::native_tests::vcpus_are_called_out_before_the_last_round") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let guest = "churn:pages=1500,content=counter".parse().unwrap();
        let spec =
            MachineSpec { memory_bytes: 16 << 20, vcpus: 2, guest: GuestSpec::Churn(guest), nets: Vec::new(), vsock: None };
        let tracking = Tracking::Ring { budget: 4096, ring: None, hot: HotPages::Off, early: true };
        let mut vm = Vm::build(Path::new(KVM_PATH), spec, tracking).unwrap();
        let machine = serde_json::to_value(vm.spec()).unwrap();
        let new = NewChain { memory: vm.spec().regions(), device_runs: 0, vcpus: 2, machine };
        let writer = Writer::create(dir.path().join("store"), &new, WriterOptions::default()).unwrap();
        vm.load().unwrap();
        let options = EngineOptions {
            budget_pages: 4096,
            early: Early::Always,
            audit_every: NonZeroU64::new(1),
            ..EngineOptions::default()
        };
        let (memory, tracker) = (vm.memory().clone(), vm.take_tracker().unwrap());
        let engine = Engine::new(memory, tracker, Box::new(writer), Start::Fresh, options).unwrap();
        let interval = Some(Duration::from_millis(2));
        let protection = Protection { engine, interval, base_first: true, share_pages: 0 };
        let limits = Limits { time: Some(Duration::from_secs(60)), epochs: Some(60) };
        let mut running = Running::start(vm, Some(protection), limits, Stop::default()).unwrap();
        running.shared.log_is_late.store(true, Ordering::Relaxed);
        running.supervise();
        let outcome = running.finish();
        assert!(outcome.error.is_none(), "{:?}", outcome.error);
        let report = outcome.report.unwrap();
        assert!(report.early_pages > 0 && report.audits >= 60, "{report:?}");
        let verified = verify(&dir.path().join("store"), &VerifyOptions::default(), &mut |_| {}).unwrap();
        assert!(verified.is_sound() && verified.audits_checked > 0, "{verified:?}");
    }
}
