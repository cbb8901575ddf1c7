//! A run of the harness: all points, one after the other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::BenchError;
use super::effort::{Costs, rate_time, stream_time};
use super::endtoend::{self, RatePoint, RateRow, rate_points};
use super::hot::{self, HotPoint, HotRow, hot_points};
use super::machine::Machine;
use super::outputs::{self, OutputPoint, OutputRow, output_points};
use super::pairs::{
    MigratePoint, MigrateRow, Pairs, StandbyPoint, StandbyRow, migrate_points, migrate_row, standby_points, standby_row,
};
use super::results::{Row, rows};
use super::runner::{measure, measure_exits, measure_fault};
use super::stats::Spread;
use super::streaming::{self, StreamPoint, StreamRow, stream_points};
use super::workload::{Axis, Extent, Point, points};

/// Exits that are timed, at the most.
const EXITS: usize = 20_000;
/// For how long, at the most.
const EXITS_TIME: Duration = Duration::from_millis(500);

/// What to measure, and with what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The KVM device.
    pub kvm: PathBuf,
    /// The directory that chains are made in.
    pub dir: PathBuf,
    /// How much.
    pub extent: Extent,
    /// What is varied.
    pub axes: Vec<Axis>,
    /// A tap that requests of the axis `outputs` go over, too. The host's network must lead
    /// 10.77.0.2 to it.
    pub tap: Option<String>,
}

/// A line of the results.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// Cuts at one point with one tracker.
    Cuts(Row),
    /// A run of the whole engine at a rate.
    Rate(RateRow),
    /// A run of the whole engine with rounds, or to compare with those.
    Early(StreamRow),
    /// The choice of the hot set.
    Hot(HotRow),
    /// Requests with outputs held and free.
    Outputs(OutputRow),
    /// A machine with a standby.
    Standby(StandbyRow),
    /// Machines that went to another host.
    Migrate(MigrateRow),
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Results {
    /// The machine.
    pub machine: Machine,
    /// What an exit costs, in microseconds.
    pub exit_us: Spread,
    /// The lines, in the order measured.
    pub lines: Vec<Line>,
}

impl Results {
    /// The rows of cuts.
    pub fn cuts(&self) -> impl Iterator<Item = &Row> {
        self.lines.iter().filter_map(|line| if let Line::Cuts(row) = line { Some(row) } else { None })
    }

    /// The rows of the whole engine with rounds and without.
    pub fn streams(&self) -> impl Iterator<Item = &StreamRow> {
        self.lines.iter().filter_map(|line| if let Line::Early(row) = line { Some(row) } else { None })
    }

    /// The rows of hot sets.
    pub fn hot(&self) -> impl Iterator<Item = &HotRow> {
        self.lines.iter().filter_map(|line| if let Line::Hot(row) = line { Some(row) } else { None })
    }

    /// The rows of outputs that wait.
    pub fn outputs(&self) -> impl Iterator<Item = &OutputRow> {
        self.lines.iter().filter_map(|line| if let Line::Outputs(row) = line { Some(row) } else { None })
    }

    /// The rows of the whole engine at a rate.
    pub fn rates(&self) -> impl Iterator<Item = &RateRow> {
        self.lines.iter().filter_map(|line| if let Line::Rate(row) = line { Some(row) } else { None })
    }
}

/// What a run goes through.
#[derive(Debug)]
pub struct Steps {
    points: Vec<Point>,
    streams: Vec<StreamPoint>,
    rates: Vec<RatePoint>,
    hot: Vec<HotPoint>,
    outputs: Vec<OutputPoint>,
    standbys: Vec<StandbyPoint>,
    migrations: Vec<MigratePoint>,
}

impl Plan {
    /// What the run goes through.
    #[must_use]
    pub fn steps(&self) -> Steps {
        Steps {
            points: points(self.extent, &self.axes),
            streams: stream_points(self.extent, &self.axes),
            rates: rate_points(self.extent, &self.axes),
            hot: hot_points(self.extent, &self.axes),
            outputs: output_points(self.extent, &self.axes, self.tap.is_some()),
            standbys: standby_points(self.extent, &self.axes),
            migrations: migrate_points(self.extent, &self.axes),
        }
    }

    /// Measures everything; `pairs` what takes two processes. `progress` is told each line as it
    /// comes, and how many steps are done.
    ///
    /// # Errors
    /// The first step that fails ends the run: [`BenchError`], or what `progress` returns.
    pub fn run<E: From<BenchError>>(
        &self,
        pairs: &dyn Pairs,
        mut progress: impl FnMut(&[Line], usize) -> Result<(), E>,
    ) -> Result<Results, E> {
        let start = Instant::now();
        let Steps { points, streams, rates, hot, outputs, standbys, migrations } = self.steps();
        let kvm: &Path = &self.kvm;
        let machine = Machine::probe(kvm)?;
        let exit_us = Spread::of(measure_exits(kvm, EXITS, EXITS_TIME)?);
        let costs = Costs { exit_us: exit_us.p50, fault_us: measure_fault(kvm)? };
        let mut results = Results { machine, exit_us, lines: Vec::new() };
        let mut done = 0;
        let mut step = |results: &mut Results, lines: Vec<Line>| {
            done += 1;
            progress(&lines, done)?;
            results.lines.extend(lines);
            Ok::<(), E>(())
        };
        for point in &points {
            let measured = measure(kvm, point, self.extent, &costs)?;
            step(&mut results, rows(point, &measured).into_iter().map(Line::Cuts).collect())?;
        }
        for stream in &streams {
            let rows = streaming::measure(kvm, &self.dir, stream, stream_time(self.extent))?;
            step(&mut results, rows.into_iter().map(Line::Early).collect())?;
        }
        for (index, rate) in rates.iter().enumerate() {
            let time = rate_time(self.extent, start.elapsed(), rates.len() - index);
            let row = endtoend::measure(kvm, &self.dir, rate, time)?;
            step(&mut results, vec![Line::Rate(row)])?;
        }
        for point in &hot {
            let row = hot::measure(kvm, &self.dir, point, costs.fault_us, stream_time(self.extent))?;
            step(&mut results, vec![Line::Hot(row)])?;
        }
        for point in &outputs {
            let row = outputs::measure(kvm, &self.dir, self.tap.as_deref(), point, stream_time(self.extent))?;
            step(&mut results, vec![Line::Outputs(row)])?;
        }
        for point in &standbys {
            let run = pairs.standby(point, stream_time(self.extent))?;
            step(&mut results, vec![Line::Standby(standby_row(point, &run))])?;
        }
        for point in &migrations {
            let runs = pairs.migrate(point)?;
            step(&mut results, vec![Line::Migrate(migrate_row(point, &runs))])?;
        }
        Ok(results)
    }
}

impl Steps {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.points.len()
            + self.streams.len()
            + self.rates.len()
            + self.hot.len()
            + self.outputs.len()
            + self.standbys.len()
            + self.migrations.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
