//! What it costs that outputs wait: requests to the guest `ledger` with outputs held and free.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::stats::round;
use super::whole::Scratch;
use super::workload::{Axis, Extent, TrackerKind};
use crate::epoch::{Durability, EngineOptions, Report};
use crate::ledger::{Load, LoadOptions, LoadReport, UdpWire, UnixWire, Verdict, Wire, WireError, run};
use crate::vmm::{
    BuildOptions, GuestSpec, Limits, MachineSpec, NetBackend, NetSpec, NetworkReport, Protection, Running, Stop, Vm, VmmError,
};

const GUEST: &str = "ledger:pages=4096";
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 7077);
const MEMORY_BYTES: u64 = 64 << 20;
const BUDGET_PAGES: u64 = 4096;
const INTERVAL: Duration = Duration::from_millis(50);
/// The client that asks before all others.
const FIRST_CLIENT: u64 = 1000;
/// What the command has if nothing else is said.
const OUTPUT_DELAY: Duration = Duration::from_micros(200);

/// What requests go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputLink {
    /// A Unix socket.
    Unix,
    /// A tap, and the host's own network.
    Tap,
}

impl OutputLink {
    /// The name in tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Tap => "tap",
        }
    }
}

/// What is asked of the guest, and what its answers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputPoint {
    /// What requests go over.
    pub link: OutputLink,
    /// When an epoch is released.
    pub durability: Durability,
    /// Pages that a request has the guest write.
    pub pages: u32,
    /// Requests under way.
    pub clients: usize,
}

impl OutputPoint {
    /// How rows name its durability.
    pub(super) const fn durability_name(&self) -> &'static str {
        match self.durability {
            Durability::None => "none",
            Durability::Group(_) => "group",
            Durability::Epoch => "epoch",
        }
    }
}

/// The points of an extent, where the axis is asked for. With a tap, those with 8 pages a request
/// go over that as well.
#[must_use]
pub fn output_points(extent: Extent, axes: &[Axis], has_tap: bool) -> Vec<OutputPoint> {
    if !axes.contains(&Axis::Outputs) {
        return Vec::new();
    }
    let (none, group) = (Durability::None, Durability::Group(Duration::from_millis(1)));
    let points: &[(Durability, u32, usize)] = match extent {
        Extent::Full => &[
            (none, 1, 1),
            (none, 8, 1),
            (none, 64, 1),
            (none, 1, 16),
            (none, 8, 16),
            (none, 512, 1),
            (group, 8, 1),
            (group, 8, 16),
            (Durability::Epoch, 8, 1),
            (group, 1, 1),
            (group, 64, 1),
            (Durability::Epoch, 1, 1),
            (Durability::Epoch, 64, 1),
        ],
        Extent::Quick => &[(none, 8, 1), (none, 8, 16)],
        Extent::Tiny => &[(none, 8, 1)],
    };
    let over = |link| {
        points.iter().map(move |(durability, pages, clients)| OutputPoint {
            link,
            durability: *durability,
            pages: *pages,
            clients: *clients,
        })
    };
    over(OutputLink::Unix).chain(over(OutputLink::Tap).filter(|point| has_tap && point.pages == 8)).collect()
}

/// From a request's first sending to its answer, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AnswerTimes {
    /// The median.
    pub p50: f64,
    /// 95 of 100 are at most this.
    pub p95: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
}

/// What requests come to with outputs held and free. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputRow {
    /// `outputs`.
    pub axes: Vec<&'static str>,
    /// What requests go over.
    pub link: OutputLink,
    /// When an epoch is released: `none` (in the chain), `group` or `epoch` (durable).
    pub durability: &'static str,
    /// Pages that a request has the guest write.
    pub request_pages: u32,
    /// Requests under way.
    pub clients: u64,
    /// Requests that were answered with outputs held.
    pub requests: u64,
    /// Answers a second, held.
    pub held_per_s: f64,
    /// Answers a second, free.
    pub free_per_s: f64,
    /// The share of the free ones.
    pub throughput_share: f64,
    /// Held.
    pub held_us: AnswerTimes,
    /// Free.
    pub free_us: AnswerTimes,
    /// What nobody gets around: a free answer, the delay that is asked for, and a cut.
    pub floor_us: f64,
    /// The median by that.
    pub over_floor_p50: f64,
    /// 99 of 100 by that.
    pub over_floor_p99: f64,
    /// The pause of a cut, median.
    pub pause_us: f64,
    /// Packets that an epoch releases, on average over all epochs.
    pub packets_per_cut: f64,
}

/// A run.
struct Measured {
    load: LoadReport,
    seconds: f64,
    report: Report,
    network: NetworkReport,
}

/// Measures `point`: both ways, one after the other, for `time` each. The chain and the socket are
/// made in a new directory within `dir` and removed. A point over a tap goes over `tap`.
///
/// # Errors
/// [`BenchError`].
pub fn measure(kvm: &Path, dir: &Path, tap: Option<&str>, point: &OutputPoint, time: Duration) -> Result<OutputRow, BenchError> {
    let tap = tap.filter(|_| point.link == OutputLink::Tap);
    let free = measure_with((kvm, dir, tap), point, time, false)?;
    let held = measure_with((kvm, dir, tap), point, time, true)?;
    Ok(row(point, &free, &held))
}

fn measure_with(
    (kvm, dir, tap): (&Path, &Path, Option<&str>),
    point: &OutputPoint,
    time: Duration,
    holds: bool,
) -> Result<Measured, BenchError> {
    let scratch = Scratch::new(dir);
    std::fs::create_dir_all(&scratch.0).map_err(|source| BenchError::Wire(WireError { step: "making a directory", source }))?;
    let (mut wire, backend): (Box<dyn Wire + Send>, _) = match tap {
        Some(name) => (Box::new(UdpWire::new(SERVER).map_err(BenchError::Wire)?), NetBackend::Tap { name: name.to_owned() }),
        None => {
            let path = scratch.0.join("net");
            (Box::new(UnixWire::new(&path, SERVER).map_err(BenchError::Wire)?), NetBackend::Unix { path })
        }
    };
    let guest: GuestSpec = super::whole::guest(GUEST)?;
    let nets = vec![NetSpec { backend, mac: None, mtu: None }];
    let spec = MachineSpec { memory_bytes: MEMORY_BYTES, vcpus: 1, guest, nets, vsock: None };
    let options = BuildOptions { holds_outputs: holds, ..BuildOptions::default() };
    let tracking = TrackerKind::RingHot.tracking_with(BUDGET_PAGES, None, true);
    let mut vm = Vm::build_with(kvm, spec, tracking, &options)?;
    vm.load()?;
    let share_pages = vm.share_pages();
    let on_release = vm.devices().map(|devices| devices.hold_until_released(false, OUTPUT_DELAY)).transpose();
    let on_release = on_release.map_err(|source| VmmError::System { step: "starting a thread", source })?;
    let options = EngineOptions {
        budget_pages: usize::try_from(BUDGET_PAGES).unwrap_or(usize::MAX),
        share_pages,
        durability: point.durability,
        on_release,
        ..EngineOptions::default()
    };
    let engine = super::whole::engine(&mut vm, &scratch.0.join("store"), options, |tracker| tracker)?;
    let protection = Protection { engine, interval: Some(INTERVAL), base_first: true, share_pages };
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    let load_options = LoadOptions {
        clients: point.clients,
        pages: point.pages,
        time: Some(time),
        retry: Duration::from_millis(200),
        ..LoadOptions::default()
    };
    let mut load = Load::new(load_options).map_err(BenchError::Load)?;
    let first_options = LoadOptions { first_client: FIRST_CLIENT, requests: Some(1), ..LoadOptions::default() };
    let mut first = Load::new(first_options).map_err(BenchError::Load)?;
    let before = tap.map(|_| UdpWire::new(SERVER)).transpose().map_err(BenchError::Wire)?;
    let machine_stop = Stop::default();
    let done = machine_stop.clone();
    let clients = std::thread::spawn(move || {
        let stop = || asked.load(Ordering::Relaxed);
        // Over a tap, requests are lost until the guest has its driver and the host knows its
        // address. Answers that come late go to a socket that is gone.
        let reached = before.map_or(Ok(()), |mut wire| run(&mut first, &mut wire, &stop).map(|_| ()));
        let outcome = reached.and_then(|()| run(&mut load, wire.as_mut(), &stop));
        done.ask();
        // Open for as long as the machine runs.
        (outcome, wire)
    });
    // The clients end the run; should nothing be answered, it ends by itself.
    let limits = Limits { time: Some(time * 4 + Duration::from_secs(10)), epochs: None };
    let mut running = Running::start(vm, Some(protection), limits, machine_stop)?;
    running.supervise();
    let outcome = running.finish();
    stop.store(true, Ordering::Relaxed);
    let (clients, _wire) = clients.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let clients = clients.map_err(BenchError::Wire)?;
    if let Some(error) = outcome.error {
        return Err(error.into());
    }
    if let Verdict::Violation(violation) = clients.verdict {
        return Err(BenchError::Violation(violation));
    }
    let network = outcome.network.unwrap_or_default();
    Ok(Measured { load: clients.report, seconds: time.as_secs_f64(), report: outcome.report.unwrap_or_default(), network })
}

#[expect(clippy::cast_precision_loss, reason = "counts and times of seconds")]
fn row(point: &OutputPoint, free: &Measured, held: &Measured) -> OutputRow {
    let times = |load: &LoadReport| AnswerTimes {
        p50: load.latency.p50_us as f64,
        p95: load.latency.p95_us as f64,
        p99: load.latency.p99_us as f64,
    };
    let per_s = |run: &Measured| run.load.answered as f64 / run.seconds.max(1e-9);
    let (held_us, free_us) = (times(&held.load), times(&free.load));
    let pause_us = held.report.pause_us.p50;
    let floor_us = free_us.p50 + OUTPUT_DELAY.as_secs_f64() * 1e6 + pause_us;
    OutputRow {
        axes: vec![Axis::Outputs.as_str()],
        link: point.link,
        durability: point.durability_name(),
        request_pages: point.pages,
        clients: point.clients as u64,
        requests: held.load.answered,
        held_per_s: round(per_s(held)),
        free_per_s: round(per_s(free)),
        throughput_share: round(per_s(held) / per_s(free).max(1e-9)),
        held_us,
        free_us,
        floor_us: round(floor_us),
        over_floor_p50: round(held_us.p50 / floor_us.max(1e-9)),
        over_floor_p99: round(held_us.p99 / floor_us.max(1e-9)),
        pause_us,
        packets_per_cut: round(held.network.sent_packets as f64 / (held.report.epochs as f64).max(1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Distribution;
    use crate::ledger::Latency;

    #[test]
    fn a_row_has_the_floor_of_its_own_run() {
        let run = |p50_us, answered, epochs| Measured {
            load: LoadReport {
                answered,
                resent: 0,
                latency: Latency { p50_us, p95_us: 2 * p50_us, p99_us: 4 * p50_us, max_us: 9 * p50_us },
                longest_silence: Duration::ZERO,
            },
            seconds: 2.0,
            report: Report { epochs, pause_us: Distribution { p50: 50.0, p99: 90.0, max: 90.0 }, ..Report::default() },
            network: NetworkReport { sent_packets: answered, ..NetworkReport::default() },
        };
        let point = output_points(Extent::Full, &[Axis::Outputs], false)[4];
        let row = row(&point, &run(150, 2000, 40), &run(500, 1200, 600));
        assert_eq!((row.durability, row.clients, row.held_per_s, row.free_per_s), ("none", 16, 600.0, 1000.0));
        assert_eq!((row.floor_us, row.over_floor_p50, row.over_floor_p99), (400.0, 1.25, 5.0));
        assert_eq!((row.throughput_share, row.packets_per_cut), (0.6, 2.0));
    }

    #[test]
    fn every_mode_is_there() {
        let points = output_points(Extent::Full, &[Axis::Outputs], false);
        for durability in [Durability::None, Durability::Epoch] {
            assert!(points.iter().any(|point| point.durability == durability));
        }
        assert!(points.iter().any(|point| matches!(point.durability, Durability::Group(_)) && point.clients == 16));
        assert!(points.iter().all(|point| point.link == OutputLink::Unix));
        let both = output_points(Extent::Full, &[Axis::Outputs], true);
        assert_eq!(both[..points.len()], points);
        assert!(both.len() > points.len() && both[points.len()..].iter().all(|point| point.link == OutputLink::Tap));
        assert!(output_points(Extent::Full, &[Axis::Rate], true).is_empty());
    }
}
