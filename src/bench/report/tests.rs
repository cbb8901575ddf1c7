//! What a reader gets of results, whatever was measured.

use super::*;
use crate::bench::testing::results;
use crate::bench::workload::Extent;

/// The run that `results` makes, and what it comes to.
fn run(extent: Extent) -> (Results, Summary) {
    let results = results(extent);
    let summary = Summary::of(&results);
    (results, summary)
}

/// That every tag that is opened is closed, in order. Returns how many there were of each name that
/// is asked for.
fn well_formed(page: &str, names: &[&str]) -> Vec<usize> {
    const VOID: [&str; 2] = ["meta", "!doctype"];
    let mut open: Vec<&str> = Vec::new();
    let mut counts = vec![0; names.len()];
    let mut rest = page;
    while let Some((_, tag)) = rest.split_once('<') {
        let (tag, after) = tag.split_once('>').expect("a tag ends");
        rest = after;
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or_default();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes what is open");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
            if name == "style" {
                rest = after.split_once("</style>").map(|(_, rest)| rest).expect("the style ends");
                open.pop();
            }
        }
        if let (false, Some(place)) = (tag.starts_with('/'), names.iter().position(|wanted| *wanted == name)) {
            counts[place] += 1;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
    }
    assert_eq!(open, [""; 0], "what is opened is closed");
    counts
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    for extent in [Extent::Full, Extent::Quick] {
        let (results, summary) = run(extent);
        let page = html(&results, &summary).unwrap();
        let counts = well_formed(&page, &["section", "svg", "table", "polyline", "circle"]);
        // Eight figures and the duels; no figure has less than a chart.
        assert!(counts[0] == 9 && counts[1] >= 12 && counts[2] >= 2, "{extent:?}: {counts:?}");
        assert!(counts[3] > 50 && counts[4] > 20, "{extent:?}: lines and dots: {counts:?}");
        for title in [
            "Pause over pages, with rounds and without",
            "Cost of tracking over guest memory",
            "Cost of tracking over dirty pages",
            "Where a pause goes, beside its floor",
            "How pauses are distributed",
            "What a budget costs",
            "Slowdown over the rate of checkpoints",
            "What it costs that outputs wait",
            "Who wins where",
        ] {
            assert!(page.contains(&format!("<h2>{title}</h2>")), "{extent:?}: {title}");
        }
        for wrong in ["NaN", "inf", "#0102", "<script", "src=", "href=", "url("] {
            assert!(!page.contains(wrong), "{extent:?}: {wrong}");
        }
        assert_eq!(page.matches("http").count(), page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
        assert!(page.contains("A &lt;fast&gt; &amp; &quot;good&quot; one"));
        for colour in ["ring", "bitmap", "clear", "floor", "kick", "state", "harvest", "copy", "reset", "ink", "grid"] {
            assert!(page.contains(&format!("\"var(--{colour})\"")) && page.contains(&format!("--{colour}: #")), "{colour}");
        }
    }
}

#[test]
fn a_page_of_little_or_nothing_is_a_page() {
    let (mut results, _) = run(Extent::Tiny);
    for _ in 0..=results.lines.len() {
        let summary = Summary::of(&results);
        let page = html(&results, &summary).unwrap();
        well_formed(&page, &[]);
        assert!(!page.contains("NaN") && !page.contains("inf"));
        results.lines.pop();
    }
}

#[test]
fn every_line_of_the_json_is_an_object_and_the_last_says_what_must_be_shown() {
    let (results, summary) = run(Extent::Full);
    let text = json(&results, &summary).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), results.lines.len() + 1);
    let kinds = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!((kinds("cuts"), kinds("rate"), kinds("summary")), (results.cuts().count(), results.rates().count(), 1));
    assert_eq!((kinds("early"), kinds("hot")), (results.streams().count(), results.hot().count()));
    assert!(!text.contains("null,\"pause_us\"") && lines.iter().all(Value::is_object));
    let last = lines.last().unwrap();
    assert_eq!(last["machine"]["kvm"], "pvm");
    assert!(last["floors"]["exit_us"]["p50"].as_f64().unwrap() > 0.0);
    let flat = &last["summary"]["flatness"][0];
    assert!(flat["dirty_pages"] == 60 && flat["max_over_min"].as_f64().unwrap() >= 1.0, "{flat}");
    assert!(last["summary"]["largest_memory"][0]["bitmap_over_ring"].as_f64().unwrap() > 10.0);
    let above = last["summary"]["above_floor"].as_array().unwrap();
    for (pages, vcpus) in [(60, 1), (4000, 1), (60, 2), (4000, 2)] {
        let found = above.iter().any(|row| row["tracker"] == "ring" && row["dirty_pages"] == pages && row["vcpus"] == vcpus);
        assert!(found, "{pages} pages, {vcpus} vCPUs");
    }
}

#[test]
fn every_row_of_the_csv_has_every_column() {
    let (results, _) = run(Extent::Full);
    let text = csv(&results).unwrap();
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert!(
        head.starts_with(&["kind", "axes", "tracker"]) && head.contains(&"pause_us_p50") && head.contains(&"slowdown_percent")
    );
    let mut rows = 0;
    for line in lines {
        // Only the guest's options have commas, and stand between quotes.
        let plain: String = line.split('"').step_by(2).collect::<Vec<_>>().join("");
        assert_eq!(plain.split(',').count(), head.len(), "{line}");
        rows += 1;
    }
    assert_eq!(rows, results.lines.len());
}

#[test]
fn the_table_has_a_cell_under_every_name() {
    let (results, _) = run(Extent::Quick);
    for line in &results.lines {
        // Names and memory sizes have no spaces in the middle but one: compare the places of the
        // right-aligned cells instead.
        let (head, row) = (table_head(line), table_line(line));
        assert!(row.len() >= head.trim_end().len() - 8, "{head}\n{row}");
    }
}
