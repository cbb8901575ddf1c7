//! Back to the last cut on real KVM: memory is then what it was, the guest finds nothing wrong with
//! it, and a chain that is written meanwhile is sound.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use slackwater::epoch::{Discard, Engine, EngineError, EngineOptions, Sink, Start, WhenBehind};

use slackwater::epoch::{Collected, Tracker, TrackerError};
use slackwater::format::MemoryDigest;
use slackwater::kvm::host::KVM_PATH;
use slackwater::kvm::probe::pages_stay_writable;
use slackwater::memory::GuestMemory;
use slackwater::page::{Gfn, PAGE_SIZE, PageSet};
use slackwater::parked::Parked;
use slackwater::store::{NewChain, Writer, WriterOptions};
use slackwater::track::HotPages;
use slackwater::vmm::{
    GuestSpec, Limits, MachineSpec, Outcome, Protection, Running, Stop, Tracking, Vm, VmmError, memory_regions,
};

use crate::support::command::{guest_is_ok, number, run};
use crate::support::{Random, kvm_or_skip, nested, patience, rounds};

const MEMORY: u64 = 16 << 20;

/// What all of memory was: when pages were collected, and when they were put back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Collected(MemoryDigest),
    RolledBack(MemoryDigest),
}

/// Looks at all memory whenever the engine asks for pages or has put them back: nothing runs then.
#[derive(Debug)]
struct Looking {
    inner: Box<dyn Tracker>,
    memory: GuestMemory,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Looking {
    fn look(&self) -> MemoryDigest {
        let mut digest = MemoryDigest::default();
        let mut page = [0; PAGE_SIZE];
        for gfn in self.memory.runs().flat_map(|run| (run.first.0..run.first.0 + run.count).map(Gfn)) {
            self.memory.read_page(gfn, &mut page).unwrap();
            digest.add_page(gfn, &page);
        }
        digest
    }
}

impl Tracker for Looking {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn bound(&self) -> Option<u64> {
        self.inner.bound()
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        self.seen.lock().unwrap().push(Seen::Collected(self.look()));
        self.inner.collect(parked, into)
    }

    fn rolled_back(&mut self, parked: &Parked<'_>) {
        self.seen.lock().unwrap().push(Seen::RolledBack(self.look()));
        self.inner.rolled_back(parked);
    }

    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackerError> {
        self.inner.rearm(parked)
    }
}

/// Every time that memory was put back it was what it had been at the cut before. Returns how often
/// it had been something else in between.
fn check(seen: &[Seen]) -> usize {
    let (mut point, mut last, mut differed) = (None, None, 0);
    for seen in seen {
        match seen {
            Seen::Collected(digest) => {
                // The one before was a cut, unless memory was put back then.
                point = last.or(point);
                last = Some(*digest);
            }
            Seen::RolledBack(digest) => {
                assert_eq!(Some(*digest), point, "memory is not what it was at the last cut");
                differed += usize::from(last.take() != point);
            }
        }
    }
    differed
}

/// A machine that runs, and what is seen of its memory.
fn start(guest: &str, vcpus: u32, tracking: Tracking, sink: Option<&Path>) -> (Running, Arc<Mutex<Vec<Seen>>>) {
    let spec =
        MachineSpec { memory_bytes: MEMORY, vcpus, guest: guest.parse::<GuestSpec>().unwrap(), nets: Vec::new(), vsock: None };
    let mut vm = Vm::build(KVM_PATH.as_ref(), spec, tracking).unwrap();
    let machine = serde_json::to_value(vm.spec()).unwrap();
    let new = NewChain { memory: memory_regions(MEMORY), device_runs: 0, vcpus, machine };
    let keeps = sink.is_some();
    let sink: Box<dyn Sink> = match sink {
        Some(store) => Box::new(Writer::create(store, &new, WriterOptions::default()).unwrap()),
        None => Box::new(Discard::default()),
    };
    vm.load().unwrap();
    let seen = Arc::default();
    let tracker = Looking { inner: vm.take_tracker().unwrap(), memory: vm.memory().clone(), seen: Arc::clone(&seen) };
    let audit_every = NonZeroU64::new(u64::from(keeps));
    // A cut takes an epoch, and never only the list of pages, however late the storage's thread
    // comes to run.
    let when_behind = WhenBehind::Wait;
    let options = EngineOptions { budget_pages: 4096, rollback: true, when_behind, audit_every, ..EngineOptions::default() };
    let engine = Engine::new(vm.memory().clone(), Box::new(tracker), sink, Start::Fresh, options).unwrap();
    let protection = Protection { engine, interval: None, base_first: true, share_pages: 0 };
    (Running::start(vm, Some(protection), Limits::default(), Stop::default()).unwrap(), seen)
}

/// Waits until the guest has made a pass, and so has written, or only a moment. Returns whether it
/// has.
fn let_it_run(running: &Running, random: &mut Random) -> bool {
    let (passes, begun) = (running.guest().passes, Instant::now());
    let moment = (random.below(2) == 0).then(|| Duration::from_micros(random.below(3000)));
    while running.guest().passes == passes {
        if moment.is_some_and(|moment| begun.elapsed() > moment) {
            return false;
        }
        assert!(begun.elapsed() < patience(Duration::from_secs(60)), "the guest makes no pass");
        std::hint::spin_loop();
    }
    true
}

/// What a storm did.
#[derive(Clone, Copy, Debug, Default)]
struct Storm {
    rolled_back: u64,
    /// Rollbacks after a pass: memory was something else by then.
    after_a_pass: u64,
}

/// Rollbacks and cuts at random moments, while the guest writes.
fn storm(running: &Running, random: &mut Random, count: u64) -> Storm {
    let mut storm = Storm::default();
    for round in 0..count {
        let wrote = let_it_run(running, random);
        // The last is a rollback, so that there is one.
        if random.below(4) == 0 && round + 1 < count {
            assert!(running.request().unwrap());
        } else {
            let back = running.rollback().unwrap().expect("the guest was not halted");
            assert!(!back.compared, "tracking was lost");
            storm.rolled_back += 1;
            storm.after_a_pass += u64::from(wrote);
        }
    }
    storm
}

/// The guest checks all that it has, and ends.
fn finish(running: Running) -> Outcome {
    running.check().unwrap();
    let outcome = running.finish();
    assert!(outcome.error.is_none() && outcome.guest.ok, "{:?} {:?}", outcome.error, outcome.guest);
    outcome
}

fn trackings() -> Vec<(&'static str, Tracking)> {
    let ring = |hot| Tracking::Ring { budget: 4096, ring: None, hot, early: false };
    let mut all = vec![
        ("ring", ring(HotPages::Off)),
        ("bitmap", Tracking::Bitmap { manual_protect: false }),
        ("bitmap, cleared apart", Tracking::Bitmap { manual_protect: true }),
    ];
    match pages_stay_writable(KVM_PATH.as_ref()) {
        Ok(_) => all.push(("ring and hot set", ring(HotPages::Pages(500)))),
        Err(reason) => println!("no hot set on this kernel: {reason}"),
    }
    all
}

#[test]
fn memory_is_what_it_was_at_the_cut_and_the_guest_finds_nothing_wrong() {
    if !kvm_or_skip("native::rollback::memory_is_what_it_was_at_the_cut_and_the_guest_finds_nothing_wrong") {
        return;
    }
    let mut random = Random::seeded("native::rollback", 4);
    for (name, tracking) in trackings() {
        for vcpus in [1, 2] {
            for guest in ["churn:pages=600,content=words", "churn:pages=300,pattern=hotcold", "touch:pages=200,cut=0"] {
                let (running, seen) = start(guest, vcpus, tracking, None);
                let Storm { rolled_back, after_a_pass } = storm(&running, &mut random, rounds(6, 16, 400));
                let report = finish(running).report.unwrap();
                assert_eq!((report.rollback.count, report.tracking_lost), (rolled_back, 0));
                let differed = check(&seen.lock().unwrap());
                println!("{name}, {vcpus} vCPUs, {guest}: {rolled_back} rollbacks, {differed} of other memory");
                assert!(differed as u64 >= after_a_pass, "{after_a_pass} rollbacks came after a pass of the guest");
            }
        }
    }
}

#[test]
fn a_chain_around_rollbacks_is_sound() {
    if !kvm_or_skip("native::rollback::a_chain_around_rollbacks_is_sound") {
        return;
    }
    let mut random = Random::seeded("native::rollback", 5);
    for (name, tracking) in trackings().into_iter().filter(|(name, _)| !nested() || *name == "ring") {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let (running, seen) = start("churn:pages=1000,content=words", 2, tracking, Some(&store));
        storm(&running, &mut random, rounds(8, 40, 600));
        let outcome = finish(running);
        check(&seen.lock().unwrap());
        let epochs = outcome.report.unwrap().epochs;
        let store = store.display();
        let verified = run(&format!("verify --store {store} --json")).expect(0).json();
        assert_eq!(
            (number(&verified, "/audits_failed"), number(&verified, "/audits_checked")),
            (0, epochs),
            "{name}: {verified}"
        );
        let restored = run(&format!("restore --store {store} --for 200ms --json")).expect(0).json();
        assert!(guest_is_ok(&restored), "{name}: {restored}");
    }
}

#[test]
fn without_a_plan_there_is_no_rollback_and_the_guest_runs_on() {
    if !kvm_or_skip("native::rollback::without_a_plan_there_is_no_rollback_and_the_guest_runs_on") {
        return;
    }
    let spec =
        MachineSpec { memory_bytes: MEMORY, vcpus: 1, guest: "churn:pages=100".parse().unwrap(), nets: Vec::new(), vsock: None };
    let mut vm =
        Vm::build(KVM_PATH.as_ref(), spec, Tracking::Ring { budget: 512, ring: None, hot: HotPages::Off, early: false }).unwrap();
    vm.load().unwrap();
    let (memory, tracker) = (vm.memory().clone(), vm.take_tracker().unwrap());
    let options = EngineOptions { budget_pages: 512, ..EngineOptions::default() };
    let engine = Engine::new(memory, tracker, Box::new(Discard::default()), Start::Fresh, options).unwrap();
    let protection = Protection { engine, interval: None, base_first: true, share_pages: 0 };
    let running = Running::start(vm, Some(protection), Limits::default(), Stop::default()).unwrap();
    let refused = running.rollback();
    assert!(matches!(refused, Err(VmmError::Engine(EngineError::NoRollback))), "{refused:?}");
    let (passes, until) = (running.guest().passes, Instant::now() + patience(Duration::from_secs(10)));
    while running.guest().passes == passes {
        assert!(Instant::now() < until, "the guest does not run on");
        std::thread::yield_now();
    }
    finish(running);
}
