//! A source file that no `mod` line names is compiled into nothing: its tests never run.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Tree;

pub(super) fn check(tree: &Tree, roots: &[&str]) -> Vec<String> {
    let files: BTreeMap<_, _> = tree.files.iter().map(|file| (file.path.as_str(), file)).collect();
    let mut findings = Vec::new();
    let mut reached = BTreeSet::new();
    let mut ahead: Vec<String> = roots.iter().map(|root| (*root).to_owned()).collect();
    while let Some(path) = ahead.pop() {
        let Some(file) = files.get(path.as_str()) else {
            findings.push(format!("{path}:1: this file is not there"));
            continue;
        };
        if !reached.insert(file.path.as_str()) {
            continue;
        }
        for declared in file.declared() {
            let places = [format!("{}.rs", declared.folder), format!("{}/mod.rs", declared.folder)];
            match places.into_iter().find(|place| files.contains_key(place.as_str())) {
                Some(place) => ahead.push(place),
                None => findings.push(format!("{path}:{}: the module {} has no file", declared.line, declared.folder)),
            }
        }
    }
    let orphans = files.keys().filter(|path| !reached.contains(*path));
    findings.extend(orphans.map(|path| format!("{path}:1: no `mod` line names this file")));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let tree = Tree::new(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())));
        check(&tree, &["tests/main.rs"])
    }

    #[test]
    fn a_file_that_nobody_names_is_found() {
        let main = ("tests/main.rs", "mod a; mod b;");
        let (a, b) = (("tests/a/mod.rs", "mod c;"), ("tests/b.rs", ""));
        let c = ("tests/a/c.rs", "");
        assert_eq!(findings(&[main, a, b, c]), [""; 0]);
        for orphan in ["tests/d.rs", "tests/a/d.rs", "tests/c.rs", "tests/d/mod.rs"] {
            assert_eq!(findings(&[main, a, b, c, (orphan, "")]), [format!("{orphan}:1: no `mod` line names this file")]);
        }
        assert_eq!(
            findings(&[("tests/main.rs", "mod a; // mod b;\n"), a, b, c]),
            ["tests/b.rs:1: no `mod` line names this file"]
        );
        assert_eq!(findings(&[main, a, b]), ["tests/a/mod.rs:1: the module tests/a/c has no file"]);
        assert_eq!(findings(&[b]).len(), 2, "nothing is reached without a root");
    }
}
