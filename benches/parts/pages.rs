//! Harvest and sets of pages.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use slackwater::epoch::Tracker;
use slackwater::page::{Gfn, PageSet};
use slackwater::parked::Parked;
use slackwater::track::{SimulatedMemory, SimulatedTracker};

use crate::content::Random;

/// Frames of 4 GiB.
const FRAMES: usize = 1 << 20;

fn frames(count: usize) -> Vec<Gfn> {
    let mut random = Random(2);
    (0..count).map(|_| Gfn(random.below(FRAMES) as u64)).collect()
}

pub(crate) fn benches(criterion: &mut Criterion) {
    harvest(criterion);
    page_set(criterion);
}

/// A simulated ring into a set; the kernel's takes a system call for the reset besides.
fn harvest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("harvest");
    for count in [60, 4000] {
        let frames = frames(count);
        group.throughput(Throughput::Elements(count as u64));
        let memory = SimulatedMemory::new(FRAMES, 8192, 64);
        let mut tracker = SimulatedTracker::new(memory.clone());
        let mut set = PageSet::new(FRAMES as u64, 8192);
        group.bench_function(format!("simulated/{count}"), |bencher| {
            bencher.iter_batched(
                || {
                    for gfn in &frames {
                        assert!(!memory.write(*gfn), "the ring is not full");
                    }
                },
                |()| {
                    set.clear();
                    tracker.collect(&Parked::vouch(&mut ()), &mut set).expect("frames of the memory")
                },
                BatchSize::PerIteration,
            );
        });
    }
}

fn page_set(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("page_set");
    for count in [60, 4000] {
        let frames = frames(count);
        group.throughput(Throughput::Elements(count as u64));
        let mut set = PageSet::new(FRAMES as u64, 8192);
        let mut taken = Vec::with_capacity(count);
        group.bench_function(format!("insert_take/{count}"), |bencher| {
            bencher.iter(|| {
                for gfn in &frames {
                    set.insert(*gfn);
                }
                taken.clear();
                set.take(count, &mut taken);
                black_box(taken.len())
            });
        });
        // The floor: the same numbers copied.
        let mut copy = Vec::with_capacity(count);
        group.bench_function(format!("copy_list/{count}"), |bencher| {
            bencher.iter(|| {
                copy.clear();
                copy.extend_from_slice(black_box(&frames));
                black_box(copy.len())
            });
        });
    }
}
