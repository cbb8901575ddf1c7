//! The witness in etcd: three nodes that die, and servers that do what none should.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use slackwater::replica::register::Register;
use slackwater::replica::witness::etcd::EtcdWitness;
use slackwater::replica::witness::manual::Permission;
use slackwater::replica::witness::{Swapped, Witness, WitnessError, WitnessSpec};

use super::conformance::{LIMIT, PATIENCE, after, conforms, race, refused, settled, text};
use super::http_server::{Reply, Request, Server};
use super::servers::Cluster;

#[test]
fn three_nodes_conform() {
    let Some(cluster) = Cluster::start("witness::etcd::three_nodes_conform") else { return };
    let spec: WitnessSpec = format!("etcd:{}/web", cluster.endpoints.join(",")).parse().unwrap();
    conforms(&|| spec.open(std::path::Path::new("store"), &Permission::default(), LIMIT).unwrap());
    // The last endpoint alone has it, too; and another machine is another register.
    let last = &cluster.endpoints[2..];
    assert!(EtcdWitness::new(last, false, "web", LIMIT).unwrap().read().unwrap().is_some());
    assert_eq!(EtcdWitness::new(last, false, "web2", LIMIT).unwrap().read().unwrap(), None);
}

#[test]
fn a_leader_that_dies_in_a_race_changes_no_outcome_and_without_a_majority_nobody_wins() {
    let Some(cluster) = Cluster::start("witness::etcd::a_leader_that_dies") else { return };
    let (endpoints, cluster) = (cluster.endpoints.clone(), RefCell::new(cluster));
    let open = |limit| EtcdWitness::new(&endpoints, false, "web", limit).unwrap();
    let mut witness = open(LIMIT);
    let first = after(None);
    assert_eq!(witness.swap(None, &first).unwrap(), Swapped::Won);
    let leader = cluster.borrow().leader();
    let last = race(&|| Box::new(open(LIMIT)), first, 12, &|round| {
        if round == 4 {
            cluster.borrow_mut().kill(leader);
        }
    });
    assert_eq!(witness.read().unwrap(), Some(last));

    let mut cluster = cluster.into_inner();
    cluster.kill((leader + 1) % 3);
    // A limit that is much shorter than what a node itself waits for a majority.
    let limit = Duration::from_secs(1);
    let new = after(Some(&last));
    for mut witness in [open(limit), open(limit)] {
        let began = Instant::now();
        let (read, swapped) = (witness.read(), witness.swap(Some(&last), &new));
        assert!(read.is_err(), "{read:?}");
        assert!(matches!(swapped, Err(WitnessError::Unknown(_))), "{swapped:?}");
        assert!(began.elapsed() < PATIENCE);
    }
    // With none at all, the request surely went nowhere.
    cluster.kill((leader + 2) % 3);
    let said = refused(open(LIMIT).swap(Some(&last), &new));
    for endpoint in &endpoints {
        assert!(said.contains(endpoint), "{said}");
    }
}

/// A key and value store with the two requests that are made of it.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<BTreeMap<String, String>>>);

impl Fake {
    fn answer(&self, request: &Request) -> Reply {
        let asked: Value = serde_json::from_slice(&request.body).unwrap();
        let mut store = self.0.lock().unwrap();
        let range = |store: &BTreeMap<String, String>, key: &str| match store.get(key) {
            Some(value) => json!({"kvs": [{"key": key, "value": value, "version": "1"}], "count": "1"}),
            None => json!({}),
        };
        let header = json!({"cluster_id": "7", "member_id": "1"});
        let mut answer = match request.path.as_str() {
            "/v3/kv/range" => range(&store, asked["key"].as_str().unwrap()),
            "/v3/kv/txn" => {
                let compare = &asked["compare"][0];
                let key = compare["key"].as_str().unwrap();
                let holds = match compare["target"].as_str().unwrap() {
                    "VALUE" => store.get(key).map(String::as_str) == compare["value"].as_str(),
                    _ => !store.contains_key(key),
                };
                if holds {
                    let put = asked["success"][0]["request_put"]["value"].as_str().unwrap().to_owned();
                    store.insert(key.to_owned(), put);
                    json!({"succeeded": true, "responses": [{"response_put": {}}]})
                } else {
                    json!({"responses": [{"response_range": range(&store, key)}]})
                }
            }
            path => panic!("{path}"),
        };
        answer["header"] = header;
        Reply::text(200, answer.to_string())
    }

    /// Serves, but for what `instead` does in the place of an answer. Whether the request is
    /// carried out is the first of what it gives.
    fn serve(&self, instead: impl Fn(&Request) -> Option<(bool, Reply)> + Send + Sync + 'static) -> Server {
        let own = self.clone();
        Server::start(move |request| match instead(request) {
            None => own.answer(request),
            Some((is_carried_out, reply)) => {
                if is_carried_out {
                    own.answer(request);
                }
                reply
            }
        })
    }

    fn holds(&self, register: &Register) -> bool {
        self.0.lock().unwrap().values().any(|value| *value == STANDARD.encode(register.to_json()))
    }
}

fn witness(servers: &[&Server], limit: Duration) -> EtcdWitness {
    let endpoints: Vec<_> = servers.iter().map(|server| server.address.to_string()).collect();
    EtcdWitness::new(&endpoints, false, "web", limit).unwrap()
}

#[test]
fn the_fake_conforms() {
    let fake = Fake::default();
    let server = fake.serve(|_| None);
    conforms(&|| Box::new(witness(&[&server], LIMIT)));
}

#[test]
fn an_answer_that_is_lost_is_found_again() {
    let first = after(None);
    for is_carried_out in [true, false] {
        let fake = Fake::default();
        // At the same endpoint again, and at another one.
        let loses = fake.serve(move |request| (request.number == 0).then_some((is_carried_out, Reply::Close)));
        assert_eq!(witness(&[&loses], LIMIT).swap(None, &first).unwrap(), Swapped::Won);
        assert!(fake.holds(&first) && loses.requests() == 2);
        let (deaf, sound) = (fake.serve(move |_| Some((is_carried_out, Reply::text(503, "no")))), fake.serve(|_| None));
        let second = after(Some(&first));
        assert_eq!(witness(&[&deaf, &sound], LIMIT).swap(Some(&first), &second).unwrap(), Swapped::Won);
        assert_eq!((deaf.requests(), sound.requests()), (1, 1));
    }
}

#[test]
fn a_swap_that_was_carried_out_unseen_and_superseded_is_lost() {
    let fake = Fake::default();
    let sound = fake.serve(|_| None);
    let first = after(None);
    let second = after(Some(&first));
    let third = after(Some(&second));
    let supersede = {
        let (fake, second, third) = (fake.clone(), second, third);
        move |request: &Request| {
            // It is carried out, nobody hears of it, and somebody else goes on from it.
            fake.answer(request);
            let mut store = fake.0.lock().unwrap();
            for value in store.values_mut().filter(|value| **value == STANDARD.encode(second.to_json())) {
                *value = STANDARD.encode(third.to_json());
            }
            Some((false, Reply::Close))
        }
    };
    let loses = fake.serve(supersede);
    assert_eq!(witness(&[&sound], LIMIT).swap(None, &first).unwrap(), Swapped::Won);
    assert_eq!(witness(&[&loses, &sound], LIMIT).swap(Some(&first), &second).unwrap(), Swapped::Other(Some(third)));
}

#[test]
fn what_is_no_answer_leaves_it_unknown() {
    let first = after(None);
    let second = after(Some(&first));
    let limit = Duration::from_millis(300);
    let old = {
        let kvs = json!({"kvs": [{"value": STANDARD.encode(first.to_json())}]});
        json!({"header": {"cluster_id": "7"}, "responses": [{"response_range": kvs}]}).to_string()
    };
    type Make = Box<dyn Fn() -> Reply + Send + Sync>;
    let cases: [(&str, Make); 10] = [
        ("a hang", Box::new(|| Reply::Hang)),
        ("a lost connection", Box::new(|| Reply::Close)),
        ("an error", Box::new(|| Reply::text(500, "etcdserver: request timed out"))),
        ("a timeout", Box::new(|| Reply::text(408, ""))),
        ("a huge body", Box::new(|| Reply::Endless)),
        ("no HTTP", Box::new(|| Reply::Bytes(b"SSH-2.0-x\r\n".to_vec()))),
        ("no JSON", Box::new(|| Reply::text(200, "<html>"))),
        ("no header", Box::new(|| Reply::text(200, "{\"succeeded\":true}"))),
        ("no range", Box::new(|| Reply::text(200, "{\"header\":{\"cluster_id\":\"7\"}}"))),
        ("the old value", Box::new(move || Reply::text(200, old.clone()))),
    ];
    for (what, reply) in cases {
        let server = Server::start(move |_| reply());
        let began = Instant::now();
        let swapped = witness(&[&server], limit).swap(Some(&first), &second);
        assert!(matches!(swapped, Err(WitnessError::Unknown(_))), "{what}: {swapped:?}");
        assert!(began.elapsed() < PATIENCE && server.requests() > 0, "{what}");
        let read = witness(&[&server], limit).read();
        match what {
            "no range" | "the old value" => assert_eq!(read.unwrap(), None, "an answer to a range, with no value in it"),
            _ => assert!(read.is_err(), "{what}: {read:?}"),
        }
    }
}

#[test]
fn what_surely_was_not_carried_out_is_refused() {
    let first = after(None);
    for status in [400, 401, 403, 404, 302] {
        let server = Server::start(move |_| Reply::text(status, "etcdserver: no\u{1b}[2J"));
        let said = refused(witness(&[&server], LIMIT).swap(None, &first));
        assert!(said.contains(&status.to_string()) && said.contains("etcdserver: no") && !said.contains('\u{1b}'), "{said}");
        assert_eq!(server.requests(), 1);
    }
    let gone = Server::start(|_| Reply::Close).address.to_string();
    let mut witness = EtcdWitness::new(std::slice::from_ref(&gone), false, "web", LIMIT).unwrap();
    assert!(refused(witness.swap(None, &first)).contains(&gone));
    assert!(refused(witness.read()).contains(&gone));
}

#[test]
fn a_value_that_is_no_register_is_refused() {
    let fake = Fake::default();
    let server = fake.serve(|_| None);
    let first = after(None);
    let mut witness = witness(&[&server], LIMIT);
    assert_eq!(witness.swap(None, &first).unwrap(), Swapped::Won);
    for value in [STANDARD.encode("x"), "%".to_owned(), STANDARD.encode(format!("{}\n", first.to_json()))] {
        *fake.0.lock().unwrap().values_mut().next().unwrap() = value;
        for said in [refused(witness.read()), refused(witness.swap(Some(&first), &after(Some(&first))))] {
            assert!(said.contains("slackwater/web holds no register"), "{said}");
        }
    }
}

#[test]
fn the_endpoint_that_answered_last_is_the_first_to_be_asked() {
    let fake = Fake::default();
    let (hangs, sound) = (fake.serve(|_| Some((false, Reply::Hang))), fake.serve(|_| None));
    let mut witness = witness(&[&hangs, &sound], Duration::from_secs(6));
    let mut last = after(None);
    assert_eq!(witness.swap(None, &last).unwrap(), Swapped::Won);
    for _ in 0..5 {
        let new = after(Some(&last));
        assert_eq!(settled(&mut witness, &last, &new), Swapped::Won);
        last = new;
    }
    assert_eq!(hangs.requests(), 1);
}

#[test]
fn an_endpoint_of_another_cluster_is_noticed() {
    let fake = Fake::default();
    let sound = fake.serve(|request| (request.number > 0).then(|| (false, Reply::text(503, "away"))));
    let other = Server::start(|_| Reply::text(200, "{\"header\":{\"cluster_id\":\"8\"},\"succeeded\":true}"));
    let mut witness = witness(&[&sound, &other], Duration::from_millis(300));
    let first = after(None);
    assert_eq!(witness.swap(None, &first).unwrap(), Swapped::Won);
    let error = witness.swap(Some(&first), &after(Some(&first))).unwrap_err();
    assert!(text(&error).contains("cluster 8"), "{}", text(&error));
}
