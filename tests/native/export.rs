//! What is exported of a guest that ran is what was in it, and `diff` agrees with it.

use std::fs;

use slackwater::store::Chain;

use crate::export::files::{read_core, registers};
use crate::support::command::{guest_is_ok, number, run};
use crate::support::kvm_or_skip;

#[test]
fn any_epoch_of_a_guest_that_ran() {
    if !kvm_or_skip("native::export::any_epoch_of_a_guest_that_ran") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let options = "--memory 16M --vcpus 2 --guest churn:pages=900,content=words --budget 512 --audit 1 --epochs 12 --json";
    let report = run(&format!("checkpoint --store {} {options}", store.display())).expect(0).json();
    assert!(guest_is_ok(&report), "{report}");
    let newest = number(&run(&format!("verify --store {} --json", store.display())).expect(0).json(), "/newest");
    let chain = Chain::open(&store).unwrap();
    let store = store.display();
    let mut memory = Vec::new();
    for epoch in [3, newest] {
        let export = |format: &str| {
            let file = dir.path().join(format!("{epoch}.{format}"));
            run(&format!("export --store {store} --epoch {epoch} --format {format} --out {} --json", file.display()))
                .expect(0)
                .json();
            fs::read(file).unwrap()
        };
        let audit = chain.epoch(slackwater::page::EpochId(epoch)).unwrap().commit.audit.unwrap();
        assert_eq!(read_core(&export("elf-core")), (audit, registers(&chain, epoch)));
        memory.push(export("raw"));
    }
    let differing: Vec<u64> = memory[0]
        .chunks_exact(4096)
        .zip(memory[1].chunks_exact(4096))
        .map(|(a, b)| a.iter().zip(b).filter(|(a, b)| a != b).count() as u64)
        .collect();
    let report = run(&format!("diff --store {store} 3 {newest} --json")).expect(0).json();
    assert_eq!(number(&report, "/pages_changed"), differing.iter().filter(|bytes| **bytes > 0).count() as u64);
    assert_eq!(number(&report, "/bytes_changed"), differing.iter().sum::<u64>());
    assert!(report["state_changed"].as_array().unwrap().iter().any(|record| record["name"] == "vcpu.regs"), "{report}");
}
