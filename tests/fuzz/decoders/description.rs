//! `description.json`: the reader and `verify` take the same files, and what is read is written as
//! it was. The machine in it is the command's to decode.

use std::path::Path;

use slackwater::format::Description;
use slackwater::store::verify::{VerifyError, VerifyOptions, verify};
use slackwater::store::{Chain, StoreError};
use slackwater::vmm::{GuestSpec, MachineSpec, memory_regions};
use twox_hash::XxHash3_64;

use super::{Bytes, Files, Random, bytes_then, fixtures, scratch};

pub(super) fn check(data: &[u8]) {
    scratch::with(&Files::from([("description.json".to_owned(), data.to_vec())]), |dir| {
        let parsed = Description::parse(data);
        let verified = verify(dir, &VerifyOptions::default(), &mut |_| {});
        let opened = Chain::open(dir);
        match (&parsed, &verified, &opened) {
            // A branch is no store: what it branches off is not there.
            (Ok(description), _, Err(_)) if description.branch_of.is_some() => {}
            (Ok(description), verified, Ok(chain)) if description.branch_of.is_none() => {
                assert!(chain.description() == description && chain.epochs_len().unwrap() == 0);
                match verified {
                    // A chain without a mark is damaged.
                    Ok(report) => assert!(!report.is_sound() && report.epochs == 0, "{report:?}"),
                    Err(error) => panic!("{error:?}"),
                }
            }
            (
                Err(_),
                Err(VerifyError::Description { .. } | VerifyError::Version { .. }),
                Err(StoreError::Description { .. } | StoreError::Version { .. }),
            ) => {}
            _ => panic!("they differ: {parsed:?}\n{verified:?}\n{opened:?}"),
        }
        if let Ok(description) = parsed {
            fields(&description);
        }
    });
}

fn fields(description: &Description) {
    let bytes = description.encode().unwrap();
    let again = Description::parse(&bytes).unwrap();
    assert_eq!(again, *description);
    assert_eq!(description.frames(), description.memory.iter().map(|run| run.count).sum::<u64>());
    for run in &description.memory {
        assert!(description.contains_run(*run) && description.contains(run.first));
    }
    let Ok(spec) = serde_json::from_value::<MachineSpec>(description.machine.clone()) else { return };
    let value = serde_json::to_value(&spec).unwrap();
    assert_eq!(serde_json::from_value::<MachineSpec>(value).unwrap(), spec);
    assert_eq!(spec.guest.to_string().parse::<GuestSpec>().unwrap(), spec.guest);
    let _ = (memory_regions(spec.memory_bytes), spec.guest.every());
}

const WORDS: [&str; 36] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "null",
    "\"format\":",
    "\"chain\":",
    "\"page_size\":",
    "\"created_unix_ns\":",
    "\"created_by\":",
    "\"memory\":",
    "\"vcpus\":",
    "\"machine\":",
    "\"first\":",
    "\"count\":",
    "{\"first\":0,\"count\":1}",
    "\"memory_bytes\":",
    "\"guest\":",
    "\"churn\":",
    "\"touch\":",
    "\"churn:pages=64\"",
    "\"churn:every=5ms\"",
    "\"touch:pages=9,lists=3\"",
    "1e3",
    "-1",
    "1.0",
    "18446744073709551615",
    "1099511627776",
    "4096",
    "\\u0041",
    " ",
    "\"a\"",
    "\n",
    "\r",
];

pub(super) fn mutate(data: &mut Vec<u8>, random: &mut Random, bytes: Bytes<'_>) {
    let word = |line: &mut Vec<u8>, random: &mut Random| {
        let from = random.below(line.len() + 1);
        let to = (from + random.below(4) * random.below(8)).min(line.len());
        line.splice(from..to, random.pick(&WORDS).bytes());
    };
    let number = |line: &mut Vec<u8>, random: &mut Random| {
        let digits: Vec<_> = (0..line.len()).filter(|at| line[*at].is_ascii_digit()).collect();
        let Some(from) = digits.get(random.below(digits.len())).copied() else { return };
        let to = (from..line.len()).find(|at| !line[*at].is_ascii_digit()).unwrap_or(line.len());
        line.splice(from..to, random.number().to_string().bytes());
    };
    let mut line: Vec<u8> = data.iter().copied().take_while(|byte| *byte != b'\n').collect();
    match random.below(8) {
        0 => return bytes_then(data, random, bytes, |_| {}),
        1 | 2 => word(&mut line, random),
        3 | 4 => number(&mut line, random),
        5 => memory(&mut line, random),
        _ => bytes(&mut line),
    }
    if line.contains(&b'\n') {
        line.retain(|byte| *byte != b'\n');
    }
    let end = if random.one_in(16) { "" } else { "\n" };
    let hash = format!("\nxxh3-64 {:016x}{end}", XxHash3_64::oneshot(&line));
    *data = [&line, hash.as_bytes()].concat();
}

/// Puts other runs in the place of the memory: most of them meet, leave a gap or overlap by a page.
fn memory(line: &mut Vec<u8>, random: &mut Random) {
    let Some(from) = line.windows(10).position(|bytes| bytes == b"\"memory\":[").map(|at| at + 10) else { return };
    let Some(to) = line[from..].iter().position(|byte| *byte == b']').map(|at| from + at) else { return };
    let mut runs = Vec::new();
    let mut end = random.number();
    let count = if random.one_in(16) { 60 + random.below(8) } else { random.below(4) };
    for _ in 0..count {
        let first = match random.below(12) {
            0 => random.number(),
            1 | 2 => end.wrapping_sub(1),
            3 => end.wrapping_add(1),
            _ => end,
        };
        let count = random.number();
        runs.push(format!("{{\"first\":{first},\"count\":{count}}}"));
        end = first.wrapping_add(count);
    }
    line.splice(from..to, runs.join(",").bytes());
}

pub(super) fn seeds(checkpoints: &Path) -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = fixtures(checkpoints).iter().filter_map(|files| files.get("description.json").cloned()).collect();
    seeds.sort();
    seeds.dedup();
    seeds
}
