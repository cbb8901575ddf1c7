//! The fuzzers' checks without a fuzzer: seeds, the kept corpus, and mutations of them from a seed
//! that is printed.

mod decoders;

use std::path::Path;

use crate::support::copy::checkpoints;
use crate::support::{Random, rounds};

/// The inputs of one target: its seeds, and what fuzzing found before.
fn inputs(target: &decoders::Target) -> Vec<Vec<u8>> {
    let mut inputs = (target.seeds)(&checkpoints());
    assert!(inputs.len() > 4, "{} has seeds", target.name);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
    // The nested lane and a package without fuzz/ have none.
    for entry in std::fs::read_dir(kept).into_iter().flatten() {
        inputs.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    inputs
}

/// Replays what there is, and mutates it without guidance: what a fuzzer would try first.
fn replay(name: &str, mutations: u64) {
    let target = decoders::TARGETS.iter().find(|target| target.name == name).unwrap();
    let inputs = inputs(target);
    for input in &inputs {
        (target.check)(input);
    }
    let mut random = Random::seeded(&format!("fuzz::{name}"), 7);
    for number in 0..rounds(mutations / 20, mutations, 50 * mutations) {
        let mut input = inputs[random.below(inputs.len() as u64) as usize].clone();
        for _ in 0..=random.below(3) {
            let seed = random.next();
            (target.mutate)(&mut input, &mut decoders::Random::new(seed), &mut |bytes| flip(bytes, &mut random));
        }
        println!("fuzz::{name}: input {number}, {} bytes", input.len());
        (target.check)(&input);
    }
}

fn flip(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        let count = random.below(12) as usize;
        match random.below(6) {
            0 => bytes.insert(at, random.byte()),
            1 => drop(bytes.drain(at..(at + count).min(bytes.len()))),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
}

/// Each target has its place in the list, its program, and its test here.
#[test]
fn every_target_is_replayed() {
    let here = include_str!("mod.rs");
    let programs = include_str!("../../fuzz/Cargo.toml");
    for target in &decoders::TARGETS {
        assert!(here.contains(&format!("replay(\"{}\"", target.name)), "{}", target.name);
        assert!(programs.contains(&format!("fuzz_targets/{}.rs", target.name)), "{}", target.name);
    }
}

#[test]
fn chain() {
    replay("chain", 1000);
}

#[test]
fn frame() {
    replay("frame", 10_000);
}

#[test]
fn description() {
    replay("description", 8_000);
}

#[test]
fn index() {
    replay("index", 2_000);
}

#[test]
fn state() {
    replay("state", 6_000);
}

#[test]
fn vsock() {
    replay("vsock", 5_000);
}

#[test]
fn net_device() {
    replay("net_device", 3_000);
}

#[test]
fn net_frames() {
    replay("net_frames", 3_000);
}

#[test]
fn vsock_device() {
    replay("vsock_device", 3_000);
}
