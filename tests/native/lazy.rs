//! Restoring on demand: the guest runs at once, and its memory comes as it is touched.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use slackwater::format::{ChainId, FrameKind, MemoryDigest};
use slackwater::kvm::host::KVM_PATH;
use slackwater::machine::MachineState;
use slackwater::memory::MemoryError;
use slackwater::page::{EpochId, Gfn, PAGE_SIZE};
use slackwater::restore::{self, PageMap, PageSources, RestoreError};
use slackwater::store::Chain;
use slackwater::vmm::{Limits, MachineSpec, Outcome, Stop, Tracking, Vm, VmmError};

use crate::native::follow;
use crate::support::chain::frames;
use crate::support::command::{Running, guest_is_ok, number, run, slackwater};
use crate::support::{Random, as_time_allows, kvm_or_skip, rounds};

/// A chain of a guest with two vCPUs.
fn chain(store: &Path, epochs: u64) {
    let guest = "churn:pages=1500,content=words,pattern=zipf";
    let options = format!("--memory 16M --vcpus 2 --guest {guest} --budget 512 --audit 1 --epochs {epochs}");
    run(&format!("checkpoint --store {} {options}", store.display())).expect(0);
}

/// The machine of an epoch, its memory coming on demand.
fn machine(chain: &Arc<Chain>, epoch: EpochId, background: bool) -> Vm {
    let pages = PageMap::new(chain.clone(), epoch).unwrap();
    let spec: MachineSpec = serde_json::from_value(chain.description().machine.clone()).unwrap();
    let mut vm = Vm::build(KVM_PATH.as_ref(), spec, Tracking::None).unwrap();
    let state = MachineState::from_records(pages.state(), 2).unwrap();
    vm.fill_on_demand(Arc::new(pages), background).unwrap();
    vm.apply(&state).unwrap();
    vm
}

fn run_for(vm: Vm, time: Duration) -> Outcome {
    let limits = Limits { time: Some(time), epochs: None };
    let mut running = slackwater::vmm::Running::start(vm, None, limits, Stop::default()).unwrap();
    let _ = running.check();
    running.supervise();
    running.finish()
}

fn is_page(error: &VmmError) -> bool {
    matches!(error, VmmError::Restore(error) if matches!(**error, RestoreError::Page { .. }))
}

#[test]
fn eager_and_lazy_give_the_same_memory() {
    if !kvm_or_skip("native::lazy::eager_and_lazy_give_the_same_memory") {
        return;
    }
    let mut random = Random::seeded("native::lazy::eager_and_lazy", 5);
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    chain(&store, rounds(6, 60, 400));
    let chain = Arc::new(Chain::open(&store).unwrap());
    for round in 0..rounds(2, 8, 60) {
        let epoch = EpochId(1 + random.below(chain.newest().0));
        let vm = machine(&chain, epoch, round % 2 == 0);
        // Read by the host, in any order, while the background fills.
        let mut gfns: Vec<_> = vm.memory().runs().flat_map(|run| run.first.0..run.first.0 + run.count).map(Gfn).collect();
        for at in (1..gfns.len()).rev() {
            gfns.swap(at, usize::try_from(random.below(at as u64 + 1)).unwrap());
        }
        let (mut digest, mut page) = (MemoryDigest::default(), [0; PAGE_SIZE]);
        for gfn in gfns {
            vm.memory().read_page(gfn, &mut page).unwrap();
            digest.add_page(gfn, &page);
        }
        let commit = chain.epoch(epoch).unwrap().commit;
        assert_eq!((digest, Some(digest)), (restore::digest(&chain, epoch).unwrap().memory, commit.audit), "epoch {epoch}");
    }
}

#[test]
fn a_guest_with_two_vcpus_finds_all_its_memory() {
    if !kvm_or_skip("native::lazy::a_guest_with_two_vcpus_finds_all_its_memory") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    chain(&store, rounds(6, 60, 400));
    let (path, touched) = (store.display(), store.join("touched"));
    let restore = |epoch: u64| run(&format!("restore --lazy --store {path} --epoch {epoch} --for 20ms --json")).expect(0).json();
    for (round, epoch) in [5, 4, 5, 3].into_iter().enumerate() {
        match round {
            // A record that is damaged is no record.
            2 => std::fs::write(&touched, [0x5A; 10_000]).unwrap(),
            // One that can't be read is none, nor can another be kept.
            3 => {
                std::fs::remove_file(&touched).unwrap();
                std::fs::create_dir(&touched).unwrap();
            }
            _ => {}
        }
        let report = restore(epoch);
        assert_eq!((&report["mode"], number(&report, "/epoch")), (&"lazy".into(), epoch), "{report}");
        assert!(guest_is_ok(&report) && number(&report, "/guest/checks") >= 2, "{report}");
        assert!(number(&report, "/faults") > 0 && number(&report, "/restored_pages") > 100, "{report}");
        assert!(number(&report, "/first_run_us") > number(&report, "/kvm_setup_us"), "{report}");
        // What was waited for in the first round comes early in the second, by the background or
        // before that gets there.
        assert!(round == 1 || number(&report, "/pages_recorded") == 0, "{report}");
        assert!(round == 3 || std::fs::metadata(&touched).unwrap().len() > 40, "round {round}");
    }
    let report = run(&format!("verify --store {path} --json")).expect(0).json();
    assert_eq!(report["damage"].as_array().map(Vec::len), Some(0), "{report}");
}

#[test]
fn checkpoints_go_on_from_the_first_instruction() {
    if !kvm_or_skip("native::lazy::checkpoints_go_on_from_the_first_instruction") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    chain(&store, rounds(6, 30, 60));
    let path = store.display();
    for options in as_time_allows(
        &[
            "--budget 512",
            "--tracker bitmap --interval 3ms",
            "--budget 2048 --interval 2ms --hot auto --early always",
            "--budget 512 --durability epoch --compression none",
        ],
        2,
    ) {
        let epochs = rounds(5, 30, 400);
        let line = format!("restore --lazy --continue --store {path} {options} --audit 1 --epochs {epochs} --json");
        let report = run(&line).expect(0).json();
        assert!(guest_is_ok(&report), "{report}");
        assert_eq!(
            (number(&report, "/checkpoint/tracking_lost"), number(&report, "/checkpoint/epochs")),
            (0, epochs),
            "{report}"
        );
        let verified = run(&format!("verify --store {path} --json")).expect(0).json();
        assert_eq!((number(&verified, "/audits_failed"), number(&verified, "/audits_unchecked")), (0, 0), "{verified}");
        assert_eq!(number(&verified, "/audits_checked"), number(&verified, "/epochs"), "{verified}");
    }
}

#[test]
fn epochs_that_go_on_are_increments() {
    if !kvm_or_skip("native::lazy::epochs_that_go_on_are_increments") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let guest = "touch:pages=64,pattern=same,words=8,cut=1";
    run(&format!("checkpoint --store {} --memory 64M --guest {guest} --budget 512 --epochs 20", store.display())).expect(0);
    let line = format!("restore --lazy --continue --store {} --budget 512 --epochs 5 --json", store.display());
    let report = run(&line).expect(0).json();
    // Five epochs of 64 pages and the guest's own, and not all of memory.
    assert!(number(&report, "/checkpoint/pages") < 5 * 70, "{report}");
}

#[test]
fn a_lazy_restore_that_is_killed_loses_nothing() {
    if !kvm_or_skip("native::lazy::a_lazy_restore_that_is_killed_loses_nothing") {
        return;
    }
    let mut random = Random::seeded("native::lazy::killed", 9);
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    chain(&store, rounds(6, 30, 30));
    let path = store.display();
    let mut seen = follow::appended(&store);
    for round in 0..rounds(2, 10, 200) {
        let goes_on = if round % 3 == 0 { "" } else { "--continue --budget 512 --audit 3 --durability none" };
        let running = Running::start(&mut slackwater(format!("restore --lazy --store {path} {goes_on}").split_whitespace()));
        if round % 3 == 2 {
            follow::wait_for_epochs(&store, seen.len() + 1);
        }
        // Anywhere in it: this is no wait for anything.
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        running.kill();
        follow::nothing_is_missing(&store, &seen);
        seen = follow::appended(&store);
        let report = run(&format!("verify --store {path} --json")).expect(0).json();
        assert_eq!((number(&report, "/audits_failed"), number(&report, "/epochs")), (0, seen.len() as u64), "{report}");
    }
    let report = run(&format!("restore --lazy --store {path} --for 50ms --json")).expect(0).json();
    assert!(guest_is_ok(&report) && number(&report, "/guest/checks") >= 2, "{report}");
}

/// Spoils pages in the middle of the chain's first segment, and returns how many: nobody finds out
/// before they are read.
fn spoil(store: &Path, one_in: usize) -> usize {
    let id: ChainId = Chain::open(store).unwrap().description().chain;
    let file = store.join("segment-00000001");
    let mut bytes = std::fs::read(&file).unwrap();
    let pages: Vec<_> = frames(&bytes, id).into_iter().filter(|frame| frame.kind == FrameKind::Pages).collect();
    let spoilt = pages.iter().skip(one_in / 2).step_by(one_in);
    // Behind the list of pages, which is read before.
    spoilt.clone().for_each(|frame| bytes[frame.payload + (frame.offset + frame.bytes - frame.payload) * 7 / 8] ^= 0xFF);
    std::fs::write(&file, bytes).unwrap();
    spoilt.count()
}

#[test]
fn a_page_that_can_not_be_read_stops_the_guest() {
    if !kvm_or_skip("native::lazy::a_page_that_can_not_be_read_stops_the_guest") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (at, one_in) in [40, 7, 1].into_iter().enumerate() {
        let store = dir.path().join(format!("store-{at}"));
        chain(&store, rounds(6, 12, 12));
        assert!(spoil(&store, one_in) > 0);
        let path = store.display();
        for options in ["--for 30s", "--for 30s --continue --budget 512"] {
            // The command's own limit is 120 s: it neither hangs nor runs on.
            let failed = run(&format!("restore --lazy --store {path} {options}")).expect(3);
            let failed = failed.says(&["can't be read", "page 0x", "segment-00000001 at offset", "verify"]);
            assert!(!failed.stderr.contains("INCONSISTENCY") && !failed.stdout.contains("INCONSISTENCY"), "{failed}");
        }
    }
}

/// A vCPU waits for the very page, with and without a background that comes across it, and the file
/// is gone.
#[test]
fn a_vcpu_that_waits_for_a_page_gets_out_when_it_can_not_be_read() {
    if !kvm_or_skip("native::lazy::a_vcpu_that_waits_for_a_page_gets_out_when_it_can_not_be_read") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    chain(&store, rounds(6, 12, 12));
    for background in [false, true] {
        let opened = Arc::new(Chain::open(&store).unwrap());
        let vm = machine(&opened, opened.newest(), background);
        let gone = dir.path().join("gone");
        std::fs::rename(store.join("segment-00000001"), &gone).unwrap();
        // Sources that have not opened the file yet can't; the others go on reading it.
        let outcome = run_for(vm, Duration::from_millis(50));
        std::fs::rename(&gone, store.join("segment-00000001")).unwrap();
        assert!(outcome.guest.ok, "{outcome:?}");
        if let Some(error) = &outcome.error {
            assert!(is_page(error), "{error:?}");
        }
    }
    assert!(spoil(&store, 3) > 0);
    for background in [false, true] {
        let opened = Arc::new(Chain::open(&store).unwrap());
        let pages = PageMap::new(opened.clone(), opened.newest()).unwrap();
        let spec: MachineSpec = serde_json::from_value(opened.description().machine.clone()).unwrap();
        let state = MachineState::from_records(pages.state(), 2).unwrap();
        let mut vm = Vm::build(KVM_PATH.as_ref(), spec, Tracking::None).unwrap();
        vm.fill_on_demand(Arc::new(pages), background).unwrap();
        let memory = vm.memory().clone();
        let error = match vm.apply(&state) {
            Ok(()) => run_for(vm, Duration::from_secs(30)).error.expect("not all of memory can be read"),
            Err(error) => error,
        };
        assert!(is_page(&error) && matches!(&error, VmmError::Restore(error) if error.is_damage()), "{error:?}");
        // What did not come is no zeros for this process either.
        let mut page = [0; PAGE_SIZE];
        let unread = (0..4096).map(Gfn).filter(|gfn| match memory.read_page(*gfn, &mut page) {
            Ok(()) => false,
            Err(MemoryError::Unreadable { .. }) => true,
            Err(error) => panic!("{error}"),
        });
        assert!(unread.count() > 0);
    }
}

/// Memory for sources is bounded, and they may be more than one.
#[test]
fn many_restore_one_epoch_at_once() {
    if !kvm_or_skip("native::lazy::many_restore_one_epoch_at_once") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    chain(&store, rounds(6, 20, 20));
    let line = format!("restore --lazy --store {} --for 30ms --json", store.display());
    let all: Vec<_> = (0..rounds(2, 4, 12)).map(|_| Running::start(&mut slackwater(line.split_whitespace()))).collect();
    for running in all {
        let report = running.wait().expect(0).json();
        assert!(guest_is_ok(&report) && number(&report, "/guest/checks") >= 2, "{report}");
    }
    let chain = Arc::new(Chain::open(&store).unwrap());
    let map = PageMap::new(chain.clone(), chain.newest()).unwrap();
    assert!(PageSources::epoch(&map) == chain.newest());
}
