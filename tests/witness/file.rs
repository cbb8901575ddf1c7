//! The witness in a directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use slackwater::replica::register::Register;
use slackwater::replica::witness::file::FileWitness;
use slackwater::replica::witness::manual::Permission;
use slackwater::replica::witness::{Swapped, Witness, WitnessFault, WitnessSpec};

use super::conformance::{LIMIT, after, conforms, refused, text};

fn open(dir: &Path) -> FileWitness {
    FileWitness::open(dir, "web", LIMIT).unwrap()
}

fn numbered(dir: &Path, generation: u64) -> std::path::PathBuf {
    dir.join(format!("web.{generation:020}"))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Two values, the second from the first.
fn two(witness: &mut FileWitness) -> [Register; 2] {
    let first = after(None);
    let second = after(Some(&first));
    assert_eq!(witness.swap(None, &first).unwrap(), Swapped::Won);
    assert_eq!(witness.swap(Some(&first), &second).unwrap(), Swapped::Won);
    [first, second]
}

#[test]
fn it_conforms_and_leaves_only_numbered_files() {
    let dir = tempfile::tempdir().unwrap();
    let spec: WitnessSpec = format!("file:{}/web", dir.path().display()).parse().unwrap();
    conforms(&|| spec.open(std::path::Path::new("store"), &Permission::default(), LIMIT).unwrap());
    let names = names(dir.path());
    assert_eq!(names.len(), 53);
    for (name, generation) in names.iter().zip(1..) {
        let path = dir.path().join(name);
        assert_eq!(path, numbered(dir.path(), generation));
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn machines_in_one_directory_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let [_, second] = two(&mut open(dir.path()));
    for name in ["we", "web.1", "web.00000000000000000002", "x"] {
        let mut other = FileWitness::open(dir.path(), name, LIMIT).unwrap();
        assert_eq!(other.read().unwrap(), None, "{name}");
        assert_eq!(other.swap(None, &after(None)).unwrap(), Swapped::Won, "{name}");
    }
    assert_eq!(open(dir.path()).read().unwrap(), Some(second));
}

#[test]
fn a_number_that_is_taken_is_a_lost_race_and_a_gap_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut witness = open(dir.path());
    let [_, second] = two(&mut witness);
    // Somebody else's third and fourth, of which the list shows neither yet: a swap sees them.
    let third = after(Some(&second));
    let fourth = after(Some(&third));
    fs::write(numbered(dir.path(), 3), third.to_json()).unwrap();
    fs::write(numbered(dir.path(), 4), fourth.to_json()).unwrap();
    assert_eq!(witness.swap(Some(&second), &after(Some(&second))).unwrap(), Swapped::Other(Some(fourth)));
    assert_eq!(witness.swap(Some(&second), &third).unwrap(), Swapped::Other(Some(fourth)));
    // Without the older ones it is still the fourth.
    fs::remove_file(numbered(dir.path(), 2)).unwrap();
    fs::remove_file(numbered(dir.path(), 3)).unwrap();
    assert_eq!(witness.read().unwrap(), Some(fourth));
    assert_eq!(witness.swap(Some(&second), &third).unwrap(), Swapped::Other(Some(fourth)), "an old number again");
    assert_eq!(names(dir.path()).len(), 2);
}

#[test]
fn what_is_no_register_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut witness = open(dir.path());
    let [_, second] = two(&mut witness);
    let path = numbered(dir.path(), 3);
    let long = format!("{}{}", after(Some(&second)).to_json(), " ".repeat(1 << 20));
    for wrong in ["", "{", "{}\n", &second.to_json(), &long] {
        fs::write(&path, wrong).unwrap();
        for said in [refused(witness.read()), refused(witness.swap(Some(&second), &after(Some(&second))))] {
            assert!(said.contains(path.to_str().unwrap()) && said.contains("no register"), "{said}");
        }
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(refused(witness.read()).contains("not a regular file"));
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    assert!(refused(witness.read()).contains(path.to_str().unwrap()));
    fs::remove_file(&path).unwrap();
    assert_eq!(witness.read().unwrap(), Some(second));
}

#[test]
fn what_crashes_left_is_removed_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let digits = "0123456789abcdef0123456789abcdef";
    let names_left = [format!(".web.{digits}.new"), format!(".other.{digits}.new"), ".web.x.new".to_owned()];
    let fresh = format!(".web.{}.new", digits.replace('0', "f"));
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 86_400);
    for name in &names_left {
        fs::File::create(dir.path().join(name)).unwrap().set_modified(old).unwrap();
    }
    fs::write(dir.path().join(&fresh), "").unwrap();
    open(dir.path());
    let mut expected = vec![fresh, names_left[1].clone(), names_left[2].clone()];
    expected.sort();
    assert_eq!(names(dir.path()), expected, "only this machine's, and only those that nobody writes any more");
}

#[test]
fn another_directory_under_the_same_path_is_not_taken_for_it() {
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("shared");
    fs::create_dir(&dir).unwrap();
    let mut witness = open(&dir);
    let [_, second] = two(&mut witness);
    fs::rename(&dir, above.path().join("moved")).unwrap();
    assert!(refused(witness.read()).contains("shared"));
    fs::create_dir(&dir).unwrap();
    let said = refused(witness.swap(Some(&second), &after(Some(&second))));
    assert!(said.contains("not the directory that it was"), "{said}");
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_place_that_cannot_be_used_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = FileWitness::open(&dir.path().join("no"), "web", LIMIT).unwrap_err();
    assert!(text(&missing).contains("/no") && matches!(missing, WitnessFault::Io { .. }), "{missing:?}");
    // A file system that is there everywhere and takes no files.
    let refused = FileWitness::open(Path::new("/proc/self"), "web", LIMIT).unwrap_err();
    assert!(text(&refused).contains("/proc/self"), "{refused:?}");
}
