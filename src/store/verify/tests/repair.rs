//! Repairs: what they change, and that they may end anywhere.

use super::branches::{branch, family, grow};
use super::compacted::long;
use super::*;
use crate::store::StoreError;
use crate::store::repair::{RepairError, RepairOptions, RepairPlan, RepairStep};

fn plan(dir: &Path, cut: Option<(&str, u64)>) -> Result<RepairPlan, RepairError> {
    let (branch, truncate_after) = cut.map(|(branch, epoch)| (branch.to_owned(), EpochId(epoch))).unzip();
    RepairPlan::new(dir, &RepairOptions { branch, truncate_after }, &mut |_| {})
}

/// Every file with its bytes, locks aside.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if !path.ends_with("lock") && !path.ends_with("maintenance") {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

fn copy(files: &BTreeMap<String, Vec<u8>>) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// Repairs the store, ending behind each number of steps, and then again; `want` looks at what
/// comes of it.
fn repaired(dir: &Path, cut: Option<(&str, u64)>, want: impl Fn(&VerifyReport, &str)) {
    let before = files(dir);
    let sound = run(dir).epochs;
    let steps = plan(dir, cut).unwrap().steps().len();
    assert_eq!(files(dir), before, "a plan changes nothing");
    for count in 0..=steps {
        let copied = copy(&before);
        {
            let plan = plan(copied.path(), cut).unwrap();
            plan.steps().iter().take(count).for_each(|step| plan.apply_step(step).unwrap());
        }
        let report = run(copied.path());
        let case = format!("behind {count} of {steps} steps: {report:#?}");
        assert!(report.epochs <= sound && report.audits_failed == 0, "{case}");
        let again = plan(copied.path(), cut).unwrap();
        again.apply().unwrap();
        assert!(!again.remains(), "{case}");
        drop(again);
        want(&run(copied.path()), &case);
        assert_eq!(plan(copied.path(), cut).unwrap().steps(), [], "{case}");
        // Nothing that was there is gone, but what a step may remove.
        if cut.is_some() {
            let after = files(copied.path());
            for (name, bytes) in before.iter().filter(|(name, _)| name.contains("segment-")) {
                let mut parts: Vec<&[u8]> = after
                    .iter()
                    .filter(|(other, _)| *other == name || other.starts_with("lost") && other.contains(name.as_str()))
                    .map(|(_, bytes)| bytes.as_slice())
                    .collect();
                parts.dedup();
                let mut there = parts.iter().any(|part| part == bytes);
                for _ in 0..2 {
                    // What was kept, with a close frame that a step put there or without, and what
                    // was cut off, in whatever order the names have.
                    let (first, rest) = parts.split_first().unwrap();
                    let kept = &first[..first.len().saturating_sub(72)];
                    there |= [first, kept].iter().any(|kept| [*kept, &rest.concat()].concat() == *bytes);
                    parts.reverse();
                }
                assert!(there, "{name} {case}");
            }
        }
    }
}

#[test]
fn a_sound_store_needs_nothing() {
    let (dir, _) = family();
    let plan = plan(dir.path(), None).unwrap();
    assert!(plan.steps().is_empty() && !plan.remains());
    // And it is locked while there is a plan.
    assert!(matches!(self::plan(dir.path(), None), Err(RepairError::Store(StoreError::InUse { .. }))));
    drop(plan);
    assert!(self::plan(dir.path(), Some(("main", 12))).unwrap().steps().is_empty());
    let error = self::plan(dir.path(), Some(("main", 11))).unwrap_err();
    assert!(matches!(error, RepairError::NotNewest { newest: Some(EpochId(12)), .. }), "{error:?}");
    // What is no store gets no locks.
    let empty = TempDir::new().unwrap();
    assert!(matches!(self::plan(empty.path(), None), Err(RepairError::Verify(VerifyError::NoDescription { .. }))));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn what_nothing_needs_goes() {
    let mut writer = long().compacted(0, 1, &[2, 6]);
    writer.index();
    writer.indexes.insert(1, Some(vec![7; 5000]));
    let dir = long().save();
    writer.save_to(dir.path());
    for name in ["compact.tmp", "index-00000003.tmp", "index-00000099"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    fs::write(dir.path().join("notes.txt"), "x").unwrap();
    // And a torn tail.
    let tail = [writer.segments[2].as_slice(), &[1; 100]].concat();
    fs::write(dir.path().join("segment-00000004"), tail).unwrap();
    repaired(dir.path(), None, |report, case| {
        assert!(report.is_sound() && report.torn_tail.is_none() && report.leftovers.is_empty(), "{case}: {report:#?}");
        assert_eq!((report.epochs, report.indexes_checked), (8, 1), "{case}");
    });
    plan(dir.path(), None).unwrap().apply().unwrap();
    let names: Vec<_> = files(dir.path()).into_keys().collect();
    let kept = [
        "description.json",
        "durable",
        "index-00000001-00000002",
        "notes.txt",
        "segment-00000001-00000002",
        "segment-00000003",
        "segment-00000004",
    ];
    assert_eq!(names, kept);
    assert_eq!(files(dir.path())["segment-00000004"], writer.segments[2]);
}

#[test]
fn a_torn_tail_over_several_segments_goes() {
    let mut writer = long();
    writer.segments.truncate(2);
    writer.segments[1].truncate(writer.places[&6].3);
    let end = writer.segments[1].len();
    writer.segments[1].extend([0; 64]);
    let dir = writer.save();
    fs::write(dir.path().join("segment-00000003"), "").unwrap();
    fs::write(dir.path().join("segment-00000004"), [0; 50]).unwrap();
    repaired(dir.path(), None, |report, case| {
        assert!(report.is_sound() && report.torn_tail.is_none(), "{case}: {report:#?}");
        assert_eq!((report.epochs, report.segments, report.bytes), (6, 2, (writer.segments[0].len() + end) as u64), "{case}");
    });
}

#[test]
fn a_damaged_chain_is_cut_only_when_told() {
    let (dir, chains) = family();
    // A branch of what will be lost, and a branch of that.
    let mut d = branch(&chains["main"], "main", 9, 4);
    grow(&mut d, 10, 10, 5);
    d.save_to(&dir.path().join("branches/d"));
    let mut e = branch(&d, "d", 10, 5);
    grow(&mut e, 11, 11, 5);
    e.save_to(&dir.path().join("branches/e"));
    let mut main = chains["main"].clone();
    main.index();
    let (segment, at) = main.find(PAGES, 8, 0);
    main.segments[segment][at + 70] ^= 1;
    main.save_to(dir.path());

    let untold = plan(dir.path(), None).unwrap();
    assert!(untold.remains() && untold.steps().is_empty(), "{untold:?}");
    drop(untold);
    for epoch in [1, 6, 8, 12] {
        assert!(matches!(plan(dir.path(), Some(("main", epoch))), Err(RepairError::NotNewest { .. })));
    }
    repaired(dir.path(), Some(("main", 7)), |report, case| {
        assert!(report.is_sound() && report.torn_tail.is_none(), "{case}: {report:#?}");
        let epochs: Vec<_> = report.branches.iter().map(|found| (found.name.as_str(), found.epochs)).collect();
        assert_eq!(epochs, [("main", 7), ("a", 6), ("b", 2), ("c", 1)], "{case}");
    });
    let steps = plan(dir.path(), Some(("main", 7))).unwrap().steps().to_vec();
    assert_eq!(steps[0], RepairStep::MakeDirectory { dir: "lost-001".to_owned() });
    let [.., cut, RepairStep::Mark { epoch: EpochId(7), .. }] = &*steps else { panic!("{steps:?}") };
    assert!(matches!(cut, RepairStep::Truncate { file, .. } if file == "segment-00000003"), "{steps:?}");
    // Damage that only a branch has.
    let (dir, chains) = family();
    let mut a = chains["a"].clone();
    let (segment, at) = a.find(STATE, 8, 0);
    a.segments[segment][at + 70] ^= 1;
    a.save_to(&dir.path().join("branches/a"));
    repaired(dir.path(), Some(("a", 7)), |report, case| {
        assert!(report.is_sound(), "{case}: {report:#?}");
        let epochs: Vec<_> = report.branches.iter().map(|found| (found.name.as_str(), found.epochs)).collect();
        assert_eq!(epochs, [("main", 12), ("a", 2), ("c", 1)], "{case}");
    });
}

#[test]
fn originals_stay_where_what_replaces_them_is_damaged() {
    let mut writer = long().compacted(0, 1, &[2, 6]);
    let (segment, at) = writer.find(PAGES, 6, 0);
    writer.segments[segment][at + 70] ^= 1;
    let dir = long().save();
    writer.save_to(dir.path());
    let plan = plan(dir.path(), None).unwrap();
    assert!(plan.steps().is_empty() && plan.remains(), "{plan:?}");
    drop(plan);
    repaired(dir.path(), Some(("main", 2)), |report, case| {
        assert!(report.is_sound() && report.leftovers.is_empty(), "{case}: {report:#?}");
        assert_eq!(report.epochs, 1, "{case}");
    });
}

#[test]
fn a_missing_segment_and_one_that_can_not_be_read() {
    for broken in [false, true] {
        let dir = long().save();
        let path = dir.path().join("segment-00000003");
        if broken {
            fs::write(&path, [3; 400]).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        repaired(dir.path(), Some(("main", 6)), |report, case| {
            assert!(report.is_sound(), "{case}: {report:#?}");
            assert_eq!((report.epochs, report.segments), (6, 2), "{case}");
        });
    }
    // Nothing is whole: nothing can be kept.
    let dir = long().save();
    fs::write(dir.path().join("segment-00000001"), [3; 400]).unwrap();
    assert!(matches!(plan(dir.path(), Some(("main", 1))), Err(RepairError::NotNewest { newest: None, .. })));
    assert!(plan(dir.path(), None).unwrap().remains());
}

/// What was durable is cut off only where somebody says so, and what is left of it is kept; the
/// last step says what is durable now.
#[test]
fn what_is_lost_is_cut_only_when_told() {
    type Lose = fn(&Path);
    let loses: [(&str, Lose, u64); 6] = [
        ("the last segment", |dir| fs::remove_file(dir.join("segment-00000004")).unwrap(), 9),
        ("an empty segment", |dir| fs::write(dir.join("segment-00000004"), "").unwrap(), 9),
        (
            "an end",
            |dir| {
                let bytes = fs::read(dir.join("segment-00000004")).unwrap();
                fs::write(dir.join("segment-00000004"), &bytes[..bytes.len() - 400]).unwrap();
            },
            11,
        ),
        ("the mark", |dir| fs::remove_file(dir.join("durable")).unwrap(), 12),
        (
            "the mark and an end",
            |dir| {
                fs::remove_file(dir.join("durable")).unwrap();
                fs::write(dir.join("segment-00000004"), [8; 300]).unwrap();
            },
            9,
        ),
        (
            "an index's segment",
            |dir| {
                fs::remove_file(dir.join("segment-00000004")).unwrap();
                fs::remove_file(dir.join("segment-00000003")).unwrap();
            },
            6,
        ),
    ];
    for (what, lose, left) in loses {
        println!("{what}");
        let mut writer = mark::marked();
        writer.index();
        let dir = writer.save();
        lose(dir.path());
        let before = files(dir.path());
        let untold = plan(dir.path(), None).unwrap();
        assert!(untold.remains(), "{untold:?}");
        untold.apply().unwrap();
        drop(untold);
        assert!(files(dir.path()) == before, "{what}: nothing is changed untold");
        repaired(dir.path(), Some(("main", left)), |report, case| {
            assert!(report.is_sound() && report.torn_tail.is_none(), "{what}, {case}: {report:#?}");
            assert_eq!(report.epochs, left, "{what}, {case}");
            assert!(report.leftovers.is_empty(), "{what}, {case}");
        });
        let plan = plan(dir.path(), Some(("main", left))).unwrap();
        assert!(matches!(plan.steps().last(), Some(RepairStep::Mark { epoch, .. }) if *epoch == EpochId(left)), "{plan:?}");
        plan.apply().unwrap();
        drop(plan);
        let after = files(dir.path());
        assert_eq!(after["durable"], mark::slots(&writer, [left; 3]), "{what}");
        assert_eq!(after.get("lost-001/durable"), before.get("durable"), "{what}");
    }
}

#[test]
fn a_branch_in_use_is_left_alone() {
    let (dir, _) = family();
    let lock = dir.path().join("branches/a/lock");
    fs::write(dir.path().join("branches/a/description.tmp"), "").unwrap();
    fs::write(dir.path().join("branches/b/description.tmp"), "").unwrap();
    let held = fs::File::open(&lock).unwrap();
    held.try_lock().unwrap();
    let plan = plan(dir.path(), None).unwrap();
    assert_eq!(plan.in_use(), ["a"]);
    assert_eq!(plan.steps().len(), 1, "{plan:?}");
}
