//! The rules hold under every seed, and each one that is taken out is found.

use super::run::Run;
use super::setting::Seen;
use crate::replica::proto::broken::{Rule, break_rule};
use crate::store::testing::seeds;

/// Runs the seeds. The first one that broke a rule.
fn first_broken(seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| Run::of(seed, false).0.err().map(|broken| (seed, broken)))
}

#[test]
fn at_most_one_goes_on_and_nothing_that_left_is_lost() {
    let mut all = Seen::default();
    for seed in seeds(10_000, 1_000_000) {
        match Run::of(seed, false).0 {
            Ok(seen) => {
                all.releases += seen.releases;
                all.failovers += seen.failovers;
                all.pairs += seen.pairs;
                all.migrations += seen.migrations;
                all.restarts += seen.restarts;
                all.losses_accepted += seen.losses_accepted;
                all.late_swaps += seen.late_swaps;
                all.gone += seen.gone;
            }
            Err(broken) => {
                let (_, log) = Run::of(seed, true);
                let last = log.len().saturating_sub(200);
                panic!("seed {seed}: {broken}\n{}", log[last..].join("\n"));
            }
        }
    }
    println!("{all:?}");
    // It has seen what it is for.
    for (what, count) in [
        ("failovers", all.failovers),
        ("pairs", all.pairs),
        ("migrations", all.migrations),
        ("restarts", all.restarts),
        ("losses", all.losses_accepted),
        ("late swaps", all.late_swaps),
    ] {
        assert!(count > 100, "{what}: {count}");
    }
}

/// Two machines on a host that takes the processors away, or a laptop that sleeps: nobody is dead.
#[test]
fn a_standstill_of_both_is_nobodys_death() {
    for seed in seeds(500, 2_000_000) {
        let seen = Run::of_stalls(seed).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        assert_eq!((seen.failovers, seen.pairs), (0, 1), "seed {seed}");
    }
}

#[test]
fn a_rule_that_is_taken_out_is_found() {
    let rules = [
        Rule::ReleaseWhenHeld,
        Rule::HoldsByIdentity,
        Rule::OnlyHotPromotes,
        Rule::SilentBeforeSwap,
        Rule::UnknownIsRepeated,
        Rule::LoserHalts,
        Rule::HeldWhilePairing,
        Rule::CoveredBeforePairing,
        Rule::GivenUpBySwap,
        Rule::SoloIsDurable,
        Rule::SettledBeforeSolo,
        Rule::NoOldGeneration,
        Rule::RecordedBeforeRelease,
        Rule::AskBeforeOpening,
        Rule::OnlyACoveringStore,
        Rule::ParkedUntilKnown,
    ];
    let mut missed = Vec::new();
    for rule in rules {
        break_rule(Some(rule));
        match first_broken(0..4_000) {
            Some((seed, broken)) => println!("{rule:?}: seed {seed}: {broken}"),
            None => missed.push(rule),
        }
        break_rule(None);
    }
    assert!(missed.is_empty(), "nothing found these missing: {missed:?}");
}
