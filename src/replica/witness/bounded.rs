//! Work that may hang, such as on a network's file system, done beside the caller.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::fault::WitnessFault;

/// One piece of work at a time, each within a limit. What is late goes on by itself; nothing else
/// is begun before it has ended.
#[derive(Debug)]
pub(super) struct Bounded {
    limit: Duration,
    /// Of work that was late: is closed when it ends.
    late: Option<Receiver<()>>,
}

/// Why there is no result.
pub(super) enum Undone {
    /// The work was not begun.
    NotBegun(WitnessFault),
    /// It was begun.
    NotEnded(WitnessFault),
}

impl Bounded {
    pub(super) const fn new(limit: Duration) -> Self {
        Self { limit, late: None }
    }

    pub(super) fn run<T: Send + 'static>(
        &mut self,
        place: &impl fmt::Display,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Undone> {
        let began = Instant::now();
        if let Some(late) = &self.late {
            if late.recv_timeout(self.limit) == Err(RecvTimeoutError::Timeout) {
                return Err(Undone::NotEnded(WitnessFault::Busy { place: place.to_string() }));
            }
            self.late = None;
        }
        let (result, results) = channel();
        let (end, ends) = channel::<()>();
        let started = Builder::new().name("slackwater-witness".to_owned()).spawn(move || {
            // Who waited may be gone.
            let _ = result.send(work());
            drop(end);
        });
        if let Err(source) = started {
            return Err(Undone::NotBegun(WitnessFault::Start { what: "a thread".to_owned(), source }));
        }
        results.recv_timeout(self.limit.saturating_sub(began.elapsed())).map_err(|_| {
            self.late = Some(ends);
            Undone::NotEnded(WitnessFault::TooLate { place: place.to_string(), limit: self.limit })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_work_is_not_waited_for_and_nothing_overtakes_it() {
        let mut bounded = Bounded::new(Duration::from_millis(20));
        let (go, wait) = channel::<()>();
        let late = bounded.run(&"it", move || wait.recv().is_ok());
        assert!(matches!(late, Err(Undone::NotEnded(WitnessFault::TooLate { .. }))));
        let next = bounded.run(&"it", || ());
        assert!(matches!(next, Err(Undone::NotEnded(WitnessFault::Busy { .. }))));
        go.send(()).unwrap();
        bounded.limit = Duration::from_secs(120);
        assert!(bounded.run(&"it", || 7).is_ok_and(|seven| seven == 7));
    }
}
