//! Links between pages of the documentation, and mentions of pages in the source.

use std::collections::BTreeMap;

use super::source::File;

/// Links of `pages` that lead to no file, or to no heading of a page. `exists` is asked for paths
/// relative to the package.
pub(super) fn check_links(pages: &[File], exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let headings: BTreeMap<_, _> = pages.iter().map(|page| (page.path.as_str(), headings(&page.text))).collect();
    let mut findings = Vec::new();
    for page in pages {
        for (line, target) in links(&page.text) {
            let mut finding = |what: &str| findings.push(format!("{}:{line}: the link to `{target}` leads to {what}", page.path));
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, heading) = target.split_once('#').map_or((target.as_str(), None), |(path, heading)| (path, Some(heading)));
            let path = if path.is_empty() { Some(page.path.clone()) } else { resolve(&page.path, path) };
            match (path, heading) {
                (None, _) => finding("a place outside of the package"),
                (Some(path), _) if !exists(&path) => finding("no file"),
                (Some(path), Some(heading)) => match headings.get(path.as_str()) {
                    Some(headings) if headings.iter().any(|name| name == heading) => {}
                    Some(_) => finding("no heading"),
                    None => finding("a heading of something that is no page"),
                },
                (Some(_), None) => {}
            }
        }
    }
    findings
}

/// Pages that text and comments of `files` name and that are not there.
pub(super) fn check_mentions(files: &[File], exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        for (line, text) in (1..).zip(file.text.lines()) {
            for (at, _) in text.match_indices("docs/") {
                let end =
                    text[at..].find(|c: char| !(c.is_alphanumeric() || "/-_.".contains(c))).map_or(text.len(), |end| at + end);
                let page = text[at..end].trim_end_matches('.');
                let part_of_a_longer_path = text[..at].ends_with(|c: char| c.is_alphanumeric() || "/-_.".contains(c));
                if !part_of_a_longer_path && page.ends_with(".md") && !exists(page) {
                    findings.push(format!("{}:{line}: there is no {page}", file.path));
                }
            }
        }
    }
    findings
}

/// `path` as seen from the page `from`.
fn resolve(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<_> = from.split('/').collect();
    parts.pop();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match part {
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The lines that are not code, with their numbers; code within a line is left out.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut in_code = false;
    (1..).zip(text.lines()).filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            return None;
        }
        (!in_code).then(|| (number, line.split('`').step_by(2).collect::<Vec<_>>().join("``")))
    })
}

fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split(')').next().unwrap_or_default();
            links.push((number, target.split(' ').next().unwrap_or_default().to_owned()));
        }
        // [name]: target
        if let Some((_, target)) = line.strip_prefix('[').and_then(|line| line.split_once("]: ")) {
            links.push((number, target.trim().to_owned()));
        }
    }
    links
}

/// What a heading is called in a link.
fn headings(text: &str) -> Vec<String> {
    let mut in_code = false;
    let lines = text.lines().filter(|line| {
        in_code ^= line.trim_start().starts_with("```");
        !in_code && line.starts_with('#')
    });
    lines
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn page(path: &str, text: &str) -> File {
        File::new(Path::new(path), text.to_owned())
    }

    fn findings(text: &str) -> Vec<String> {
        let pages = [page("docs/a.md", text), page("docs/b.md", "# The `B`, and more\n```\n# none\n```\n")];
        check_links(&pages, &|path| matches!(path, "docs/a.md" | "docs/b.md" | "src/lib.rs"))
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        for text in [
            "[x](c.md)",
            "a [x](b.md) and [y](d.md)",
            "[x](docs/b.md)",
            "[x](../../b.md)",
            "[x](b.md#none)",
            "[x](#none)",
            "[x](../src/lib.rs#heading)",
            "[x]: c.md",
            "```\n```\n[x](c.md \"title\")",
        ] {
            assert_eq!(findings(text).len(), 1, "{text}");
        }
        assert_eq!(findings("\n[x](c.md)"), ["docs/a.md:2: the link to `c.md` leads to no file"]);
    }

    #[test]
    fn links_that_lead_somewhere_are_not() {
        for text in [
            "[x](b.md)",
            "[x](./b.md#the-b-and-more)",
            "# Here\n[x](#here)",
            "[x](../src/lib.rs)",
            "[x](https://example.org/c.md#y)",
            "`[x](c.md)`",
            "```\n[x](c.md)\n```",
            "an array[1] (not a link)",
        ] {
            assert_eq!(findings(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn mentions_of_pages_that_are_not_there_are_found() {
        let found = |text: &str| check_mentions(&[page("src/x.rs", text)], &|path| path == "docs/b.md").len();
        assert_eq!(found("//! See docs/b.md, and `docs/b.md`."), 0);
        assert_eq!(found("//! See docs/c.md."), 1);
        assert_eq!(found("// docs/b.md, docs/c.md, docs/d.md"), 2);
        assert_eq!(found("// linux/docs/c.md, docs/c.rst"), 0);
    }
}
