//! Benches of the parts that need no KVM, each beside its floor: a copy of the same bytes, plain
//! zstd on the same blocks.
//!
//! `cargo bench` runs all, `cargo bench -- encode` those with that word in their name. Times on a
//! busy machine mean little: compare lines of one group of one run.

mod codec;
mod compare;
mod content;
mod delta;
mod frames;
mod pages;
mod pipeline;
mod restore;
mod rollback;
mod simulated;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let settings = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    let mut criterion = settings.sample_size(20).without_plots().configure_from_args();
    pages::benches(&mut criterion);
    codec::benches(&mut criterion);
    delta::benches(&mut criterion);
    frames::benches(&mut criterion);
    restore::benches(&mut criterion);
    pipeline::benches(&mut criterion);
    rollback::benches(&mut criterion);
    criterion.final_summary();
}
