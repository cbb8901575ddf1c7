//! Ways to store a page whose earlier version is at hand: speed, and bytes a block, for pages of
//! which a few words changed and for such that changed wholly.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use slackwater::format::BLOCK_PAGES;
use slackwater::page::PAGE_SIZE;
use zstd::zstd_safe::{CCtx, CParameter};

use crate::content::{Content, Pages};

const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE_SIZE;
const BLOCKS: usize = 16;

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut content = Pages::new();
    let before = content.pages(Content::Words, BLOCKS * BLOCK_PAGES);
    let mut after = before.clone();
    after.iter_mut().for_each(|page| content.change_words(page));
    ways(criterion, "words_changed", &before, &after);
    ways(criterion, "all_changed", &before, &content.pages(Content::Words, BLOCKS * BLOCK_PAGES));
}

fn ways(criterion: &mut Criterion, name: &str, before: &[Box<[u8; PAGE_SIZE]>], after: &[Box<[u8; PAGE_SIZE]>]) {
    let flat = |pages: &[Box<[u8; PAGE_SIZE]>]| -> Vec<u8> { pages.iter().flat_map(|page| page.iter().copied()).collect() };
    let (before, after) = (flat(before), flat(after));
    let blocks = || before.chunks_exact(BLOCK_BYTES).zip(after.chunks_exact(BLOCK_BYTES));
    let mut group = criterion.benchmark_group(format!("delta/{name}"));
    group.throughput(Throughput::Bytes(after.len() as u64));
    let mut out = vec![0; 2 * BLOCK_BYTES];
    let mut zstd = CCtx::create();
    zstd.set_parameter(CParameter::CompressionLevel(1)).expect("a level");
    let mut differences = vec![0; BLOCK_BYTES];
    let mut words = Vec::with_capacity(2 * BLOCK_BYTES);

    let mut sizes = Vec::new();
    let mut way = |way: &str, encode: &mut dyn FnMut(&[u8], &[u8]) -> usize| {
        group.bench_function(way, |bencher| {
            let bytes: usize = blocks().map(|(before, after)| encode(before, after)).sum();
            sizes.push(format!("delta/{name}/{way}: {} bytes a page", bytes / (BLOCKS * BLOCK_PAGES)));
            bencher.iter(|| {
                for (before, after) in blocks() {
                    black_box(encode(before, after));
                }
            });
        });
    };
    way("zstd", &mut |_, after| zstd.compress2(&mut out[..], after).expect("a block"));
    way("zstd_prefix", &mut |before, after| {
        let mut zstd = CCtx::create();
        zstd.set_parameter(CParameter::CompressionLevel(1)).expect("a level");
        zstd.ref_prefix(before).expect("a prefix");
        zstd.compress2(&mut out[..], after).expect("a block")
    });
    way("xor_zstd", &mut |before, after| {
        differences.iter_mut().zip(before.iter().zip(after)).for_each(|(place, (before, after))| *place = before ^ after);
        zstd.compress2(&mut out[..], &differences).expect("a block")
    });
    way("words", &mut |before, after| {
        changed_words(before, after, &mut words);
        words.len()
    });
    way("words_zstd", &mut |before, after| {
        changed_words(before, after, &mut words);
        zstd.compress2(&mut out[..], &words).expect("a block")
    });
    sizes.dedup();
    sizes.iter().for_each(|size| eprintln!("{size}"));
}

/// For each 64 words of 8 bytes, a bit for each that changed, and those.
fn changed_words(before: &[u8], after: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for (before, after) in before.as_chunks::<512>().0.iter().zip(after.as_chunks::<512>().0) {
        let (before, after) = (before.as_chunks::<8>().0, after.as_chunks::<8>().0);
        let changed = (0..64).filter(|word| before[*word] != after[*word]).fold(0u64, |bits, word| bits | 1 << word);
        out.extend_from_slice(&changed.to_le_bytes());
        let mut rest = changed;
        while rest != 0 {
            out.extend_from_slice(&after[rest.trailing_zeros() as usize]);
            rest &= rest - 1;
        }
    }
}
