//! A VMM in one page that embeds the engine: one vCPU, run by the main thread, with a checkpoint at
//! every full ring.
//!
//! `cargo run --release --example one_page_vmm DIR` writes 100 epochs into a new store in DIR;
//! `slackwater log --store DIR` lists them.

use std::error::Error;
use std::path::PathBuf;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use slackwater::epoch::{Cut, Engine, EngineOptions, Guest, GuestError, Start};
use slackwater::format::Trigger;
use slackwater::kvm::VmHandle;
use slackwater::kvm::ring::{EXIT_RING_FULL, RingSize, VmRings};
use slackwater::machine::{CaptureSpec, MachineState, VcpuState, capture_vcpu, capture_vm};
use slackwater::memory::GuestMemory;
use slackwater::page::{Gfn, PageRun};
use slackwater::parked::Parked;
use slackwater::store::{NewChain, Writer, WriterOptions};
use slackwater::track::RingTracker;
use slackwater::vmm::guests::churn;
use vm_memory::{Bytes, GuestAddress};

const MEMORY_PAGES: u64 = (64 << 20) / 4096;

/// What the engine needs of this VMM. The only vCPU belongs to the calling thread, so it is out of
/// the guest whenever the engine asks.
struct OneVcpu<'a> {
    vm: &'a VmFd,
    vcpu: &'a mut VcpuFd,
    spec: &'a CaptureSpec,
}

impl Guest for OneVcpu<'_> {
    type State = MachineState;

    fn park(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn capture(&mut self, _parked: &Parked<'_>, into: &mut MachineState) -> Result<(), GuestError> {
        into.vcpus.resize_with(1, || VcpuState::new(0));
        capture_vm(self.vm, self.spec, &mut into.vm)?;
        into.vcpus.iter_mut().try_for_each(|state| capture_vcpu(self.vcpu, self.spec, state))?;
        Ok(())
    }

    fn resume(&mut self) {}

    fn halt(&mut self) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let store = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: one_page_vmm DIR")?);
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    // Rings first, then vCPUs; memory is mapped by the library, so that what this VMM writes is
    // recorded.
    let mut rings = VmRings::enable(VmHandle::duplicate(&vm)?, RingSize::new(512)?)?;
    let memory = GuestMemory::anonymous(&[PageRun { first: Gfn(0), count: MEMORY_PAGES }], 0)?;
    memory.register(&VmHandle::duplicate(&vm)?, true)?;
    vm.create_irq_chip()?;
    let mut vcpu = vm.create_vcpu(0)?;
    rings.map(&vcpu)?;

    // Any guest would do; this one is in the library.
    let guest: churn::Options = "churn:pages=2048,content=words".parse()?;
    let image = churn::Image::build(&guest, MEMORY_PAGES * 4096, 1)?;
    for segment in image.flat().segments() {
        memory.ram().write_slice(&segment.bytes, GuestAddress(segment.address))?;
    }
    vcpu.set_sregs(&image.flat().initial_sregs(vcpu.get_sregs()?))?;
    vcpu.set_regs(&image.flat().initial_regs(0).ok_or("no first vCPU")?)?;
    vcpu.set_mp_state(image.flat().initial_mp_state())?;

    let machine = serde_json::json!({ "vmm": "one_page_vmm" });
    let writer = Writer::create(
        &store,
        &NewChain { memory: memory.runs().collect(), device_runs: 0, vcpus: 1, machine },
        WriterOptions::default(),
    )?;
    let tracker = RingTracker::new(VmHandle::duplicate(&vm)?, memory.clone(), rings);
    let options = EngineOptions { budget_pages: 512, ..EngineOptions::default() };
    let mut engine = Engine::new(memory, Box::new(tracker), Box::new(writer), Start::Fresh, options)?;
    let spec = CaptureSpec::probe(&kvm, &vm, &vcpu)?;

    engine.cut(&mut OneVcpu { vm: &vm, vcpu: &mut vcpu, spec: &spec }, Trigger::Request)?; // the base
    let mut epochs = 1;
    while epochs < 100 {
        match vcpu.run()? {
            VcpuExit::Unsupported(EXIT_RING_FULL) => {
                let mut guest = OneVcpu { vm: &vm, vcpu: &mut vcpu, spec: &spec };
                if let Cut::Taken { .. } = engine.cut(&mut guest, Trigger::RingFull)? {
                    epochs += 1;
                }
            }
            VcpuExit::IoIn(_, data) => data.fill(0),
            VcpuExit::IoOut(..) => {}
            exit => return Err(format!("{exit:?}").into()),
        }
    }
    let finished = engine.finish();
    println!("{} epochs, pause p50 {} us", finished.report.epochs, finished.report.pause_us.p50);
    finished.error.map_or(Ok(()), |error| Err(error.into()))
}
