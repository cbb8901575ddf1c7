//! Real servers of etcd and S3 on this host, for as long as a test takes.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use slackwater::replica::witness::Witness;
use slackwater::replica::witness::etcd::EtcdWitness;

use super::conformance::PATIENCE;
use crate::support::skip;

/// Where `scripts/install.sh witnesses` has put the servers.
const PLACE: &str = "SLACKWATER_WITNESSES";

fn place() -> Option<PathBuf> {
    std::env::var_os(PLACE).map(PathBuf::from)
}

/// Says loudly that `test` is skipped; where the servers were said to be there, fails.
fn absent(test: &str, what: &str) {
    assert!(place().is_none(), "{test}: {what} does not start, and {PLACE} says that it is there");
    skip(test, &format!("no {what}, and no {PLACE}"));
}

/// A process that is killed, by its own handle, when this is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster of three nodes of etcd.
pub(crate) struct Cluster {
    nodes: Vec<Option<Server>>,
    pub(crate) endpoints: Vec<String>,
    peers: Vec<String>,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts one, and waits until it answers; none, loudly, where there is no etcd.
    pub(super) fn start(test: &str) -> Option<Self> {
        Self::start_at(test, Ipv4Addr::LOCALHOST)
    }

    /// The same at an address of this host, of the caller's network.
    pub(crate) fn start_at(test: &str, address: Ipv4Addr) -> Option<Self> {
        let began = Instant::now();
        loop {
            // Somebody else may take a port between the moment that it is found free and the
            // moment that a node has it: then that node ends.
            let mut cluster = Self::spawn(test, address)?;
            if cluster.is_ready() {
                return Some(cluster);
            }
            assert!(began.elapsed() < PATIENCE, "{test}: no node stays");
        }
    }

    fn spawn(test: &str, address: Ipv4Addr) -> Option<Self> {
        let free: Vec<_> = (0..6).map(|_| TcpListener::bind((address, 0)).unwrap()).collect();
        let mut endpoints: Vec<_> = free.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        drop(free);
        let peers = endpoints.split_off(3);
        let mut cluster = Self { nodes: vec![None, None, None], endpoints, peers, dir: tempfile::tempdir().unwrap() };
        for node in 0..cluster.nodes.len() {
            if let Err(error) = cluster.run(node) {
                absent(test, &format!("etcd ({error})"));
                return None;
            }
        }
        Some(cluster)
    }

    /// Starts a node, with what it had if it ran before.
    pub(crate) fn run(&mut self, node: usize) -> std::io::Result<()> {
        let members: Vec<_> = self.peers.iter().zip(0..).map(|(peer, node)| format!("n{node}=http://{peer}")).collect();
        let log = std::fs::File::create(self.dir.path().join(format!("{node}.log")))?;
        let (client, peer) = (format!("http://{}", self.endpoints[node]), format!("http://{}", self.peers[node]));
        let mut command = Command::new(program());
        command.args(["--name", &format!("n{node}"), "--initial-cluster", &members.join(","), "--initial-cluster-state", "new"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.arg("--data-dir").arg(self.dir.path().join(format!("n{node}")));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.nodes[node] = Some(Server(command.spawn()?));
        Ok(())
    }

    /// Waits until every node answers; false where one has ended.
    fn is_ready(&mut self) -> bool {
        let began = Instant::now();
        let mut ready = 0;
        while ready < self.nodes.len() {
            if self.nodes.iter_mut().flatten().any(|node| node.0.try_wait().unwrap().is_some()) {
                return false;
            }
            assert!(began.elapsed() < PATIENCE, "the cluster does not answer");
            let endpoint = &self.endpoints[ready..=ready];
            ready += usize::from(witness(endpoint, "ready", Duration::from_secs(2)).read().is_ok());
        }
        true
    }

    /// Kills a node.
    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node] = None;
    }

    /// Which node leads.
    pub(crate) fn leader(&self) -> usize {
        let began = Instant::now();
        loop {
            for (node, endpoint) in self.endpoints.iter().enumerate() {
                if self.nodes[node].is_some() && leads(endpoint) == Some(true) {
                    return node;
                }
            }
            assert!(began.elapsed() < PATIENCE, "no node leads");
        }
    }
}

fn witness(endpoints: &[String], name: &str, limit: Duration) -> EtcdWitness {
    EtcdWitness::new(endpoints, false, name, limit).unwrap()
}

fn program() -> PathBuf {
    let placed = place().map(|place| place.join("tools/bin/etcd")).filter(|program| program.exists());
    placed.unwrap_or_else(|| "etcd".into())
}

fn leads(endpoint: &str) -> Option<bool> {
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).proxy(None);
    let agent: ureq::Agent = config.build().into();
    let mut answer = agent.post(format!("http://{endpoint}/v3/maintenance/status")).send("{}").ok()?;
    let status: serde_json::Value = serde_json::from_slice(&answer.body_mut().read_to_vec().ok()?).ok()?;
    Some(status["leader"].as_str()? == status["header"]["member_id"].as_str()?)
}

/// A server of S3 with one bucket.
pub(super) struct Moto {
    _server: Server,
    pub(super) endpoint: String,
}

/// One request after the other: this server looks at a condition and puts an object in two steps.
const MOTO: &str = "
import logging
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger('werkzeug').setLevel(logging.ERROR)
server = make_server('127.0.0.1', 0, DomainDispatcherApplication(create_backend_app), threaded=False)
print(server.port, flush=True)
server.serve_forever()
";

impl Moto {
    /// Starts one, with a bucket `machines`; none, loudly, where there is no moto.
    pub(super) fn start(test: &str) -> Option<Self> {
        let mut command = Command::new("python3");
        command.args(["-c", MOTO]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(place) = place() {
            command.env("PYTHONPATH", Path::new(&place).join("moto"));
        }
        let Ok(mut child) = command.spawn() else {
            absent(test, "python3");
            return None;
        };
        let stdout = child.stdout.take().unwrap();
        let server = Server(child);
        let mut line = String::new();
        // It prints its port, or ends.
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let Ok(port) = line.trim().parse::<u16>() else {
            absent(test, "moto");
            return None;
        };
        let endpoint = format!("http://127.0.0.1:{port}");
        ureq::put(format!("{endpoint}/machines")).send_empty().unwrap();
        Some(Self { _server: server, endpoint })
    }
}
