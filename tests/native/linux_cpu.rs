//! A Linux guest that is told of a level of the processor, and no more.

use super::linux::{Guest, OFTEN, at_prompt, boot, files_or_skip};
use crate::support::command::run;

#[test]
fn a_guest_at_a_level_boots_and_is_movable() {
    let Some(files) = files_or_skip("native::linux_cpu::a_guest_at_a_level_boots_and_is_movable") else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let command = boot(&files, &store, "vmlinuz", &format!("{OFTEN} --memory 256M --vcpus 1 --cpu x86-64-v2"));
    let mut guest = Guest::start(command, dir.path(), "level");
    guest.wait_for("a prompt", at_prompt);
    guest.enter("grep flags /proc/cpuinfo; echo LEAVES OVER\n");
    let flags = guest.wait_for("the flags", |console| {
        let line = console.lines().find(|line| line.starts_with("flags"))?.to_owned();
        console.contains("\nLEAVES OVER").then_some(line)
    });
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    for name in ["sse4_2", "popcnt", "cx16", "lahf_lm", "nx", "lm", "x2apic", "hypervisor"] {
        assert!(has(name), "no {name} in {flags}");
    }
    for name in ["avx", "avx2", "xsave", "bmi1", "pcid", "aes", "nonstop_tsc", "spec_ctrl", "ibpb"] {
        assert!(!has(name), "{name} in {flags}");
    }
    guest.kill();
    let description = std::fs::read_to_string(store.join("description.json")).unwrap();
    assert!(description.contains("\"cpu\":\"x86-64-v2\""), "{description}");
    let checked = run(&format!("restore --check --json --store {}", store.display())).expect(0).json();
    assert_eq!(checked["can_run"], true, "{checked}");
}
