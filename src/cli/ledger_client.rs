//! `slackwater ledger-client`: asks the guest `ledger`, and finds out whether it ever went back.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;

use super::error::CliError;
use super::output;
use super::units::{at_least_one, time_above_zero};
use crate::clock::whole_us;
use crate::ledger::{Load, LoadOptions, Outcome, UdpWire, UnixWire, Verdict, Violation, Wire, WireError, run};

/// Send requests to the guest `ledger` and check its answers.
///
/// The guest keeps one hash over all requests. An answer that shows that the guest went on from a
/// state behind what it had answered ends the run, with exit code 1.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("wire").required(true).args(["unix", "udp"])))]
pub(super) struct LedgerClient {
    /// Listen at this Unix socket, as what the VMM's network device connects to. VMMs may come and
    /// go.
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Send to this address through the host's network, to a guest behind a tap.
    #[arg(long, value_name = "IP:PORT")]
    udp: Option<SocketAddrV4>,
    /// The guest's address behind the Unix socket.
    #[arg(long, value_name = "IP:PORT", default_value_t = GUEST, conflicts_with = "udp")]
    guest: SocketAddrV4,
    /// How many clients ask at the same time, each one request after the other. A guest knows 64
    /// over its whole life.
    #[arg(long, value_name = "N", default_value_t = 1)]
    clients: usize,
    /// Stop after so many answers.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    requests: Option<NonZeroU64>,
    /// Stop after this time [default: go on until a signal].
    #[arg(long, value_name = "TIME", value_parser = time_above_zero)]
    time: Option<Duration>,
    /// Pages that each request has the guest write to.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pages: u32,
    /// Bytes of each request's payload, 1024 at the most.
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    payload: usize,
    /// Send a request again after this time without an answer.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = time_above_zero)]
    retry: Duration,
    /// Fail when nothing was answered for this time [default: go on].
    #[arg(long, value_name = "TIME", value_parser = time_above_zero)]
    give_up: Option<Duration>,
    /// Print what came of it as JSON.
    #[arg(long)]
    json: bool,
}

/// Where the guest is by default, as it is with its own defaults.
pub(super) const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 7077);

#[derive(Debug, Serialize)]
struct ClientReport {
    end: &'static str,
    answered: u64,
    resent: u64,
    latency_us: LatencyReport,
    longest_silence_us: u64,
    violation: Option<ViolationReport>,
}

#[derive(Debug, Serialize)]
struct LatencyReport {
    p50: u64,
    p95: u64,
    p99: u64,
    max: u64,
}

#[derive(Debug, Serialize)]
struct ViolationReport {
    kind: &'static str,
    client: u64,
    number: u64,
    text: String,
}

impl LedgerClient {
    pub(super) fn run(self) -> Result<(), CliError> {
        let options = LoadOptions {
            clients: self.clients,
            first_client: random_client()?,
            requests: self.requests.map(NonZeroU64::get),
            time: self.time,
            pages: self.pages,
            payload_bytes: self.payload,
            retry: self.retry,
            give_up: self.give_up,
        };
        let mut load = Load::new(options).map_err(|error| CliError::Usage(error.to_string()))?;
        let mut wire = self.wire()?;
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let handler = move || asked.store(true, Ordering::Relaxed);
        ctrlc::set_handler(handler).map_err(|error| CliError::Usage(format!("signal handler: {error}")))?;
        let outcome = run(&mut load, &mut *wire, &|| stop.load(Ordering::Relaxed)).map_err(of_wire)?;
        let report = ClientReport::new(&outcome);
        output::unless_gone(if self.json { output::json(&report) } else { report.print() })?;
        match outcome.verdict {
            Verdict::Done | Verdict::Stopped => Ok(()),
            Verdict::GaveUp => {
                let what = "the guest answers no more. One that went back behind what it had answered to all clients does the same, and so does one that knows 64 clients already";
                Err(CliError::Check { what: what.to_owned() })
            }
            Verdict::Violation(violation) => {
                Err(CliError::Check { what: format!("the guest lost what it had answered: {violation}") })
            }
        }
    }

    fn wire(&self) -> Result<Box<dyn Wire>, CliError> {
        match (&self.unix, self.udp) {
            (Some(path), _) => match UnixWire::new(path, self.guest) {
                Ok(wire) => Ok(Box::new(wire)),
                Err(WireError { step, source }) => Err(CliError::File { path: path.clone(), step, source }),
            },
            (None, Some(server)) => Ok(Box::new(UdpWire::new(server).map_err(of_wire)?)),
            (None, None) => Err(CliError::Usage("`--unix` or `--udp` says where the guest is".to_owned())),
        }
    }
}

fn of_wire(WireError { step, source }: WireError) -> CliError {
    CliError::System { step, source }
}

/// An id that no other run has.
fn random_client() -> Result<u64, CliError> {
    let mut bytes = [0; 8];
    // So few bytes come at once.
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| CliError::System { step: "reading random bytes", source: error.into() })?;
    // Not more than every reader of JSON keeps exactly.
    Ok(u64::from_le_bytes(bytes) >> 16)
}

impl ClientReport {
    fn new(outcome: &Outcome) -> Self {
        let (report, latency) = (&outcome.report, &outcome.report.latency);
        Self {
            end: match outcome.verdict {
                Verdict::Done => "done",
                Verdict::Stopped => "stopped",
                Verdict::GaveUp => "gave_up",
                Verdict::Violation(_) => "violation",
            },
            answered: report.answered,
            resent: report.resent,
            latency_us: LatencyReport { p50: latency.p50_us, p95: latency.p95_us, p99: latency.p99_us, max: latency.max_us },
            longest_silence_us: whole_us(report.longest_silence),
            violation: match &outcome.verdict {
                Verdict::Violation(violation) => Some(ViolationReport::new(violation)),
                _ => None,
            },
        }
    }

    fn print(&self) -> Result<(), CliError> {
        let Self { answered, resent, latency_us: LatencyReport { p50, p95, p99, max }, longest_silence_us, .. } = self;
        output::line(format_args!("{answered} requests answered, {resent} sent again"))?;
        output::line(format_args!("an answer takes {p50} us (p50), {p95} us (p95), {p99} us (p99), {max} us at the most"))?;
        output::line(format_args!("the longest silence was {longest_silence_us} us"))
    }
}

impl ViolationReport {
    fn new(violation: &Violation) -> Self {
        let (client, number) = violation.request();
        Self { kind: violation.kind(), client, number, text: violation.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::ledger::{Latency, LoadReport};

    /// Each object's keys are those that the schema requires, and it allows no others.
    fn compare(report: &Value, schema: &Value, at: &str) {
        let (Some(report), Some(properties)) = (report.as_object(), schema["properties"].as_object()) else { return };
        let mut required: Vec<_> = schema["required"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
        required.sort_unstable();
        let mut keys: Vec<_> = report.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, required, "{at}");
        assert_eq!(schema["additionalProperties"], false, "{at}");
        for (key, value) in report {
            compare(value, &properties[key], &format!("{at}.{key}"));
        }
    }

    #[test]
    fn the_schema_says_what_is_printed() {
        let schema: Value = serde_json::from_str(include_str!("../../docs/schema/ledger-client.schema.json")).unwrap();
        let violation = Violation::Back { client: 1, number: 2, count: 3, seen: 4 };
        let report = LoadReport { answered: 1, resent: 2, latency: Latency::default(), longest_silence: Duration::ZERO };
        let names = |value: &Value| value["enum"].as_array().unwrap().clone();
        for verdict in [Verdict::Done, Verdict::Stopped, Verdict::GaveUp, Verdict::Violation(violation)] {
            let value = serde_json::to_value(ClientReport::new(&Outcome { verdict, report })).unwrap();
            compare(&value, &schema, "report");
            assert!(names(&schema["properties"]["end"]).contains(&value["end"]), "{value}");
            let kind = &value["violation"]["kind"];
            assert!(kind.is_null() || names(&schema["properties"]["violation"]["properties"]["kind"]).contains(kind), "{value}");
        }
    }
}
