//! Capturing and applying on the KVM at hand.

use std::io::Write as _;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::*;
use crate::kvm::xsave::{self, XsaveError};

/// The KVM of this machine; without one, the test says so and ends.
fn kvm(test: &str) -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            assert!(std::env::var_os("SLACKWATER_REQUIRE_KVM").is_none(), "{test} needs /dev/kvm: {error}");
            // Not eprintln!, which the harness hides.
            let _ = writeln!(std::io::stderr(), "SKIP {test}: no /dev/kvm ({error})");
            None
        }
    }
}

struct Machine {
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    spec: CaptureSpec,
}

impl Machine {
    /// Chips, timer and two vCPUs, with the host's CPUID.
    fn new(kvm: &Kvm, chips: bool, cpuid: bool) -> Self {
        let vm = kvm.create_vm().unwrap();
        if chips {
            vm.create_irq_chip().unwrap();
            vm.create_pit2(kvm_pit_config::default()).unwrap();
        }
        let vcpus: Vec<_> = (0..2).map(|index| vm.create_vcpu(index).unwrap()).collect();
        if cpuid {
            let supported = kvm.get_supported_cpuid(256).unwrap();
            for (vcpu, apic) in vcpus.iter().zip(0u32..) {
                let mut entries = supported.as_slice().to_vec();
                for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
                    entry.ebx = (entry.ebx & 0x00ff_ffff) | apic << 24;
                }
                vcpu.set_cpuid2(&CpuId::from_entries(&entries).unwrap()).unwrap();
            }
        }
        let spec = CaptureSpec::probe(kvm, &vm, &vcpus[0]).unwrap();
        Self { vm, vcpus, spec }
    }

    fn capture(&mut self) -> MachineState {
        let mut state = MachineState::new(2);
        capture_vm(&self.vm, &self.spec, &mut state.vm).unwrap();
        for (vcpu, state) in self.vcpus.iter_mut().zip(&mut state.vcpus) {
            capture_vcpu(vcpu, &self.spec, state).unwrap();
        }
        state
    }

    fn apply(&self, state: &MachineState) {
        for (vcpu, state) in self.vcpus.iter().zip(&state.vcpus) {
            apply_vcpu(vcpu, &self.spec, state).unwrap();
        }
        apply_vm(&self.vm, &self.spec, &state.vm).unwrap();
    }
}

const TSC: u32 = 0x10;
/// Hyper-V's times, which mainline lists: how long the vCPU ran, and the reference time. Writing
/// them changes nothing.
const HV_VP_RUNTIME: u32 = 0x4000_0010;
const HV_TIME_REF_COUNT: u32 = 0x4000_0020;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// Gives vCPU number `n` state that no reset gives and no other vCPU has.
fn distinguish(vcpu: &VcpuFd, n: u64, spec: &CaptureSpec) {
    let mut noise = Noise(n + 100);
    let mut regs: kvm_bindings::kvm_regs = noise.value();
    regs.rflags = 0x2 | 0x8d5; // The arithmetic flags and a trap flag that is clear.
    regs.rip = 0x1000 + n;
    vcpu.set_regs(&regs).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cr2, sregs.gdt.base, sregs.idt.limit, sregs.fs.base) = (0xdead_0000 + n, 0x4000 + n * 64, 0x7ff, 0x1234_5000 + n);
    (sregs.cr3, sregs.cr4, sregs.cr0, sregs.efer) = (0x9000, 0x4_0620, 0x8005_0033, 0xd01);
    (sregs.cs.l, sregs.cs.type_, sregs.cs.db, sregs.cs.g) = (1, 11, 0, 1);
    if vcpu.set_sregs(&sregs).is_err() {
        sregs.cr4 = 0x620; // No CPUID, so no OSXSAVE.
        sregs.efer = 0x500;
        vcpu.set_sregs(&sregs).unwrap();
    }
    if let Some(size) = spec.xsave {
        let mut area = vec![0; size.bytes()];
        xsave::get(vcpu, size, &mut area).unwrap();
        for (byte, n) in area[160..416].iter_mut().zip(n.to_le_bytes().into_iter().cycle()) {
            *byte = n ^ noise.byte(); // xmm0 to xmm15
        }
        area[512] |= 3; // The header says that x87 and SSE are in use.
        xsave::set(vcpu, size, &area).unwrap();
    }
    let mut debug = vcpu.get_debug_regs().unwrap();
    debug.db = [0x1000 + n, 0x2000 + n, 0x3000 + n, 0x4000 + n];
    (debug.dr6, debug.dr7) = (0xffff_0ff1, 0x455);
    vcpu.set_debug_regs(&debug).unwrap();
    let msrs: Vec<_> = [
        (STAR, 0x0023_0010_0000_0000 + n),
        (LSTAR, 0x7fff_0000 + n),
        (KERNEL_GS_BASE, 0x5555_0000 + n),
        (TSC_AUX, n + 9),
        (0x2ff, 0xc06),
        (0x200, 0x6),
    ]
    .into_iter()
    .filter(|(index, _)| spec.msrs().contains(index))
    .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
    .collect();
    assert!(msrs.len() >= 3, "the host lists {:x?}", spec.msrs());
    assert_eq!(vcpu.set_msrs(&Msrs::from_entries(&msrs).unwrap()).unwrap(), msrs.len());
    if spec.lapic {
        let mut lapic = vcpu.get_lapic().unwrap();
        let register = |lapic: &mut kvm_bindings::kvm_lapic_state, at: usize, value: u32| {
            for (place, byte) in lapic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
                *place = byte.cast_signed();
            }
        };
        register(&mut lapic, 0xf0, 0x1ff); // Enabled, spurious vector 255.
        register(&mut lapic, 0x80, 0x20); // Task priority.
        register(&mut lapic, 0x210, 1 << 17); // Vector 49 is pending.
        register(&mut lapic, 0x320, 0x1_0000 | 0x31); // The timer is masked.
        register(&mut lapic, 0x350, 0x700);
        vcpu.set_lapic(&lapic).unwrap();
    }
    let mut events = vcpu.get_vcpu_events().unwrap();
    (events.exception.injected, events.exception.nr, events.exception.has_error_code) = (1, 14, 1);
    events.exception.error_code = 0x6 + u32::try_from(n).unwrap();
    (events.nmi.pending, events.nmi.masked, events.interrupt.shadow) = (1, 1, 1);
    vcpu.set_vcpu_events(&events).unwrap();
    let mp_state = if n == 0 || !spec.lapic { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_HALTED };
    vcpu.set_mp_state(kvm_bindings::kvm_mp_state { mp_state }).unwrap();
}

/// Takes out of `state` what time alone changes, and says what it was.
fn without_time(state: &mut MachineState) -> (Vec<u64>, Option<u64>) {
    let mut counters = Vec::new();
    for msr in state.vcpus.iter_mut().flat_map(|vcpu| vcpu.msrs.as_mut().unwrap().as_mut_slice()) {
        match msr.index {
            TSC => counters.push(std::mem::take(&mut msr.data)),
            HV_VP_RUNTIME | HV_TIME_REF_COUNT => msr.data = 0,
            _ => {}
        }
    }
    for channel in state.vm.pit2.iter_mut().flat_map(|pit| &mut pit.channels) {
        channel.count_load_time = 0;
    }
    (counters, state.vm.clock.take().map(|clock| clock.clock))
}

fn round_trip(kvm: &Kvm, chips: bool, cpuid: bool) {
    let mut first = Machine::new(kvm, chips, cpuid);
    for (vcpu, n) in first.vcpus.iter().zip(0..) {
        distinguish(vcpu, n, &first.spec);
    }
    if chips {
        let mut pit = first.vm.get_pit2().unwrap();
        (pit.channels[2].count, pit.channels[2].mode, pit.channels[2].gate) = (0x4321, 3, 1);
        (pit.channels[0].count, pit.channels[0].mode, pit.channels[0].rw_mode) = (0x8000, 2, 3);
        pit.flags = 1; // HPET in legacy mode: no ticks, so that nothing but time itself differs.
        first.vm.set_pit2(&pit).unwrap();
        let mut chip = kvm_irqchip { chip_id: 2, ..Default::default() };
        first.vm.get_irqchip(&mut chip).unwrap();
        // Pins 4 and 5, masked, at the end of the chip's bytes: offset 24 and eight for each pin.
        let mut bytes = chip.as_bytes().to_vec();
        bytes[8 + 24 + 4 * 8] = 0x34;
        bytes[8 + 24 + 4 * 8 + 2] = 1;
        bytes[8 + 24 + 5 * 8] = 0x35;
        bytes[8 + 24 + 5 * 8 + 2] = 1;
        first.vm.set_irqchip(&kvm_irqchip::read_from_bytes(&bytes).unwrap()).unwrap();
        let mut pic = kvm_irqchip::default();
        first.vm.get_irqchip(&mut pic).unwrap();
        let mut bytes = pic.as_bytes().to_vec();
        (bytes[8 + 3], bytes[8 + 5]) = (0xfb, 0x28); // Mask and vector base.
        first.vm.set_irqchip(&kvm_irqchip::read_from_bytes(&bytes).unwrap()).unwrap();
    }
    first.vm.set_clock(&kvm_bindings::kvm_clock_data { clock: 3_600_000_000_000, ..Default::default() }).unwrap();

    let before = first.capture();
    assert_eq!(before.vcpus[0].events.exception.nr, 14);
    assert_eq!(!before.vcpus[0].cpuid.as_ref().unwrap().as_slice().is_empty(), cpuid, "only what the vCPU was told");
    assert_ne!(before.vcpus[0].regs, before.vcpus[1].regs);
    assert_ne!(before.vcpus[0].msrs, before.vcpus[1].msrs);
    let records = before.to_records();
    drop(first);

    let mut second = Machine::new(kvm, chips, cpuid);
    let mut fresh = second.capture();
    second.apply(&MachineState::from_records(&records, 2).unwrap());
    let mut after = second.capture();
    let mut before = before;
    let ((_, clock), (_, restored), _) = (without_time(&mut before), without_time(&mut after), without_time(&mut fresh));
    assert!(
        restored >= clock && restored.unwrap() - clock.unwrap() < 60_000_000_000,
        "the clock went on: {clock:?}, {restored:?}"
    );
    for (before, after) in before.vcpus.iter().zip(&after.vcpus) {
        for (one, two) in before.msrs.as_ref().unwrap().as_slice().iter().zip(after.msrs.as_ref().unwrap().as_slice()) {
            assert_eq!(one, two, "{:#x}", one.index);
        }
        assert_eq!(before, after);
    }
    assert_eq!(before.vm.pit2, after.vm.pit2);
    assert_eq!(before, after);
    // The comparison would find a piece that was not applied.
    for (before, fresh) in before.vcpus.iter().zip(&fresh.vcpus) {
        assert_ne!(before.regs, fresh.regs);
        assert_ne!(before.sregs, fresh.sregs);
        assert_ne!(before.xsave, fresh.xsave);
        assert_ne!(before.debugregs, fresh.debugregs);
        assert_ne!(before.msrs, fresh.msrs);
        assert_ne!(before.events, fresh.events);
        assert!(!chips || before.lapic != fresh.lapic);
    }
    assert!(!chips || before.vm.ioapic.unwrap().as_bytes() != fresh.vm.ioapic.unwrap().as_bytes());
    assert!(!chips || before.vm.pic_master.unwrap().as_bytes() != fresh.vm.pic_master.unwrap().as_bytes());
    assert!(!chips || before.vm.pit2 != fresh.vm.pit2);
}

#[test]
fn a_machine_is_captured_and_applied() {
    if let Some(kvm) = kvm("a_machine_is_captured_and_applied") {
        round_trip(&kvm, true, true);
    }
}

#[test]
fn a_machine_without_chips_and_cpuid_is_captured_and_applied() {
    if let Some(kvm) = kvm("a_machine_without_chips_and_cpuid_is_captured_and_applied") {
        round_trip(&kvm, false, false);
    }
}

/// How the kernel gets registers and events of a vCPU that is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    /// By calls at once: no exit left any.
    AtOnce,
    /// By calls before a capture that comes before any entry.
    BeforeCapture,
    /// By the next entry.
    AtEntry,
}

/// The field of an XSAVE area that says which components are in use.
const XSTATE_BV: std::ops::Range<usize> = 512..520;

/// Enters the vCPU and leaves it at once.
fn enter(vcpu: &mut VcpuFd) {
    vcpu.set_kvm_immediate_exit(1);
    assert_eq!(vcpu.run().map(|exit| format!("{exit:?}")).unwrap_err().errno(), libc::EINTR);
    vcpu.set_kvm_immediate_exit(0);
}

/// Piece by piece, for all of it is pages of numbers.
fn same_vcpu(found: &VcpuState, saved: &VcpuState, given: Given) {
    let vcpu = saved.index;
    assert_eq!((found.mp_state, found.events), (saved.mp_state, saved.events), "{given:?}, vCPU {vcpu}");
    assert_eq!((found.regs, found.sregs), (saved.regs, saved.sregs), "{given:?}, vCPU {vcpu}");
    assert_eq!(found.debugregs, saved.debugregs, "{given:?}, vCPU {vcpu}");
    let msrs = |state: &VcpuState| state.msrs.as_ref().unwrap().as_slice().to_vec();
    for (found, saved) in msrs(found).iter().zip(&msrs(saved)) {
        assert_eq!(found, saved, "{given:?}, vCPU {vcpu}: {:#x}", saved.index);
    }
    let place = found.lapic.unwrap_or_default().regs.iter().zip(&saved.lapic.unwrap_or_default().regs).position(|(a, b)| a != b);
    assert_eq!(place, None, "{given:?}, vCPU {vcpu}: the place in the local APIC");
    let place = found.xsave.iter().zip(&saved.xsave).position(|(a, b)| a != b);
    assert_eq!(place, None, "{given:?}, vCPU {vcpu}: the place in the XSAVE area");
    assert!(found == saved, "{given:?}, vCPU {vcpu}");
}

/// Whatever a vCPU has come to since, a rewinder leaves it as writing all of the state does.
fn rewound(kvm: &Kvm, chips: bool, cpuid: bool, given: Given) {
    let mut machine = Machine::new(kvm, chips, cpuid);
    for (vcpu, n) in machine.vcpus.iter().zip(0..) {
        distinguish(vcpu, n, &machine.spec);
    }
    let saved = machine.capture();
    let mut rewinder = Rewinder::default();
    for round in 1..4 {
        for (vcpu, n) in machine.vcpus.iter().zip(0..) {
            distinguish(vcpu, 10 * round + n, &machine.spec);
            let ahead = kvm_msr_entry { index: TSC, data: 1 << 50, ..Default::default() };
            assert_eq!(vcpu.set_msrs(&Msrs::from_entries(&[ahead]).unwrap()).unwrap(), 1);
        }
        if chips {
            let mut pit = machine.vm.get_pit2().unwrap();
            (pit.channels[2].count, pit.channels[2].mode, pit.channels[2].gate) = (0x4321, 3, 1);
            pit.flags = 1;
            machine.vm.set_pit2(&pit).unwrap();
            for chip_id in 0..3 {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                machine.vm.get_irqchip(&mut chip).unwrap();
                let mut bytes = chip.as_bytes().to_vec();
                match chip_id {
                    // A masked pin; the mask and the vector base.
                    2 => (bytes[8 + 24 + 4 * 8], bytes[8 + 24 + 4 * 8 + 2]) = (0x34, 1),
                    _ => (bytes[8 + 3], bytes[8 + 5]) = (0xfb, 0x28),
                }
                machine.vm.set_irqchip(&kvm_irqchip::read_from_bytes(&bytes).unwrap()).unwrap();
            }
        }
        machine.vm.set_clock(&kvm_bindings::kvm_clock_data { clock: 3_600_000_000_000, ..Default::default() }).unwrap();
        let mut other = machine.capture();
        let Machine { vm, vcpus, spec } = &mut machine;
        for (vcpu, state) in vcpus.iter_mut().zip(&saved.vcpus) {
            if given != Given::AtOnce {
                leave_registers(vcpu, spec);
                enter(vcpu);
            }
            rewinder.vcpu(vcpu, spec, state).unwrap();
            // All others are written at once: one without a local APIC, one that halts.
            let waits = given != Given::AtOnce && spec.registers_at_exit && chips && state.index == 0;
            assert_eq!(vcpu.get_kvm_run().kvm_dirty_regs != 0, waits, "{given:?}, vCPU {}", state.index);
            assert_eq!(vcpu.get_regs().unwrap() == state.regs, !waits);
            if given == Given::AtEntry {
                enter(vcpu);
                // From here on registers are asked for.
                leave_registers(vcpu, spec);
            }
        }
        rewinder.vm(vm, spec, &saved.vm).unwrap();
        let (mut found, mut saved) = (machine.capture(), saved.clone());
        let ((_, clock), (_, after), _) = (without_time(&mut saved), without_time(&mut found), without_time(&mut other));
        assert!((clock..clock.map(|ns| ns + 60_000_000_000)).contains(&after), "the clock went back: {clock:?}, {after:?}");
        for (found, saved) in found.vcpus.iter_mut().zip(&saved.vcpus) {
            if given == Given::AtEntry {
                // The processor had the area: it says of more components that they are in use.
                found.xsave[XSTATE_BV].copy_from_slice(&saved.xsave[XSTATE_BV]);
            }
            same_vcpu(found, saved, given);
        }
        assert!(found.vm == saved.vm);
        machine.apply(&saved_again(&saved, clock));
        let mut applied = machine.capture();
        without_time(&mut applied);
        assert!(found == applied, "{given:?}");
        for (other, saved) in other.vcpus.iter().zip(&saved.vcpus) {
            assert!(other.regs != saved.regs && other.sregs != saved.sregs && other.msrs != saved.msrs);
            assert!(other.xsave != saved.xsave && other.debugregs != saved.debugregs && other.events != saved.events);
        }
        assert!(!chips || other.vm.pit2 != saved.vm.pit2 && other.vm != saved.vm);
    }
}

/// State whose times were taken out, with a clock.
fn saved_again(state: &MachineState, clock: Option<u64>) -> MachineState {
    let clock = clock.map(|clock| kvm_bindings::kvm_clock_data { clock, ..Default::default() });
    MachineState { vm: VmState { clock, ..state.vm }, ..state.clone() }
}

#[test]
fn a_machine_that_went_on_is_put_back() {
    if let Some(kvm) = kvm("a_machine_that_went_on_is_put_back") {
        for given in [Given::AtOnce, Given::BeforeCapture, Given::AtEntry] {
            rewound(&kvm, true, true, given);
            rewound(&kvm, false, false, given);
        }
    }
}

/// A kernel takes a counter that is written within a second of where it would be for one that is
/// meant to go on.
#[test]
fn time_stamp_counters_go_back_however_little() {
    let Some(kvm) = kvm("time_stamp_counters_go_back_however_little") else { return };
    let Machine { mut vcpus, spec, .. } = Machine::new(&kvm, true, true);
    let capture = |vcpus: &mut [VcpuFd]| -> Vec<VcpuState> {
        let mut states = vec![VcpuState::new(0), VcpuState::new(1)];
        vcpus.iter_mut().zip(&mut states).for_each(|(vcpu, state)| capture_vcpu(vcpu, &spec, state).unwrap());
        states
    };
    let counter = |state: &VcpuState| state.msrs.as_ref().unwrap().as_slice().iter().find(|msr| msr.index == TSC).unwrap().data;
    let saved = capture(&mut vcpus);
    let Some(khz) = saved[0].tsc_khz else { return };
    let ahead = kvm_msr_entry { index: TSC, data: counter(&saved[0]) + (1 << 50), ..Default::default() };
    vcpus[0].set_msrs(&Msrs::from_entries(&[ahead]).unwrap()).unwrap();
    if counter(&capture(&mut vcpus)[0]) < ahead.data {
        return println!("this KVM takes counters and sets none: the guest reads the host's");
    }
    let mut rewinder = Rewinder::default();
    for _ in 0..4 {
        let gap = Instant::now();
        while gap.elapsed() < Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        vcpus.iter_mut().zip(&saved).for_each(|(vcpu, state)| rewinder.vcpu(vcpu, &spec, state).unwrap());
        let found = capture(&mut vcpus);
        let most = u64::try_from(start.elapsed().as_millis() + 50).unwrap() * u64::from(khz);
        for (found, saved) in found.iter().zip(&saved) {
            let passed = counter(found).wrapping_sub(counter(saved));
            assert!(passed < most, "{passed} cycles passed, at most {most} did");
        }
    }
}

#[test]
fn state_that_does_not_fit_the_machine_is_refused_before_it_is_written() {
    let Some(kvm) = kvm("state_that_does_not_fit_the_machine_is_refused_before_it_is_written") else { return };
    let (mut with, without) = (Machine::new(&kvm, true, true), Machine::new(&kvm, false, true));
    let state = with.capture();
    let vcpu = |edit: &dyn Fn(&mut VcpuState)| {
        let mut vcpu = state.vcpus[0].clone();
        (vcpu.regs.rax, vcpu.sregs.cr2) = (0x7777, 0x7777);
        edit(&mut vcpu);
        apply_vcpu(&with.vcpus[0], &with.spec, &vcpu)
    };
    assert!(matches!(vcpu(&|vcpu| vcpu.xsave.push(0)), Err(StateError::Size { piece: "vcpu.xsave", .. })));
    assert!(matches!(vcpu(&|vcpu| vcpu.xsave.clear()), Err(StateError::Missing { piece: "vcpu.xsave", vcpu: Some(0) })));
    assert!(matches!(vcpu(&|vcpu| vcpu.lapic = None), Err(StateError::Missing { piece: "vcpu.lapic", .. })));
    assert!(matches!(vcpu(&|vcpu| vcpu.msrs = None), Err(StateError::Missing { piece: "vcpu.msrs", .. })));
    assert!(matches!(vcpu(&|vcpu| vcpu.cpuid = None), Err(StateError::Missing { piece: "vcpu.cpuid", .. })));
    assert!(matches!(vcpu(&|vcpu| vcpu.fpu = Some(kvm_fpu::default())), Err(StateError::Unsupported { piece: "vcpu.fpu", .. })));
    assert_ne!(with.vcpus[0].get_regs().unwrap().rax, 0x7777);
    assert_ne!(with.vcpus[0].get_sregs().unwrap().cr2, 0x7777);
    let lapic = apply_vcpu(&without.vcpus[0], &without.spec, &state.vcpus[0]);
    assert!(matches!(lapic, Err(StateError::Unsupported { piece: "vcpu.lapic", vcpu: Some(0), .. })));
    let chips = apply_vm(&without.vm, &without.spec, &state.vm);
    assert!(matches!(chips, Err(StateError::Unsupported { piece: "vm.pit2", vcpu: None, .. })));
    let none = apply_vm(&with.vm, &with.spec, &VmState { pic_slave: None, ..state.vm });
    assert!(matches!(none, Err(StateError::Missing { piece: "vm.pic_slave", vcpu: None })));
    // What the kernel itself refuses.
    let registers = vcpu(&|vcpu| {
        let mut entries = vcpu.msrs.as_ref().unwrap().as_slice().to_vec();
        entries.insert(1, kvm_msr_entry { index: 0xdead_beef, ..Default::default() });
        vcpu.msrs = Some(Msrs::from_entries(&entries).unwrap());
    });
    assert!(matches!(registers, Err(StateError::Msr { vcpu: 0, index: 0xdead_beef, action: "written" })));
    // A compacted layout, in the area's header.
    let area = vcpu(&|vcpu| vcpu.xsave[520..528].fill(0xff));
    assert!(matches!(area, Err(StateError::Ioctl { piece: "vcpu.xsave", vcpu: Some(0), .. })), "{area:?}");
}

#[test]
fn extended_state_of_another_size_is_refused() {
    let Some(kvm) = kvm("extended_state_of_another_size_is_refused") else { return };
    let machine = Machine::new(&kvm, false, false);
    let Some(size) = machine.spec.xsave else { return };
    let vcpu = &machine.vcpus[0];
    for bytes in [0, 4, size.bytes() - 4, size.bytes() + 4] {
        let wrong = Err::<(), _>((size.bytes(), bytes));
        let found = |result| match result {
            Err(XsaveError::Size { expected, found }) => Err((expected, found)),
            other => panic!("{other:?}"),
        };
        assert_eq!(found(xsave::get(vcpu, size, &mut vec![0; bytes])), wrong);
        assert_eq!(found(xsave::set(vcpu, size, &vec![0; bytes])), wrong);
    }
}

#[test]
fn a_host_without_xsave_has_the_fpu() {
    let Some(kvm) = kvm("a_host_without_xsave_has_the_fpu") else { return };
    let mut machines = [Machine::new(&kvm, true, true), Machine::new(&kvm, true, true)];
    for machine in &mut machines {
        (machine.spec.xsave, machine.spec.xcrs) = (None, false);
    }
    let [mut first, second] = machines;
    let mut fpu = first.vcpus[1].get_fpu().unwrap();
    fpu.xmm[3] = [7; 16];
    first.vcpus[1].set_fpu(&fpu).unwrap();
    let state = MachineState::from_records(&first.capture().to_records(), 2).unwrap();
    second.apply(&state);
    assert!(state.vcpus.iter().all(|vcpu| vcpu.xsave.is_empty() && vcpu.xcrs.is_none()));
    assert_eq!(second.vcpus[1].get_fpu().unwrap().xmm[3], [7; 16]);
}

#[test]
fn what_is_not_captured_is_refused_where_it_shows() {
    let Some(kvm) = kvm("what_is_not_captured_is_refused_where_it_shows") else { return };
    let mut machine = Machine::new(&kvm, true, true);
    let vcpu = &mut machine.vcpus[0];
    let mut events = vcpu.get_vcpu_events().unwrap();
    events.smi.smm = 1;
    if let Err(error) = vcpu.set_vcpu_events(&events) {
        eprintln!("SKIP system management mode: this KVM has none ({error})");
        return;
    }
    let refused = capture_vcpu(vcpu, &machine.spec, &mut VcpuState::new(0)).unwrap_err();
    assert!(
        matches!(refused, StateError::Unsupported { piece, vcpu: Some(0), .. } if NOT_CAPTURED.iter().any(|(name, _)| *name == piece))
    );
    events.smi.smm = 0;
    vcpu.set_vcpu_events(&events).unwrap();
    capture_vcpu(vcpu, &machine.spec, &mut VcpuState::new(0)).unwrap();
}

#[test]
fn a_guest_without_kvmclock_is_not_told() {
    let Some(kvm) = kvm("a_guest_without_kvmclock_is_not_told") else { return };
    assert!(!notify_paused(&Machine::new(&kvm, true, true).vcpus[0]).unwrap());
}

#[test]
fn a_kick_that_no_state_has_is_given_after_a_restore() {
    let Some(kvm) = kvm("a_kick_that_no_state_has_is_given_after_a_restore") else { return };
    let mp_state = |machine: &Machine, vcpu: usize| machine.vcpus[vcpu].get_mp_state().unwrap().mp_state;
    for told in [true, false] {
        let [mut first, second] = [(); 2].map(|()| Machine::new(&kvm, true, told));
        let halted = kvm_bindings::kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
        first.vcpus[0].set_mp_state(halted).unwrap();
        let state = first.capture();
        second.apply(&state);
        let waiting = mp_state(&second, 1);
        assert_eq!((mp_state(&second, 0), waiting), (KVM_MP_STATE_HALTED, state.vcpus[1].mp_state.mp_state));
        unhalt_vcpus(&second.vm, &second.spec, &state.vcpus).unwrap();
        // Of a vCPU that halts, the kernel tells that it was kicked; one that was not started yet
        // has nothing to be kicked for.
        let kicked = if told { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_HALTED };
        assert_eq!((mp_state(&second, 0), mp_state(&second, 1)), (kicked, waiting), "offered: {told}");
    }
    let mut without = Machine::new(&kvm, false, true);
    let vcpus = without.capture().vcpus;
    unhalt_vcpus(&without.vm, &without.spec, &vcpus).unwrap();
}

#[test]
fn a_buffer_is_used_again() {
    let Some(kvm) = kvm("a_buffer_is_used_again") else { return };
    let mut machine = Machine::new(&kvm, true, true);
    let mut state = VcpuState::new(1);
    capture_vcpu(&mut machine.vcpus[1], &machine.spec, &mut state).unwrap();
    let places = |state: &VcpuState| (state.xsave.as_ptr(), state.msrs.as_ref().unwrap().as_slice().as_ptr());
    let before = places(&state);
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        capture_vcpu(&mut machine.vcpus[1], &machine.spec, &mut state).unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    println!("capture_vcpu: median {:?}", times[times.len() / 2]);
    assert_eq!(places(&state), before);
    // A list of registers from elsewhere is replaced.
    state.msrs = Some(Msrs::from_entries(&[kvm_msr_entry { index: STAR, ..Default::default() }]).unwrap());
    capture_vcpu(&mut machine.vcpus[1], &machine.spec, &mut state).unwrap();
    assert_eq!(state.msrs.unwrap().as_slice().len(), machine.spec.msrs().len());
}

/// Has the local APIC enabled by software, as firmware leaves it, and registers left at each exit,
/// and exits once.
fn leave(machine: &mut Machine) {
    for vcpu in &mut machine.vcpus {
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[0xf1] |= 1;
        vcpu.set_lapic(&lapic).unwrap();
        leave_registers(vcpu, &machine.spec);
        vcpu.set_kvm_immediate_exit(1);
        assert_eq!(vcpu.run().unwrap_err().errno(), libc::EINTR);
    }
}

#[test]
fn registers_that_an_exit_left_are_those_of_the_vcpu() {
    let Some(kvm) = kvm("registers_that_an_exit_left_are_those_of_the_vcpu") else { return };
    let mut machine = Machine::new(&kvm, true, true);
    if !machine.spec.registers_at_exit {
        eprintln!("SKIP: this KVM leaves no registers at exits");
        return;
    }
    let mut regs = machine.vcpus[0].get_regs().unwrap();
    (regs.rbx, regs.r11) = (0x1234_5678_9abc, 77);
    machine.vcpus[0].set_regs(&regs).unwrap();
    // Asked for, and nothing left yet: the kernel is asked.
    leave_registers(&mut machine.vcpus[0], &machine.spec);
    let mut state = VcpuState::new(0);
    capture_vcpu(&mut machine.vcpus[0], &machine.spec, &mut state).unwrap();
    assert_eq!(state.regs, regs);
    // Left by an exit. What is set behind its back does not show: so it is what the exit left.
    leave(&mut machine);
    let sregs = machine.vcpus[0].get_sregs().unwrap();
    machine.vcpus[0].set_regs(&kvm_bindings::kvm_regs { rbx: 1, ..regs }).unwrap();
    let mut state = VcpuState::new(0);
    capture_vcpu(&mut machine.vcpus[0], &machine.spec, &mut state).unwrap();
    assert_eq!((state.regs, state.sregs), (regs, sregs));
    // Reading a pending exception may have changed them: the kernel is asked.
    let mut events = machine.vcpus[0].get_vcpu_events().unwrap();
    (events.exception.injected, events.exception.nr) = (1, 6);
    machine.vcpus[0].set_vcpu_events(&events).unwrap();
    capture_vcpu(&mut machine.vcpus[0], &machine.spec, &mut state).unwrap();
    assert_eq!(state.regs.rbx, 1);
    events.exception.injected = 0;
    machine.vcpus[0].set_vcpu_events(&events).unwrap();
    capture_vcpu(&mut machine.vcpus[0], &machine.spec, &mut state).unwrap();
    assert_eq!(state.regs.rbx, regs.rbx);
    leave_registers(&mut machine.vcpus[0], &machine.spec);
    capture_vcpu(&mut machine.vcpus[0], &machine.spec, &mut state).unwrap();
    assert_eq!(state.regs.rbx, 1);
}

/// Another vCPU resets this one between its exit and the capture: what the exit left is not its
/// state any more.
#[test]
fn registers_from_before_an_init_are_not_taken() {
    let Some(kvm) = kvm("registers_from_before_an_init_are_not_taken") else { return };
    let mut machine = Machine::new(&kvm, true, true);
    let mut regs = machine.vcpus[1].get_regs().unwrap();
    regs.rbx = 0x1234;
    machine.vcpus[1].set_regs(&regs).unwrap();
    machine.vcpus[1].set_mp_state(kvm_bindings::kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    leave(&mut machine);
    // INIT for the local APIC 1, then a start-up interrupt to 0x8000.
    let msi = |data| kvm_bindings::kvm_msi { address_lo: 0xfee0_1000, data, ..Default::default() };
    assert_eq!(machine.vm.signal_msi(msi(0x500)).unwrap(), 1);
    assert_eq!(machine.vm.signal_msi(msi(0x608)).unwrap(), 1);
    let mut state = VcpuState::new(1);
    capture_vcpu(&mut machine.vcpus[1], &machine.spec, &mut state).unwrap();
    assert_eq!((state.regs.rbx, state.regs.rip, state.sregs.cs.base), (0, 0, 0x8000));
    assert_eq!((state.regs, state.sregs), (machine.vcpus[1].get_regs().unwrap(), machine.vcpus[1].get_sregs().unwrap()));
    // And the other one's are still good.
    let mut state = VcpuState::new(0);
    capture_vcpu(&mut machine.vcpus[0], &machine.spec, &mut state).unwrap();
    assert_eq!(state.regs, machine.vcpus[0].get_regs().unwrap());
}

/// A guest that is younger than a second keeps its counter: kernels before 6.7 take a small value
/// for the counter of a new vCPU, and drop it.
#[test]
fn a_small_counter_is_restored() {
    let Some(kvm) = kvm("a_small_counter_is_restored") else { return };
    let mut machine = Machine::new(&kvm, true, true);
    let Ok(khz) = machine.vcpus[0].get_tsc_khz() else { return };
    let ticks = |time: Duration| u64::from(khz) * u64::try_from(time.as_micros()).unwrap() / 1000;
    let mut state = machine.capture();
    let counters = |state: &MachineState| {
        let msrs = state.vcpus.iter().flat_map(|vcpu| vcpu.msrs.as_ref().unwrap().as_slice());
        msrs.filter(|msr| msr.index == TSC).map(|msr| msr.data).collect::<Vec<_>>()
    };
    if counters(&state).iter().any(|counter| *counter > ticks(Duration::from_secs(3))) {
        return; // A new vCPU's counter is the host's: this host can't offset it.
    }
    let half = ticks(Duration::from_millis(500));
    for msr in state.vcpus.iter_mut().flat_map(|vcpu| vcpu.msrs.as_mut().unwrap().as_mut_slice()) {
        if msr.index == TSC {
            msr.data = half;
        }
    }
    let start = Instant::now();
    machine.apply(&state);
    let found = counters(&machine.capture());
    let most = half + 2 * ticks(start.elapsed());
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|counter| (half..most).contains(counter)), "{found:?} is from {half} on, below {most}");
}

/// After a restore that puts the clocks forward, by less than the kernel takes for the same counter
/// and by much more, all counters have gone forward, and agree.
#[test]
fn clocks_that_were_put_forward_agree() {
    let Some(kvm) = kvm("clocks_that_were_put_forward_agree") else { return };
    let Ok(khz) = Machine::new(&kvm, true, true).vcpus[0].get_tsc_khz() else { return };
    let ticks = |time: Duration| u64::from(khz) * u64::try_from(time.as_micros()).unwrap() / 1000;
    let counters = |state: &MachineState| -> [u64; 2] {
        let msrs = state.vcpus.iter().flat_map(|vcpu| vcpu.msrs.as_ref().unwrap().as_slice());
        msrs.filter(|msr| msr.index == TSC).map(|msr| msr.data).collect::<Vec<_>>().try_into().unwrap()
    };
    for forward in [Duration::from_millis(300), Duration::from_secs(86_400)] {
        let mut machine = Machine::new(&kvm, true, true);
        let saved = machine.capture();
        let (before, clock) = (counters(&saved), saved.vm.clock.unwrap().clock);
        let counts_from_zero = before[0] < ticks(Duration::from_secs(60));
        let mut state = saved;
        let ns = u64::try_from(forward.as_nanos()).unwrap();
        state.vcpus.iter_mut().for_each(|vcpu| vcpu.advance_counter(ns));
        state.vm.advance_clock(ns);
        let start = Instant::now();
        let mut restored = Machine::new(&kvm, true, true);
        restored.apply(&state);
        let found = restored.capture();
        let took = start.elapsed() + Duration::from_millis(50);
        let passed = Duration::from_nanos(found.vm.clock.unwrap().clock - clock);
        assert!((forward..forward + took).contains(&passed), "kvmclock went {passed:?} forward, not {forward:?}");
        if !counts_from_zero {
            println!("this host can't offset the counter: the guest reads the host's");
            continue;
        }
        for (before, after) in before.into_iter().zip(counters(&found)) {
            let passed = after - before;
            assert!((ticks(forward)..ticks(forward + took)).contains(&passed), "{passed} ticks passed, not {}", ticks(forward));
        }
        let [one, two] = counters(&found);
        assert!(two.abs_diff(one) < ticks(took), "{one} and {two}");
    }
}

/// Without scaling KVM takes a higher frequency, and has the counter jump: nothing but what is the
/// same is taken.
#[test]
fn a_frequency_that_can_not_be_had_is_refused() {
    let Some(kvm) = kvm("a_frequency_that_can_not_be_had_is_refused") else { return };
    let Ok(khz) = Machine::new(&kvm, true, true).vcpus[0].get_tsc_khz() else { return };
    for (wanted, same) in [
        (khz, true),
        (khz + khz / 10_000, true),
        (khz - khz / 10_000, true),
        (khz + khz / 1000, false),
        (khz - khz / 1000, false),
    ] {
        let mut machine = Machine::new(&kvm, true, true);
        let mut state = machine.capture().vcpus.remove(0);
        state.tsc_khz = Some(wanted);
        let applied = apply_vcpu(&machine.vcpus[0], &machine.spec, &state);
        match (same, machine.spec.tsc_scaling) {
            (true, _) => assert!(applied.is_ok() && machine.vcpus[0].get_tsc_khz().unwrap() == khz, "{wanted}: {applied:?}"),
            (false, true) => {
                assert!(applied.is_ok() && machine.vcpus[0].get_tsc_khz().unwrap() == wanted, "{wanted}: {applied:?}")
            }
            (false, false) => {
                assert!(
                    matches!(applied, Err(StateError::Unsupported { piece: "vcpu.tsc_khz", vcpu: Some(0), .. })),
                    "{applied:?}"
                );
            }
        }
    }
}
