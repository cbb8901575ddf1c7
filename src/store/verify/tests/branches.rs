//! Branches: verified with what they build on.

use super::changes::touched;
use super::compacted::long;
use super::*;

/// Another chain that begins at `epoch` of the chain `of`, called `name`.
pub(super) fn branch(of: &Writer, name: &str, epoch: u64, number: u8) -> Writer {
    let written = &of.written[&epoch];
    let mut branch = Writer { segments: Vec::new(), numbers: Vec::new(), ..of.clone() };
    branch.frames.clear();
    branch.places.clear();
    branch.written.retain(|number, _| *number <= epoch);
    branch.chain[0] = number;
    branch.branch_of = Some((name.to_owned(), epoch, written.identity));
    branch.last = (epoch, written.identity);
    branch.memory.clone_from(&written.memory);
    branch.indexes.clear();
    branch.segment();
    branch
}

/// Epochs from `first` to `last` that change and write pages.
pub(super) fn grow(writer: &mut Writer, first: u64, last: u64, seed: u8) {
    for epoch in first..=last {
        let seed = seed.wrapping_add(u8::try_from(epoch).unwrap());
        let changed = (2, vec![touched(&(1, writer.memory[&1].clone()), seed)]);
        writer.epoch(epoch, Plan { blocks: vec![changed, (0, vec![page(90, seed)])], zeros: vec![(91, 1)], ..audited() });
        writer.sync();
    }
}

/// `main`, a branch `a` of it, a branch `b` of that, and a second branch `c` of the same epoch as
/// `a`.
pub(super) fn family() -> (TempDir, BTreeMap<&'static str, Writer>) {
    let main = long();
    let mut a = branch(&main, "main", 5, 1);
    grow(&mut a, 6, 9, 60);
    a.segment();
    grow(&mut a, 10, 11, 70);
    a.close();
    let mut b = branch(&a, "a", 9, 2);
    grow(&mut b, 12, 13, 80);
    b.close();
    let mut c = branch(&main, "main", 5, 3);
    grow(&mut c, 6, 6, 90);
    c.close();
    let dir = main.save();
    for (name, writer) in [("a", &a), ("b", &b), ("c", &c)] {
        writer.save_to(&dir.path().join("branches").join(name));
    }
    (dir, BTreeMap::from([("main", main), ("a", a), ("b", b), ("c", c)]))
}

fn only(dir: &Path, name: &str) -> Result<VerifyReport, VerifyError> {
    verify(dir, &VerifyOptions { branch: Some(name.to_owned()), ..VerifyOptions::default() }, &mut |_| {})
}

#[test]
fn branches_are_walked_once_each() {
    let (dir, _) = family();
    let mut last = None;
    let report = verify(dir.path(), &VerifyOptions::default(), &mut |progress| last = Some(progress)).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    let epochs = 12 + 6 + 2 + 1;
    assert_eq!((report.epochs, report.segments, report.audits_checked, report.audits_failed), (epochs, 8, epochs, 0));
    assert_eq!(report.newest, Some(EpochId(12)));
    let branches: Vec<_> = report
        .branches
        .iter()
        .map(|found| (found.name.as_str(), found.of.as_deref(), found.begins_at.map(|epoch| epoch.0), found.epochs))
        .collect();
    assert_eq!(
        branches,
        [
            ("main", None, None, 12),
            ("a", Some("main"), Some(5), 6),
            ("b", Some("a"), Some(9), 2),
            ("c", Some("main"), Some(5), 1)
        ]
    );
    let last = last.unwrap();
    assert_eq!((last.bytes, last.bytes_total, last.epochs), (report.bytes, report.bytes, epochs));

    let report = only(dir.path(), "b").unwrap();
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!((report.epochs, report.audits_checked, report.newest), (5 + 4 + 2, 11, Some(EpochId(13))));
    let report = only(dir.path(), "main").unwrap();
    assert_eq!((report.epochs, report.branches.len()), (12, 1));
    assert!(matches!(only(dir.path(), "d").unwrap_err(), VerifyError::NoBranch { .. }));
    let error = run_error(&dir.path().join("branches/a"));
    assert!(matches!(error, VerifyError::Branch { .. }), "{error:?}");
}

fn run_error(dir: &Path) -> VerifyError {
    try_run(dir).unwrap_err()
}

#[test]
fn damage_before_a_branch_is_its_own_and_behind_it_is_not() {
    let (dir, chains) = family();
    // Behind the epoch that the branches begin at.
    let path = dir.path().join("segment-00000003");
    let mut bytes = fs::read(&path).unwrap();
    let (_, at) = chains["main"].find(PAGES, 8, 0);
    bytes[at + 70] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let report = run(dir.path());
    assert_eq!(kinds(&report), [DamageKind::PayloadChecksum]);
    let epochs: Vec<_> = report.branches.iter().map(|found| (found.epochs, found.damaged)).collect();
    assert_eq!(epochs, [(7, 1), (6, 0), (2, 0), (1, 0)]);
    assert!(only(dir.path(), "b").unwrap().is_sound());
    // Before it.
    let (dir, chains) = family();
    let path = dir.path().join("segment-00000001");
    let mut bytes = fs::read(&path).unwrap();
    let (_, at) = chains["main"].find(PAGES, 3, 0);
    bytes[at + 70] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let report = run(dir.path());
    assert_eq!(kinds(&report), [DamageKind::PayloadChecksum]);
    assert_eq!((report.epochs, report.epochs_behind_damage), (2, 21 - 3));
    assert!(!only(dir.path(), "b").unwrap().is_sound());
}

#[test]
fn a_torn_tail_of_a_branch_is_its_own() {
    let (dir, _) = family();
    let path = dir.path().join("branches/c/segment-00000001");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 90]).unwrap();
    let report = run(dir.path());
    assert!(report.is_sound(), "{report:#?}");
    assert_eq!(report.torn_tail, None);
    assert_eq!(report.branches[3].torn_tail.as_ref().unwrap().file, "branches/c/segment-00000001");
    assert_eq!(report.branches[3].epochs, 0);
}

#[test]
fn a_branch_begins_where_it_says() {
    type Breaks = fn(&mut Writer);
    let cases: [(&str, Breaks, DamageKind); 7] = [
        ("identity", |branch| branch.branch_of.as_mut().unwrap().2 ^= 1, DamageKind::Branch),
        ("epoch", |branch| branch.branch_of.as_mut().unwrap().1 = 400, DamageKind::Branch),
        ("another epoch", |branch| branch.branch_of.as_mut().unwrap().1 = 4, DamageKind::Branch),
        ("parent", |branch| branch.branch_of.as_mut().unwrap().0 = "gone".to_owned(), DamageKind::Branch),
        ("itself", |branch| branch.branch_of.as_mut().unwrap().0 = "c".to_owned(), DamageKind::Branch),
        ("chain", |branch| branch.chain = CHAIN, DamageKind::Branch),
        ("none", |branch| branch.branch_of = None, DamageKind::Description),
    ];
    for (name, breaks, kind) in cases {
        let (dir, mut chains) = family();
        let mut broken = chains.remove("c").unwrap();
        breaks(&mut broken);
        broken.save_to(&dir.path().join("branches/c"));
        let report = run(dir.path());
        assert!(kinds(&report).contains(&kind), "{name}: {report:#?}");
        assert!(report.damage.iter().all(|damage| damage.file.starts_with("branches/c/")), "{name}: {report:#?}");
        assert_eq!(report.epochs, 20, "{name}: {report:#?}");
    }
    // Two that begin in each other, one that only has a directory, and names that no branch has.
    let (dir, mut chains) = family();
    let mut a = chains.remove("a").unwrap();
    a.branch_of.as_mut().unwrap().0 = "b".to_owned();
    a.save_to(&dir.path().join("branches/a"));
    fs::create_dir(dir.path().join("branches/d")).unwrap();
    fs::create_dir(dir.path().join("branches/.d")).unwrap();
    fs::create_dir(dir.path().join("branches/main")).unwrap();
    fs::write(dir.path().join("branches/e"), "").unwrap();
    let report = run(dir.path());
    assert!(report.damage.iter().any(|damage| damage.kind == DamageKind::Branch), "{report:#?}");
    assert_eq!((report.epochs, report.branches.len()), (13, 4));
    assert_eq!(report.leftovers.len(), 1, "{:?}", report.leftovers);
}

#[test]
fn no_flipped_byte_of_a_branch_goes_unnoticed() {
    let (dir, chains) = family();
    for (file, sound) in [
        ("branches/c/segment-00000001", chains["c"].segments[0].clone()),
        ("branches/c/description.json", fs::read(dir.path().join("branches/c/description.json")).unwrap()),
    ] {
        for at in 0..sound.len() {
            let mut changed = sound.clone();
            changed[at] ^= 1 << (at % 7);
            fs::write(dir.path().join(file), changed).unwrap();
            let report = run(dir.path());
            let close = file.contains("segment") && at >= sound.len() - 72;
            assert_eq!(report.is_sound(), close, "{file} at {at}: {report:#?}");
            assert_eq!(report.branches.iter().any(|found| found.torn_tail.is_some()), close, "{file} at {at}");
            assert!(report.damage.iter().all(|damage| damage.file == file), "{file} at {at}: {report:#?}");
        }
        fs::write(dir.path().join(file), sound).unwrap();
    }
}

#[test]
fn too_many_branches_behind_each_other_are_damage() {
    let mut writer = Writer::new();
    writer.epoch(1, Plan { blocks: vec![(1, many(0, 3, 1))], flags: 5, ..Plan::default() });
    writer.close();
    let dir = writer.save();
    let mut of = "main".to_owned();
    for number in 1..=65u64 {
        writer = branch(&writer, &of, number, u8::try_from(number).unwrap());
        writer.epoch(number + 1, audited());
        writer.close();
        of = format!("b{number:03}");
        writer.save_to(&dir.path().join("branches").join(&of));
    }
    let report = run(dir.path());
    assert_eq!(kinds(&report), [DamageKind::Branch], "{report:#?}");
    assert_eq!((report.damage[0].file.as_str(), report.epochs), ("branches/b065/description.json", 65));
}
