//! Any epoch of a long chain restores to the memory and state of that epoch.

use serde_json::Value;

use crate::support::command::{guest_is_ok, number, run};
use crate::support::{Random, kvm_or_skip, rounds};

#[test]
fn any_epoch_of_a_long_chain_restores() {
    if !kvm_or_skip("native::restore::any_epoch_of_a_long_chain_restores") {
        return;
    }
    let mut random = Random::seeded("native::restore", 4);
    let epochs = rounds(20, 1000, 1000);
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let store = store.display();
    let options = "--memory 8M --vcpus 1 --guest churn:pages=900,content=words,pattern=zipf --budget 256 --audit 1";
    let report = run(&format!("checkpoint --store {store} {options} --epochs {epochs} --json")).expect(0).json();
    assert!(guest_is_ok(&report) && number(&report, "/epochs") >= epochs, "{report}");
    let newest = number(&run(&format!("verify --store {store} --json")).expect(0).json(), "/newest");
    let mut passes = std::collections::BTreeMap::new();
    for _ in 0..rounds(3, 20, 100) {
        let epoch = 1 + random.below(newest);
        let digest = run(&format!("digest --store {store} --epoch {epoch} --json")).expect(0).json();
        assert_eq!((number(&digest, "/epoch"), &digest["audit_matches"]), (epoch, &Value::Bool(true)), "{digest}");
        let report = run(&format!("restore --store {store} --epoch {epoch} --for 10ms --json")).expect(0).json();
        assert_eq!((number(&report, "/epoch"), number(&report, "/ram_bytes")), (epoch, 8 << 20), "{report}");
        assert!(guest_is_ok(&report) && number(&report, "/guest/checks") >= 1, "{report}");
        assert!(number(&report, "/guest/passes") >= number(&report, "/guest/passes_at_restore"), "{report}");
        passes.insert(epoch, number(&report, "/guest/passes_at_restore"));
    }
    // The guest's count of its passes rises with the epochs.
    let passes: Vec<u64> = passes.into_values().collect();
    assert!(passes.is_sorted(), "{passes:?}");
}
