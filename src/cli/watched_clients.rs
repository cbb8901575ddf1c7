//! Clients of the guest `ledger` that ask without end, and what they have got by now.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::CliError;
use super::ledger_client::GUEST;
use crate::clock::whole_us;
use crate::ledger::{Answer, Load, LoadOptions, Outcome, Received, Request, UnixWire, Wire, WireError, run};
use crate::lock::lock;

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
struct Answered {
    at: Instant,
    /// Since it was first sent.
    took: Duration,
}

/// What clients got in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Served {
    pub(super) answered: u64,
    pub(super) per_s: f64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
}

/// Clients in a thread of their own.
pub(super) struct WatchedClients {
    answers: Arc<Mutex<Vec<Answered>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Outcome, WireError>>>,
}

impl WatchedClients {
    /// Clients on a wire that machines are plugged into.
    pub(super) fn start(wire: UnixWire, options: LoadOptions) -> Result<Self, CliError> {
        let mut load = Load::new(options).map_err(|error| CliError::Usage(error.to_string()))?;
        let (answers, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let mut wire = Watched { wire, under_way: HashMap::new(), answers: answers.clone() };
        let asked = stop.clone();
        let work = move || run(&mut load, &mut wire, &|| asked.load(Ordering::Relaxed));
        let thread = std::thread::Builder::new().name("slackwater-clients".to_owned()).spawn(work);
        let thread = thread.map_err(|source| CliError::System { step: "starting a thread", source })?;
        Ok(Self { answers, stop, thread: Some(thread) })
    }

    /// How many answers came by now.
    pub(super) fn answered(&self) -> usize {
        lock(&self.answers).len()
    }

    /// Whether they ask no more.
    pub(super) fn have_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What came of the answers behind the first `skipped`, in the time that those took.
    pub(super) fn served_after(&self, skipped: usize) -> Served {
        served(lock(&self.answers).get(skipped..).unwrap_or_default())
    }

    /// The longest time between two answers that ended behind the first `skipped`.
    pub(super) fn longest_silence_after(&self, skipped: usize) -> Duration {
        longest_silence(lock(&self.answers).get(skipped.saturating_sub(1)..).unwrap_or_default())
    }

    /// Has them stop, and returns how they ended.
    pub(super) fn finish(mut self) -> Result<Outcome, CliError> {
        let gone = || CliError::Check { what: "the clients' thread panicked".to_owned() };
        let outcome = self.join().ok_or_else(gone)?;
        outcome.map_err(|WireError { step, source }| CliError::System { step, source })
    }

    fn join(&mut self) -> Option<Result<Outcome, WireError>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl Drop for WatchedClients {
    fn drop(&mut self) {
        drop(self.join());
    }
}

/// The wire for machines at `path`, with the guest at its default address.
pub(super) fn wire(path: &Path) -> Result<UnixWire, CliError> {
    UnixWire::new(path, GUEST).map_err(|WireError { step, source }| CliError::File { path: path.to_owned(), step, source })
}

/// A wire that notes when what was asked is answered.
struct Watched {
    wire: UnixWire,
    /// Each client's request: its number, and when it was first sent. None once it is answered.
    under_way: HashMap<u64, (u64, Option<Instant>)>,
    answers: Arc<Mutex<Vec<Answered>>>,
}

impl Wire for Watched {
    fn reach(&mut self) -> Result<bool, WireError> {
        self.wire.reach()
    }

    fn send(&mut self, datagram: &[u8]) -> Result<(), WireError> {
        if let Ok(request) = Request::decode(datagram) {
            let known = self.under_way.entry(request.client()).or_default();
            if known.0 != request.number() {
                *known = (request.number(), Some(Instant::now()));
            }
        }
        self.wire.send(datagram)
    }

    fn receive(&mut self, wait: Duration) -> Result<Received, WireError> {
        let received = self.wire.receive(wait)?;
        if let Received::Datagram(datagram) = &received
            && let Ok(answer) = Answer::decode(datagram)
            && let Some((number, sent)) = self.under_way.get_mut(&answer.client)
            && *number == answer.number
            && let Some(sent) = sent.take()
        {
            let at = Instant::now();
            lock(&self.answers).push(Answered { at, took: at.saturating_duration_since(sent) });
        }
        Ok(received)
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn served(answers: &[Answered]) -> Served {
    let mut took: Vec<_> = answers.iter().map(|answer| answer.took).collect();
    took.sort_unstable();
    let (Some(first), Some(last)) = (answers.first(), answers.last()) else { return Served::default() };
    let time = last.at.saturating_duration_since(first.at).as_secs_f64();
    let per_s = if time > 0.0 { (answers.len() as f64 / time).round() } else { 0.0 };
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len() - 1)).copied().map_or(0, whole_us);
    Served { answered: answers.len() as u64, per_s, p50_us: at(50), p99_us: at(99) }
}

fn longest_silence(answers: &[Answered]) -> Duration {
    let silences = answers.iter().zip(answers.iter().skip(1)).map(|(one, next)| next.at.saturating_duration_since(one.at));
    silences.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_served_and_the_longest_silence() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let answer = |at, took| Answered { at: start + ms(at), took: ms(took) };
        let answers = [answer(0, 1), answer(10, 3), answer(50, 2), answer(100, 9)];
        assert_eq!(served(&answers), Served { answered: 4, per_s: 40.0, p50_us: 3000, p99_us: 9000 });
        assert_eq!(served(&[]), Served::default());
        assert_eq!(served(&answers[..1]), Served { answered: 1, per_s: 0.0, p50_us: 1000, p99_us: 1000 });
        assert_eq!(longest_silence(&answers), ms(50));
        assert_eq!(longest_silence(&answers[..1]), Duration::ZERO);
    }
}
