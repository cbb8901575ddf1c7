//! The plan of a restore over a chain of many epochs, and filling memory with it.

use criterion::{Criterion, Throughput};
use slackwater::epoch::Sink;
use slackwater::format::{BlockEncoder, Commit, Compression, EpochWriter, MemoryDigest};
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PageRun};
use slackwater::restore::Plan;
use slackwater::store::{Chain, NewChain, Writer, WriterOptions};

use crate::content::{Content, Pages, Random, block};

const PAGES: usize = 1024;
const EPOCHS: u64 = 1000;
/// Blocks of 16 pages that follow each other in every epoch but the first, which has all pages.
const BLOCKS: usize = 4;

pub(crate) fn benches(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on disk");
    write(dir.path());
    let chain = Chain::open(dir.path()).expect("the chain");
    let mut group = criterion.benchmark_group(format!("restore/{EPOCHS}_epochs"));
    group.throughput(Throughput::Elements(EPOCHS));
    group.bench_function("open", |bencher| bencher.iter(|| Chain::open(dir.path()).expect("the chain")));
    group.bench_function("plan", |bencher| bencher.iter(|| Plan::new(&chain, chain.newest()).expect("a plan").pages()));
    group.throughput(Throughput::Bytes((PAGES * PAGE_SIZE) as u64));
    let plan = Plan::new(&chain, chain.newest()).expect("a plan");
    group.bench_function("fill", |bencher| {
        bencher.iter(|| plan.fill(&mut MemoryDigest::default(), &mut |_, _| {}).expect("sound pages"));
    });
}

fn write(dir: &std::path::Path) {
    let memory = vec![PageRun { first: Gfn(0), count: PAGES as u64 }];
    let new = NewChain { memory, vcpus: 1, machine: serde_json::Value::Null };
    let mut store = Writer::create(dir, &new, WriterOptions::default()).expect("a store");
    let mut encoder = BlockEncoder::new(Compression::default());
    let pages = Pages::new().pages(Content::Text, PAGES);
    let all = block(&pages);
    let mut random = Random(3);
    for epoch in (1..=EPOCHS).map(EpochId) {
        let mut frames = Vec::new();
        let mut writer = EpochWriter::new(store.chain(), epoch);
        for at in 0..if epoch.0 == 1 { PAGES / 16 } else { BLOCKS } {
            let first = if epoch.0 == 1 { at * 16 } else { random.below(PAGES - 16) };
            writer.pages(&mut frames, &mut encoder, &all[first..first + 16]).expect("a block");
        }
        writer.state(&mut frames, &[]).expect("no state");
        let commit = Commit { epoch, totals: writer.totals(), base: epoch.0 == 1, ..Commit::default() };
        store.commit(&frames, commit).expect("an epoch");
    }
    store.close(true).expect("the end of the chain");
}
