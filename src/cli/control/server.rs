//! Requests, and what they come to.

use std::fs::Permissions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tiny_http::{Header, Method, Request, Response, Server};

use super::super::error::CliError;
use super::machine::Machine;
use super::metrics;
use crate::clock::whole_us;
use crate::replica::migrate::{Migration, migrate};
use crate::replica::node::Node;
use crate::replica::witness::manual::Permission;
use crate::store::causes;
use crate::vmm::Stop;

/// The most bytes of a request.
const BODY_BYTES_MAX: u64 = 64 << 10;
/// Requests at once.
const REQUESTS_MOST: usize = 16;

/// The socket of one process. It is removed at the end.
#[derive(Debug)]
pub(in crate::cli) struct Control {
    machine: Arc<Machine>,
    socket: PathBuf,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What a request came to.
struct Said {
    code: u16,
    body: String,
    kind: &'static str,
}

impl Said {
    fn json(code: u16, value: &Value) -> Self {
        Self { code, body: format!("{value}\n"), kind: "application/json" }
    }

    fn error(code: u16, error: impl std::fmt::Display) -> Self {
        Self::json(code, &json!({ "error": error.to_string() }))
    }

    /// Nothing here can do that now.
    fn conflict(error: impl std::fmt::Display) -> Self {
        Self::error(409, error)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StandbyWanted {
    address: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MigrationWanted {
    to: String,
    downtime_us: u64,
    within_us: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromotionWanted {
    accept_risk: bool,
}

impl Control {
    /// Listens at `socket`, which only this user can use. One that a process has left behind is
    /// removed first.
    pub(in crate::cli) fn start(socket: &Path, pair: Option<(Arc<Node>, Permission)>, stop: Stop) -> Result<Self, CliError> {
        let failed = |source| CliError::File { path: socket.to_owned(), step: "making the control socket", source };
        match UnixStream::connect(socket) {
            Ok(_) => return Err(CliError::Usage(format!("`--control {}`: somebody listens there", socket.display()))),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(socket).map_err(failed)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(socket).map_err(failed)?;
        std::fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(failed)?;
        let server = Server::from_listener(listener, None).map_err(|error| failed(std::io::Error::other(error)))?;
        let machine = Arc::new(Machine::new(pair, stop));
        let is_over = Arc::new(AtomicBool::new(false));
        let serving = Serving { machine: machine.clone(), is_over: is_over.clone() };
        let thread = Builder::new().name("slackwater-http".to_owned()).spawn(move || serving.run(&server));
        Ok(Self { machine, socket: socket.to_owned(), is_over, thread: Some(thread.map_err(failed)?) })
    }

    /// What it reaches.
    pub(in crate::cli) fn machine(&self) -> &Machine {
        &self.machine
    }
}

impl Drop for Control {
    /// Waits for the requests that are under way: none has the machine any more then.
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        self.machine.ends();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the control socket panicked");
        }
        // It may be gone already.
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[derive(Clone)]
struct Serving {
    machine: Arc<Machine>,
    is_over: Arc<AtomicBool>,
}

impl Serving {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn run(&self, server: &Server) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        while !self.is_over() {
            let request = match server.recv_timeout(Duration::from_millis(50)) {
                Ok(Some(request)) => request,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "the control socket");
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            threads.retain(|thread| !thread.is_finished());
            if threads.len() >= REQUESTS_MOST {
                answer(request, Said::error(503, "too many requests are under way"));
                continue;
            }
            let serving = self.clone();
            let answers = move || {
                let mut request = request;
                let said = serving.said(&mut request);
                answer(request, said);
            };
            match Builder::new().name("slackwater-request".to_owned()).spawn(answers) {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::warn!(%error, "starting a thread"),
            }
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn said(&self, request: &mut Request) -> Said {
        let path = request.url().to_owned();
        let known = match path.as_str() {
            "/status" | "/metrics" => Method::Get,
            "/checkpoint" | "/standby" | "/migrate" | "/promote" | "/stop" => Method::Post,
            _ => return Said::error(404, format!("there is no {path}")),
        };
        if *request.method() != known {
            return Said::error(405, format!("{path} is asked for by {known}"));
        }
        let mut body = String::new();
        if let Err(error) = request.as_reader().take(BODY_BYTES_MAX).read_to_string(&mut body) {
            return Said::error(400, format!("the body can't be read: {error}"));
        }
        match path.as_str() {
            "/status" => match serde_json::to_value(self.machine.status()) {
                Ok(status) => Said::json(200, &status),
                Err(error) => Said::error(500, error),
            },
            "/metrics" => {
                let body = metrics::page(&self.machine.status());
                Said { code: 200, body, kind: "text/plain; version=0.0.4" }
            }
            "/checkpoint" => self.checkpoint(),
            "/standby" => with(&body, |wanted: StandbyWanted| self.standby(wanted)),
            "/migrate" => with(&body, |wanted: MigrationWanted| self.migrate(wanted)),
            "/promote" => with(&body, |wanted: PromotionWanted| self.promote(&wanted)),
            _ => {
                self.machine.stop.ask();
                Said::json(200, &json!({}))
            }
        }
    }

    fn checkpoint(&self) -> Said {
        let Some(run) = self.machine.run() else { return no_machine() };
        match run.handle.request() {
            Ok(stored) => {
                let epoch = run.handle.sinks().first().map(|chain| chain.reached.appended);
                Said::json(200, &json!({ "epoch": epoch.unwrap_or_default(), "stored": stored }))
            }
            Err(error) => Said::error(500, causes(&error)),
        }
    }

    fn standby(&self, wanted: StandbyWanted) -> Said {
        let StandbyWanted { address } = wanted;
        match self.machine.run().and_then(|run| run.keeper) {
            None => no_keeper(),
            Some(keeper) => {
                let said = Said::json(200, &json!({ "standby": &address }));
                keeper.aim_at(address);
                said
            }
        }
    }

    fn migrate(&self, wanted: MigrationWanted) -> Said {
        let run = self.machine.run();
        let Some((node, keeper)) = self.machine.node.as_ref().zip(run.and_then(|run| run.keeper)) else {
            return no_keeper();
        };
        let MigrationWanted { to, downtime_us, within_us } = wanted;
        let migration = Migration { to, downtime: Duration::from_micros(downtime_us), within: Duration::from_micros(within_us) };
        let is_over = || self.is_over() || self.machine.stop.is_asked();
        match migrate(node, &keeper, &migration, &is_over) {
            Ok(migrated) => Said::json(
                200,
                &json!({
                    "generation": migrated.generation,
                    "seeding_us": whole_us(migrated.seeding),
                    "downtime_us": whole_us(migrated.downtime),
                }),
            ),
            Err(error) => Said::conflict(error),
        }
    }

    fn promote(&self, wanted: &PromotionWanted) -> Said {
        if !wanted.accept_risk {
            return Said::error(400, "the risk has to be accepted");
        }
        if self.machine.promote() {
            return Said::json(200, &json!({}));
        }
        Said::conflict("this is no standby that has a whole epoch")
    }
}

fn no_machine() -> Said {
    Said::conflict("no machine runs here yet")
}

fn no_keeper() -> Said {
    Said::conflict("no machine runs here yet that can have a standby: it needs --witness and --tls")
}

/// What `f` makes of a body.
fn with<T: for<'de> Deserialize<'de>>(body: &str, f: impl FnOnce(T) -> Said) -> Said {
    match serde_json::from_str(body) {
        Ok(value) => f(value),
        Err(error) => Said::error(400, format!("the body is not what it should be: {error}")),
    }
}

fn answer(request: Request, said: Said) {
    let response = Response::from_string(said.body).with_status_code(said.code);
    let response = match Header::from_bytes("Content-Type", said.kind) {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    };
    if let Err(error) = request.respond(response) {
        tracing::debug!(%error, "whoever asked at the control socket is gone");
    }
}
