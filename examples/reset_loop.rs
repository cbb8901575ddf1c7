//! The loop of a snapshot fuzzer: put an input into the guest, run it, put the guest back; without
//! a chain, in one thread.
//!
//! `cargo run --release --example reset_loop` prints resets a second beside the floor. The guest
//! writes 50 pages for each input. With `--no-hot-set` each of them is protected again and faults
//! again.

use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use slackwater::epoch::{Discard, Durability, Engine, EngineOptions, Guest, GuestError, RollbackGuest, Start};
use slackwater::format::Trigger;
use slackwater::kvm::VmHandle;
use slackwater::kvm::probe::pages_stay_writable;
use slackwater::kvm::ring::{RingSize, VmRings};
use slackwater::machine::{CaptureSpec, MachineState, Rewinder, capture_vcpu, capture_vm, leave_registers};
use slackwater::memory::GuestMemory;
use slackwater::page::{Gfn, PAGE_SIZE, PageRun};
use slackwater::parked::Parked;
use slackwater::track::RingTracker;
use slackwater::vmm::guests::touch;
use vm_memory::{Bytes, GuestAddress};

const MEMORY_PAGES: u64 = (64 << 20) / 4096;
const INPUT: GuestAddress = GuestAddress(MEMORY_PAGES * 4096 - 4096);
const RUN: Duration = Duration::from_secs(2);

/// One vCPU, which belongs to the calling thread.
struct Target {
    vm: VmFd,
    vcpu: VcpuFd,
    spec: CaptureSpec,
    rewinder: Rewinder,
}

impl Target {
    /// Runs the guest until it asks for a cut: it has dealt with its input.
    fn run_input(&mut self) -> Result<(), GuestError> {
        match self.vcpu.run()? {
            VcpuExit::IoOut(touch::PORT_CUT, _) => Ok(()),
            exit => Err(format!("{exit:?}").into()),
        }
    }
}

impl Guest for Target {
    type State = MachineState;

    fn park(&mut self) -> Result<(), GuestError> {
        // An exit for a port is complete only after the vCPU was entered again.
        self.vcpu.set_kvm_immediate_exit(1);
        let entered = self.vcpu.run().map(|exit| format!("{exit:?}"));
        self.vcpu.set_kvm_immediate_exit(0);
        match entered {
            Err(error) if error.errno() == libc::EINTR => Ok(()),
            other => Err(format!("completing an exit: {other:?}").into()),
        }
    }

    fn capture(&mut self, _parked: &Parked<'_>, into: &mut MachineState) -> Result<(), GuestError> {
        into.vcpus.resize_with(1, Default::default);
        capture_vm(&self.vm, &self.spec, &mut into.vm)?;
        into.vcpus.iter_mut().try_for_each(|state| capture_vcpu(&mut self.vcpu, &self.spec, state))?;
        Ok(())
    }

    fn resume(&mut self) {}

    fn halt(&mut self) {}
}

impl RollbackGuest for Target {
    fn restore(&mut self, _parked: &Parked<'_>, state: &MachineState) -> Result<(), GuestError> {
        let Self { vm, vcpu, spec, rewinder } = self;
        state.vcpus.iter().try_for_each(|state| rewinder.vcpu(vcpu, spec, state))?;
        Ok(rewinder.vm(vm, spec, &state.vm)?)
    }
}

fn main() -> Result<(), GuestError> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let mut rings = VmRings::enable(VmHandle::duplicate(&vm)?, RingSize::new(512)?)?;
    let memory = GuestMemory::anonymous(&[PageRun { first: Gfn(0), count: MEMORY_PAGES }], 16)?;
    memory.register(&VmHandle::duplicate(&vm)?, true)?;
    vm.create_irq_chip()?;
    let mut vcpu = vm.create_vcpu(0)?;
    rings.map(&vcpu)?;
    let options: touch::Options = "touch:pages=50,pattern=same,words=8".parse()?;
    let image = touch::Image::build(&options, MEMORY_PAGES * 4096, 1)?;
    for segment in image.flat().segments() {
        memory.ram().write_slice(&segment.bytes, GuestAddress(segment.address))?;
    }
    vcpu.set_sregs(&image.flat().initial_sregs(vcpu.get_sregs()?))?;
    vcpu.set_regs(&image.flat().initial_regs(0).ok_or("no first vCPU")?)?;
    vcpu.set_lapic(&image.flat().initial_lapic(vcpu.get_lapic()?))?;
    vcpu.set_mp_state(image.flat().initial_mp_state())?;
    let spec = CaptureSpec::probe(&kvm, &vm, &vcpu)?;
    leave_registers(&mut vcpu, &spec);

    // A fuzzer writes the same pages again and again: they stay writable, where this kernel can do
    // that.
    let tracker = RingTracker::new(VmHandle::duplicate(&vm)?, memory.clone(), rings);
    let tracker = match pages_stay_writable("/dev/kvm".as_ref()) {
        Ok(writable) if std::env::args().all(|argument| argument != "--no-hot-set") => tracker.with_hot_set(256, writable),
        _ => tracker,
    };
    let options = EngineOptions { budget_pages: 1024, rollback: true, durability: Durability::None, ..EngineOptions::default() };
    let mut engine = Engine::new(memory.clone(), Box::new(tracker), Box::new(Discard::default()), Start::Fresh, options)?;
    let mut target = Target { vm, vcpu, spec, rewinder: Rewinder::default() };
    target.run_input()?; // up to where inputs begin
    engine.cut(&mut target, Trigger::Request)?;

    let (start, mut inputs) = (Instant::now(), 0_u64);
    while start.elapsed() < RUN {
        memory.ram().write_obj(inputs, INPUT)?;
        target.run_input()?;
        engine.rollback(&mut target)?;
        inputs += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    let report = engine.finish().report.rollback;
    println!(
        "{:.0} inputs a second, running them included; each writes {} pages",
        inputs as f64 / seconds,
        report.pages / report.count
    );
    println!("{:.0} resets a second: one takes {} us, {:?}", 1e6 / report.time_us.p50, report.time_us.p50, report.phases_us);
    let (copy, entry) = floor(&mut target, &memory, image.pass(0))?;
    println!("the floor: copying the same pages takes {copy:.1} us, entering and leaving the vCPU {entry:.1} us");
    Ok(())
}

/// The medians of what nobody gets around, in microseconds.
fn floor(target: &mut Target, memory: &GuestMemory, pages: &[Gfn]) -> Result<(f64, f64), GuestError> {
    const ROUNDS: usize = 2001;
    let mut copies = vec![[0; PAGE_SIZE]; pages.len()];
    let (mut copy, mut entry) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        pages.iter().zip(&mut copies).try_for_each(|(gfn, page)| memory.read_page(*gfn, page))?;
        copy.push(start.elapsed());
        let start = Instant::now();
        target.park()?;
        entry.push(start.elapsed());
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.get(ROUNDS / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    Ok((median(copy), median(entry)))
}
