//! Faults of a guest whose memory comes on demand: two vCPUs, 10,000 faults at random pages, from a
//! chain, beside the least that can be (`UFFDIO_COPY` of a page that is at hand).
//!
//! `cargo bench --bench faults`. Needs `/dev/kvm` and userfaultfd. A time is from taking a fault
//! from the kernel to the page being in place; `a fault of the guest` is what a vCPU loses by one:
//! the run's time by both vCPUs and by faults, getting into the kernel and being woken included.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slackwater::epoch::{Engine, EngineOptions, Start};

use slackwater::kvm::host::KVM_PATH;
use slackwater::machine::MachineState;
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PageBytes};
use slackwater::restore::{PageMap, PageSource, PageSources, RestoreError};
use slackwater::store::{Chain, NewChain, Writer, WriterOptions};
use slackwater::track::HotPages;
use slackwater::vmm::{Limits, MachineSpec, Protection, Running, Stop, Tracking, Vm, memory_regions};

const MEMORY: u64 = 1 << 30;
const VCPUS: u32 = 2;
/// Each pass has 16,384 pages anywhere, 16 passes with other pages; nothing repeats them before.
const GUEST: &str = "touch:pages=16384,pattern=uniform,lists=16,words=64,cut=0";
const FAULTS: u64 = 10_000;
const LIMIT: Duration = Duration::from_secs(60);

/// A page that is at hand, one at a time: what is left is the kernel's. State and the guest's own
/// pages come from the chain.
#[derive(Debug)]
struct AtHand(PageMap);

struct AtHandSource<'a>(Box<dyn PageSource + 'a>, Box<PageBytes>);

/// The guest's program and lists are below; the pages that it touches are above.
const LOW: Gfn = Gfn(0x4000);

impl PageSources for AtHand {
    fn open(&self) -> Box<dyn PageSource + '_> {
        Box::new(AtHandSource(self.0.open(), Box::new([7; PAGE_SIZE])))
    }

    fn epoch(&self) -> EpochId {
        PageSources::epoch(&self.0)
    }
}

impl PageSource for AtHandSource<'_> {
    fn read(&mut self, gfn: Gfn, take: &mut dyn FnMut(Gfn, Option<&PageBytes>)) -> Result<(), RestoreError> {
        if gfn < LOW {
            return self.0.read(gfn, take);
        }
        take(gfn, Some(&self.1));
        Ok(())
    }

    fn next(&mut self, place: &mut u64) -> Result<Option<Gfn>, RestoreError> {
        self.0.next(place)
    }
}

fn make_chain(store: &Path) -> Result<(), Box<dyn Error>> {
    let spec = MachineSpec { memory_bytes: MEMORY, vcpus: VCPUS, guest: GUEST.parse()?, nets: Vec::new(), vsock: None };
    let mut vm =
        Vm::build(Path::new(KVM_PATH), spec, Tracking::Ring { budget: 65_536, ring: None, hot: HotPages::Off, early: false })?;
    let new =
        NewChain { memory: memory_regions(MEMORY), device_runs: 0, vcpus: VCPUS, machine: serde_json::to_value(vm.spec())? };
    let writer = Writer::create(store, &new, WriterOptions::default())?;
    vm.load()?;
    let tracker = vm.take_tracker().ok_or("no tracker")?;
    let options = EngineOptions { budget_pages: 65_536, ..EngineOptions::default() };
    let engine = Engine::new(vm.memory().clone(), tracker, Box::new(writer), Start::Fresh, options)?;
    let protection = Protection { engine, interval: None, base_first: true, share_pages: 0 };
    let limits = Limits { time: Some(LIMIT), epochs: None };
    let running = Running::start(vm, Some(protection), limits, Stop::default())?;
    let start = Instant::now();
    while running.guest().passes < 16 * u64::from(VCPUS) && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(5));
    }
    running.finish().error.map_or(Ok(()), |error| Err(error.into()))
}

fn measure(name: &str, chain: &Arc<Chain>, background: bool, at_hand: bool) -> Result<(), Box<dyn Error>> {
    let spec: MachineSpec = serde_json::from_value(chain.description().machine.clone())?;
    let mut vm = Vm::build(Path::new(KVM_PATH), spec, Tracking::None)?;
    let map = PageMap::new(chain.clone(), chain.newest())?;
    let state = MachineState::from_records(map.state(), VCPUS)?;
    let sources: Arc<dyn PageSources> = if at_hand { Arc::new(AtHand(map)) } else { Arc::new(map) };
    vm.fill_on_demand(sources, background)?;
    vm.apply(&state)?;
    let running = Running::start(vm, None, Limits::default(), Stop::default())?;
    let start = Instant::now();
    let faults = || running.fill_report().map_or((0, true), |report| (report.faults, report.filled));
    let (first, _) = faults();
    while !matches!(faults(), (count, whole) if count >= FAULTS || whole) && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_micros(200));
    }
    let (elapsed, served) = (start.elapsed(), faults().0 - first);
    let outcome = running.finish();
    if let Some(error) = outcome.error {
        return Err(error.into());
    }
    let Some(report) = outcome.fill else { return Ok(()) };
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let each = elapsed.as_secs_f64() * 1e6 * f64::from(VCPUS) / served.max(1) as f64;
    let times = report.fault_us;
    println!(
        "{name:34} {:>8} {:>9.1} {:>9.1} {:>9.1} {each:>12.1} {:>10}",
        report.faults,
        times.p50,
        times.p99,
        times.max,
        report.pages() + report.zero_pages
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` only wants to see it compile.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    if !Path::new(KVM_PATH).exists() {
        println!("no {KVM_PATH}: nothing measured");
        return Ok(());
    }
    let dir = tempfile::tempdir_in(".")?;
    let store = dir.path().join("store");
    make_chain(&store)?;
    let chain = Arc::new(Chain::open(&store)?);
    println!(
        "{:34} {:>8} {:>9} {:>9} {:>9} {:>12} {:>10}",
        "two vCPUs, random pages; us", "faults", "p50", "p99", "max", "of the guest", "pages"
    );
    for _ in 0..2 {
        measure("UFFDIO_COPY of a page at hand", &chain, false, true)?;
        measure("from the chain", &chain, false, false)?;
        measure("from the chain, filling beside it", &chain, true, false)?;
    }
    Ok(())
}
