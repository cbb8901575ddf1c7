//! Whether the answers of a server can be those of one that never lost what it had answered.

use std::collections::{BTreeMap, HashMap};

use super::protocol::{Answer, Request, Tally};

/// So many of the newest counts have their hash remembered.
pub const WINDOW_COUNTS: u64 = 4096;

/// The first thing that a server did which one that loses nothing can't do. Counts and hashes are
/// the server's; what was `seen` is what an earlier answer said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// An answer to nobody's request.
    #[error("client {client:#x} got an answer to request {number}, and never asked anything")]
    NotAsked {
        /// The client.
        client: u64,
        /// The request's number.
        number: u64,
    },
    /// An answer to a request that is still to be asked.
    #[error("client {client:#x} got an answer to request {number}, and has asked {asked} so far")]
    Skipped {
        /// The client.
        client: u64,
        /// The answer's number.
        number: u64,
        /// The newest request of the client.
        asked: u64,
    },
    /// Another answer to a request that was answered before.
    #[error(
        "request {number} of client {client:#x} was answered again, now as count {count} with hash {hash:#018x}, which is not the first answer"
    )]
    Changed {
        /// The client.
        client: u64,
        /// The request's number.
        number: u64,
        /// The count that the second answer says.
        count: u64,
        /// The hash that the second answer says.
        hash: u64,
    },
    /// A count that is not one more than before.
    #[error("request {number} of client {client:#x} took the count from {before} to {after}")]
    Counts {
        /// The client.
        client: u64,
        /// The request's number.
        number: u64,
        /// The count before.
        before: u64,
        /// The count after.
        after: u64,
    },
    /// A hash that does not come from the one before and the request.
    #[error(
        "request {number} of client {client:#x} makes hash {expected:#018x} of count {count}, and the answer says {found:#018x}"
    )]
    Extends {
        /// The client.
        client: u64,
        /// The request's number.
        number: u64,
        /// The count after it.
        count: u64,
        /// The hash that it should be.
        expected: u64,
        /// The hash that the answer says.
        found: u64,
    },
    /// The request was asked after an answer with a higher count had come: the count went back.
    #[error("request {number} of client {client:#x} was taken at count {count}, and count {seen} was seen before it was asked")]
    Back {
        /// The client.
        client: u64,
        /// The request's number.
        number: u64,
        /// The count that it was taken at.
        count: u64,
        /// The count that was seen before the request was first sent.
        seen: u64,
    },
    /// The same count with two hashes: two histories.
    #[error("request {number} of client {client:#x} says that count {count} has hash {hash:#018x}, and {seen:#018x} was seen")]
    Fork {
        /// The client.
        client: u64,
        /// The request's number.
        number: u64,
        /// The count.
        count: u64,
        /// The hash that this answer says.
        hash: u64,
        /// The hash that an earlier answer said.
        seen: u64,
    },
}

impl Violation {
    /// Its name in JSON.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotAsked { .. } => "not_asked",
            Self::Skipped { .. } => "skipped",
            Self::Changed { .. } => "changed",
            Self::Counts { .. } => "counts",
            Self::Extends { .. } => "extends",
            Self::Back { .. } => "back",
            Self::Fork { .. } => "fork",
        }
    }

    /// The client and the number of its request.
    #[must_use]
    pub const fn request(&self) -> (u64, u64) {
        match self {
            Self::NotAsked { client, number }
            | Self::Skipped { client, number, .. }
            | Self::Changed { client, number, .. }
            | Self::Counts { client, number, .. }
            | Self::Extends { client, number, .. }
            | Self::Back { client, number, .. }
            | Self::Fork { client, number, .. } => (*client, *number),
        }
    }
}

/// What an answer is that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The first answer to the client's newest request.
    New,
    /// An answer that was seen before, or one too old to tell.
    Again,
}

/// Is told of every request before it is first sent, and of every answer in the order in which they
/// come to one process, whichever client they are for. Other processes may ask the same server.
///
/// It remembers the newest request of each client, and the hashes of the [`WINDOW_COUNTS`] newest
/// counts. A repeated answer from before those is let through.
///
/// A server that goes back behind what it answered is found by the second answer that it gives to
/// any client whose own last request it still knows. It says nothing to the others, and a silence
/// is not judged here.
#[derive(Debug, Default)]
pub struct Checker {
    clients: HashMap<u64, Newest>,
    /// What is known of a count.
    known: BTreeMap<u64, Known>,
    /// The highest count that an answer said.
    highest: u64,
}

/// The newest request of a client.
#[derive(Debug)]
struct Newest {
    request: Request,
    /// The highest count seen when it was first sent.
    seen: u64,
    answer: Option<Answer>,
}

#[derive(Debug)]
struct Known {
    hash: u64,
    /// The answer to the request that was taken to this count, if it came here.
    answer: Option<Answer>,
}

impl Checker {
    /// Notes that `request` is about to be sent for the first time. A client asks its next request
    /// once the one before is answered.
    pub fn ask(&mut self, request: Request) {
        let newest = Newest { seen: self.highest, answer: None, request };
        self.clients.insert(newest.request.client(), newest);
    }

    /// Checks the next answer.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn check(&mut self, answer: &Answer) -> Result<Accepted, Violation> {
        let &Answer { client, number, before, after } = answer;
        let Some(newest) = self.clients.get(&client) else { return Err(Violation::NotAsked { client, number }) };
        let asked = newest.request.number();
        if number > asked {
            return Err(Violation::Skipped { client, number, asked });
        }
        if number < asked || newest.answer.is_some() {
            let is_same = match newest.answer {
                Some(first) if number == asked => first == *answer,
                _ => self.is_repeated(answer),
            };
            let changed = Violation::Changed { client, number, count: after.count, hash: after.hash };
            return if is_same { Ok(Accepted::Again) } else { Err(changed) };
        }
        if before.count.checked_add(1) != Some(after.count) {
            return Err(Violation::Counts { client, number, before: before.count, after: after.count });
        }
        let expected = newest.request.extend(before.hash);
        if expected != after.hash {
            return Err(Violation::Extends { client, number, count: after.count, expected, found: after.hash });
        }
        for Tally { count, hash } in [before, after] {
            if let Some(seen) = self.known.get(&count).map(|known| known.hash).filter(|seen| *seen != hash) {
                return Err(Violation::Fork { client, number, count, hash, seen });
            }
        }
        if before.count < newest.seen {
            return Err(Violation::Back { client, number, count: after.count, seen: newest.seen });
        }
        self.note(*answer);
        Ok(Accepted::New)
    }

    /// Whether the answer to an earlier request is the one that came first, as far as that is still
    /// known.
    fn is_repeated(&self, answer: &Answer) -> bool {
        match self.known.get(&answer.after.count) {
            Some(known) => known.answer.as_ref() == Some(answer),
            None => answer.after.count < self.oldest(),
        }
    }

    /// The first count of the window.
    const fn oldest(&self) -> u64 {
        self.highest.saturating_sub(WINDOW_COUNTS - 1)
    }

    fn note(&mut self, answer: Answer) {
        if let Some(newest) = self.clients.get_mut(&answer.client) {
            newest.answer = Some(answer);
        }
        self.highest = self.highest.max(answer.after.count);
        self.known.entry(answer.before.count).or_insert(Known { hash: answer.before.hash, answer: None });
        self.known.insert(answer.after.count, Known { hash: answer.after.hash, answer: Some(answer) });
        self.known = self.known.split_off(&self.oldest());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Server;
    use crate::store::testing::{Random, seeds};

    fn request(client: u64, number: u64) -> Request {
        Request::new(client, number, 1, format!("{client} {number}").into_bytes()).unwrap()
    }

    /// A checker, and a server that both clients have asked twice.
    fn begun() -> (Checker, Server) {
        let (mut checker, mut server) = (Checker::default(), Server::default());
        for number in 1..=2 {
            for client in [1, 2] {
                let request = request(client, number);
                checker.ask(request.clone());
                assert_eq!(checker.check(&server.take(&request).unwrap()), Ok(Accepted::New));
            }
        }
        (checker, server)
    }

    /// The answer to the next request of client 1, changed.
    fn changed(change: impl FnOnce(&mut Answer)) -> Result<Accepted, Violation> {
        let (mut checker, mut server) = begun();
        checker.ask(request(1, 3));
        let mut answer = server.take(&request(1, 3)).unwrap();
        change(&mut answer);
        checker.check(&answer)
    }

    #[test]
    fn what_was_not_asked_is_found() {
        assert_eq!(changed(|_| {}), Ok(Accepted::New));
        assert_eq!(changed(|answer| answer.client = 9), Err(Violation::NotAsked { client: 9, number: 3 }));
        assert_eq!(changed(|answer| answer.number = 4), Err(Violation::Skipped { client: 1, number: 4, asked: 3 }));
    }

    #[test]
    fn a_wrong_extension_is_found() {
        assert_eq!(
            changed(|answer| answer.after.count = 6),
            Err(Violation::Counts { client: 1, number: 3, before: 4, after: 6 })
        );
        assert!(matches!(
            changed(|answer| answer.before.count = u64::MAX),
            Err(Violation::Counts { before: u64::MAX, after: 5, .. })
        ));
        assert!(matches!(
            changed(|answer| answer.after.hash ^= 1),
            Err(Violation::Extends { count: 5, expected, found, .. }) if found == expected ^ 1
        ));
        assert!(matches!(changed(|answer| answer.before.hash ^= 1), Err(Violation::Extends { .. })));
    }

    #[test]
    fn a_count_that_goes_back_is_found() {
        // A request that another history has at the same place is a fork. Behind what anybody saw
        // it is known by the count alone.
        let mut checker = Checker::default();
        let mut server = Server::default();
        let old = server.clone();
        for number in 1..=WINDOW_COUNTS + 10 {
            checker.ask(request(1, number));
            checker.check(&server.take(&request(1, number)).unwrap()).unwrap();
        }
        server = old;
        checker.ask(request(2, 1));
        let seen = WINDOW_COUNTS + 10;
        let found = checker.check(&server.take(&request(2, 1)).unwrap());
        assert_eq!(found, Err(Violation::Back { client: 2, number: 1, count: 1, seen }));
        assert!(checker.known.len() as u64 <= WINDOW_COUNTS, "{}", checker.known.len());
    }

    #[test]
    fn a_request_that_was_under_way_may_have_been_taken_before_what_was_seen() {
        let (mut checker, mut server) = begun();
        checker.ask(request(1, 3));
        checker.ask(request(2, 3));
        let first = server.take(&request(1, 3)).unwrap();
        let second = server.take(&request(2, 3)).unwrap();
        assert_eq!(checker.check(&second), Ok(Accepted::New));
        assert_eq!(checker.check(&first), Ok(Accepted::New));
    }

    #[test]
    fn a_fork_is_found_before_and_after() {
        let (mut checker, server) = begun();
        let mut other = server.clone();
        let mut one = server;
        checker.ask(request(1, 3));
        checker.ask(request(2, 3));
        checker.check(&one.take(&request(1, 3)).unwrap()).unwrap();
        let forked = other.take(&request(2, 3)).unwrap();
        assert!(matches!(checker.check(&forked), Err(Violation::Fork { client: 2, number: 3, count: 5, .. })));
        // One whose own place nobody saw, behind a place that somebody did.
        let (mut checker, _) = begun();
        checker.ask(request(1, 3));
        let before = Tally { count: 4, hash: 77 };
        let after = Tally { count: 5, hash: request(1, 3).extend(77) };
        let answer = Answer { client: 1, number: 3, before, after };
        assert!(matches!(checker.check(&answer), Err(Violation::Fork { count: 4, hash: 77, .. })));
    }

    #[test]
    fn repeated_answers_are_fine_while_they_are_the_same() {
        let (mut checker, mut server) = (Checker::default(), Server::default());
        let answers: Vec<Answer> = (1..=3)
            .map(|number| {
                checker.ask(request(1, number));
                let answer = server.take(&request(1, number)).unwrap();
                checker.check(&answer).unwrap();
                answer
            })
            .collect();
        for answer in &answers {
            assert_eq!(checker.check(answer), Ok(Accepted::Again));
            let mut other = *answer;
            other.after.hash ^= 1;
            assert!(matches!(checker.check(&other), Err(Violation::Changed { client: 1, .. })), "{answer:?}");
            let elsewhere = Answer { after: Tally { count: 9, ..answer.after }, ..*answer };
            assert!(matches!(checker.check(&elsewhere), Err(Violation::Changed { count: 9, .. })), "{answer:?}");
        }
    }

    /// Clients at a server whose answers wait: they are given out in their order, or lost with the
    /// state behind them.
    struct World {
        random: Random,
        checker: Checker,
        server: Server,
        snapshot: Server,
        /// Answers given since the snapshot that nobody got.
        held: Vec<Answer>,
        /// Each client's newest request, and whether it is answered.
        newest: Vec<(Request, bool)>,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let newest: Vec<_> = (1..=8).map(|client| (request(client, 1), false)).collect();
            let mut checker = Checker::default();
            newest.iter().for_each(|(request, _)| checker.ask(request.clone()));
            let (server, snapshot, held) = Default::default();
            Self { random: Random(seed), checker, server, snapshot, held, newest }
        }

        fn send(&mut self) {
            let at = usize::try_from(self.random.below(8)).unwrap();
            let (newest, answered) = &mut self.newest[at];
            if *answered {
                (*newest, *answered) = (request(newest.client(), newest.number() + 1), false);
                self.checker.ask(newest.clone());
            }
            self.held.extend(self.server.take(newest));
        }

        /// Gives out the first `count` held answers.
        fn give(&mut self, count: usize) -> Result<(), Violation> {
            for answer in self.held.drain(..count) {
                if self.checker.check(&answer)? == Accepted::New {
                    let at = usize::try_from(answer.client - 1).unwrap();
                    self.newest[at].1 = true;
                }
            }
            Ok(())
        }
    }

    #[test]
    fn a_server_that_loses_only_what_it_never_answered_is_never_accused() {
        for seed in seeds(200, 20_000) {
            let mut world = World::new(seed);
            for _ in 0..2000 {
                match world.random.below(40) {
                    // What is in the snapshot may be answered.
                    0 => {
                        world.snapshot = world.server.clone();
                        let count = world.held.len();
                        world.give(count).unwrap_or_else(|found| panic!("SLACKWATER_SEED={seed}: {found}"));
                    }
                    1 => {
                        world.server = world.snapshot.clone();
                        world.held.clear();
                    }
                    _ => world.send(),
                }
            }
            assert!(world.checker.highest > 100, "SLACKWATER_SEED={seed}: {}", world.checker.highest);
        }
    }

    #[test]
    fn a_server_that_loses_what_it_answered_is_found() {
        let mut found_by = HashMap::new();
        for seed in seeds(200, 20_000) {
            let mut world = World::new(seed);
            let mut run = || -> Result<(), Violation> {
                for _ in 0..200 + world.random.below(200) {
                    if world.random.one_in(20) {
                        world.snapshot = world.server.clone();
                    }
                    world.send();
                    let count = usize::try_from(world.random.below(world.held.len() as u64 + 1)).unwrap();
                    world.give(count)?;
                }
                // One answer at least is lost that a client has, and one client at least that the
                // server can go on with.
                world.give(world.held.len())?;
                world.snapshot = world.server.clone();
                for _ in 0.. {
                    world.send();
                    let before = world.checker.highest;
                    world.give(world.held.len())?;
                    if world.checker.highest > before {
                        break;
                    }
                }
                world.server = world.snapshot.clone();
                (0..1000).try_for_each(|_| {
                    world.send();
                    world.give(world.held.len())
                })
            };
            let violation = run().expect_err(&format!("SLACKWATER_SEED={seed}"));
            *found_by.entry(violation.kind()).or_insert(0) += 1;
        }
        assert!(found_by.contains_key("fork"), "{found_by:?}");
    }
}
