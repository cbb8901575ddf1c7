//! The guest on the KVM at hand: an epoch has the pages of its list and the control page, whatever
//! tracks them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::epoch::{Collected, Tracker, TrackerError};
use crate::epoch::{Engine, EngineOptions, Start};
use crate::kvm::test_guest::kvm_or_skip;
use crate::page::{Gfn, PAGE_SIZE, PageSet};
use crate::parked::Parked;
use crate::store::verify::{VerifyOptions, verify};
use crate::store::{NewChain, Writer, WriterOptions};
use crate::track::HotPages;
use crate::vmm::guests::flat;
use crate::vmm::{GuestSpec, Limits, MachineSpec, Protection, Running, Stop, Tracking, Vm, memory_regions};

const MEMORY: u64 = 16 << 20;

/// Writes down what the tracker inside lists.
#[derive(Debug)]
struct Noting {
    inner: Box<dyn Tracker>,
    noted: Arc<Mutex<Vec<BTreeSet<u64>>>>,
}

impl Tracker for Noting {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn bound(&self) -> Option<u64> {
        self.inner.bound()
    }

    fn collect(&mut self, parked: &Parked<'_>, into: &mut PageSet) -> Result<Collected, TrackerError> {
        let mut found = PageSet::new(into.frames(), 4096);
        let collected = self.inner.collect(parked, &mut found)?;
        self.noted.lock().unwrap().push(found.iter().map(|gfn| gfn.0).collect());
        found.iter().for_each(|gfn| assert!(into.insert(gfn).is_some()));
        Ok(collected)
    }

    fn rearm(&mut self, parked: &Parked<'_>) -> Result<(), TrackerError> {
        self.inner.rearm(parked)
    }
}

/// Runs the guest for so many epochs into `store`, each with a digest of all memory. Returns the
/// pages that each cut found, and the control page at the end.
fn run(store: &Path, guest: &str, vcpus: u32, tracking: Tracking, epochs: u64) -> (Vec<BTreeSet<u64>>, [u8; PAGE_SIZE]) {
    let spec = MachineSpec {
        memory_bytes: MEMORY,
        vcpus,
        guest: GuestSpec::Touch(guest.parse().unwrap()),
        nets: Vec::new(),
        vsock: None,
    };
    let mut vm = Vm::build(Path::new(crate::kvm::host::KVM_PATH), spec, tracking).unwrap();
    let machine = serde_json::to_value(vm.spec()).unwrap();
    let writer = Writer::create(
        store,
        &NewChain { memory: memory_regions(MEMORY), device_runs: 0, vcpus, machine },
        WriterOptions::default(),
    )
    .unwrap();
    vm.load().unwrap();
    let noted = Arc::new(Mutex::new(Vec::new()));
    let tracker = Box::new(Noting { inner: vm.take_tracker().unwrap(), noted: noted.clone() });
    let options = EngineOptions { budget_pages: 4096, audit_every: NonZeroU64::new(1), ..EngineOptions::default() };
    let engine = Engine::new(vm.memory().clone(), tracker, Box::new(writer), Start::Fresh, options).unwrap();
    let memory = vm.memory().clone();
    let protection = Protection { engine, interval: None, base_first: true, share_pages: 0 };
    let limits = Limits { time: Some(Duration::from_secs(60)), epochs: Some(epochs) };
    let mut running = Running::start(vm, Some(protection), limits, Stop::default()).unwrap();
    running.supervise();
    let outcome = running.finish();
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    let report = outcome.report.unwrap();
    assert_eq!((report.durable_epochs, report.tracking_lost), (epochs, 0));
    let mut control = [0; PAGE_SIZE];
    memory.read_page(control_frame(guest), &mut control).unwrap();
    assert_eq!(outcome.guest.passes, super::passes(&control, vcpus));
    let mut noted = noted.lock().unwrap().clone();
    // With nested paging, KVM lists a page when it is first read, though the guest's own tables
    // forbid to write it; and on AMD a walk of the guest's tables counts as a write of them, each
    // time.
    let mut read = BTreeSet::new();
    for found in &mut noted {
        let written = found.split_off(&control_frame(guest).0);
        for gfn in std::mem::replace(found, written) {
            let is_table = (Gfn::containing(flat::PML4).0..Gfn::containing(flat::END).0).contains(&gfn);
            assert!(read.insert(gfn) || is_table, "frame {gfn} is read only, and was listed twice");
        }
    }
    (noted, control)
}

fn control_frame(guest: &str) -> Gfn {
    Gfn::containing(control_address(&guest.parse().unwrap()))
}

/// The pages of an epoch with these lists.
fn expected(guest: &str, lists: &[&[Gfn]]) -> BTreeSet<u64> {
    lists.concat().into_iter().chain([control_frame(guest)]).map(|gfn| gfn.0).collect()
}

fn trackings() -> [(&'static str, Tracking); 3] {
    [
        ("ring", Tracking::Ring { budget: 4096, ring: None, hot: HotPages::Off, early: false }),
        ("bitmap", Tracking::Bitmap { manual_protect: false }),
        ("bitmap with manual protect", Tracking::Bitmap { manual_protect: true }),
    ]
}

#[test]
fn an_epoch_has_the_pages_of_its_list_and_the_control_page() {
    if !kvm_or_skip("touch::native_tests::an_epoch_has_the_pages_of_its_list_and_the_control_page") {
        return;
    }
    const EPOCHS: u64 = 8;
    for (name, tracking) in trackings() {
        for (guest, vcpus) in
            [("touch:pages=60,lists=3", 1), ("touch:pages=500,pattern=hotcold", 2), ("touch:pages=1,pattern=same,words=512", 2)]
        {
            let dir = tempfile::tempdir().unwrap();
            let store = dir.path().join("store");
            let (noted, control) = run(&store, guest, vcpus, tracking, EPOCHS);
            let image = Image::build(&guest.parse().unwrap(), MEMORY, vcpus).unwrap();
            assert_eq!(noted.len() as u64, EPOCHS, "{name}, {guest}");
            assert_eq!(noted[0], BTreeSet::new(), "{name}, {guest}: the base comes before the guest runs");
            for (pass, found) in (0..).zip(&noted[1..]) {
                assert_eq!(*found, expected(guest, &[image.pass(pass)]), "{name}, {guest}, pass {pass}");
            }
            // Every page write took a number.
            let counter = u64::from_le_bytes(*control.first_chunk().unwrap());
            let pages = image.pass(0).len() as u64;
            assert_eq!(counter, pages * (EPOCHS - 1), "{name}, {guest}");
            let verified = verify(&store, &VerifyOptions::default(), &mut |_| {}).unwrap();
            assert_eq!((verified.audits_checked, verified.audits_failed), (EPOCHS, 0), "{name}, {guest}");
        }
    }
}

#[test]
fn a_cut_every_few_passes_has_the_pages_of_all_of_them() {
    if !kvm_or_skip("touch::native_tests::a_cut_every_few_passes_has_the_pages_of_all_of_them") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let guest = "touch:pages=20,lists=5,cut=2";
    let (noted, control) = run(
        &dir.path().join("store"),
        guest,
        2,
        Tracking::Ring { budget: 4096, ring: None, hot: HotPages::Off, early: false },
        4,
    );
    let image = Image::build(&guest.parse().unwrap(), MEMORY, 2).unwrap();
    for (cut, found) in (0..).zip(&noted[1..]) {
        assert_eq!(*found, expected(guest, &[image.pass(2 * cut), image.pass(2 * cut + 1)]), "cut {cut}");
    }
    assert_eq!(super::passes(&control, 2), 2 * 6);
}
