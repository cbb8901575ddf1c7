//! The engine with everything behind the cut, on a simulated guest.

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use slackwater::epoch::{Cut, Durability, Engine, EngineOptions, Marks, Sink, SinkError, SinkStart, Start, WhenBehind};
use slackwater::format::{BLOCK_PAGES, Complete, Head, Trigger};
use slackwater::machine::MachineState;
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PageRun};
use slackwater::store::{NewChain, Writer, WriterOptions};
use slackwater::track::SimulatedTracker;
use zstd::bulk::Compressor;

use crate::compare::{compare, timed};
use crate::content::{Content, Pages};
use crate::simulated::SimulatedGuest;

pub(crate) fn benches(criterion: &mut Criterion) {
    encode(criterion);
    durable(criterion);
}

/// A guest and its engine.
struct Bench {
    guest: SimulatedGuest,
    engine: Engine<MachineState>,
}

impl Bench {
    fn new(pages: usize, sink: Box<dyn Sink>, durability: Durability) -> Self {
        let options = EngineOptions { durability, ..EngineOptions::default() };
        Self::with(pages, sink, options)
    }

    fn with(pages: usize, sink: Box<dyn Sink>, options: EngineOptions) -> Self {
        let guest = SimulatedGuest::new(pages);
        let tracker = Box::new(SimulatedTracker::new(guest.ring.clone()));
        let options = EngineOptions { budget_pages: pages, when_behind: WhenBehind::Wait, ..options };
        let engine = Engine::new(guest.memory.clone(), tracker, sink, Start::Fresh, options).expect("an engine");
        let mut bench = Self { guest, engine };
        bench.cut();
        bench
    }

    fn cut(&mut self) {
        let cut = self.engine.cut(&mut self.guest, Trigger::RingFull).expect("an epoch");
        assert!(matches!(cut, Cut::Taken { .. }), "an epoch is taken each time");
    }

    fn flush(&self) {
        assert!(self.engine.flush(), "everything is stored");
    }
}

/// The encode thread's time for pages that changed in a few words, did not change, or are zero,
/// beside plain zstd for the same pages.
fn encode(criterion: &mut Criterion) {
    const PAGES: usize = 1024;
    let mut group = criterion.benchmark_group("encode_thread");
    group.throughput(Throughput::Bytes((PAGES * PAGE_SIZE) as u64));
    // Whole pages only: changes are not what plain zstd does.
    let options = || EngineOptions { durability: Durability::None, ..EngineOptions::default() };
    let mut bench = Bench::with(PAGES, Box::new(Nowhere::default()), EngineOptions { version_pages: 0, ..options() });
    let mut keeping = Bench::with(PAGES, Box::new(Nowhere::default()), options());
    let epochs = |bench: &mut Bench, next: &dyn Fn(&mut SimulatedGuest), rounds: u64| {
        bench.flush();
        let before = thread_time("slackwater-enc");
        for _ in 0..rounds {
            next(&mut bench.guest);
            bench.cut();
        }
        bench.flush();
        thread_time("slackwater-enc") - before
    };
    let words = |guest: &mut SimulatedGuest| guest.change_words(0..PAGES);
    let unchanged = |guest: &mut SimulatedGuest| guest.touch(0..PAGES);
    let zero = |guest: &mut SimulatedGuest| guest.zero(0..PAGES);
    group.bench_function("words", |bencher| bencher.iter_custom(|rounds| epochs(&mut bench, &words, rounds)));
    group.bench_function("unchanged", |bencher| bencher.iter_custom(|rounds| epochs(&mut bench, &unchanged, rounds)));

    let mut plain = Compressor::new(1).expect("a compressor");
    let mut out = vec![0; zstd::zstd_safe::compress_bound(BLOCK_PAGES * PAGE_SIZE)];
    let mut content = Pages::new();
    let mut pages = content.pages(Content::Words, PAGES);
    let mut zstd = || {
        pages.iter_mut().for_each(|page| content.change_words(page));
        let flat: Vec<u8> = pages.iter().flat_map(|page| page.iter().copied()).collect();
        timed(|| {
            for block in flat.chunks_exact(BLOCK_PAGES * PAGE_SIZE) {
                plain.compress_to_buffer(block, &mut out[..]).expect("a block");
            }
        })
    };
    let mut asked = false;
    group.bench_function("plain_zstd", |bencher| {
        asked = true;
        bencher.iter_custom(|rounds| (0..rounds).map(|_| zstd()).sum());
    });
    compare(asked, "encode_thread: words over plain zstd", || epochs(&mut bench, &words, 1), &mut zstd);
    compare(asked, "encode_thread: unchanged over plain zstd", || epochs(&mut bench, &unchanged, 1), &mut zstd);
    // Versions are kept and compared for nothing: every page is another each time.
    let other = |guest: &mut SimulatedGuest| guest.replace(0..PAGES);
    group.bench_function("replaced", |bencher| bencher.iter_custom(|rounds| epochs(&mut keeping, &other, rounds)));
    compare(asked, "encode_thread: replaced over plain zstd", || epochs(&mut keeping, &other, 1), &mut zstd);
    group.bench_function("zero", |bencher| bencher.iter_custom(|rounds| epochs(&mut bench, &zero, rounds)));
    compare(asked, "encode_thread: zero over plain zstd", || epochs(&mut bench, &zero, 1), &mut zstd);
}

/// Epochs of pages with a few words changed in each, on disk: the rate is durable epochs a second.
/// One page shows what an epoch costs besides pages.
fn durable(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("durable_epochs");
    group.throughput(Throughput::Elements(1));
    let group_10ms = Durability::Group(Durability::GROUP_DEFAULT);
    let cases = [
        ("60_pages_group_10ms", 60, group_10ms),
        ("1_page_group_10ms", 1, group_10ms),
        ("60_pages_unsynced", 60, Durability::None),
    ];
    for (name, pages, durability) in cases {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on disk");
        let mut bench = Bench::new(pages, store(dir.path(), pages), durability);
        let (mut wall, mut epochs) = (Duration::ZERO, 0);
        let cpu = || ["slackwater-enc", "slackwater-wri"].map(thread_time);
        let before = cpu();
        let report = bench.engine.report();
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|rounds| {
                let start = Instant::now();
                for _ in 0..rounds {
                    bench.guest.change_words(0..pages);
                    bench.cut();
                }
                bench.flush();
                epochs += rounds;
                wall += start.elapsed();
                start.elapsed()
            });
        });
        if epochs == 0 {
            continue; // not among those asked for
        }
        let us = |time: Duration| time.as_secs_f64() * 1e6 / epochs as f64;
        let [encode, write] = cpu();
        let bytes = bench.engine.report().bytes_written - report.bytes_written;
        eprintln!(
            "durable_epochs/{name}: {:.1} us an epoch, of which the encode thread works {:.1} and the writer {:.1}; {} bytes an epoch\n",
            us(wall),
            us(encode - before[0]),
            us(write - before[1]),
            bytes / epochs
        );
        assert!(bench.engine.finish().error.is_none(), "the chain ends in order");
    }
}

fn store(dir: &Path, pages: usize) -> Box<dyn Sink> {
    let memory = vec![PageRun { first: Gfn(0), count: pages as u64 }];
    let new = NewChain { memory, device_runs: 0, vcpus: 1, machine: serde_json::Value::Null };
    Box::new(Writer::create(dir, &new, WriterOptions::default()).expect("a store"))
}

/// What the thread whose name begins with `name` has worked since it began. (The kernel keeps 15
/// bytes of a name.)
fn thread_time(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("the threads of this process");
    let times = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let found = std::fs::read_to_string(path.join("comm")).ok()?;
        let stat = std::fs::read_to_string(path.join("schedstat")).ok().filter(|_| found.starts_with(name))?;
        stat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    });
    times.sum()
}

/// Takes everything and keeps nothing.
#[derive(Debug)]
struct Nowhere {
    head: Head,
    marks: Marks,
}

impl Default for Nowhere {
    fn default() -> Self {
        Self { head: Head::default(), marks: Marks::nowhere() }
    }
}

impl Sink for Nowhere {
    fn start(&mut self, marks: Marks) -> SinkStart {
        self.marks = marks;
        SinkStart { head: self.head, durable: Some(self.head.epoch), keeps: true, ..SinkStart::default() }
    }

    fn append(&mut self, _epoch: EpochId, _frames: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    fn complete(&mut self, _frames: &[u8], epoch: &Complete) -> Result<(), SinkError> {
        self.head = epoch.head();
        Ok(())
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.marks.durable(self.head.epoch);
        Ok(())
    }

    fn reopen(&mut self) -> Result<Head, SinkError> {
        Ok(self.head)
    }

    fn close(&mut self, _sync: bool) -> Result<(), SinkError> {
        self.sync()
    }
}
