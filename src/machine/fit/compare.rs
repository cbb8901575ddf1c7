//! The comparison: model-specific registers, extended state, the counter, capabilities, and what
//! comes of all.

use super::cpuid::{self, ToldOf};
use super::feature_words;
use super::findings::Findings;
use super::{Counter, Finding, Fit, Piece, TSC_TOLERANCE_PPM, TscChoice, Verdict, Wishes, is_same_frequency};
use crate::kvm::offer::Offer;
use crate::machine::spec::MTRRS;
use crate::machine::state::{MachineState, VcpuState};

/// Where the bits of the components that hold something are, in an area of extended state.
const XSTATE_BV: std::ops::Range<usize> = 512..520;

/// Compares the machine that `state` was captured of with what a host offers.
#[must_use]
pub fn compare(state: &MachineState, host: &Offer, wishes: Wishes) -> Fit {
    let mut found = Findings::default();
    let told: Vec<_> = state.vcpus.iter().map(ToldOf::new).collect();
    for (vcpu, told) in state.vcpus.iter().zip(&told) {
        cpuid::compare(&mut found, vcpu.index, told, host);
    }
    let mut left_out = Vec::new();
    for vcpu in &state.vcpus {
        compare_msrs(&mut found, &mut left_out, vcpu, host);
        compare_xsave(&mut found, vcpu, host);
    }
    left_out.sort_unstable();
    left_out.dedup();
    let counter = compare_counters(&mut found, state, &told, host, wishes.tsc);
    compare_capabilities(&mut found, state, host, wishes);
    let leaves = told.first().map_or(0, ToldOf::leaves);
    let cpuid = |piece: &Piece| matches!(piece, Piece::CpuidLeaf { .. } | Piece::CpuidWord { .. } | Piece::CpuidBit { .. });
    let words =
        if leaves == 0 { "the guest was told nothing of the processor" } else { "the host has all that the guest was told of" };
    found.same(Piece::Cpuid, cpuid, format!("{leaves} leaves"), words);
    let msrs = state.vcpus.first().and_then(|vcpu| vcpu.msrs.as_ref()).map_or(0, |msrs| msrs.as_slice().len());
    let is_msr = |piece: &Piece| matches!(piece, Piece::Msr { .. });
    found.same(Piece::Msrs, is_msr, format!("{msrs} registers"), "the host's KVM has them all");
    let is_xsave = |piece: &Piece| matches!(piece, Piece::Xsave | Piece::XsaveComponent { .. });
    let bytes = state.vcpus.first().map_or(0, |vcpu| vcpu.xsave.len());
    found.same(Piece::Xsave, is_xsave, format!("{bytes} bytes"), "extended state has the same size and components");
    let is_capability = |piece: &Piece| matches!(piece, Piece::Capability { .. });
    found.same(Piece::Capabilities, is_capability, "all".to_owned(), "the host's KVM has what the state needs");
    Fit {
        findings: found.into_list(),
        counter: counter.goes_on,
        counter_may_be_hosts: counter.may_be_hosts,
        host_khz: host.tsc_khz,
        msrs_left_out: left_out,
        xsave_bytes: host.xsave_bytes,
    }
}

/// Registers that hold what a guest reads of the processor and nothing of its own, or at `reset`
/// what a new vCPU has anyway: without them nothing is lost.
const fn describes(index: u32, value: u64) -> bool {
    matches!((index, value), (0x34 | 0x8b | 0xce | 0x1db..=0x1de, _) | (0x4b56_4d05, 1))
}

fn compare_msrs(found: &mut Findings, left_out: &mut Vec<u32>, vcpu: &VcpuState, host: &Offer) {
    for msr in vcpu.msrs.iter().flat_map(|msrs| msrs.as_slice()) {
        let (index, value) = (msr.index, msr.data);
        if host.msrs.contains(&index) || MTRRS.contains(&index) {
            continue;
        }
        let (verdict, reason) = match value {
            0 => (Verdict::Harmless, "the host's KVM does not have it, and it holds nothing".to_owned()),
            _ if describes(index, value) => {
                (Verdict::Harmless, "the host's KVM does not have it, and it holds nothing of the guest's own".to_owned())
            }
            _ => (Verdict::CannotRun, format!("it holds {value:#x}, and the host's KVM does not have it")),
        };
        left_out.push(index);
        let captured = format!("{value:#x}");
        let (piece, name, host) = (Piece::Msr { index }, feature_words::msr(index), "not listed".to_owned());
        found.add(Finding { piece, name, vcpu: Some(vcpu.index), captured, host, verdict, reason });
    }
}

/// The size, and components that hold something. Where components lie is told by CPUID, and
/// compared there.
fn compare_xsave(found: &mut Findings, vcpu: &VcpuState, host: &Offer) {
    let vcpu_index = Some(vcpu.index);
    let mut xsave = |captured: String, host: String, verdict, reason: String| {
        found.add(Finding { piece: Piece::Xsave, name: None, vcpu: vcpu_index, captured, host, verdict, reason });
    };
    let bytes = |bytes: usize| format!("{bytes} bytes");
    match (vcpu.xsave.len(), host.xsave_bytes) {
        (0, None) => {}
        (0, Some(host)) => {
            let reason = "it was captured on a host without XSAVE, whose state has another form".to_owned();
            xsave("none".to_owned(), bytes(host), Verdict::CannotRun, reason);
        }
        (captured, None) => {
            let reason = "the host's KVM has no XSAVE".to_owned();
            xsave(bytes(captured), "none".to_owned(), Verdict::CannotRun, reason);
        }
        (captured, Some(host)) if captured < host => {
            let reason = "the host's is larger: what the guest has not is zeros".to_owned();
            xsave(bytes(captured), bytes(host), Verdict::Harmless, reason);
        }
        (captured, Some(host)) if captured > host => {
            let rest = vcpu.xsave.get(host..).unwrap_or_default();
            let (verdict, reason) = if rest.iter().all(|byte| *byte == 0) {
                (Verdict::Harmless, "the host's is smaller, and what it has no room for is zeros")
            } else {
                (Verdict::CannotRun, "the host's is smaller, and the guest uses what it has no room for")
            };
            xsave(bytes(captured), bytes(host), verdict, reason.to_owned());
        }
        _ => {}
    }
    let held = vcpu.xsave.get(XSTATE_BV).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let enabled = vcpu.xcrs.as_ref().map_or(0, |xcrs| {
        let count = usize::try_from(xcrs.nr_xcrs).unwrap_or(usize::MAX);
        xcrs.xcrs.iter().take(count).filter(|xcr| xcr.xcr == 0).fold(0, |bits, xcr| bits | xcr.value)
    });
    // x87 and SSE are everywhere.
    let lacking = (held | enabled) & !cpuid::components(&host.cpuid) & !3;
    for component in cpuid::bits(lacking) {
        found.add(cpuid::lacks_component(component, vcpu.index, "the guest uses it"));
    }
}

/// How the counter goes on, and whether it might at the host's frequency.
struct Counters {
    goes_on: Counter,
    may_be_hosts: bool,
}

fn compare_counters(found: &mut Findings, state: &MachineState, told: &[ToldOf], host: &Offer, choice: TscChoice) -> Counters {
    let mut counters = Counters { goes_on: Counter::Same, may_be_hosts: false };
    let Some(host_khz) = host.tsc_khz else {
        let (captured, host) = ("known or not".to_owned(), "not known".to_owned());
        let reason = "the host's KVM does not tell its frequency: it goes on at that, whatever it is".to_owned();
        found.add(Finding { piece: Piece::Tsc, name: None, vcpu: None, captured, host, verdict: Verdict::Harmless, reason });
        return counters;
    };
    let invariant = told.iter().any(ToldOf::invariant_counter);
    for vcpu in &state.vcpus {
        let Some(khz) = vcpu.tsc_khz else { continue };
        let ppm = u64::from(khz.abs_diff(host_khz)) * 1_000_000 / u64::from(khz.max(1));
        let (goes_on, verdict, reason) = if is_same_frequency(khz, host_khz) {
            let words = format!("{ppm} ppm apart, which is the same (up to {TSC_TOLERANCE_PPM})");
            (Counter::Same, Verdict::Same, if ppm == 0 { "the same frequency".to_owned() } else { words })
        } else if host.tsc_scaling {
            (Counter::Scaled, Verdict::Harmless, format!("{ppm} ppm apart: the host scales its counter to the guest's frequency"))
        } else if invariant {
            let words = "and the guest was shown an invariant one: it takes time from it";
            (Counter::Same, Verdict::CannotRun, format!("{ppm} ppm apart, the host can't scale its counter, {words}"))
        } else if choice == TscChoice::Host {
            let words = "what the guest measures by it alone is off by that";
            let reason =
                format!("{ppm} ppm apart, and the host can't scale its counter: it goes on at the host's frequency, {words}");
            (Counter::Host, Verdict::Harmless, reason)
        } else {
            counters.may_be_hosts = true;
            (Counter::Same, Verdict::CannotRun, format!("{ppm} ppm apart, and the host can't scale its counter"))
        };
        if goes_on != Counter::Same {
            counters.goes_on = goes_on;
        }
        let (captured, host) = (format!("{khz} kHz"), format!("{host_khz} kHz"));
        found.add(Finding { piece: Piece::Tsc, name: None, vcpu: Some(vcpu.index), captured, host, verdict, reason });
    }
    found.same(Piece::Tsc, |piece| *piece == Piece::Tsc, "not known".to_owned(), "its frequency was not captured");
    counters
}

fn compare_capabilities(found: &mut Findings, state: &MachineState, host: &Offer, wishes: Wishes) {
    let mut needs = |capability, name, needed: bool, has: bool, reason: &str| {
        if needed != has {
            // What the state lacks and the kernel has would be left at random, so both ways it does
            // not fit.
            let (verdict, captured, host) = (Verdict::CannotRun, yes(needed), yes(has));
            let reason = if has {
                format!("the state does not have {reason}, and the host's KVM does")
            } else {
                format!("the host's KVM does not have {reason}")
            };
            let (captured, host) = (captured.to_owned(), host.to_owned());
            found.add(Finding { piece: Piece::Capability { capability }, name, vcpu: None, captured, host, verdict, reason });
        }
    };
    let vm = &state.vm;
    let chips = vm.ioapic.is_some() || vm.pic_master.is_some() || vm.pic_slave.is_some();
    let lapic = state.vcpus.iter().any(|vcpu| vcpu.lapic.is_some());
    // Whether a VM has chips and a timer is the VMM's choice.
    needs("KVM_CAP_IRQCHIP", None, chips || lapic, host.irqchip && (chips || lapic), "interrupt controllers in the kernel");
    needs("KVM_CAP_PIT2", None, vm.pit2.is_some(), host.pit2 && vm.pit2.is_some(), "the interval timer in the kernel");
    needs("KVM_CAP_ADJUST_CLOCK", Some("kvmclock"), vm.clock.is_some(), host.clock, "a clock that can be read and set");
    let xcrs = state.vcpus.iter().any(|vcpu| vcpu.xcrs.is_some());
    needs("KVM_CAP_XCRS", Some("XCR0"), xcrs, host.xcrs, "XCR0");
    needs(
        "KVM_CAP_DIRTY_LOG_RING",
        None,
        wishes.ring,
        host.ring && wishes.ring,
        "the dirty ring, which `--tracker bitmap` does without",
    );
    if let Some(runs) = wishes.runs_kernels {
        needs("code at CPL 0", None, true, runs, "hardware to run a kernel: it interprets one, thousands of times slower");
    }
    let vcpus = u32::try_from(state.vcpus.len()).unwrap_or(u32::MAX);
    if vcpus > host.vcpus_max {
        let (captured, most) = (vcpus.to_string(), host.vcpus_max.to_string());
        let reason = format!("the machine has {vcpus} vCPUs, and the host's KVM takes {most}");
        let piece = Piece::Capability { capability: "KVM_CAP_MAX_VCPUS" };
        found.add(Finding { piece, name: None, vcpu: None, captured, host: most, verdict: Verdict::CannotRun, reason });
    }
    if !host.kvmclock_ctrl {
        let (captured, host) = ("wanted".to_owned(), "no".to_owned());
        let reason = "the guest can't be told that it was paused: its watchdogs may complain once".to_owned();
        let piece = Piece::Capability { capability: "KVM_CAP_KVMCLOCK_CTRL" };
        found.add(Finding { piece, name: None, vcpu: None, captured, host, verdict: Verdict::Harmless, reason });
    }
}

const fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
