//! What several tests need.

pub(crate) mod chain;
pub(crate) mod command;
pub(crate) mod copy;
pub(crate) mod netns;
pub(crate) mod store;
pub(crate) mod tap;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use slackwater::store::{Chain, Epoch};

/// Whether there is a KVM to test on. Where there is none, says loudly that `test` is skipped; with
/// `SLACKWATER_REQUIRE_KVM` set, panics instead.
pub(crate) fn kvm_or_skip(test: &str) -> bool {
    if Path::new("/dev/kvm").exists() {
        return true;
    }
    assert!(std::env::var_os("SLACKWATER_REQUIRE_KVM").is_none(), "{test}: no /dev/kvm, and SLACKWATER_REQUIRE_KVM is set");
    skip(test, "no /dev/kvm");
    false
}

/// Every epoch that exists.
pub(crate) fn epochs(chain: &Chain) -> Vec<Epoch> {
    chain.epochs().collect::<Result<_, _>>().unwrap()
}

/// Says loudly that a test, or a part of it, is skipped. The harness hides what a passing test
/// prints with `println!`.
pub(crate) fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {why}");
}

/// Whether everything is 10 to 100 times slower: tests scale themselves down.
pub(crate) fn nested() -> bool {
    std::env::var_os("SLACKWATER_NESTED").is_some()
}

/// Whether to run the full numbers, which take many minutes.
pub(crate) fn full() -> bool {
    std::env::var_os("SLACKWATER_FULL").is_some()
}

/// As many rounds as this run has time for.
pub(crate) fn rounds(nested_rounds: u64, plain: u64, full_rounds: u64) -> u64 {
    if nested() {
        nested_rounds
    } else if full() {
        full_rounds
    } else {
        plain
    }
}

/// All of `cases`, or where time is short the first few.
pub(crate) fn as_time_allows<T>(cases: &[T], nested_cases: usize) -> &[T] {
    if nested() { &cases[..nested_cases.min(cases.len())] } else { cases }
}

/// `limit`, or where everything is slow much more.
pub(crate) fn patience(limit: Duration) -> Duration {
    if nested() { limit * 3 } else { limit }
}

/// splitmix64. The seed is printed by whoever makes one.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// From `SLACKWATER_SEED`, or `default`. Prints the seed: the harness shows it when the test
    /// fails.
    pub(crate) fn seeded(test: &str, default: u64) -> Self {
        let seed =
            std::env::var("SLACKWATER_SEED").ok().map_or(default, |text| text.parse().expect("SLACKWATER_SEED is a number"));
        println!("{test}: SLACKWATER_SEED={seed}");
        Self(seed)
    }

    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}
