//! What must hold of any bytes, whoever wrote them. Each target has a check, a mutator that keeps
//! an input sound enough to get past checksums, and seeds, which are made of the chains under
//! `checkpoints/`.
//!
//! Shared by the fuzzers and by the tests of the main package, which replay the corpus on any
//! toolchain.

mod chain;
mod description;
mod device;
mod frame;
mod frames;
mod index;
mod net_device;
mod net_frames;
mod repair;
mod scratch;
mod state;
mod vsock;
mod vsock_device;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A decoder under test.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Panics where something does not hold.
    pub(crate) check: fn(&[u8]),
    /// Changes an input.
    pub(crate) mutate: fn(&mut Vec<u8>, &mut Random, Bytes<'_>),
    /// Inputs to begin with, given the path of `checkpoints/`.
    pub(crate) seeds: fn(&Path) -> Vec<Vec<u8>>,
}

/// Changes bytes of which nothing is known.
pub(crate) type Bytes<'a> = &'a mut dyn FnMut(&mut Vec<u8>);

/// All targets. A new decoder has its place here, a file beside this one, and one in
/// `fuzz_targets/`.
pub(crate) const TARGETS: [Target; 9] = [
    Target { name: "chain", check: chain::check, mutate: chain::mutate, seeds: chain::seeds },
    Target { name: "frame", check: frame::check, mutate: frame::mutate, seeds: frame::seeds },
    Target { name: "description", check: description::check, mutate: description::mutate, seeds: description::seeds },
    Target { name: "index", check: index::check, mutate: index::mutate, seeds: index::seeds },
    Target { name: "state", check: state::check, mutate: state::mutate, seeds: state::seeds },
    Target { name: "vsock", check: vsock::check, mutate: vsock::mutate, seeds: vsock::seeds },
    Target { name: "net_device", check: net_device::check, mutate: net_device::mutate, seeds: net_device::seeds },
    Target { name: "net_frames", check: net_frames::check, mutate: net_frames::mutate, seeds: net_frames::seeds },
    Target { name: "vsock_device", check: vsock_device::check, mutate: vsock_device::mutate, seeds: vsock_device::seeds },
];

/// splitmix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
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

    /// Below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Numbers as decoders are afraid of them.
    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => u64::MAX - self.below(3) as u64,
            1 => self.next(),
            2 => (1 << self.below(64)) - self.below(2) as u64,
            _ => self.below(20) as u64,
        }
    }
}

/// The files of a directory by name.
type Files = BTreeMap<String, Vec<u8>>;

/// Every chain under `checkpoints/`, golden and damaged.
fn fixtures(checkpoints: &Path) -> Vec<Files> {
    let list = |dir: &Path| {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let dirs = ["golden", "damaged"].iter().flat_map(|group| list(&checkpoints.join(group))).filter(|path| path.is_dir());
    dirs.map(|dir| {
        let named = |path: &PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap());
        list(&dir).iter().map(named).collect()
    })
    .collect()
}

/// Changes a copy of `bytes` and puts `repair` to it, unless the input is to stay broken.
fn bytes_then(input: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>, repair: impl FnOnce(&mut Vec<u8>)) {
    bytes(input);
    if !random.one_in(16) {
        repair(input);
    }
}
