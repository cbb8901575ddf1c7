//! Machines that go to another host by request, and the control socket by which they are asked.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use slackwater::ledger::{LoadOptions, Verdict};
use slackwater::replica::register::Holder;

use super::failover::{Pair, end, until};
use super::ledger::{Clients, Net};
use crate::support::command::{Run, guest_is_ok, number, run};
use crate::support::{Random, kvm_or_skip, rounds};

const CHURN: &str = "--guest churn:pages=500 --memory 16M";

fn status(control: &Path) -> Value {
    run(&format!("status --control {} --json", control.display())).expect(0).json()
}

/// Waits until the machine of a host runs, and says so.
fn wait_for_control(pair: &Pair, host: usize) {
    until("it does not run", || {
        let asked = run(&format!("status --control {} --json", pair.control(host).display()));
        (asked.code() == 0 && asked.json()["guest"].is_object()).then_some(())
    });
}

fn migrate(pair: &Pair, from: usize, options: &str) -> Run {
    wait_for_control(pair, from);
    let (control, to) = (pair.control(from), pair.ports[1 - from]);
    run(&format!("migrate --control {} --to 127.0.0.1:{to} --json {options}", control.display()))
}

/// The digest of an epoch, as its store has it.
fn digest(store: &Path, epoch: u64) -> Value {
    let report = run(&format!("digest --store {} --epoch {epoch} --json", store.display())).expect(0).json();
    report["digest"].clone()
}

/// To the other host and back, with clients that are served all the time.
#[test]
fn a_machine_goes_to_the_other_host_and_back() {
    if !kvm_or_skip("native::migrate::a_machine_goes_to_the_other_host_and_back") {
        return;
    }
    let pair = Pair::new("");
    let wire = pair.dir.path().join("net");
    let net = Net::Unix(&wire);
    let clients = Clients::start(net, LoadOptions { clients: 2, pages: 8, ..LoadOptions::default() });
    let mut following = pair.standby(1);
    let mut running = pair.primary(0, &format!("--guest ledger --memory 16M {}", net.option()));
    for host in (0..rounds(2, 4, 40)).map(|round| usize::try_from(round % 2).unwrap()) {
        assert!(clients.wait_for(20), "clients are served at host {host}");
        let report = migrate(&pair, host, "--downtime 2s").expect(0).json();
        let generation = number(&report, "/generation");
        following.wait_for_message("the machine goes on here");
        running.wait().expect(0).says(&["was handed over"]);
        let register = pair.register().unwrap();
        assert!(register.generation.0 >= generation, "{register:?}");
        println!("host {host}: {report}");
        running = following;
        following = pair.standby(host);
    }
    assert!(clients.wait_for(20), "clients are served in the end");
    let outcome = clients.finish();
    assert_eq!(outcome.verdict, Verdict::Stopped, "{outcome:?}");
    end(running).expect(0);
    end(following).expect(0);
}

/// What goes on at the other host is the last epoch of this one, to the last bit, and nobody may
/// run the old store.
#[test]
fn a_machine_that_went_is_what_it_was() {
    if !kvm_or_skip("native::migrate::a_machine_that_went_is_what_it_was") {
        return;
    }
    let pair = Pair::new("");
    let mut following = pair.standby(1);
    let running = pair.primary(0, CHURN);
    migrate(&pair, 0, "--downtime 2s").expect(0);
    running.wait().expect(0);
    following.wait_for_message("the machine goes on here");
    let report = end(following).expect(0).json();
    assert!(guest_is_ok(&report), "{report}");
    let epoch = number(&report, "/epoch");
    assert_eq!(digest(&pair.store(0), epoch), digest(&pair.store(1), epoch));
    let newest = slackwater::store::Chain::open(pair.store(0)).unwrap().newest();
    assert_eq!(newest.0, epoch, "the last epoch there is the first here");
    let witness = format!("--witness file:{}/witness/vm", pair.dir.path().display());
    let again = format!("restore --store {} --continue {witness} --epochs 2 --json", pair.store(0).display());
    run(&again).expect(4).says(&["another machine goes on"]);
}

/// A machine whose wish can't be granted stays, and runs on.
#[test]
fn a_machine_that_cannot_go_stays() {
    if !kvm_or_skip("native::migrate::a_machine_that_cannot_go_stays") {
        return;
    }
    let pair = Pair::new("");
    let mut running = pair.primary(0, CHURN);
    // Nobody listens.
    migrate(&pair, 0, "").refused(1, &["can't go to", "connecting to the standby"]);
    let mut following = pair.standby(1);
    pair.wait_until_paired(0, &mut [&mut running, &mut following]);
    // It is ready, and no pause is as short as that.
    migrate(&pair, 0, "--downtime 1us --within 1s").refused(1, &["would stand still"]);
    let now = status(&pair.control(0));
    assert_eq!(now["role"], "paired", "{now}");
    assert!(!running.has_ended() && !following.has_ended());
    let report = end(running).expect(0).json();
    assert!(guest_is_ok(&report), "{report}");
    end(following).expect(0);
}

/// Either end is killed at some moment of a migration: at most one machine goes on, and the one
/// that the witness names can.
#[test]
fn a_migration_that_is_killed_leaves_one_machine() {
    if !kvm_or_skip("native::migrate::a_migration_that_is_killed_leaves_one_machine") {
        return;
    }
    let mut random = Random::seeded("native::migrate", 15);
    for round in 0..rounds(1, 4, 60) {
        let pair = Pair::new("");
        let mut following = pair.standby(1);
        let mut running = pair.primary(0, CHURN);
        pair.wait_until_paired(0, &mut [&mut running, &mut following]);
        let (control, to) = (pair.control(0), pair.ports[1]);
        let asks = std::thread::spawn(move || {
            run(&format!("migrate --control {} --to 127.0.0.1:{to} --downtime 2s --json", control.display()))
        });
        // Somewhere in it: this is no wait for anything.
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        let source_dies = round % 2 == 0;
        if source_dies {
            running.signal(libc::SIGKILL);
            following.wait_for_message("the machine goes on here");
            let report = end(following).expect(0).json();
            assert!(guest_is_ok(&report), "{report}");
            drop(running);
        } else {
            following.signal(libc::SIGKILL);
            let names_target = || {
                let register = pair.register()?;
                match register.holder {
                    Holder::Solo(_) if running.has_ended() => Some(true),
                    // It was told that its standby is lost, or that it has the machine no more.
                    Holder::Solo(_) if register.generation.0 > 1 && status_is(&pair, "solo") => Some(false),
                    _ => None,
                }
            };
            let is_gone = until("nobody has the machine", names_target);
            if is_gone {
                running.wait().expect(0).says(&["was handed over"]);
                let witness = format!("--witness file:{}/witness/vm", pair.dir.path().display());
                let again = format!("restore --store {} --continue {witness} --epochs 2 --json", pair.store(0).display());
                run(&again).expect(4);
                let again =
                    format!("restore --store {} --continue {witness} --accept-loss --epochs 2 --json", pair.store(1).display());
                let report = run(&again).expect(0).json();
                assert!(guest_is_ok(&report), "{report}");
            } else {
                let report = end(running).expect(0).json();
                assert!(guest_is_ok(&report), "{report}");
            }
            drop(following);
        }
        let _ = asks.join().unwrap();
    }
}

fn status_is(pair: &Pair, role: &str) -> bool {
    let asked = run(&format!("status --control {} --json", pair.control(0).display()));
    asked.code() == 0 && asked.json()["role"] == role
}

/// Without a witness nothing takes over, until a person says so.
#[test]
fn without_a_witness_a_person_decides() {
    if !kvm_or_skip("native::migrate::without_a_witness_a_person_decides") {
        return;
    }
    let pair = Pair::without_witness();
    let mut following = pair.standby(1);
    let running = pair.primary(0, CHURN);
    until("no pair", || (status_of(&pair, 1)? == "hot").then_some(()));
    let newest = || slackwater::store::Chain::open(pair.store(1)).map_or(0, |chain| chain.newest().0 % 1_000_000);
    until("no epochs come", || (newest() >= 5).then_some(()));
    running.kill();
    until("the silence is not noticed", || (status_of(&pair, 1)? == "promoting").then_some(()));
    let promote = |options: &str| run(&format!("promote --control {} {options}", pair.control(1).display()));
    let said = promote("").expect(0);
    assert!(said.stdout.contains("nothing was done") && said.stdout.contains("two of this machine"), "{said}");
    assert_eq!(status_of(&pair, 1).unwrap(), "promoting");
    assert!(!following.has_ended());
    promote("--accept-risk").expect(0);
    following.wait_for_message("the machine goes on here");
    until("it is not alone", || (status_of(&pair, 1)? == "solo").then_some(()));
    promote("--accept-risk").refused(1, &["no standby"]);
    let report = end(following).expect(0).json();
    assert!(guest_is_ok(&report), "{report}");
}

fn status_of(pair: &Pair, host: usize) -> Option<String> {
    let asked = run(&format!("status --control {} --json", pair.control(host).display()));
    (asked.code() == 0).then(|| asked.json()["role"].as_str().unwrap().to_owned())
}

/// What comes back for bytes that are written to the socket.
fn ask(control: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn post(control: &Path, path: &str, body: &str) -> String {
    let length = body.len();
    ask(control, &format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"))
}

/// What the control socket takes, and what it refuses.
#[test]
fn a_machine_is_asked_and_told_at_its_control_socket() {
    if !kvm_or_skip("native::migrate::a_machine_is_asked_and_told_at_its_control_socket") {
        return;
    }
    let pair = Pair::without_standby();
    let control = pair.control(0);
    // What a process has left behind that was killed.
    drop(std::os::unix::net::UnixListener::bind(&control).unwrap());
    let mut running = pair.primary(0, CHURN);
    wait_for_control(&pair, 0);
    assert_eq!(std::fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    let get = |path: &str| ask(&control, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    for (answer, code) in [
        (get("/nothing"), "404"),
        (get("/stop"), "405"),
        (post(&control, "/status", ""), "405"),
        (post(&control, "/migrate", "{"), "400"),
        (post(&control, "/migrate", "{\"to\":\"x\"}"), "400"),
        (post(&control, "/standby", "{\"address\":\"x\",\"more\":1}"), "400"),
        (post(&control, "/promote", "{\"accept_risk\":true}"), "409"),
        (post(&control, "/promote", "{\"accept_risk\":false}"), "400"),
    ] {
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{code}: {answer}");
        assert!(answer.contains("{\"error\":"), "{answer}");
    }
    assert!(get("/metrics").contains("\nslackwater_role{role=\"solo\"} 1\n"));
    let before = status(&control);
    let answer = post(&control, "/checkpoint", "");
    let taken: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert!(taken["stored"] == true && taken["epoch"].as_u64() > before["complete_epoch"].as_u64(), "{taken} after {before}");
    // Another process may not take the socket.
    let store = pair.dir.path().join("other");
    let other = format!("checkpoint --store {} {CHURN} --control {} --epochs 1", store.display(), control.display());
    run(&other).refused(2, &["somebody listens there"]);
    // A standby is attached while it runs, and given up again.
    let mut following = pair.standby(1);
    let address = format!("127.0.0.1:{}", pair.ports[1]);
    assert!(post(&control, "/standby", &format!("{{\"address\":\"{address}\"}}")).contains(" 200 "));
    pair.wait_until_paired(0, &mut [&mut running, &mut following]);
    assert_eq!(status(&control)["standby"], address.as_str());
    assert!(post(&control, "/standby", "{\"address\":null}").contains(" 200 "));
    until("it is not alone", || status_of(&pair, 0).filter(|role| role == "solo"));
    until("the standby does not know", || status_of(&pair, 1).filter(|role| role == "waiting"));
    assert!(post(&control, "/stop", "").contains(" 200 "));
    let report = running.wait().expect(0).json();
    assert!(guest_is_ok(&report), "{report}");
    assert!(!control.exists(), "the socket is gone");
    run(&format!("status --control {}", control.display())).refused(1, &["nothing answers"]);
    end(following).expect(0);
}
