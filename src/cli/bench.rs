//! `slackwater bench`: ways to track writes, compared on this machine.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::bench_pairs::OwnPairs;
use super::error::CliError;
use super::stderr;
use super::{draft, output};
use crate::bench::session::{Line, Plan};
use crate::bench::summary::Summary;
use crate::bench::workload::{Axis, Extent};
use crate::bench::{BenchError, report};
use crate::vmm::Stop;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AxisName {
    /// Guest memory, 256 MiB to 60 GiB.
    Memory,
    /// Dirty pages of an epoch, 16 to 64,000.
    Pages,
    /// Which pages they are.
    Pattern,
    /// vCPUs.
    Vcpus,
    /// The size of the ring, with epochs that end when it is full.
    Budget,
    /// Checkpoints a second: the whole engine, with a chain on disk.
    Rate,
    /// Rounds or none: pause, time to durability, and what the guest loses.
    Early,
    /// The choice of the hot set, against the least that any could cost.
    Hot,
    /// Outputs that wait: how much later requests over a network are answered.
    Outputs,
    /// A standby: what it adds to an answer, and how long a failover takes.
    Standby,
    /// A machine that goes to another host: how long it stands still.
    Migrate,
}

impl From<AxisName> for Axis {
    fn from(name: AxisName) -> Self {
        match name {
            AxisName::Memory => Self::Memory,
            AxisName::Pages => Self::Pages,
            AxisName::Pattern => Self::Pattern,
            AxisName::Vcpus => Self::Vcpus,
            AxisName::Budget => Self::Budget,
            AxisName::Rate => Self::Rate,
            AxisName::Early => Self::Early,
            AxisName::Hot => Self::Hot,
            AxisName::Outputs => Self::Outputs,
            AxisName::Standby => Self::Standby,
            AxisName::Migrate => Self::Migrate,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExtentName {
    /// The whole grid, under 15 minutes.
    Full,
    /// Under a minute.
    Quick,
    /// A moment: only to see that it works.
    Tiny,
}

impl From<ExtentName> for Extent {
    fn from(name: ExtentName) -> Self {
        match name {
            ExtentName::Full => Self::Full,
            ExtentName::Quick => Self::Quick,
            ExtentName::Tiny => Self::Tiny,
        }
    }
}

/// Compare ways to track writes on this machine: dirty ring and bitmaps, in turns, beside the
/// floors. docs/benchmarks.md says how to read it.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// How much to measure.
    #[arg(long, value_enum, default_value_t = ExtentName::Full)]
    extent: ExtentName,
    /// The same as `--extent quick`.
    #[arg(long, conflicts_with = "extent")]
    quick: bool,
    /// Vary only this; may be given more than once [default: all but
    /// `standby` and `migrate`].
    #[arg(long, value_enum, value_name = "NAME")]
    axis: Vec<AxisName>,
    /// The directory that chains are made in, and removed from [default: the current one].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Have requests of the axis `outputs` go over this tap as well, whose host has an address in
    /// 10.77.0.0/24.
    #[arg(long, value_name = "NAME")]
    tap: Option<String>,
    /// Print rows as JSON, one object a line; the last has the machine, the floors and what the
    /// rows come to.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print rows as comma-separated values, at the end.
    #[arg(long)]
    csv: bool,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write bench.json, bench.csv and bench.html into this directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The KVM device.
    #[arg(long, value_name = "FILE", default_value = crate::kvm::host::KVM_PATH)]
    kvm: PathBuf,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), CliError> {
        let axes =
            if self.axis.is_empty() { Axis::DEFAULT.to_vec() } else { self.axis.iter().copied().map(Axis::from).collect() };
        let extent = if self.quick { Extent::Quick } else { self.extent.into() };
        let (dir, tap) = (self.store.clone().unwrap_or_else(|| PathBuf::from(".")), self.tap.clone());
        let plan = Plan { kvm: self.kvm.clone(), dir, extent, axes, tap };
        if cfg!(debug_assertions) {
            stderr::note("note: built without optimisation (`cargo build --release`): the times are not to be believed");
        }
        // What can't be written is known before minutes have passed.
        for dir in self.store.iter().chain(&self.out) {
            std::fs::create_dir_all(dir).map_err(|source| match std::fs::read_link(dir) {
                Ok(to) if !dir.exists() => CliError::DanglingLink { link: dir.clone(), to },
                _ if dir.exists() => CliError::Usage(format!("{} is not a directory", dir.display())),
                _ => BenchError::Write { path: dir.clone(), source }.into(),
            })?;
        }
        self.html.iter().try_for_each(|path| draft::try_place(path))?;
        let bar = stderr::bar("measuring");
        bar.set_length(plan.steps().len() as u64);
        let mut shown: Option<&'static str> = None;
        let pairs = OwnPairs { kvm: &self.kvm, dir: &plan.dir, stop: &Stop::default() };
        let results = plan.run(&pairs, |lines: &[Line], done| {
            bar.set_position(done as u64);
            bar.suspend(|| lines.iter().try_for_each(|line| self.show(line, &mut shown)))
        })?;
        bar.finish_and_clear();
        let summary = Summary::of(&results);
        let json = || report::json(&results, &summary).map_err(|error| CliError::Output(error.into()));
        let csv = || report::csv(&results).map_err(|error| CliError::Output(error.into()));
        let html = || report::html(&results, &summary).map_err(BenchError::from);
        if self.json {
            output::json(&report::json_last(&results, &summary).map_err(|error| CliError::Output(error.into()))?)?;
        } else if self.csv {
            output::line(csv()?.trim_end())?;
        } else {
            output::line(format_args!(
                "\nAll times are in microseconds. An exit and its entry take {} (p50).\n",
                results.exit_us.p50
            ))?;
            summary.words.iter().try_for_each(|words| output::line(format_args!("{}. {}\n", words.about, words.text)))?;
        }
        if let Some(path) = &self.html {
            draft::write(path, &html()?)?;
        }
        if let Some(dir) = &self.out {
            draft::write(&dir.join("bench.json"), &json()?)?;
            draft::write(&dir.join("bench.csv"), &csv()?)?;
            draft::write(&dir.join("bench.html"), &html()?)?;
        }
        Ok(())
    }

    /// Prints a line as it comes, with names above the first of a kind.
    fn show(&self, line: &Line, shown: &mut Option<&'static str>) -> Result<(), CliError> {
        if self.csv {
            return Ok(());
        }
        if self.json {
            return output::json(&report::json_line(line).map_err(|error| CliError::Output(error.into()))?);
        }
        let kind = match line {
            Line::Cuts(_) => "cuts",
            Line::Early(_) => "early",
            Line::Hot(_) => "hot",
            Line::Outputs(_) => "outputs",
            Line::Standby(_) => "standby",
            Line::Migrate(_) => "migrate",
            Line::Rate(_) => "rate",
        };
        if shown.replace(kind) != Some(kind) {
            output::line(report::table_head(line))?;
        }
        output::line(report::table_line(line))
    }
}
