//! Rings on real KVM.
#![expect(unsafe_code, reason = "sends signals to a thread")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::kvm::kick;
use crate::kvm::test_guest::{FIRST_FREE, FRAMES, TestGuest, kvm_or_skip};
use crate::page::{Gfn, PageRun};
use crate::parked::Parked;

const ENTRIES: u32 = 4096;
/// Not a real-time signal: those queue, and a thread that is signalled faster than it takes them in
/// would never be done.
const STORM_SIGNAL: i32 = libc::SIGUSR2;
/// The most signals in one reset, so that the resetting thread gets on whatever the scheduler does.
const STORM_MOST: u32 = 5000;

fn run(first: u64, count: u64) -> PageRun {
    PageRun { first: Gfn(FIRST_FREE + first), count }
}

fn listed(rings: &mut VmRings) -> BTreeSet<u64> {
    let harvest = rings.harvest();
    let mut scope = ();
    let pages = harvest.while_parked(&Parked::vouch(&mut scope)).iter().map(|page| page.offset).collect();
    let reset = harvest.reset().unwrap();
    assert_eq!(reset.lost, None);
    pages
}

#[test]
fn native_a_harvest_without_a_reset_is_listed_again() {
    if !kvm_or_skip("native_a_harvest_without_a_reset_is_listed_again") {
        return;
    }
    let (mut guest, rings) = TestGuest::new(Some(ENTRIES));
    let mut rings = rings.unwrap();
    listed(&mut rings);
    guest.write(run(0, 10));
    drop(rings.harvest());
    // The pages are writable and this write is not listed: the first one still is.
    guest.write(run(0, 10));
    guest.write(run(20, 5));
    let written = (FIRST_FREE..FIRST_FREE + 10).chain(FIRST_FREE + 20..FIRST_FREE + 25);
    assert!(listed(&mut rings).is_superset(&written.collect()));
    assert!(listed(&mut rings).len() < 5);
}

#[test]
fn native_pages_can_stay_writable_and_be_protected_again() {
    if !kvm_or_skip("native_pages_can_stay_writable_and_be_protected_again") {
        return;
    }
    let (mut guest, rings) = TestGuest::new(Some(ENTRIES));
    let mut rings = rings.unwrap();
    listed(&mut rings);
    let gfns = |from: u64, count: u64| (FIRST_FREE + from..FIRST_FREE + from + count).collect::<BTreeSet<_>>();
    let say = |gfns: &BTreeSet<u64>| gfns.iter().map(|gfn| DirtyPage { slot: 0, offset: *gfn }).collect::<Vec<_>>();
    guest.write(run(0, 40));
    let harvest = rings.harvest();
    let too_many = say(&gfns(0, 1000));
    assert!(matches!(harvest.reset_instead(&too_many), Err(RingError::NoRoom { pages: 1000, .. })));
    // Thirty stay writable.
    assert_eq!(rings.harvest().reset_instead(&say(&gfns(30, 10))).unwrap().lost, None);
    guest.write(run(0, 40));
    let seen = listed(&mut rings);
    assert!(seen.is_superset(&gfns(30, 10)) && seen.is_disjoint(&gfns(0, 30)), "{seen:?}");
    // Ten of them are protected in the place of others.
    guest.write(run(30, 10));
    assert_eq!(rings.harvest().reset_instead(&say(&gfns(10, 10))).unwrap().lost, None);
    guest.write(run(0, 40));
    let seen = listed(&mut rings);
    assert!(seen.is_superset(&gfns(10, 10)) && seen.is_disjoint(&gfns(0, 10)) && seen.is_disjoint(&gfns(20, 20)), "{seen:?}");
}

#[test]
fn native_the_guest_leaves_at_the_soft_limit() {
    if !kvm_or_skip("native_the_guest_leaves_at_the_soft_limit") {
        return;
    }
    let (mut guest, rings) = TestGuest::new(Some(256));
    let mut rings = rings.unwrap();
    listed(&mut rings);
    let written = guest.write(run(0, 1000));
    let pages = listed(&mut rings);
    assert!(written < 256, "the guest ran on: {written}");
    assert!((100..256).contains(&pages.len()), "{}", pages.len());
    // Everything that was written is listed; the last page listed may not be written yet.
    assert!((FIRST_FREE..FIRST_FREE + written).all(|gfn| pages.contains(&gfn)));
}

#[test]
fn native_rings_come_before_vcpus_and_only_once() {
    if !kvm_or_skip("native_rings_come_before_vcpus_and_only_once") {
        return;
    }
    let (guest, rings) = TestGuest::new(None);
    assert!(rings.is_none());
    let late = VmRings::enable(guest.handle(), RingSize::MIN);
    assert!(matches!(late, Err(RingError::Enable { entries: 256, .. })), "{late:?}");
    let (max, _) = support(&guest.handle()).unwrap();
    let large = RingSize::new(max.entries() * 2).unwrap();
    let large = VmRings::enable(guest.handle(), large);
    assert!(matches!(large, Err(RingError::TooLarge { max_entries, .. }) if max_entries == max.entries()), "{large:?}");
    for entries in [0, 1, 128, 255, 257, 1000, u32::MAX] {
        assert!(matches!(RingSize::new(entries), Err(RingError::Size { .. })), "{entries}");
    }
}

#[test]
fn native_a_reset_goes_on_beside_the_caller_and_is_finished() {
    if !kvm_or_skip("native_a_reset_goes_on_beside_the_caller_and_is_finished") {
        return;
    }
    let (mut guest, rings) = TestGuest::new(Some(ENTRIES));
    let mut rings = rings.unwrap();
    rings.start_thread().unwrap();
    listed(&mut rings);
    let pages = 1000.min(FRAMES - FIRST_FREE);
    let all: BTreeSet<u64> = (FIRST_FREE..FIRST_FREE + pages).collect();
    for round in 0..40u64 {
        guest.write(run(0, pages));
        let mut scope = ();
        let parked = Parked::vouch(&mut scope);
        let harvest = rings.harvest();
        let seen: BTreeSet<_> = harvest.while_parked(&parked).iter().map(|page| page.offset).collect();
        assert!(seen.is_superset(&all), "round {round}: a reset protects every page before it is finished");
        harvest.begin_reset(None, &parked).unwrap();
        // At once, late, or never: the next harvest finishes it then.
        (0..round * 200).for_each(|_| std::hint::spin_loop());
        if round % 4 != 3 {
            assert_eq!(rings.finish_reset().unwrap().lost, None);
            assert_eq!(rings.finish_reset().unwrap().lost, None, "there is nothing more to finish");
        } else {
            let again = rings.harvest();
            assert_eq!((again.while_parked(&parked).len(), again.lost()), (0, None));
        }
    }
    // Other pages than those listed.
    guest.write(run(0, pages));
    let mut scope = ();
    let parked = Parked::vouch(&mut scope);
    let half: Vec<_> = all.iter().take(all.len() / 2).map(|gfn| DirtyPage { slot: 0, offset: *gfn }).collect();
    rings.harvest().begin_reset(Some(&half), &parked).unwrap();
    assert_eq!(rings.finish_reset().unwrap().lost, None);
    guest.write(run(0, pages));
    let seen = listed(&mut rings);
    assert!(half.iter().all(|page| seen.contains(&page.offset)) && seen.len() < half.len() + 5, "{}", seen.len());
}

/// Another thread that signals this one without pause while it is on.
struct Storm {
    on: Arc<AtomicBool>,
    /// Whether the reset blocks signals, as it must.
    blocked: bool,
    /// Whether it goes on beside this thread.
    beside: bool,
}

/// The threads of this process that reset rings, or whose names can't be told from theirs: the
/// kernel keeps 15 bytes.
fn reset_threads() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let resets = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| "slackwater-reset".starts_with(name.trim_end()))
    };
    tasks.filter(resets).filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// One pass: dirty, harvest, reset while another thread signals this one without pause. Returns
/// whether the reset said that it lost pages, and how many of the pages of the pass before were not
/// listed although they were reset.
fn storm_pass(guest: &mut TestGuest, rings: &mut VmRings, pages: u64, storm: &Storm) -> (bool, usize) {
    guest.write(run(0, pages));
    let harvest = rings.harvest();
    let mut scope = ();
    let seen: BTreeSet<_> = harvest.while_parked(&Parked::vouch(&mut scope)).iter().map(|page| page.offset).collect();
    let missing = (FIRST_FREE..FIRST_FREE + pages).filter(|gfn| !seen.contains(gfn)).count();
    // Only now: under a storm of signals the guest would not get on.
    storm.on.store(true, Ordering::SeqCst);
    let reset = match *storm {
        Storm { blocked: false, .. } => harvest.reset_with_signals(),
        Storm { beside: false, .. } => harvest.reset(),
        Storm { .. } => {
            harvest.begin_reset(None, &Parked::vouch(&mut scope)).unwrap();
            // Time for the thread to begin.
            (0..50_000).for_each(|_| std::hint::spin_loop());
            rings.finish_reset()
        }
    };
    storm.on.store(false, Ordering::SeqCst);
    (reset.unwrap().lost.is_some(), missing)
}

#[test]
fn native_signals_do_not_disturb_a_reset_and_a_short_one_is_noticed() {
    if !kvm_or_skip("native_signals_do_not_disturb_a_reset_and_a_short_one_is_noticed") {
        return;
    }
    // QEMU's emulation of SVM: the storm outruns the thread that takes it in, and now and then the
    // guest shuts down under it. Resets of the nested lane's kernels do not stop at a signal
    // anyway.
    if std::env::var_os("SLACKWATER_NESTED").is_some() {
        return;
    }
    let passes = 60;
    let pages = 3000.min(FRAMES - FIRST_FREE);
    kick::install_handler(STORM_SIGNAL).unwrap();
    for (blocked, beside) in [(true, false), (true, true), (false, false)] {
        let (mut guest, rings) = TestGuest::new(Some(ENTRIES));
        let mut rings = rings.unwrap();
        if beside {
            rings.start_thread().unwrap();
        }
        listed(&mut rings);
        guest.write(run(0, pages));
        listed(&mut rings);
        let (storm, done) = (Storm { on: Arc::default(), blocked, beside }, Arc::new(AtomicBool::new(false)));
        let process = std::process::id();
        // SAFETY: takes nothing and can't fail.
        let thread = unsafe { libc::gettid() };
        let threads: Vec<_> = std::iter::once(thread).chain(reset_threads()).collect();
        assert!(!beside || threads.len() > 1, "the thread that resets is signalled too");
        let thunder = {
            let (on, done) = (storm.on.clone(), done.clone());
            std::thread::spawn(move || {
                let mut sent = 0;
                while !done.load(Ordering::Relaxed) {
                    if !on.load(Ordering::Relaxed) {
                        sent = 0;
                    }
                    if !on.load(Ordering::Relaxed) || sent == STORM_MOST {
                        std::hint::spin_loop();
                        continue;
                    }
                    sent += 1;
                    for thread in &threads {
                        // SAFETY: takes numbers; a thread that has ended is an error, and the
                        // signal's handler does nothing.
                        unsafe { libc::syscall(libc::SYS_tgkill, process, *thread, STORM_SIGNAL) };
                    }
                    // Time to take one in: a thread that is signalled faster than it can answer
                    // never gets on.
                    (0..100).for_each(|_| std::hint::spin_loop());
                }
            })
        };
        let mut noticed = 0;
        let mut unnoticed = 0;
        // Until one was cut short, where that is to be: on a busy machine the storm's thread may
        // come late.
        for pass in 0..passes * 20 {
            if pass >= passes && (blocked || noticed > 0) {
                break;
            }
            let before = noticed > 0;
            let (lost, missing) = storm_pass(&mut guest, &mut rings, pages, &storm);
            unnoticed += if before { 0 } else { missing };
            noticed += usize::from(lost);
        }
        done.store(true, Ordering::Relaxed);
        thunder.join().unwrap();
        // No page may be missing before a reset has said that pages may be.
        assert_eq!(unnoticed, 0, "signals blocked: {blocked}");
        if blocked {
            assert_eq!(noticed, 0, "a reset with signals blocked was cut short");
        } else if let Some(true) =
            crate::kvm::host::Host::probe(crate::kvm::host::KVM_PATH.as_ref()).unwrap().reset_stops_on_signal
        {
            assert!(noticed > 0, "no reset was cut short: the test can't fail");
        }
    }
}
