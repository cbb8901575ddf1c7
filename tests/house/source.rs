//! Rust source as tokens: enough of the language to find paths, keywords and macro calls, and to
//! tell tests from the rest.

use std::path::{Path, PathBuf};

/// A file of text, its path relative to the package.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) text: String,
    pub(super) tokens: Vec<Token>,
    /// The whole file is compiled for tests only.
    pub(super) test: bool,
}

/// A word or a sign. Comments are none, and a literal is one token without its content.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) text: String,
    /// From 1 on.
    pub(super) line: usize,
    /// Part of an item that is compiled for tests only.
    pub(super) test: bool,
}

/// What stands for a literal.
const LITERAL: &str = "\"\"";

/// The source files under a folder.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) files: Vec<File>,
}

impl Tree {
    pub(super) fn read(root: &Path, under: &str) -> Self {
        let mut paths = Vec::new();
        rust_files(&root.join(under), &mut paths);
        assert!(!paths.is_empty(), "{under} has source files");
        paths.sort();
        Self::new(paths.iter().map(|path| {
            let name = path.strip_prefix(root).unwrap();
            (name.to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap())
        }))
    }

    pub(super) fn new(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut files: Vec<_> = files.into_iter().map(|(path, text)| File::new(Path::new(&path), text)).collect();
        let test_folders: Vec<String> = files
            .iter()
            .flat_map(|file| file.declared().into_iter().filter(|declared| declared.test).map(|declared| declared.folder))
            .collect();
        for file in &mut files {
            let own = file.path.trim_end_matches(".rs");
            file.test |= test_folders.iter().any(|folder| own == folder || own.starts_with(&format!("{folder}/")));
        }
        Self { files }
    }
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// A `mod name;`.
#[derive(Debug)]
pub(super) struct Declared {
    /// The path of its file without `.rs`, and of its folder.
    pub(super) folder: String,
    pub(super) line: usize,
    pub(super) test: bool,
}

impl File {
    pub(super) fn new(path: &Path, text: String) -> Self {
        let path = path.to_str().unwrap().to_owned();
        let mut tokens = if path.ends_with(".rs") { tokens(&text) } else { Vec::new() };
        mark_tests(&mut tokens);
        Self { path, text, tokens, test: false }
    }

    /// Tokens that are not of tests.
    pub(super) fn product(&self) -> impl Iterator<Item = (usize, &Token)> {
        self.tokens.iter().enumerate().filter(|(_, token)| !self.test && !token.test)
    }

    /// The text of the token `index`, or nothing.
    pub(super) fn word(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |token| &token.text)
    }

    /// The module that the file is, from the crate's root on: `src/kvm/ring/mod.rs` is `kvm`,
    /// `ring`.
    pub(super) fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs");
        let mut parts: Vec<_> = path.split('/').skip(1).map(str::to_owned).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts
    }

    /// For each token, how many modules of the same file it is in: `mod name { ... }`.
    pub(super) fn inner_modules(&self) -> Vec<usize> {
        // The depth of braces outside of each module that is open.
        let (mut open, mut depth) = (Vec::new(), 0_usize);
        let around = |(index, token): (usize, &Token)| {
            match token.text.as_str() {
                "{" => {
                    if index >= 2 && self.word(index - 2) == "mod" {
                        open.push(depth);
                    }
                    depth += 1;
                }
                "}" => {
                    depth = depth.saturating_sub(1);
                    if open.last() == Some(&depth) {
                        open.pop();
                    }
                }
                _ => {}
            }
            open.len()
        };
        self.tokens.iter().enumerate().map(around).collect()
    }

    /// Its modules in files of their own. (Nobody declares such a module inside of another in the
    /// same file.)
    pub(super) fn declared(&self) -> Vec<Declared> {
        let top = self.path.split('/').next().unwrap_or_default();
        let parents = [vec![top.to_owned()], self.module()].concat().join("/");
        let declares = |index: &usize| self.word(*index) == "mod" && self.word(index + 2) == ";";
        (0..self.tokens.len())
            .filter(declares)
            .map(|index| Declared {
                folder: format!("{parents}/{}", self.word(index + 1)),
                line: self.tokens[index].line,
                test: self.tokens[index].test,
            })
            .collect()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let (length, token) = next(rest, first);
        if let Some(token) = token {
            tokens.push(Token { text: token.to_owned(), line, test: false });
        }
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// The length of what comes next, and its token where it is one.
fn next(rest: &str, first: char) -> (usize, Option<&str>) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), None);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), None);
    }
    if let Some(length) = literal(rest) {
        return (length, Some(LITERAL));
    }
    if is_word(first) {
        let start = if rest.starts_with("r#") { 2 } else { 0 };
        let length = rest[start..].find(|c| !is_word(c)).map_or(rest.len(), |end| start + end);
        return (length, Some(&rest[start..length]));
    }
    if rest.starts_with("::") {
        return (2, Some("::"));
    }
    let length = first.len_utf8();
    (length, (!first.is_whitespace()).then(|| &rest[..length]))
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string or character that `text` begins with.
fn literal(text: &str) -> Option<usize> {
    let prefix = text.find(|c: char| !matches!(c, 'b' | 'c' | 'r'))?;
    let (marks, body) = text.split_at(prefix);
    if !matches!(marks, "" | "b" | "c" | "r" | "br" | "cr") {
        return None;
    }
    if marks.ends_with('r') {
        let hashes = body.find(|c| c != '#')?;
        let body = body[hashes..].strip_prefix('"')?;
        let close = format!("\"{}", "#".repeat(hashes));
        let end = body.find(&close).map_or(body.len(), |end| end + close.len());
        return Some(prefix + hashes + 1 + end);
    }
    if let Some(body) = body.strip_prefix('"') {
        return Some(prefix + 1 + quoted(body, '"'));
    }
    let character = body.strip_prefix('\'')?;
    let mut chars = character.chars();
    // A lifetime has no second quote.
    let is_character = chars.next()? == '\\' || chars.next() == Some('\'');
    (is_character && marks != "c").then(|| prefix + 1 + quoted(character, '\''))
}

/// The length up to and with the closing quote.
fn quoted(body: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    body.len()
}

/// Marks items under `#[test]` or a `#[cfg(...)]` that asks for tests.
fn mark_tests(tokens: &mut [Token]) {
    let mut at = 0;
    while at < tokens.len() {
        let (end, for_tests) = attribute(tokens, at);
        if !for_tests {
            at = end.max(at + 1);
            continue;
        }
        let end = item_end(tokens, end);
        tokens[at..end].iter_mut().for_each(|token| token.test = true);
        at = end;
    }
}

/// Behind the outer attribute at `at` (or `at`, where there is none), and whether it asks for
/// tests.
fn attribute(tokens: &[Token], at: usize) -> (usize, bool) {
    let word = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    if word(at) != "#" || word(at + 1) != "[" {
        return (at, false);
    }
    let end = closing(tokens, at + 1);
    let has = |wanted| (at..end).any(|index| word(index) == wanted);
    let for_tests = word(at + 2) == "test" || word(at + 2) == "cfg" && has("test") && !has("not");
    (end, for_tests)
}

/// Behind the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_i32;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

/// Behind the item that begins at `at`: its semicolon or its braces.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            ";" => return at + 1,
            "{" => return closing(tokens, at),
            "(" | "[" => at = closing(tokens, at),
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        tokens(text).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_literals_have_no_words() {
        assert_eq!(words("a // unsafe\nb /* unsafe /* x */ unsafe */ c"), ["a", "b", "c"]);
        assert_eq!(words(r##"f("unsafe \" unsafe", r#"un"safe"#, b"unsafe", 'u', '\'', b'x')"##).join(" "), {
            let l = LITERAL;
            format!("f ( {l} , {l} , {l} , {l} , {l} , {l} )")
        });
        assert_eq!(words("fn f<'a>(x: &'a str)").join(" "), "fn f < ' a > ( x : & ' a str )");
        assert_eq!(words("r#final: crate::x").join(" "), "final : crate :: x");
        assert_eq!(words("\"open"), [LITERAL]);
        assert_eq!(words("/* open"), [""; 0]);
    }

    #[test]
    fn lines_are_counted_through_comments_and_literals() {
        let last = tokens("a\n/*\n*/ \"\n\n\" // x\nb").pop().unwrap();
        assert_eq!((last.text.as_str(), last.line), ("b", 6));
    }

    #[test]
    fn modules_inside_of_a_file_are_followed() {
        let file = File::new(Path::new("src/x.rs"), "a mod b { c { d } mod e { f } g } h { i } mod j; k".to_owned());
        let inner = file.inner_modules();
        let of = |word: &str| inner[file.tokens.iter().position(|token| token.text == word).unwrap()];
        assert_eq!(["a", "c", "d", "f", "g", "h", "i", "k"].map(of), [0, 1, 1, 2, 1, 0, 0, 0]);
    }

    #[test]
    fn items_for_tests_are_told_from_the_rest() {
        let text = "fn a() { x } #[cfg(test)] #[inline] fn b(c: [u8; 2]) { d } fn e() {} #[cfg(test)] mod f; g \
                    #[cfg(not(test))] fn h() {} #[test] fn i() {} #[cfg(feature = \"test\")] fn j() {}";
        let file = File::new(Path::new("src/x.rs"), text.to_owned());
        let product: Vec<_> = file
            .product()
            .map(|(_, token)| token.text.as_str())
            .filter(|text| text.len() == 1 && is_word(text.chars().next().unwrap()))
            .collect();
        assert_eq!(product.join(""), "axeghj");
    }

    #[test]
    fn files_of_test_modules_are_tests() {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let tree = Tree::new([
            file("src/a/mod.rs", "#[cfg(test)] mod tests; mod b;"),
            file("src/a/tests.rs", ""),
            file("src/a/tests/more.rs", ""),
            file("src/a/b.rs", "#[cfg(test)] pub(crate) mod testing;"),
            file("src/a/b/testing.rs", ""),
            file("src/tests.rs", ""),
        ]);
        let tests: Vec<_> = tree.files.iter().filter(|file| file.test).map(|file| file.path.as_str()).collect();
        assert_eq!(tests, ["src/a/tests.rs", "src/a/tests/more.rs", "src/a/b/testing.rs"]);
    }
}
