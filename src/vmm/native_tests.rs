//! Whole machines on the KVM at hand. One runs a kernel of a few dozen instructions, which finds
//! the devices and switches the machine off: so little of it runs on a KVM that interprets kernels,
//! too.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::boot::Boot;
use super::devices::{DiskBase, GuestEnd, RECORDS};
use super::guests::{GuestSpec, linux};
use super::{
    BuildOptions, Limits, MachineSpec, NetBackend, NetSpec, Outcome, Protection, Running, Stop, Tracking, Vm, VmmError,
    memory_regions,
};
use crate::epoch::{Discard, Durability, Engine, EngineOptions, Marks, Sink, SinkError, SinkStart, Start};
use crate::format::{Complete, Head};
use crate::kvm::host::KVM_PATH;
use crate::kvm::test_guest::kvm_or_skip;
use crate::ledger::{Request, UnixWire, Wire};
use crate::machine::{MachineState, StateError};
use crate::page::EpochId;
use crate::restore::Plan;
use crate::store::{Chain, NewChain, Writer, WriterOptions};
use crate::track::HotPages;

const MEMORY: u64 = 64 << 20;

/// What runs at the 64-bit entry. Where something is not as it should be, it resets the machine.
#[rustfmt::skip]
const PROGRAM: &[&[u8]] = &[
    // The serial port takes a byte.
    b"\x66\xba\xf8\x03",                                 // mov dx, 0x3f8
    b"\xb0\x53",                                         // mov al, 'S'
    b"\xee",                                             // out dx, al
    // ACPI has the hardware.
    b"\x66\xba\x04\x06",                                 // mov dx, 0x604
    b"\x66\xed",                                         // in ax, dx
    b"\x66\x83\xf8\x01",                                 // cmp ax, 1
    b"\x75\x68",                                         // jne bad
    // Nobody answers there.
    b"\xe4\x80",                                         // in al, 0x80
    b"\x3c\xff",                                         // cmp al, 0xff
    b"\x75\x62",                                         // jne bad
    // The clock's time is valid.
    b"\xb0\x0d",                                         // mov al, 0xd
    b"\xe6\x70",                                         // out 0x70, al
    b"\xe4\x71",                                         // in al, 0x71
    b"\x3c\x80",                                         // cmp al, 0x80
    b"\x75\x58",                                         // jne bad
    // Maps the registers of virtio devices: a page directory at 0x300000, an entry of 2 MiB in it.
    b"\x48\xc7\x04\x25\x00\x04\x30\x00\x83\x00\x00\xd0", // mov qword [0x300400], 0xffffffffd0000083
    b"\xc7\x04\x25\x04\x04\x30\x00\x00\x00\x00\x00",     // mov dword [0x300404], 0
    b"\x48\xc7\x04\x25\x18\xa0\x00\x00\x03\x00\x30\x00", // mov qword [0xa018], 0x300003
    b"\xbb\x00\x00\x00\xd0",                             // mov ebx, 0xd0000000
    b"\x81\x3b\x76\x69\x72\x74",                         // cmp dword [rbx], "virt"
    b"\x75\x28",                                         // jne bad
    // The second is a disk, and keeps its status.
    b"\x83\xbb\x08\x10\x00\x00\x02",                     // cmp dword [rbx + 0x1008], 2
    b"\x75\x1f",                                         // jne bad
    b"\xc7\x83\x70\x10\x00\x00\x03\x00\x00\x00",         // mov dword [rbx + 0x1070], 3
    b"\x83\xbb\x70\x10\x00\x00\x03",                     // cmp dword [rbx + 0x1070], 3
    b"\x75\x0c",                                         // jne bad
    // Off.
    b"\x66\xba\x04\x06",                                 // mov dx, 0x604
    b"\x66\xb8\x00\x34",                                 // mov ax, 0x3400
    b"\x66\xef",                                         // out dx, ax
    b"\xeb\x04",                                         // jmp stop
    // bad:
    b"\xb0\xfe",                                         // mov al, 0xfe
    b"\xe6\x64",                                         // out 0x64, al
    // stop:
    b"\xf4",                                             // hlt
    b"\xeb\xfd",                                         // jmp stop
];

/// A bzImage with `program` at its 64-bit entry: protocol 2.15, 20 MiB to start in from 16 MiB on.
fn kernel(program: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &255_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x140_0000_u32.to_le_bytes());
    put(0x600, &program.concat());
    bytes
}

/// The guest, with a disk.
fn boot(dir: &Path, program: &[&[u8]]) -> Boot {
    let (kernel_path, disk) = (dir.join("kernel"), dir.join("disk"));
    std::fs::write(&kernel_path, kernel(program)).unwrap();
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    Boot::read(&kernel_path, None, "console=ttyS0").unwrap().with_disk(DiskBase::read(&disk).unwrap())
}

fn machine(boot: &Boot, vcpus: u32) -> Vm {
    let spec = MachineSpec {
        memory_bytes: MEMORY,
        vcpus,
        guest: GuestSpec::Linux(linux::Options::of(boot)),
        nets: Vec::new(),
        vsock: None,
    };
    let tracking = Tracking::Bitmap { manual_protect: false };
    Vm::build_unchecked(Path::new(KVM_PATH), spec, tracking, &BuildOptions::default()).unwrap()
}

fn run(mut vm: Vm, boot: &Boot, store: &Path) -> Outcome {
    let memory: Vec<_> = vm.spec().regions();
    let machine = serde_json::to_value(vm.spec()).unwrap();
    let new = NewChain { memory, device_runs: 1, vcpus: vm.spec().vcpus, machine };
    let writer = Writer::create(store, &new, WriterOptions::default()).unwrap();
    vm.boot(boot).unwrap();
    let options = EngineOptions { budget_pages: 4096, ..EngineOptions::default() };
    let tracker = vm.take_tracker().unwrap();
    let engine = Engine::new(vm.memory().clone(), tracker, Box::new(writer), Start::Fresh, options).unwrap();
    let protection = Protection { engine, interval: None, base_first: true, share_pages: vm.share_pages() };
    let limits = Limits { time: Some(Duration::from_secs(60)), epochs: None };
    let mut running = Running::start(vm, Some(protection), limits, Stop::default()).unwrap();
    running.supervise();
    running.finish()
}

#[test]
fn a_kernel_finds_the_devices_and_its_end_is_restored() {
    if !kvm_or_skip("vmm::native_tests::a_kernel_finds_the_devices_and_its_end_is_restored") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (boot, store) = (boot(dir.path(), PROGRAM), dir.path().join("store"));
    boot.check(&memory_regions(MEMORY), 2).unwrap();
    let outcome = run(machine(&boot, 2), &boot, &store);
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    assert_eq!(outcome.end, Some(GuestEnd::Poweroff));
    assert_eq!(outcome.report.unwrap().durable_epochs, 2);

    let chain = Chain::open(&store).unwrap();
    for (epoch, end) in [(1, None), (2, Some(GuestEnd::Poweroff))] {
        let plan = Plan::new(&chain, EpochId(epoch)).unwrap();
        let state = MachineState::from_records(plan.state(), 2).unwrap();
        let names: Vec<_> = state.devices.iter().map(|state| &*state.name).collect();
        assert_eq!(names, [RECORDS, &["disk"]].concat());
        let mut vm = machine(&boot, 2);
        vm.apply(&state).unwrap();
        assert_eq!(vm.devices().unwrap().end(), end);
        let again = vm.devices().unwrap().quiet().capture();
        let disk =
            |states: &[crate::machine::DeviceState]| states.iter().find(|state| state.name == "disk").unwrap().data.clone();
        assert_eq!(disk(&again), disk(&state.devices));
        // Without one of its records, nothing.
        let mut less = state.clone();
        less.devices.retain(|state| state.name != "rtc");
        let error = machine(&boot, 2).apply(&less).unwrap_err();
        assert!(matches!(&error, VmmError::State(StateError::MissingRecord { name, .. }) if name == "device.rtc"), "{error}");
    }
}

#[test]
fn what_a_kernel_does_not_find_resets_the_machine() {
    if !kvm_or_skip("vmm::native_tests::what_a_kernel_does_not_find_resets_the_machine") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // It asks for another kind of device in the disk's place.
    let mut program = PROGRAM.to_vec();
    let at = program.iter().position(|code| *code == b"\x83\xbb\x08\x10\x00\x00\x02").unwrap();
    program[at] = b"\x83\xbb\x08\x10\x00\x00\x04";
    let boot = boot(dir.path(), &program);
    let outcome = run(machine(&boot, 1), &boot, &dir.path().join("store"));
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    assert_eq!(outcome.end, Some(GuestEnd::Reset));
}

/// A sink that takes no epoch for as long as it is told so.
#[derive(Debug)]
struct Stuck {
    sink: Discard,
    is_stuck: Arc<AtomicBool>,
}

impl Sink for Stuck {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.sink.start(marks)
    }

    fn append(&mut self, epoch: EpochId, frames: &[u8]) -> Result<(), SinkError> {
        self.sink.append(epoch, frames)
    }

    fn complete(&mut self, frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        while self.is_stuck.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.sink.complete(frames, epoch)
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        self.sink.abort()
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.sink.sync()
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        self.sink.reopen()
    }

    fn close(&mut self, sync: bool) -> Result<(), SinkError> {
        self.sink.close(sync)
    }
}

#[test]
fn a_guest_runs_on_while_its_outputs_wait_for_storage_that_is_behind() {
    const LIMIT: Duration = Duration::from_secs(60);
    if !kvm_or_skip("vmm::native_tests::a_guest_runs_on_while_its_outputs_wait_for_storage_that_is_behind") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net");
    let mut wire = UnixWire::new(&path, "10.77.0.2:7077".parse().unwrap()).unwrap();
    let guest = GuestSpec::Ledger("ledger:pages=16".parse().unwrap());
    let nets = vec![NetSpec { backend: NetBackend::Unix { path }, mac: None, mtu: None }];
    let spec = MachineSpec { memory_bytes: 16 << 20, vcpus: 1, guest, nets, vsock: None };
    let tracking = Tracking::Ring { budget: 2048, ring: None, hot: HotPages::Off, early: false };
    let build = BuildOptions { holds_outputs: true, ..BuildOptions::default() };
    let mut vm = Vm::build_with(Path::new(KVM_PATH), spec, tracking, &build).unwrap();
    vm.load().unwrap();
    let (is_stuck, share_pages) = (Arc::new(AtomicBool::new(false)), vm.share_pages());
    let on_release = vm.devices().unwrap().hold_until_released(false, Duration::from_micros(200)).unwrap();
    let options = EngineOptions {
        budget_pages: 2048,
        share_pages,
        durability: Durability::None,
        on_release: Some(on_release),
        ..EngineOptions::default()
    };
    let sink = Stuck { sink: Discard::default(), is_stuck: is_stuck.clone() };
    let engine = Engine::new(vm.memory().clone(), vm.take_tracker().unwrap(), Box::new(sink), Start::Fresh, options).unwrap();
    let protection = Protection { engine, interval: None, base_first: true, share_pages };
    let stop = Stop::default();
    let mut running = Running::start(vm, Some(protection), Limits::default(), stop.clone()).unwrap();
    let shared = running.shared.clone();
    let asked = std::thread::scope(|scope| {
        scope.spawn(|| running.supervise());
        let wait_for = |what: &str, mut condition: Box<dyn FnMut() -> bool + '_>| {
            let begun = Instant::now();
            while !condition() {
                if begun.elapsed() > LIMIT {
                    return Err(what.to_owned());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        let mut ask = || {
            wait_for(
                "the guest does not say where it is",
                Box::new(|| wire.reach().unwrap() || wire.receive(Duration::from_millis(10)).is_err()),
            )?;
            is_stuck.store(true, Ordering::Release);
            // More than there are slots.
            (1..=20).try_for_each(|client| {
                wire.send(&Request::new(client, 1, 1, Vec::new()).unwrap().encode()).unwrap();
                let taken = || shared.monitor.read().0.passes >= client;
                wait_for(&format!("request {client} is not taken"), Box::new(taken))
            })
        };
        let asked = ask();
        is_stuck.store(false, Ordering::Release);
        stop.ask();
        asked
    });
    drop(shared);
    let outcome = running.finish();
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    asked.unwrap();
    assert!(outcome.network.unwrap().sent_packets >= 20);
}
