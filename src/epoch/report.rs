//! What an engine did, in numbers.

use std::time::Duration;

use serde::Serialize;

use super::shared::Progress;
use super::times::{Distribution, Times, us};
use crate::format::{Phases, Trigger};

/// How often each trigger ended an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Triggers {
    /// A ring was full, or the VMM's share of the budget was used.
    pub ring_full: u64,
    /// The interval was over.
    pub interval: u64,
    /// Somebody asked; the base is one of these.
    pub request: u64,
    /// The last.
    pub r#final: u64,
}

/// The phases of a cut, or the median of each over all, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PhasesReport {
    /// From the first kick to the last vCPU parked.
    pub kick: f64,
    /// Capturing state.
    pub state: f64,
    /// Reading the log.
    pub harvest: f64,
    /// Copying pages.
    pub copy: f64,
    /// Protecting pages again.
    pub reset: f64,
}

impl From<&Phases> for PhasesReport {
    fn from(phases: &Phases) -> Self {
        Self {
            kick: us(phases.kick_ns),
            state: us(phases.state_ns),
            harvest: us(phases.harvest_ns),
            copy: us(phases.copy_ns),
            reset: us(phases.reset_ns),
        }
    }
}

/// What going back to the last cut came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RollbackReport {
    /// How often.
    pub count: u64,
    /// Pages put back in all.
    pub pages: u64,
    /// How often tracking was lost, and all memory was compared.
    pub compared: u64,
    /// From the first kick to the last vCPU's going on.
    pub time_us: Distribution,
    /// Each phase; `copy` is the copy back, and `state` putting state back.
    pub phases_us: PhasesReport,
}

/// What an engine did since it was started. Base and recovery epochs are left out of the
/// distributions and of `max_epoch_pages`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Epochs in the chain.
    pub epochs: u64,
    /// Of these, durable ones.
    pub durable_epochs: u64,
    /// Of these, those whose outputs may leave.
    pub released_epochs: u64,
    /// Of these, those that another host has acknowledged.
    pub acknowledged_epochs: u64,
    /// Epochs that were cut and could not be stored; their pages are in later ones.
    pub failed_epochs: u64,
    /// Pages captured.
    pub pages: u64,
    /// Of the stored, pages of zeros.
    pub zero_pages: u64,
    /// Captured, but unchanged and therefore not stored.
    pub unchanged_pages: u64,
    /// The most pages in an epoch.
    pub max_epoch_pages: u64,
    /// The bound.
    pub budget_pages: u64,
    /// Pages of the newest epoch that are left writable and taken into each.
    pub hot_pages: u64,
    /// Epochs above the bound: the VMM itself wrote more than its share in one go.
    pub over_budget_epochs: u64,
    /// Bytes of the pages captured.
    pub bytes_raw: u64,
    /// Bytes in the chain.
    pub bytes_written: u64,
    /// How often writes may have been missed, and all memory was compared.
    pub tracking_lost: u64,
    /// Of the pages captured, those that a round had taken before the cut, each mention of one
    /// counted.
    pub early_pages: u64,
    /// Rounds that took some.
    pub early_rounds: u64,
    /// Mentions of a page that its epoch had already, for it was written again after a round.
    pub repeated_pages: u64,
    /// Lists taken without an epoch, because storage was behind or a base was in progress.
    pub drains: u64,
    /// Epochs with a digest of all memory.
    pub audits: u64,
    /// Epochs during whose cut the VMM wrote guest memory after its state was captured. It must
    /// not: such an epoch's memory and state are not of one instant. What was written is in the
    /// next epoch.
    pub late_writes: u64,
    /// How often each trigger ended an epoch.
    pub triggers: Triggers,
    /// The pauses: kick, state, harvest, copy and reset together.
    pub pause_us: Distribution,
    /// Each phase.
    pub phases_us: PhasesReport,
    /// From the cut until the epoch was durable in the first sink: epochs of which the engine
    /// knows.
    pub durable_after_us: Distribution,
    /// Waiting for staging or for storage, by policy.
    pub stall_us: Distribution,
    /// Going back to the last cut.
    pub rollback: RollbackReport,
    /// What copying as many pages as the last epoch had takes alone, measured at the end of the
    /// run.
    pub copy_floor_us: f64,
}

/// The time of a stop, and of each of its phases.
#[derive(Debug)]
struct PhaseTimes {
    all: Times,
    kick: Times,
    state: Times,
    harvest: Times,
    copy: Times,
    reset: Times,
}

impl PhaseTimes {
    fn new() -> Self {
        let [all, kick, state, harvest, copy, reset] = std::array::from_fn(|_| Times::new());
        Self { all, kick, state, harvest, copy, reset }
    }

    fn record(&mut self, phases: &Phases) {
        self.all.record(phases.pause_ns());
        self.kick.record(phases.kick_ns);
        self.state.record(phases.state_ns);
        self.harvest.record(phases.harvest_ns);
        self.copy.record(phases.copy_ns);
        self.reset.record(phases.reset_ns);
    }

    fn medians(&self) -> PhasesReport {
        PhasesReport {
            kick: self.kick.median(),
            state: self.state.median(),
            harvest: self.harvest.median(),
            copy: self.copy.median(),
            reset: self.reset.median(),
        }
    }
}

/// Counts as an engine goes.
#[derive(Debug)]
pub(super) struct Counts {
    report: Report,
    cuts: PhaseTimes,
    stall: Times,
    rollbacks: PhaseTimes,
}

/// One rollback, as the counts see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RollbackCount {
    pub(super) phases: Phases,
    pub(super) pages: u64,
    pub(super) compared: bool,
}

/// One epoch, as the counts see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct EpochCount {
    pub(super) trigger: Trigger,
    pub(super) phases: Phases,
    pub(super) pages: u64,
    /// What rounds took of it: pages, and in how many rounds.
    pub(super) early: (u64, u64),
    /// Mentions of a page that it had already.
    pub(super) repeated_pages: u64,
    /// A base or a recovery.
    pub(super) whole: bool,
    pub(super) audited: bool,
}

impl Counts {
    pub(super) fn new(budget_pages: u64) -> Self {
        Self {
            report: Report { budget_pages, ..Report::default() },
            cuts: PhaseTimes::new(),
            stall: Times::new(),
            rollbacks: PhaseTimes::new(),
        }
    }

    pub(super) fn epoch(&mut self, epoch: &EpochCount) {
        let report = &mut self.report;
        report.pages += epoch.pages;
        report.bytes_raw = report.pages * crate::page::PAGE_SIZE_U64;
        report.early_pages += epoch.early.0;
        report.early_rounds += epoch.early.1;
        report.repeated_pages += epoch.repeated_pages;
        report.audits += u64::from(epoch.audited);
        let trigger = match epoch.trigger {
            Trigger::RingFull => &mut report.triggers.ring_full,
            Trigger::Interval => &mut report.triggers.interval,
            Trigger::Request => &mut report.triggers.request,
            Trigger::Final => &mut report.triggers.r#final,
        };
        *trigger += 1;
        self.stall.record(epoch.phases.stall_ns);
        if epoch.whole {
            return;
        }
        report.over_budget_epochs += u64::from(epoch.pages > report.budget_pages);
        report.max_epoch_pages = report.max_epoch_pages.max(epoch.pages);
        self.cuts.record(&epoch.phases);
    }

    pub(super) fn rollback(&mut self, rollback: &RollbackCount) {
        let report = &mut self.report.rollback;
        report.count += 1;
        report.pages += rollback.pages;
        report.compared += u64::from(rollback.compared);
        self.rollbacks.record(&rollback.phases);
    }

    pub(super) const fn hot_pages(&mut self, pages: u64) {
        self.report.hot_pages = pages;
    }

    /// What the newest collection took unlisted.
    pub(super) const fn hot(&self) -> u64 {
        self.report.hot_pages
    }

    pub(super) const fn drain(&mut self) {
        self.report.drains += 1;
    }

    pub(super) const fn tracking_lost(&mut self) {
        self.report.tracking_lost += 1;
    }

    pub(super) const fn late_writes(&mut self) {
        self.report.late_writes += 1;
    }

    pub(super) fn copy_floor(&mut self, floor: Duration) {
        self.report.copy_floor_us = us(u64::try_from(floor.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn report(&self, progress: &Progress, durable_after_us: Distribution) -> Report {
        Report {
            durable_after_us,
            epochs: progress.epochs,
            durable_epochs: progress.durable_epochs,
            released_epochs: progress.released_epochs,
            failed_epochs: progress.failed_epochs,
            bytes_written: progress.bytes_written,
            zero_pages: progress.zero_pages,
            unchanged_pages: progress.unchanged_pages,
            pause_us: self.cuts.all.distribution(),
            stall_us: self.stall.distribution(),
            phases_us: self.cuts.medians(),
            rollback: RollbackReport {
                time_us: self.rollbacks.all.distribution(),
                phases_us: self.rollbacks.medians(),
                ..self.report.rollback
            },
            ..self.report.clone()
        }
    }
}
