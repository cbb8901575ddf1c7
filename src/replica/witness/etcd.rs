//! A register in etcd, by its API v3 over HTTP with JSON.
//!
//! The key is `slackwater/NAME`, the value the register's JSON. A read is linearizable, so it goes
//! through the majority. A swap is one transaction: it compares the value (or that the key was
//! never made) and puts the new one, or else reads what is there.
//!
//! Endpoints are tried in turn, beginning with the last one that answered, until one answers or
//! the time is up. To repeat a swap at another endpoint is safe: its value is of its own, so it
//! succeeds once, and whoever finds it there has won. An attempt that got no answer may still be
//! carried out; then a failed compare counts, for it found another value than the expected one,
//! and no value comes back.
//!
//! # What is asked of the cluster
//! Nobody deletes the key or restores the cluster from an old snapshot. All endpoints are of one
//! cluster. Three members or more, or the one that there is decides.

use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{check_step, register, settle};
use super::fault::{WitnessFault, chain};
use super::http::{Http, is_refusal};
use super::{Swapped, Witness, WitnessError};
use crate::replica::register::Register;

/// How long to wait after all endpoints were tried: a cluster without a leader refuses at once.
const PAUSE: Duration = Duration::from_millis(20);

/// A register in etcd.
#[derive(Debug)]
pub struct EtcdWitness {
    http: Http,
    /// As URLs.
    endpoints: Vec<String>,
    key: String,
    limit: Duration,
    /// The one that answered last.
    first: usize,
    /// The id of the cluster that answered first.
    cluster: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Header {
    cluster_id: String,
}

#[derive(Debug, Deserialize)]
struct KeyValue {
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
struct Response {
    response_range: Option<Range>,
}

/// The answer to a range or a transaction. What is false or empty is left out.
#[derive(Debug, Deserialize)]
struct Answered {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

/// What became of one attempt.
enum Attempt {
    Answered(Answered),
    /// It surely was not carried out.
    Refused(WitnessFault),
    /// It may have been carried out, or be carried out later.
    Unknown(WitnessFault),
}

impl EtcdWitness {
    /// The register `name` in the cluster that has these endpoints, each `HOST:PORT`. Nothing is
    /// sent yet. Every call ends within `limit`.
    ///
    /// # Errors
    /// [`WitnessFault::NoCertificates`], with `tls`.
    pub fn new(endpoints: &[String], tls: bool, name: &str, limit: Duration) -> Result<Self, WitnessFault> {
        let scheme = if tls { "https" } else { "http" };
        Ok(Self {
            http: Http::new(tls)?,
            endpoints: endpoints.iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect(),
            key: format!("slackwater/{name}"),
            limit,
            first: 0,
            cluster: None,
        })
    }

    /// Asks one endpoint after the other. With the answer comes whether an attempt before it may
    /// still be carried out.
    fn ask(&mut self, path: &str, request: &Value) -> Result<(Answered, bool), WitnessError> {
        let deadline = Instant::now() + self.limit;
        let body = request.to_string();
        let count = self.endpoints.len();
        let mut last: Vec<Option<String>> = vec![None; count];
        let mut in_doubt = false;
        loop {
            for step in 0..count {
                let at = (self.first + step) % count;
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                // One that hangs leaves time for those behind it.
                let share = left / u32::try_from(count - step).unwrap_or(u32::MAX);
                match self.attempt(at, path, &body, share) {
                    Attempt::Answered(answered) => {
                        self.first = at;
                        return Ok((answered, in_doubt));
                    }
                    Attempt::Refused(fault) => note(&mut last, at, &fault),
                    Attempt::Unknown(fault) => {
                        in_doubt = true;
                        note(&mut last, at, &fault);
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !in_doubt || left.is_zero() {
                break;
            }
            sleep(PAUSE.min(left));
        }
        let fault = WitnessFault::Endpoints { attempts: last.into_iter().flatten().collect() };
        Err(if in_doubt { fault.unknown() } else { fault.refused() })
    }

    fn attempt(&mut self, at: usize, path: &str, body: &str, limit: Duration) -> Attempt {
        let Some(endpoint) = self.endpoints.get(at) else {
            return Attempt::Refused(WitnessFault::Endpoints { attempts: Vec::new() });
        };
        let url = format!("{endpoint}{path}");
        let headers = [("content-type", "application/json")];
        let answer = match self.http.send("POST", &url, &url, &headers, Some(body.as_bytes()), limit) {
            Ok(answer) => answer,
            Err(none) if none.unsent => return Attempt::Refused(none.fault),
            Err(none) => return Attempt::Unknown(none.fault),
        };
        match answer.status {
            200 => {}
            status if is_refusal(status) => return Attempt::Refused(answer.fault(&url)),
            _ => return Attempt::Unknown(answer.fault(&url)),
        }
        let answered: Answered = match serde_json::from_slice(&answer.body) {
            Ok(answered) => answered,
            Err(error) => return Attempt::Unknown(WitnessFault::Answer { url, reason: error.to_string() }),
        };
        let found = &answered.header.cluster_id;
        let known = self.cluster.get_or_insert_with(|| found.clone());
        if found != known {
            let fault = WitnessFault::OtherCluster { url, found: found.clone(), known: known.clone() };
            return Attempt::Unknown(fault);
        }
        Attempt::Answered(answered)
    }

    fn place(&self) -> String {
        format!("etcd key {}", self.key)
    }

    /// The register in what a range gave.
    fn found(&self, kvs: &[KeyValue]) -> Result<Option<Register>, WitnessFault> {
        let Some(first) = kvs.first() else { return Ok(None) };
        let bytes = STANDARD.decode(&first.value).map_err(|error| {
            let reason = format!("its value is not in base64: {error}");
            WitnessFault::NotARegister { place: self.place(), reason }
        })?;
        register(&self.place(), &bytes).map(Some)
    }

    fn transaction(&self, expected: Option<&Register>, new: &Register) -> Value {
        let key = STANDARD.encode(&self.key);
        let compare = match expected {
            None => json!({"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}),
            Some(expected) => {
                json!({"key": key, "target": "VALUE", "result": "EQUAL", "value": STANDARD.encode(expected.to_json())})
            }
        };
        json!({
            "compare": [compare],
            "success": [{"request_put": {"key": key, "value": STANDARD.encode(new.to_json())}}],
            "failure": [{"request_range": {"key": key}}],
        })
    }
}

fn note(last: &mut [Option<String>], at: usize, fault: &WitnessFault) {
    if let Some(last) = last.get_mut(at) {
        *last = Some(chain(fault));
    }
}

impl Witness for EtcdWitness {
    fn read(&mut self) -> Result<Option<Register>, WitnessError> {
        let (answered, _) = self.ask("/v3/kv/range", &json!({"key": STANDARD.encode(&self.key)}))?;
        self.found(&answered.kvs).map_err(WitnessFault::refused)
    }

    fn swap(&mut self, expected: Option<&Register>, new: &Register) -> Result<Swapped, WitnessError> {
        check_step(expected, new)?;
        let (answered, in_doubt) = self.ask("/v3/kv/txn", &self.transaction(expected, new))?;
        if answered.succeeded {
            return Ok(Swapped::Won);
        }
        let range = answered.responses.into_iter().find_map(|response| response.response_range);
        let range = range.ok_or_else(|| {
            let reason = "a transaction that failed gave no range".to_owned();
            WitnessFault::Answer { url: self.place(), reason }.unknown()
        })?;
        let found = self.found(&range.kvs).map_err(|fault| if in_doubt { fault.unknown() } else { fault.refused() })?;
        settle(&self.place(), expected, new, found)
    }
}
