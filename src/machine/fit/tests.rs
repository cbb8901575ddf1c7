//! Captured machines that were changed in each of their pieces, beside a host that was recorded and
//! one that was made.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_irqchip, kvm_msr_entry, kvm_xcrs};
use proptest::prelude::*;

use super::*;
use crate::kvm::offer::{CpuidLeaf, Offer};
use crate::machine::VcpuState;

/// An AMD EPYC under PVM: no SSE3, no scaling of the counter, CPUID's leaves with every bit that
/// its KVM has. Written by `slackwater host --json`.
fn recorded() -> Offer {
    serde_json::from_str(include_str!("hosts/amd-pvm.json")).unwrap()
}

/// A host with VT-x: a processor of another vendor, with AVX-512 and protection keys, whose counter
/// can be scaled.
fn made() -> Offer {
    let leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| CpuidLeaf { function, index, eax, ebx, ecx, edx };
    Offer {
        cpuid: vec![
            leaf(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            leaf(1, 0, [0x0005_0657, 0x0800, 0xf7fa_3203, 0x0f8b_fbff]),
            leaf(4, 0, [0x0400_0121, 0x01c0_003f, 0x3f, 0]),
            leaf(6, 0, [4, 0, 0, 0]),
            leaf(7, 0, [1, 0xd19f_4fbb, 0x0000_0818, 0xac00_0400]),
            leaf(7, 1, [0x20, 0, 0, 0]),
            leaf(0xa, 0, [0x0730_0402, 0, 0, 0x603]),
            leaf(0xd, 0, [0x2e7, 2696, 2696, 0]),
            leaf(0xd, 1, [0xf, 0x988, 0, 0]),
            leaf(0xd, 2, [256, 576, 0, 0]),
            leaf(0xd, 5, [64, 1088, 0, 0]),
            leaf(0xd, 6, [512, 1152, 0, 0]),
            leaf(0xd, 7, [1024, 1664, 0, 0]),
            leaf(0xd, 9, [8, 2688, 0, 0]),
            leaf(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            leaf(0x4000_0001, 0, [0x0101_7efb, 0, 0, 0]),
            leaf(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
            leaf(0x8000_0002, 0, [0x6574_6e49, 0x286c_6e6f, 0, 0]),
            leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
            leaf(0x8000_0008, 0, [0x302e, 0, 0, 0]),
        ],
        msrs: vec![
            0x10,
            0x11,
            0x12,
            0x3b,
            0x48,
            0x174,
            0x175,
            0x176,
            0x1a0,
            0x277,
            0x6e0,
            0x4b56_4d00,
            0x4b56_4d02,
            0xc000_0081,
            0xc000_0103,
        ],
        xsave_bytes: Some(4096),
        xcrs: true,
        tsc_khz: Some(2_500_000),
        tsc_scaling: true,
        irqchip: true,
        pit2: true,
        clock: true,
        kvmclock_ctrl: true,
        ring: true,
        vcpus_max: 710,
    }
}

/// A machine with two vCPUs that was told of all that the host has, and holds something in every
/// register that is listed.
fn captured(host: &Offer) -> MachineState {
    let mut state = MachineState::new(2);
    state.vm.pit2 = Some(Default::default());
    let chip = |chip_id| Some(kvm_irqchip { chip_id, ..Default::default() });
    (state.vm.pic_master, state.vm.pic_slave, state.vm.ioapic) = (chip(0), chip(1), chip(2));
    state.vm.clock = Some(Default::default());
    let entries: Vec<_> = host.cpuid.iter().map(entry).collect();
    let msrs: Vec<_> = host.msrs.iter().chain(&[0x200, 0x2ff]).map(|index| msr(*index, 7)).collect();
    for vcpu in &mut state.vcpus {
        vcpu.cpuid = Some(CpuId::from_entries(&entries).unwrap());
        vcpu.msrs = Some(Msrs::from_entries(&msrs).unwrap());
        vcpu.xsave = vec![0; 4096];
        vcpu.xsave[512] = 7;
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = 7;
        vcpu.xcrs = Some(xcrs);
        vcpu.lapic = Some(Default::default());
        vcpu.tsc_khz = host.tsc_khz;
    }
    state
}

fn entry(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    let CpuidLeaf { function, index, eax, ebx, ecx, edx } = *leaf;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn msr(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

fn leaf(vcpu: &mut VcpuState, function: u32, index: u32) -> &mut kvm_cpuid_entry2 {
    let entries = vcpu.cpuid.as_mut().unwrap().as_mut_slice();
    entries.iter_mut().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
}

fn fit(state: &MachineState, host: &Offer) -> Fit {
    compare(state, host, Wishes::default())
}

/// The only reason, as it is printed.
#[track_caller]
fn reason(fit: &Fit) -> String {
    let reasons: Vec<_> = fit.reasons().map(ToString::to_string).collect();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(!fit.can_run());
    reasons[0].clone()
}

#[test]
fn a_machine_of_the_same_host_is_the_same() {
    for host in [recorded(), made()] {
        let state = captured(&host);
        let fit = fit(&state, &host);
        assert!(fit.can_run() && fit.findings().iter().all(|finding| finding.verdict == Verdict::Same), "{:?}", fit.findings());
        assert_eq!(fit.findings().len(), 5, "one for each part");
        assert_eq!((fit.counter(), fit.warning()), (Counter::Same, None));
        let mut adapted = state.clone();
        fit.adapt(&mut adapted);
        assert_eq!(adapted, state);
    }
}

/// Bits that follow registers, and what the VMM sets as it builds the machine: the topology, the
/// hypervisor's bit.
#[test]
fn what_is_not_the_processors_is_no_difference() {
    let host = recorded();
    let mut state = captured(&host);
    for (vcpu, index) in state.vcpus.iter_mut().zip(0..) {
        let one = leaf(vcpu, 1, 0);
        one.ecx |= 1 << 27 | 1 << 31 | 1 << 3;
        one.edx |= 1 << 28;
        one.ebx |= index << 24;
        leaf(vcpu, 0x8000_0001, 0).ecx |= 2;
        leaf(vcpu, 7, 0).ecx |= 1 << 4;
        leaf(vcpu, 0xd, 0).ebx = 576;
        leaf(vcpu, 0x4000_0001, 0).eax |= 1 << 15;
        leaf(vcpu, 0x8000_0008, 0).ecx = 0x1001;
    }
    let fit = fit(&state, &host);
    assert!(fit.findings().iter().all(|finding| finding.verdict == Verdict::Same), "{:?}", fit.findings());
}

#[test]
fn each_feature_that_the_host_lacks_is_named() {
    let host = recorded();
    for (function, index, register, bit, name) in [
        (1, 0, Register::Ecx, 0, Some("sse3")),
        (1, 0, Register::Ecx, 28, Some("avx")),
        (1, 0, Register::Edx, 27, Some("ss")),
        (7, 0, Register::Ebx, 5, Some("avx2")),
        (7, 0, Register::Ecx, 3, Some("pku")),
        (7, 0, Register::Edx, 26, Some("spec_ctrl")),
        (7, 1, Register::Eax, 4, Some("avx_vnni")),
        (7, 1, Register::Ebx, 31, None),
        (0xd, 1, Register::Eax, 0, Some("xsaveopt")),
        (0x8000_0001, 0, Register::Ecx, 5, Some("abm")),
        (0x8000_0001, 0, Register::Edx, 27, Some("rdtscp")),
        (0x8000_0007, 0, Register::Edx, 8, Some("constant_tsc")),
        (0x8000_0008, 0, Register::Ebx, 12, Some("ibpb")),
        (0x4000_0001, 0, Register::Eax, 17, Some("kvm_migration_control")),
    ] {
        // The host has it no more, or never had.
        let mut less = host.clone();
        let place = less.cpuid.iter_mut().find(|leaf| (leaf.function, leaf.index) == (function, index));
        if let Some(leaf) = place {
            let word = match register {
                Register::Eax => &mut leaf.eax,
                Register::Ebx => &mut leaf.ebx,
                Register::Ecx => &mut leaf.ecx,
                Register::Edx => &mut leaf.edx,
            };
            *word &= !(1 << bit);
        }
        let mut state = captured(&less);
        // On the second vCPU only.
        let vcpu = &mut state.vcpus[1];
        let mut entries = vcpu.cpuid.as_ref().unwrap().as_slice().to_vec();
        let place = entries.iter().position(|entry| (entry.function, entry.index) == (function, index)).unwrap_or_else(|| {
            entries.push(kvm_cpuid_entry2 { function, index, ..Default::default() });
            entries.len() - 1
        });
        match register {
            Register::Eax => entries[place].eax |= 1 << bit,
            Register::Ebx => entries[place].ebx |= 1 << bit,
            Register::Ecx => entries[place].ecx |= 1 << bit,
            Register::Edx => entries[place].edx |= 1 << bit,
        }
        vcpu.cpuid = Some(CpuId::from_entries(&entries).unwrap());
        let fit = fit(&state, &less);
        let found = fit.reasons().next().unwrap_or_else(|| panic!("{function:#x} {register} {bit}: {:?}", fit.findings()));
        assert_eq!(found.piece, Piece::CpuidBit { leaf: function, subleaf: index, register, bit });
        assert_eq!((found.name, found.vcpu), (name, Some(1)));
        assert_eq!(fit.reasons().count(), 1, "{:?}", fit.findings());
        // The other way round nothing is lost: the guest was not told.
        let other = super::compare(&captured(&less), &host, Wishes::default());
        assert!(other.can_run(), "{:?}", other.findings());
    }
}

/// By their own leaves: what the guest lacks and the host has is told as one line for each
/// register.
#[test]
fn what_the_host_has_more_is_harmless() {
    let (less, host) = (recorded(), recorded());
    let mut state = captured(&less);
    for vcpu in &mut state.vcpus {
        leaf(vcpu, 7, 0).ebx = 0;
        leaf(vcpu, 0x8000_0008, 0).eax = 40 | 48 << 8;
    }
    let fit = fit(&state, &host);
    assert!(fit.can_run());
    let texts: Vec<_> =
        fit.findings().iter().filter(|finding| finding.verdict == Verdict::Harmless).map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(
        texts.iter().any(|text| text.starts_with("CPUID 0x7.0 EBX: the host has more") && text.contains("clwb")),
        "{texts:?}"
    );
    assert!(texts.iter().any(|text| text.contains("(bits of physical addresses): the host has more")), "{texts:?}");
}

#[test]
fn another_vendor_can_not_go_on_and_another_model_can() {
    let (amd, intel) = (recorded(), made());
    let fit_of = |state: &MachineState, host| compare(state, host, Wishes::default());
    let crossed = fit_of(&captured(&intel), &amd);
    let vendor = crossed.reasons().find(|finding| finding.name == Some("vendor")).unwrap();
    assert_eq!((vendor.captured.as_str(), vendor.host.as_str()), ("GenuineIntel", "AuthenticAMD"));
    let mut state = captured(&intel);
    leaf(&mut state.vcpus[0], 1, 0).eax = 0x0006_06a6;
    leaf(&mut state.vcpus[0], 0x8000_0002, 0).eax = 0x6465_4d61;
    let fit = fit_of(&state, &intel);
    assert!(fit.can_run());
    let found = |name| fit.findings().iter().find(|finding| finding.name == Some(name)).unwrap().clone();
    assert_eq!(found("model").verdict, Verdict::Harmless);
    assert_eq!(found("model").captured, "family 6 model 106 stepping 6");
    assert_eq!(found("model").host, "family 6 model 85 stepping 7");
    assert_eq!(found("brand").verdict, Verdict::Harmless);
    // A guest that was told nothing knows no vendor.
    let mut untold = captured(&intel);
    untold.vcpus.iter_mut().for_each(|vcpu| vcpu.cpuid = None);
    let fit = fit_of(&untold, &amd);
    assert!(!fit.reasons().any(|finding| matches!(finding.piece, Piece::CpuidBit { .. } | Piece::CpuidLeaf { .. })));
}

#[test]
fn registers_that_the_host_does_not_list() {
    let host = made();
    let with = |index, data| {
        let mut state = captured(&host);
        let vcpu = &mut state.vcpus[1];
        let mut msrs = vcpu.msrs.as_ref().unwrap().as_slice().to_vec();
        msrs.push(msr(index, data));
        vcpu.msrs = Some(Msrs::from_entries(&msrs).unwrap());
        state
    };
    let text = reason(&fit(&with(0xc001_0117, 0x1000), &host));
    assert!(text.starts_with("MSR 0xc0010117 (VM_HSAVE_PA): it holds 0x1000"), "{text}");
    assert!(reason(&fit(&with(0xabcd, 1), &host)).starts_with("MSR 0xabcd: it holds 0x1"));
    for (index, data) in [(0xc001_0117, 0), (0x8b, 0x0100_0000_0000), (0x4b56_4d05, 1), (0xce, 0x8000_0000)] {
        let mut state = with(index, data);
        let fit = fit(&state, &host);
        assert!(fit.can_run());
        let found = fit.findings().iter().find(|finding| finding.piece == Piece::Msr { index }).unwrap();
        assert_eq!(found.verdict, Verdict::Harmless);
        fit.adapt(&mut state);
        assert_eq!(state, captured(&host), "{index:#x} is left out, and nothing else");
    }
    // Zero on one vCPU and not on the other.
    let mut state = with(0x48_0000, 1);
    let mut msrs = state.vcpus[0].msrs.as_ref().unwrap().as_slice().to_vec();
    msrs.push(msr(0x48_0000, 0));
    state.vcpus[0].msrs = Some(Msrs::from_entries(&msrs).unwrap());
    assert!(!fit(&state, &host).can_run());
}

#[test]
fn sizes_and_components_of_extended_state() {
    let host = made();
    let with = |change: &dyn Fn(&mut VcpuState)| {
        let mut state = captured(&host);
        state.vcpus.iter_mut().for_each(change);
        state
    };
    // Larger, and used there.
    let used = with(&|vcpu| {
        vcpu.xsave.resize(11_008, 0);
        vcpu.xsave[11_000] = 1;
    });
    assert!(reason(&fit(&used, &host)).starts_with("XSAVE: the host's is smaller, and the guest uses"));
    for bytes in [11_008, 4096 - 512] {
        let mut state = with(&|vcpu| vcpu.xsave.resize(bytes, 0));
        let fit = fit(&state, &host);
        assert!(fit.can_run(), "{bytes}");
        fit.adapt(&mut state);
        assert_eq!(state, captured(&host));
    }
    // Components that it holds, that are enabled, that it was told of.
    let held = with(&|vcpu| vcpu.xsave[514] |= 1 << 2);
    assert!(reason(&fit(&held, &host)).starts_with("XSAVE component 18 (amx_tile_data): the guest uses it"));
    let enabled = with(&|vcpu| vcpu.xcrs.as_mut().unwrap().xcrs[0].value |= 1 << 17);
    assert!(reason(&fit(&enabled, &host)).starts_with("XSAVE component 17 (amx_tile_config): the guest uses it"));
    let told = with(&|vcpu| leaf(vcpu, 0xd, 0).eax |= 1 << 17);
    assert!(reason(&fit(&told, &host)).starts_with("XSAVE component 17 (amx_tile_config): the guest was told"));
    let supervisor = with(&|vcpu| leaf(vcpu, 0xd, 1).ecx |= 1 << 11);
    assert!(reason(&fit(&supervisor, &host)).starts_with("XSAVE component 11 (cet_user)"));
    // Two vendors have AVX-512 at different places.
    let elsewhere = with(&|vcpu| leaf(vcpu, 0xd, 5).ebx = 832);
    assert!(reason(&fit(&elsewhere, &host)).starts_with("XSAVE component 5 (avx512_opmask): it lies elsewhere"));
    // Hosts without.
    let without = Offer { xsave_bytes: None, ..host.clone() };
    assert!(reason(&fit(&captured(&host), &without)).starts_with("XSAVE: the host's KVM has no XSAVE"));
    let old = with(&|vcpu| vcpu.xsave.clear());
    assert!(reason(&fit(&old, &host)).starts_with("XSAVE: it was captured on a host without XSAVE"));
}

/// By 100 ppm and by 1,000, with and without scaling and an invariant counter, by either choice.
#[test]
fn frequencies_of_the_counter() {
    let at = |ppm: i64, scaling: bool, invariant: bool, tsc: TscChoice| {
        let mut host = made();
        host.tsc_scaling = scaling;
        let mut state = captured(&host);
        let khz = u32::try_from(2_500_000 + 2_500_000 * ppm / 1_000_000).unwrap();
        for vcpu in &mut state.vcpus {
            vcpu.tsc_khz = Some(khz);
            leaf(vcpu, 0x8000_0007, 0).edx = if invariant { 0x100 } else { 0 };
        }
        let fit = compare(&state, &host, Wishes { tsc, ..Wishes::default() });
        let mut adapted = state.clone();
        fit.adapt(&mut adapted);
        let goes_on_at = adapted.vcpus[1].tsc_khz;
        let verdict = fit.findings().iter().find(|finding| finding.piece == Piece::Tsc).unwrap().verdict;
        (verdict, fit.counter(), fit.runs_with_hosts_counter(), goes_on_at == Some(khz))
    };
    use TscChoice::{Host, Same};
    for tsc in [Same, Host] {
        for invariant in [false, true] {
            for ppm in [0, 100, -100, 250] {
                for scaling in [false, true] {
                    assert_eq!(at(ppm, scaling, invariant, tsc), (Verdict::Same, Counter::Same, false, true), "{ppm} {scaling}");
                }
            }
            for ppm in [252, 1000, -1000] {
                assert_eq!(at(ppm, true, invariant, tsc), (Verdict::Harmless, Counter::Scaled, false, true), "{ppm}");
            }
        }
        assert_eq!(at(1000, false, true, tsc), (Verdict::CannotRun, Counter::Same, false, true));
        assert_eq!(at(-1000, false, true, tsc), (Verdict::CannotRun, Counter::Same, false, true));
    }
    for ppm in [1000, -1000] {
        assert_eq!(at(ppm, false, false, Same), (Verdict::CannotRun, Counter::Same, true, true));
        assert_eq!(at(ppm, false, false, Host), (Verdict::Harmless, Counter::Host, false, false));
    }
    assert!(!is_same_frequency(0, 1) && is_same_frequency(u32::MAX, u32::MAX) && !is_same_frequency(u32::MAX, 0));
}

#[test]
fn capabilities_that_the_kernel_lacks_are_named() {
    let host = made();
    let state = captured(&host);
    let lacks = |change: &dyn Fn(&mut Offer), wishes| {
        let mut less = host.clone();
        change(&mut less);
        reason(&compare(&state, &less, wishes))
    };
    let plain = Wishes::default();
    for (change, text) in [
        (&(|offer: &mut Offer| offer.irqchip = false) as &dyn Fn(&mut Offer), "KVM_CAP_IRQCHIP: the host's KVM does not have"),
        (&|offer| offer.pit2 = false, "KVM_CAP_PIT2"),
        (&|offer| offer.clock = false, "KVM_CAP_ADJUST_CLOCK (kvmclock)"),
        (&|offer| offer.xcrs = false, "KVM_CAP_XCRS (XCR0)"),
        (&|offer| offer.vcpus_max = 1, "KVM_CAP_MAX_VCPUS: the machine has 2 vCPUs"),
    ] {
        let found = lacks(change, plain);
        assert!(found.starts_with(text), "{found}");
    }
    let without_ring: &dyn Fn(&mut Offer) = &|offer| offer.ring = false;
    assert!(lacks(without_ring, Wishes { ring: true, ..plain }).starts_with("KVM_CAP_DIRTY_LOG_RING"));
    let mut less = host.clone();
    (less.ring, less.kvmclock_ctrl) = (false, false);
    let fit = compare(&state, &less, plain);
    assert!(fit.can_run(), "nobody asked for the ring, and the guest need not be told");
    assert!(fit.findings().iter().any(|finding| finding.to_string().starts_with("KVM_CAP_KVMCLOCK_CTRL")));
    assert!(compare(&state, &host, Wishes { runs_kernels: Some(true), ..plain }).can_run());
    let interpreted = compare(&state, &host, Wishes { runs_kernels: Some(false), ..plain });
    assert!(reason(&interpreted).starts_with("code at CPL 0: the host's KVM does not have hardware"));
    // The deadline timer is a capability that CPUID shows.
    let deadline: &dyn Fn(&mut Offer) =
        &|offer| offer.cpuid.iter_mut().filter(|leaf| leaf.function == 1).for_each(|leaf| leaf.ecx &= !(1 << 24));
    assert!(lacks(deadline, plain).starts_with("CPUID 0x1.0 ECX bit 24 (tsc_deadline_timer)"));
}

#[test]
fn counters_of_performance_and_leaves_of_formats() {
    let host = made();
    let mut state = captured(&host);
    leaf(&mut state.vcpus[0], 0xa, 0).eax = 0x0730_0802;
    assert!(reason(&fit(&state, &host)).contains("(performance counters): the guest was told of more than the host has"));
    let mut state = captured(&host);
    let vcpu = &mut state.vcpus[0];
    let mut entries = vcpu.cpuid.as_ref().unwrap().as_slice().to_vec();
    entries.push(kvm_cpuid_entry2 { function: 0x1d, index: 1, eax: 1, ..Default::default() });
    vcpu.cpuid = Some(CpuId::from_entries(&entries).unwrap());
    assert!(reason(&fit(&state, &host)).starts_with("CPUID 0x1d.1: what the guest was told"));
}

#[test]
fn findings_as_json_have_their_piece() {
    let host = recorded();
    let mut state = captured(&host);
    leaf(&mut state.vcpus[0], 7, 0).ebx |= 1 << 5;
    let fit = fit(&state, &host);
    let json = serde_json::to_value(fit.reasons().next().unwrap()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "piece": "cpuid_bit", "leaf": 7, "subleaf": 0, "register": "ebx", "bit": 5, "name": "avx2", "vcpu": 0, "captured": "yes", "host": "no",
            "verdict": "cannot_run", "reason": "the guest was told of it, and the host's KVM does not have it",
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a store says: no panic, no more findings than pieces, and state that was adapted
    /// has the host's size.
    #[test]
    fn hostile_machines_are_compared(leaves in prop::collection::vec((any::<u32>(), 0u32..70, any::<[u32; 4]>()), 0..40), msrs in prop::collection::vec(any::<(u32, u64)>(), 0..40),
        bytes in 1024usize..5000, khz: Option<u32>, value: u64, nr_xcrs: u32) {
        let host = made();
        let mut state = captured(&host);
        let functions = [0, 1, 4, 7, 0xa, 0xd, 0x1d, 0x4000_0000, 0x4000_0001, 0x8000_0001, 0x8000_0008];
        let entries: Vec<_> = leaves.iter().map(|(function, index, [eax, ebx, ecx, edx])| {
            let known = functions[*function as usize % functions.len()];
            kvm_cpuid_entry2 { function: if index % 9 == 0 { *function } else { known }, index: *index, eax: *eax, ebx: *ebx, ecx: *ecx, edx: *edx, ..Default::default() }
        }).collect();
        let vcpu = &mut state.vcpus[0];
        vcpu.cpuid = Some(CpuId::from_entries(&entries).unwrap());
        vcpu.msrs = Some(Msrs::from_entries(&msrs.iter().map(|(index, data)| msr(*index, *data)).collect::<Vec<_>>()).unwrap());
        vcpu.xsave.resize(bytes * 4, 0xff);
        vcpu.tsc_khz = khz;
        let mut xcrs = kvm_xcrs { nr_xcrs, ..Default::default() };
        xcrs.xcrs[0].value = value;
        vcpu.xcrs = Some(xcrs);
        let fit = compare(&state, &host, Wishes { tsc: TscChoice::Host, ..Wishes::default() });
        let mut pieces: Vec<_> = fit.findings().iter().map(|finding| finding.piece).collect();
        pieces.dedup();
        prop_assert_eq!(pieces.len(), fit.findings().len());
        fit.adapt(&mut state);
        prop_assert!(state.vcpus.iter().all(|vcpu| vcpu.xsave.len() == 4096));
        prop_assert!(fit.findings().iter().all(|finding| !finding.to_string().is_empty() && serde_json::to_string(finding).is_ok()));
    }
}
