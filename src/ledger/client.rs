//! Runs clients against a server at the other end of a wire.

use std::io;
use std::time::{Duration, Instant};

use super::checker::Violation;
use super::load::{End, Load, LoadReport};

/// So often it is looked for a wish to stop.
const LOOK: Duration = Duration::from_millis(50);

/// A wire can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct WireError {
    /// What was asked of the system.
    pub step: &'static str,
    /// Its answer.
    #[source]
    pub source: io::Error,
}

/// What came over a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A datagram of the server.
    Datagram(Vec<u8>),
    /// Somebody is at the other end, who was not there before.
    Open,
    /// Nothing, in all the time.
    Nothing,
}

/// A way to the server and back.
pub trait Wire {
    /// Does what there is to do to find the server. True once it is known where datagrams go.
    ///
    /// # Errors
    /// The wire can't be used any more.
    fn reach(&mut self) -> Result<bool, WireError>;

    /// Sends a datagram, which may be lost.
    ///
    /// # Errors
    /// The wire can't be used any more.
    fn send(&mut self, datagram: &[u8]) -> Result<(), WireError>;

    /// Waits for what comes next, so long at the most.
    ///
    /// # Errors
    /// The wire can't be used any more.
    fn receive(&mut self, wait: Duration) -> Result<Received, WireError>;
}

/// How clients ended, and what came of their requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended.
    pub verdict: Verdict,
    /// What came of the requests until then.
    pub report: LoadReport,
}

/// Why clients ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are done.
    Done,
    /// They were asked to stop.
    Stopped,
    /// Nothing was answered for too long.
    GaveUp,
    /// The server did what it can't do if it lost nothing.
    Violation(Violation),
}

/// Runs `load` over `wire` until it ends, or `stop` says so. Times begin once the server can be
/// reached, which may take for ever.
///
/// # Errors
/// [`WireError`].
pub fn run(load: &mut Load, wire: &mut dyn Wire, stop: &dyn Fn() -> bool) -> Result<Outcome, WireError> {
    while !wire.reach()? {
        if stop() {
            return Ok(Outcome { verdict: Verdict::Stopped, report: load.report(Duration::ZERO) });
        }
        wire.receive(LOOK)?;
    }
    let start = Instant::now();
    let verdict = loop {
        let now = start.elapsed();
        match load.end(now) {
            Some(End::Done) => break Verdict::Done,
            Some(End::GaveUp) => break Verdict::GaveUp,
            None if stop() => break Verdict::Stopped,
            None => {}
        }
        load.send_due(now, |datagram| wire.send(datagram))?;
        let wait = load.next_due().map_or(LOOK, |due| due.saturating_sub(now).min(LOOK));
        match wire.receive(wait)? {
            Received::Datagram(datagram) => {
                if let Err(violation) = load.take(start.elapsed(), &datagram) {
                    break Verdict::Violation(violation);
                }
            }
            Received::Open => load.hurry(start.elapsed()),
            Received::Nothing => {}
        }
    };
    Ok(Outcome { verdict, report: load.report(start.elapsed()) })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::VecDeque;

    use super::*;
    use crate::ledger::{LoadOptions, Request, Server};
    use crate::store::testing::{Random, seeds};

    /// A server at the other end, that loses, repeats and mixes up what goes either way.
    struct Bad {
        random: Random,
        server: Server,
        answers: VecDeque<Vec<u8>>,
        /// Calls until it can be reached.
        unreached: u32,
        /// When it takes the snapshot: at so many requests, once all are answered.
        snapshot_at: Option<u64>,
        /// What it goes back to once it has taken one more and answered it.
        snapshot: Option<Server>,
    }

    impl Bad {
        fn new(seed: u64) -> Self {
            let (server, answers) = Default::default();
            Self { random: Random(seed), server, answers, unreached: 3, snapshot: None, snapshot_at: None }
        }

        /// Whether it is about to take the snapshot or to go back, and takes no request before.
        fn is_busy(&self) -> bool {
            let count = self.server.tally().count;
            self.snapshot_at.is_some_and(|at| at <= count) || self.snapshot.as_ref().is_some_and(|old| old.tally().count < count)
        }
    }

    impl Wire for Bad {
        fn reach(&mut self) -> Result<bool, WireError> {
            self.unreached = self.unreached.saturating_sub(1);
            Ok(self.unreached == 0)
        }

        fn send(&mut self, datagram: &[u8]) -> Result<(), WireError> {
            assert_eq!(self.unreached, 0);
            for _ in 0..if self.is_busy() { 0 } else { self.random.below(3) } {
                let answer = self.server.take(&Request::decode(datagram).unwrap());
                self.answers.extend(answer.map(|answer| answer.encode()));
            }
            Ok(())
        }

        fn receive(&mut self, _wait: Duration) -> Result<Received, WireError> {
            if self.answers.is_empty() {
                if self.is_busy() {
                    match self.snapshot.take() {
                        Some(old) => self.server = old,
                        None => self.snapshot = self.snapshot_at.take().map(|_| self.server.clone()),
                    }
                }
                return Ok(if self.random.one_in(4) { Received::Open } else { Received::Nothing });
            }
            let at = usize::try_from(self.random.below(self.answers.len() as u64)).unwrap();
            let answer = self.answers[at].clone();
            if self.random.one_in(2) {
                self.answers.remove(at);
            }
            Ok(Received::Datagram(answer))
        }
    }

    fn load() -> Load {
        let options = LoadOptions { clients: 5, requests: Some(300), retry: Duration::from_micros(1), ..LoadOptions::default() };
        Load::new(options).unwrap()
    }

    /// Asks to stop when it took too long.
    fn bound() -> impl Fn() -> bool {
        let rounds = Cell::new(0);
        move || rounds.replace(rounds.get() + 1) > 100_000
    }

    #[test]
    fn whatever_a_wire_does_every_request_is_answered_in_the_end() {
        for seed in seeds(20, 2000) {
            let mut wire = Bad::new(seed);
            let outcome = run(&mut load(), &mut wire, &bound()).unwrap();
            assert_eq!((outcome.verdict, outcome.report.answered), (Verdict::Done, 300), "SLACKWATER_SEED={seed}");
            assert_eq!(wire.server.tally().count, 300, "SLACKWATER_SEED={seed}: each was taken once");
        }
    }

    #[test]
    fn a_server_that_went_back_is_found() {
        for seed in seeds(20, 2000) {
            let mut wire = Bad { snapshot_at: Some(50), ..Bad::new(seed) };
            let outcome = run(&mut load(), &mut wire, &bound()).unwrap();
            assert!(matches!(outcome.verdict, Verdict::Violation(_)), "SLACKWATER_SEED={seed}: {outcome:?}");
        }
    }

    #[test]
    fn it_stops_when_it_is_asked_to() {
        let mut wire = Bad::new(1);
        wire.unreached = u32::MAX;
        let outcome = run(&mut load(), &mut wire, &|| true).unwrap();
        assert_eq!((outcome.verdict, outcome.report.answered), (Verdict::Stopped, 0));
    }
}
