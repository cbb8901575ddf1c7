//! No write is missed: every epoch carries a digest of all memory, and `verify` finds the same in
//! the chain.
#![expect(unsafe_code, reason = "signals the threads of a child process")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use slackwater::epoch::{Collected, Tracker, TrackerError};
use slackwater::epoch::{Engine, EngineOptions, Start};
use slackwater::kvm::host::KVM_PATH;
use slackwater::kvm::probe::pages_stay_writable;
use slackwater::page::{Gfn, PageSet};
use slackwater::parked::Parked;
use slackwater::store::{NewChain, Writer, WriterOptions};
use slackwater::track::HotPages;
use slackwater::vmm::{GuestSpec, Limits, MachineSpec, Protection, Stop, Tracking, Vm, memory_regions};

use crate::native::follow;
use crate::support::command::{Running, guest_is_ok, number, run, slackwater};
use crate::support::{as_time_allows, kvm_or_skip, nested, rounds};

/// Sends signals to every thread of a process, as fast as it can.
struct Storm {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Storm {
    /// The process must have a handler for kicks by now. The other signals are ignored where nobody
    /// handles them, and end system calls all the same.
    fn on(pid: u32) -> Self {
        let signals = [libc::SIGURG, libc::SIGWINCH, libc::SIGURG, libc::SIGCONT, libc::SIGCHLD];
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (stop.clone(), sent.clone());
        let thread = thread::spawn(move || {
            let tasks = PathBuf::from(format!("/proc/{pid}/task"));
            let process = i32::try_from(pid).unwrap();
            for signal in signals.iter().cycle() {
                let Ok(threads) = std::fs::read_dir(&tasks) else { return };
                for thread in threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
                    for _ in 0..20 {
                        // SAFETY: takes numbers. The process was started by this test and has not
                        // been waited for.
                        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, *signal) };
                    }
                    count.fetch_add(20, Ordering::Relaxed);
                }
                if over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Every epoch of `pattern`, in a storm of signals.
fn check(pattern: &str, options: &str, epochs: u64) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let guest = format!("churn:pages=1500,pattern={pattern},content=words");
    let line = format!(
        "checkpoint --store {} --memory 16M --vcpus 2 --guest {guest} {options} --audit 1 --durability none --epochs {epochs} --json",
        store.display()
    );
    let running = Running::start(&mut slackwater(line.split_whitespace()));
    follow::wait_for_epochs(&store, 1);
    // Not where everything is emulated: now and then the guest shuts down under a storm there
    // (QEMU's SVM in software).
    let storm = (!nested()).then(|| Storm::on(running.id()));
    let report = running.wait().expect(0).json();
    if let Some(storm) = storm {
        let sent = storm.sent.load(Ordering::Relaxed);
        drop(storm);
        println!("{pattern} {options}: {sent} signals, {report}");
        assert!(sent > 0, "it was over before the storm");
    }
    assert!(guest_is_ok(&report), "{report}");
    assert_eq!((number(&report, "/tracking_lost"), number(&report, "/audits")), (0, number(&report, "/epochs")), "{report}");
    assert_eq!(number(&report, "/late_writes"), 0, "{report}");
    verified(&store, epochs);
    report
}

fn verified(store: &Path, at_least: u64) {
    let verified = run(&format!("verify --store {} --json", store.display())).expect(0).json();
    assert_eq!((number(&verified, "/audits_failed"), number(&verified, "/audits_unchecked")), (0, 0), "{verified}");
    assert_eq!(number(&verified, "/audits_checked"), number(&verified, "/epochs"), "{verified}");
    assert!(number(&verified, "/audits_checked") >= at_least, "{verified}");
}

#[test]
fn nothing_is_missed_by_the_ring_in_a_storm_of_signals() {
    if !kvm_or_skip("native::audit::nothing_is_missed_by_the_ring_in_a_storm_of_signals") {
        return;
    }
    for pattern in as_time_allows(&["uniform", "hotcold", "zipf", "sequential"], 1) {
        check(pattern, "--budget 512", rounds(10, 100, 1500));
    }
}

#[test]
fn nothing_is_missed_by_the_bitmap_in_a_storm_of_signals() {
    if !kvm_or_skip("native::audit::nothing_is_missed_by_the_bitmap_in_a_storm_of_signals") {
        return;
    }
    for pattern in as_time_allows(&["uniform", "hotcold"], 1) {
        check(pattern, "--tracker bitmap --interval 3ms", rounds(10, 50, 600));
    }
}

#[test]
fn nothing_is_missed_with_a_hot_set_in_a_storm_of_signals() {
    if !kvm_or_skip("native::audit::nothing_is_missed_with_a_hot_set_in_a_storm_of_signals") {
        return;
    }
    if let Err(reason) = pages_stay_writable(KVM_PATH.as_ref()) {
        return println!("no hot set on this kernel: {reason}");
    }
    // The smaller the set and the shorter the epochs, the more pages come and go.
    for (pattern, options) in as_time_allows(
        &[
            ("hotcold", "--budget 2048 --hot 1000 --interval 2ms"),
            ("zipf", "--budget 640 --hot 100 --interval 1ms"),
            ("sequential,burst=40", "--budget 1024 --hot auto --interval 1ms"),
            ("uniform", "--budget 4096 --hot auto --interval 20ms"),
        ],
        1,
    ) {
        let report = check(pattern, options, rounds(10, 100, 1500));
        if *pattern != "sequential,burst=40" {
            assert!(number(&report, "/hot_pages") > 0, "{report}");
        }
    }
}

/// Rounds as often as they come, with rings that are far smaller than epochs, with a hot set and
/// without.
#[test]
fn nothing_is_missed_with_rounds_in_a_storm_of_signals() {
    if !kvm_or_skip("native::audit::nothing_is_missed_with_rounds_in_a_storm_of_signals") {
        return;
    }
    for (pattern, options) in as_time_allows(
        &[
            ("uniform", "--budget 20000 --ring 256 --interval 5ms --hot off"),
            ("hotcold", "--budget 4096 --ring 256 --interval 3ms --hot 300"),
            ("sequential", "--budget 1200 --interval off"),
            ("zipf", "--budget 20000 --ring 256 --interval 20ms --hot auto"),
        ],
        1,
    ) {
        let report = check(pattern, &format!("--early always {options}"), rounds(10, 60, 1500));
        assert!(number(&report, "/early_pages") > 0, "{report}");
        assert!(number(&report, "/max_epoch_pages") <= number(&report, "/budget_pages"), "{report}");
        assert_eq!(number(&report, "/over_budget_epochs"), 0, "{report}");
    }
}

/// A tracker that forgets one page, once.
#[derive(Debug)]
struct Forgetful {
    tracker: Box<dyn Tracker>,
    /// Collections to go until it does.
    left: u64,
    scratch: PageSet,
}

impl Tracker for Forgetful {
    fn name(&self) -> &'static str {
        self.tracker.name()
    }

    fn bound(&self) -> Option<u64> {
        self.tracker.bound()
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        self.scratch.clear();
        let collected = self.tracker.collect(parked, &mut self.scratch)?;
        let mut found: Vec<Gfn> = self.scratch.iter().collect();
        if self.left == 0 && found.len() > 8 {
            found.remove(found.len() / 2);
            self.left = u64::MAX;
        }
        self.left = self.left.saturating_sub(1);
        for gfn in found {
            assert!(into.insert(gfn).is_some(), "{gfn} is memory");
        }
        Ok(collected)
    }

    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackerError> {
        self.tracker.rearm(parked)
    }
}

/// The audit can fail: it does when one page of one epoch is left out, and `verify` says from which
/// epoch on.
#[test]
fn a_page_that_is_left_out_is_found() {
    if !kvm_or_skip("native::audit::a_page_that_is_left_out_is_found") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let guest = "churn:pages=1500,content=counter".parse().unwrap();
    let spec = MachineSpec { memory_bytes: 16 << 20, vcpus: 2, guest: GuestSpec::Churn(guest), nets: Vec::new(), vsock: None };
    let mut vm =
        Vm::build(Path::new("/dev/kvm"), spec, Tracking::Ring { budget: 512, ring: None, hot: HotPages::Off, early: false })
            .unwrap();
    let new = NewChain {
        memory: memory_regions(16 << 20),
        device_runs: 0,
        vcpus: 2,
        machine: serde_json::to_value(vm.spec()).unwrap(),
    };
    let writer = Writer::create(&store, &new, WriterOptions::default()).unwrap();
    vm.load().unwrap();
    let frames = (16 << 20) / 4096;
    let tracker = Forgetful { tracker: vm.take_tracker().unwrap(), left: 6, scratch: PageSet::new(frames, 4096) };
    let options = EngineOptions { budget_pages: 512, audit_every: std::num::NonZeroU64::new(1), ..EngineOptions::default() };
    let engine = Engine::new(vm.memory().clone(), Box::new(tracker), Box::new(writer), Start::Fresh, options).unwrap();
    let protection = Protection { engine, interval: None, base_first: true, share_pages: 0 };
    let limits = Limits { time: None, epochs: Some(12) };
    let mut running = slackwater::vmm::Running::start(vm, Some(protection), limits, Stop::default()).unwrap();
    running.supervise();
    let outcome = running.finish();
    assert!(outcome.error.is_none(), "{:?}", outcome.error);

    let verified = run(&format!("verify --store {} --json", store.display())).expect(3);
    let report = verified.json();
    assert!(number(&report, "/audits_failed") >= 1, "{report}");
    assert_eq!(report["damage"][0]["kind"], "audit_mismatch", "{report}");
    let epoch = number(&report, "/damage/0/epoch");
    assert!((2..=7).contains(&epoch), "there are as many collections as epochs, or more: {report}");
    verified.says(&[&format!("from epoch {epoch} on"), "not what the guest had"]);
    let digest = run(&format!("digest --store {} --epoch {epoch} --json", store.display())).expect(3).json();
    assert_eq!(digest["audit_matches"], false, "{digest}");
    let digest = run(&format!("digest --store {} --epoch {} --json", store.display(), epoch - 1)).expect(0).json();
    assert_eq!(digest["audit_matches"], true, "{digest}");
    let out = dir.path().join("out");
    let export = |epoch| run(&format!("export --store {} --epoch {epoch} --format raw --out {}", store.display(), out.display()));
    export(epoch).refused(3, &[&format!("the audit of epoch {epoch} differs")]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    export(epoch - 1).expect(0);
}
