//! Compaction, prune and branches by the command, killed at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use slackwater::page::EpochId;
use slackwater::restore::{self, Digest};
use slackwater::store::{Chain, Retention, branches, plan_prune};

use crate::support::command::{Running, number, run, slackwater};
use crate::support::copy::{read, write};
use crate::support::{Random, epochs, kvm_or_skip, rounds};

/// Every so many epochs are compared to the bit; the audits of the others are checked by `verify`.
const COMPARED: usize = 8;

fn numbers(chain: &Chain) -> BTreeSet<EpochId> {
    epochs(chain).iter().map(|epoch| epoch.commit.epoch).collect()
}

/// The digests of some of these epochs.
fn digests(chain: &Chain, of: &BTreeSet<EpochId>) -> BTreeMap<EpochId, Digest> {
    of.iter().step_by(COMPARED).map(|epoch| (*epoch, restore::digest(chain, *epoch).unwrap())).collect()
}

/// That every epoch of every chain is sound and what its audit says, and that those left of
/// `compared` are what they were. Returns which epochs there are.
fn all_is_sound(store: &Path, compared: &BTreeMap<EpochId, Digest>, after: &str) -> BTreeSet<EpochId> {
    let chain = Chain::open(store).unwrap();
    assert!(chain.damage().is_empty(), "{after}");
    let now = numbers(&chain);
    for (epoch, digest) in compared.iter().filter(|(epoch, _)| now.contains(epoch)) {
        assert_eq!(restore::digest(&chain, *epoch).unwrap(), *digest, "{after}: epoch {epoch}");
    }
    let report = run(&format!("verify --store {} --json", store.display())).expect(0).json();
    assert_eq!((number(&report, "/audits_failed"), number(&report, "/audits_unchecked")), (0, 0), "{report}");
    assert_eq!(report["damage"].as_array().map(Vec::len), Some(0), "{report}");
    now
}

/// Kills the command somewhere in its usual time, which is less once it was quicker. Returns
/// whether it was still there.
fn killed_in(line: &str, usual: &mut Duration, random: &mut Random) -> bool {
    let begun = Instant::now();
    let mut running = Running::start(&mut slackwater(line.split_whitespace()));
    // Anywhere in it: this is no wait for anything.
    std::thread::sleep(usual.mul_f64(random.below(1_000) as f64 / 1_000.0));
    if running.has_ended() {
        running.wait().expect(0);
        *usual = begun.elapsed().min(*usual);
        return false;
    }
    running.signal(libc::SIGKILL);
    // It may have come to its end just now.
    running.wait().code() != 0
}

#[test]
fn what_is_killed_while_it_tidies_up_loses_nothing() {
    if !kvm_or_skip("native::upkeep::what_is_killed_while_it_tidies_up_loses_nothing") {
        return;
    }
    let mut random = Random::seeded("native::upkeep", 23);
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original");
    let last = rounds(12, 240, 240);
    // A rule that drops nothing: segments are short with one.
    let guest = "churn:pages=1500,content=words,pattern=zipf";
    let options = format!("--memory 16M --vcpus 2 --guest {guest} --budget 512 --audit 1 --epochs {last} --keep-last 100000");
    run(&format!("checkpoint --store {} {options}", original.display())).expect(0);
    let files = read(&original);
    let chain = Chain::open(&original).unwrap();
    let all = numbers(&chain);
    let compared = digests(&chain, &all);
    let rules = Retention { last: Some(last / 3), ..Retention::default() };
    let kept: BTreeSet<_> = plan_prune(&original, "main", &rules).unwrap().kept.into_iter().collect();
    assert!(kept.len() < all.len());
    let store = dir.path().join("store");
    let path = store.display().to_string();
    let middle = last / 2;
    let goes_on = "--continue --budget 512 --audit 1";
    let lines = [
        format!("compact --store {path}"),
        format!("prune --store {path} --keep-last {}", last / 3),
        format!("restore --store {path} --epoch {middle} --branch other {goes_on} --epochs 6"),
        // What is not kept goes while the guest writes.
        format!("restore --store {path} {goes_on} --epochs {} --keep-last {}", last / 4, last / 3),
    ];
    let again = |line: &str| match line.contains("--branch") {
        true => format!("restore --store {path} --branch other {goes_on} --epochs 2"),
        false => line.to_owned(),
    };
    let mut usual = BTreeMap::new();
    let rounds = rounds(4, 8, 200);
    let mut killed = 0;
    for round in 0..rounds {
        let line = &lines[usize::try_from(round).unwrap() % lines.len()];
        write(&store, &files);
        let was_killed = if let Some(usual) = usual.get_mut(line) {
            killed_in(line, usual, &mut random)
        } else {
            // The first of each kind shows how long it takes, unless that is known.
            let begun = Instant::now();
            run(line).expect(0);
            usual.insert(line, begun.elapsed().mul_f64(1.05));
            false
        };
        killed += u64::from(was_killed);
        let now = all_is_sound(&store, &compared, line);
        if line.starts_with("prune") {
            // One rename takes it from the one to the other.
            assert!(now == all || now == kept, "{line}: {now:?}");
        } else if line.contains("--keep-last") {
            assert!(now.last() >= all.last() && now.len() as u64 >= last / 3, "{line}: {now:?}");
        } else {
            assert_eq!(now, all, "{line}");
        }
        // And what was killed can be done again, to its end.
        // A branch is there once its first segment is: one that was killed before leaves a
        // directory.
        let branched = branches(&store).unwrap().iter().any(|branch| branch.name == "other");
        let redo = if branched { again(line) } else { line.clone() };
        run(&redo).expect(0);
        let now = all_is_sound(&store, &compared, &redo);
        if line.starts_with("prune") {
            assert_eq!(now, kept);
        }
        assert!(!store.join("compact.tmp").exists(), "{redo} left its draft");
        std::fs::remove_dir_all(&store).unwrap();
    }
    println!("{killed} of {rounds} rounds were killed");
    assert!(killed > 0 || rounds <= 16, "none of {rounds}");
}
