//! A machine that is killed again and again, and goes on at its standby each time: on two stores,
//! with real TCP and TLS, whoever talks to it never sees it go back.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use slackwater::ledger::{LoadOptions, Verdict};
use slackwater::replica::register::{Holder, Register};
use slackwater::replica::wire::tls_init;

use super::ledger::{Clients, Net};
use crate::support::command::{Run, Running, guest_is_ok, number, run, slackwater};
use crate::support::{Random, kvm_or_skip, nested, patience, rounds};

/// Nothing that a machine does takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Where two hosts of a pair have their things.
pub(super) struct Pair {
    pub(super) dir: tempfile::TempDir,
    pub(super) ports: [u16; 2],
    options: String,
    /// Each looks for a standby at the other by itself.
    seeks: bool,
    witness: String,
}

impl Pair {
    pub(super) fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tls_init(&dir.path().join("tls")).unwrap();
        std::fs::create_dir(dir.path().join("witness")).unwrap();
        let free = [0, 0].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap().port());
        let witness = format!("file:{}/witness/vm", dir.path().display());
        Self { dir, ports, options: options.to_owned(), seeks: true, witness }
    }

    /// One whose standbys take over when a person says so.
    pub(super) fn without_witness() -> Self {
        Self { witness: "manual".to_owned(), ..Self::new("") }
    }

    /// One whose machines have no standby until they are told.
    pub(super) fn without_standby() -> Self {
        Self { seeks: false, ..Self::new("") }
    }

    pub(super) fn store(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("store-{host}"))
    }

    pub(super) fn control(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("control-{host}"))
    }

    /// What both verbs are given at a host.
    fn common(&self, host: usize) -> String {
        format!("--store {} {} --interval 10ms {} --json", self.store(host).display(), self.parts(host), self.options)
    }

    /// What makes a machine at a host one of the pair.
    pub(super) fn parts(&self, host: usize) -> String {
        let (dir, other) = (self.dir.path().display(), self.ports[1 - host]);
        let tls = ["one", "two"][host];
        let Self { witness, seeks, .. } = self;
        let standby = if *seeks { format!("--standby 127.0.0.1:{other}") } else { String::new() };
        // Nobody is to be taken for dead because the machine is busy.
        let silence = if nested() { "--timeout 10s --heartbeat 500ms" } else { "--timeout 300ms --heartbeat 20ms" };
        format!("--witness {witness} --tls {dir}/tls/{tls} {standby} {silence} --control {}", self.control(host).display())
    }

    pub(super) fn primary(&self, host: usize, machine: &str) -> Running {
        Running::start(&mut slackwater(format!("checkpoint {} {machine}", self.common(host)).split_whitespace()))
    }

    pub(super) fn standby(&self, host: usize) -> Running {
        let port = self.ports[host];
        let line = format!("standby --listen 127.0.0.1:{port} {}", self.common(host));
        let mut running = Running::start(&mut slackwater(line.split_whitespace()));
        running.wait_for_message("listening");
        running
    }

    /// What the witness says.
    pub(super) fn register(&self) -> Option<Register> {
        let names = std::fs::read_dir(self.dir.path().join("witness")).unwrap();
        let newest = names.map(|name| name.unwrap().path()).filter(|path| is_numbered(path)).max()?;
        Some(Register::from_json(&std::fs::read(newest).unwrap()).unwrap())
    }

    /// Waits until the two are a pair, newer than `than`.
    pub(super) fn wait_until_paired(&self, than: u64, machines: &mut [&mut Running]) -> u64 {
        until("no pair", || {
            for machine in machines.iter_mut() {
                assert!(!machine.has_ended(), "a machine ended");
            }
            self.paired(than)
        })
    }

    /// The generation in which the two are a pair, if that is newer than `than`.
    pub(super) fn paired(&self, than: u64) -> Option<u64> {
        match self.register()? {
            Register { generation, holder: Holder::Paired(..), .. } if generation.0 > than => Some(generation.0),
            _ => None,
        }
    }
}

/// Waits for what `look` finds.
pub(super) fn until<T>(missing: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < patience(LIMIT), "{missing} in {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_numbered(path: &Path) -> bool {
    path.extension().is_some_and(|digits| digits.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
}

/// Ends a machine in order.
pub(super) fn end(machine: Running) -> Run {
    machine.signal(libc::SIGTERM);
    machine.wait()
}

fn failover_us(report: &Value) -> u64 {
    let parts = ["detect", "witness", "apply", "first_run"].map(|part| number(report, &format!("/failover_us/{part}")));
    let total = number(report, "/failover_us/total");
    assert_eq!(parts.iter().sum::<u64>(), total, "{report}");
    total
}

#[test]
fn what_a_client_was_told_survives_every_primary() {
    if !kvm_or_skip("native::failover::what_a_client_was_told_survives_every_primary") {
        return;
    }
    let mut random = Random::seeded("native::failover", 47);
    for options in ["--ack memory --durability group:20", "--ack disk --durability epoch"] {
        let pair = Pair::new(options);
        let wire = pair.dir.path().join("net");
        let net = Net::Unix(&wire);
        let clients = Clients::start(net, LoadOptions { clients: 4, pages: 8, ..LoadOptions::default() });
        let mut following = pair.standby(1);
        let mut running = pair.primary(0, &format!("--guest ledger --memory 16M {}", net.option()));
        let mut generation = 0;
        let kills = rounds(1, 3, 50);
        for kill in 0..kills {
            generation = pair.wait_until_paired(generation, &mut [&mut running, &mut following]);
            assert!(clients.wait_for(1 + random.below(60)), "clients are served in generation {generation}");
            // Somewhere in a request: this is no wait for anything.
            std::thread::sleep(Duration::from_micros(random.below(3000)));
            running.kill();
            following.wait_for_message("the machine goes on here");
            running = following;
            // What was killed comes back as a standby, with what it has.
            following = pair.standby(usize::try_from(kill % 2).unwrap());
        }
        pair.wait_until_paired(generation, &mut [&mut running, &mut following]);
        assert!(clients.wait_for(20), "clients are served in the end");
        let outcome = clients.finish();
        assert_eq!(outcome.verdict, Verdict::Stopped, "{options}: {outcome:?}");
        let report = end(running).expect(0).json();
        assert_eq!(report["role"], "promoted", "{report}");
        println!("{options}: {kills} kills, {:?}; the last failover took {} us", outcome.report, failover_us(&report));
        let report = end(following).expect(0).json();
        assert_eq!(report["role"], "stopped", "{report}");
        for host in 0..2 {
            let store = pair.store(host);
            let report = run(&format!("verify --store {} --json", store.display())).expect(0).json();
            assert_eq!(report["damage"].as_array().map(Vec::len), Some(0), "{report}");
        }
    }
}

/// A guest that checks its whole memory: what the standby has put together is of one instant.
#[test]
fn a_guest_that_checks_itself_finds_nothing_at_the_standby() {
    if !kvm_or_skip("native::failover::a_guest_that_checks_itself_finds_nothing_at_the_standby") {
        return;
    }
    for (machine, early) in [
        ("--guest churn:pages=2000,content=words --memory 32M --vcpus 2", ""),
        ("--guest churn:pages=500 --memory 16M", "--early always"),
    ] {
        let pair = Pair::new(early);
        let mut following = pair.standby(1);
        let mut running = pair.primary(0, machine);
        let generation = pair.wait_until_paired(0, &mut [&mut running, &mut following]);
        let chain = pair.store(1);
        // Epochs behind the base, of which most only say what changed.
        let newest = || slackwater::store::Chain::open(&chain).map_or(0, |chain| chain.newest().0 % 1_000_000);
        until("no epochs come", || (newest() >= 20).then_some(()));
        running.kill();
        following.wait_for_message("the machine goes on here");
        // Passes of its own, which check what the others left.
        until("no epochs are taken", || (newest() >= 60).then_some(()));
        let report = end(following).expect(0).json();
        assert!(guest_is_ok(&report), "{report}");
        assert!(number(&report, "/generation") > generation, "{report}");
        println!("{machine}: failover in {} us", failover_us(&report));
    }
}

/// A primary that is frozen for longer than the timeout finds that another machine goes on, and
/// halts: the first one, and one that was a standby before.
#[test]
fn a_frozen_primary_that_thaws_halts() {
    if !kvm_or_skip("native::failover::a_frozen_primary_that_thaws_halts") {
        return;
    }
    let pair = Pair::new("");
    let mut following = pair.standby(1);
    let mut running = pair.primary(0, "--guest churn:pages=500 --memory 16M");
    let mut generation = 0;
    for host in [0, 1] {
        generation = pair.wait_until_paired(generation, &mut [&mut running, &mut following]);
        running.signal(libc::SIGSTOP);
        following.wait_for_message("the machine goes on here");
        running.signal(libc::SIGCONT);
        running.wait().expect(4).says(&["another machine goes on"]);
        running = following;
        following = pair.standby(host);
    }
    let report = end(running).expect(0).json();
    assert!(guest_is_ok(&report), "{report}");
    end(following).expect(0);
}

/// A store of a pair is run again only where its witness lets it: not without asking, not where
/// outputs may have left that it does not have, not where another one goes on.
#[test]
fn a_store_of_a_pair_is_run_again_only_where_the_witness_lets_it() {
    if !kvm_or_skip("native::failover::a_store_of_a_pair_is_run_again_only_where_the_witness_lets_it") {
        return;
    }
    let pair = Pair::new("");
    let mut following = pair.standby(1);
    let mut running = pair.primary(0, "--guest churn:pages=500 --memory 16M");
    pair.wait_until_paired(0, &mut [&mut running, &mut following]);
    let witness = format!("--witness file:{}/witness/vm", pair.dir.path().display());
    let again = |host: usize, options: &[&str]| {
        let (store, options) = (pair.store(host), options.join(" "));
        run(&format!("restore --store {} --continue {options} --epochs 5 --json", store.display()))
    };
    // Its record says that outputs waited for the standby only.
    let record = pair.store(0).join("pair.json");
    let is_recorded = || std::fs::read_to_string(&record).unwrap().contains("\"covers\":false");
    until("the rule of release is not recorded", || is_recorded().then_some(()));
    // Both die, the standby first.
    running.signal(libc::SIGSTOP);
    following.kill();
    running.kill();
    again(0, &[]).expect(4).says(&["was part of a pair"]);
    again(0, &[&witness]).expect(4).says(&["outputs may have left"]);
    again(1, &[&witness]).expect(4).says(&["outputs may have left"]);
    let report = again(1, &[&witness, "--accept-loss"]).expect(0).json();
    assert!(guest_is_ok(&report), "{report}");
    again(0, &[&witness]).expect(4).says(&["another machine goes on"]);
    // It was alone, and its chain has all that left.
    let report = again(1, &[&witness]).expect(0).json();
    assert!(guest_is_ok(&report), "{report}");
}

/// A primary that ends in order takes its standby out first: nobody takes over.
#[test]
fn a_machine_that_ends_in_order_is_not_taken_over() {
    if !kvm_or_skip("native::failover::a_machine_that_ends_in_order_is_not_taken_over") {
        return;
    }
    let pair = Pair::new("");
    let mut following = pair.standby(1);
    let mut running = pair.primary(0, "--guest churn:pages=500 --memory 16M");
    pair.wait_until_paired(0, &mut [&mut running, &mut following]);
    end(running).expect(0);
    assert!(matches!(pair.register().unwrap().holder, Holder::Solo(_)), "{:?}", pair.register());
    let generation = pair.register().unwrap().generation;
    let report = end(following).expect(0).json();
    assert_eq!(report["role"], "stopped", "{report}");
    assert_eq!(pair.register().unwrap().generation, generation, "nobody asked for anything more");
}

/// A machine whose name the witness gives to another one does not run.
#[test]
fn a_second_machine_of_one_name_is_refused() {
    if !kvm_or_skip("native::failover::a_second_machine_of_one_name_is_refused") {
        return;
    }
    let pair = Pair::new("");
    let machine = "--guest churn:pages=500 --memory 16M";
    let mut running = pair.primary(0, machine);
    until("the witness is not asked", || {
        assert!(!running.has_ended(), "the machine ended");
        pair.register()
    });
    pair.primary(1, machine).wait().expect(4);
    end(running).expect(0);
}
