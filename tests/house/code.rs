//! Where `unsafe` may be and what stands above it, what must not panic, and what every file begins
//! with.

use super::source::{File, Tree};

/// The modules that the house allows `unsafe` in, with what is in them.
const MAY_BE_UNSAFE: [&str; 7] =
    ["cli", "kvm", "memory", "replica::realtime", "store::medium::mapped_file", "store::medium::writeback", "vmm"];

pub(super) fn check_unsafe(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in &tree.files {
        let module = file.module();
        let is_within = |place: &str| place.split("::").zip(0..).all(|(name, at)| module.get(at).is_some_and(|own| own == name));
        let allowed = MAY_BE_UNSAFE.into_iter().any(is_within);
        let lines: Vec<_> = file.text.lines().collect();
        for (index, token) in file.tokens.iter().enumerate().filter(|(_, token)| token.text == "unsafe") {
            let at = format!("{}:{}", file.path, token.line);
            if !allowed {
                findings.push(format!("{at}: `unsafe`, which the house allows only in {}", MAY_BE_UNSAFE.join(", ")));
                continue;
            }
            let reason = match file.word(index + 1) {
                "fn" | "trait" => "# Safety",
                _ => "SAFETY: ",
            };
            if !comment_above(&lines, token.line).contains(reason) {
                findings.push(format!("{at}: `unsafe` without `{reason}` directly above"));
            }
        }
    }
    findings
}

/// The comment directly above the statement or item that `line` (from 1 on) is in.
fn comment_above(lines: &[&str], line: usize) -> String {
    let mut above = lines[..line - 1].iter().rev().map(|line| line.trim()).peekable();
    // Lines of the same statement, and attributes.
    while above.next_if(|line| line.starts_with("#[") || !line.starts_with("//") && !ends_statement(line)).is_some() {}
    let mut comment = Vec::new();
    while let Some(line) = above.next_if(|line| line.starts_with("//")) {
        comment.push(line);
    }
    comment.reverse();
    comment.join("\n")
}

fn ends_statement(line: &str) -> bool {
    line.is_empty() || line.ends_with([';', '{', '}', ','])
}

pub(super) fn check_panics(tree: &Tree) -> Vec<String> {
    tree.files.iter().flat_map(panics).collect()
}

fn panics(file: &File) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, token) in file.product() {
        let word = |ahead: usize| file.word(index + ahead);
        let found = match token.text.as_str() {
            name @ ("panic" | "todo" | "unimplemented") if word(1) == "!" && matches!(word(2), "(" | "[" | "{") => {
                format!("{name}!")
            }
            "." if word(1) == "unwrap" && word(2) == "(" => ".unwrap()".to_owned(),
            _ => continue,
        };
        findings.push(format!("{}:{}: `{found}` outside of tests", file.path, token.line));
    }
    findings
}

pub(super) fn check_headers(tree: &Tree) -> Vec<String> {
    let lacks = |file: &&File| !file.text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > 8);
    tree.files.iter().filter(lacks).map(|file| format!("{}:1: no `//!` line that says what the module is", file.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(path: &str, text: &str) -> Tree {
        Tree::new([(path.to_owned(), text.to_owned())])
    }

    #[test]
    fn unsafe_outside_of_its_modules_is_found_in_tests_too() {
        let text = "// SAFETY: it is.\nunsafe { x() }";
        assert_eq!(check_unsafe(&tree("src/kvm/x.rs", text)), [""; 0]);
        assert_eq!(check_unsafe(&tree("src/memory/x.rs", text)), [""; 0]);
        assert_eq!(check_unsafe(&tree("src/store/medium/mapped_file.rs", text)), [""; 0]);
        for path in ["src/store/x.rs", "src/store/medium/x.rs", "src/page.rs", "src/lib.rs", "src/kvmm/x.rs"] {
            assert_eq!(check_unsafe(&tree(path, text)).len(), 1, "{path}");
        }
        assert_eq!(check_unsafe(&tree("src/page.rs", "#[cfg(test)] mod t { fn f() { unsafe {} } }")).len(), 1);
        assert_eq!(check_unsafe(&tree("src/page.rs", "#![expect(unsafe_code)] // unsafe")), [""; 0]);
    }

    #[test]
    fn unsafe_without_its_reason_directly_above_is_found() {
        let found = |text: &str| check_unsafe(&tree("src/kvm/x.rs", text)).len();
        for text in [
            "// SAFETY: a.\n// b.\nlet x = unsafe { y };",
            "// SAFETY: a.\nlet x =\n    unsafe { y };",
            "// SAFETY: a.\n#[expect(x)]\nunsafe impl Send for X {}",
            "/// Does.\n///\n/// # Safety\n/// Not.\npub unsafe fn f() {}",
        ] {
            assert_eq!(found(text), 0, "{text}");
        }
        for text in [
            "let x = unsafe { y };",
            "// SAFETY: a.\n\nlet x = unsafe { y };",
            "// SAFETY: a.\nlet z = 1;\nlet x = unsafe { y };",
            "// Quite safe.\nlet x = unsafe { y };",
            "// SAFETY: a.\nunsafe { y };\nunsafe { z };",
            "/// Does.\npub unsafe fn f() {}",
            "// SAFETY: a.\nfn f() {\n    unsafe { z }\n}",
        ] {
            assert_eq!(found(text), 1, "{text}");
        }
    }

    #[test]
    fn panics_on_purpose_are_found_outside_of_tests_only() {
        let found = |text: &str| check_panics(&tree("src/page.rs", text)).len();
        for text in [
            "fn f() { x.unwrap() }",
            "x\n  .unwrap ()",
            "panic!(\"x\")",
            "std::panic!{}",
            "todo!()",
            "fn f() { unimplemented![] }",
        ] {
            assert_eq!(found(text), 1, "{text}");
        }
        for text in [
            "x.unwrap_or(1)",
            "x.unwrap_or_else(f)",
            "if panic != 1 {}",
            "std::panic::catch_unwind(f)",
            "// panic!()",
            "\"todo!()\"",
            "#[cfg(test)] mod tests { fn f() { x.unwrap(); panic!() } }",
            "#[test] fn f() { x.unwrap(); }",
        ] {
            assert_eq!(found(text), 0, "{text}");
        }
    }

    #[test]
    fn a_file_without_its_line_is_found() {
        let found = |text: &str| check_headers(&tree("src/page.rs", text)).len();
        assert_eq!(found("//! Units and sets.\n"), 0);
        for text in ["", "use x;\n//! Late.", "// A comment.", "//!", "//! \n"] {
            assert_eq!(found(text), 1, "{text}");
        }
    }
}
