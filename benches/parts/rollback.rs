//! Going back to the last cut, without KVM: what the engine takes besides the copy itself.

use std::time::Duration;

use criterion::Criterion;
use slackwater::epoch::{Discard, Durability, Engine, EngineOptions, Start};
use slackwater::format::Trigger;
use slackwater::page::{Gfn, PAGE_SIZE, PageBytes};
use slackwater::track::SimulatedTracker;

use crate::compare::{compare, timed};
use crate::simulated::SimulatedGuest;

const MEMORY_PAGES: usize = 4096;
const DIRTY_PAGES: usize = 50;

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rollback");
    let mut guest = SimulatedGuest::new(MEMORY_PAGES);
    let memory = guest.memory.clone();
    let options =
        EngineOptions { budget_pages: MEMORY_PAGES, durability: Durability::None, rollback: true, ..EngineOptions::default() };
    let tracker = Box::new(SimulatedTracker::new(guest.ring.clone()));
    let sink = Box::new(Discard::default());
    let mut engine = Engine::new(memory.clone(), tracker, sink, Start::Fresh, options).expect("an engine");
    engine.cut(&mut guest, Trigger::Request).expect("an epoch");
    let mut rollbacks = |rounds: u64| -> Duration {
        let round = |_| {
            guest.touch(0..DIRTY_PAGES);
            timed(|| {
                engine.rollback(&mut guest).expect("a rollback");
            })
        };
        (0..rounds).map(round).sum()
    };
    let saved: Vec<PageBytes> = vec![[1; PAGE_SIZE]; DIRTY_PAGES];
    let copies = |rounds: u64| -> Duration {
        let copy =
            || saved.iter().zip(0..).for_each(|(page, gfn)| memory.fill_page(Gfn(gfn), page).expect("a page of the memory"));
        (0..rounds).map(|_| timed(copy)).sum()
    };
    let mut asked = false;
    group.bench_function("50_pages", |bencher| {
        asked = true;
        bencher.iter_custom(&mut rollbacks);
    });
    group.bench_function("plain_copy", |bencher| bencher.iter_custom(copies));
    compare(asked, "rollback: 50 pages over plain copy", || rollbacks(1), || copies(1));
}
