//! What all walks of a store add up to.

use super::damage::Damage;
use super::listing::{Segment, Store};
use super::report::{BranchReport, Progress, VerifyOptions, VerifyReport};
use crate::page::EpochId;

/// Bytes between two calls of the progress callback.
const PROGRESS_BYTES: u64 = 4 << 20;

pub(super) struct Tally<'p> {
    pub(super) report: VerifyReport,
    /// How many commit frames were read.
    pub(super) epochs: u64,
    damage_max: usize,
    progress: &'p mut dyn FnMut(Progress),
    bytes_done: u64,
    bytes_total: u64,
    progress_due: u64,
    /// The chains to walk, each with what was found once it was walked.
    chains: Vec<Option<Walked>>,
    /// The chain that was asked for, and those that it builds on, last first; none for the whole
    /// store.
    path: Option<Vec<usize>>,
}

enum Walked {
    /// Not yet.
    No,
    /// It is being walked.
    Begun,
    Done(Box<BranchReport>),
}

impl<'p> Tally<'p> {
    /// What is asked for of `store`: all of it, or the chains on `path`.
    pub(super) fn new(
        store: &Store,
        path: Option<Vec<usize>>,
        options: &VerifyOptions,
        progress: &'p mut dyn FnMut(Progress),
    ) -> Self {
        let wanted = |number: &usize| path.as_ref().is_none_or(|path| path.contains(number));
        let mut tally = Self {
            report: VerifyReport::default(),
            epochs: 0,
            damage_max: options.damage_max,
            progress,
            bytes_done: 0,
            bytes_total: (0..store.chains.len())
                .filter(wanted)
                .flat_map(|number| store.segments_of(number).0)
                .fold(0, |sum, segment| sum.saturating_add(segment.bytes)),
            progress_due: 0,
            chains: (0..store.chains.len()).map(|number| wanted(&number).then_some(Walked::No)).collect(),
            path,
        };
        if tally.path.is_none() {
            store.damage.iter().for_each(|damage| tally.damage(damage.clone()));
        }
        tally
    }

    /// A chain that is still to be walked: one that no other leads to, as long as there is one.
    pub(super) fn next(&self, store: &Store) -> Option<usize> {
        let is_due = |number: &usize| matches!(self.chains.get(*number), Some(Some(Walked::No)));
        let leads = |number: &usize| {
            let of = store.chains.get(*number)?.description.branch_of.as_ref()?;
            store.chain(&of.branch).filter(is_due)
        };
        let due = || (0..self.chains.len()).filter(is_due);
        due().find(|number| leads(number).is_none()).or_else(|| due().next())
    }

    /// Whether the walk of chain `number` is to begin now.
    pub(super) fn begins(&mut self, number: usize) -> bool {
        match self.chains.get_mut(number) {
            Some(Some(walked @ Walked::No)) => {
                *walked = Walked::Begun;
                true
            }
            _ => false,
        }
    }

    /// The last epoch of chain `number` that is asked for, if not all are.
    pub(super) fn stop_at(&self, store: &Store, number: usize) -> Option<u64> {
        let path = self.path.as_ref()?;
        let at = path.iter().position(|other| *other == number)?;
        let after = path.get(at.checked_sub(1)?)?;
        store.chains.get(*after)?.description.branch_of.as_ref().map(|of| of.epoch)
    }

    /// The walk of chain `number` is over.
    pub(super) fn end(&mut self, number: usize, found: BranchReport) {
        if let Some(walked) = self.chains.get_mut(number) {
            *walked = Some(Walked::Done(Box::new(found)));
        }
    }

    pub(super) fn damage(&mut self, damage: Damage) {
        if self.report.damage.len() < self.damage_max {
            self.report.damage.push(damage);
        } else {
            self.report.damage_omitted = self.report.damage_omitted.saturating_add(1);
        }
    }

    /// A segment of `bytes` is done with.
    pub(super) fn pass(&mut self, bytes: u64) {
        self.bytes_done = self.bytes_done.saturating_add(bytes);
    }

    /// Whether it is time to [`tell`](Self::tell).
    pub(super) fn is_due(&self, at: u64) -> bool {
        self.bytes_done.saturating_add(at) >= self.progress_due
    }

    /// Says how far the walk has come: to `at` in `segment`.
    pub(super) fn tell(&mut self, segment: &Segment, at: u64, epoch: u64) {
        let bytes = self.bytes_done.saturating_add(at);
        self.progress_due = bytes.saturating_add(PROGRESS_BYTES);
        (self.progress)(Progress {
            segment: segment.numbers.first,
            bytes,
            bytes_total: self.bytes_total,
            epoch: EpochId(epoch),
            epochs: self.epochs,
        });
    }

    /// The report, where chain `asked` was asked for, or the store whose chain in its own directory
    /// that is.
    pub(super) fn report(self, asked: usize) -> VerifyReport {
        let mut report = self.report;
        for (number, walked) in self.chains.into_iter().enumerate() {
            let Some(Walked::Done(found)) = walked else { continue };
            report.epochs = report.epochs.saturating_add(found.epochs);
            report.epochs_behind_damage = report.epochs_behind_damage.saturating_add(found.epochs_behind_damage);
            report.segments = report.segments.saturating_add(found.segments);
            report.bytes = report.bytes.saturating_add(found.bytes);
            if number == asked {
                report.newest = found.newest;
                report.torn_tail.clone_from(&found.torn_tail);
            }
            report.branches.push(*found);
        }
        report
    }
}
