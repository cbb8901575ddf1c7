//! Files of the product that need each other in a circle: neither can be read, moved or tested
//! alone.
//!
//! A file needs another where a path in its code leads to something that the other one defines: a
//! path of a `use`, or one in the code that begins with `crate`, `super`, `self`, a module of the
//! file, or a name that it imports. Each path is followed to the file that defines what it names.
//! So:
//!
//! - `mod name;` is no need: a folder's `mod.rs` may list its files.
//! - A `use` with a visibility (`pub use`, `pub(super) use`) is a name and no need, unless the same
//!   file uses that name. Whoever imports it from there needs the file that defines it. So a
//!   `mod.rs` that only re-exports is in no circle.
//! - A `mod.rs` that has items of its own is a file like any other. Where its children use them, it
//!   may not use its children.
//! - An import of a module is a need where something of it is used.
//!
//! Tests count for nothing, and neither do methods: a path names the type, wherever its `impl` is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::source::{File, Tree};

/// Circles that are still there, as sets of files, each in order. They may only shrink: a file that
/// is in a circle no longer has to be taken out.
pub(super) const KNOWN: &[&[&str]] = &[&["src/memory/guest.rs", "src/memory/missing.rs"]];

type Path = Vec<String>;

/// A path of a `use`.
#[derive(Debug)]
struct Import {
    path: Path,
    /// What it is called here; `*` for everything.
    name: String,
    line: usize,
    /// It has a visibility: others may use the name from here.
    is_export: bool,
}

/// What a file says of itself.
#[derive(Debug)]
struct Module<'t> {
    file: &'t File,
    children: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths in code.
    paths: Vec<(Path, usize)>,
    /// All words in code, with where they are first.
    words: BTreeMap<&'t str, usize>,
}

/// The files that each file needs, with the line where it first does.
pub(super) type Needs<'t> = BTreeMap<&'t str, BTreeMap<&'t str, usize>>;

pub(super) fn check(tree: &Tree, known: &[&[&str]]) -> Vec<String> {
    let needs = needs(tree);
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    let circles = circles(&needs);
    for circle in &circles {
        seen.extend(circle.iter().copied());
        if !known.iter().any(|known| circle.iter().all(|file| known.contains(file))) {
            findings.push(format!("{} files in a circle: {}", circle.len(), shortest(&needs, circle)));
        }
    }
    let gone = known.iter().copied().flatten().filter(|file| !seen.contains(*file));
    findings.extend(gone.map(|file| format!("{file}:1: is in no circle any more: take it out of the list of known ones")));
    findings
}

/// The circles, for a list of known ones.
pub(super) fn list(tree: &Tree) -> Vec<Vec<String>> {
    circles(&needs(tree)).into_iter().map(|circle| circle.into_iter().map(str::to_owned).collect()).collect()
}

pub(super) fn needs(tree: &Tree) -> Needs<'_> {
    let product = tree.files.iter().filter(|file| !file.test && file.path != "src/main.rs");
    let modules: BTreeMap<Path, Module<'_>> = product.map(|file| (file.module(), Module::new(file))).collect();
    let mut needs = Needs::new();
    for (own, module) in &modules {
        let of_this = needs.entry(module.file.path.as_str()).or_default();
        let mut note = |path: &Path, line: usize| {
            if let Some(at) = follow(&modules, own, path, 0)
                && at != *own
                && let Some(other) = modules.get(&at)
            {
                let first = of_this.entry(other.file.path.as_str()).or_insert(line);
                *first = line.min(*first);
            }
        };
        for import in &module.imports {
            match module.words.get(import.name.as_str()) {
                Some(line) if import.is_export => note(&import.path, *line),
                _ if import.is_export => {}
                _ => note(&import.path, import.line),
            }
        }
        module.paths.iter().for_each(|(path, line)| note(path, *line));
    }
    needs
}

/// Follows a path in the module `at` to the module whose file defines what it names; none for what
/// is not in this crate, and for a module itself.
fn follow(modules: &BTreeMap<Path, Module<'_>>, at: &Path, path: &[String], depth: usize) -> Option<Path> {
    // Imports that name each other in a circle lead nowhere.
    if depth > 16 {
        return None;
    }
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => descend(modules, Vec::new(), rest, depth),
        "self" => descend(modules, at.clone(), rest, depth),
        "super" => descend(modules, at.split_last().map_or_else(Vec::new, |(_, above)| above.to_vec()), rest, depth),
        name => {
            let module = modules.get(at)?;
            if module.children.contains(name) || module.imports.iter().any(|import| import.name == name && import.path[0] != name)
            {
                descend(modules, at.clone(), path, depth)
            } else {
                None
            }
        }
    }
}

/// From the module `at` on, by names.
fn descend(modules: &BTreeMap<Path, Module<'_>>, mut at: Path, path: &[String], depth: usize) -> Option<Path> {
    let mut rest = path;
    while let Some((name, behind)) = rest.split_first() {
        match name.as_str() {
            "super" => drop(at.pop()),
            "self" => {}
            name => {
                let module = modules.get(&at)?;
                if module.children.contains(name) {
                    at.push(name.to_owned());
                } else if let Some(import) = module.imports.iter().find(|import| import.name == name) {
                    let further: Path = import.path.iter().chain(behind).cloned().collect();
                    return follow(modules, &at, &further, depth + 1);
                } else {
                    return Some(at);
                }
            }
        }
        rest = behind;
    }
    None
}

impl<'t> Module<'t> {
    fn new(file: &'t File) -> Self {
        let children = file.declared().into_iter().filter(|declared| !declared.test);
        let children = children.filter_map(|declared| declared.folder.rsplit('/').next().map(str::to_owned)).collect();
        let mut module = Self { file, children, imports: Vec::new(), paths: Vec::new(), words: BTreeMap::new() };
        let inner = file.inner_modules();
        let mut at = 0;
        while at < file.tokens.len() {
            let token = &file.tokens[at];
            if token.test {
                at += 1;
                continue;
            }
            match token.text.as_str() {
                "mod" if file.word(at + 2) == ";" => at += 2,
                "use" if file.word(at + 1) != "<" => {
                    let (found, end) = use_paths(file, at + 1);
                    let is_export = has_visibility(file, at);
                    let line = token.line;
                    let found = found.into_iter().filter_map(|(path, name)| Some((outside(path, inner[at])?, name)));
                    module.imports.extend(found.map(|(path, name)| Import { path, name, line, is_export }));
                    at = end;
                }
                word => {
                    module.words.entry(word).or_insert(token.line);
                    if (at == 0 || file.word(at - 1) != "::") && file.word(at + 1) == "::" {
                        module.paths.extend(outside(code_path(file, at), inner[at]).map(|path| (path, token.line)));
                    }
                }
            }
            at += 1;
        }
        module
    }
}

/// A path as it is outside of `inner` modules of the same file; none if it stays in one of them.
fn outside(path: Path, inner: usize) -> Option<Path> {
    let above = path.iter().take_while(|name| *name == "super").count();
    if inner == 0 || above == 0 {
        return Some(path);
    }
    let left = path.get(inner.min(above)..)?.to_vec();
    (above >= inner).then(|| if above == inner { [vec!["self".to_owned()], left].concat() } else { left })
}

/// A path in code, as far as it is names.
fn code_path(file: &File, mut at: usize) -> Path {
    let mut path = vec![file.word(at).to_owned()];
    let is_name = |word: &str| word.starts_with(|c: char| c.is_alphabetic() || c == '_');
    while file.word(at + 1) == "::" && is_name(file.word(at + 2)) {
        at += 2;
        path.push(file.word(at).to_owned());
    }
    path
}

/// Whether the `use` at `at` has a visibility.
fn has_visibility(file: &File, at: usize) -> bool {
    let mut before = at.checked_sub(1);
    if before.is_some_and(|index| file.word(index) == ")") {
        before = (0..at).rev().find(|index| file.word(*index) == "(").and_then(|open| open.checked_sub(1));
    }
    before.is_some_and(|index| file.word(index) == "pub")
}

/// The paths of the `use` whose tree begins at `at`, each with its name, and where the `;` is.
fn use_paths(file: &File, at: usize) -> (Vec<(Path, String)>, usize) {
    let mut paths = Vec::new();
    let end = use_tree(file, at, &[], &mut paths);
    (paths, end)
}

/// Behind the tree at `at`: a `,`, a `}` or the `;`.
fn use_tree(file: &File, mut at: usize, before: &[String], into: &mut Vec<(Path, String)>) -> usize {
    let mut path = before.to_vec();
    loop {
        match file.word(at) {
            "" | ";" | "," | "}" => break,
            "::" => at += 1,
            "{" => {
                at += 1;
                while !matches!(file.word(at), "" | "}") {
                    at = use_tree(file, at, &path, into);
                    if file.word(at) == "," {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "as" => {
                into.push((path, file.word(at + 1).to_owned()));
                return at + 2;
            }
            word => {
                path.push(word.to_owned());
                at += 1;
            }
        }
    }
    if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
        path.pop();
    }
    let name = path.last().cloned().unwrap_or_default();
    into.push((path, name));
    at
}

/// Sets of files each of which reaches all others of its set.
fn circles<'t>(needs: &Needs<'t>) -> Vec<BTreeSet<&'t str>> {
    let reach: BTreeMap<_, _> = needs.keys().map(|file| (*file, reached(needs, file))).collect();
    let mut circles = Vec::new();
    let mut done = BTreeSet::new();
    for (file, ahead) in &reach {
        if ahead.contains(file) && !done.contains(file) {
            let circle: BTreeSet<_> =
                ahead.iter().copied().filter(|other| reach.get(other).is_some_and(|it| it.contains(file))).collect();
            done.extend(circle.iter().copied());
            circles.push(circle);
        }
    }
    circles
}

/// All files that `from` needs, and those that they need.
fn reached<'t>(needs: &Needs<'t>, from: &str) -> BTreeSet<&'t str> {
    let mut reached = BTreeSet::new();
    let mut ahead = vec![from];
    while let Some(file) = ahead.pop() {
        for other in needs.get(file).into_iter().flat_map(|others| others.keys()) {
            if reached.insert(*other) {
                ahead.push(other);
            }
        }
    }
    reached
}

/// The shortest way round in a circle, with the lines of its imports.
fn shortest(needs: &Needs<'_>, circle: &BTreeSet<&str>) -> String {
    let ways = circle.iter().filter_map(|file| way_back(needs, file));
    let way = ways.min_by_key(Vec::len).unwrap_or_default();
    let steps = way.windows(2).map(|pair| {
        let line = needs.get(pair[0]).and_then(|others| others.get(pair[1])).copied().unwrap_or_default();
        format!("{}:{line}", pair[0])
    });
    let last = way.last().map(|file| (*file).to_owned());
    steps.chain(last).collect::<Vec<_>>().join(" -> ")
}

/// From a file back to itself.
fn way_back<'t>(needs: &Needs<'t>, from: &'t str) -> Option<Vec<&'t str>> {
    let mut came: BTreeMap<&str, &str> = BTreeMap::new();
    let mut ahead = VecDeque::from([from]);
    while let Some(file) = ahead.pop_front() {
        for other in needs.get(file)?.keys() {
            if *other == from {
                let mut way = vec![from];
                let mut at = file;
                while at != from {
                    way.push(at);
                    at = came.get(at)?;
                }
                way.push(from);
                way.reverse();
                return Some(way);
            }
            if !came.contains_key(other) {
                came.insert(other, file);
                ahead.push_back(other);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        Tree::new(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())))
    }

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        check(&tree(&[&[("src/lib.rs", "pub mod a; pub mod b;")], files].concat()), &[])
    }

    #[test]
    fn two_files_that_need_each_other_are_found_however_it_is_written() {
        let b = ("src/b.rs", "use crate::a::A;\npub struct B(A);");
        for text in [
            "use crate::b::B;",
            "use super::b::{self as other, B};",
            "use crate::{a, b::B};",
            "use crate::b; fn f() -> b::B { b::B }",
            "use crate::b as other; fn f() -> other::B {}",
            "fn f() { crate::b::f() }",
            "struct A(super::b::B);",
            "mod inner { use super::super::b::B; }",
            "mod inner { fn f() { super::super::b::f() } }",
            "pub use crate::b::B; fn f(b: B) {}",
        ] {
            let found = found(&[("src/a.rs", text), b]);
            assert_eq!(found, ["2 files in a circle: src/a.rs:1 -> src/b.rs:1 -> src/a.rs"], "{text}");
        }
    }

    #[test]
    fn what_is_no_need_is_not_found() {
        let b = ("src/b.rs", "use crate::a::A;\npub struct B(A);");
        for text in [
            "pub struct A;",
            "// use crate::b::B;\n/// [`crate::b::B`]\npub struct A;",
            "#[cfg(test)] mod tests { use crate::b::B; }",
            "pub use crate::b::B;",
            "pub(super) use crate::b::B; pub struct A;",
            "use crate::b; pub struct A;",
            "use std::fmt; use other::b::B; fn f(b: u8) { fmt::b() }",
            "mod inner { use super::b::B; }",
            "fn f() -> impl Fn() + use<> {}",
        ] {
            assert_eq!(found(&[("src/a.rs", text), b]), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_name_is_followed_to_the_file_that_defines_it() {
        let one = ("src/a/one.rs", "use super::Two;\npub struct One(Two);");
        let two = ("src/a/two.rs", "pub struct Two;");
        let b = ("src/b.rs", "use crate::a::{One, Two};");
        let names = "mod one; mod two; pub use one::One; pub(in crate::x) use two::Two;";
        assert_eq!(found(&[("src/a/mod.rs", names), one, two, b]), [""; 0]);
        // The same with a file that goes back.
        let back = ("src/a/two.rs", "use crate::b::B; pub struct Two;");
        assert_eq!(
            found(&[("src/a/mod.rs", names), one, back, b]),
            ["3 files in a circle: src/a/two.rs:1 -> src/b.rs:1 -> src/a/two.rs"]
        );
        // A folder's own items are not to be used by what it uses.
        for text in ["use two::Two; pub struct X(Two);", "pub struct X(two::Two);", "pub use two::Two; pub struct X(Two);"] {
            let uses = ("src/a/two.rs", "pub struct Two(super::X);");
            let text = format!("mod two; {text}");
            assert_eq!(
                found(&[("src/a/mod.rs", &text), uses, ("src/b.rs", "")]),
                ["2 files in a circle: src/a/mod.rs:1 -> src/a/two.rs:1 -> src/a/mod.rs"],
                "{text}"
            );
        }
    }

    #[test]
    fn the_way_round_is_printed_with_its_lines() {
        let files = [
            ("src/a/mod.rs", "mod one; mod two; mod three; pub use three::Three;"),
            ("src/a/one.rs", "\nuse super::two::Two;\npub struct One;"),
            ("src/a/two.rs", "\n\nuse super::Three;\npub struct Two;"),
            ("src/a/three.rs", "use crate::a::one::One;\npub struct Three;"),
            ("src/b.rs", "use crate::a::one::One;"),
        ];
        let circle = "3 files in a circle: src/a/one.rs:2 -> src/a/two.rs:3 -> src/a/three.rs:1 -> src/a/one.rs";
        assert_eq!(found(&files), [circle]);
    }

    #[test]
    fn known_circles_may_only_shrink() {
        let files =
            [("src/a.rs", "use crate::b::B; pub struct A;"), ("src/b.rs", "use crate::a::A; pub struct B;"), ("src/c.rs", "")];
        let tree = tree(&[&[("src/lib.rs", "mod a; mod b; mod c;")], &files[..]].concat());
        assert_eq!(list(&tree), [["src/a.rs", "src/b.rs"]]);
        assert_eq!(check(&tree, &[&["src/a.rs", "src/b.rs"]]), [""; 0]);
        let gone = "src/c.rs:1: is in no circle any more: take it out of the list of known ones";
        assert_eq!(check(&tree, &[&["src/a.rs", "src/b.rs", "src/c.rs"]]), [gone]);
        assert_eq!(check(&tree, &[&["src/a.rs", "src/c.rs"]]).len(), 2);
    }
}
