//! The guest on the KVM at hand: it runs, it survives cuts anywhere, and it finds what is broken on
//! purpose.
//!
//! A whole VMM is not needed for that: bare kvm-ioctls, one slot of memory, nothing logged.

#![expect(unsafe_code, reason = "a memory slot, and signals that stop a vCPU anywhere")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::layout::{page_word, private_at};
use super::program::sums;
use super::*;
use crate::page::{PAGE_SIZE, PAGE_SIZE_U64};

const MEMORY: u64 = 4 << 20;

/// What a vCPU said through a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    Progress(u32),
    Checked(u32),
    Inconsistent(u32),
}

/// Aborts the process when a test takes too long: a vCPU that never leaves the guest cannot be
/// waited for.
struct Watchdog {
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    fn new(test: &'static str) -> Self {
        let (alive, gone) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if gone.recv_timeout(Duration::from_secs(300)) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test}: not done after 300 s");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// All of a guest at one instant.
#[derive(Clone, PartialEq)]
struct Snapshot {
    memory: Vec<u8>,
    vcpus: Vec<(kvm_regs, kvm_sregs)>,
}

impl Snapshot {
    fn word(&mut self, address: u64) -> &mut [u8] {
        let at = usize::try_from(address).unwrap();
        &mut self.memory[at..at + 8]
    }

    fn get(&self, address: u64) -> u64 {
        let at = usize::try_from(address).unwrap();
        u64::from_le_bytes(*self.memory[at..].first_chunk().unwrap())
    }

    fn set(&mut self, address: u64, value: u64) {
        self.word(address).copy_from_slice(&value.to_le_bytes());
    }

    /// Takes a part of memory from another instant.
    fn take(&mut self, from: &Self, address: u64, length: u64) {
        let range = usize::try_from(address).unwrap()..usize::try_from(address + length).unwrap();
        self.memory[range.clone()].copy_from_slice(&from.memory[range]);
    }

    fn private(&self, vcpu: u32) -> PrivatePage {
        let at = usize::try_from(private_page_address(vcpu)).unwrap();
        PrivatePage::parse(vcpu, self.memory[at..].first_chunk().unwrap())
    }

    fn counter(&self) -> u64 {
        self.get(COUNTER_ADDRESS)
    }
}

struct Guest {
    image: Image,
    vcpus: Vec<VcpuFd>,
    memory: GuestMemoryMmap<()>,
    _vm: VmFd,
    _watchdog: Watchdog,
}

impl Guest {
    /// A guest before its first instruction, or `None`, said loudly, where there is no KVM.
    fn new(test: &'static str, options: &str, vcpus: u32) -> Option<Self> {
        Self::with_memory(test, options, vcpus, MEMORY)
    }

    fn with_memory(test: &'static str, options: &str, vcpus: u32, bytes: u64) -> Option<Self> {
        if !std::path::Path::new("/dev/kvm").exists() {
            assert!(
                std::env::var_os("SLACKWATER_REQUIRE_KVM").is_none(),
                "{test}: no /dev/kvm, and SLACKWATER_REQUIRE_KVM is set"
            );
            // Not eprintln!, which the harness hides.
            let _ = writeln!(std::io::stderr(), "SKIP {test}: no /dev/kvm");
            return None;
        }
        let image = Image::build(&options.parse().unwrap(), bytes, vcpus).unwrap();
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(bytes).unwrap())]).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: bytes,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap().addr() as u64,
        };
        // SAFETY: the region is the whole of `memory`, a mapping that lives as long as the VM: both
        // are fields of the guest.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        vm.create_irq_chip().unwrap();
        for segment in image.flat().segments() {
            memory.write_slice(&segment.bytes, GuestAddress(segment.address)).unwrap();
        }
        let vcpus = (0..vcpus)
            .map(|index| {
                let vcpu = vm.create_vcpu(u64::from(index)).unwrap();
                vcpu.set_sregs(&image.flat().initial_sregs(vcpu.get_sregs().unwrap())).unwrap();
                vcpu.set_regs(&image.flat().initial_regs(index).unwrap()).unwrap();
                vcpu.set_mp_state(image.flat().initial_mp_state()).unwrap();
                vcpu
            })
            .collect();
        Some(Self { image, vcpus, memory, _vm: vm, _watchdog: Watchdog::new(test) })
    }

    fn snapshot(&self) -> Snapshot {
        let mut memory = vec![0; usize::try_from(self.memory.last_addr().0 + 1).unwrap()];
        self.memory.read_slice(&mut memory, GuestAddress(0)).unwrap();
        let vcpus = self.vcpus.iter().map(|vcpu| (vcpu.get_regs().unwrap(), vcpu.get_sregs().unwrap())).collect();
        Snapshot { memory, vcpus }
    }

    fn put(&mut self, snapshot: &Snapshot) {
        self.memory.write_slice(&snapshot.memory, GuestAddress(0)).unwrap();
        for (vcpu, (regs, sregs)) in self.vcpus.iter().zip(&snapshot.vcpus) {
            vcpu.set_sregs(sregs).unwrap();
            vcpu.set_regs(regs).unwrap();
        }
    }

    /// Runs all vCPUs, each on a thread, for `passes` more passes.
    fn run(&mut self, passes: u32) -> Result<(), Inconsistency> {
        let said = self.all(|vcpu| {
            let mut left = passes;
            drive(vcpu, 0, |said| {
                left -= u32::from(matches!(said, Said::Progress(_)));
                left == 0
            })
        });
        self.found(&said)
    }

    /// Asks all vCPUs for the whole check. Returns the pages checked.
    fn check(&mut self) -> Result<u32, Inconsistency> {
        let said = self.all(|vcpu| drive(vcpu, COMMAND_CHECK, |said| matches!(said, Said::Checked(_))));
        self.found(&said)?;
        Ok(said.iter().map(|said| if let Said::Checked(pages) = said { *pages } else { panic!("{said:?}") }).sum())
    }

    fn all(&mut self, run: impl Fn(&mut VcpuFd) -> Said + Sync) -> Vec<Said> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.vcpus.iter_mut().map(|vcpu| scope.spawn(|| run(vcpu))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn found(&self, said: &[Said]) -> Result<(), Inconsistency> {
        for (vcpu, said) in (0..).zip(said) {
            if let Said::Inconsistent(code) = said {
                let mut page = [0; PAGE_SIZE];
                self.memory.read_slice(&mut page, GuestAddress(private_page_address(vcpu))).unwrap();
                let found = PrivatePage::parse(vcpu, &page).inconsistency.unwrap();
                assert_eq!(found.code.number(), u64::from(*code), "port and private page say the same");
                return Err(found);
            }
        }
        Ok(())
    }
}

/// One exit of the vCPU answered; `None` for an exit that says nothing.
fn step(vcpu: &mut VcpuFd, command: u32) -> Result<Option<Said>, kvm_ioctls::Error> {
    let value = |data: &[u8]| u32::from_le_bytes(data.try_into().unwrap());
    Ok(match vcpu.run()? {
        VcpuExit::IoOut(port, data) => Some(match GuestExit::decode(port, false) {
            Some(GuestExit::Progress) => Said::Progress(value(data)),
            Some(GuestExit::Checked) => Said::Checked(value(data)),
            Some(GuestExit::Inconsistent) => Said::Inconsistent(value(data)),
            other => panic!("out to port {port:#x}: {other:?}"),
        }),
        VcpuExit::IoIn(port, data) => {
            let answer = match GuestExit::decode(port, true) {
                Some(GuestExit::Command) => command,
                Some(GuestExit::Pace) => 0,
                other => panic!("in from port {port:#x}: {other:?}"),
            };
            data.copy_from_slice(&answer.to_le_bytes());
            None
        }
        other => panic!("unexpected exit {other:?}"),
    })
}

/// Runs until the vCPU says what `until` waits for, or an inconsistency, and parks it.
fn drive(vcpu: &mut VcpuFd, command: u32, mut until: impl FnMut(Said) -> bool) -> Said {
    loop {
        if let Some(said) = step(vcpu, command).unwrap()
            && (matches!(said, Said::Inconsistent(_)) || until(said))
        {
            park(vcpu);
            return said;
        }
    }
}

/// Completes the access that the vCPU left for, so that its registers are those after it.
fn park(vcpu: &mut VcpuFd) {
    vcpu.set_kvm_immediate_exit(1);
    assert_eq!(vcpu.run().err().map(|error| error.errno()), Some(libc::EINTR));
    vcpu.set_kvm_immediate_exit(0);
}

/// The host's own look at a guest that is between two passes: every page, the ledger, the counter
/// and the statistics agree.
fn examine(guest: &Guest, text: &str) {
    let image = &guest.image;
    let snapshot = guest.snapshot();
    let options: Options = text.parse().unwrap();
    let vcpus = u64::from(image.flat().vcpus());
    let mut tickets = Vec::new();
    for index in 0..options.pages() {
        let entry = snapshot.get(image.ledger().start + index * 8);
        let page = image.working_set().start + index * PAGE_SIZE_U64;
        let word = |at: usize| snapshot.get(page + at as u64 * 8);
        if entry == 0 || entry >> 63 == 1 {
            assert!((0..512).all(|at| word(at) == 0), "{text}: page {index}");
            assert!(entry == 0 || options.content() == Content::Zero, "{text}: page {index}");
        } else {
            assert_eq!(
                (word(page_word::INDEX), word(page_word::TICKET), word(page_word::VCPU)),
                (index, entry, index % vcpus),
                "{text}"
            );
            let found = sums((0..page_word::SUM_FIRST).map(word));
            assert_eq!(found, (word(page_word::SUM_FIRST), word(page_word::SUM_SECOND)), "{text}: page {index}");
        }
        if entry != 0 {
            tickets.push(entry & !(1 << 63));
        }
    }
    tickets.sort_unstable();
    assert!(tickets.windows(2).all(|pair| pair[0] < pair[1]), "{text}: no ticket twice");
    assert_eq!(tickets.last().copied(), Some(snapshot.counter()), "{text}: the newest ticket is in its page");
    let pages: Vec<_> = (0..image.flat().vcpus()).map(|vcpu| snapshot.private(vcpu)).collect();
    assert_eq!(pages.iter().map(|page| page.writes).sum::<u64>(), snapshot.counter(), "{text}");
    for page in pages {
        assert_eq!(page.writes, page.passes * options.burst(image.flat().vcpus()), "{text}");
        assert_eq!(page.inconsistency, None, "{text}");
        assert_eq!(page.last_index % vcpus, u64::from(page.vcpu), "{text}");
    }
    let share = tickets.len() as f64 / options.pages() as f64;
    let least = match options.pattern() {
        Pattern::Sequential => 1.0,
        Pattern::Uniform => 0.95,
        Pattern::Zipf => 0.5,
        Pattern::HotCold => 0.2,
    };
    assert!(share >= least, "{text}: {share} of the pages were written");
}

/// Whether everything is emulated, and 10 to 100 times slower (docs/testing.md).
fn nested() -> bool {
    std::env::var_os("SLACKWATER_NESTED").is_some()
}

#[test]
fn every_pattern_and_content_runs_and_checks() {
    for (row, pattern) in ["sequential", "uniform", "zipf", "hotcold"].into_iter().enumerate() {
        for (column, content) in ["text", "random", "zero", "counter", "words"].into_iter().enumerate() {
            for vcpus in [1, 2, 3] {
                // Each once, emulated; all together elsewhere.
                if nested() && (vcpus != 2 || column % 4 != row) {
                    continue;
                }
                let text = format!("churn:pages=200,burst=50,pattern={pattern},content={content},seed=7");
                let Some(mut guest) = Guest::new("every_pattern_and_content_runs_and_checks", &text, vcpus) else { return };
                guest.run(20).unwrap_or_else(|found| panic!("{text}, {vcpus} vcpus: {found}"));
                examine(&guest, &text);
                assert_eq!(guest.check(), Ok(200), "{text}, {vcpus} vcpus");
                guest.run(5).unwrap();
                examine(&guest, &text);
                let snapshot = guest.snapshot();
                for vcpu in 0..vcpus {
                    let page = snapshot.private(vcpu);
                    assert_eq!(page.checks, 1, "{text}");
                    assert_eq!(page.passes, 25, "{text}");
                }
            }
        }
    }
}

#[test]
fn content_compresses_as_it_should() {
    for (content, least, most) in
        [("text", 2.5, 6.0), ("words", 2.5, 6.0), ("random", 0.99, 1.01), ("counter", 3.0, 400.0), ("zero", 3.0, 800.0)]
    {
        let text = format!("churn:pages=256,pattern=sequential,content={content}");
        let Some(mut guest) = Guest::new("content_compresses_as_it_should", &text, 1) else { return };
        guest.run(5).unwrap();
        let set = guest.image.working_set();
        let mut pages = vec![0; usize::try_from(set.end - set.start).unwrap()];
        guest.memory.read_slice(&mut pages, GuestAddress(set.start)).unwrap();
        let packed: usize = pages.chunks(16 * PAGE_SIZE).map(|block| zstd::bulk::compress(block, 1).unwrap().len()).sum();
        let ratio = pages.len() as f64 / packed as f64;
        println!("{content}: zstd 1 over 16 pages gives {ratio:.2}");
        assert!((least..=most).contains(&ratio), "{content}: {ratio}");
    }
}

#[test]
fn every_vcpu_count_starts() {
    for vcpus in if nested() { [4, 8] } else { [8, 64] } {
        let Some(mut guest) = Guest::new("every_vcpu_count_starts", "churn:pages=130,burst=3,every=1ms", vcpus) else { return };
        guest.run(2).unwrap();
        assert_eq!(guest.check(), Ok(130));
    }
}

/// The checks across vCPUs have to hold while the others write, not only when everyone stands
/// still.
#[test]
fn whole_checks_find_nothing_while_others_write() {
    for vcpus in [2, 3] {
        let text = "churn:pages=96,burst=40,content=words";
        let Some(mut guest) = Guest::new("whole_checks_find_nothing_while_others_write", text, vcpus) else { return };
        // The first vCPU checks after each pass; the others write until it is done. An emulator
        // takes a tenth of a second for a check and more.
        let checks_in_all = if nested() { 100 } else { 1000 };
        let done = AtomicBool::new(false);
        let turn = AtomicUsize::new(0);
        let said = guest.all(|vcpu| {
            let checks = turn.fetch_add(1, Ordering::Relaxed) == 0;
            let mut left = checks_in_all;
            let said = drive(vcpu, if checks { COMMAND_CHECK } else { 0 }, |said| {
                left -= i32::from(matches!(said, Said::Checked(_)));
                if checks { left == 0 } else { done.load(Ordering::Acquire) }
            });
            if checks {
                done.store(true, Ordering::Release);
            }
            said
        });
        guest.found(&said).unwrap();
        assert_eq!(guest.check(), Ok(96));
    }
}

#[test]
fn the_working_set_may_lie_above_4_gib() {
    let text = "churn:pages=800000,burst=500";
    let Some(mut guest) = Guest::with_memory("the_working_set_may_lie_above_4_gib", text, 2, 8 << 30) else { return };
    assert!(guest.image.working_set().start == 4 << 30);
    guest.run(4).unwrap();
}

#[test]
fn pacing_waits_at_its_port_and_only_then() {
    for (text, paced) in [("churn:pages=8", false), ("churn:pages=8,every=1s", true)] {
        let Some(mut guest) = Guest::new("pacing_waits_at_its_port_and_only_then", text, 1) else { return };
        let mut ports = Vec::new();
        for _ in 0..9 {
            match guest.vcpus[0].run().unwrap() {
                VcpuExit::IoOut(port, _) => ports.push(port),
                VcpuExit::IoIn(port, data) => {
                    ports.push(port);
                    data.fill(0);
                }
                other => panic!("{other:?}"),
            }
        }
        let round = if paced { &[PORT_PROGRESS, PORT_COMMAND, PORT_PACE][..] } else { &[PORT_PROGRESS, PORT_COMMAND] };
        assert_eq!(ports, round.iter().copied().cycle().take(9).collect::<Vec<_>>());
    }
}

/// PVM forgets IOPL for code at CPL 3, so the way through the task state segment must work alone:
/// from the start, and after all registers were read and written back.
#[test]
fn ports_work_without_iopl_and_after_a_round_trip() {
    // QEMU's emulation looks at the bitmap of an available task state segment only, and a running
    // guest's is busy: target/i386/tcg/seg_helper.c, helper_check_io.
    let emulated = nested();
    for rflags in [0x2, 0x3002].into_iter().filter(|rflags| !emulated || *rflags != 0x2) {
        let Some(mut guest) = Guest::new("ports_work_without_iopl_and_after_a_round_trip", "churn:pages=64,every=1ms", 2) else {
            return;
        };
        for vcpu in &guest.vcpus {
            let regs = vcpu.get_regs().unwrap();
            vcpu.set_regs(&kvm_regs { rflags, ..regs }).unwrap();
        }
        for _ in 0..5 {
            guest.run(3).unwrap();
            let snapshot = guest.snapshot();
            guest.put(&snapshot);
            guest.check().unwrap();
        }
        // And in a machine that never ran before.
        let snapshot = guest.snapshot();
        let mut other = Guest::new("ports_work_without_iopl_and_after_a_round_trip", "churn:pages=64,every=1ms", 2).unwrap();
        other.put(&snapshot);
        assert_eq!(other.check(), Ok(64));
        assert!(other.snapshot().private(0).passes > snapshot.private(0).passes);
    }
}

extern "C" fn on_kick(_: libc::c_int) {}

/// Runs all vCPUs and stops them wherever they are, once each has completed a pass more and the
/// signal comes through.
fn run_and_kick(guest: &mut Guest, spins: u64) {
    let kick = libc::SIGUSR1;
    let handler: extern "C" fn(libc::c_int) = on_kick;
    // SAFETY: the handler does nothing, and no other test uses this signal.
    unsafe { libc::signal(kick, handler as libc::sighandler_t) };
    let count = guest.vcpus.len();
    let (stop, parked, started) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let threads: Vec<AtomicU64> = (0..count).map(|_| AtomicU64::new(0)).collect();
    let all_parked = std::sync::Barrier::new(count + 1);
    std::thread::scope(|scope| {
        for (vcpu, thread) in guest.vcpus.iter_mut().zip(&threads) {
            let (stop, parked, started, all_parked) = (&stop, &parked, &started, &all_parked);
            scope.spawn(move || {
                // SAFETY: has no preconditions.
                thread.store(unsafe { libc::pthread_self() }, Ordering::Release);
                let mut fresh = true;
                while !stop.load(Ordering::Acquire) {
                    match step(vcpu, 0) {
                        Ok(Some(Said::Inconsistent(code))) => panic!("inconsistency {code} while running"),
                        Ok(Some(_)) if std::mem::take(&mut fresh) => drop(started.fetch_add(1, Ordering::Release)),
                        Ok(_) => {}
                        Err(error) => assert_eq!(error.errno(), libc::EINTR),
                    }
                }
                park(vcpu);
                parked.fetch_add(1, Ordering::Release);
                all_parked.wait();
            });
        }
        while started.load(Ordering::Acquire) < count {
            std::hint::spin_loop();
        }
        for _ in 0..spins {
            std::hint::spin_loop();
        }
        stop.store(true, Ordering::Release);
        // A signal before KVM_RUN is lost, so they come until everyone is parked.
        while parked.load(Ordering::Acquire) < count {
            for thread in &threads {
                // SAFETY: the thread waits at the barrier before it ends.
                unsafe { libc::pthread_kill(thread.load(Ordering::Acquire), kick) };
            }
            std::thread::yield_now();
        }
        all_parked.wait();
    });
}

#[test]
fn a_cut_anywhere_restores_without_alarm_and_a_mixture_alarms() {
    let test = "a_cut_anywhere_restores_without_alarm_and_a_mixture_alarms";
    for text in ["churn:pages=200,burst=4096", "churn:pages=200,burst=3,content=words", "churn:pages=200,burst=300,content=zero"]
    {
        let Some(mut guest) = Guest::new(test, text, 2) else { return };
        let mut other = Guest::new(test, text, 2).unwrap();
        let mut within = 0;
        let mut last: Option<Snapshot> = None;
        for round in 0..if nested() { 10 } else { 40u64 } {
            run_and_kick(&mut guest, round * 997 % 20_000);
            let cut = guest.snapshot();
            within += u32::from(cut.counter() != (0..2).map(|vcpu| cut.private(vcpu).writes).sum::<u64>());
            other.put(&cut);
            assert_eq!(other.check(), Ok(200), "{text}: round {round}");
            if let Some(last) = last {
                // Registers of this cut, memory of the one before.
                other.put(&Snapshot { memory: last.memory, vcpus: cut.vcpus.clone() });
                // Which check finds it depends on the instruction that the registers are at.
                other.check().expect_err("memory is older than the registers");
            }
            last = Some(cut);
        }
        println!("{text}: {within} cuts came within a page write");
    }
}

/// Two instants of a guest with something to mix.
struct Pair {
    guest: Guest,
    old: Snapshot,
    new: Snapshot,
}

impl Pair {
    fn new(text: &str, vcpus: u32, before: u32, between: u32) -> Option<Self> {
        let mut guest = Guest::new("every_check_catches_what_it_is_for", text, vcpus)?;
        guest.run(before).unwrap();
        let old = guest.snapshot();
        guest.run(between).unwrap();
        let new = guest.snapshot();
        Some(Self { guest, old, new })
    }

    fn page(&self, index: u64) -> u64 {
        self.guest.image.working_set().start + index * PAGE_SIZE_U64
    }

    fn entry(&self, index: u64) -> u64 {
        self.guest.image.ledger().start + index * 8
    }

    /// The code that the whole check finds in `broken`. One page write per pass comes before it.
    fn check(&mut self, broken: &Snapshot) -> Inconsistency {
        self.guest.put(&self.new);
        self.guest.check().unwrap();
        self.guest.put(broken);
        self.guest.check().expect_err("nothing found")
    }

    /// The code that is found without asking, within some passes.
    fn run(&mut self, broken: &Snapshot) -> Inconsistency {
        self.guest.put(broken);
        self.guest.run(1000).expect_err("nothing found")
    }
}

/// One vCPU, one page write a pass over 64 pages in order, the first 20 passes and 30 more: pages 0
/// to 49 are written once.
fn ordered(content: &str) -> Option<Pair> {
    Pair::new(&format!("churn:pages=64,burst=1,pattern=sequential,content={content}"), 1, 20, 30)
}

#[test]
fn every_check_catches_what_it_is_for() {
    for content in ["text", "words", "counter", "random"] {
        let Some(mut pair) = ordered(content) else { return };
        let private = private_page_address(0);
        let (old, new) = (pair.old.clone(), pair.new.clone());
        let mut broken = new.clone();

        // Bytes of a page, all kinds of places in it.
        for at in (0..PAGE_SIZE_U64).step_by(59) {
            broken = new.clone();
            broken.word(pair.page(7) + at / 8 * 8)[usize::try_from(at % 8).unwrap()] ^= 0x10;
            let found = pair.check(&broken);
            assert_eq!((found.code, found.index), (Code::Checksum, 7), "{content}: byte {at}: {found}");
        }
        assert_eq!(pair.run(&broken).code, Code::Checksum, "{content}");

        // Two words of a page that changed places.
        broken = new.clone();
        let (first, second) = (pair.page(7) + 8 * 100, pair.page(7) + 8 * 101);
        broken.set(first, new.get(second));
        broken.set(second, new.get(first).wrapping_add(u64::from(new.get(first) == new.get(second))));
        assert_eq!(pair.check(&broken).code, Code::Checksum, "{content}");

        // Two words that change the first sum only: they count twice and once in the second.
        broken = new.clone();
        broken.set(pair.page(7) + 8 * 508, new.get(pair.page(7) + 8 * 508).wrapping_add(1));
        broken.set(pair.page(7) + 8 * 509, new.get(pair.page(7) + 8 * 509).wrapping_sub(2));
        assert_eq!(pair.check(&broken).code, Code::Checksum, "{content}");

        // A page torn: half is zero, as it was before.
        broken = new.clone();
        broken.take(&old, pair.page(30), 2048);
        assert_eq!(pair.check(&broken).code, Code::Checksum, "{content}");

        // A page that is lost or older.
        broken = new.clone();
        broken.take(&old, pair.page(30), PAGE_SIZE_U64);
        let found = pair.check(&broken);
        assert_eq!((found.code, found.index, found.expected, found.found), (Code::Ticket, 30, 31, 0), "{content}");
        assert_eq!(pair.run(&broken).code, Code::Ticket, "{content}");

        // A page that is newer than everything else.
        broken = old.clone();
        broken.take(&new, pair.page(30), PAGE_SIZE_U64);
        let found = pair.check(&broken);
        assert_eq!((found.code, found.index), (Code::NotZero, 30), "{content}");
        assert_eq!(pair.run(&broken).code, Code::NotZero, "{content}");

        // A page of the ledger that is older.
        broken = new.clone();
        broken.take(&old, pair.entry(0), 512);
        assert_eq!(pair.check(&broken).code, Code::NotZero, "{content}");
        assert_eq!(pair.run(&broken).code, Code::NotZero, "{content}");

        // A page together with its entry of the ledger.
        broken = new.clone();
        broken.take(&old, pair.page(30), PAGE_SIZE_U64);
        broken.take(&old, pair.entry(30), 8);
        assert_eq!(pair.check(&broken).code, Code::LedgerSum, "{content}");

        // The same for the last page of the last ticket, with a sum that agrees.
        let last = new.private(0).last_index;
        broken.clone_from(&new);
        broken.take(&old, pair.page(last), PAGE_SIZE_U64);
        broken.take(&old, pair.entry(last), 8);
        broken.set(
            private + private_at::LEDGER_SUM as u64,
            new.get(private + private_at::LEDGER_SUM as u64) - new.get(pair.entry(last)),
        );
        let found = pair.check(&broken);
        assert_eq!((found.code, found.index, found.expected), (Code::LastWrite, last, new.counter()), "{content}");

        // A last write that is nowhere.
        broken.clone_from(&new);
        broken.set(private + private_at::LAST_INDEX as u64, 1 << 50);
        assert_eq!(pair.check(&broken).code, Code::LastWrite, "{content}");

        // A page in another's place, with a ledger that agrees.
        broken = new.clone();
        let moved: Vec<u64> = (0..512).map(|at| new.get(pair.page(3) + at * 8)).collect();
        for (at, word) in (0u64..).zip(moved) {
            broken.set(pair.page(7) + at * 8, word);
        }
        assert_eq!(pair.check(&broken).code, Code::Ticket, "{content}");
        broken.set(pair.entry(7), new.get(pair.entry(3)));
        let found = pair.check(&broken);
        assert_eq!((found.code, found.index, found.found), (Code::Index, 7, 3), "{content}");

        // The private page, the registers, or all of memory of another instant.
        broken = new.clone();
        broken.take(&old, private, PAGE_SIZE_U64);
        for found in [pair.check(&broken), pair.run(&broken)] {
            assert!(matches!(found.code, Code::Register | Code::Pass), "{content}: {found}");
        }
        broken = Snapshot { memory: new.memory.clone(), vcpus: old.vcpus.clone() };
        for found in [pair.check(&broken), pair.run(&broken)] {
            assert!(matches!(found.code, Code::Register | Code::Pass), "{content}: {found}");
        }
        broken = Snapshot { memory: old.memory.clone(), vcpus: new.vcpus.clone() };
        for found in [pair.check(&broken), pair.run(&broken)] {
            assert!(matches!(found.code, Code::Register | Code::Pass), "{content}: {found}");
        }
        broken = new.clone();
        broken.vcpus[0].0.r13 += 1;
        assert_eq!(pair.check(&broken).code, Code::Pass, "{content}");
        assert_eq!(pair.run(&broken).code, Code::Pass, "{content}");
        broken = new.clone();
        broken.vcpus[0].0.r15 -= 1;
        assert_eq!(pair.check(&broken).code, Code::Register, "{content}");
        assert_eq!(pair.run(&broken).code, Code::Register, "{content}");

        // Registers and private page of another instant than the pages.
        broken = Snapshot { memory: new.memory.clone(), vcpus: old.vcpus.clone() };
        broken.take(&old, private, PAGE_SIZE_U64);
        assert_eq!(pair.check(&broken).code, Code::AboveLast, "{content}");
        assert_eq!(pair.run(&broken).code, Code::AboveLast, "{content}");

        // The counter.
        broken = new.clone();
        broken.set(COUNTER_ADDRESS, old.counter());
        assert_eq!(pair.check(&broken).code, Code::AboveCounter, "{content}");
        assert_eq!(pair.run(&broken).code, Code::CounterBack, "{content}");
        broken.set(COUNTER_ADDRESS, new.counter() + 2);
        assert_eq!(pair.check(&broken).code, Code::CounterHigh, "{content}");

        // The statistics that the counter is compared with.
        broken = new.clone();
        broken.set(private + private_at::WRITES as u64, new.private(0).writes + 2);
        assert_eq!(pair.check(&broken).code, Code::CounterLow, "{content}");

        // What nobody writes.
        for address in [0x10_0000, 0x18_0000, 0x18_7fff] {
            broken = new.clone();
            broken.word(address / 8 * 8)[usize::try_from(address % 8).unwrap()] ^= 1;
            assert_eq!(pair.check(&broken).code, Code::Tables, "{content}");
        }

        broken = new.clone();
        broken.set(0x18_0000, new.get(0x18_0008));
        broken.set(0x18_0008, new.get(0x18_0000));
        assert_eq!(pair.check(&broken).code, Code::Tables, "{content}: words that changed places");
        broken = new.clone();
        broken.set(0x18_7ff0, new.get(0x18_7ff0).wrapping_add(1));
        broken.set(0x18_7ff8, new.get(0x18_7ff8).wrapping_sub(2));
        assert_eq!(pair.check(&broken).code, Code::Tables, "{content}: words that change the first sum only");

        // And nothing of that comes from the way the test does it.
        pair.guest.put(&new);
        assert_eq!(pair.guest.check(), Ok(64));
        pair.guest.put(&old);
        assert_eq!(pair.guest.check(), Ok(64));
    }
}

#[test]
fn zero_pages_are_held_to_be_zero() {
    // Twice over all pages: they are counter pages after the first time and zero after the second.
    let Some(mut pair) = Pair::new("churn:pages=64,burst=1,pattern=sequential,content=zero", 1, 64, 40) else { return };
    let (old, new) = (pair.old.clone(), pair.new.clone());
    let mut broken = new.clone();
    broken.take(&old, pair.page(30), PAGE_SIZE_U64);
    let found = pair.check(&broken);
    assert_eq!((found.code, found.index), (Code::NotZero, 30), "a page that is older: {found}");
    broken = new.clone();
    broken.take(&old, pair.entry(30), 8);
    assert_eq!(pair.check(&broken).code, Code::Ticket, "an entry that is older");
    for at in (0..PAGE_SIZE_U64).step_by(8 * 31) {
        broken = new.clone();
        broken.set(pair.page(30) + at, 1 << 40);
        assert_eq!(pair.check(&broken).code, Code::NotZero, "byte {at}");
        assert_eq!(pair.run(&broken).code, Code::NotZero, "byte {at}");
    }
    // A zero page that was zero before as well: only the ledger tells, and its sum.
    broken = new.clone();
    broken.set(pair.entry(30), 1 << 63 | 1);
    assert_eq!(pair.check(&broken).code, Code::LedgerSum);
}

/// With two vCPUs: one of them, whole, of another instant than the rest.
#[test]
fn a_vcpu_of_another_instant_is_found() {
    let Some(mut pair) = Pair::new("churn:pages=64,burst=8,content=words", 2, 10, 5) else { return };
    let (old, new) = (pair.old.clone(), pair.new.clone());
    for vcpu in [0u32, 1] {
        let mut broken = new.clone();
        broken.vcpus[vcpu as usize] = old.vcpus[vcpu as usize];
        broken.take(&old, private_page_address(vcpu), PAGE_SIZE_U64);
        for index in (u64::from(vcpu)..64).step_by(2) {
            broken.take(&old, pair.page(index), PAGE_SIZE_U64);
            broken.take(&old, pair.entry(index), 8);
        }
        let found = pair.check(&broken);
        assert!(matches!(found.code, Code::Seen | Code::CounterHigh), "vcpu {vcpu}: {found}");

        // Its registers alone, or the page of the ledger that it shares with the other.
        broken = new.clone();
        broken.vcpus[vcpu as usize] = old.vcpus[vcpu as usize];
        assert!(matches!(pair.check(&broken).code, Code::Register | Code::Pass));
    }
    let mut broken = new.clone();
    broken.take(&old, pair.entry(0), 512);
    assert!(matches!(pair.check(&broken).code, Code::Ticket | Code::NotZero));
    // A counter of before, which both meet.
    broken.clone_from(&new);
    broken.set(COUNTER_ADDRESS, old.counter());
    assert!(matches!(pair.check(&broken).code, Code::AboveCounter | Code::CounterBack | Code::PeerAboveCounter));
    // As far back as one ticket of the other vCPU, at the end of a pass.
    broken.clone_from(&new);
    let last = (0..2).map(|vcpu| new.private(vcpu).last_ticket);
    broken.set(COUNTER_ADDRESS, last.max().unwrap() - 1);
    assert!(matches!(pair.check(&broken).code, Code::AboveCounter | Code::PeerAboveCounter));
}

/// A single write of one vCPU is within what the counter allows, but the other vCPU saw it.
#[test]
fn a_vcpu_that_is_older_by_one_write_is_found_once_it_was_seen() {
    let test = "a_vcpu_that_is_older_by_one_write_is_found_once_it_was_seen";
    for vcpu in [0u32, 1] {
        let Some(mut guest) = Guest::new(test, "churn:pages=64,burst=1", 2) else { return };
        guest.run(10).unwrap();
        let old = guest.snapshot();
        guest.run(1).unwrap();
        guest.check().unwrap();
        let mut broken = guest.snapshot();
        let set = guest.image.working_set().start;
        broken.vcpus[vcpu as usize] = old.vcpus[vcpu as usize];
        broken.take(&old, private_page_address(vcpu), PAGE_SIZE_U64);
        for index in (u64::from(vcpu)..64).step_by(2) {
            broken.take(&old, set + index * PAGE_SIZE_U64, PAGE_SIZE_U64);
            broken.take(&old, guest.image.ledger().start + index * 8, 8);
        }
        guest.put(&broken);
        let found = guest.check().expect_err("nothing found");
        assert_eq!((found.vcpu, found.code, found.index), (1 - vcpu, Code::Seen, u64::from(vcpu)), "{found}");
    }
}

#[test]
fn one_byte_of_a_private_page_says_what_was_found() {
    let mut page = [0; PAGE_SIZE];
    assert_eq!(PrivatePage::parse(3, &page).inconsistency, None);
    page[private_at::BAD_CODE] = 5;
    page[private_at::BAD_INDEX] = 6;
    page[private_at::BAD_EXPECTED] = 7;
    page[private_at::BAD_FOUND] = 8;
    let found = PrivatePage::parse(3, &page).inconsistency.unwrap();
    assert_eq!(found, Inconsistency { vcpu: 3, code: Code::Ticket, index: 6, expected: 7, found: 8 });
    assert_eq!(found.to_string(), "vcpu 3: page 6 carries ticket 8, the ledger says 7");
    page[private_at::BAD_CODE] = 200;
    assert_eq!(PrivatePage::parse(3, &page).inconsistency.unwrap().code, Code::Unknown(200));
}

/// Prints what a page write costs. Not a test: it has no bound that holds on every machine.
#[test]
#[ignore = "measures"]
fn speed() {
    for content in ["text", "random", "zero", "counter", "words"] {
        for pages in [256, 16384] {
            let text = format!("churn:pages={pages},burst=4096,content={content}");
            let Some(mut guest) = Guest::with_memory("speed", &text, 1, 128 << 20) else { return };
            guest.run(40).unwrap();
            let passes = 100;
            let start = Instant::now();
            guest.run(passes).unwrap();
            let ns = start.elapsed().as_nanos() / u128::from(passes) / 4096;
            let start = Instant::now();
            guest.check().unwrap();
            println!("{content}, {pages} pages: {ns} ns a page write, whole check {} us", start.elapsed().as_micros());
        }
    }
}
