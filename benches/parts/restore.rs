//! The plan of a restore over a chain of many epochs, and filling memory with it.

use criterion::{Criterion, Throughput};
use slackwater::format::{BlockEncoder, CHANGES_DEPTH_MAX, ChangedWords, Commit, Compression, EpochWriter, Line, MemoryDigest};
use slackwater::page::{EpochId, Gfn, PAGE_SIZE, PageRun};
use slackwater::restore::Plan;
use slackwater::store::{Chain, NewChain, Writer, WriterOptions};

use crate::content::{Content, Pages, Random, block};

const PAGES: usize = 1024;
const EPOCHS: u64 = 1000;
/// Blocks of 16 pages that follow each other in every epoch but the first, which has all pages.
const BLOCKS: usize = 4;

pub(crate) fn benches(criterion: &mut Criterion) {
    for changes in [false, true] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on disk");
        write(dir.path(), changes);
        let chain = Chain::open(dir.path()).expect("the chain");
        let kind = if changes { "changes" } else { "whole" };
        let mut group = criterion.benchmark_group(format!("restore/{EPOCHS}_epochs_{kind}"));
        group.throughput(Throughput::Elements(EPOCHS));
        group.bench_function("open", |bencher| bencher.iter(|| Chain::open(dir.path()).expect("the chain")));
        group.bench_function("plan", |bencher| bencher.iter(|| Plan::new(&chain, chain.newest()).expect("a plan").pages()));
        group.throughput(Throughput::Bytes((PAGES * PAGE_SIZE) as u64));
        let plan = Plan::new(&chain, chain.newest()).expect("a plan");
        group.bench_function("fill", |bencher| {
            bencher.iter(|| plan.fill(&mut MemoryDigest::default(), &mut |_, _| {}).expect("sound pages"));
        });
    }
}

/// A chain whose epochs have whole pages, or changes of them where the format lets them.
fn write(dir: &std::path::Path, changes: bool) {
    let memory = vec![PageRun { first: Gfn(0), count: PAGES as u64 }];
    let new = NewChain { memory, device_runs: 0, vcpus: 1, machine: serde_json::Value::Null };
    let mut store = Writer::create(dir, &new, WriterOptions::default()).expect("a store");
    let mut encoder = BlockEncoder::new(Compression::default());
    let mut content = Pages::new();
    let mut pages = content.pages(Content::Words, PAGES);
    let mut depths = [0; PAGES / 16];
    let mut random = Random(3);
    for epoch in (1..=EPOCHS).map(EpochId) {
        let mut frames = Vec::new();
        let mut writer = EpochWriter::new(store.description().chain, epoch);
        for at in 0..if epoch.0 == 1 { PAGES / 16 } else { BLOCKS } {
            let number = if epoch.0 == 1 { at } else { random.below(PAGES / 16) };
            let range = number * 16..number * 16 + 16;
            let before = pages[range.clone()].to_vec();
            pages[range.clone()].iter_mut().for_each(|page| content.change_words(page));
            let block = &block(&pages)[range];
            depths[number] = if epoch.0 > 1 && changes { (depths[number] + 1) % (CHANGES_DEPTH_MAX + 1) } else { 0 };
            if depths[number] > 0 {
                let changed =
                    block.iter().zip(&before).map(|((gfn, page), before)| (*gfn, *page, ChangedWords::between(before, page)));
                writer.changes(&mut frames, &changed.collect::<Vec<_>>()).expect("a few words");
            } else {
                writer.pages(&mut frames, &mut encoder, block).expect("a block");
            }
        }
        writer.state(&mut frames, &[]).expect("no state");
        let commit = Commit { epoch, totals: writer.totals(), ..Commit::default() };
        let complete = Line::behind(store.description().chain, store.head()).complete(commit);
        store.complete(&frames, &complete).expect("an epoch");
    }
    store.close(true).expect("the end of the chain");
}
