//! A VMM whose devices write guest memory while they are quiesced and saved, on real KVM: every
//! epoch has it, as audits show.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use slackwater::epoch::Tracker;
use slackwater::epoch::{Cut, Engine, EngineOptions, Guest, GuestError, Start};
use slackwater::format::Trigger;
use slackwater::kvm::VmHandle;
use slackwater::kvm::host::KVM_PATH;
use slackwater::kvm::kick::{Kick, default_signal, install_handler};
use slackwater::kvm::probe::pages_stay_writable;
use slackwater::kvm::ring::{EXIT_RING_FULL, RingSize, VmRings};
use slackwater::machine::{CaptureSpec, MachineState, VcpuState, capture_vcpu, capture_vm};
use slackwater::memory::GuestMemory;
use slackwater::page::{Gfn, PAGE_SIZE_U64, PageRun};
use slackwater::parked::Parked;
use slackwater::store::verify::{VerifyOptions, verify};
use slackwater::store::{NewChain, Writer, WriterOptions};
use slackwater::track::{BitmapTracker, RingTracker};
use slackwater::vmm::guests::churn;
use vm_memory::{Bytes, GuestAddress};

use crate::support::{kvm_or_skip, rounds};

const PAGES: u64 = (16 << 20) / PAGE_SIZE_U64;

/// The guest, which the calling thread runs: its first vCPU works, and others never run.
struct Saved<'a> {
    vm: &'a VmFd,
    vcpus: &'a mut [VcpuFd],
    spec: &'a CaptureSpec,
    memory: &'a GuestMemory,
    written: &'a mut u64,
}

impl Saved<'_> {
    /// A device writes a word to one of four pages that nobody else writes.
    fn write(&mut self) -> Result<(), GuestError> {
        *self.written += 1;
        let address = (PAGES - 1 - *self.written % 4) * PAGE_SIZE_U64 + *self.written % 512 * 8;
        Ok(self.memory.ram().write_obj(*self.written, GuestAddress(address))?)
    }
}

impl Guest for Saved<'_> {
    type State = MachineState;

    fn park(&mut self) -> Result<(), GuestError> {
        self.write()
    }

    fn capture(&mut self, _parked: &Parked<'_>, into: &mut MachineState) -> Result<(), GuestError> {
        into.vcpus.resize_with(self.vcpus.len(), VcpuState::default);
        capture_vm(self.vm, self.spec, &mut into.vm)?;
        for ((state, vcpu), index) in into.vcpus.iter_mut().zip(self.vcpus.iter_mut()).zip(0..) {
            state.index = index;
            capture_vcpu(vcpu, self.spec, state)?;
        }
        self.write()
    }

    fn resume(&mut self) {
        self.write().unwrap();
    }

    fn halt(&mut self) {}
}

/// Ends the kicks, also where a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Ring,
    RingAndHotSet,
    Bitmap,
}

fn check(by: By, vcpus: u64, epochs: u64) {
    let dir = tempfile::tempdir().unwrap();
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    let handle = || VmHandle::duplicate(&vm).unwrap();
    let mut rings = (by != By::Bitmap).then(|| VmRings::enable(handle(), RingSize::new(256).unwrap()).unwrap());
    let memory = GuestMemory::anonymous(&[PageRun { first: Gfn(0), count: PAGES }], 8).unwrap();
    memory.register(&handle(), true).unwrap();
    vm.create_irq_chip().unwrap();
    let mut fds: Vec<_> = (0..vcpus).map(|id| vm.create_vcpu(id).unwrap()).collect();
    if let Some(rings) = &mut rings {
        fds.iter().for_each(|vcpu| rings.map(vcpu).unwrap());
    }
    let guest: churn::Options = "churn:pages=1000,content=words,pattern=hotcold".parse().unwrap();
    let image = churn::Image::build(&guest, PAGES * PAGE_SIZE_U64, 1).unwrap();
    assert!(image.working_set().end.max(image.ledger().end) <= (PAGES - 4) * PAGE_SIZE_U64, "the last pages are the device's");
    for segment in image.flat().segments() {
        memory.ram().write_slice(&segment.bytes, GuestAddress(segment.address)).unwrap();
    }
    fds[0].set_sregs(&image.flat().initial_sregs(fds[0].get_sregs().unwrap())).unwrap();
    fds[0].set_regs(&image.flat().initial_regs(0).unwrap()).unwrap();
    fds[0].set_mp_state(image.flat().initial_mp_state()).unwrap();

    let tracker: Box<dyn Tracker> = match rings {
        None => Box::new(BitmapTracker::new(handle(), memory.clone(), true).unwrap()),
        Some(rings) => {
            let tracker = RingTracker::new(handle(), memory.clone(), rings).with_thread().unwrap();
            match (by, pages_stay_writable(Path::new(KVM_PATH))) {
                (By::RingAndHotSet, Ok(evidence)) => Box::new(tracker.with_hot_set(200, evidence)),
                (By::RingAndHotSet, Err(reason)) => return println!("no hot set on this kernel: {reason}"),
                _ => Box::new(tracker),
            }
        }
    };
    let new = NewChain { memory: memory.runs().collect(), device_runs: 0, vcpus: vcpus as u32, machine: serde_json::json!({}) };
    let writer = Writer::create(dir.path(), &new, WriterOptions::default()).unwrap();
    let options =
        EngineOptions { budget_pages: 2048, share_pages: 8, audit_every: NonZeroU64::new(1), ..EngineOptions::default() };
    let mut engine = Engine::new(memory.clone(), tracker, Box::new(writer), Start::Fresh, options).unwrap();
    let spec = CaptureSpec::probe(&kvm, &vm, &fds[0]).unwrap();
    let mut written = 0;
    let mut cut = |fds: &mut [VcpuFd], trigger| {
        let mut guest = Saved { vm: &vm, vcpus: fds, spec: &spec, memory: &memory, written: &mut written };
        u64::from(matches!(engine.cut(&mut guest, trigger).unwrap(), Cut::Taken { .. }))
    };
    let mut taken = cut(&mut fds, Trigger::Request);
    // Kicks end epochs where rings do not: pages that are left writable never fill them.
    install_handler(default_signal()).unwrap();
    let kick = Kick::new(&fds[0], default_signal()).unwrap();
    kick.bind_to_this_thread();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                kick.kick();
            }
        });
        let _over = Over(&over);
        while taken < epochs {
            let trigger = match fds[0].run() {
                Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => Trigger::RingFull,
                Ok(VcpuExit::IoIn(_, data)) => {
                    data.fill(0);
                    continue;
                }
                Ok(VcpuExit::IoOut(..)) => continue,
                Ok(exit) => panic!("{exit:?}"),
                Err(error) if error.errno() == libc::EINTR => {
                    kick.acknowledge();
                    Trigger::Interval
                }
                Err(error) => panic!("{error}"),
            };
            taken += cut(&mut fds, trigger);
        }
    });
    cut(&mut fds, Trigger::Final);
    let finished = engine.finish();
    assert!(finished.error.is_none(), "{:?}", finished.error);
    let report = finished.report;
    assert_eq!((report.late_writes, report.audits, report.tracking_lost), (0, report.epochs, 0), "{by:?} {vcpus} {report:?}");
    let verified = verify(dir.path(), &VerifyOptions::default(), &mut |_| {}).unwrap();
    assert!(verified.is_sound(), "{by:?} {vcpus}: {:?}", verified.damage);
    assert_eq!((verified.audits_checked, verified.audits_failed), (report.epochs, 0));
    println!("{by:?}, {vcpus} vCPUs: {} epochs of at most {} pages", report.epochs, report.max_epoch_pages);
}

#[test]
fn what_is_written_as_state_is_captured_is_in_the_epoch() {
    if !kvm_or_skip("native::capture_writes::what_is_written_as_state_is_captured_is_in_the_epoch") {
        return;
    }
    for by in [By::Ring, By::RingAndHotSet, By::Bitmap] {
        for vcpus in [1, 2] {
            check(by, vcpus, rounds(8, 60, 2000));
        }
    }
}
