//! Differences of two epochs whose content is known.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::Random;
use crate::support::chain::{Truth, sample, sample_of_changes};
use crate::support::command::run;
use crate::support::copy::write;

/// Each page that differs, and by how many bytes.
fn pages(a: &Truth, b: &Truth) -> Vec<(u64, u64)> {
    let gfns: BTreeSet<_> = a.memory.keys().chain(b.memory.keys()).collect();
    let page = |truth: &Truth, gfn| truth.memory.get(gfn).map_or([0; 4096], |page| **page);
    let differing = |gfn| page(a, gfn).iter().zip(page(b, gfn)).filter(|(one, other)| *one != other).count() as u64;
    gfns.into_iter().map(|gfn| (*gfn, differing(gfn))).filter(|(_, bytes)| *bytes > 0).collect()
}

fn runs(pages: &[(u64, u64)]) -> Vec<[u64; 3]> {
    let mut runs: Vec<[u64; 3]> = Vec::new();
    for (gfn, bytes) in pages {
        match runs.last_mut() {
            Some([first, count, sum]) if *first + *count == *gfn => {
                *count += 1;
                *sum += bytes;
            }
            _ => runs.push([*gfn, 1, *bytes]),
        }
    }
    runs
}

fn state(a: &Truth, b: &Truth) -> Vec<Value> {
    let named: BTreeSet<_> = a.state.iter().chain(&b.state).map(|record| (&record.name, record.index)).collect();
    let of = |truth: &Truth, name: &str, index| truth.state.iter().find(|own| own.name == name && own.index == index).cloned();
    let differs = |(name, index): &(&String, u32)| of(a, name, *index) != of(b, name, *index);
    named.into_iter().filter(differs).map(|(name, index)| json!({ "name": name, "index": index })).collect()
}

#[test]
fn pages_bytes_and_state_that_differ() {
    let mut random = Random::seeded("export::diff", 11);
    for chain in [sample(true), sample_of_changes()] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &chain.files);
        let epochs: Vec<_> = chain.truth.keys().copied().collect();
        let mut pairs: Vec<_> = epochs.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let any = |random: &mut Random| epochs[random.below(epochs.len() as u64) as usize];
        pairs.extend((0..6).map(|_| (any(&mut random), any(&mut random))));
        pairs.push((epochs[epochs.len() - 1], epochs[0]));
        for (a, b) in pairs {
            let output = run(&format!("diff --store {} {a} {b} --pages --json", dir.path().display())).expect(0);
            let report = output.json();
            let (of_a, of_b) = (&chain.truth[&a], &chain.truth[&b]);
            let expected = pages(of_a, of_b);
            let zero = |truth: &Truth| expected.iter().filter(|(gfn, _)| !truth.memory.contains_key(gfn)).count();
            let runs: Vec<_> = runs(&expected)
                .iter()
                .map(|[first, count, bytes]| json!({ "first": first, "count": count, "bytes": bytes }))
                .collect();
            let whole = json!({
                "a": a,
                "a_branch": "main",
                "b": b,
                "b_branch": "main",
                "pages_changed": expected.len(),
                "bytes_changed": expected.iter().map(|(_, bytes)| bytes).sum::<u64>(),
                "zero_at_a": zero(of_a),
                "zero_at_b": zero(of_b),
                "runs": runs,
                "state_changed": state(of_a, of_b),
            });
            assert_eq!(report, whole, "{a} {b}");
            let lines: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let listed: Vec<_> = expected.iter().map(|(gfn, bytes)| json!({ "gfn": gfn, "bytes": bytes })).collect();
            assert_eq!(lines[..lines.len() - 1], listed, "{a} {b}");
        }
    }
}

#[test]
fn for_people() {
    let dir = tempfile::tempdir().unwrap();
    let chain = sample(true);
    write(dir.path(), &chain.files);
    let line = format!("diff --store {} 3 5", dir.path().display());
    let text = run(&line).expect(0).stdout;
    let count = pages(&chain.truth[&3], &chain.truth[&5]).len();
    for part in [&format!("epochs 3 and 5 differ in {count} pages"), "sample.vcpu 0 1", "pages from 0xa: "] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert_eq!(run(&format!("{line} --pages")).expect(0).stdout.lines().count(), count + text.lines().count());
    let same = run(&format!("diff --store {} 3 3", dir.path().display())).expect(0).stdout;
    assert!(same.contains("0 pages") && same.contains("the same"), "{same}");
}
