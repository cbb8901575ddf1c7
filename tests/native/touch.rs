//! The guest that is made for measuring, through the command: its chain restores, and its epochs
//! give advice.

use serde_json::Value;

use crate::support::command::{number, run};
use crate::support::{kvm_or_skip, nested};

#[test]
fn its_chain_restores_and_gives_advice() {
    if !kvm_or_skip("native::touch::its_chain_restores_and_gives_advice") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let store = store.display();
    let epochs = if nested() { 30 } else { 60 };
    let guest = "touch:pages=100,pattern=zipf,words=4";
    let report = run(&format!(
        "checkpoint --store {store} --guest {guest} --memory 32M --vcpus 2 --budget 2048 --interval off --audit 5 --epochs {epochs} --json"
    ));
    let report = report.expect(0).json();
    // The pages of a pass and the control page; a page is listed besides when it is first read,
    // where nested paging does so. And on AMD a walk of the guest's tables counts as a write of
    // them.
    let most = if nested() { 140 } else { 104 };
    assert!((101..=most).contains(&number(&report, "/max_epoch_pages")), "{report}");
    assert_eq!((number(&report, "/epochs"), number(&report, "/triggers/request")), (epochs, epochs - 1), "{report}");
    let verified = run(&format!("verify --store {store} --json")).expect(0).json();
    assert_eq!(number(&verified, "/audits_checked"), epochs.div_ceil(5), "{verified}");
    let restored = run(&format!("restore --store {store} --for 200ms --json")).expect(0).json();
    assert!(number(&restored, "/guest/passes") > number(&restored, "/guest/passes_at_restore"), "{restored}");
    let advice = run(&format!("advise --store {store} --pause 1s --json")).expect(0).json();
    assert!(number(&advice, "/epochs") >= 20 && number(&advice, "/budget_pages") >= 256, "{advice}");
    let seen = advice.pointer("/pages_seen/0").and_then(Value::as_f64).unwrap();
    assert!(if nested() { (101.0..140.0).contains(&seen) } else { seen == 101.0 }, "{advice}");
    run(&format!("advise --store {store}")).refused(2, &["--pause", "--slowdown"]);
    run(&format!("advise --store {store} --slowdown 5")).refused(2, &["5%"]);
    if !nested() {
        run(&format!("advise --store {store} --pause 1us")).refused(1, &["all epochs have about 101 pages"]);
    }
}
