//! Clients that each have one request under way: what is to be sent when, and what came of it.
//! Neither I/O nor a clock: times are told.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::checker::{Accepted, Checker, Violation};
use super::protocol::{Answer, CLIENTS_MAX, HASH_FACTOR, ProtocolError, Request};
use crate::clock::whole_us;

/// Times are counted up to an hour, with three digits.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// What the clients are to do.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How many clients there are, 1 to [`CLIENTS_MAX`]: so many requests are under way.
    pub clients: usize,
    /// The id of the first; the others follow. A server knows an id for ever, so other runs take
    /// others.
    pub first_client: u64,
    /// After so many answers it is done.
    pub requests: Option<u64>,
    /// After this time it is done.
    pub time: Option<Duration>,
    /// Pages that each request asks for.
    pub pages: u32,
    /// Bytes of each request's payload.
    pub payload_bytes: usize,
    /// A request is sent again after this time without an answer.
    pub retry: Duration,
    /// It gives up when no request was answered for this time.
    pub give_up: Option<Duration>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            clients: 1,
            first_client: 1,
            requests: None,
            time: None,
            pages: 1,
            payload_bytes: 64,
            retry: Duration::from_millis(20),
            give_up: None,
        }
    }
}

/// Why there are no such clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Their number.
    #[error("{found} clients: a server knows 1 to {CLIENTS_MAX}")]
    Clients {
        /// The clients asked for.
        found: usize,
    },
    /// Their requests.
    #[error(transparent)]
    Request(#[from] ProtocolError),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As many answers as were asked for, or the time is over.
    Done,
    /// Nothing was answered for too long.
    GaveUp,
}

/// What came of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests that were answered.
    pub answered: u64,
    /// How often one was sent again.
    pub resent: u64,
    /// From a request's first sending to its answer.
    pub latency: Latency,
    /// The longest time without an answer to any client.
    pub longest_silence: Duration,
}

/// Times from a request to its answer, in microseconds; 0 where there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50_us: u64,
    /// Of a hundred, 95 did not.
    pub p95_us: u64,
    /// Of a hundred, 99 did not.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// The clients. All times are from one beginning, when the first requests may go.
#[derive(Debug)]
pub struct Load {
    options: LoadOptions,
    checker: Checker,
    /// Each client's request under way. None: it has asked its last one.
    under_way: Vec<Option<UnderWay>>,
    asked: u64,
    answered: u64,
    resent: u64,
    latency: Histogram<u64>,
    last_answer: Duration,
    longest_silence: Duration,
}

#[derive(Debug)]
struct UnderWay {
    client: u64,
    number: u64,
    bytes: Vec<u8>,
    /// When it was first sent; none before that.
    first_sent: Option<Duration>,
    /// When it is to be sent next.
    due: Duration,
}

impl Load {
    /// Clients that have not asked anything yet.
    ///
    /// # Errors
    /// [`LoadError`]: options that are out of bounds.
    pub fn new(options: LoadOptions) -> Result<Self, LoadError> {
        if !(1..=CLIENTS_MAX).contains(&options.clients) {
            return Err(LoadError::Clients { found: options.clients });
        }
        let mut load = Self {
            checker: Checker::default(),
            under_way: Vec::new(),
            asked: 0,
            answered: 0,
            resent: 0,
            latency: Histogram::new_with_max(LATENCY_US_MAX, 3).expect("bounds that there can be"),
            last_answer: Duration::ZERO,
            longest_silence: Duration::ZERO,
            options,
        };
        for index in 0..load.options.clients as u64 {
            let first = load.ask(load.options.first_client.wrapping_add(index), 1, Duration::ZERO)?;
            load.under_way.push(first);
        }
        Ok(load)
    }

    /// Calls `send` with the bytes of each request that is to be sent at `now`.
    ///
    /// # Errors
    /// What `send` returns.
    pub fn send_due<E>(&mut self, now: Duration, mut send: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        for request in self.under_way.iter_mut().flatten().filter(|request| request.due <= now) {
            self.resent += u64::from(request.first_sent.is_some());
            request.first_sent.get_or_insert(now);
            request.due = now.saturating_add(self.options.retry);
            send(&request.bytes)?;
        }
        Ok(())
    }

    /// When something is to be sent next, if nothing comes before.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.under_way.iter().flatten().map(|request| request.due).min()
    }

    /// The way to the server is open, again: what is under way is to be sent at once.
    pub fn hurry(&mut self, now: Duration) {
        self.under_way.iter_mut().flatten().for_each(|request| request.due = request.due.min(now));
    }

    /// Takes a datagram that came at `now`. One that is no answer is ignored.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn take(&mut self, now: Duration, datagram: &[u8]) -> Result<(), Violation> {
        let Ok(answer) = Answer::decode(datagram) else { return Ok(()) };
        if self.checker.check(&answer)? == Accepted::Again {
            return Ok(());
        }
        let (client, number) = (answer.client, answer.number);
        let is_it = |request: &Option<UnderWay>| request.as_ref().is_some_and(|it| it.client == client && it.number == number);
        let Some(place) = self.under_way.iter().position(is_it) else { return Ok(()) };
        // A number never wraps: that would take 2^64 answers. A request of the same shape was made
        // before.
        let next = self.ask(client, number.wrapping_add(1), now).unwrap_or_default();
        let taken = self.under_way.get_mut(place).and_then(|place| std::mem::replace(place, next));
        if let Some(first_sent) = taken.and_then(|request| request.first_sent) {
            self.latency.saturating_record(whole_us(now.saturating_sub(first_sent)));
        }
        self.answered += 1;
        self.longest_silence = self.longest_silence.max(now.saturating_sub(self.last_answer));
        self.last_answer = now;
        Ok(())
    }

    /// How it has ended at `now`, if it has.
    #[must_use]
    pub fn end(&self, now: Duration) -> Option<End> {
        let options = &self.options;
        let is_done =
            options.requests.is_some_and(|requests| self.answered >= requests) || options.time.is_some_and(|time| now >= time);
        let is_silent = options.give_up.is_some_and(|give_up| now.saturating_sub(self.last_answer) >= give_up);
        if is_done { Some(End::Done) } else { is_silent.then_some(End::GaveUp) }
    }

    /// What came of the requests up to `now`.
    #[must_use]
    pub fn report(&self, now: Duration) -> LoadReport {
        let quantile = |share| if self.latency.is_empty() { 0 } else { self.latency.value_at_quantile(share) };
        LoadReport {
            answered: self.answered,
            resent: self.resent,
            latency: Latency {
                p50_us: quantile(0.5),
                p95_us: quantile(0.95),
                p99_us: quantile(0.99),
                max_us: self.latency.max(),
            },
            longest_silence: self.longest_silence.max(now.saturating_sub(self.last_answer)),
        }
    }

    /// The next request of `client`, where one more is to be asked.
    fn ask(&mut self, client: u64, number: u64, now: Duration) -> Result<Option<UnderWay>, ProtocolError> {
        if self.options.requests.is_some_and(|requests| self.asked >= requests) {
            return Ok(None);
        }
        let payload = payload(client ^ number.rotate_left(32), self.options.payload_bytes);
        let request = Request::new(client, number, self.options.pages, payload)?;
        let bytes = request.encode();
        self.checker.ask(request);
        self.asked += 1;
        Ok(Some(UnderWay { client, number, bytes, first_sent: None, due: now }))
    }
}

/// Bytes that are others for each seed.
fn payload(seed: u64, bytes: usize) -> Vec<u8> {
    let words = (1_u64..).flat_map(|word| (seed ^ word).wrapping_mul(HASH_FACTOR).to_be_bytes());
    words.take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::ledger::Server;

    const MS: Duration = Duration::from_millis(1);

    fn options() -> LoadOptions {
        LoadOptions { clients: 2, first_client: 10, ..LoadOptions::default() }
    }

    /// What is sent at `now`.
    fn sent(load: &mut Load, now: Duration) -> Vec<Request> {
        let mut sent = Vec::new();
        let all: Result<(), Infallible> = load.send_due(now, |bytes| {
            sent.push(Request::decode(bytes).unwrap());
            Ok(())
        });
        all.unwrap();
        sent
    }

    #[test]
    fn each_client_has_one_request_under_way_and_sends_it_again() {
        let (mut load, mut server) = (Load::new(options()).unwrap(), Server::default());
        let first = sent(&mut load, Duration::ZERO);
        assert_eq!(first.iter().map(|request| (request.client(), request.number())).collect::<Vec<_>>(), [(10, 1), (11, 1)]);
        assert_eq!((sent(&mut load, 19 * MS), load.next_due()), (vec![], Some(20 * MS)));
        assert_eq!(sent(&mut load, 20 * MS), first);
        let answer = server.take(&first[1]).unwrap();
        load.take(30 * MS, &answer.encode()).unwrap();
        load.take(31 * MS, &answer.encode()).unwrap();
        load.take(31 * MS, b"something else").unwrap();
        let next = sent(&mut load, 31 * MS);
        assert_eq!(next.iter().map(|request| (request.client(), request.number())).collect::<Vec<_>>(), [(11, 2)]);
        load.hurry(32 * MS);
        assert_eq!(sent(&mut load, 32 * MS).len(), 2, "both again");
        let report = load.report(100 * MS);
        assert_eq!((report.answered, report.resent), (1, 4));
        assert_eq!(report.longest_silence, 70 * MS);
        assert!(report.latency.p50_us.abs_diff(30_000) <= 30, "{report:?}");
    }

    #[test]
    fn it_ends_by_answers_by_time_or_by_silence() {
        let mut load = Load::new(LoadOptions { requests: Some(3), ..options() }).unwrap();
        let mut server = Server::default();
        for now in (1..).map(|ms| ms * MS) {
            if load.end(now).is_some() {
                break;
            }
            for request in sent(&mut load, now) {
                load.take(now, &server.take(&request).unwrap().encode()).unwrap();
            }
        }
        assert_eq!((load.report(2 * MS).answered, server.tally().count, load.next_due()), (3, 3, None));
        let load = Load::new(LoadOptions { time: Some(5 * MS), give_up: Some(9 * MS), ..options() }).unwrap();
        assert_eq!((load.end(4 * MS), load.end(5 * MS)), (None, Some(End::Done)));
        let load = Load::new(LoadOptions { give_up: Some(9 * MS), ..options() }).unwrap();
        assert_eq!((load.end(8 * MS), load.end(9 * MS)), (None, Some(End::GaveUp)));
        assert_eq!(load.report(Duration::ZERO).latency, Latency::default());
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        for clients in [0, 65] {
            assert_eq!(Load::new(LoadOptions { clients, ..options() }).unwrap_err(), LoadError::Clients { found: clients });
        }
        let found = ProtocolError::Payload { found: 1025 };
        assert_eq!(Load::new(LoadOptions { payload_bytes: 1025, ..options() }).unwrap_err(), LoadError::Request(found));
        assert!(Load::new(LoadOptions { pages: u32::MAX, ..options() }).is_err());
    }

    #[test]
    fn a_violation_ends_it() {
        let mut load = Load::new(options()).unwrap();
        let request = sent(&mut load, Duration::ZERO).remove(0);
        let mut answer = Server::default().take(&request).unwrap();
        answer.after.hash ^= 1;
        assert_eq!(load.take(MS, &answer.encode()).unwrap_err().kind(), "extends");
    }
}
