//! One host: what runs on it, and its disk.

use crate::replica::proto::{EpochKey, Primary, Record, Standby};
use crate::replica::register::Incarnation;

/// What a kill leaves.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) epochs: Vec<EpochKey>,
    /// So many of them are durable.
    pub(super) durable: usize,
    pub(super) record: Option<Record>,
}

impl Store {
    /// Durable epochs behind `newest`, with the one that each follows.
    pub(super) fn durable_behind(&self, newest: Option<EpochKey>) -> Vec<(EpochKey, Option<EpochKey>)> {
        let from = newest.map_or(0, |newest| self.epochs.iter().rposition(|at| *at == newest).map_or(0, |at| at + 1));
        let durable = self.epochs.get(..self.durable).unwrap_or_default();
        (from..durable.len()).map(|at| (durable[at], at.checked_sub(1).map(|before| durable[before]))).collect()
    }

    pub(super) fn append(&mut self, key: EpochKey) {
        self.epochs.push(key);
    }

    pub(super) fn is_durable(&self, key: EpochKey) -> bool {
        self.epochs.iter().rposition(|at| *at == key).is_some_and(|place| place < self.durable)
    }

    pub(super) fn make_durable(&mut self, key: EpochKey) -> bool {
        let place = self.epochs.iter().rposition(|at| *at == key);
        if let Some(place) = place {
            self.durable = self.durable.max(place + 1);
        }
        place.is_some()
    }
}

/// A stream of epochs to the other host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub(super) number: u64,
    /// It has had its base.
    pub(super) has_base: bool,
    /// Cuts until the base is complete.
    pub(super) base_in: u64,
    /// The last epoch in it.
    pub(super) sent: Option<EpochKey>,
    /// When the last one arrives: they come in order.
    pub(super) arrives: u64,
    pub(super) is_broken: bool,
}

/// What runs.
#[derive(Debug)]
pub(super) enum Process {
    Down,
    /// A process that waits for a primary.
    Idle,
    Primary {
        machine: Box<Primary>,
        runs: bool,
        /// Its guest has run.
        has_run: bool,
        /// The guest's newest instant.
        guest: Option<EpochKey>,
        stream: Option<(Incarnation, Stream)>,
        hello: Option<u64>,
    },
    Standby {
        machine: Box<Standby>,
        stream: u64,
    },
    /// It waits for somebody who accepts a loss.
    Stuck,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) process: Process,
    /// Which process it is: what was meant for one before is for nobody.
    pub(super) pid: u64,
    pub(super) store: Option<Store>,
    /// Nothing happens here before.
    pub(super) frozen_until: u64,
    /// When all that was appended is durable.
    pub(super) synced_at: u64,
    /// When all records are.
    pub(super) recorded_at: u64,
    /// Its clock, in percent of the true time.
    pub(super) clock_percent: u64,
}

impl Host {
    pub(super) const fn is_up(&self) -> bool {
        !matches!(self.process, Process::Down)
    }
}
