//! Fuzzers of everything that decodes bytes. What they check, how they mutate and where they begin
//! is in [`decoders`], which the tests of the main package share; here is what ties it to
//! libFuzzer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "../../tests/fuzz/decoders/mod.rs"]
mod decoders;

use decoders::{Random, TARGETS, Target};

/// A target of this name for libFuzzer, with its mutator.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(init: $crate::write_seeds($name), |data: &[u8]| $crate::check($name, data));

        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::mutate($name, data, size, max_size, seed)
        });
    };
}

fn find(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("the target is listed")
}

/// Writes the target's seeds into the directory that `SLACKWATER_FUZZ_SEEDS` names, before
/// libFuzzer reads it.
pub fn write_seeds(name: &str) {
    let Some(dir) = std::env::var_os("SLACKWATER_FUZZ_SEEDS") else { return };
    let checkpoints = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints");
    for (number, seed) in (find(name).seeds)(&checkpoints).iter().enumerate() {
        std::fs::write(Path::new(&dir).join(format!("seed-{number:03}")), seed).expect("seeds can be written");
    }
}

/// One input. Panics where something does not hold.
pub fn check(name: &str, data: &[u8]) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    (find(name).check)(data);
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let bound = ALLOCATED_BYTES + ALLOCATED_TIMES * data.len();
    assert!(peak <= bound, "{peak} bytes were allocated for an input of {} bytes", data.len());
}

/// Changes an input as the target's mutator does; returns its new length.
pub fn mutate(name: &str, data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut input = data[..size].to_vec();
    let bytes = &mut |bytes: &mut Vec<u8>| {
        // libFuzzer's own mutations, with what it learned from comparisons, on a part of the input.
        let size = bytes.len();
        let room = size + size.clamp(16, 4096);
        bytes.resize(room, 0);
        let size = libfuzzer_sys::fuzzer_mutate(bytes, size, room);
        bytes.truncate(size);
    };
    (find(name).mutate)(&mut input, &mut Random::new(seed.into()), bytes);
    let size = input.len().min(max_size);
    data[..size].copy_from_slice(&input[..size]);
    size
}

/// What decoding an input may allocate at most: so much, and so many times its own size.
const ALLOCATED_BYTES: usize = 8 << 20;
const ALLOCATED_TIMES: usize = 128;

/// Bytes that are allocated, and the most that were since a check began.
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: all requests go to the system's allocator as they come.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}
