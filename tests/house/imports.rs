//! A module imports only from those above it in the house, never back.

use super::source::{File, Tree};

/// The house, from the top: each may use those before it.
const HOUSE: [&str; 18] = [
    "clock", "lock", "xxh3", "page", "parked", "format", "epoch", "kvm", "memory", "machine", "track", "store", "restore",
    "replica", "ledger", "vmm", "bench", "cli",
];

fn place(name: &str) -> Option<usize> {
    HOUSE.iter().position(|module| *module == name)
}

pub(super) fn check(tree: &Tree) -> Vec<String> {
    tree.files.iter().flat_map(check_file).collect()
}

fn check_file(file: &File) -> Vec<String> {
    let module = file.module();
    // The crate's root names all modules, and the command's `main` calls the last.
    let Some(own) = module.first() else { return Vec::new() };
    let Some(own_place) = place(own) else { return vec![format!("{}:1: the house has no module `{own}`", file.path)] };
    let mut findings = Vec::new();
    for (line, used) in used_modules(file, &module) {
        match place(&used) {
            Some(place) if place <= own_place => {}
            Some(_) => {
                findings.push(format!("{}:{line}: `{own}` imports from `{used}`, which is below it in the house", file.path))
            }
            None => findings.push(format!("{}:{line}: `{used}` of the crate's root is no module of the house", file.path)),
        }
    }
    findings
}

/// The crate's modules that paths outside of tests begin with, with their lines.
fn used_modules(file: &File, module: &[String]) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    for (index, (token, inner)) in file.tokens.iter().zip(file.inner_modules()).enumerate() {
        let begins = matches!(token.text.as_str(), "crate" | "super")
            && (index == 0 || file.word(index - 1) != "::")
            && file.word(index + 1) == "::";
        if !begins || file.test || token.test {
            continue;
        }
        let mut at = index;
        let mut above = if token.text == "crate" { 0 } else { module.len() + inner - 1 };
        while file.word(at + 2) == "super" && file.word(at + 3) == "::" {
            at += 2;
            above = above.saturating_sub(1);
        }
        if above == 0 {
            used.extend(first_words(file, at + 2).into_iter().map(|word| (token.line, word)));
        }
    }
    used
}

/// The first word of a path, or of each path in a group.
fn first_words(file: &File, at: usize) -> Vec<String> {
    if file.word(at) != "{" {
        return vec![file.word(at).to_owned()];
    }
    let (mut words, mut depth) = (Vec::new(), 0_usize);
    for index in at..file.tokens.len() {
        match file.word(index) {
            "{" => depth += 1,
            "}" => depth -= 1,
            word if depth == 1 && matches!(file.word(index - 1), "{" | ",") => words.push(word.to_owned()),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(&Tree::new([(path.to_owned(), text.to_owned())]))
    }

    #[test]
    fn an_import_back_up_is_found_however_it_is_written() {
        for text in [
            "use crate::restore::Plan;",
            "use crate::{page::Gfn, restore::{self, Plan}};",
            "use crate::{kvm::{ring, park}, store};",
            "fn f() { crate::store::open(); }",
            "use super::super::vmm::Vm;",
            "mod inner { use super::super::super::cli::x; }",
            "pub(in crate::vmm) struct X;",
            "macro_rules! m { () => { $crate::restore::f() } }",
            "use super::super::{page, bench};",
            "mod a { } use super::super::restore;",
        ] {
            let found = findings("src/track/ring.rs", text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with("src/track/ring.rs:1: `track` imports from `"), "{found:?}");
        }
    }

    #[test]
    fn what_may_be_imported_is_not_found() {
        for text in [
            "use crate::page::Gfn; use crate::kvm::ring::Lost; use crate::track::Tracker;",
            "use super::simulated; use super::restore; use self::store::x; mod store {}",
            "mod inner { use super::super::restore; }",
            "// use crate::restore::Engine;\n/// [`crate::restore::Engine`]\nconst X: &str = \"crate::restore\";",
            "#[cfg(test)] mod tests { use crate::restore::Engine; }",
            "use kvm_ioctls::store; use other::crate_::epoch;",
        ] {
            assert_eq!(findings("src/track/ring.rs", text), [""; 0], "{text}");
        }
        assert_eq!(findings("src/lib.rs", "pub mod cli; pub use crate::cli::main;"), [""; 0]);
        let tests = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let tree =
            Tree::new([tests("src/page/mod.rs", "#[cfg(test)] mod tests;"), tests("src/page/tests.rs", "use crate::cli;")]);
        assert_eq!(check(&tree), [""; 0]);
    }

    #[test]
    fn only_the_modules_of_the_house_are_in_the_root() {
        assert_eq!(findings("src/util.rs", "").len(), 1);
        assert_eq!(findings("src/track/mod.rs", "use crate::Error;").len(), 1);
        assert_eq!(findings("src/track/mod.rs", "use super::*;").len(), 1);
    }
}
