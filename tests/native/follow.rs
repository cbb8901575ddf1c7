//! Watching a chain that a writer is at work on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use slackwater::store::Chain;

use crate::support::{epochs, patience};

/// No chain of a test is waited for longer.
const LIMIT: Duration = Duration::from_secs(120);

/// What a reader saw appended: each epoch's identity.
pub(crate) type Seen = BTreeMap<u64, u128>;

/// What is appended now.
pub(crate) fn appended(store: &Path) -> Seen {
    let Ok(chain) = Chain::open(store) else { return Seen::new() };
    epochs(&chain).iter().map(|epoch| (epoch.commit.epoch.0, epoch.identity)).collect()
}

/// Polls until `enough` holds of what is appended, and returns that.
#[track_caller]
pub(crate) fn wait_until(store: &Path, mut enough: impl FnMut(&Seen) -> bool) -> Seen {
    let start = Instant::now();
    loop {
        let seen = appended(store);
        if enough(&seen) {
            return seen;
        }
        assert!(start.elapsed() < patience(LIMIT), "{}: only {} epochs after {LIMIT:?}", store.display(), seen.len());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until so many epochs are appended.
#[track_caller]
pub(crate) fn wait_for_epochs(store: &Path, epochs: usize) -> Seen {
    wait_until(store, |seen| seen.len() >= epochs)
}

/// That every epoch that was seen appended is still there, the same.
#[track_caller]
pub(crate) fn nothing_is_missing(store: &Path, seen: &Seen) {
    let now = appended(store);
    for (epoch, hash) in seen {
        assert_eq!(now.get(epoch), Some(hash), "epoch {epoch} was appended, and is gone or another");
    }
}
