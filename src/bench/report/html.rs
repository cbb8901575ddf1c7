//! The results as one page that needs nothing else.

use super::plots::{Figure, figures};
use super::svg::PlotError;
use super::table::line as table_line;
use crate::bench::prose::{bytes, count, place, time};
use crate::bench::results::Row;
use crate::bench::session::{Line, Results};
use crate::bench::summary::{Duel, Summary, Winner, Words};

/// The style of the page, with its colours in light and in dark.
const STYLE: &str = include_str!("style.css");

/// The page.
///
/// # Errors
/// [`PlotError`] where a chart could not be drawn.
pub fn html(results: &Results, summary: &Summary) -> Result<String, PlotError> {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n");
    page.push_str("<title>Ring against bitmap</title>\n");
    page.push_str(&format!("<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"));
    page.push_str("<h1>Ring against bitmap</h1>\n");
    page.push_str(&machine(results));
    page.push_str(&words(summary));
    page.push_str(&tiles(results, summary));
    for drawn in figures(results, summary)? {
        page.push_str(&figure(&drawn));
    }
    page.push_str(&duel_table(summary));
    page.push_str(&rows_table(results));
    let of = |is: fn(&Line) -> bool| results.lines.iter().filter(move |line| is(line)).collect::<Vec<_>>();
    page.push_str(&engine_table("All runs with rounds and without", &of(|line| matches!(line, Line::Early(_)))));
    page.push_str(&engine_table("All runs of the whole engine at a rate", &of(|line| matches!(line, Line::Rate(_)))));
    page.push_str(&engine_table("Hot sets against the best", &of(|line| matches!(line, Line::Hot(_)))));
    page.push_str(&engine_table("Outputs that wait", &of(|line| matches!(line, Line::Outputs(_)))));
    page.push_str(&engine_table("With a standby and without", &of(|line| matches!(line, Line::Standby(_)))));
    page.push_str(&engine_table("Machines that went to another host", &of(|line| matches!(line, Line::Migrate(_)))));
    page.push_str("</main>\n</body>\n</html>\n");
    Ok(page)
}

/// Text as HTML shows it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// No line ends between a number and its unit.
fn unbroken(text: &str) -> String {
    ["µs", "ms", "MiB", "GiB"]
        .iter()
        .fold(text.to_owned(), |text, unit| text.replace(&format!(" {unit}"), &format!("\u{a0}{unit}")))
}

fn machine(results: &Results) -> String {
    let machine = &results.machine;
    let flavour = format!("{:?}", machine.kvm).to_uppercase();
    let pml = if machine.pml { "with" } else { "without" };
    let debug =
        if machine.optimised { "" } else { " <strong>Built without optimisation: the times are not to be believed.</strong>" };
    let vm = if machine.processors == 1 { "processor" } else { "processors" };
    format!(
        "<p class=\"machine\">{} &middot; {} {vm}, {} of memory &middot; Linux {} &middot; KVM: {flavour}, {pml} page modification logging, rings up to {} entries &middot; slackwater {}{debug}</p>\n",
        escaped(&machine.processor),
        machine.processors,
        bytes(machine.memory_bytes.next_multiple_of(1 << 30)),
        escaped(&machine.kernel),
        machine.ring_entries_max,
        machine.version,
    )
}

fn words(summary: &Summary) -> String {
    if summary.words.is_empty() {
        return String::new();
    }
    let paragraph = |words: &Words| format!("<p><b>{}.</b> {}</p>\n", escaped(words.about), unbroken(&escaped(&words.text)));
    format!("<div class=\"words\">\n{}</div>\n", summary.words.iter().map(paragraph).collect::<String>())
}

/// A few numbers that say most.
fn tiles(results: &Results, summary: &Summary) -> String {
    let largest = summary.largest_memory.iter().max_by(|one, other| one.bitmap_over_ring.total_cmp(&other.bitmap_over_ring));
    let mut tiles = Vec::new();
    if let Some(duel) = largest {
        let what = format!("bitmap by ring: {} {} pages, {}", count(duel.dirty_pages), duel.pattern, bytes(duel.memory_bytes));
        tiles.push((format!("{:.0}×", duel.bitmap_over_ring), what));
    }
    if let Some(flat) = summary.flatness.first() {
        let what = format!(
            "most by least cost of the ring, {} {} pages, {} to {}",
            count(flat.dirty_pages),
            flat.pattern,
            bytes(flat.memory_bytes.0),
            bytes(flat.memory_bytes.1)
        );
        tiles.push((format!("{:.1}×", flat.max_over_min), what));
    }
    if let Some(fault) = summary.fault_us_per_page {
        tiles.push((time(fault), "for the guest, by page: the first write in an epoch".to_owned()));
    }
    tiles.push((time(results.exit_us.p50), "an exit and its entry".to_owned()));
    if let Some(rate) = summary.durable_per_s {
        tiles.push((format!("{rate:.0}"), "durable epochs a second, at the most".to_owned()));
    }
    let tile = |(number, what): &(String, String)| {
        format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>", escaped(number), escaped(what))
    };
    format!("<div class=\"tiles\">{}</div>\n", tiles.iter().map(tile).collect::<String>())
}

fn figure(figure: &Figure) -> String {
    let key = |(colour, name): &(super::svg::Colour, &str)| {
        format!("<span class=\"key\"><i style=\"background:var(--{})\"></i>{}</span>", colour.name, escaped(name))
    };
    let chart = |(title, svg): &(String, String)| {
        let title = if title.is_empty() { String::new() } else { format!("<h3>{}</h3>", escaped(title)) };
        let wide = if figure.wide { " wide" } else { "" };
        format!("<div class=\"chart{wide}\">{title}{svg}</div>\n")
    };
    format!(
        "<section>\n<h2>{}</h2>\n<p>{}</p>\n<p class=\"legend\">{}</p>\n<div class=\"charts\">\n{}</div>\n</section>\n",
        escaped(figure.title),
        escaped(figure.text),
        figure.legend.iter().map(key).collect::<String>(),
        figure.charts.iter().map(chart).collect::<String>()
    )
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String = rows.iter().map(|row| cells("td", &mut row.iter().map(String::as_str))).collect();
    format!(
        "<div class=\"scroll\"><table>\n<thead>{}</thead>\n<tbody>{body}</tbody>\n</table></div>\n",
        cells("th", &mut head.iter().copied())
    )
}

fn duel_table(summary: &Summary) -> String {
    if summary.duels.is_empty() {
        return String::new();
    }
    let row = |duel: &Duel| {
        let winner = match duel.winner() {
            Winner::Ring => "ring",
            Winner::Bitmap => "bitmap",
            Winner::Even => "even",
        };
        let numbers = [time(duel.ring_us), time(duel.bitmap_us), format!("{:.2}", duel.bitmap_over_ring), winner.to_owned()];
        let place = [bytes(duel.memory_bytes), count(duel.dirty_pages), duel.pattern.clone(), duel.vcpus.to_string()];
        [place, numbers].concat()
    };
    let head = ["memory", "dirty pages", "pattern", "vCPUs", "ring", "better bitmap", "bitmap by ring", "cheaper"];
    let rows: Vec<Vec<String>> = summary.duels.iter().map(row).collect();
    format!("<section>\n<h2>Who wins where</h2>\n<p>Harvest and reset, medians.</p>\n{}</section>\n", table(&head, &rows))
}

fn rows_table(results: &Results) -> String {
    let row = |row: &Row| {
        vec![
            place(row),
            row.tracker.to_owned(),
            row.ring_entries.map_or(String::new(), |entries| entries.to_string()),
            row.cuts.to_string(),
            time(row.run_us),
            time(row.kick_us),
            time(row.state_us),
            time(row.harvest_us),
            time(row.reset_us),
            time(row.copy_us),
            time(row.pause_us.p50),
            time(row.pause_us.p99),
            time(row.pause_us.max),
            time(row.floor_copy_us),
            format!("{:.0}", row.pages_per_s),
            time(row.fault_us_per_page),
            format!("{:.0}×", row.slowdown),
        ]
    };
    let rows: Vec<Vec<String>> = results.cuts().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let head = [
        "point",
        "tracker",
        "ring",
        "cuts",
        "run",
        "kick",
        "state",
        "harvest",
        "reset",
        "copy",
        "pause",
        "p99",
        "max",
        "copy floor",
        "pages/s",
        "fault",
        "slower",
    ];
    format!("<details>\n<summary>All rows of cuts</summary>\n{}</details>\n", table(&head, &rows))
}

fn engine_table(title: &str, lines: &[&Line]) -> String {
    let Some(first) = lines.first() else { return String::new() };
    let head = super::table_head(first);
    let lines: Vec<String> = lines.iter().map(|line| table_line(line)).collect();
    format!(
        "<details>\n<summary>{title}</summary>\n<div class=\"scroll\"><pre>{}\n{}</pre></div>\n</details>\n",
        escaped(&head),
        escaped(&lines.join("\n"))
    )
}
