//! The witness in a bucket: a server that honours conditions, and some that do not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use slackwater::replica::witness::s3::{S3Credentials, S3Place, S3Witness};
use slackwater::replica::witness::{Swapped, Witness, WitnessError, WitnessFault, WitnessSpec};

use super::conformance::{LIMIT, PATIENCE, after, conforms, refused, text, unknown};
use super::http_server::{Reply, Request, Server};
use super::servers::Moto;

fn place(endpoint: &str) -> S3Place {
    match format!("s3:machines/a/web?endpoint={endpoint}").parse().unwrap() {
        WitnessSpec::S3(place) => place,
        other => panic!("{other}"),
    }
}

fn open(endpoint: &str, limit: Duration) -> Result<S3Witness, WitnessFault> {
    S3Witness::open(&place(endpoint), S3Credentials::new("key", "secret", None), limit)
}

#[test]
fn moto_conforms() {
    let Some(moto) = Moto::start("witness::s3::moto_conforms") else { return };
    conforms(&|| Box::new(open(&moto.endpoint, LIMIT).unwrap()));
    // What the tests of the bucket made is gone.
    let mut listed = ureq::get(format!("{}/machines", moto.endpoint)).call().unwrap();
    let listed = listed.body_mut().read_to_string().unwrap();
    assert!(listed.contains("<Key>a/web</Key>") && !listed.contains("slackwater-test"), "{listed}");

    let missing = S3Place { bucket: "absent".to_owned(), ..place(&moto.endpoint) };
    let error = S3Witness::open(&missing, S3Credentials::new("key", "secret", None), LIMIT).unwrap_err();
    assert!(text(&error).contains("NoSuchBucket"), "{error}");
}

/// By path: the bytes, and the number of the put that wrote them.
type Objects = BTreeMap<String, (Vec<u8>, usize)>;

/// A bucket, which honours some conditions.
#[derive(Clone)]
struct Fake {
    objects: Arc<Mutex<Objects>>,
    honours: &'static [&'static str],
}

impl Fake {
    fn new(honours: &'static [&'static str]) -> Self {
        Self { objects: Arc::default(), honours }
    }

    fn answer(&self, request: &Request) -> Reply {
        let mut objects = self.objects.lock().unwrap();
        let tag = |number: usize| format!("\"{number}\"");
        let found = objects.get(&request.path).cloned();
        match request.method.as_str() {
            "GET" => match found {
                Some((bytes, number)) => Reply::Answer(200, Some(tag(number)), bytes),
                None => Reply::text(404, "<Error><Code>NoSuchKey</Code></Error>"),
            },
            "DELETE" => {
                objects.remove(&request.path);
                Reply::text(204, "")
            }
            "PUT" => {
                let asked = |name: &str| request.headers.get(name).filter(|_| self.honours.contains(&name));
                if asked("if-none-match").is_some() && found.is_some() {
                    return Reply::text(412, "<Error><Code>PreconditionFailed</Code></Error>");
                }
                if let Some(wanted) = asked("if-match") {
                    match found {
                        None => return Reply::text(404, "<Error><Code>NoSuchKey</Code></Error>"),
                        Some((_, number)) if tag(number) != *wanted => return Reply::text(412, ""),
                        Some(_) => {}
                    }
                }
                objects.insert(request.path.clone(), (request.body.clone(), request.number));
                Reply::Answer(200, Some(tag(request.number)), Vec::new())
            }
            method => panic!("{method}"),
        }
    }

    /// Serves, but for what `instead` does about the register in the place of an answer. Whether
    /// the request is carried out is the first of what it gives.
    fn serve(&self, instead: impl Fn(&Request) -> Option<(bool, Reply)> + Send + Sync + 'static) -> Server {
        let own = self.clone();
        Server::start(move |request| match Some(request).filter(|request| request.path.ends_with("/web")).and_then(&instead) {
            None => own.answer(request),
            Some((is_carried_out, reply)) => {
                if is_carried_out {
                    own.answer(request);
                }
                reply
            }
        })
    }
}

const BOTH: &[&str] = &["if-none-match", "if-match"];

fn endpoint(server: &Server) -> String {
    format!("http://{}", server.address)
}

#[test]
fn the_fake_conforms() {
    let fake = Fake::new(BOTH);
    let server = fake.serve(|_| None);
    conforms(&|| Box::new(open(&endpoint(&server), LIMIT).unwrap()));
    assert_eq!(fake.objects.lock().unwrap().len(), 1);
}

#[test]
fn a_bucket_that_does_not_honour_conditions_is_refused() {
    for (honours, says) in [(&["if-match"][..], "If-None-Match"), (&["if-none-match"], "If-Match"), (&[], "If-Match")] {
        let fake = Fake::new(honours);
        let server = fake.serve(|_| None);
        let error = open(&endpoint(&server), LIMIT).unwrap_err();
        assert!(matches!(error, WitnessFault::IgnoresCondition { condition, .. } if condition == says), "{error:?}");
        let said = error.to_string();
        assert!(said.contains(&endpoint(&server)) && said.contains(says) && !said.contains("Signature"), "{said}");
        assert!(fake.objects.lock().unwrap().is_empty(), "the test's objects are removed");
    }
}

#[test]
fn a_bucket_that_looks_first_and_puts_then_is_refused_by_the_race() {
    for (header, says) in [("if-none-match", "If-None-Match"), ("if-match", "If-Match")] {
        let fake = Fake::new(BOTH);
        let (own, waiting) = (fake.clone(), Arc::new((Mutex::new(0), std::sync::Condvar::new())));
        // Of two puts that come at the same time, both look before either is carried out.
        let server = Server::start(move |request| {
            let races = [format!("{header} one"), format!("{header} other")];
            if !races.iter().any(|body| body.as_bytes() == request.body) {
                return own.answer(request);
            }
            let (count, both) = &*waiting;
            let mut count = count.lock().unwrap();
            *count += 1;
            both.notify_all();
            let waited = both.wait_timeout_while(count, PATIENCE, |count| *count < 2).unwrap();
            assert!(!waited.1.timed_out());
            drop(waited);
            own.objects.lock().unwrap().insert(request.path.clone(), (request.body.clone(), request.number));
            Reply::text(200, "")
        });
        let error = open(&endpoint(&server), LIMIT).unwrap_err();
        assert!(matches!(error, WitnessFault::IgnoresCondition { condition, .. } if condition == says), "{error:?}");
    }
}

#[test]
fn an_answer_that_is_lost_is_found_again() {
    let first = after(None);
    let second = after(Some(&first));
    for (is_carried_out, status) in [(true, None), (false, None), (true, Some(503)), (false, Some(500)), (false, Some(409))] {
        let puts = Mutex::new(0);
        let server = Fake::new(BOTH).serve(move |request| {
            if request.method != "PUT" {
                return None;
            }
            let mut puts = puts.lock().unwrap();
            *puts += 1;
            // Every other one.
            (*puts % 2 == 1).then(|| (is_carried_out, status.map_or(Reply::Close, |status| Reply::text(status, ""))))
        });
        let mut witness = open(&endpoint(&server), LIMIT).unwrap();
        assert_eq!(witness.swap(None, &first).unwrap(), Swapped::Won, "{is_carried_out} {status:?}");
        assert_eq!(witness.swap(Some(&first), &second).unwrap(), Swapped::Won, "{is_carried_out} {status:?}");
        assert_eq!(witness.swap(None, &first).unwrap(), Swapped::Other(Some(second)));
    }
}

#[test]
fn what_is_no_answer_leaves_it_unknown() {
    let limit = Duration::from_millis(400);
    type Make = Box<dyn Fn() -> Reply + Send + Sync>;
    let cases: [(&str, Make); 5] = [
        ("a hang", Box::new(|| Reply::Hang)),
        ("a lost connection", Box::new(|| Reply::Close)),
        ("an error", Box::new(|| Reply::text(500, ""))),
        ("a huge body", Box::new(|| Reply::Endless)),
        ("no HTTP", Box::new(|| Reply::Bytes(vec![0; 100]))),
    ];
    let first = after(None);
    for (what, reply) in cases {
        let fake = Fake::new(BOTH);
        let reply = Arc::new(reply);
        let broken = reply.clone();
        let server = fake.serve(move |request| (request.method == "PUT").then(|| (false, broken())));
        // The test of the bucket is in time, and has a limit of its own.
        let mut witness = S3Witness::open(&place(&endpoint(&server)), S3Credentials::new("k", "s", Some("t")), LIMIT)
            .unwrap()
            .with_limit(limit);
        let began = Instant::now();
        let said = unknown(witness.swap(None, &first));
        assert!(said.contains("machines/a/web") && !said.contains("Signature"), "{what}: {said}");
        // A server that has nothing to say about the value, either.
        let server = fake.serve(move |_| Some((false, reply())));
        let mut witness =
            S3Witness::open(&place(&endpoint(&server)), S3Credentials::new("k", "s", None), LIMIT).unwrap().with_limit(limit);
        assert!(witness.read().is_err(), "{what}");
        let swapped = witness.swap(None, &first);
        assert!(matches!(swapped, Err(WitnessError::Refused(_))), "{what}: nothing was put: {swapped:?}");
        assert!(began.elapsed() < PATIENCE);
    }
}

#[test]
fn what_surely_was_not_carried_out_is_refused() {
    let first = after(None);
    for (status, body) in
        [(403, "<Code>AccessDenied</Code>"), (404, "<Code>NoSuchBucket</Code>"), (301, "<Code>PermanentRedirect</Code>")]
    {
        let server = Fake::new(BOTH).serve(move |_| Some((false, Reply::text(status, body))));
        let mut witness = open(&endpoint(&server), LIMIT).unwrap();
        assert!(refused(witness.read()).contains(body));
        assert!(refused(witness.swap(None, &first)).contains(body));
    }
    let fake = Fake::new(BOTH);
    let server = fake.serve(|_| None);
    let mut witness = open(&endpoint(&server), LIMIT).unwrap();
    fake.objects.lock().unwrap().insert("/machines/a/web".to_owned(), (b"{}".to_vec(), 0));
    assert!(refused(witness.read()).contains("holds no register"));
    let gone = endpoint(&Server::start(|_| Reply::Close));
    assert!(text(&open(&gone, LIMIT).unwrap_err()).contains(&gone));
}
