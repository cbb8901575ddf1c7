//! How wide documents and comments are.

use super::source::File;

/// The most columns.
const COLUMNS: usize = 100;

/// Lines of `pages` that are wider. A row of a table, what is in a block of code, and a line that
/// is one word may be.
pub(super) fn check_pages(pages: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for page in pages {
        let mut in_code = false;
        for (line, text) in (1..).zip(page.text.lines()) {
            let is_fence = text.trim_start().starts_with("```");
            in_code ^= is_fence;
            let may_be = in_code || is_fence || text.starts_with('|') || !text.trim().contains(' ');
            findings.extend(too_wide(page, line, text).filter(|_| !may_be));
        }
    }
    findings
}

/// Comments of `files`, on lines of their own, that are wider. What is in a block of code may be.
pub(super) fn check_comments(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        let mut in_code = false;
        for (line, text) in (1..).zip(file.text.lines()) {
            let Some(comment) = text.trim_start().strip_prefix("//") else {
                in_code = false;
                continue;
            };
            let is_fence = comment.trim_start_matches(['/', '!']).trim_start().starts_with("```");
            in_code ^= is_fence;
            let is_drawing = comment.contains(['─', '│', '┌', '└']);
            findings.extend(too_wide(file, line, text).filter(|_| !in_code && !is_drawing));
        }
    }
    findings
}

fn too_wide(file: &File, line: usize, text: &str) -> Option<String> {
    let found = text.chars().count();
    (found > COLUMNS).then(|| format!("{}:{line}: {found} columns, and {COLUMNS} are the most", file.path))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_wide_is_found_and_what_may_be_is_not() {
        let wide = "word ".repeat(21);
        let file = |text: String| [File::new(Path::new("a.rs"), text)];
        let found = |text: &str| check_comments(&file(text.to_owned())).len();
        assert_eq!(found(&format!("// {wide}\n    /// {wide}\n//! {wide}\n")), 3);
        assert_eq!(found(&format!("let a = \"{wide}\"; // {wide}\n")), 0, "code is rustfmt's");
        assert_eq!(found(&format!("/// ```\n/// {wide}\n/// ```\n/// {wide}\n")), 1);
        assert_eq!(found(&format!("//! a ──> {wide}")), 0);
        assert_eq!(found(&format!("/// {}", "ä".repeat(96))), 0, "columns, not bytes");
        let page = |text: &str| check_pages(&file(text.to_owned())).len();
        assert_eq!(page(&format!("{wide}\n| {wide} |\n```\n{wide}\n```\n- {wide}\n")), 2);
        assert_eq!(page(&format!("[link]({})", "x".repeat(100))), 0);
    }
}
