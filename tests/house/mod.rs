//! Rules of the house, held against the source tree: what the compiler and clippy do not see.
//!
//! Each rule is a function from text to findings, with tests on text that breaks it. A finding is
//! one line: file, line, what is wrong.

mod circles;
mod code;
mod columns;
mod imports;
mod links;
mod modules;
mod rooms;
mod source;

use std::path::{Path, PathBuf};

use source::{File, Tree};

fn root() -> PathBuf {
    // The nested lane has the test programs and no sources; this test does not run there.
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}\n", findings.len(), findings.join("\n"));
}

fn sources() -> Tree {
    Tree::read(&root(), "src")
}

#[test]
fn imports_go_only_up_the_house() {
    none(&imports::check(&sources()));
}

#[test]
fn files_need_each_other_in_no_circle() {
    none(&circles::check(&sources(), circles::KNOWN));
}

#[test]
fn rooms_of_the_store_import_only_from_those_before_them() {
    none(&rooms::check(&sources()));
}

#[test]
fn unsafe_is_where_the_house_allows_it_and_says_why() {
    none(&code::check_unsafe(&sources()));
}

#[test]
fn nothing_panics_on_purpose() {
    none(&code::check_panics(&sources()));
}

#[test]
fn every_file_says_what_it_is() {
    none(&code::check_headers(&sources()));
    none(&code::check_headers(&Tree::read(&root(), "tests")));
    none(&code::check_headers(&Tree::read(&root(), "fuzz")));
}

#[test]
fn every_file_is_part_of_a_program() {
    none(&modules::check(&sources(), &["src/lib.rs", "src/main.rs"]));
    none(&modules::check(&Tree::read(&root(), "tests"), &["tests/main.rs"]));
}

/// All pages of the documentation.
fn pages(root: &Path) -> Vec<File> {
    let alone = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "checkpoints/README.md"];
    let paths = alone.map(PathBuf::from).into_iter();
    let paths = paths.chain(markdown(root, "docs")).chain(markdown(root, "docs/schema"));
    let read = |path: PathBuf| File::new(&path, std::fs::read_to_string(root.join(&path)).unwrap());
    let pages: Vec<_> = paths.map(read).collect();
    assert!(pages.len() > alone.len() + 3, "docs/ has pages");
    pages
}

#[test]
fn documents_and_comments_are_no_wider_than_they_may_be() {
    none(&columns::check_pages(&pages(&root())));
    for under in ["src", "tests", "benches", "examples", "fuzz"] {
        none(&columns::check_comments(&Tree::read(&root(), under).files));
    }
}

#[test]
fn links_of_the_documentation_lead_somewhere() {
    let root = root();
    let pages = pages(&root);
    none(&links::check_links(&pages, &|path| root.join(path).exists()));
    let mut all = pages;
    all.extend(sources().files);
    none(&links::check_mentions(&all, &|path| root.join(path).exists()));
}

fn markdown(root: &Path, under: &str) -> Vec<PathBuf> {
    let mut pages: Vec<_> = std::fs::read_dir(root.join(under))
        .unwrap()
        .map(|entry| Path::new(under).join(entry.unwrap().file_name()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    pages
}
