//! Floods: more packets than a machine can take, and more than its backend takes from it. Nothing
//! is lost but what is counted, memory stays as it is, and epochs go on.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use slackwater::ledger::frame_stream::{FrameStream, on_stream};
use slackwater::ledger::frames::{self, Endpoint, Frame, Host, Mac};
use slackwater::ledger::{Answer, Request, Server};
use slackwater::store::Chain;

use crate::support::command::{Running, number, run, slackwater};
use crate::support::{Random, kvm_or_skip, patience, rounds};

const CLIENT: Endpoint = Endpoint { host: Host { mac: Mac([2, 0, 0, 0, 0, 1]), ip: Ipv4Addr::new(10, 77, 0, 1) }, port: 7078 };
const GUEST: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 77, 0, 2), 7077);
/// Nothing takes longer.
const LIMIT: Duration = Duration::from_secs(60);
const BUDGET: u64 = 1200;
/// What the command may grow by, whatever comes: 1 MiB waits for the guest, 4096 small answers wait
/// to leave, 2 MiB are kept for packets. The rest is for epochs on their way and the allocator. A
/// flood is twice as much, but where everything is slow.
const GROWTH_KIB: u64 = 12 << 10;
/// Packets that wait to leave at the most.
const OUTLET_PACKETS: u64 = 4096;
/// Larger than a buffer of the guest.
const TOO_LARGE: usize = 4000;

/// A guest under checkpoints, and the test at the other end of its cable.
struct Flooded {
    machine: Running,
    store: PathBuf,
    stream: UnixStream,
    mac: Mac,
    /// Memory of the command before the flood, in KiB.
    before_kib: u64,
}

impl Flooded {
    fn start(dir: &Path, (outputs, vcpus): (&str, u32), asked: &Asked, answers: &mut Answers) -> Self {
        let (socket, store) = (dir.join("net"), dir.join("store"));
        let listener = UnixListener::bind(&socket).unwrap();
        let line = format!(
            "checkpoint --store {} --guest ledger --memory 16M --vcpus {vcpus} --outputs {outputs} --durability none \
             --budget {BUDGET} --interval 10ms --json --net unix={}",
            store.display(),
            socket.display()
        );
        let machine = Running::start(&mut slackwater(line.split_whitespace()));
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_write_timeout(Some(patience(LIMIT))).unwrap();
        // What comes before its driver has begun is lost to the guest.
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let question = on_stream(&frames::arp_request(CLIENT.host, GUEST.0)).unwrap();
        let begun = Instant::now();
        let mac = loop {
            stream.write_all(&question).unwrap();
            answers.read(&mut stream, asked);
            if let Some(mac) = answers.mac {
                break mac;
            }
            assert!(begun.elapsed() < patience(LIMIT), "the guest does not say where it is");
        };
        stream.set_read_timeout(Some(patience(LIMIT))).unwrap();
        Self { machine, store, stream, mac, before_kib: 0 }
    }

    fn request(&self, request: &Request) -> Vec<u8> {
        let to = Endpoint { host: Host { mac: self.mac, ip: GUEST.0 }, port: GUEST.1 };
        on_stream(&frames::udp(CLIENT, to, &request.encode()).unwrap()).unwrap()
    }

    /// Has every page of the guest's touched.
    fn warm_up(&mut self, asked: &Asked, answers: &mut Answers) {
        for _ in 0..200 {
            let request = asked.next(1, 16);
            self.stream.write_all(&self.request(&request)).unwrap();
            while asked.missing() > 0 {
                assert!(answers.read(&mut self.stream, asked), "no answer");
            }
        }
        self.before_kib = memory_kib(self.machine.id(), "VmRSS");
    }

    fn epochs(&self) -> u64 {
        Chain::open(&self.store).map_or(0, |chain| chain.newest().0)
    }

    fn check_memory(&self) {
        let grown = memory_kib(self.machine.id(), "VmHWM").saturating_sub(self.before_kib);
        println!("{} KiB of memory, and at most {grown} more", self.before_kib);
        assert!(grown <= GROWTH_KIB, "memory grew by {grown} KiB from {} on", self.before_kib);
    }

    /// Ends it. Returns its report.
    fn finish(self) -> Value {
        self.machine.signal(libc::SIGTERM);
        let report = self.machine.wait().expect(0).json();
        assert!(number(&report, "/max_epoch_pages") <= BUDGET && number(&report, "/over_budget_epochs") == 0, "{report}");
        let verified = run(&format!("verify --store {} --json", self.store.display())).expect(0).json();
        assert_eq!(verified["damage"].as_array().map(Vec::len), Some(0), "{verified}");
        report
    }
}

/// A line of the process's status.
fn memory_kib(process: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', '\t', ' ']).split(' ').next().unwrap().parse().unwrap()
}

/// What was asked: a server that loses nothing, given the same requests in the same order, says
/// what the answers are and how they follow each other.
#[derive(Default)]
struct Asked {
    state: Mutex<State>,
    answered: AtomicU64,
}

#[derive(Default)]
struct State {
    server: Server,
    /// The last request of each client.
    numbers: BTreeMap<u64, u64>,
    /// Answers that have not come.
    expected: VecDeque<Answer>,
}

impl Asked {
    /// The next request of `client`, which is about to be sent.
    fn next(&self, client: u64, pages: u32) -> Request {
        let mut state = self.state.lock().unwrap();
        let State { server, numbers, expected } = &mut *state;
        let number = numbers.entry(client).or_default();
        *number += 1;
        let request = Request::new(client, *number, pages, vec![7; 200]).unwrap();
        expected.push_back(server.take(&request).unwrap());
        request
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Whether this client's request has its answer.
    fn is_answered(&self, client: u64, number: u64) -> bool {
        let state = self.state.lock().unwrap();
        !state.expected.iter().any(|answer| (answer.client, answer.number) == (client, number))
    }

    /// Answers that have not come.
    fn missing(&self) -> usize {
        self.state.lock().unwrap().expected.len()
    }
}

/// What the guest sends.
#[derive(Default)]
struct Answers {
    incoming: FrameStream,
    /// Answers to the question for its address, and what they say.
    addresses: u64,
    mac: Option<Mac>,
}

impl Answers {
    /// Takes what comes next. False where nothing did within the stream's time.
    fn read(&mut self, stream: &mut UnixStream, asked: &Asked) -> bool {
        let mut bytes = [0; 64 << 10];
        match stream.read(&mut bytes) {
            Ok(0) => panic!("the machine is gone"),
            Ok(length) => self.incoming.push(&bytes[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(error) => panic!("{error}"),
        }
        while let Some(frame) = self.incoming.next_frame().unwrap() {
            let payload = match frames::parse(frame).unwrap() {
                Frame::ArpReply { from } => {
                    self.addresses += 1;
                    self.mac = Some(from.mac);
                    continue;
                }
                Frame::Udp { to: CLIENT, payload, .. } => payload,
                other => panic!("{other:?}"),
            };
            let expected = asked.state.lock().unwrap().expected.pop_front();
            assert_eq!(Some(Answer::decode(payload).unwrap()), expected, "every answer comes, in its order");
            asked.answered.fetch_add(1, Ordering::AcqRel);
        }
        true
    }
}

/// Junk of all sizes, too large packets and requests, as fast as the socket takes them.
fn flood_in(way: (&str, u32), random: &mut Random) {
    const FLOODS: u64 = 1;
    const ASKS: u64 = 2;
    let dir = tempfile::tempdir().unwrap();
    let (asked, mut answers) = (Asked::default(), Answers::default());
    let mut flooded = Flooded::start(dir.path(), way, &asked, &mut answers);
    flooded.warm_up(&asked, &mut answers);
    let (epochs, before) = (flooded.epochs(), asked.answered());
    let (mut sent, mut large, mut bytes) = (0, 0, 0);
    let mut reader = flooded.stream.try_clone().unwrap();
    let flooding = AtomicBool::new(true);
    let addresses = std::thread::scope(|scope| {
        let (asked, flooding) = (&asked, &flooding);
        let reading = scope.spawn(move || {
            while flooding.load(Ordering::Acquire) || asked.missing() > 0 {
                assert!(answers.read(&mut reader, asked), "no answer in {LIMIT:?}, {} are missing", asked.missing());
            }
            answers.addresses
        });
        // A client with one request under way asks in between.
        let (mut its_answers, mut its_requests) = (0, 0);
        let wanted = (rounds(1, 24, 480) as usize) << 20;
        while bytes < wanted || its_answers < 2 || flooded.epochs() < epochs + 10 {
            let mut batch = Vec::new();
            for _ in 0..64 {
                let frame = match random.below(64) {
                    0..8 => flooded.request(&asked.next(FLOODS, 1)),
                    8 => {
                        large += 1;
                        on_stream(&vec![random.byte(); TOO_LARGE]).unwrap()
                    }
                    _ => {
                        let length = 14 + random.below(1500) as usize;
                        on_stream(&vec![random.byte(); length]).unwrap()
                    }
                };
                batch.extend(frame);
                sent += 1;
            }
            if asked.is_answered(ASKS, its_requests) {
                its_answers = its_requests;
                its_requests += 1;
                batch.extend(flooded.request(&asked.next(ASKS, 4)));
                sent += 1;
            }
            flooded.stream.write_all(&batch).unwrap();
            bytes += batch.len();
        }
        // It comes behind everything else, and the reader waits for its answer and no longer.
        let last = flooded.request(&asked.next(ASKS, 1));
        flooding.store(false, Ordering::Release);
        flooded.stream.write_all(&last).unwrap();
        sent += 1;
        println!("{way:?}: {sent} packets, {bytes} bytes, {its_answers} answers to a client");
        reading.join().unwrap()
    });
    println!("{} epochs, before {epochs}", flooded.epochs());
    flooded.check_memory();
    let answered = asked.answered();
    let report = flooded.finish();
    // Only what no buffer has room for is dropped.
    assert_eq!(number(&report, "/dropped_packets"), large, "{report}");
    assert_eq!(number(&report, "/received_packets"), addresses + before + sent - large, "{report}");
    assert_eq!(number(&report, "/sent_packets"), addresses + answered, "{report}");
}

/// Requests without end, and nobody takes the answers until the machine can make no more.
fn flood_out(way: (&str, u32)) {
    const PAGES: u32 = 2;
    /// More than there is room for: besides the outlet there are sockets, queues and the inlet.
    const REQUESTS_MAX: u64 = 8000;
    let dir = tempfile::tempdir().unwrap();
    let (asked, mut answers) = (Asked::default(), Answers::default());
    let mut flooded = Flooded::start(dir.path(), way, &asked, &mut answers);
    flooded.warm_up(&asked, &mut answers);
    let before = asked.answered();
    flooded.stream.set_nonblocking(true).unwrap();
    let (mut requests, mut rest) = (0, Vec::new());
    // Full is what has filled the outlet, and takes nothing for 100 epochs.
    let mut full_from: Option<(Instant, u64)> = None;
    loop {
        if rest.is_empty() {
            rest = flooded.request(&asked.next(1, PAGES));
            requests += 1;
            assert!(requests < REQUESTS_MAX, "a machine that nobody takes anything from takes ever more");
        }
        match flooded.stream.write(&rest) {
            Ok(written) => {
                rest.drain(..written);
                full_from = None;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let (since, epochs) = *full_from.get_or_insert_with(|| (Instant::now(), flooded.epochs()));
                if requests > OUTLET_PACKETS && flooded.epochs() >= epochs + 100 {
                    break;
                }
                assert!(since.elapsed() < patience(LIMIT), "epochs do not go on");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    flooded.check_memory();
    let full_at = requests;
    // Now somebody takes them, and the requests go on.
    let wanted = full_at + rounds(500, 5_000, 500_000);
    let begun = Instant::now();
    while requests < wanted || !rest.is_empty() || asked.missing() > 0 {
        if rest.is_empty() && requests < wanted {
            rest = flooded.request(&asked.next(1, PAGES));
            requests += 1;
        }
        let written = flooded.stream.write(&rest).unwrap_or_default();
        rest.drain(..written);
        if written == 0 && !answers.read(&mut flooded.stream, &asked) {
            assert!(begun.elapsed() < patience(LIMIT), "{} answers are missing", asked.missing());
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    println!("{way:?}: full at {full_at} requests, {} epochs, {requests} requests", flooded.epochs());
    flooded.check_memory();
    assert_eq!(asked.answered(), before + requests);
    let report = flooded.finish();
    assert_eq!(number(&report, "/dropped_packets"), 0, "{report}");
    assert_eq!(number(&report, "/sent_packets"), answers.addresses + before + requests, "{report}");
}

fn floods_in(test: &str, outputs: &str, vcpus: u32) {
    if kvm_or_skip(test) {
        let mut random = Random::seeded(test, 51);
        flood_in((outputs, vcpus), &mut random);
    }
}

#[test]
fn a_guest_that_is_flooded_loses_only_what_it_has_no_room_for() {
    floods_in("native::flood::a_guest_that_is_flooded_loses_only_what_it_has_no_room_for", "held", 1);
}

#[test]
fn so_does_one_whose_outputs_do_not_wait() {
    floods_in("native::flood::so_does_one_whose_outputs_do_not_wait", "free", 2);
}

#[test]
fn a_guest_that_sends_more_than_is_taken_waits_and_loses_nothing() {
    if kvm_or_skip("native::flood::a_guest_that_sends_more_than_is_taken_waits_and_loses_nothing") {
        flood_out(("held", 1));
    }
}

#[test]
fn and_so_does_one_with_outputs_that_do_not_wait() {
    if kvm_or_skip("native::flood::and_so_does_one_with_outputs_that_do_not_wait") {
        flood_out(("free", 2));
    }
}
