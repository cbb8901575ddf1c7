//! The rooms of `store`: each imports only from those before it, and the checker not even from all
//! of those.

use super::circles;
use super::source::Tree;

/// The rooms in their order. What stands beside them, in `src/store` itself, is above all.
const ROOMS: [&str; 6] = ["medium", "read", "keep", "write", "verify", "repair"];

/// What judges the reader and the writer shares no code with them.
const JUDGE: (&str, [&str; 3]) = ("verify", ["read", "keep", "write"]);

/// A reader names nothing that only a writer has: a medium may be one that can't be written.
const OF_WRITERS: [&str; 3] = ["WritableMedium", "WritableFile", "writable"];

/// The room that a file of `store` is in, or `""` for what stands beside the rooms.
fn room(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/store/")?;
    let first = rest.split('/').next()?.trim_end_matches(".rs");
    Some(if ROOMS.contains(&first) { first } else { "" })
}

fn place(room: &str) -> usize {
    ROOMS.iter().position(|other| *other == room).map_or(0, |place| place + 1)
}

pub(super) fn check(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for (file, others) in &circles::needs(tree) {
        // The folder's own file lists the rooms and names what is in them.
        let Some(own) = room(file).filter(|_| *file != "src/store/mod.rs") else { continue };
        for (other, line) in others {
            let Some(used) = room(other) else { continue };
            if place(used) > place(own) {
                findings.push(format!("{file}:{line}: `{own}` imports from `{used}`, which is behind it in the store: {other}"));
            } else if own == JUDGE.0 && JUDGE.1.contains(&used) {
                findings.push(format!("{file}:{line}: `{own}` judges `{used}` and uses it: {other}"));
            }
        }
    }
    for file in tree.files.iter().filter(|file| !file.test && room(&file.path) == Some("read")) {
        for (_, token) in file.product().filter(|(_, token)| OF_WRITERS.contains(&token.text.as_str())) {
            findings.push(format!("{}:{}: `read` names `{}`, which is for writers", file.path, token.line, token.text));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let rooms = "pub mod medium; pub mod read; pub mod keep; pub mod write; pub mod verify; pub mod repair; mod error;";
        let files = [
            ("src/lib.rs", "mod store;"),
            ("src/store/mod.rs", &format!("{rooms} pub use write::Writer; pub use read::Chain;")),
            ("src/store/error.rs", "pub struct StoreError;"),
            ("src/store/medium/mod.rs", "pub struct Medium;"),
            ("src/store/read/mod.rs", "mod chain; pub use chain::Chain;"),
            ("src/store/read/chain.rs", "pub struct Chain;"),
            ("src/store/keep/mod.rs", "pub struct Rules;"),
            ("src/store/write/mod.rs", "pub struct Writer;"),
            ("src/store/verify/mod.rs", "pub struct Report;"),
            ("src/store/repair.rs", "pub struct Plan;"),
        ];
        let files = files.iter().filter(|(other, _)| *other != path).map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        check(&Tree::new(files.chain([(path.to_owned(), text.to_owned())])))
    }

    #[test]
    fn a_room_that_uses_one_behind_it_is_found() {
        for (path, text) in [
            ("src/store/read/chain.rs", "use crate::store::Writer; pub struct Chain(Writer);"),
            ("src/store/read/chain.rs", "pub struct Chain(super::super::keep::Rules);"),
            ("src/store/read/chain.rs", "pub struct Chain(Box<dyn crate::store::medium::WritableMedium>);"),
            ("src/store/error.rs", "use super::Chain; pub struct StoreError(Chain);"),
            ("src/store/medium/mod.rs", "use crate::store::read::Chain; pub struct Medium(Chain);"),
            ("src/store/verify/mod.rs", "use crate::store::Chain; pub struct Report(Chain);"),
            ("src/store/verify/mod.rs", "use super::repair::Plan; pub struct Report(Plan);"),
        ] {
            let found = found(path, text);
            assert_eq!(found.len(), 1, "{path}: {text}: {found:?}");
        }
    }

    #[test]
    fn a_room_may_use_those_before_it() {
        for (path, text) in [
            (
                "src/store/write/mod.rs",
                "use super::{Chain, keep::Rules, medium::Medium}; pub struct Writer(Chain, Rules, Medium);",
            ),
            ("src/store/verify/mod.rs", "use super::{error::StoreError, medium::Medium}; pub struct Report(StoreError, Medium);"),
            ("src/store/repair.rs", "use super::{verify::Report, Writer}; pub struct Plan(Report, Writer);"),
        ] {
            assert_eq!(found(path, text), [""; 0], "{path}: {text}");
        }
    }
}
