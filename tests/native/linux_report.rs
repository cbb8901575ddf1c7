//! What is known of a Linux guest that does not do what a test waits for: the last thing before the
//! test fails.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use slackwater::machine::{MachineState, VcpuState};
use slackwater::page::EpochId;
use slackwater::store::Chain;
use zerocopy::IntoBytes;

/// What the threads of the process `pid` do, and where the guest's vCPUs were in the newest epochs
/// of `store`: whether the command or the guest stands still, and on what.
pub(super) fn report(pid: u32, store: &Path) -> String {
    let mut text = String::from("threads:\n");
    threads(pid, &mut text);
    text.push_str("newest epochs:\n");
    if let Err(error) = epochs(store, &mut text) {
        let _ = writeln!(text, "{}: {error}", store.display());
    }
    text
}

fn threads(pid: u32, text: &mut String) {
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        // Behind the name: the state, and further on the ticks in user and in kernel mode.
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or("?");
        let _ = writeln!(
            text,
            "{}: {}, ticks {} + {}, system call {}",
            read("comm").trim(),
            field(0),
            field(11),
            field(12),
            read("syscall").trim()
        );
        // For root only.
        text.push_str(&read("stack"));
    }
}

fn epochs(store: &Path, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    const LAST: u64 = 4;
    let chain = Chain::open(store)?;
    let newest = chain.newest().0;
    for epoch in newest.saturating_sub(LAST) + 1..=newest {
        let records = match chain.state(EpochId(epoch)) {
            Ok(records) => records,
            Err(error) => {
                writeln!(text, "{epoch}: {error}")?;
                continue;
            }
        };
        let vcpus = records.iter().filter(|record| record.name == "vcpu.regs").count();
        let state = MachineState::from_records(&records, u32::try_from(vcpus)?)?;
        writeln!(text, "{epoch}: clock {:?} ns", state.vm.clock.map(|clock| clock.clock))?;
        for vcpu in &state.vcpus {
            describe(vcpu, text)?;
        }
    }
    Ok(())
}

fn describe(vcpu: &VcpuState, text: &mut String) -> std::fmt::Result {
    const REQUESTED: usize = 0x200;
    const IN_SERVICE: usize = 0x100;
    let VcpuState { index, mp_state, events, regs, sregs, msrs, lapic, .. } = vcpu;
    let vectors = |first: usize| -> Vec<usize> {
        let registers = lapic.iter().flat_map(|lapic| lapic.regs.as_bytes().get(first..first + 0x80)).flatten();
        // A register of 32 bits in each 16 bytes.
        let bits = registers.enumerate().filter(|(at, _)| at % 16 < 4).map(|(at, byte)| (at / 16 * 32 + at % 16 * 8, *byte));
        bits.flat_map(|(vector, byte)| (0..8).filter(move |bit| byte >> bit & 1 != 0).map(move |bit| vector + bit)).collect()
    };
    let counters = msrs.iter().flat_map(|msrs| msrs.as_slice()).filter(|msr| matches!(msr.index, 0x10 | 0x6e0));
    let counters: Vec<_> = counters.map(|msr| format!("{:#x} = {:#x}", msr.index, msr.data)).collect();
    writeln!(
        text,
        "  vCPU {index}: mp_state {}, rip {:#x}, rsp {:#x}, rflags {:#x}, cr2 {:#x}, cr3 {:#x}, requested {:?}, in service {:?}, {}, {:?}",
        mp_state.mp_state,
        regs.rip,
        regs.rsp,
        regs.rflags,
        sregs.cr2,
        sregs.cr3,
        vectors(REQUESTED),
        vectors(IN_SERVICE),
        counters.join(", "),
        events.exception
    )
}
