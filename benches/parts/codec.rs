//! Blocks of pages, beside plain zstd on the same bytes and a copy of them.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use slackwater::format::{BLOCK_PAGES, BlockDecoder, BlockEncoder, BlockPages, Compression, is_zero};
use slackwater::page::PAGE_SIZE;
use zstd::bulk::{Compressor, Decompressor};

use crate::compare::{compare, timed};
use crate::content::{Content, Pages, block};

const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE_SIZE;

/// Blocks of each kind, so that one block's content does not stay in the caches nearest to the
/// core.
const BLOCKS: usize = 32;

pub(crate) fn benches(criterion: &mut Criterion) {
    for content in Content::ALL {
        let pages = Pages::new().pages(content, BLOCKS * BLOCK_PAGES);
        encode(criterion, content, &pages);
        decode(criterion, content, &pages);
    }
    zero(criterion);
}

fn encode(criterion: &mut Criterion, content: Content, pages: &[Box<[u8; PAGE_SIZE]>]) {
    let mut group = criterion.benchmark_group(format!("encode/{}", content.name()));
    group.throughput(Throughput::Bytes((BLOCKS * BLOCK_BYTES) as u64));
    let blocks: Vec<_> = pages.chunks(BLOCK_PAGES).map(block).collect();
    let flat: Vec<u8> = pages.iter().flat_map(|page| page.iter().copied()).collect();

    let mut encoder = BlockEncoder::new(Compression::default());
    let mut out = Vec::with_capacity(2 * BLOCK_BYTES);
    let mut encode = || {
        for block in &blocks {
            out.clear();
            encoder.encode(&mut out, black_box(block)).expect("a block");
        }
    };
    group.bench_function("block", |bencher| bencher.iter(&mut encode));
    let mut plain = Compressor::new(1).expect("a compressor");
    let mut room = vec![0; zstd::zstd_safe::compress_bound(BLOCK_BYTES)];
    let mut compress = || {
        for block in flat.chunks_exact(BLOCK_BYTES) {
            black_box(plain.compress_to_buffer(black_box(block), &mut room[..]).expect("a block"));
        }
    };
    let mut asked = false;
    group.bench_function("zstd", |bencher| {
        asked = true;
        bencher.iter(&mut compress);
    });
    compare(asked, &format!("encode/{}: block over zstd", content.name()), || timed(&mut encode), || timed(&mut compress));
    group.bench_function("copy", |bencher| {
        bencher.iter(|| {
            for block in flat.chunks_exact(BLOCK_BYTES) {
                room[..BLOCK_BYTES].copy_from_slice(black_box(block));
            }
        });
    });
}

fn decode(criterion: &mut Criterion, content: Content, pages: &[Box<[u8; PAGE_SIZE]>]) {
    let mut group = criterion.benchmark_group(format!("decode/{}", content.name()));
    group.throughput(Throughput::Bytes((BLOCKS * BLOCK_BYTES) as u64));
    let mut encoder = BlockEncoder::new(Compression::default());
    let (mut blocks, mut compressed) = (Vec::new(), Vec::new());
    for pages in pages.chunks(BLOCK_PAGES) {
        let mut out = Vec::new();
        encoder.encode(&mut out, &block(pages)).expect("a block");
        blocks.push(out);
        let flat: Vec<u8> = pages.iter().flat_map(|page| page.iter().copied()).collect();
        compressed.push(zstd::bulk::compress(&flat, 1).expect("a block"));
    }

    let mut decoder = BlockDecoder::new();
    let mut out: Box<BlockPages> = Box::new([[0; PAGE_SIZE]; BLOCK_PAGES]);
    group.bench_function("block", |bencher| {
        bencher.iter(|| {
            for block in &blocks {
                decoder.decode(black_box(block), &mut out).expect("a block");
            }
        });
    });
    let mut plain = Decompressor::new().expect("a decompressor");
    let mut out = vec![0; BLOCK_BYTES];
    group.bench_function("zstd", |bencher| {
        bencher.iter(|| {
            for block in &compressed {
                black_box(plain.decompress_to_buffer(black_box(block), &mut out[..]).expect("a block"));
            }
        });
    });
}

/// Telling zeros from others: pages of zeros are read to their end, others only at their beginning.
fn zero(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("is_zero");
    group.throughput(Throughput::Bytes(BLOCK_BYTES as u64));
    for content in [Content::Zero, Content::Text] {
        let pages = Pages::new().pages(content, BLOCK_PAGES);
        group.bench_function(content.name(), |bencher| {
            bencher.iter(|| pages.iter().filter(|page| is_zero(black_box(page))).count());
        });
    }
}
