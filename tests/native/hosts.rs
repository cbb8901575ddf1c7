//! Checkpoints of machines that another host had: what this one has of them is said piece by piece,
//! before anything is built.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use serde_json::{Value, json};
use slackwater::kvm::host::KVM_PATH;
use slackwater::kvm::offer::Offer;
use slackwater::machine::MachineState;
use slackwater::machine::fit::{TscChoice, Wishes, compare};
use slackwater::page::{Gfn, PageBytes};
use slackwater::restore::{PageTarget, Plan, TargetError};
use slackwater::store::{Chain, NewChain, Writer, WriterOptions};

use crate::support::command::{Run, guest_is_ok, number, run};
use crate::support::copy::{checkpoints, read};
use crate::support::kvm_or_skip;
use crate::support::store::append_pages;

/// The golden chain of a real guest, as of an epoch in its middle.
struct Golden {
    chain: Chain,
    memory: BTreeMap<u64, Box<PageBytes>>,
    /// What this host takes of its machine, with CPUID as this host has it.
    state: MachineState,
    host: Offer,
}

impl PageTarget for Golden {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        self.memory.insert(gfn.0, Box::new(*page));
        Ok(())
    }
}

impl Golden {
    fn read() -> Self {
        let chain = Chain::open(checkpoints().join("golden/churn")).unwrap();
        let host = Offer::read(KVM_PATH.as_ref()).unwrap();
        let again = Chain::open(checkpoints().join("golden/churn")).unwrap();
        let plan = Plan::new(&again, again.newest()).unwrap();
        let mut state = MachineState::from_records(plan.state(), 2).unwrap();
        let fit = compare(&state, &host, Wishes { tsc: TscChoice::Host, ..Wishes::default() });
        fit.adapt(&mut state);
        let mut golden = Self { chain, memory: BTreeMap::new(), state, host };
        plan.fill(&mut golden, &mut |_, _| {}).unwrap();
        golden.state.vcpus.iter_mut().for_each(|vcpu| {
            vcpu.tsc_khz = golden.host.tsc_khz;
            // PVM, which saved it, drops the I/O privilege level; QEMU's emulation does not read
            // the I/O bitmap of a busy 64-bit TSS.
            vcpu.regs.rflags |= 0x3000;
        });
        golden
    }

    /// A store with one epoch: the same memory, and the machine as `change` leaves it.
    fn store(&self, dir: &Path, name: &str, change: &dyn Fn(&mut MachineState, &Offer)) -> PathBuf {
        let mut state = self.state.clone();
        change(&mut state, &self.host);
        let path = dir.join(name.replace(' ', "-"));
        let description = self.chain.description();
        let new = NewChain { memory: description.memory.clone(), device_runs: 0, vcpus: 2, machine: description.machine.clone() };
        let mut writer = Writer::create(&path, &new, WriterOptions::default()).unwrap();
        let pages: Vec<_> = self.memory.iter().map(|(gfn, page)| (*gfn, page.clone())).collect();
        // In September 2026.
        append_pages(&mut writer, 29_833_333, &pages, &state.to_records());
        writer.close(true).unwrap();
        std::fs::remove_file(path.join("lock")).unwrap();
        path
    }
}

/// Tells every vCPU what this host supports, as `change` leaves it.
fn tell(state: &mut MachineState, host: &Offer, change: &dyn Fn(&mut kvm_cpuid_entry2)) {
    let entry = |leaf: &slackwater::kvm::offer::CpuidLeaf| {
        let (function, index) = (leaf.function, leaf.index);
        let (eax, ebx, ecx, edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    };
    let mut entries: Vec<_> = host.cpuid.iter().map(entry).collect();
    entries.iter_mut().for_each(change);
    state.vcpus.iter_mut().for_each(|vcpu| vcpu.cpuid = Some(CpuId::from_entries(&entries).unwrap()));
}

fn add_msr(state: &mut MachineState, index: u32, data: u64) {
    for vcpu in &mut state.vcpus {
        let mut msrs = vcpu.msrs.as_ref().unwrap().as_slice().to_vec();
        msrs.push(kvm_msr_entry { index, data, ..Default::default() });
        vcpu.msrs = Some(Msrs::from_entries(&msrs).unwrap());
    }
}

fn at_ppm(state: &mut MachineState, host: &Offer, ppm: u32, invariant: bool) {
    let khz = host.tsc_khz.unwrap();
    state.vcpus.iter_mut().for_each(|vcpu| vcpu.tsc_khz = Some(khz - khz / 1_000_000 * ppm));
    let edx = u32::from(invariant) << 8;
    tell(state, host, &|entry| entry.edx = if entry.function == 0x8000_0007 { edx } else { entry.edx });
}

fn verb(line: &str, store: &Path) -> Run {
    run(&line.replace("STORE", store.to_str().unwrap()))
}

/// The findings that keep the machine from running, of either command.
fn reasons(checked: &Run) -> Vec<Value> {
    let report = checked.json();
    let reasons = |finding: &&Value| finding["verdict"] == "cannot_run";
    let found: Vec<_> = report["findings"].as_array().unwrap().iter().filter(reasons).cloned().collect();
    assert_eq!(report["can_run"], json!(found.is_empty()), "{checked}");
    found
}

/// Changes a machine.
type Change = fn(&mut MachineState, &Offer);

#[test]
fn each_changed_piece_is_found_and_named() {
    if !kvm_or_skip("native::hosts::each_changed_piece_is_found_and_named") {
        return;
    }
    let (golden, dir) = (Golden::read(), tempfile::tempdir().unwrap());
    let cases: [(&str, Change, Value, &str); 7] = [
        (
            "feature",
            |state, host| tell(state, host, &|entry| entry.ebx |= u32::from((entry.function, entry.index) == (7, 0)) << 26),
            json!({ "piece": "cpuid_bit", "leaf": 7, "subleaf": 0, "register": "ebx", "bit": 26, "name": "avx512pf" }),
            "CPUID 0x7.0 EBX bit 26 (avx512pf): the guest was told of it, and the host's KVM does not have it",
        ),
        (
            "paravirtual feature",
            |state, host| tell(state, host, &|entry| entry.eax |= u32::from(entry.function == 0x4000_0001) << 2),
            json!({ "piece": "cpuid_bit", "leaf": 0x4000_0001, "name": "kvm_mmu_op" }),
            "(kvm_mmu_op)",
        ),
        (
            "vendor",
            |state, host| tell(state, host, &|entry| entry.ebx ^= u32::from(entry.function == 0)),
            json!({ "piece": "cpuid_leaf", "leaf": 0, "name": "vendor" }),
            "CPUID 0x0.0 (vendor): the guest knows another vendor's processor",
        ),
        (
            "register",
            |state, _| add_msr(state, 0x4b56_4d3f, 5),
            json!({ "piece": "msr", "index": 0x4b56_4d3f, "captured": "0x5" }),
            "MSR 0x4b564d3f: it holds 0x5, and the host's KVM does not have it",
        ),
        (
            "size",
            |state, _| state.vcpus.iter_mut().for_each(|vcpu| vcpu.xsave.resize(65_536, 1)),
            json!({ "piece": "xsave", "captured": "65536 bytes" }),
            "XSAVE: the host's is smaller, and the guest uses what it has no room for",
        ),
        (
            "component",
            |state, _| state.vcpus.iter_mut().for_each(|vcpu| vcpu.xsave[512 + 5] |= 1),
            json!({ "piece": "xsave_component", "component": 40 }),
            "XSAVE component 40",
        ),
        (
            "capability",
            |state, _| state.vm.clock = None,
            json!({ "piece": "capability", "capability": "KVM_CAP_ADJUST_CLOCK", "name": "kvmclock" }),
            "KVM_CAP_ADJUST_CLOCK (kvmclock): the state does not have",
        ),
    ];
    for (name, change, piece, text) in cases {
        let store = golden.store(dir.path(), name, &change);
        let before = read(&store);
        for line in ["restore --check --json --store STORE", "host --json --for STORE", "host --json --for STORE --epoch 1"] {
            let checked = verb(line, &store).expect(1).says(&["can't run on this host", text, "hint: "]);
            let found = reasons(&checked);
            assert_eq!(found.len(), 1, "{name}: {checked}");
            for (field, value) in piece.as_object().unwrap() {
                assert_eq!(&found[0][field], value, "{name}: {field} of {checked}");
            }
        }
        let words = verb("restore --check --store STORE", &store).expect(1);
        assert!(words.stdout.contains("can NOT run on this host") && words.stdout.contains(text), "{words}");
        for line in ["restore --for 20ms --store STORE", "restore --continue --for 20ms --store STORE"] {
            verb(line, &store).refused(1, &["epoch 1 of the store", "can't run on this host", text]);
        }
        std::fs::remove_file(store.join("lock")).unwrap();
        verb("restore --lazy --for 20ms --store STORE", &store).refused(1, &[text]);
        assert!(read(&store) == before, "{name}: refusing has changed the store");
    }
}

#[test]
fn what_differs_harmlessly_runs() {
    if !kvm_or_skip("native::hosts::what_differs_harmlessly_runs") {
        return;
    }
    let (golden, dir) = (Golden::read(), tempfile::tempdir().unwrap());
    let cases: [(&str, Change); 4] = [
        ("as it was", |_, _| {}),
        ("register without a value", |state, _| add_msr(state, 0x4b56_4d3f, 0)),
        ("larger and empty", |state, _| state.vcpus.iter_mut().for_each(|vcpu| vcpu.xsave.resize(65_536, 0))),
        ("100 ppm", |state, host| {
            let khz = host.tsc_khz.unwrap();
            state.vcpus.iter_mut().for_each(|vcpu| vcpu.tsc_khz = Some(khz + khz / 10_000));
        }),
    ];
    for (name, change) in cases {
        let store = golden.store(dir.path(), name, &change);
        let checked = verb("restore --check --json --store STORE", &store).expect(0);
        assert_eq!(reasons(&checked), [json!(null); 0], "{checked}");
        assert_eq!(checked.json()["tsc"], "same", "{checked}");
        assert!(checked.stderr.is_empty(), "{checked}");
        let report = verb("restore --for 20ms --json --store STORE", &store).expect(0).json();
        assert!(guest_is_ok(&report) && number(&report, "/guest/checks") >= 2, "{name}: {report}");
    }
}

#[test]
fn a_counter_of_another_frequency() {
    if !kvm_or_skip("native::hosts::a_counter_of_another_frequency") {
        return;
    }
    let (golden, dir) = (Golden::read(), tempfile::tempdir().unwrap());
    let slower: &dyn Fn(&mut MachineState, &Offer) = &|state, host| {
        let khz = host.tsc_khz.unwrap();
        state.vcpus.iter_mut().for_each(|vcpu| vcpu.tsc_khz = Some(khz - khz / 1000));
    };
    let faster: &dyn Fn(&mut MachineState, &Offer) = &|state, host| {
        let khz = host.tsc_khz.unwrap();
        state.vcpus.iter_mut().for_each(|vcpu| vcpu.tsc_khz = Some(khz + khz / 1000));
    };
    for (name, change) in [("slower", slower), ("faster", faster)] {
        let store = golden.store(dir.path(), name, change);
        let checked = verb("restore --check --json --store STORE", &store);
        let report = if golden.host.tsc_scaling {
            assert_eq!(checked.expect(0).json()["tsc"], "scaled");
            verb("restore --for 20ms --json --store STORE", &store).expect(0).json()
        } else {
            let checked = checked.expect(1).says(&["TSC: ", "can't scale its counter", "`--tsc host` goes on"]);
            assert_eq!(reasons(&checked)[0]["piece"], "tsc");
            // KVM would take the faster one, and put the counter forward at each exit.
            verb("restore --for 20ms --store STORE", &store).refused(1, &["TSC: ", "`--tsc host` goes on"]);
            let checked = verb("host --tsc host --json --for STORE", &store).expect(0).json();
            assert_eq!(checked["tsc"], "host");
            let run = verb("restore --tsc host --for 20ms --json --store STORE", &store).expect(0);
            run.says(&["warning: TSC: ", "goes on at the host's frequency"]).json()
        };
        assert!(guest_is_ok(&report) && number(&report, "/guest/checks") >= 2, "{name}: {report}");
    }
    if !golden.host.tsc_scaling {
        let store = golden.store(dir.path(), "invariant", &|state, host| at_ppm(state, host, 1000, true));
        for line in ["restore --check --tsc host --store STORE", "restore --tsc host --for 20ms --store STORE"] {
            let refused = verb(line, &store).expect(1).says(&["the guest was shown an invariant one"]);
            assert!(!refused.stderr.contains("`--tsc host` goes on"), "{refused}");
        }
        let store = golden.store(dir.path(), "variant", &|state, host| at_ppm(state, host, 1000, false));
        verb("restore --check --store STORE", &store).expect(1).says(&["`--tsc host` goes on"]);
        verb("restore --check --tsc host --store STORE", &store).expect(0);
    }
}
