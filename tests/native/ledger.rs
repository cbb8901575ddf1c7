//! Outputs that wait: whoever talks to a machine that is killed again and again, and goes on from
//! its last checkpoint, never sees it go back.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use slackwater::ledger::{Load, LoadOptions, Outcome, Received, UdpWire, UnixWire, Verdict, Wire, WireError, run as run_clients};
use slackwater::page::EpochId;
use slackwater::store::Chain;

use crate::support::command::{Running, number, run, slackwater};
use crate::support::tap::with_tap;
use crate::support::{Random, kvm_or_skip, nested, patience, rounds, skip};

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 7077);
/// Nothing that a machine does takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// The host's end of a tap.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// What a guest is connected to.
#[derive(Clone, Copy)]
pub(super) enum Net<'n> {
    Unix(&'n Path),
    Tap(&'n str),
}

impl Net<'_> {
    pub(super) fn option(self) -> String {
        match self {
            Self::Unix(path) => format!("--net unix={}", path.display()),
            Self::Tap(name) => format!("--net tap={name}"),
        }
    }

    fn wire(self) -> Box<dyn Wire + Send> {
        match self {
            Self::Unix(path) => Box::new(UnixWire::new(path, SERVER).unwrap()),
            Self::Tap(_) => Box::new(UdpWire::new(SERVER).unwrap()),
        }
    }
}

/// A wire that counts what comes.
struct Counted {
    wire: Box<dyn Wire + Send>,
    datagrams: Arc<AtomicU64>,
}

impl Wire for Counted {
    fn reach(&mut self) -> Result<bool, WireError> {
        self.wire.reach()
    }

    fn send(&mut self, datagram: &[u8]) -> Result<(), WireError> {
        self.wire.send(datagram)
    }

    fn receive(&mut self, wait: Duration) -> Result<Received, WireError> {
        let received = self.wire.receive(wait)?;
        if matches!(received, Received::Datagram(_)) {
            self.datagrams.fetch_add(1, Ordering::Relaxed);
        }
        Ok(received)
    }
}

/// Clients that ask without end.
pub(super) struct Clients {
    datagrams: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Outcome>,
}

impl Clients {
    pub(super) fn start(net: Net<'_>, options: LoadOptions) -> Self {
        let (datagrams, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut wire = Counted { wire: net.wire(), datagrams: datagrams.clone() };
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut load = Load::new(options).unwrap();
            run_clients(&mut load, &mut wire, &|| asked.load(Ordering::Relaxed)).unwrap()
        });
        Self { datagrams, stop, thread }
    }

    /// Waits for so many answers more. False once the clients are done.
    pub(super) fn wait_for(&self, more: u64) -> bool {
        let (begun, wanted) = (Instant::now(), self.datagrams.load(Ordering::Relaxed) + more);
        while self.datagrams.load(Ordering::Relaxed) < wanted {
            if self.thread.is_finished() {
                return false;
            }
            assert!(begun.elapsed() < patience(LIMIT), "no answer in {:?}", begun.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    pub(super) fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Runs `ledger` under checkpoints, kills it `kills` times, and has it go on each time. Returns
/// what the clients saw, and how often it was killed. Clients that get no answer for as long as
/// `give_up` says give up: then others, which the guest has never heard of, get answers.
fn killed_again_and_again(options: &str, kills: u64, give_up: Option<Duration>, random: &mut Random) -> (Outcome, u64) {
    let dir = tempfile::tempdir().unwrap();
    killed_at(Net::Unix(&dir.path().join("net")), options, kills, give_up, random)
}

/// The same at `net`.
fn killed_at(net: Net<'_>, options: &str, kills: u64, give_up: Option<Duration>, random: &mut Random) -> (Outcome, u64) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let clients = Clients::start(net, LoadOptions { clients: 4, pages: 8, give_up, ..LoadOptions::default() });
    let path = store.clone();
    let store = store.display();
    let first = format!("checkpoint --store {store} --guest ledger --memory 16M {} {options}", net.option());
    // What it was started as, and with, is in the store.
    let again: Vec<_> = options.split_whitespace().collect();
    let again = again.chunks(2).filter(|option| option[0] != "--vcpus").flatten().copied().collect::<Vec<_>>().join(" ");
    let again = format!("restore --store {store} --continue {again}");
    let mut machine = Running::start(&mut slackwater(first.split_whitespace()));
    // With outputs that do not wait, answers may come before the base is in the chain.
    let begun = Instant::now();
    while !Chain::open(&path).is_ok_and(|chain| chain.newest() != EpochId::NONE) {
        assert!(begun.elapsed() < patience(LIMIT), "no epoch in {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut killed = 0;
    while killed < kills && clients.wait_for(1 + random.below(40)) {
        // Somewhere in a request: this is no wait for anything.
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        assert!(!machine.has_ended(), "{}", machine.wait());
        machine.signal(libc::SIGKILL);
        machine.wait();
        killed += 1;
        machine = Running::start(&mut slackwater(again.split_whitespace()));
    }
    clients.wait_for(20);
    let outcome = clients.finish();
    if outcome.verdict == Verdict::GaveUp {
        let others = Clients::start(net, LoadOptions { first_client: 1000, ..LoadOptions::default() });
        assert!(others.wait_for(5), "others get answers");
        assert_eq!(others.finish().verdict, Verdict::Stopped);
    }
    machine.signal(libc::SIGTERM);
    let ended = machine.wait();
    if outcome.verdict == Verdict::Stopped {
        ended.expect(0);
        let report = run(&format!("verify --store {store} --json")).expect(0).json();
        assert_eq!(report["damage"].as_array().map(Vec::len), Some(0), "{report}");
    }
    (outcome, killed)
}

#[test]
fn what_a_client_was_told_survives_every_kill() {
    if !kvm_or_skip("native::ledger::what_a_client_was_told_survives_every_kill") {
        return;
    }
    let mut random = Random::seeded("native::ledger", 41);
    for durability in ["none", "epoch", "group:5"] {
        for (vcpus, hot) in [(1, "auto"), (2, "off")] {
            let options = format!("--outputs held --durability {durability} --vcpus {vcpus} --hot {hot}");
            let (outcome, killed) = killed_again_and_again(&options, rounds(1, 3, 50), None, &mut random);
            assert_eq!(outcome.verdict, Verdict::Stopped, "{options}, after {killed} kills");
            println!("{options}: {killed} kills, {:?}", outcome.report);
        }
    }
}

/// The same through the host's own network: the tap outlives each machine, and the next takes it.
#[test]
fn what_a_client_was_told_over_a_tap_survives_every_kill() {
    const TEST: &str = "native::ledger::what_a_client_was_told_over_a_tap_survives_every_kill";
    if !kvm_or_skip(TEST) {
        return;
    }
    let mut random = Random::seeded("native::ledger::tap", 43);
    with_tap(TEST, HOST, |tap| {
        for durability in ["none", "group:5"] {
            let options = format!("--outputs held --durability {durability} --vcpus 1");
            let (outcome, killed) = killed_at(Net::Tap(tap), &options, rounds(1, 4, 50), None, &mut random);
            assert_eq!(outcome.verdict, Verdict::Stopped, "{options}, after {killed} kills");
            println!("{options}: {killed} kills, {:?}", outcome.report);
        }
    });
}

/// The tests above can fail: a machine whose packets leave at once is caught at it.
#[test]
fn with_outputs_that_do_not_wait_it_is_found_out() {
    const TEST: &str = "native::ledger::with_outputs_that_do_not_wait_it_is_found_out";
    if !kvm_or_skip(TEST) {
        return;
    }
    if nested() {
        // It may take all of the kills, of several seconds each there.
        return skip(TEST, "it takes too long where everything is emulated");
    }
    let mut random = Random::seeded("native::ledger::free", 42);
    let options = "--outputs free --durability group:5 --interval 20ms";
    let (outcome, killed) = killed_again_and_again(options, 50, Some(Duration::from_secs(5)), &mut random);
    // The guest forgot what it had answered: it contradicts itself, or waits for what clients are
    // done with.
    assert!(matches!(outcome.verdict, Verdict::Violation(_) | Verdict::GaveUp), "{outcome:?} after {killed} kills");
    println!("after {killed} kills: {:?}", outcome.verdict);
}

/// The report of a machine with held outputs that has given clients so many answers.
fn report_of(store: &Path, options: &str, clients: usize, answers: u64) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("net");
    let clients = Clients::start(Net::Unix(&socket), LoadOptions { clients, ..LoadOptions::default() });
    let line = format!(
        "checkpoint --store {} --guest ledger --memory 16M --outputs held --durability none {options} --json --net unix={}",
        store.display(),
        socket.display()
    );
    let machine = Running::start(&mut slackwater(line.split_whitespace()));
    assert!(clients.wait_for(answers));
    machine.signal(libc::SIGTERM);
    let report = machine.wait().expect(0).json();
    assert_eq!(clients.finish().verdict, Verdict::Stopped);
    report
}

/// What is there to be seen of a run: packets, how long they waited, which epochs were released.
#[test]
fn a_run_reports_what_went_over_the_network() {
    if !kvm_or_skip("native::ledger::a_run_reports_what_went_over_the_network") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let report = report_of(&store, "--audit 1", 2, 200);
    let count = |field: &str| number(&report, field);
    assert!(count("/sent_packets") >= 200 && count("/received_packets") >= 200, "{report}");
    assert_eq!(count("/released_epochs"), count("/epochs"), "{report}");
    assert!(report["output_delay_us"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    let verified = run(&format!("verify --store {} --json", store.display())).expect(0).json();
    assert_eq!((number(&verified, "/audits_failed"), number(&verified, "/audits_unchecked")), (0, 0), "{verified}");
}

/// An output asks for one cut, and whoever runs again after that for no other.
#[test]
fn a_packet_ends_one_epoch() {
    if !kvm_or_skip("native::ledger::a_packet_ends_one_epoch") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let report = report_of(&dir.path().join("store"), "--interval off", 1, 100);
    // Besides those there are the base, the last one, and one of the answer that may be under way.
    assert!(number(&report, "/epochs") <= number(&report, "/sent_packets") + 3, "{report}");
}

#[test]
fn links_that_can_not_be_opened_are_refused_before_the_guest_starts() {
    if !kvm_or_skip("native::ledger::links_that_can_not_be_opened_are_refused_before_the_guest_starts") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let checkpoint = |rest: &str| run(&format!("checkpoint --store {} --memory 16M {rest}", store.display()));
    let missing = dir.path().join("nobody");
    checkpoint(&format!("--guest ledger --net unix={}", missing.display())).refused(1, &[&missing.display().to_string()]);
    drop(std::os::unix::net::UnixListener::bind(&missing).unwrap());
    checkpoint(&format!("--guest ledger --net unix={}", missing.display())).refused(1, &["listens"]);
    let _listening = std::os::unix::net::UnixListener::bind(dir.path().join("net")).unwrap();
    let net = format!("--net unix={}", dir.path().join("net").display());
    checkpoint("--guest ledger").refused(1, &["needs a network device"]);
    checkpoint(&format!("--guest touch:pages=16 {net}")).refused(1, &["no driver"]);
    checkpoint(&format!("--guest ledger {net} {net}")).refused(1, &["same backend"]);
    let (one, two) = ("unix=/a,mac=52:54:00:00:00:01", "unix=/b,mac=52:54:00:00:00:01");
    checkpoint(&format!("--guest ledger --net {one} --net {two}")).refused(1, &["same MAC address"]);
    for (wrong, said) in
        [("tap=", "tap"), ("unix=/a,mac=1", "mac"), ("unix=/a,mac=01:00:00:00:00:01", "01:00:00:00:00:01"), ("x=1", "x")]
    {
        checkpoint(&format!("--guest ledger --net {wrong}")).refused(2, &[said]);
    }
    assert!(!store.exists());
}
