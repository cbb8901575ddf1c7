//! State as records: whole, bounded, in order. `native` captures and applies it on the KVM at hand.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod native;

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_irqchip, kvm_msr_entry};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::format::StateRecord;
use crate::kvm::xsave::XSAVE_BYTES_MAX;

/// A generator of bytes, seeded.
struct Noise(u64);

impl Noise {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.to_le_bytes()[6]
    }

    fn value<T: FromBytes>(&mut self) -> T {
        let bytes: Vec<u8> = (0..size_of::<T>()).map(|_| self.byte()).collect();
        T::read_from_bytes(&bytes).unwrap()
    }

    fn list<T: FromBytes>(&mut self, count: usize) -> Vec<T> {
        (0..count).map(|_| self.value()).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    seed: u64,
    vcpus: u32,
    irqchip: bool,
    optional: bool,
    xsave_words: Option<usize>,
    entries: usize,
}

fn machine(shape: Shape) -> MachineState {
    let noise = &mut Noise(shape.seed);
    let chip = |noise: &mut Noise, chip_id| shape.irqchip.then(|| kvm_irqchip { chip_id, ..noise.value() });
    let mut machine = MachineState::new(shape.vcpus);
    machine.vm = VmState {
        pit2: shape.optional.then(|| noise.value()),
        pic_master: chip(noise, 0),
        pic_slave: chip(noise, 1),
        ioapic: chip(noise, 2),
        clock: shape.optional.then(|| noise.value()),
    };
    for vcpu in &mut machine.vcpus {
        (vcpu.mp_state, vcpu.events, vcpu.regs, vcpu.sregs) = (noise.value(), noise.value(), noise.value(), noise.value());
        vcpu.debugregs = noise.value();
        vcpu.xcrs = shape.optional.then(|| noise.value());
        vcpu.tsc_khz = shape.optional.then(|| noise.value());
        vcpu.lapic = shape.irqchip.then(|| noise.value());
        match shape.xsave_words {
            Some(words) => vcpu.xsave = noise.list(words * 4),
            None => {
                vcpu.fpu = Some(kvm_fpu {
                    fpr: noise.value(),
                    fcw: noise.value(),
                    fsw: noise.value(),
                    ftwx: noise.value(),
                    pad1: noise.value(),
                    last_opcode: noise.value(),
                    last_ip: noise.value(),
                    last_dp: noise.value(),
                    xmm: noise.value(),
                    mxcsr: noise.value(),
                    pad2: noise.value(),
                });
            }
        }
        let msrs: Vec<kvm_msr_entry> = noise.list(shape.entries);
        let msrs: Vec<_> = msrs.into_iter().map(|msr| kvm_msr_entry { reserved: 0, ..msr }).collect();
        vcpu.msrs = Some(Msrs::from_entries(&msrs).unwrap());
        vcpu.cpuid = Some(CpuId::from_entries(&noise.list::<kvm_cpuid_entry2>(shape.entries)).unwrap());
    }
    machine.devices =
        (0..3).map(|index| DeviceState { name: "serial".to_owned(), index, version: 7, data: noise.list(11) }).collect();
    machine
}

const SHAPE: Shape = Shape { seed: 1, vcpus: 2, irqchip: true, optional: true, xsave_words: Some(1024), entries: 5 };

fn shapes() -> impl Strategy<Value = Shape> {
    let xsave = prop_oneof![Just(None), Just(Some(1024)), Just(Some(2751)), Just(Some(XSAVE_BYTES_MAX / 4))];
    let entries = prop_oneof![Just(0), 1usize..60, Just(256)];
    (any::<u64>(), 1u32..4, any::<bool>(), any::<bool>(), xsave, entries).prop_map(
        |(seed, vcpus, irqchip, optional, xsave_words, entries)| Shape { seed, vcpus, irqchip, optional, xsave_words, entries },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_give_back_the_state(shape in shapes()) {
        let state = machine(shape);
        let mut records = state.to_records();
        for record in &records {
            prop_assert!(record.version >= 1 && (1..=64).contains(&record.name.len()));
            prop_assert!(record.name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')));
        }
        // They may come in any order.
        records.reverse();
        let mut back = MachineState::from_records(&records, shape.vcpus).unwrap();
        back.devices.reverse();
        prop_assert_eq!(back, state);
    }

    #[test]
    fn hostile_records_never_panic(seed: u64, edits in prop::collection::vec((any::<u16>(), 0u8..8, any::<u32>()), 1..6), vcpus in 0u32..5) {
        let mut records = machine(Shape { seed, ..SHAPE }).to_records();
        for (place, edit, value) in edits {
            if records.is_empty() {
                break;
            }
            let place = usize::from(place) % records.len();
            let [low, ..] = value.to_le_bytes();
            let record = &mut records[place];
            match edit {
                0 => record.data.truncate(usize::from(low)),
                1 => record.data.resize(record.data.len() + usize::from(low) * 300, low),
                2 => record.index = value,
                3 => record.version = u16::from(low),
                4 => record.name.push(char::from(low)),
                5 => record.data.iter_mut().for_each(|byte| *byte ^= low),
                6 => drop(records.remove(place)),
                _ => {
                    let copy = record.clone();
                    records.push(copy);
                }
            }
        }
        if let Ok(state) = MachineState::from_records(&records, vcpus) {
            let mut back = state.to_records();
            back.sort_by(|one, two| (&one.name, one.index).cmp(&(&two.name, two.index)));
            records.sort_by(|one, two| (&one.name, one.index).cmp(&(&two.name, two.index)));
            prop_assert_eq!(back, records);
        }
    }
}

#[test]
fn every_record_is_needed_once_and_exact() {
    let records = machine(SHAPE).to_records();
    let read = |records: &[StateRecord]| MachineState::from_records(records, SHAPE.vcpus);
    assert!(read(&records).is_ok());
    assert!(matches!(MachineState::from_records(&records, 3), Err(StateError::Missing { vcpu: Some(2), .. })));
    assert!(matches!(MachineState::from_records(&records, 1), Err(StateError::UnknownRecord { index: 1, .. })));
    assert!(matches!(MachineState::from_records(&records, u32::MAX), Err(StateError::Missing { .. })));
    for place in 0..records.len() {
        let name = &records[place].name;
        let with = |edit: &dyn Fn(&mut Vec<StateRecord>)| {
            let mut records = records.clone();
            edit(&mut records);
            read(&records)
        };
        let missing = with(&|records| drop(records.remove(place)));
        match name.as_str() {
            "vm.pit2" | "vm.clock" | "device.serial" => assert!(missing.is_ok(), "{name}"),
            _ => assert!(matches!(missing, Err(StateError::Missing { piece, .. }) if piece == name), "{name}"),
        }
        let twice = with(&|records| records.push(records[place].clone()));
        assert!(matches!(twice, Err(StateError::Duplicate { name: found, .. }) if found == *name), "{name}");
        if name == "device.serial" {
            continue;
        }
        for change in [-1isize, 1] {
            let size = with(&|records| {
                let len = records[place].data.len().checked_add_signed(change).unwrap();
                records[place].data.resize(len, 0);
            });
            assert!(matches!(size, Err(StateError::Size { piece, .. }) if piece == name), "{name} {change}");
        }
        let version = with(&|records| records[place].version = 2);
        assert!(matches!(version, Err(StateError::UnknownRecord { name: found, version: 2, .. }) if found == *name), "{name}");
        let unknown = with(&|records| records[place].name.push('x'));
        assert!(matches!(unknown, Err(StateError::UnknownRecord { .. })), "{name}");
    }
}

#[test]
fn counts_and_sizes_are_bounded() {
    let edited = |name: &str, data: Vec<u8>| {
        let mut records = machine(SHAPE).to_records();
        records.iter_mut().find(|record| record.name == name).unwrap().data = data;
        MachineState::from_records(&records, SHAPE.vcpus)
    };
    assert!(edited("vcpu.msrs", vec![0; 256 * 16]).is_ok());
    assert!(matches!(edited("vcpu.msrs", vec![0; 257 * 16]), Err(StateError::Size { expected: 4096, .. })));
    assert!(matches!(edited("vcpu.msrs", [[0; 16], [1; 16]].concat()), Err(StateError::Malformed { offset: 20, .. })));
    assert!(edited("vcpu.cpuid", vec![0; 256 * 40]).is_ok());
    assert!(matches!(edited("vcpu.cpuid", vec![0; 257 * 40]), Err(StateError::Size { .. })));
    for (bytes, good) in [(0, false), (4092, false), (4096, true), (4098, false), (65_536, true), (65_540, false)] {
        assert_eq!(edited("vcpu.xsave", vec![0; bytes]).is_ok(), good, "{bytes}");
    }
    assert!(matches!(
        edited("vm.ioapic", kvm_irqchip::default().as_bytes().to_vec()),
        Err(StateError::Malformed { offset: 0, .. })
    ));
    let device = |name: &str, version| StateRecord { name: name.to_owned(), index: 0, version, data: Vec::new() };
    let records = machine(SHAPE).to_records();
    for device in [device("device.", 1), device("device.x", 0), device("devices.x", 1), device("", 1)] {
        let records: Vec<_> = records.iter().cloned().chain([device]).collect();
        assert!(matches!(MachineState::from_records(&records, 2), Err(StateError::UnknownRecord { .. })));
    }
}

/// `docs/kernel.md` gives the size of every record.
#[test]
fn records_have_the_sizes_that_the_docs_give() {
    let docs = include_str!("../../../docs/kernel.md");
    let shapes = [SHAPE, Shape { xsave_words: None, ..SHAPE }];
    for record in shapes.iter().flat_map(|shape| machine(*shape).to_records()) {
        let row = docs.lines().find(|line| line.starts_with(&format!("| `{}` |", record.name)));
        let Some(row) = row else {
            assert!(record.name.starts_with("device."), "{}", record.name);
            continue;
        };
        let cell = row.split('|').nth(2).unwrap().trim().replace(',', "");
        match (cell.parse::<usize>(), cell.split_once(" each").map(|(bytes, _)| bytes.parse::<usize>().unwrap())) {
            (Ok(bytes), _) => assert_eq!(record.data.len(), bytes, "{row}"),
            (_, Some(bytes)) => assert_eq!(record.data.len(), bytes * SHAPE.entries, "{row}"),
            _ => assert_eq!(record.name, "vcpu.xsave", "{row}"),
        }
    }
}

/// `docs/kernel.md` gives every piece's place in both orders.
#[test]
fn orders_are_those_that_the_docs_give() {
    let docs = include_str!("../../../docs/kernel.md");
    let vcpu = |order: &[VcpuPiece]| order.iter().map(|piece| piece.name()).collect::<Vec<_>>();
    let vm = |order: &[VmPiece]| order.iter().map(|piece| piece.name()).collect::<Vec<_>>();
    let orders = [(vcpu(CAPTURE_ORDER), vcpu(APPLY_ORDER)), (vm(VM_CAPTURE_ORDER), vm(VM_APPLY_ORDER))];
    for (capture, apply) in orders {
        for name in &capture {
            let row = docs.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap();
            let cell = |at: usize| row.split('|').nth(at).unwrap().trim().parse::<usize>().unwrap();
            let place = |order: &[&str]| order.iter().position(|other| other == name).unwrap() + 1;
            assert_eq!((cell(4), cell(5)), (place(&capture), place(&apply)), "{row}");
        }
    }
}

#[test]
fn state_goes_between_threads() {
    fn is_send<T: Send + Sync + 'static>() {}
    is_send::<MachineState>();
    is_send::<CaptureSpec>();
    is_send::<StateError>();
}

#[test]
fn errors_name_piece_and_vcpu() {
    let piece = VcpuPiece::Xsave.name();
    let of = StateError::Missing { piece, vcpu: Some(3) };
    assert_eq!(of.to_string(), "vcpu.xsave of vCPU 3 is missing");
    let msr = StateError::Msr { vcpu: 1, index: 0x174, action: "written" };
    assert_eq!(msr.to_string(), "model-specific register 0x174 of vCPU 1 could not be written");
}
