//! Random lives of a guest under checkpoints, on storage that is slow, full and broken, with the
//! oracle at the end of each.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use slackwater::epoch::{
    Cut, Durability, Early, Engine, EngineError, EngineOptions, FullRing, NextRound, OnStorageError, Place, Start, WhenBehind,
};
use slackwater::format::{Compression, Trigger};
use slackwater::page::{EpochId, PAGE_SIZE};

use super::harness::{BUDGET, Counter, FOR_EVER, Fault, Moment, PAGES, RING, SHARE, World, gfn, options, page_of};

/// The most pages that the VMM writes in a cut until state was captured.
const CUT_WRITES: usize = 3;

/// The generator of Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub(super) fn fault(&mut self) -> Fault {
        let survivors = self.below(3);
        self.of(&[Fault::Reject, Fault::Reject, Fault::Latch { survivors }, Fault::LatchKept])
    }

    fn options(&mut self) -> EngineOptions {
        let retry_after = self.of(&[Duration::ZERO, Duration::ZERO, Duration::from_micros(300), FOR_EVER]);
        EngineOptions {
            budget_pages: BUDGET + self.below(60),
            share_pages: (SHARE + CUT_WRITES) as u64,
            slots: 2 + self.below(4),
            durability: self.of(&[
                Durability::Epoch,
                Durability::Group(Duration::ZERO),
                Durability::Group(Duration::from_micros(500)),
                Durability::Group(FOR_EVER),
                Durability::None,
            ]),
            compression: self.of(&[Compression::None, Compression::default(), Compression::default()]),
            version_pages: self.of(&[0, 3, 20, PAGES]),
            when_behind: self.of(&[WhenBehind::Lengthen, WhenBehind::Wait]),
            on_storage_error: if self.one_in(5) { OnStorageError::Stop } else { OnStorageError::Continue { retry_after } },
            audit_every: NonZeroU64::new(self.below(4) as u64),
            rollback: self.one_in(2),
            early: self.of(&[Early::Off, Early::Always]),
            ..options()
        }
    }
}

/// One life: from the start of an engine to its end.
struct Life<'w> {
    world: &'w mut World,
    engine: Engine<Counter>,
    random: &'w mut Random,
    durability: Durability,
    rollback: bool,
    captures_before: usize,
}

impl Life<'_> {
    /// Does what may wait for storage. If the sink is shut, it is opened before long.
    fn patiently<T>(&mut self, wait: impl FnOnce(&mut World, &mut Engine<Counter>) -> T) -> T {
        let Self { world, engine, .. } = self;
        if !world.disk.is_shut() {
            return wait(world, engine);
        }
        let disk = world.disk.clone();
        let (done, waits) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if waits.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
                    disk.open();
                }
            });
            let result = wait(world, engine);
            drop(done);
            result
        })
    }

    /// Cuts, again while the guest fails to park or to capture. False when the guest was halted.
    fn cut(&mut self, trigger: Trigger) -> bool {
        loop {
            let durable = match self.patiently(|world, engine| (world.cut(engine, trigger), engine.reached().durable)) {
                (Err(EngineError::Guest { .. }), _) => continue,
                (Err(EngineError::Storage { newest, .. }), _) => {
                    assert!(newest <= self.world.disk.durable() || self.durability == Durability::None);
                    return false;
                }
                (Err(error), _) => panic!("{error:?}"),
                (Ok(Cut::Lengthened { .. } | Cut::Skipped), durable) => {
                    assert!(!matches!(trigger, Trigger::Request | Trigger::Final), "a request was not answered");
                    durable
                }
                (Ok(Cut::Taken { .. }), durable) => durable,
            };
            assert!(durable <= self.world.disk.durable(), "{durable} is not durable");
            return true;
        }
    }

    /// Goes back to the last cut, which looks at memory. False when the guest was halted.
    fn rollback(&mut self) -> bool {
        match self.patiently(|world, engine| world.rollback(engine)) {
            Ok(_) => assert!(self.rollback),
            Err(EngineError::Guest { .. }) => {}
            Err(EngineError::NoRollback) => assert!(!self.rollback),
            Err(EngineError::NoCut) => assert_eq!(self.world.guest.snapshots.len(), self.captures_before),
            Err(EngineError::Storage { .. }) => return false,
            Err(error) => panic!("{error:?}"),
        }
        true
    }

    /// The guest writes a page: something new, zeros, what another page holds, what is there, some
    /// words of it, or what was there.
    fn write(&mut self, by_vmm: bool) -> bool {
        let gfn = gfn(self.random.below(PAGES));
        let mut page = [0; PAGE_SIZE];
        match self.random.below(8) {
            0 => {}
            1 => self.world.memory.read_page(gfn, &mut page).unwrap(),
            2 => self.world.memory.read_page(super::harness::gfn(self.random.below(PAGES)), &mut page).unwrap(),
            3 => {
                // What it was at an earlier cut.
                let snapshots = &self.world.guest.snapshots;
                if let Some(image) = snapshots.values().nth(self.random.below(snapshots.len().max(1))) {
                    page = page_of(image, gfn);
                }
            }
            4..=6 => {
                // Some words of what is there, perhaps more than a change takes.
                self.world.memory.read_page(gfn, &mut page).unwrap();
                for _ in 0..self.random.of(&[1, 3, 10, 300, 500]) {
                    let word = self.random.below(PAGE_SIZE / 8) * 8;
                    page[word..word + 8].copy_from_slice(&self.random.next().to_le_bytes());
                }
            }
            _ => page = self.world.fresh_page(),
        }
        if by_vmm {
            self.world.vmm_write_page(gfn, &page);
            self.world.memory.written().len() >= SHARE
        } else {
            self.world.write_page(gfn, &page)
        }
    }

    /// A round, beside which the guest writes. False when the guest was halted.
    fn round(&mut self) -> bool {
        let yields_after = self.random.below(8);
        let seed = self.random.next();
        let (memory, simulated) = (self.world.memory.clone(), self.world.simulated.clone());
        let (beside, asked, full) = (RefCell::new(Random(seed)), Cell::new(0), Cell::new(false));
        let round = self.engine.round(Place::Middle, &|| {
            let mut beside = beside.borrow_mut();
            // A vCPU whose ring is full is out of the guest.
            while !full.get() && beside.one_in(2) {
                let gfn = gfn(beside.below(PAGES));
                let mut page = [0; PAGE_SIZE];
                page[..8].copy_from_slice(&beside.next().to_le_bytes());
                memory.fill_page(gfn, &page).unwrap();
                full.set(simulated.write(gfn));
            }
            asked.set(asked.get() + 1);
            asked.get() > yields_after
        });
        let round = match round {
            Ok(round) => round,
            Err(EngineError::Storage { .. } | EngineError::Ended) => return false,
            Err(error) => panic!("{error:?}"),
        };
        let is_full = full.get() && self.engine.ring_full() == FullRing::Cut;
        !(is_full || round.next == NextRound::Cut) || self.cut(Trigger::RingFull)
    }

    /// One step. False when the guest was halted.
    fn step(&mut self) -> bool {
        match self.random.below(29) {
            0..=7 => {
                let by_vmm = self.random.one_in(4);
                for _ in 0..self.random.below(6) {
                    let full = self.write(by_vmm);
                    if full && (by_vmm || self.engine.ring_full() == FullRing::Cut) && !self.cut(Trigger::RingFull) {
                        return false;
                    }
                }
            }
            8..=11 => {
                let trigger = self.random.of(&[Trigger::Interval, Trigger::Interval, Trigger::RingFull, Trigger::Request]);
                return self.cut(trigger);
            }
            12 => self.world.disk.shut(),
            13 => self.world.disk.open(),
            14 | 15 => {
                let (more, fault) = (self.random.below(5) as u64, self.random.fault());
                self.world.disk.fail_in(more, fault);
            }
            16 => self.world.disk.fail_reopens(self.random.below(3) as u32),
            17 => {
                let space = self.random.below(300_000);
                self.world.disk.set_space(Some(space).filter(|space| *space < 200_000));
            }
            18 => {
                if self.random.one_in(2) {
                    for _ in 0..RING + self.random.below(RING) {
                        let _ = self.write(false);
                    }
                } else {
                    self.world.simulated.cut_next_reset_short(1 + self.random.below(RING));
                }
                return self.cut(Trigger::RingFull);
            }
            19 => {
                self.world.guest.fail_next_capture = self.random.one_in(2);
                self.world.guest.fail_next_park = self.random.one_in(2);
                for _ in 0..self.random.below(3) {
                    let page = self.world.fresh_page();
                    let gfn = gfn(self.random.below(PAGES));
                    self.world.guest.capture_writes.push((gfn, page));
                }
                self.world.guest.writes.clear();
                for moment in [Moment::Park, Moment::Capture, Moment::Capture, Moment::Resume, Moment::Restore] {
                    if self.random.one_in(2) {
                        self.world.plan(moment, gfn(self.random.below(PAGES)));
                    }
                }
            }
            20 => match self.patiently(|_, engine| engine.copy_base()) {
                Ok(_) => {}
                Err(EngineError::Storage { .. }) => return false,
                Err(error) => panic!("{error:?}"),
            },
            21..=23 => return self.rollback(),
            24..=27 => return self.round(),
            _ => {
                if self.durability != Durability::Group(FOR_EVER) {
                    let flushed = self.patiently(|_, engine| engine.flush());
                    let tip = self.world.disk.tip();
                    assert!(!flushed || self.engine.reached().appended == tip, "flushed, but {tip} is the tip");
                }
            }
        }
        true
    }

    /// The engine ends in order, or is dropped as it is.
    fn end(mut self, mut alive: bool, captures_before: usize) {
        alive = alive && (self.random.one_in(4) || self.cut(Trigger::Final));
        self.world.disk.open();
        if self.random.one_in(4) {
            drop(self.engine);
            self.world.oracle().unwrap();
            return;
        }
        let finished = self.engine.finish();
        self.world.check(&finished, captures_before);
        assert_eq!(finished.report.over_budget_epochs, 0, "{:?}", finished.report);
        let stored = self.world.disk.stored().last().map(|last| last.counter);
        let newest = self.world.guest.snapshots.last_key_value().map(|(counter, _)| *counter);
        if alive && finished.error.is_none() && self.world.guest.snapshots.len() > captures_before {
            assert_eq!(stored, newest, "the last epoch is missing, and nothing is said");
        }
    }
}

fn lives(seed: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut world = World::new();
    world.lies.cannot_tell = random.one_in(2);
    for _ in 0..1 + random.below(3) {
        let tip = world.disk.tip();
        let start = match tip {
            EpochId::NONE if random.one_in(2) => Start::InUse,
            EpochId::NONE => Start::Fresh,
            tip => Start::Restored(tip),
        };
        if start == Start::InUse {
            let pages = random.below(PAGES);
            world.fill((0..pages).map(|index| index * 7));
        }
        let options = random.options();
        println!("{start:?} {options:?}");
        let captures_before = world.guest.snapshots.len();
        let (durability, rollback) = (options.durability, options.rollback);
        let engine = world.engine(start, options);
        let mut life = Life { world: &mut world, engine, random: &mut random, durability, rollback, captures_before };
        for _ in 0..life.random.below(5) {
            life.write(true);
        }
        // The base of a fresh guest comes before it runs.
        let mut alive = start != Start::Fresh || life.cut(Trigger::Request);
        for _ in 0..10 + life.random.below(60) {
            alive = alive && life.step();
        }
        life.end(alive, captures_before);
        world = world.restored();
        world.oracle().unwrap();
    }
}

#[test]
fn random_lives_leave_what_the_guest_was() {
    for seed in 0..600 {
        lives(seed);
    }
}
