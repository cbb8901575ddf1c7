//! Machines with a standby, for `slackwater bench`: processes of this program, and clients in this
//! one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::control::call;
use super::error::CliError;
use super::local_pair::{Place, Unfinished, WAIT_LIMIT};
use super::own_process::OwnProcess;
use super::watched_clients::{WatchedClients, wire};
use crate::bench::BenchError;
use crate::bench::outputs::AnswerTimes;
use crate::bench::pairs::{FailoverTimes, MigratePoint, MigrateRun, Pairs, StandbyPoint, StandbyRun, UnderRequests};
use crate::clock::whole_us;
use crate::ledger::{LoadOptions, Outcome, Verdict};
use crate::replica::wire::Tls;
use crate::vmm::Stop;

const LEDGER: [&str; 4] = ["--guest", "ledger:pages=4096", "--memory", "64M"];
/// Round trips that are timed.
const ROUND_TRIPS: u32 = 500;
/// A machine that is not ready to go by then is no result.
const MIGRATION_LIMIT: Duration = Duration::from_secs(300);
/// Before a primary is killed, and after.
const AROUND_A_KILL: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(super) struct OwnPairs<'p> {
    pub(super) kvm: &'p Path,
    pub(super) dir: &'p Path,
    pub(super) stop: &'p Stop,
}

impl Pairs for OwnPairs<'_> {
    fn standby(&self, point: &StandbyPoint, time: Duration) -> Result<StandbyRun, BenchError> {
        let alone = self.alone(point, time).map_err(failed)?;
        let mut run = self.in_place(|place| self.paired(place, point, time))?;
        run.alone = alone;
        for _ in 0..point.kills {
            let (failover, silence) = self.in_place(|place| failover(place, point))?;
            run.failovers.push(failover);
            run.silences.push(silence);
        }
        Ok(run)
    }

    fn migrate(&self, point: &MigratePoint) -> Result<Vec<MigrateRun>, BenchError> {
        (0..point.times).map(|_| self.in_place(|place| migrate(place, point))).collect()
    }
}

impl OwnPairs<'_> {
    /// What `play` comes to in a place that is made and removed.
    fn in_place<T>(&self, play: impl Fn(&Place<'_>) -> Result<T, Unfinished>) -> Result<T, BenchError> {
        let scratch = self.scratch().map_err(failed)?;
        let place = Place { scratch: scratch.path(), stores: scratch.path(), kvm: self.kvm, stop: self.stop };
        match play(&place) {
            Ok(played) => Ok(played),
            Err(Unfinished::Failed(error)) => Err(failed(*error)),
            Err(Unfinished::TooBusy) => Err(failed(CliError::Check {
                what: "this host is too busy: one process did not hear of the other in time, and took it for dead".to_owned(),
            })),
        }
    }

    fn scratch(&self) -> Result<tempfile::TempDir, CliError> {
        let made = tempfile::Builder::new().prefix("slackwater-bench-").tempdir_in(self.dir);
        made.map_err(|source| CliError::File { path: self.dir.to_owned(), step: "making a directory", source })
    }

    /// A machine without a standby, whose epochs are released when the chain has them.
    fn alone(&self, point: &StandbyPoint, time: Duration) -> Result<UnderRequests, CliError> {
        let scratch = self.scratch()?;
        let network = scratch.path().join("network");
        let wire = wire(&network)?;
        let machine = OwnProcess::start("checkpoint", |command| {
            command.args(LEDGER).args(["--outputs", "held", "--durability", "none", "--json"]);
            command.arg("--store").arg(scratch.path().join("store")).arg("--kvm").arg(self.kvm);
            command.arg("--net").arg(format!("unix={}", network.display()));
        })?;
        let outcome = asked(WatchedClients::start(wire, load(point, Some(time)))?)?;
        let report = machine.end(WAIT_LIMIT)?;
        Ok(under_requests(&outcome, time, &json_of(&report, "")?))
    }

    fn paired(&self, place: &Place<'_>, point: &StandbyPoint, time: Duration) -> Result<StandbyRun, Unfinished> {
        let wire = wire(&place.network())?;
        let pair = place.start(&[&LEDGER[..], &["--json"]].concat())?;
        let outcome = asked(WatchedClients::start(wire, load(point, Some(time)))?)?;
        let report = pair.primary.end(WAIT_LIMIT)?;
        pair.standby.end(WAIT_LIMIT)?;
        let paired = under_requests(&outcome, time, &json_of(&report, "")?);
        let round_trip_us = round_trip(&place.scratch.join("tls"))?;
        Ok(StandbyRun { paired, round_trip_us, ..StandbyRun::default() })
    }
}

/// Kills a primary that is asked without end.
fn failover(place: &Place<'_>, point: &StandbyPoint) -> Result<(FailoverTimes, Duration), Unfinished> {
    let wire = wire(&place.network())?;
    let pair = place.start(&LEDGER)?;
    let clients = WatchedClients::start(wire, load(point, None))?;
    let goes_on = |from: usize| {
        place.wait_for("the clients got no answer", || Ok((clients.answered() > from).then_some(())))?;
        std::thread::sleep(AROUND_A_KILL);
        Ok::<_, Unfinished>(clients.answered())
    };
    let before = goes_on(0)?;
    let mut survivor = pair.kill_primary(place)?;
    survivor.wait_for_takeover(place)?;
    goes_on(clients.answered())?;
    let silence = clients.longest_silence_after(before);
    sound(&clients.finish()?)?;
    let report = json_of(&survivor.standby.end(WAIT_LIMIT)?, "/failover_us")?;
    let part = |name: &str| number(&report, name);
    let times = FailoverTimes {
        detect: part("/detect"),
        witness: part("/witness"),
        apply: part("/apply"),
        first_run: part("/first_run"),
        total: part("/total"),
    };
    Ok((times, silence))
}

fn migrate(place: &Place<'_>, point: &MigratePoint) -> Result<MigrateRun, Unfinished> {
    place.prepare()?;
    let memory = point.memory_bytes.to_string();
    let options = ["--tracker", point.tracker];
    let (standby, address) = place.start_standby(&options)?;
    let control = place.scratch.join("control");
    let socket = control.display().to_string();
    let machine = ["--guest", point.guest, "--memory", &memory, "--control", &socket, "--json"];
    let mut primary = place.start_primary(&[&machine[..], &options].concat())?;
    place.wait_for("the machine did not run", || {
        primary.check()?;
        let status = call(&control, "GET", "/status", &Value::Null);
        Ok(status.is_ok_and(|status| status["role"] == "solo" && number(&status, "/epochs") > 0.0).then_some(()))
    })?;
    let wanted = json!({ "to": address, "downtime_us": 1_000_000, "within_us": whole_us(MIGRATION_LIMIT) });
    let moved = call(&control, "POST", "/migrate", &wanted)?;
    let report = json_of(&primary.end(WAIT_LIMIT)?, "")?;
    let taken = json_of(&standby.end(WAIT_LIMIT)?, "/failover_us")?;
    Ok(MigrateRun {
        seeding_us: number(&moved, "/seeding_us"),
        parked_us: number(&moved, "/downtime_us"),
        first_run_us: number(&taken, "/apply") + number(&taken, "/first_run"),
        pause_us: number(&report, "/pause_us/p50"),
        tracking_us: number(&report, "/phases_us/harvest") + number(&report, "/phases_us/reset"),
    })
}

fn load(point: &StandbyPoint, time: Option<Duration>) -> LoadOptions {
    LoadOptions { clients: point.clients, pages: point.pages, time, give_up: Some(WAIT_LIMIT), ..LoadOptions::default() }
}

/// What clients came to that end by themselves.
fn asked(clients: WatchedClients) -> Result<Outcome, CliError> {
    while !clients.have_ended() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let outcome = clients.finish()?;
    sound(&outcome)?;
    Ok(outcome)
}

/// What contradicts itself, or was never answered, is no measurement.
fn sound(outcome: &Outcome) -> Result<(), CliError> {
    match &outcome.verdict {
        Verdict::Violation(violation) => Err(CliError::Check { what: violation.to_string() }),
        _ if outcome.report.answered == 0 => Err(CliError::Check { what: "the clients got no answer".to_owned() }),
        _ => Ok(()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and times of seconds")]
fn under_requests(outcome: &Outcome, time: Duration, report: &Value) -> UnderRequests {
    let latency = &outcome.report.latency;
    let answers = AnswerTimes { p50: latency.p50_us as f64, p95: latency.p95_us as f64, p99: latency.p99_us as f64 };
    let answered = outcome.report.answered as f64;
    UnderRequests {
        answers,
        answers_per_s: answered / time.as_secs_f64().max(1e-9),
        epoch_bytes: number(report, "/bytes_written") / number(report, "/epochs").max(1.0),
    }
}

/// A part of the last line of what a process has printed.
fn json_of(output: &str, pointer: &str) -> Result<Value, CliError> {
    let line = output.lines().last().unwrap_or_default();
    let report: Option<Value> = serde_json::from_str(line).ok();
    let part = report.and_then(|mut report| report.pointer_mut(pointer).map(Value::take));
    part.ok_or_else(|| CliError::Check { what: format!("a process has not reported `{pointer}`, but `{line}`") })
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_default()
}

/// There and back over TLS on this host: the median.
fn round_trip(tls: &Path) -> Result<f64, CliError> {
    let system = |source| CliError::System { step: "measuring the round trip", source };
    let listener = TcpListener::bind("127.0.0.1:0").map_err(system)?;
    let address = listener.local_addr().map_err(system)?;
    let (one, two) = (Tls::load(&tls.join("one"))?, Tls::load(&tls.join("two"))?);
    let echoes = std::thread::spawn(move || {
        let Ok((stream, _)) = listener.accept() else { return };
        let Ok(mut stream) = two.accept(stream, WAIT_LIMIT) else { return };
        let mut bytes = [0; 64];
        // It ends with the connection.
        while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).and_then(|()| stream.flush()).is_ok() {}
    });
    let mut stream = one.connect(TcpStream::connect(address).map_err(system)?, WAIT_LIMIT)?;
    let mut times = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let (begun, mut bytes) = (Instant::now(), [0; 64]);
        stream.write_all(&bytes).and_then(|()| stream.flush()).and_then(|()| stream.read_exact(&mut bytes)).map_err(system)?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    drop(stream);
    if echoes.join().is_err() {
        return Err(CliError::Check { what: "the thread that answers panicked".to_owned() });
    }
    Ok(crate::bench::stats::median(times))
}

fn failed(error: CliError) -> BenchError {
    BenchError::Pair(Box::new(error))
}
