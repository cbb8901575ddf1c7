//! `slackwater ledger-client` against a server in this process, which keeps to the rules or not.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use slackwater::ledger::{Answer, Request, Server};

use crate::support::command::{Running, finish, run, slackwater};

/// A server for as long as the test runs, which gives the answers that `answer` makes. Returns its
/// port.
fn serve(mut answer: impl FnMut(&mut Server, &Request) -> Option<Answer> + Send + 'static) -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    // It waits for requests when the process ends.
    thread::spawn(move || {
        let mut server = Server::default();
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let answer = Request::decode(&bytes[..length]).ok().and_then(|request| answer(&mut server, &request));
            if let Some(answer) = answer {
                let _ = socket.send_to(&answer.encode(), from);
            }
        }
    });
    port
}

#[test]
fn a_server_that_keeps_to_the_rules() {
    let port = serve(Server::take);
    let found = run(&format!("ledger-client --udp 127.0.0.1:{port} --clients 4 --requests 500 --payload 1024 --json")).expect(0);
    let report = found.json();
    assert_eq!((report["end"].as_str(), report["answered"].as_u64()), (Some("done"), Some(500)), "{found}");
    assert!(report["violation"].is_null() && report["latency_us"]["p50"].as_u64() > Some(0), "{found}");
    let found = run(&format!("ledger-client --udp 127.0.0.1:{port} --time 50ms")).expect(0);
    assert!(found.stdout.contains("requests answered") && found.stdout.contains("the longest silence was"), "{found}");
}

#[test]
fn a_server_that_forgot_what_it_answered() {
    // A client that it does not know any more gets no answer.
    let port = serve(|server, request| {
        if request.number() == 3 {
            *server = Server::default();
        }
        server.take(request)
    });
    let found = run(&format!("ledger-client --udp 127.0.0.1:{port} --requests 9 --give-up 200ms --json"));
    let found = found.expect(1).says(&["the guest answers no more"]);
    assert_eq!(found.json()["end"], "gave_up", "{found}");
    let port = serve(|server, request| {
        let mut answer = server.take(request)?;
        answer.after.hash ^= u64::from(request.number() == 7);
        Some(answer)
    });
    let found = run(&format!("ledger-client --udp 127.0.0.1:{port} --requests 9 --json"));
    let found = found.expect(1).says(&["the guest lost what it had answered", "request 7"]);
    let report = found.json();
    assert_eq!((&report["end"], &report["violation"]["kind"]), (&"violation".into(), &"extends".into()), "{found}");
    assert_eq!((&report["answered"], &report["violation"]["number"]), (&6.into(), &7.into()), "{found}");
}

#[test]
fn a_signal_ends_it_and_a_socket_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net");
    let client = Running::start(&mut slackwater(["ledger-client", "--json", "--unix", path.to_str().unwrap()]));
    while !path.exists() {
        thread::yield_now();
    }
    let second = finish(&mut slackwater(["ledger-client", "--unix", path.to_str().unwrap()]));
    second.refused(1, &["listening at a Unix socket failed", "in use"]);
    client.signal(libc::SIGTERM);
    let found = client.wait().expect(0);
    assert_eq!((&found.json()["end"], path.exists()), (&"stopped".into(), false), "{found}");
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    for (options, text) in [
        ("--clients 65", "65 clients: a server knows 1 to 64"),
        ("--clients 0", "0 clients"),
        ("--payload 1025", "a payload of 1025 bytes: 1024 are the most"),
        ("--pages 70000", "a request for 70000 pages: 65536 are the most"),
        ("--retry 0ms", "must be more than nothing"),
        ("--guest 10.77.0.2:7077", "cannot be used with"),
    ] {
        run(&format!("ledger-client --udp 127.0.0.1:9 {options}")).refused(2, &[text]);
    }
    run("ledger-client --unix /proc/nothing").refused(1, &["listening at a Unix socket failed"]);
}
