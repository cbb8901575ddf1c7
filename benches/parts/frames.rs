//! Frames of an epoch, written and read, beside the hash that both need and a copy of the same
//! bytes.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use slackwater::format::{
    BLOCK_PAGES, BlockEncoder, ChainId, Compression, EpochWriter, FRAME_HEADER_BYTES, FrameHeader, hash_bytes,
};
use slackwater::page::EpochId;

use crate::content::{Content, Pages, block};

const BLOCKS: usize = 32;

pub(crate) fn benches(criterion: &mut Criterion) {
    let pages = Pages::new().pages(Content::Random, BLOCKS * BLOCK_PAGES);
    let blocks: Vec<_> = pages.chunks(BLOCK_PAGES).map(block).collect();
    let chain = ChainId([7; 16]);
    // Raw pages, so that frames are all there is to do.
    let mut encoder = BlockEncoder::new(Compression::None);
    let mut frames = Vec::new();
    let mut write = |frames: &mut Vec<u8>| {
        frames.clear();
        let mut writer = EpochWriter::new(chain, EpochId(1));
        for block in &blocks {
            writer.pages(frames, &mut encoder, block).expect("a block");
        }
        writer.state(frames, &[]).expect("no state");
        writer.totals()
    };
    write(&mut frames);

    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Bytes(frames.len() as u64));
    let mut out = Vec::with_capacity(frames.len());
    group.bench_function("write", |bencher| bencher.iter(|| black_box(write(&mut out))));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let mut rest = black_box(&frames[..]);
            while !rest.is_empty() {
                let header = FrameHeader::parse(rest, chain).expect("a frame");
                let (frame, behind) = rest.split_at(usize::try_from(header.frame_bytes()).expect("a frame in memory"));
                header.check_body(&frame[FRAME_HEADER_BYTES..]).expect("a payload");
                rest = behind;
            }
        });
    });
    group.bench_function("hash", |bencher| bencher.iter(|| hash_bytes(black_box(&frames))));
    group.bench_function("copy", |bencher| {
        bencher.iter(|| {
            out.clear();
            out.extend_from_slice(black_box(&frames));
        });
    });
}
